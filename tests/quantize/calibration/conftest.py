"""Recipes in a temporary folder, and builds of them in this process."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from llmtier.core.hardware import Hardware
from llmtier.core.provenance import Provenance
from llmtier.quantize.calibration.build import build
from llmtier.quantize.calibration.planning import plan_build
from llmtier.store.calibration_manifest import CalibrationManifest
from llmtier.store.calibration_recipe import read_recipe

HARDWARE = Hardware(cpu_model="Test CPU", cpu_flags=(), n_cores=2, memory_bytes=2**30)
WORDS = ("amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "inlet", "jetty", "knoll", "larch")

Build = Callable[..., CalibrationManifest]


def provenance_of(inputs: Mapping[str, str]) -> Provenance:
    return Provenance(
        llmtier_version="0",
        command=("llmtier",),
        created_at="2026-01-01T00:00:00+00:00",
        hardware=HARDWARE,
        inputs=inputs,
    )


def sentence(number: int, n_words: int) -> str:
    """Return words that no other number's text has in this order."""
    return " ".join(f"{WORDS[(number * 7 + place * place) % len(WORDS)]}{number * place}" for place in range(n_words))


def chat(question: str, answer: str = "Let me look.") -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return a recipe with 60 chats of ``support`` and 40 of ``general``."""
    write_rows(tmp_path / "sources" / "support.jsonl", [chat(sentence(n, 10 + n % 50)) for n in range(60)])
    write_rows(tmp_path / "sources" / "general.jsonl", [chat(sentence(1000 + n, 10 + n % 50)) for n in range(40)])
    path = tmp_path / "support.toml"
    path.write_text(
        'name = "support"\ntoken_budget = 2000\nsystem_prompt = "You help."\n'
        '[[source]]\npath = "sources/support.jsonl"\n'
        '[[source]]\npath = "sources/general.jsonl"\ndomain = "general"\n'
    )
    return path


@pytest.fixture
def make() -> Build:
    """Return a function that builds a recipe."""

    def run(path: Path, **options: object) -> CalibrationManifest:
        plan = plan_build(read_recipe(path), output=options.pop("output", None), model=options.pop("model", None))  # type: ignore[arg-type]
        return build(plan, **{"python": Path, "provenance_of": provenance_of, **options})  # type: ignore[arg-type]

    return run
