"""What the processor side of a load point cost: a process tree's time and memory, the machine's load, RAPL energy.

Reads psutil and ``/sys/class/powercap``; writes nothing. Each class keeps its own running sums and is
asked once per sample; none of them raises for a process that has ended or a file that cannot be read.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import psutil

RAPL_FOLDER = Path("/sys/class/powercap")
# Walking /proc for children took 2.4 ms here (a plain sample 0.1 ms), during which the client's thread
# cannot take an instant; engines rarely start new processes.
_TREE_PERIOD_S = 10.0
_MICROJOULE = 1e-6


class ProcessTree:
    """Processor time and memory of a process and all its descendants.

    Args:
        pid: The root; such as ``RunningEngine.pid``.

    Attributes:
        rss_max_bytes: Largest sum of resident sizes seen; ``None`` before the first sample.
        has_ended: Whether the root was found dead.
    """

    def __init__(self, pid: int) -> None:
        self.rss_max_bytes: int | None = None
        self.has_ended = False
        self._pid = pid
        self._processes: dict[int, psutil.Process] = {}
        self._first_s: dict[psutil.Process, float] = {}
        self._last_s: dict[psutil.Process, float] = {}
        self._listed_at_s: float | None = None

    @property
    def cpu_s(self) -> float | None:
        """Processor seconds since the first sample; ``None`` when no process was ever seen."""
        if not self._last_s:
            return None
        return sum(last_s - self._first_s[process] for process, last_s in self._last_s.items())

    def sample(self, at_s: float, *, is_last: bool = False) -> None:
        """Look at every process; the list of them is renewed now and then, and for the last sample."""
        if self._listed_at_s is None or is_last or at_s - self._listed_at_s >= _TREE_PERIOD_S:
            is_first = self._listed_at_s is None
            self._list(at_s, is_first=is_first)
        sizes = [size for process in list(self._processes.values()) if (size := self._look_at(process)) is not None]
        if sizes:
            self.rss_max_bytes = max(self.rss_max_bytes or 0, sum(sizes))

    def _list(self, at_s: float, *, is_first: bool) -> None:
        self._listed_at_s = at_s
        for process in self._find():
            if process not in self._first_s:
                # Who was born after the first sample has spent all its time since.
                self._first_s[process] = (_cpu_s(process) or 0.0) if is_first else 0.0
                self._processes[process.pid] = process

    def _find(self) -> Iterable[psutil.Process]:
        try:
            root = psutil.Process(self._pid)
            self.has_ended = self.has_ended or root.status() == psutil.STATUS_ZOMBIE
            return [root, *root.children(recursive=True)]
        except psutil.Error:
            self.has_ended = True
            return []

    def _look_at(self, process: psutil.Process) -> int | None:
        try:
            with process.oneshot():
                times = process.cpu_times()
                size = int(process.memory_info().rss)
        except psutil.Error:
            self._processes.pop(process.pid, None)
            self.has_ended = self.has_ended or process.pid == self._pid
            return None
        self._last_s[process] = float(times.user + times.system)
        return size


class MachineLoad:
    """The busy share of all the machine's cores between the first and the latest sample."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._last: tuple[float, float] | None = None

    @property
    def busy_share(self) -> float | None:
        """Return the share in [0, 1]; ``None`` until time has passed."""
        if self._first is None or self._last is None:
            return None
        busy_s, total_s = (last - first for first, last in zip(self._first, self._last, strict=True))
        return min(max(busy_s / total_s, 0.0), 1.0) if total_s > 0 else None

    def sample(self) -> None:
        """Take the kernel's sums."""
        times = psutil.cpu_times()
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        # guest time is contained in user time (proc(5)), so it must not count twice
        total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        self._last = (total_s - idle_s, total_s)
        self._first = self._first or self._last


class PackageEnergy:
    """Energy of the processor packages from RAPL; the counters run over every few minutes.

    Args:
        folder: Of the kernel's powercap zones.
    """

    def __init__(self, folder: Path = RAPL_FOLDER) -> None:
        self._zones = [_Zone(path) for path in _package_folders(folder)]
        self._is_broken = not self._zones

    @property
    def energy_j(self) -> float | None:
        """Joules since the first sample; ``None`` where a package cannot be read."""
        return None if self._is_broken else sum(zone.energy_uj for zone in self._zones) * _MICROJOULE

    def sample(self) -> None:
        """Read every package; one failure makes the sum unknown for good."""
        if self._is_broken:
            return
        try:
            for zone in self._zones:
                zone.sample()
        except (OSError, ValueError):  # since 2020 kernels let only root read them
            self._is_broken = True


class _Zone:
    """One package's counter, unrolled."""

    def __init__(self, folder: Path) -> None:
        self.energy_uj = 0
        self._folder = folder
        self._last_uj: int | None = None

    def sample(self) -> None:
        """Add what was used since the last sample."""
        now_uj = _read_int(self._folder / "energy_uj")
        if self._last_uj is not None:
            gained_uj = now_uj - self._last_uj
            self.energy_uj += (
                gained_uj if gained_uj >= 0 else gained_uj + _read_int(self._folder / "max_energy_range_uj")
            )
        self._last_uj = now_uj


def _package_folders(folder: Path) -> list[Path]:
    """Return the zones of whole packages; parts (``intel-rapl:0:0``) and the platform (``psys``) would count twice."""
    found = sorted(path for path in folder.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", path.name))
    return [path for path in found if _read_name(path).startswith("package")]


def _read_name(folder: Path) -> str:
    try:
        return (folder / "name").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _read_int(path: Path) -> int:
    return int(path.read_text(encoding="utf-8"))


def _cpu_s(process: psutil.Process) -> float | None:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)
