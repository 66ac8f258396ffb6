"""The error tree keeps its promises on exit codes and places."""

import pytest

from llmtier.core import errors


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.UsageError("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.PlanError("x"), 2),
        (errors.InputFileError("x"), 3),
        (errors.SchemaVersionError("x"), 3),
        (errors.EngineStartError("x"), 4),
        (errors.EngineRequestError("x", status=503), 4),
        (errors.PortInUseError("x"), 4),
        (errors.DiskError("x"), 4),
        (errors.EnvInstallError("x"), 4),
        (errors.NegativeAnswerError("x"), 5),
    ],
)
def test_each_branch_has_its_exit_code(error, exit_code):
    assert exit_code == error.exit_code


def test_place_stands_before_the_message():
    assert "a.jsonl:7: bad" == str(errors.InputFileError("bad", path="a.jsonl", line=7))
    assert "a.yaml: bad" == str(errors.ConfigError("bad", path="a.yaml"))
    assert "bad" == str(errors.ConfigError("bad"))


def test_engine_start_error_shows_last_lines():
    error = errors.EngineStartError("died", last_lines=("one", "two"))

    assert "died\n    one\n    two" == str(error)
