"""Logging, set up once: to standard error, readable on a terminal, JSON lines otherwise."""

import json
import logging
import sys
from datetime import UTC, datetime

from typing_extensions import override

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and the record's ``extra`` fields."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(extra_fields(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TerminalFormatter(logging.Formatter):
    """``12:30:01 event key=value`` for people."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line for people."""
        stamp = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        fields = "".join(f" {key}={value}" for key, value in extra_fields(record).items())
        text = f"{stamp} {level}{record.getMessage()}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """Return what a caller passed as ``extra``."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}


def configure(*, is_verbose: bool) -> None:
    """Send llmtier's own records to standard error; other libraries' from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TerminalFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("llmtier").setLevel(logging.INFO if is_verbose else logging.WARNING)


def is_verbose() -> bool:
    """Return whether llmtier tells what happens inside."""
    return logging.getLogger("llmtier").isEnabledFor(logging.INFO)
