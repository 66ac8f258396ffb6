"""An engine's own signs, read from its metrics page, and what speaks against sending it more.

Second to the gateway's own ledger: a page is a second old when it is read, and shows what the ledger cannot know, the
load that others send and how full the cache is. Reads the page's text through ``engine.metrics_page``, only the lines
that count; fetches nothing. What cannot be read is unknown, and the unknown speaks against no tier.
"""

import math
from dataclasses import dataclass

from llmtier.core.decision import MissReason
from llmtier.core.errors import EngineRequestError
from llmtier.engine.metrics_page import EngineSnapshot, read_snapshot

MAX_AGE_S = 5.0
"""Older signs say nothing: a queue of five seconds ago has been served."""

_PREFIXES = (
    "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc",
    "vllm:num_preemptions_total", "vllm:iteration_tokens_total_sum", "vllm:iteration_tokens_total_count",
    "llamacpp:requests_processing", "llamacpp:requests_deferred", "llamacpp:kv_cache_usage_ratio",
    "process_start_time_seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSigns:
    """What one page said; ``None`` where it did not.

    Attributes:
        n_waiting: Requests that wait for a place; likewise ``n_running`` in the batch.
        kv_usage: Share of the KV cache in use.
        preemptions_per_s: Since the page before.
        n_foreign: Requests on the engine that are not this gateway's, seen on this page and the one before.
        is_stuck: Whether requests were in the batch all the while and no step ended.
        read_s: When it was read, on the gateway's clock.
    """

    n_waiting: float | None = None
    n_running: float | None = None
    kv_usage: float | None = None
    preemptions_per_s: float | None = None
    n_foreign: float | None = None
    is_stuck: bool | None = None
    read_s: float

    def is_fresh(self, now_s: float) -> bool:
        """Tell whether they still say anything."""
        return now_s - self.read_s <= MAX_AGE_S

    def foreign_at(self, now_s: float) -> float:
        """Return the load of others; 0 where it is unknown or too old."""
        return self.n_foreign if self.n_foreign is not None and self.is_fresh(now_s) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SignLimits:
    """From where on a tier gets no more requests while another can take them.

    Attributes:
        kv_usage: Share of the KV cache in use that is too full.
        preemptions_per_s: More of them are too many: each computes a prompt a second time.
        n_waiting: More requests in the engine's queue that are not this gateway's are too many.
    """

    kv_usage: float = 0.95
    preemptions_per_s: float = 1.0
    n_waiting: float = 8.0


_DEFAULT_LIMITS = SignLimits()


def find_overload(
    signs: EngineSigns, *, now_s: float, n_prefilling: float, limits: SignLimits = _DEFAULT_LIMITS
) -> MissReason | None:
    """Return why the engine should get no more; ``None`` when nothing speaks against it or the signs are too old.

    Args:
        signs: Of the engine.
        now_s: Now.
        n_prefilling: Requests of this gateway, all its processes, whose first token has not come: a queue that these
            explain is in the prediction already.
        limits: From where on.
    """
    if not signs.is_fresh(now_s):
        return None
    if signs.kv_usage is not None and signs.kv_usage >= limits.kv_usage:
        return MissReason.KV
    if signs.preemptions_per_s is not None and signs.preemptions_per_s > limits.preemptions_per_s:
        return MissReason.PREEMPTIONS
    if signs.n_waiting is None:
        return None
    unexplained = signs.n_waiting - n_prefilling
    if signs.n_foreign is not None:  # our own that were served since the page was read are no queue of others
        unexplained = min(unexplained, signs.n_foreign)
    return MissReason.QUEUE if unexplained > limits.n_waiting else None


class SignsReader:
    """Reads one engine's pages as they come, and what happened between two of them."""

    def __init__(self) -> None:
        self._page: EngineSnapshot | None = None
        self._read_s = 0.0
        self._n_foreign: float | None = None

    def read(self, page: bytes, *, now_s: float, n_own: float | None = None) -> EngineSigns:
        """Return what a page says.

        Args:
            page: As fetched.
            now_s: When it was fetched.
            n_own: Requests that this gateway, all its processes, had there meanwhile: the greater of the counts before
                and after fetching. ``None`` when unknown.
        """
        found = read_page(page)
        if found is None:
            self._page, self._n_foreign = None, None
            return EngineSigns(read_s=now_s)
        before, span_s = self._page, now_s - self._read_s
        if before is not None and _is_restarted(before, found):
            before = None
        n_foreign = _count_foreign(found, n_own)
        signs = EngineSigns(
            n_waiting=found.n_waiting,
            n_running=found.n_running,
            kv_usage=found.kv_usage,
            preemptions_per_s=_find_rate(before, found, span_s),
            n_foreign=None if n_foreign is None or self._n_foreign is None else min(n_foreign, self._n_foreign),
            is_stuck=_is_stuck(before, found),
            read_s=now_s,
        )
        self._page, self._read_s, self._n_foreign = found, now_s, n_foreign
        return signs


def read_page(page: bytes) -> EngineSnapshot | None:
    """Read the few lines of a metrics page that are needed here; ``None`` when it shows none or cannot be read."""
    lines = [line for line in page.decode("utf-8", "replace").split("\n") if line.startswith(_PREFIXES)]
    try:
        snapshot = read_snapshot("\n".join([*lines, ""]))
    except EngineRequestError:
        return None
    return None if snapshot.n_running is None and snapshot.n_waiting is None and snapshot.kv_usage is None else snapshot


def _count_foreign(page: EngineSnapshot, n_own: float | None) -> float | None:
    if n_own is None or page.n_running is None:
        return None
    return max(page.n_running + (page.n_waiting or 0) - n_own, 0.0)


def _find_rate(before: EngineSnapshot | None, page: EngineSnapshot, span_s: float) -> float | None:
    if before is None or not span_s > 0:
        return None
    now, earlier = page.counters.get("n_preemptions"), before.counters.get("n_preemptions")
    return None if now is None or earlier is None else (now - earlier) / span_s


def _is_stuck(before: EngineSnapshot | None, page: EngineSnapshot) -> bool | None:
    """Tell whether no step ended between two pages that both show requests in the batch."""
    if before is None or "iteration_tokens" not in page.tallies or "iteration_tokens" not in before.tallies:
        return None
    is_still = page.tallies["iteration_tokens"].n == before.tallies["iteration_tokens"].n
    return bool(is_still and page.n_running and before.n_running)


def _is_restarted(before: EngineSnapshot, page: EngineSnapshot) -> bool:
    """Tell whether the engine was started anew: counters fell, or its birth is another."""
    births = any(not math.isclose(page.births.get(name, at_s), at_s) for name, at_s in before.births.items())
    return births or any(page.series.get(name, 0.0) < value for name, value in before.series.items())
