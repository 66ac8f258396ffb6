"""The router's summary as a table: one row per tier, domain and load point.

A tier without load points or without accuracy has null in those columns, so that the
other half is not lost. Touches no file.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise, product
from pathlib import Path

from llmtier.core.errors import InputFileError
from llmtier.core.interval import Interval
from llmtier.core.profile import AccuracyEstimate, LoadPoint, TierProfile
from llmtier.store.parquet import Column, Row

POINT_COLUMNS = (
    Column("concurrency", "int64", unit="requests"),
    Column("n_ok", "int64", unit="requests"),
    Column("n_failed", "int64", unit="requests"),
    Column("duration_s", "float64", unit="s"),
    Column("ttft_p50_s", "float64", unit="s", nullable=True),
    Column("ttft_p95_s", "float64", unit="s", nullable=True),
    Column("tpot_p50_s", "float64", unit="s", nullable=True),
    Column("tpot_p95_s", "float64", unit="s", nullable=True),
    Column("itl_p50_s", "float64", unit="s", nullable=True),
    Column("itl_p95_s", "float64", unit="s", nullable=True),
    Column("e2el_p50_s", "float64", unit="s", nullable=True),
    Column("e2el_p95_s", "float64", unit="s", nullable=True),
    Column("mean_input_tokens", "float64", unit="tokens", nullable=True),
    Column("mean_output_tokens", "float64", unit="tokens", nullable=True),
)

_ESTIMATE_COLUMNS = (
    Column("domain", "string", nullable=True),
    Column("accuracy_n", "int64", unit="prompts", nullable=True),
    Column("accuracy_n_failed", "int64", unit="prompts", nullable=True),
    Column("accuracy", "float64", unit="1", nullable=True),
    Column("accuracy_low", "float64", unit="1", nullable=True),
    Column("accuracy_high", "float64", unit="1", nullable=True),
    Column("accuracy_confidence", "float64", unit="1", nullable=True),
)

PROFILE_COLUMNS = (
    Column("tier", "string"),
    *_ESTIMATE_COLUMNS,
    *(replace(column, nullable=True) for column in POINT_COLUMNS),
)


def to_summary_rows(profile: TierProfile) -> list[Row]:
    """Return the rows, domains outermost.

    Raises:
        ValueError: Load points do not ascend, or a domain stands twice.
    """
    _check_order(profile)
    points = [asdict(point) for point in profile.points] or [{}]
    estimates = [_flatten(estimate) for estimate in profile.accuracy] or [{}]
    rows = [{**estimate, **point} for estimate, point in product(estimates, points)]
    return [{"tier": profile.tier, **row} for row in rows if row]


def from_summary_rows(rows: Sequence[Row], *, path: Path) -> tuple[tuple[LoadPoint, ...], tuple[AccuracyEstimate, ...]]:
    """Return load points by ascending concurrency, and estimates in their order.

    Raises:
        InputFileError: A value is outside its range.
    """
    names = [column.name for column in POINT_COLUMNS]
    points = {row["concurrency"]: {name: row[name] for name in names} for row in rows if row["concurrency"] is not None}
    estimates = {row["domain"]: row for row in rows if row["domain"] is not None}
    try:
        found = tuple(LoadPoint(**points[concurrency]) for concurrency in sorted(points))
        return found, tuple(_unflatten(row) for row in estimates.values())
    except (TypeError, ValueError) as exc:
        raise InputFileError(f"expected a profile's summary: {exc}; run 'llmtier profile' again", path=path) from exc


def _check_order(profile: TierProfile) -> None:
    if any(later.concurrency <= earlier.concurrency for earlier, later in pairwise(profile.points)):
        raise ValueError(f"profile of {profile.tier}: load points must ascend in concurrency")
    domains = [estimate.domain for estimate in profile.accuracy]
    if len(set(domains)) != len(domains):
        raise ValueError(f"profile of {profile.tier}: a domain stands twice in {domains}")


def _flatten(estimate: AccuracyEstimate) -> Row:
    return {
        "domain": estimate.domain,
        "accuracy_n": estimate.n,
        "accuracy_n_failed": estimate.n_failed,
        "accuracy": estimate.accuracy,
        "accuracy_low": estimate.interval.low,
        "accuracy_high": estimate.interval.high,
        "accuracy_confidence": estimate.interval.confidence,
    }


def _unflatten(row: Row) -> AccuracyEstimate:
    return AccuracyEstimate(
        domain=row["domain"],
        n=row["accuracy_n"],
        n_failed=row["accuracy_n_failed"],
        accuracy=row["accuracy"],
        interval=Interval(low=row["accuracy_low"], high=row["accuracy_high"], confidence=row["accuracy_confidence"]),
    )
