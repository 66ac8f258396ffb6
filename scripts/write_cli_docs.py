"""Write ``docs/cli.md`` from what every command's ``--help`` prints; ``--check`` only compares.

Reads the installed ``llmtier``; writes one file. Exits 1 when ``--check`` finds a difference.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"
COMMANDS = (
    (),
    ("init",),
    ("doctor",),
    ("env",),
    ("env", "install"),
    ("env", "list"),
    ("calibration",),
    ("calibration", "build"),
    ("calibration", "show"),
    ("calibration", "check"),
    ("quantize",),
    ("profile",),
    ("replay",),
    ("fit-thresholds",),
    ("embedder",),
    ("embedder", "export"),
    ("audit",),
    ("explain",),
    ("serve",),
    ("keys",),
    ("keys", "add"),
    ("keys", "list"),
    ("keys", "revoke"),
    ("demo",),
)


def render() -> str:
    """Return the page."""
    head = "# Commands\n\nMade by `scripts/write_cli_docs.py` from what `--help` prints.\n"
    return head + "".join(render_command(words) for words in COMMANDS)


def render_command(words: tuple[str, ...]) -> str:
    """Return one command's section."""
    title = " ".join(("llmtier", *words))
    return f"\n## {title}\n\n```text\n{ask_help(words)}\n```\n"


def ask_help(words: tuple[str, ...]) -> str:
    """Return the help of one command at a fixed width."""
    environment = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "llmtier", *words, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    page = render()
    if not parser.parse_args().check:
        TARGET.write_text(page, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != page:
        sys.stderr.write(f"{TARGET.name} is out of date; run scripts/write_cli_docs.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
