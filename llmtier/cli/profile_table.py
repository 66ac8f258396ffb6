"""The table and the document that ``llmtier profile`` ends with. Reads the profiles that were just written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.cli import output

if TYPE_CHECKING:
    from llmtier.core.hardware import Hardware
    from llmtier.core.profile import LoadPoint, TierProfile


def report(root: Path, names: Sequence[str], hardware: "Hardware", *, is_json: bool) -> None:
    """Print what the profiles say of the named tiers."""
    from llmtier.store.profiles import read_profiles

    profiles = read_profiles(root, hardware.slug)
    chosen = {name: profiles[name] for name in names if name in profiles}
    if is_json:
        output.print_json(
            {"schema_version": 1, "hardware": hardware.slug, "tiers": [as_row(p) for p in chosen.values()]}
        )
    else:
        show(chosen)


def as_row(found: "TierProfile") -> dict[str, object]:
    """Return one profile as a JSON-ready document."""
    from dataclasses import asdict

    return asdict(found)


def show(profiles: "Mapping[str, TierProfile]") -> None:
    """Print one table: a row per tier and load point."""
    columns = (
        "tier", "load", "req/s", "TTFT p50 ms", "p95 ms", "TPOT p50 ms", "E2EL p95 ms", "n", "failed", "valid", "accuracy", "$/1k",
    )  # fmt: skip
    rows = [as_cells(found, point) for found in profiles.values() for point in found.points]
    output.print_table("Profiles", columns, rows)


def as_cells(found: "TierProfile", point: "LoadPoint") -> tuple[str, ...]:
    """Return one row of the table."""
    estimate = found.accuracy_of(None)
    return (
        found.tier,
        point.shape or f"closed:{point.concurrency}",
        f"{point.request_rps:.1f}",
        output.milliseconds(point.ttft_p50_s),
        output.milliseconds(point.ttft_p95_s),
        output.milliseconds(point.tpot_p50_s),
        output.milliseconds(point.e2el_p95_s),
        str(point.n_ok),
        str(point.n_failed),
        "no" if point.invalid else "yes",
        output.percent(None if estimate is None else estimate.accuracy),
        output.dollars(None if found.cost is None else 1000 * found.cost.usd_per_request),
    )
