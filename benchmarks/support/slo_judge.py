"""How often a decision "this tier meets the limits" was right: shares with intervals that know of time.

Requests of one moment share their fate, so intervals resample blocks of ten seconds, within each load. Where every
request or none succeeded that has no width, and the score interval of independent requests stands in.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtier.stats.intervals import wilson
from support.slo_replay import Latencies
from support.slo_rows import LIVE, PREDICTORS, Row

BLOCK_S = 10.0
N_RESAMPLES = 2000
CLOSE = math.log(1.25)
"""A decision is close where the limit lies within a quarter of the prediction."""

TARGET = 0.95
Flags = NDArray[np.bool_]


def share(successes: Flags, among: Flags, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the share of ``successes`` among ``among``; arrays of shape (len(rows),)."""
    n = int(among.sum())
    n_good = int((successes & among).sum())
    if n == 0:
        return {"value": None, "n": 0, "interval": None}
    if n_good in (0, n):
        found = wilson(n_good, n)
        low, high = found.low, found.high
    else:
        low, high = _resample(successes & among, among, rows)
    return {"value": round(n_good / n, 4), "n": n, "interval": [round(low, 4), round(high, 4)]}


def _resample(successes: Flags, among: Flags, rows: Sequence[Row]) -> tuple[float, float]:
    places = [(row.seen.load, int(row.seen.at_s // BLOCK_S)) for row in rows]
    blocks = sorted(set(places))
    number = {block: at for at, block in enumerate(blocks)}
    at = np.array([number[place] for place in places])
    good, all_ = np.bincount(at, successes, len(blocks)), np.bincount(at, among, len(blocks))
    rng = np.random.default_rng(0)
    tops, bottoms = np.zeros(N_RESAMPLES), np.zeros(N_RESAMPLES)
    for load in sorted({load for load, _ in blocks}):
        mine = np.array([block[0] == load for block in blocks])
        n = int(mine.sum())
        weights = rng.multinomial(n, np.full(n, 1.0 / n), size=N_RESAMPLES)  # (resamples, blocks)
        tops += weights @ good[mine]
        bottoms += weights @ all_[mine]
    shares = tops[bottoms > 0] / bottoms[bottoms > 0]
    low, high = np.quantile(shares, [0.025, 0.975]).tolist()
    return low, high


def judge(rows: Sequence[Row], says: Flags | None = None, met: Flags | None = None) -> dict[str, Any]:
    """Return precision, recall and accuracy of "meets the limits".

    Args:
        rows: The requests.
        says: What was decided of each; ``None`` takes the gateway's decisions.
        met: Whether the limits held; ``None`` takes the client's clock.
    """
    if not rows:
        return {"n": 0}
    says = np.array([row.says for row in rows]) if says is None else says
    met = np.array([row.is_met for row in rows]) if met is None else met
    everywhere = np.ones(len(rows), dtype=bool)
    return {
        "precision": share(met, says, rows),
        "recall": share(says, met, rows),
        "accuracy": share(says == met, everywhere, rows),
        "says_share": round(float(says.mean()), 4),
        "met_share": round(float(met.mean()), 4),
        "n": len(rows),
    }


def judge_predictor(rows: Sequence[Row], predictor: str) -> dict[str, Any]:
    """Return how well one predictor would have told; rows of which it says nothing must be left out before."""
    margins = np.array([row.margin(predictor) for row in rows], dtype=float)
    met = np.array([row.is_met for row in rows])
    return {
        **judge(rows, says=margins >= 0.0),
        "auc": _auc(margins, met),
        "at_precision": _recall_at(margins, met),
        "under_predicted": {name: cover(rows, at, predictor) for at, name in enumerate(("ttft", "e2el"))},
    }


def comparable(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of which every predictor says something."""
    return [row for row in rows if all(row.margin(name) is not None for name in PREDICTORS)]


def cover(rows: Sequence[Row], at: int, predictor: str = LIVE) -> dict[str, Any]:
    """Return the share of answers no slower than predicted; ``at`` is 0 for TTFT, 1 for E2EL."""
    pairs = [(row.observed[at], row.predicted[predictor][at]) for row in rows]
    known = np.array([seen_s is not None and said_s is not None for seen_s, said_s in pairs], dtype=bool)
    within = np.array([_is_within(pair) for pair in pairs], dtype=bool)
    return share(within, known, rows)


def _is_within(pair: Latencies) -> bool:
    seen_s, said_s = pair
    return seen_s is not None and said_s is not None and seen_s <= said_s


def is_close(row: Row) -> bool:
    """Return whether the decision was close: its tightest limit lies near the prediction."""
    margin = row.margin(LIVE)
    return margin is not None and abs(margin) <= CLOSE


def _auc(margins: NDArray[np.float64], met: Flags) -> float | None:
    """Return P(a request that met its limits has the greater margin than one that did not), ties counting half."""
    n_met = int(met.sum())
    if n_met in (0, len(met)):
        return None
    ascending = np.sort(margins)
    low, high = np.searchsorted(ascending, margins, "left"), np.searchsorted(ascending, margins, "right")
    ranks = (low + high + 1) / 2
    wins = float(ranks[met].sum()) - n_met * (n_met + 1) / 2
    return round(wins / (n_met * (len(met) - n_met)), 4)


def _recall_at(margins: NDArray[np.float64], met: Flags) -> dict[str, Any] | None:
    """Return the most that the predictor recalls at the target precision once scaled by the best constant.

    The constant is found on these very requests: what each could do at best, which makes unlike predictors comparable.
    """
    order = np.argsort(-margins, kind="stable")
    good = np.cumsum(met[order])
    precise = np.flatnonzero(good / np.arange(1, len(met) + 1) >= TARGET)
    if not precise.size or not met.any():
        return None
    last = int(precise[-1])
    scale = math.exp(float(margins[order[last]]))
    return {"precision": TARGET, "recall": round(float(good[last] / met.sum()), 4), "scaled_by": round(scale, 4)}
