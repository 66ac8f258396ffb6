"""The documentation follows the code."""

import re
import subprocess
import sys
from pathlib import Path

from llmtier.cli.app import app

ROOT = Path(__file__).parents[1]


def test_command_reference_is_up_to_date():
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "write_cli_docs.py", "--check"], capture_output=True, text=True, check=False
    )

    assert 0 == result.returncode, result.stderr


def test_every_command_and_option_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0] for line in re.findall(r"^\$ llmtier (.*)$", readme, re.MULTILINE)]
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

    assert lines
    for line in lines:
        section = re.search(rf"^## llmtier {line.split()[0]}\n(.*?)(?=^## |\Z)", reference, re.MULTILINE | re.DOTALL)
        assert section is not None, line
        for option in re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", line):
            assert option in section.group(1), (line, option)


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))

    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_commands_have_an_example():
    assert [] == [c.name for c in app.registered_commands if "Example:" not in (c.callback.__doc__ or "")]
