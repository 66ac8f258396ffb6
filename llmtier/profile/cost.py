"""Divide a tier's price by its best measured throughput. Pure."""

from collections.abc import Iterable

from llmtier.core.profile import Cost, LoadPoint

_SECONDS_PER_HOUR = 3600.0


def cost_of(usd_per_hour: float | None, points: Iterable[LoadPoint]) -> Cost | None:
    """Return the cost at the valid closed loop that answered the most requests per second without a failure.

    Equal rates go to the lower concurrency. ``None`` without a price or without such a point.
    """
    whole = [
        (point.concurrency, point)
        for point in points
        if point.concurrency is not None and not point.invalid and point.n_ok > 0 and point.n_failed == 0
    ]
    if usd_per_hour is None or not whole:
        return None
    concurrency, best = max(whole, key=lambda pair: (pair[1].request_rps, -pair[0]))
    usd_per_second = usd_per_hour / _SECONDS_PER_HOUR
    tokens_per_s = best.output_tokens_per_s
    return Cost(
        usd_per_hour=usd_per_hour,
        usd_per_request=usd_per_second / best.request_rps,
        usd_per_output_token=usd_per_second / tokens_per_s if tokens_per_s else None,
        concurrency=concurrency,
    )
