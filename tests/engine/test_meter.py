"""The meter on a scripted clock and GPU, on a real process, and on a made-up powercap tree."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from llmtier.core.device_use import DeviceUse, EnergySource, GpuUse
from llmtier.engine import meter as meter_module
from llmtier.engine.host_meter import MachineLoad, PackageEnergy, ProcessTree
from llmtier.engine.meter import DeviceMeter
from tests.engine.fake_nvml import DRIVER_NOT_LOADED, GPU_IS_LOST, FakeNvml, NvmlError, each, gpu

# user, system, idle, iowait, and guest, which user contains: from one to the other 2 s busy, 6 s idle
LOADS = [(100.0, 10.0, 1000.0, 50.0, 7.0), (101.0, 11.0, 1005.0, 51.0, 7.5)]
FOREVER_S = 1e6  # the thread never samples by itself: a test does, on its own clock

# Burns 0.1 s of processor time per line on stdin; the kernel counts in ticks of 0.01 s. Has a child when given a script.
WORKER = """
import subprocess, sys, time
if sys.argv[1]:
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1], ""], **pipes)
print("ready", flush=True)
for line in sys.stdin:
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    print("done", flush=True)
"""


class Steps:
    """A clock that moves on by one second each time it is read."""

    def __init__(self) -> None:
        self.now_s = -1.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


@pytest.fixture
def worker():
    """Return a process that burns 0.1 s of processor time per line."""
    arguments = [sys.executable, "-c", WORKER, ""]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert "ready\n" == process.stdout.readline()
        yield process
        process.kill()


def work(process):
    process.stdin.write("go\n")
    process.stdin.flush()
    process.stdout.readline()


def rapl(folder: Path, number: int, *, name: str = "package-0", energy_uj: int = 0) -> Path:
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir(parents=True)
    (zone / "name").write_text(name + "\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    return zone


def test_meter_samples_at_the_start_on_demand_and_at_the_end(tmp_path, monkeypatch):
    library = FakeNvml(gpu(energy=each(0, 50_000, 150_000)))
    monkeypatch.setattr(time, "process_time", each(5.0, 5.5, 6.0))
    meter = DeviceMeter(period_s=FOREVER_S, library=library, rapl_folder=tmp_path, now_s=Steps())
    with meter:
        meter.sample()
    use = meter.use

    assert (2.0, 3, 1.0) == (use.duration_s, use.n_samples, use.client_cpu_s)
    assert (150.0, EnergySource.COUNTER) == (use.gpu_energy_j, use.gpus[0].energy_source)
    assert 1.5 == use.joules_per_output_token(100)
    assert (None, None) == (use.engine_cpu_s, use.engine_rss_max_bytes)
    assert not library.is_open


def test_thread_samples_by_itself(tmp_path):
    seen = threading.Semaphore(0)

    def utilization() -> int:
        seen.release()
        return 30

    with DeviceMeter(period_s=0.001, library=FakeNvml(gpu(utilization=utilization)), rapl_folder=tmp_path) as meter:
        for _ in range(5):
            assert seen.acquire(timeout=10)

    assert meter.use.n_samples >= 5
    assert meter.use.gpus[0].n_samples == meter.use.n_samples


@pytest.mark.anyio
async def test_meter_works_in_an_asynchronous_program(tmp_path):
    async with DeviceMeter(period_s=FOREVER_S, gpu_indices=(), rapl_folder=tmp_path, now_s=Steps()) as meter:
        pass

    assert (2, 1.0, ()) == (meter.use.n_samples, meter.use.duration_s, meter.use.gpus)


def test_machine_without_gpu_is_metered_by_its_processor(tmp_path, worker):
    zone = rapl(tmp_path, 0, energy_uj=1000)
    library = FakeNvml(init_error=NvmlError(DRIVER_NOT_LOADED))
    with DeviceMeter(pid=worker.pid, period_s=FOREVER_S, library=library, rapl_folder=tmp_path) as meter:
        work(worker)
        (zone / "energy_uj").write_text("501000")
    use = meter.use

    assert ("no GPU was metered: no NVIDIA driver answers: NVML error 9",) == use.notes
    assert use.engine_cpu_s >= 0.05
    assert use.engine_rss_max_bytes > 1_000_000
    assert (None, 0.5, 0.5) == (use.gpu_energy_j, use.cpu_energy_j, use.energy_j)


def test_url_tier_without_gpus_says_what_is_missing(tmp_path):
    with DeviceMeter(period_s=FOREVER_S, gpu_indices=(), rapl_folder=tmp_path) as meter:
        pass

    assert 2 == len(meter.use.notes)
    assert "behind a URL" in meter.use.notes[0]
    assert "RAPL" in meter.use.notes[1]
    assert meter.use.energy_j is None
    assert meter.use.joules_per_output_token(10) is None


def test_lost_gpu_is_told_and_has_no_energy(tmp_path):
    library = FakeNvml(gpu(), gpu(power=each(70_000, NvmlError(GPU_IS_LOST))))
    with DeviceMeter(period_s=FOREVER_S, library=library, rapl_folder=tmp_path) as meter:
        meter.sample()

    assert "GPU 1 was lost during the point" in meter.use.notes
    assert [0.0, None] == [one.energy_j for one in meter.use.gpus]
    assert meter.use.gpu_energy_j is None


def test_engine_that_dies_during_the_point_is_told(tmp_path, worker):
    with DeviceMeter(pid=worker.pid, period_s=FOREVER_S, gpu_indices=(), rapl_folder=tmp_path) as meter:
        work(worker)
        meter.sample()
        worker.kill()
        worker.wait()

    assert "the engine's process ended during the point" in meter.use.notes
    assert meter.use.engine_cpu_s >= 0.05


def test_meter_whose_driver_hangs_gives_up_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(meter_module, "_STOP_TIMEOUT_S", 0.01)
    is_hanging, is_released = threading.Event(), threading.Event()

    def hang() -> int:
        if threading.current_thread() is threading.main_thread():
            return 1
        is_hanging.set()
        is_released.wait(10)
        return 1

    with DeviceMeter(period_s=0.001, library=FakeNvml(gpu(utilization=hang)), rapl_folder=tmp_path) as meter:
        assert is_hanging.wait(10)
    use = meter.use
    is_released.set()

    assert any("a meter hung" in note for note in use.notes)
    assert use.gpus[0].energy_j is None  # one sample alone has no energy


@pytest.mark.parametrize("period_s", [0.0, -1.0, float("nan")])
def test_period_must_be_positive(period_s):
    with pytest.raises(ValueError, match="period_s must be > 0"):
        DeviceMeter(period_s=period_s)


def test_tree_counts_children_and_keeps_the_time_of_those_that_ended():
    arguments = [sys.executable, "-c", WORKER, WORKER]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as root:
        root.stdout.readline()
        tree = ProcessTree(root.pid)
        (child,) = psutil.Process(root.pid).children()
        tree.sample(0.0)
        alone = psutil.Process(root.pid).memory_info().rss
        work(root)
        tree.sample(1.0)
        before_s = tree.cpu_s
        child.kill()
        tree.sample(10.0, is_last=True)
        root.kill()

    assert tree.rss_max_bytes > alone
    assert before_s >= 0.05
    assert tree.cpu_s >= before_s


def test_child_born_during_the_point_counts_from_its_birth(worker):
    me = ProcessTree(psutil.Process().pid)
    me.sample(0.0)
    arguments = [sys.executable, "-c", WORKER, ""]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        child.stdout.readline()
        work(child)
        spent_s = psutil.Process(child.pid).cpu_times().user
        before_s = me.cpu_s
        me.sample(100.0)
        child.kill()

    assert me.cpu_s - before_s >= spent_s


def test_tree_of_a_process_that_is_not_there_knows_nothing():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    tree = ProcessTree(ended.pid)
    tree.sample(0.0)

    assert tree.has_ended
    assert (None, None) == (tree.cpu_s, tree.rss_max_bytes)


def test_machine_load_is_a_share_of_the_time_between_samples(monkeypatch):
    fields = "user system idle iowait guest"
    times = psutil.cpu_times()
    zero = dict.fromkeys(times._fields, 0.0)
    series = [type(times)(**(zero | dict(zip(fields.split(), values, strict=True)))) for values in LOADS]
    monkeypatch.setattr(psutil, "cpu_times", each(*series))
    load = MachineLoad()
    load.sample()
    at_once = load.busy_share
    load.sample()

    assert at_once is None
    assert pytest.approx(0.25) == load.busy_share


def test_package_energy_adds_packages_and_survives_the_counters_running_over(tmp_path):
    first, second = rapl(tmp_path, 0, energy_uj=900_000), rapl(tmp_path, 1, name="package-1", energy_uj=5)
    rapl(tmp_path, 2, name="psys", energy_uj=10)
    part = tmp_path / "intel-rapl:0:0"
    part.mkdir()
    (part / "name").write_text("package-0")
    energy = PackageEnergy(tmp_path)
    for first_uj, second_uj in ((900_000, 5), (100_000, 105), (300_000, 205)):
        (first / "energy_uj").write_text(str(first_uj))
        (second / "energy_uj").write_text(str(second_uj))
        energy.sample()

    assert pytest.approx((200_000 + 200_000 + 200) * 1e-6) == energy.energy_j


@pytest.mark.parametrize("content", [None, "", "junk"])
def test_package_energy_that_cannot_be_read_is_unknown(tmp_path, content):
    file = rapl(tmp_path, 0) / "energy_uj"
    energy = PackageEnergy(tmp_path)
    energy.sample()
    file.unlink() if content is None else file.write_text(content)
    energy.sample()
    file.write_text("10")
    energy.sample()

    assert energy.energy_j is None


def test_energy_per_token_needs_energy_of_every_gpu_and_tokens():
    known = GpuUse(index=0, name="x", n_samples=2, energy_j=10.0, energy_source=EnergySource.COUNTER)
    unknown = GpuUse(index=1, name="x", n_samples=2)
    use = DeviceUse(duration_s=1.0, n_samples=2, cpu_energy_j=7.0, gpus=(known,))

    assert 2.0 == use.joules_per_output_token(5)
    assert use.joules_per_output_token(0) is None
    assert use.joules_per_output_token(None) is None
    assert DeviceUse(duration_s=1.0, n_samples=2, cpu_energy_j=7.0, gpus=(known, unknown)).energy_j is None
    assert 7.0 == DeviceUse(duration_s=1.0, n_samples=2, cpu_energy_j=7.0).energy_j
