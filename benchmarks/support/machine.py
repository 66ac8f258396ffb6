"""What a result was measured on, and how it is written down."""

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from llmtier import __version__
from llmtier.engine.hardware import detect_hardware


def describe_machine(versions: Mapping[str, str]) -> dict[str, object]:
    """Return hardware, Python and the versions of what was compared."""
    return {
        "hardware": asdict(detect_hardware()),
        "python": platform.python_version(),
        "llmtier": __version__,
        **versions,
    }


def publish(document: Mapping[str, object], path: Path | None) -> None:
    """Print the result and, where a path is given, write it there."""
    text = json.dumps({"schema_version": 1, "command": ["python", *sys.argv], **document}, indent=2, allow_nan=False)
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
