"""Log lines are JSON for programs and short for people."""

import json
import logging

from llmtier.cli.logs import JsonFormatter, TerminalFormatter


def make_record(**extra):
    record = logging.makeLogRecord({"name": "llmtier.x", "levelno": logging.INFO, "levelname": "INFO", "msg": "ready"})
    record.__dict__.update(extra)
    return record


def test_json_line_carries_the_extra_fields():
    line = json.loads(JsonFormatter().format(make_record(tier="a")))

    assert ("ready", "a", "info") == (line["event"], line["tier"], line["level"])


def test_terminal_line_is_one_line():
    assert TerminalFormatter().format(make_record(tier="a")).endswith(" ready tier=a")
