"""Where an artifact came from, gathered at the command line."""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from llmtier import __version__
from llmtier.core.hardware import Hardware
from llmtier.core.provenance import Provenance
from llmtier.core.tier import EngineIdentity


def make_provenance(
    *,
    hardware: Hardware,
    seed: int | None = None,
    engine: EngineIdentity | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Provenance:
    """Describe this very run."""
    return Provenance(
        llmtier_version=__version__,
        command=("llmtier", *sys.argv[1:]),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        hardware=hardware,
        engine=engine,
        inputs=dict(inputs or {}),
    )


def digest_inputs(*paths: Path) -> dict[str, str]:
    """Return the sha256 of each file, or of all files of a folder together, by its name."""
    from llmtier.store.digests import file_sha256, tree_sha256

    return {path.name: tree_sha256(path, ["*"]) if path.is_dir() else file_sha256(path) for path in paths}
