"""An engine's metrics page: fetch it, read it into a snapshot, subtract two snapshots.

Reads ``GET /metrics`` of vLLM (today's names and older ones) and of llama.cpp's server; writes
nothing. An absent metric is ``None``, never 0. Series of several engines or adapters are added up, save
the KV share, of which the highest counts: the fullest engine is the one that preempts.
Names: vllm/v1/metrics/loggers.py, tests/golden/vllm_0.32.0_metrics.txt, llama.cpp tools/server/README.md.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from llmtier.core.engine_delta import EngineDelta, Tally
from llmtier.core.errors import EngineRequestError

_Labels = tuple[tuple[str, str], ...]
_Number = TypeVar("_Number", int, float)

PAGE_TIMEOUT_S = 5.0
_MAX_PAGE_BYTES = 16 * 1024 * 1024  # vLLM's page with 8 engines and all its buckets is below 1 MiB
# 404, 405: no such page; 501: llama.cpp started without --metrics; 401, 403: not for this key.
_ABSENT_STATUSES = frozenset({401, 403, 404, 405, 501})

_RUNNING = ("vllm:num_requests_running", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "llamacpp:requests_deferred")
_KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "llamacpp:kv_cache_usage_ratio")
_COUNTERS: Mapping[str, tuple[str, ...]] = {
    "n_preemptions": ("vllm:num_preemptions_total",),
    "prompt_tokens": ("vllm:prompt_tokens_total", "llamacpp:prompt_tokens_total"),
    "generation_tokens": ("vllm:generation_tokens_total", "llamacpp:tokens_predicted_total"),
    "prefix_query_tokens": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "prefix_hit_tokens": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
}
_FINISHED = "vllm:request_success_total"
_HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    "ttft_s": ("vllm:time_to_first_token_seconds",),
    "itl_s": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    "queue_s": ("vllm:request_queue_time_seconds",),
    "prefill_s": ("vllm:request_prefill_time_seconds",),
    "decode_s": ("vllm:request_decode_time_seconds",),
    "e2el_s": ("vllm:e2e_request_latency_seconds",),
    "iteration_tokens": ("vllm:iteration_tokens_total",),
}
_BIRTHS = ("process_start_time_seconds", "vllm:generation_tokens_created", "vllm:prompt_tokens_created")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """One page, read; ``None`` where it does not show a metric. Fields are named as in ``EngineDelta``.

    Attributes:
        n_running: Requests in the batch now.
        n_waiting: Requests that wait for a place.
        kv_usage: Share of the KV cache in use, in [0, 1].
        counters: ``EngineDelta`` field to count since the engine's start; only what the page shows.
        finished: Reason to count of requests.
        tallies: ``EngineDelta`` field to histogram since the start; only what the page shows.
        series: Every single counter that went into the above, by name and labels.
        births: Instants at which the process or its counters came to be, where the page tells.
    """

    n_running: int | None
    n_waiting: int | None
    kv_usage: float | None
    counters: Mapping[str, int]
    finished: Mapping[str, int] | None
    tallies: Mapping[str, Tally]
    series: Mapping[str, float]
    births: Mapping[str, float]

    @property
    def is_empty(self) -> bool:
        """Whether the page shows nothing that is known here, as another program's page would."""
        return self.n_running is None and not self.counters and not self.tallies


class _Page:
    """The samples of a page by name."""

    def __init__(self, text: str) -> None:
        self._samples: defaultdict[str, dict[_Labels, float]] = defaultdict(dict)
        self.used: dict[str, float] = {}
        for name, labels, value in _parse(text):
            if math.isfinite(value):
                self._samples[name][labels] = value

    def find(self, names: Iterable[str]) -> dict[_Labels, float] | None:
        """Return the series of the first name that the page shows."""
        return next((self._samples[name] for name in names if name in self._samples), None)

    def gauge(self, names: Iterable[str], combine: Callable[[Iterable[float]], float]) -> float | None:
        """Return all series of a gauge as one value."""
        found = self.find(names)
        return None if found is None else combine(found.values())

    def count(self, names: Iterable[str]) -> float | None:
        """Return the sum of a counter's series, and note them as used."""
        found = next(((name, self._samples[name]) for name in names if name in self._samples), None)
        if found is None:
            return None
        name, series = found
        self.used |= {f"{name}{dict(labels)}": value for labels, value in series.items()}
        return sum(series.values())

    def tally(self, names: Iterable[str]) -> Tally | None:
        """Return a histogram's sum and count; the sum may fall, since a clock that is set back makes it."""
        for name in names:
            totals = self.find((f"{name}_sum",))
            n = self.count((f"{name}_count",))
            if totals is not None and n is not None:
                return Tally(total=sum(totals.values()), n=int(n))
        return None


def read_snapshot(text: str) -> EngineSnapshot:
    """Read a page in the Prometheus text format.

    Raises:
        EngineRequestError: It is not in that format.
    """
    page = _Page(text)
    counters = {field: page.count(names) for field, names in _COUNTERS.items()}
    tallies = {field: page.tally(names) for field, names in _HISTOGRAMS.items()}
    n_running, n_waiting = page.gauge(_RUNNING, sum), page.gauge(_WAITING, sum)
    births = {name: page.gauge((name,), max) for name in _BIRTHS}
    return EngineSnapshot(
        n_running=None if n_running is None else int(n_running),
        n_waiting=None if n_waiting is None else int(n_waiting),
        kv_usage=page.gauge(_KV_USAGE, max),
        counters={field: int(value) for field, value in counters.items() if value is not None},
        finished=_by_reason(page),
        tallies={field: tally for field, tally in tallies.items() if tally is not None},
        series=page.used,
        births={name: value for name, value in births.items() if value is not None},
    )


def delta(before: EngineSnapshot, after: EngineSnapshot, *, between: Sequence[EngineSnapshot] = ()) -> EngineDelta:
    """Return what happened from ``before`` to ``after``; gauges are looked at in ``between`` as well.

    Raises:
        EngineRequestError: The engine was restarted meanwhile, so the difference means nothing.
    """
    snapshots = (before, *between, after)
    for earlier, later in pairwise(snapshots):
        _require_same_engine(earlier, later)
    n_of = {field: after.counters[field] - n for field, n in before.counters.items() if field in after.counters}
    tally_of = _subtract_tallies(before.tallies, after.tallies)
    return EngineDelta(
        n_snapshots=len(snapshots),
        n_running_max=_highest(page.n_running for page in snapshots),
        n_waiting_max=_highest(page.n_waiting for page in snapshots),
        kv_usage_max=_highest(page.kv_usage for page in snapshots),
        finished=_subtract_reasons(before.finished, after.finished),
        n_preemptions=n_of.get("n_preemptions"),
        prompt_tokens=n_of.get("prompt_tokens"),
        generation_tokens=n_of.get("generation_tokens"),
        prefix_query_tokens=n_of.get("prefix_query_tokens"),
        prefix_hit_tokens=n_of.get("prefix_hit_tokens"),
        ttft_s=tally_of.get("ttft_s"),
        itl_s=tally_of.get("itl_s"),
        queue_s=tally_of.get("queue_s"),
        prefill_s=tally_of.get("prefill_s"),
        decode_s=tally_of.get("decode_s"),
        e2el_s=tally_of.get("e2el_s"),
        iteration_tokens=tally_of.get("iteration_tokens"),
    )


async def fetch_page(
    base_url: str, api_key: str | None = None, *, session: aiohttp.ClientSession | None = None
) -> str | None:
    """Return the text of ``/metrics``; ``None`` where the server has no such page for us.

    Args:
        base_url: Of the engine; a trailing ``/v1`` is ignored.
        api_key: Sent as a bearer token.
        session: To send with; one of its own when ``None``.

    Raises:
        EngineRequestError: No answer, an error of the server, or no text.
    """
    status, body = await _request("GET", _url(base_url, "/metrics"), api_key, session=session)
    if status in _ABSENT_STATUSES:
        return None
    if status != 200:
        raise EngineRequestError(f"{_url(base_url, '/metrics')}: HTTP {status}", status=status)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise EngineRequestError(f"{_url(base_url, '/metrics')}: not UTF-8: {error}", status=status) from error


async def reset_prefix_cache(base_url: str, api_key: str | None = None) -> bool:
    """Ask the engine to forget its prefix cache; return whether it said that it did.

    vLLM has the route only with ``VLLM_SERVER_DEV_MODE=1``, and answers 200 with ``success: false``
    while a request still holds blocks. Older versions answer 200 without a body.

    Raises:
        EngineRequestError: No answer.
    """
    status, body = await _request("POST", _url(base_url, "/reset_prefix_cache"), api_key, session=None)
    if status != 200 or not body.strip():
        return status == 200
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return False
    return isinstance(document, dict) and document.get("success", True) is True


def _parse(text: str) -> Iterable[tuple[str, _Labels, float]]:
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                yield sample.name, tuple(sorted(sample.labels.items())), float(sample.value)
    except (ValueError, KeyError, IndexError, TypeError) as error:  # the parser raises what its slices raise
        raise EngineRequestError(f"/metrics is not in the Prometheus text format: {error}", status=200) from error


def _by_reason(page: _Page) -> dict[str, int] | None:
    if page.count((_FINISHED,)) is None:
        return None
    counts: defaultdict[str, int] = defaultdict(int)
    for labels, value in (page.find((_FINISHED,)) or {}).items():
        counts[dict(labels).get("finished_reason", "unknown")] += int(value)
    return dict(counts)


def _subtract_tallies(before: Mapping[str, Tally], after: Mapping[str, Tally]) -> dict[str, Tally]:
    return {
        field: Tally(total=after[field].total - tally.total, n=after[field].n - tally.n)
        for field, tally in before.items()
        if field in after
    }


def _highest(values: Iterable[_Number | None]) -> _Number | None:
    return max((value for value in values if value is not None), default=None)


def _subtract_reasons(
    before: Mapping[str, int] | None, after: Mapping[str, int] | None
) -> tuple[tuple[str, int], ...] | None:
    """Return the differences; a reason that first shows up later had counted none."""
    if before is None or after is None:
        return None
    return tuple((reason, after[reason] - before.get(reason, 0)) for reason in sorted(after))


def _require_same_engine(before: EngineSnapshot, after: EngineSnapshot) -> None:
    for name, birth_s in before.births.items():
        if after.births.get(name, birth_s) != birth_s:
            raise EngineRequestError(f"the engine was restarted during the point: {name} changed")
    for name, value in before.series.items():
        later = after.series.get(name)
        if later is None or later < value:
            shown = "nothing" if later is None else f"{later:g}"
            raise EngineRequestError(
                f"the engine was restarted during the point: {name} went from {value:g} to {shown}"
            )


def _url(base_url: str, path: str) -> str:
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/") + path


async def _request(
    method: str, url: str, api_key: str | None, *, session: aiohttp.ClientSession | None
) -> tuple[int, bytes]:
    """Return status and body."""
    if session is None:
        async with aiohttp.ClientSession() as own:
            return await _request(method, url, api_key, session=own)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
    try:
        async with (
            asyncio.timeout(PAGE_TIMEOUT_S),
            session.request(method, url, headers=headers, allow_redirects=False) as response,
        ):
            return response.status, await _read_body(response)
    except TimeoutError as error:
        raise EngineRequestError(f"{url}: no answer within {PAGE_TIMEOUT_S:g} s") from error
    except aiohttp.ClientError as error:
        raise EngineRequestError(f"{url}: {str(error) or type(error).__name__}") from error


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body; what is longer than any metrics page is refused, not kept."""
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > _MAX_PAGE_BYTES:
            raise EngineRequestError(f"{response.url}: longer than {_MAX_PAGE_BYTES} bytes", status=response.status)
    return bytes(body)
