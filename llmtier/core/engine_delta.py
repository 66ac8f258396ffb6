"""What an engine's own counters say of one load point: differences, and means from sums and counts.

Holds values; ``engine/metrics_page.py`` reads them from a page. Quantiles of an engine's
histograms are left out on purpose: vLLM's first bucket of the queue time ends at 0.3 s and
that of the ITL at 10 ms, so a quantile below those would be interpolation, not measurement.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """A histogram reduced to what is exact in it.

    Attributes:
        total: Sum of the observed values, in the unit of the field that holds it.
        n: How many were observed.
    """

    total: float
    n: int

    @property
    def mean(self) -> float | None:
        """Return the mean; ``None`` when nothing was observed."""
        return self.total / self.n if self.n else None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDelta:
    """The engine's counters over one load point; ``None`` where its page does not show one.

    Attributes:
        n_snapshots: Pages read, the first and the last included.
        n_running_max: Most requests in the batch on any of those pages; likewise ``n_waiting_max``.
        kv_usage_max: Largest share of the KV cache in use on any of them, in [0, 1].
        n_preemptions: Requests thrown out of the batch for lack of KV blocks.
        prompt_tokens: Of vLLM with those that came from the prefix cache, of llama.cpp without.
        generation_tokens: Output tokens.
        prefix_query_tokens: Prompt tokens looked up in the prefix cache.
        prefix_hit_tokens: Of them, found there.
        finished: Requests by the reason they ended for, sorted by reason.
        ttft_s: Arrival at the engine's front end to the first token: tokenization and queue included.
        itl_s: One observation per decoded token (token-weighted).
        queue_s: Until the request was last scheduled; per finished request, as the following.
        prefill_s: Scheduled to first token.
        decode_s: First to last token.
        e2el_s: Arrival at the front end to the last token.
        iteration_tokens: Tokens per engine step, prefill and decode; its ``n`` counts steps.
    """

    n_snapshots: int
    n_running_max: int | None = None
    n_waiting_max: int | None = None
    kv_usage_max: float | None = None
    n_preemptions: int | None = None
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    prefix_query_tokens: int | None = None
    prefix_hit_tokens: int | None = None
    finished: tuple[tuple[str, int], ...] | None = None
    ttft_s: Tally | None = None
    itl_s: Tally | None = None
    queue_s: Tally | None = None
    prefill_s: Tally | None = None
    decode_s: Tally | None = None
    e2el_s: Tally | None = None
    iteration_tokens: Tally | None = None

    @property
    def prefix_hit_share(self) -> float | None:
        """Return hits per looked-up token; ``None`` when none was looked up."""
        if not self.prefix_query_tokens or self.prefix_hit_tokens is None:
            return None
        return self.prefix_hit_tokens / self.prefix_query_tokens
