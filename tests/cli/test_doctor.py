"""What ``llmtier doctor`` says of this machine."""

import json

from typer.testing import CliRunner

from llmtier.cli.app import app
from llmtier.score.native import find_native


def test_doctor_says_what_the_learned_scorer_runs_in(tmp_path, monkeypatch):
    find_native.cache_clear()
    monkeypatch.setenv("LLMTIER_PURE", "1")
    monkeypatch.setenv("LLMTIER_HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["doctor", "--json", "-c", str(tmp_path / "none.yaml")])
    find_native.cache_clear()

    assert 0 == result.exit_code, result.output
    assert "numpy, slower (LLMTIER_PURE is set)" == json.loads(result.stdout)["learned_scorer"]
