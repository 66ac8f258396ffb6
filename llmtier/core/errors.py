"""The error tree, and the exit code each branch ends the command line with.

* LlmtierError                 1  never raised itself
  x UsageError                 2  the command line or the configuration is wrong
    - ConfigError                 llmtier.yaml names file, line and nearest key
    - PlanError                   the plan cannot work: tiers, devices, profiles do not fit together
  x InputFileError             3  a file that was read is malformed or absent
    - SchemaVersionError          written by another generation of llmtier
  x MachineError         4  this machine: engine, port, disk, network
    - EngineStartError            an engine died or was not ready in time
    - EngineRequestError          an engine refused, failed or cut one request
    - PortInUseError
    - DiskError
    - EnvInstallError             an isolated environment could not be made
  x NegativeAnswerError             5  it ran, and the answer is "no"

A message says what, where, which value, and what to do. A library's error is
translated once, at its adapter, with ``raise ... from exc``.
"""

from pathlib import Path
from typing import ClassVar


class LlmtierError(Exception):
    """Base of every error that llmtier raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(LlmtierError):
    """The command line asks for something that cannot be meant, such as an unknown scheme."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file is wrong; holds where.

    Args:
        message: What is wrong and what was expected.
        path: The configuration file.
        line: Line in it, counted from 1; ``None`` when the whole file is meant.
    """

    def __init__(self, message: str, *, path: Path | str | None = None, line: int | None = None) -> None:
        self.path = path
        self.line = line
        super().__init__(locate(message, path=path, line=line))


class PlanError(UsageError):
    """Parts that are each valid do not fit together, such as a device that was not profiled shared."""


class InputFileError(LlmtierError):
    """A file that llmtier was told to read is absent or malformed; holds where.

    Args:
        message: What is wrong and what was expected.
        path: The file.
        line: Line in it, counted from 1; ``None`` when the whole file is meant.
    """

    exit_code = 3

    def __init__(self, message: str, *, path: Path | str | None = None, line: int | None = None) -> None:
        self.path = path
        self.line = line
        super().__init__(locate(message, path=path, line=line))


class SchemaVersionError(InputFileError):
    """An artifact carries a schema version that this llmtier does not read."""


class MachineError(LlmtierError):
    """This machine cannot do it now: engine, port, disk, memory or network."""

    exit_code = 4


class EngineStartError(MachineError):
    """An engine process died while loading, or was not ready before its deadline.

    Args:
        message: What happened and what to do.
        last_lines: The last lines the engine wrote to stderr, oldest first.
    """

    def __init__(self, message: str, *, last_lines: tuple[str, ...] = ()) -> None:
        self.last_lines = last_lines
        tail = "".join(f"\n    {line}" for line in last_lines)
        super().__init__(f"{message}{tail}")


class EngineRequestError(MachineError):
    """One request to an engine failed.

    Args:
        message: What happened.
        status: HTTP status; ``None`` when no status line arrived.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class PortInUseError(MachineError):
    """A port that llmtier was told to listen on belongs to another process."""


class DiskError(MachineError):
    """Writing failed: disk full, read-only, or no permission."""


class EnvInstallError(MachineError):
    """An isolated environment could not be created."""


class NegativeAnswerError(LlmtierError):
    """The command ran and the honest answer is "no": infeasible, below the floor, a regression."""

    exit_code = 5


def locate(message: str, *, path: Path | str | None, line: int | None) -> str:
    """Put ``path:line:`` before a message, as compilers do."""
    if path is None:
        return message
    return f"{path}:{line}: {message}" if line is not None else f"{path}: {message}"
