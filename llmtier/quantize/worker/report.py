"""How a worker talks to the command that started it: JSON lines out, and an end when the command ends."""

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

Report = Callable[..., None]
"""``report(event, **facts)`` writes one JSON line."""


class WorkerError(Exception):
    """The job cannot be done; the message says why, for people.

    Attributes:
        kind: Whose fault: ``usage`` (what was asked), ``input`` (a file), ``disk``, ``machine`` (memory, network).
    """

    def __init__(self, message: str, *, kind: str = "usage") -> None:
        super().__init__(message)
        self.kind = kind


def open_report() -> Report:
    """Keep the real standard output for progress and send everything else to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # also catches what native libraries print

    def report(event: str, **facts: object) -> None:
        events.write(json.dumps({"event": event, **facts}) + "\n")

    return report


def leave_with_parent() -> None:
    """End this process when the parent's end of our standard input closes, however the parent died."""

    def watch() -> None:
        while os.read(0, 1):  # unbuffered: a buffered reader would hold its lock at exit
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_worker(run: Callable[[dict[str, Any], Report], None]) -> NoReturn:
    """Run a worker's ``run(job, report)`` on the job that the first argument holds, and exit; a refusal exits 1.

    Leaves without taking the interpreter down: freeing torch and its models object by object takes a second.
    """
    report = open_report()
    leave_with_parent()
    try:
        run(json.loads(sys.argv[1]), report)
    except WorkerError as error:
        report("refused", message=str(error), kind=error.kind)
        sys.exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
