"""The router's summary as a table: one row per tier, domain and load point.

A load point is told from the others by its place among them (``point``), because two of one shape
may have been measured; in summaries of older versions, which know closed loops only, by its
concurrency. A tier without load points or without accuracy has null in those columns, so that
the other half is not lost. Touches no file.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from llmtier.core.errors import InputFileError
from llmtier.core.interval import Interval
from llmtier.core.profile import AccuracyEstimate, LoadPoint, TierProfile
from llmtier.store.parquet import Column, Row

POINT_COLUMNS = (
    Column("concurrency", "int64", unit="requests", nullable=True),
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
    Column("shape", "string", nullable=True),
    Column("asked_rps", "float64", unit="1/s", nullable=True),
    Column("achieved_rps", "float64", unit="1/s", nullable=True),
    Column("n_sent", "int64", unit="requests", nullable=True),
    Column("is_steady", "bool", nullable=True),
    Column("little_residual", "float64", unit="1", nullable=True),
    Column("mean_in_flight", "float64", unit="requests", nullable=True),
    Column("schedule_delay_p50_s", "float64", unit="s", nullable=True),
    Column("schedule_delay_p99_s", "float64", unit="s", nullable=True),
    Column("ttft_from_send_p50_s", "float64", unit="s", nullable=True),
    Column("ttft_from_send_p95_s", "float64", unit="s", nullable=True),
    Column("e2el_from_send_p50_s", "float64", unit="s", nullable=True),
    Column("e2el_from_send_p95_s", "float64", unit="s", nullable=True),
    Column("ttft_p95_high_s", "float64", unit="s", nullable=True),
    Column("tpot_p95_high_s", "float64", unit="s", nullable=True),
    Column("e2el_p95_high_s", "float64", unit="s", nullable=True),
    Column("bound_confidence", "float64", unit="1", nullable=True),
    Column("invalid", "strings", nullable=True),
    Column("seed", "int64", unit="1", nullable=True),
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
    Column("point", "int64", unit="1", nullable=True),
    *(replace(column, nullable=True) for column in POINT_COLUMNS),
)


def to_summary_rows(profile: TierProfile) -> list[Row]:
    """Return the rows, domains outermost.

    Raises:
        ValueError: Load points or domains are not in the order that ``TierProfile`` states.
    """
    _check_order(profile)
    points = [{"point": place, **asdict(point)} for place, point in enumerate(profile.points)] or [{}]
    estimates = [_flatten(estimate) for estimate in profile.accuracy] or [{}]
    rows = [{**estimate, **point} for estimate, point in product(estimates, points)]
    return [{"tier": profile.tier, **row} for row in rows if row]


def from_summary_rows(rows: Sequence[Row], *, path: Path) -> tuple[tuple[LoadPoint, ...], tuple[AccuracyEstimate, ...]]:
    """Return load points and estimates in their order; points of older versions by ascending concurrency.

    Raises:
        InputFileError: A value is absent or outside its range.
    """
    points = {_place_of(row): row for row in rows if row["duration_s"] is not None}
    estimates = {row["domain"]: row for row in rows if row["domain"] is not None}
    try:
        found = tuple(to_point(points[place]) for place in sorted(points))
        return found, tuple(_unflatten(row) for row in estimates.values())
    except (TypeError, ValueError) as exc:
        raise InputFileError(f"expected a profile's summary: {exc}; run 'llmtier profile' again", path=path) from exc


def to_point(row: Row) -> LoadPoint:
    """Return the load point of a row that has every column of ``POINT_COLUMNS``.

    Raises:
        ValueError: A value that every point has is null, or one is outside its range.
    """
    if absent := [column.name for column in POINT_COLUMNS if not column.nullable and row[column.name] is None]:
        raise ValueError(f"a load point has no {absent[0]}")
    values = {column.name: row[column.name] for column in POINT_COLUMNS}
    shape = shape_or_closed(row["shape"], row["concurrency"])
    return LoadPoint(**{**values, "shape": shape, "invalid": tuple(row["invalid"] or ())})


def shape_or_closed(shape: str | None, concurrency: int | None) -> str:
    """Return the label of a load shape; where an older version wrote none it was a closed loop."""
    if shape is not None:
        return shape
    return "" if concurrency is None else f"closed:{concurrency}"


def _place_of(row: Row) -> int:
    place: int | None = row["concurrency"] if row["point"] is None else row["point"]
    return 0 if place is None else place


def _check_order(profile: TierProfile) -> None:
    loops = [point.concurrency for point in profile.points if point.concurrency is not None]
    if any(point.concurrency is None for point in profile.points[: len(loops)]) or loops != sorted(loops):
        raise ValueError(f"profile of {profile.tier}: closed loops must stand first and ascend in concurrency")
    valid = [point.concurrency for point in profile.closed_points]
    if len(set(valid)) != len(valid):
        raise ValueError(f"profile of {profile.tier}: two valid closed loops of one concurrency in {valid}")
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
