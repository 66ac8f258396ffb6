"""Where a tier's engine runs: a set of CPU cores, a set of GPUs, or wherever fits.

A device is written as a label: ``auto``, ``cpu``, ``cpu:0``, ``cpu:0-3``, ``cpu:0+2``, ``gpu:0``,
``gpu:0+1``. Parsing and printing are inverse up to order and ranges; nothing here looks at the machine.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

_EXPECTED = "'auto', 'cpu', 'cpu:0', 'cpu:0-3', 'cpu:0+2', 'gpu:0' or 'gpu:0+1'"
_MAX_INDEX = 65_535  # more than any machine has; a typo must not build a huge tuple


class DeviceKind(StrEnum):
    """What sort of device is meant; ``auto`` leaves it to the machine that runs."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A share of a machine.

    Attributes:
        kind: CPU, GPU or either.
        indices: Cores or GPUs, ascending; ``None`` means every core, and is the only value for ``auto``.
    """

    kind: DeviceKind
    indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind is DeviceKind.AUTO and self.indices is not None:
            raise ValueError("device auto takes no index")
        if self.kind is DeviceKind.GPU and self.indices is None:
            raise ValueError("device gpu needs an index, such as gpu:0")
        if self.indices is not None and (not self.indices or self.indices != tuple(sorted(set(self.indices)))):
            raise ValueError(f"device indices must ascend without repetition, got {self.indices}")

    @property
    def label(self) -> str:
        """Return the shortest text that parses to this device."""
        if self.indices is None:
            return self.kind.value
        return f"{self.kind.value}:{'+'.join(_runs(self.indices))}"

    @property
    def cores(self) -> tuple[int, ...] | None:
        """Return the cores to pin to; ``None`` when nothing is to be pinned."""
        return self.indices if self.kind is DeviceKind.CPU else None

    def shares_with(self, other: "Device") -> bool:
        """Tell whether the two overlap; ``auto`` may overlap anything."""
        if DeviceKind.AUTO in {self.kind, other.kind}:
            return True
        if self.kind is not other.kind:
            return False
        if self.indices is None or other.indices is None:
            return True
        return not set(self.indices).isdisjoint(other.indices)


def parse_device(text: str) -> Device:
    """Read a label.

    Raises:
        ValueError: It is no label; says which are.
    """
    kind, colon, listed = text.strip().partition(":")
    if kind not in set(DeviceKind) or (colon and not re.fullmatch(r"\d+(-\d+)?(\+\d+(-\d+)?)*", listed, re.ASCII)):
        raise ValueError(f"device must be {_EXPECTED}, got {text!r}")
    indices = sorted({index for part in listed.split("+") for index in _expand(part)}) if colon else None
    return Device(kind=DeviceKind(kind), indices=None if indices is None else tuple(indices))


def _expand(part: str) -> range:
    first, _, last = part.partition("-")
    low, high = int(first), int(last or first)
    if not low <= high <= _MAX_INDEX:
        raise ValueError(f"device range {part!r} must ascend and stay within {_MAX_INDEX}")
    return range(low, high + 1)


def _runs(indices: tuple[int, ...]) -> list[str]:
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] + 1 == index:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [text for run in runs for text in (_shorten(run) if len(run) > 2 else map(str, run))]


def _shorten(run: list[int]) -> list[str]:
    return [f"{run[0]}-{run[-1]}"]
