"""The only part that talks to people: commands, tables, progress, exit codes.

Standard output carries a command's result, standard error everything else.
"""

import json
import signal
import sys
from typing import TextIO

from llmtier.core.errors import LlmtierError

__all__ = ["main"]


def main() -> None:
    """Run the command line and end the process with the exit code of what happened."""
    # SIGTERM takes the same clean way out as Ctrl-C, so that engines are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from llmtier.cli.app import app

    try:
        app(prog_name="llmtier")
    except LlmtierError as error:
        report_error(error, stream=sys.stderr, is_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stderr.close()
        sys.exit(1)


def report_error(error: LlmtierError, *, stream: TextIO, is_json: bool) -> None:
    """Write ``error`` as one line: JSON for programs, plain for people."""
    if is_json:
        document = {
            "schema_version": 1,
            "error": type(error).__name__,
            "message": str(error),
            "exit_code": error.exit_code,
        }
        stream.write(json.dumps(document) + "\n")
    else:
        stream.write(f"llmtier: {error}\n")
