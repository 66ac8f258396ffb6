"""How a worker talks to the command that started it: a job in, JSON lines out, and an end when the command ends."""

import json
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NoReturn

JOB_FOLLOWS = "-"
"""The first argument where the job comes as the first line of standard input."""

READ_BYTES = 65_536

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


def listen_to_parent() -> "SimpleQueue[bytes]":
    """Return where the first line of standard input arrives, if there is one.

    Ends this process when the parent's end of standard input closes, however the parent died.
    """
    first_line: SimpleQueue[bytes] = SimpleQueue()

    def watch() -> None:
        text = b""
        while piece := os.read(0, READ_BYTES):  # unbuffered: a buffered reader would hold its lock at exit
            text += piece
            if piece.endswith(b"\n"):  # nothing comes after the one line
                first_line.put(text)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return first_line


def run_worker(run: Callable[[dict[str, Any], Report], None], load: Callable[[], None] = lambda: None) -> NoReturn:
    """Run a worker's ``run(job, report)`` and exit; a refusal exits 1.

    The job is the first argument, or with ``-`` there the first line of standard input; ``load`` is called before the
    worker waits for it. Leaves without taking the interpreter down: freeing torch and its models object by object takes
    a second.
    """
    report = open_report()
    first_line = listen_to_parent()
    try:
        load()
        run(json.loads(first_line.get() if sys.argv[1] == JOB_FOLLOWS else sys.argv[1]), report)
    except WorkerError as error:
        report("refused", message=str(error), kind=error.kind)
        sys.exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
