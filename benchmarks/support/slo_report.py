"""The joined rows of a run as the numbers that are published: decisions, calibration, peers, the gateway's own time."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmtier.serve.correction import LEAST, MOST
from support.slo_judge import comparable, cover, is_close, judge, judge_predictor
from support.slo_load import Seen
from support.slo_replay import Replay
from support.slo_rows import LIVE, PREDICTORS, Row

N_WORST = 12
QUANTILES = (0.5, 0.95, 0.99)
SPREAD = (0.05, 0.5, 0.95)
PAUSE_S = 0.05
"""Between client and engine; a request that lost so much was held up, not just served."""

METRICS = ("ttft", "e2el")
Keep = Callable[[Row], bool]


def report_decisions(rows: Sequence[Row]) -> dict[str, Any]:
    """Return precision, recall and accuracy of the live decisions, together and by what they depend on."""
    loads, tiers = _names(rows)
    parts: dict[str, Keep] = {
        "routed": lambda row: row.is_routed,
        "pinned": lambda row: not row.is_routed,
        "close": is_close,
        "close_pinned": lambda row: is_close(row) and not row.is_routed,
        "limit_ttft": lambda row: row.limits[1] is None,
        "limit_e2el": lambda row: row.limits[0] is None,
        "limit_both": lambda row: None not in row.limits,
        "streams": lambda row: row.seen.ask.is_stream,
        "whole_answers": lambda row: not row.seen.ask.is_stream,
    }
    for load in loads:
        parts[f"load {load}"] = lambda row, load=load: row.seen.load == load  # type: ignore[misc]  # a bound default
        for tier in tiers:
            parts[f"load {load}, {tier}"] = (  # type: ignore[assignment]  # bound defaults
                lambda row, load=load, tier=tier: row.seen.load == load and row.logged.tier == tier
            )
    for tier in tiers:
        parts[tier] = lambda row, tier=tier: row.logged.tier == tier  # type: ignore[misc]  # a bound default
    found = {"all": judge(rows), **{name: judge([row for row in rows if keep(row)]) for name, keep in parts.items()}}
    met = np.array([row.is_met_at_gateway for row in rows])
    return {**found, "by_the_gateways_clock": judge(rows, met=met)}


def report_calibration(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the share of answers under their predicted 95th percentile, by load and tier."""
    loads, tiers = _names(rows)
    found: dict[str, Any] = {"all": _cover_both(rows), "pinned": _cover_both([x for x in rows if not x.is_routed])}
    for load in loads:
        for tier in tiers:
            mine = [row for row in rows if row.seen.load == load and row.logged.tier == tier]
            found[f"load {load}, {tier}"] = _cover_both(mine)
            found[f"load {load}, {tier}, pinned"] = _cover_both([row for row in mine if not row.is_routed])
    return found


def _cover_both(rows: Sequence[Row]) -> dict[str, Any]:
    return {name: cover(rows, at) if rows else None for at, name in enumerate(METRICS)}


def report_predictors(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what each predictor would have told of the tier that served, on the requests that all say something of."""
    parts: dict[str, Sequence[Row]] = {"all": rows, "pinned": [row for row in rows if not row.is_routed]}
    parts |= {f"load {load}": [row for row in rows if row.seen.load == load] for load in _names(rows)[0]}
    found: dict[str, Any] = {}
    for name, part in parts.items():
        common = comparable(part)
        found[name] = {
            "n": len(common),
            "n_left_out": len(part) - len(common),
            **{predictor: judge_predictor(common, predictor) for predictor in PREDICTORS if common},
        }
    return found


def report_false_promises(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the requests have in common that were promised and missed, and the worst of them."""
    promised = [row for row in rows if row.says]
    false = [row for row in promised if not row.is_met]
    blocks = Counter((row.seen.load, int(row.seen.at_s)) for row in false)
    n_seconds = len({(row.seen.load, int(row.seen.at_s)) for row in rows})
    worst_seconds = sum(n for _, n in blocks.most_common(max(n_seconds // 100, 1)))
    return {
        "n": len(false),
        "n_promised": len(promised),
        "of_ttft": sum(_excess(row, 0) > 0 for row in false),
        "of_e2el": sum(_excess(row, 1) > 0 for row in false),
        "failed": sum(row.seen.failure is not None for row in false),
        "under_predicted": sum(_over_prediction(row) <= 0 for row in false),
        "answer_longer_than_expected": sum(_is_long(row) for row in false),
        "answer_longer_than_expected_where_promised": sum(_is_long(row) for row in promised),
        "in_the_worst_1_percent_of_seconds": worst_seconds,
        "excess_over_limit": quantiles([max(_excess(row, 0), _excess(row, 1)) for row in false]),
        "worst": [_tell(row) for row in sorted(false, key=_over_prediction, reverse=True)[:N_WORST]],
    }


def report_gateway(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the gateway's and the network's time add to the engine's, and what that costs in decisions."""
    ttft = [(row.seen.ttft_s, row.logged.ttft_s) for row in rows]
    e2el = [(row.seen.e2el_s, row.logged.e2el_s) for row in rows]
    paused = [row for row in rows if (added_s(row) or 0.0) > PAUSE_S]
    return {
        "overhead_s": quantiles([row.logged.overhead_s for row in rows]),
        "added_s": quantiles([added_s(row) for row in rows], (*QUANTILES, 0.999)),
        "pauses": {
            "longer_than_s": PAUSE_S,
            "n": len({int(row.seen.at_s) for row in paused}),
            "n_requests": len(paused),
            "n_requests_between": round(len(rows) / max(len({int(row.seen.at_s) for row in paused}), 1)),
            "longest_s": round(max((added_s(row) or 0.0 for row in paused), default=0.0), 4),
            "n_false_promises": sum(row.says and not row.is_met for row in paused),
        },
        "client_minus_gateway_ttft_s": quantiles([a - b for a, b in ttft if a is not None and b is not None]),
        "client_minus_gateway_e2el_s": quantiles([a - b for a, b in e2el if a is not None and b is not None]),
        "missed_at_the_client_alone": sum(row.is_met_at_gateway and not row.is_met for row in rows),
    }


def added_s(row: Row) -> float | None:
    """Return what lies between the client and the engine: the gateway's own time, and what its clock does not see."""
    pairs = [(row.seen.ttft_s, row.logged.ttft_s), (row.seen.e2el_s, row.logged.e2el_s)]
    beyond = [client_s - gateway_s for client_s, gateway_s in pairs if client_s is not None and gateway_s is not None]
    return (row.logged.overhead_s or 0.0) + beyond[0] if beyond else None


def report_load(rows: Sequence[Row], seen: Sequence[Seen]) -> dict[str, Any]:
    """Return what one load was like."""
    tiers = _names(rows)[1]
    return {
        "n": len(seen),
        "n_failed": sum(one.failure is not None for one in seen),
        "first_failure": next((one.failure for one in seen if one.failure is not None), None),
        "client_late_s": quantiles([one.late_s for one in seen]),
        "reasons": dict(Counter(row.logged.reason for row in rows)),
        "close_share": round(sum(map(is_close, rows)) / len(rows), 4) if rows else None,
        "tiers": {tier: _tell_tier([row for row in rows if row.logged.tier == tier]) for tier in tiers},
    }


def report_correction(rows: Sequence[Row], replay: Replay) -> dict[str, Any]:
    """Return the factors that were in force, how near the replay came, and what the gauge should say at the end."""
    found: dict[str, Any] = {}
    for tier, correction in sorted(replay.corrections.items()):
        again = [row.replayed for row in rows if row.replayed is not None and row.logged.tier == tier]
        drift = correction.drift_ratios().values()
        found[tier] = {
            "ttft_ratio": quantiles([one.ratios[0] for one in again], SPREAD),
            "tpot_ratio": quantiles([one.ratios[1] for one in again], SPREAD),
            "at_a_bound": round(sum(bool({LEAST, MOST} & {*one.ratios}) for one in again) / max(len(again), 1), 4),
            "replayed_over_logged_ttft": quantiles([one.fidelity[0] for one in again], SPREAD),
            "replayed_over_logged_e2el": quantiles([one.fidelity[1] for one in again], SPREAD),
            "drift_at_the_end": round(max(drift), 4) if drift else None,
        }
    return found


def quantiles(values: Sequence[float | None], levels: Sequence[float] = QUANTILES) -> dict[str, float] | None:
    """Return quantiles by name; ``None`` without a value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    found = np.quantile(known, levels).tolist()
    return {f"p{level * 100:g}": round(value, 6) for level, value in zip(levels, found, strict=True)}


def _names(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    return sorted({row.seen.load for row in rows}), sorted({row.logged.tier or "" for row in rows})


def _tell_tier(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "n": len(rows),
        "n_in_flight": quantiles([float(row.logged.n_in_flight) for row in rows]),
        "ttft_s": quantiles([row.seen.ttft_s for row in rows]),
        "e2el_s": quantiles([row.seen.e2el_s for row in rows]),
        "predicted_ttft_s": quantiles([row.predicted[LIVE][0] for row in rows]),
        "predicted_e2el_s": quantiles([row.predicted[LIVE][1] for row in rows]),
        "output_tokens": quantiles([row.logged.n_output_tokens for row in rows]),
    }


def _excess(row: Row, at: int) -> float:
    """Return by what share an observation exceeds its limit; 0 where there is none of the two."""
    limit_s, seen_s = row.limits[at], row.observed[at]
    return 0.0 if limit_s is None or seen_s is None else seen_s / limit_s - 1.0


def _over_prediction(row: Row) -> float:
    """Return by what share the slowest of the limited latencies exceeds its prediction."""
    pairs = [(row.observed[at], row.predicted[LIVE][at]) for at in range(2) if row.limits[at] is not None]
    return max((seen / said - 1.0 for seen, said in pairs if seen is not None and said), default=0.0)


def _is_long(row: Row) -> bool:
    n_tokens = row.logged.n_output_tokens
    long = _long_tokens(row)
    return row.limits[1] is not None and n_tokens is not None and long is not None and n_tokens > long


def _long_tokens(row: Row) -> float | None:
    """Return the length of the answer behind the predicted E2EL."""
    return None if row.replayed is None else row.replayed.long_tokens


def _tell(row: Row) -> dict[str, Any]:
    seen, logged = row.seen, row.logged
    return {
        "load": seen.load,
        "at_s": round(seen.at_s, 2),
        "tier": logged.tier,
        "model": seen.ask.model,
        "is_stream": seen.ask.is_stream,
        "max_tokens": seen.ask.max_tokens,
        "output_tokens": logged.n_output_tokens,
        "long_tokens": _long_tokens(row),
        "n_in_flight": logged.n_in_flight,
        "overhead_s": None if logged.overhead_s is None else round(logged.overhead_s, 5),
        **{name: _tell_latency(row, at) for at, name in enumerate(METRICS)},
    }


def _tell_latency(row: Row, at: int) -> dict[str, float | None]:
    values = {"limit_s": row.limits[at], "predicted_s": row.predicted[LIVE][at], "observed_s": row.observed[at]}
    return {name: None if value is None else round(value, 5) for name, value in values.items()}
