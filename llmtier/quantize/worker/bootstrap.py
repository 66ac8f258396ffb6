"""Start a worker module in an isolated environment: ``python -I bootstrap.py llmtier.quantize.worker.oneshot '{...}'``.

Makes ``llmtier`` importable without putting its parent folder on ``sys.path``: in a wheel install that folder is the
user's ``site-packages``, and numpy, pydantic and the rest of it would shadow the pinned libraries of the environment.
``llmtier/__init__.py`` is not run. See docs/decisions/001.
"""

import runpy
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parents[2]


def enter_package(folder: Path) -> None:
    """Make the modules below ``folder`` importable as ``llmtier.*``, and nothing beside it."""
    package = ModuleType("llmtier")
    package.__path__ = [str(folder)]
    sys.modules["llmtier"] = package


if __name__ == "__main__":
    enter_package(PACKAGE)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
