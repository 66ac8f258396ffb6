"""Sum up the requests of one load point: rows and chunk gaps in, a LoadPoint out.

Pure. Latencies come from ``core.timing`` and count answered requests only. ITL
pools the gaps between content chunks of all requests, as ``vllm bench serve``
does; an engine that puts several tokens into a chunk has larger gaps than its
TPOT says.
"""

from collections.abc import Iterable, Sequence

from llmtier.core.profile import LoadPoint
from llmtier.core.timing import RequestTiming
from llmtier.profile.load import STATUS_OK, RequestSample
from llmtier.stats.quantiles import quantile
from llmtier.store.profiles import RequestRow


def summarize(samples: Sequence[RequestSample]) -> LoadPoint:
    """Return the load point that ``samples``, all of one concurrency and in any order, make up.

    Raises:
        ValueError: No samples, or of more than one concurrency.
    """
    concurrencies = {sample.row.concurrency for sample in samples}
    if len(concurrencies) != 1:
        raise ValueError(f"a load point needs requests of one concurrency, got {sorted(concurrencies)}")
    answered = [sample for sample in samples if sample.row.status == STATUS_OK]
    timings = [to_timing(sample.row) for sample in answered]
    ttft_s = _known(timing.ttft_s for timing in timings)
    tpot_s = _known(timing.tpot_s for timing in timings)
    e2el_s = _known(timing.e2el_s for timing in timings)
    itl_s = [gap_s for sample in answered for gap_s in sample.itl_s]
    return LoadPoint(
        concurrency=concurrencies.pop(),
        n_ok=len(answered),
        n_failed=len(samples) - len(answered),
        duration_s=_duration_s(samples),
        ttft_p50_s=quantile(ttft_s, 0.50),
        ttft_p95_s=quantile(ttft_s, 0.95),
        tpot_p50_s=quantile(tpot_s, 0.50),
        tpot_p95_s=quantile(tpot_s, 0.95),
        itl_p50_s=quantile(itl_s, 0.50),
        itl_p95_s=quantile(itl_s, 0.95),
        e2el_p50_s=quantile(e2el_s, 0.50),
        e2el_p95_s=quantile(e2el_s, 0.95),
        mean_input_tokens=_mean(_known(sample.row.n_input_tokens for sample in answered)),
        mean_output_tokens=_mean(_known(sample.row.n_output_tokens for sample in answered)),
    )


def to_timing(row: RequestRow) -> RequestTiming:
    """Return the instants of a row; of its chunks only the first and the last, so ``itl_s`` means nothing here."""
    chunks_s = () if row.first_s is None or row.last_s is None else (row.first_s, row.last_s)
    return RequestTiming(
        scheduled_s=row.scheduled_s,
        sent_s=row.sent_s,
        done_s=row.done_s,
        content_s=chunks_s,
        n_output_tokens=row.n_output_tokens,
    )


def _duration_s(samples: Sequence[RequestSample]) -> float:
    """First send to last end, failures included: they took the load's time too."""
    return max(sample.row.done_s for sample in samples) - min(sample.row.sent_s for sample in samples)


def _known(values: Iterable[float | None]) -> list[float]:
    return sorted(value for value in values if value is not None)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
