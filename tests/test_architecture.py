"""The house rules that no linter knows: sizes, docstrings, a fast and light ``--help``, a README that tells the truth."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "llmtier").rglob("*.py"))
HEAVY = {"torch", "transformers", "datasets", "vllm", "llmcompressor", "pyarrow", "pandas", "scipy", "numpy", "rich"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_short_and_says_what_it_holds(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    assert len(source.splitlines()) <= 400
    assert ast.get_docstring(tree)
    assert not [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno >= 60]


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom llmtier.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]" == result.stdout.splitlines()[-1]


def test_every_folder_of_the_readme_tree_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\n(llmtier/.*?)```", readme, re.DOTALL)
    assert tree is not None, "README shows the tree in a ```text block"
    named = re.findall(r"^(\s*)([\w.-]+/)", tree.group(1), re.MULTILINE)
    top = {name.rstrip("/") for indent, name in named if not indent}
    packages = {name.rstrip("/") for indent, name in named if indent}

    assert {name for name in top if not (ROOT / name).is_dir()} == set()
    assert packages == {path.name for path in (ROOT / "llmtier").iterdir() if (path / "__init__.py").exists()}


def test_no_path_of_a_machine_is_in_the_sources():
    hits = [str(path) for path in MODULES if re.search(r"/(home|work|root)/\w", path.read_text(encoding="utf-8"))]

    assert [] == hits
