"""Copy what the router reads of the demo's profiles from ``build/demo/profiles`` to ``profiles``.

Reads profile folders; writes ``profile.parquet`` and ``manifest.json`` of each. Per-request tables stay behind.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "demo" / "profiles"
TARGET = ROOT / "profiles"
SHIPPED = ("profile.parquet", "manifest.json")


def main() -> int:
    """Copy every profile; exit 4 when there is none."""
    manifests = sorted(SOURCE.glob("*/*/manifest.json"))
    if not manifests:
        sys.stderr.write(f"no profiles in {SOURCE}; run 'make demo' first\n")
        return 4
    for manifest in manifests:
        folder = TARGET / manifest.parent.relative_to(SOURCE)
        folder.mkdir(parents=True, exist_ok=True)
        for name in SHIPPED:
            shutil.copyfile(manifest.parent / name, folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
