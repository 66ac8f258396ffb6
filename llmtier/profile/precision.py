"""How many requests a load point needs for its mean to be known well enough. Pure."""

import math
from collections.abc import Sequence

from llmtier.profile.sample import RequestSample
from llmtier.stats.bounds import series_interval

_MARGIN = 1.1  # the spread that the number comes from is itself an estimate


def relative_half_width(samples: Sequence[RequestSample]) -> float | None:
    """Return half the width of the mean E2EL's 95 % interval over that mean; ``None`` when undetermined.

    Args:
        samples: Of one load point; warm-up and failures count nothing. Their autocorrelation is accounted for.
    """
    ordered = sorted(samples, key=lambda sample: sample.row.scheduled_s)
    values = [
        value
        for sample in ordered
        if sample.is_ok and not sample.is_warmup and (value := sample.timing.e2el_s) is not None
    ]
    found = series_interval(values, "mean") if values else None
    middle = sum(values) / len(values) if values else 0.0
    return None if found is None or middle <= 0 else (found.high - found.low) / 2 / middle


def requests_for(samples: Sequence[RequestSample], *, precision: float, budget_s: float) -> int | None:
    """Return how many counted requests a repeat needs; ``None`` when the point is good enough, or no repeat fits.

    The half width shrinks with the root of the number (Stein, Annals of Mathematical Statistics 16, 1945: the second
    sample's size comes from the first one's variance). A repeat that the budget cuts short is still made when it doubles the number.
    """
    counted = [sample for sample in samples if not sample.is_warmup]
    width = relative_half_width(samples)
    if len(counted) < 2 or (width is not None and width <= precision):
        return None
    wanted = 4 * len(counted) if width is None else math.ceil(len(counted) * (width / precision) ** 2 * _MARGIN)
    span_s = max(sample.row.done_s for sample in counted) - min(sample.row.scheduled_s for sample in counted)
    affordable = int(len(counted) * budget_s / span_s) if span_s > 0 else wanted
    chosen = min(wanted, affordable)
    return chosen if chosen >= min(wanted, 2 * len(counted)) and chosen > len(counted) else None
