"""Whether the gateway's memory grew: of the processes that lived all the time, after a warm-up. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WARM_UP_SHARE = 0.2
N_BLOCKS = 20
N_SERIES = 60
"""About so many samples are published."""

T_QUANTILE = 2.101
"""Of Student's t at 97.5 % with ``N_BLOCKS - 2`` degrees of freedom."""

Samples = Sequence[tuple[float, Mapping[int, int]]]


def report_memory(samples: Samples) -> dict[str, Any]:
    """Return growth and slope of resident memory, and by process, the control process first, its first and last.

    The processes are those that were there at the warm-up's end and at the last sample: of one that was killed, and of
    the one in its place, no growth can be told. Growth is the median of the last tenth less that of the first tenth.
    The slope's interval is that of a line through the means of blocks, so that neighbouring samples, which are alike,
    do not count as many.
    """
    warm = list(samples)[math.ceil(WARM_UP_SHARE * len(samples)) :]
    if len(warm) < N_BLOCKS:
        return {"rss_growth_bytes": None}
    lived = sorted(warm[0][1].keys() & warm[-1][1].keys())
    kept = [(at_s, found) for at_s, found in warm if all(pid in found for pid in lived)]
    at_s = np.array([at_s for at_s, _ in kept])
    rss = np.array([sum(found[pid] for pid in lived) for _, found in kept], dtype=float)
    n_ends = max(len(rss) // 10, 1)
    slope, half = _fit_slope(at_s, rss)
    every = max(len(kept) // N_SERIES, 1)
    return {
        "rss_growth_bytes": int(np.median(rss[-n_ends:]) - np.median(rss[:n_ends])),
        "rss_bytes": int(rss[-1]),
        "rss_peak_bytes": int(max(sum(found.values()) for _, found in samples)),
        "rss_slope_bytes_per_min": round(60 * slope),
        "rss_slope_95": [round(60 * (slope - half)), round(60 * (slope + half))],
        "rss_by_process": [
            [int(np.median([found[pid] for _, found in end])) for end in (kept[:n_ends], kept[-n_ends:])]
            for pid in lived
        ],
        "rss_series": [
            [round(at - at_s[0], 1), int(total)] for at, total in zip(at_s[::every], rss[::every], strict=True)
        ],
        "n_processes": len(lived),
        "n_samples": len(rss),
    }


def _fit_slope(at_s: np.ndarray, rss: np.ndarray) -> tuple[float, float]:
    """Return the slope and half the width of its 95 % interval, in bytes per second."""
    x = np.array([block.mean() for block in np.array_split(at_s, N_BLOCKS)])
    y = np.array([block.mean() for block in np.array_split(rss, N_BLOCKS)])
    x_spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / x_spread
    left = y - y.mean() - slope * (x - x.mean())
    return slope, T_QUANTILE * math.sqrt(float((left**2).sum()) / (N_BLOCKS - 2) / x_spread)
