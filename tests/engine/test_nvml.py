"""NVML against a fake library: what GPUs say, what they refuse, and how they get lost."""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.device_use import EnergySource, GpuUse
from llmtier.core.errors import MachineError
from llmtier.engine.gpu_use import summarize_gpu
from llmtier.engine.nvml import GpuSample, NvmlReader, WatchedGpu, open_nvml
from tests.engine.fake_nvml import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    NOT_SUPPORTED,
    TIMEOUT,
    FakeGpu,
    FakeNvml,
    NvmlError,
    each,
    gpu,
)


def watch(fake: FakeGpu, instants_s=(0.0, 1.0, 2.0), *, max_gap_s: float = 1.0) -> GpuUse:
    """Return the summary of one GPU that is sampled at these instants."""
    reader = NvmlReader(FakeNvml(fake), None)
    for at_s in instants_s:
        reader.sample(at_s)
    return summarize_gpu(reader.gpus[0], max_gap_s=max_gap_s)


def test_gpu_that_supports_everything_is_summed_up():
    use = watch(
        gpu(
            utilization=each(40, 80, 90),
            power=each(60_000, 70_000, 90_000),
            energy=each(1_000_000, 1_060_000, 1_130_000),
            clock1=each(1_500, 1_200, 900),
            reasons=each(0x1, 0x4, 0x4 | 0x20),
            used=each(10, 30, 20),
            temperature=each(60, 75, 70),
        )
    )

    assert (0, "NVIDIA L4", 3, ()) == (use.index, use.name, use.n_samples, use.faults)
    assert pytest.approx(0.7) == use.utilization_mean
    assert pytest.approx(72.5) == use.power_mean_w
    assert pytest.approx(90.0) == use.power_max_w
    assert pytest.approx(130.0) == use.energy_j
    assert EnergySource.COUNTER is use.energy_source
    assert pytest.approx((1.2e9, 0.9e9, 6e9)) == (use.sm_clock_mean_hz, use.sm_clock_min_hz, use.memory_clock_mean_hz)
    assert (("sw_power_cap", pytest.approx(2 / 3)), ("sw_thermal", pytest.approx(1 / 3))) == use.throttled
    assert (30, 75.0) == (use.memory_used_max_bytes, use.temperature_max_c)


@pytest.mark.parametrize("code", [NOT_SUPPORTED, FUNCTION_NOT_FOUND])
def test_gpu_without_energy_counter_is_integrated_from_power(code):
    fake = gpu(energy=NvmlError(code), power=each(60_000, 80_000, 40_000))
    use = watch(fake)

    assert pytest.approx(70.0 + 60.0) == use.energy_j
    assert EnergySource.POWER_SAMPLES is use.energy_source
    assert (f"energy: NVML error {code}",) == use.faults
    assert 8 + 7 + 7 == fake.n_questions  # what is not supported is asked once


def test_energy_counter_that_fell_is_not_believed():
    use = watch(gpu(energy=each(5_000_000, 5_010_000, 20_000)))

    assert EnergySource.POWER_SAMPLES is use.energy_source
    assert pytest.approx(140.0) == use.energy_j


def test_one_failure_is_a_hole_and_not_a_zero():
    use = watch(gpu(utilization=each(50, NvmlError(TIMEOUT), 70)))

    assert 3 == use.n_samples
    assert pytest.approx(0.6) == use.utilization_mean
    assert ("utilization: NVML error 10",) == use.faults


def test_repeated_failure_is_noted_once():
    assert ("power: NVML error 10",) == watch(gpu(power=NvmlError(TIMEOUT))).faults


def test_power_is_not_bridged_over_a_long_silence():
    def silent_for(n: int) -> FakeGpu:
        power = each(60_000, *[NvmlError(TIMEOUT)] * n, 60_000)
        return gpu(energy=NvmlError(NOT_SUPPORTED), power=power)

    bridged = watch(silent_for(1), range(6), max_gap_s=2.0)
    silent = watch(silent_for(2), range(6), max_gap_s=2.0)

    assert pytest.approx(300.0) == bridged.energy_j
    assert (None, None) == (silent.energy_j, silent.energy_source)
    assert pytest.approx(60.0) == silent.power_mean_w


def test_power_that_stops_before_the_end_gives_no_energy():
    power = each(60_000, 60_000, NvmlError(TIMEOUT))
    use = watch(gpu(energy=NvmlError(NOT_SUPPORTED), power=power), range(6), max_gap_s=2.0)

    assert use.energy_j is None


def test_lost_gpu_keeps_its_samples_but_has_no_energy_and_is_left_alone():
    fake = gpu(clock1=each(1_500, 1_500, NvmlError(GPU_IS_LOST)))
    use = watch(fake, range(6))

    assert (2, 70.0) == (use.n_samples, use.power_mean_w)
    assert (None, None) == (use.energy_j, use.energy_source)
    assert ("SM clock: NVML error 15",) == use.faults
    assert 8 + 8 + 4 == fake.n_questions


def test_other_gpus_are_read_on_when_one_is_lost():
    reader = NvmlReader(FakeNvml(gpu(power=NvmlError(GPU_IS_LOST)), gpu()), None)
    for at_s in (0.0, 1.0):
        reader.sample(at_s)

    assert [0, 2] == [len(watched.samples) for watched in reader.gpus]


def test_gpu_that_says_nothing_has_nothing():
    silent = FakeGpu(values=dict.fromkeys(gpu().values, NvmlError(NOT_SUPPORTED)))
    use = watch(silent)

    assert GpuUse(index=0, name="NVIDIA L4", n_samples=3, faults=use.faults) == use
    assert 8 == len(use.faults)


def test_single_sample_has_power_but_no_energy():
    use = watch(gpu(), (0.0,))

    assert (70.0, None) == (use.power_mean_w, use.energy_j)


def test_only_the_asked_gpus_are_read_and_old_names_are_bytes():
    first, second = gpu(), gpu()
    second.name = b"Tesla T4"
    reader = NvmlReader(FakeNvml(first, second), [1])
    reader.sample(0.0)

    assert [(1, "Tesla T4")] == [(watched.index, watched.name) for watched in reader.gpus]
    assert 0 == first.n_questions


def test_library_is_closed_again_when_there_is_no_such_gpu():
    library = FakeNvml(gpu())

    with pytest.raises(MachineError, match=r"does not open GPU \[3\]"):
        NvmlReader(library, [3])
    assert not library.is_open


def test_close_of_a_library_that_is_gone_is_quiet():
    library = FakeNvml(gpu())
    reader = NvmlReader(library, None)
    reader.close()
    reader.close()

    assert not library.is_open


def test_machine_without_driver_is_told_so():
    with pytest.raises(MachineError, match="no NVIDIA driver answers: NVML error 9"):
        open_nvml(None, FakeNvml(init_error=NvmlError(DRIVER_NOT_LOADED)))


def test_absent_package_is_told_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)

    with pytest.raises(MachineError, match="nvidia-ml-py is not installed"):
        open_nvml(None)


def test_installed_package_has_every_name_that_is_used():
    pynvml = pytest.importorskip("pynvml")
    names = {name for name in vars(FakeNvml) if name.startswith("nvml")}

    assert names <= set(vars(pynvml))
    assert (1, 2, 0) == (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU)
    assert (3, 15) == (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_GPU_IS_LOST)
    assert NOT_SUPPORTED == pynvml.NVMLError(NOT_SUPPORTED).value
    assert (0x4, 0x80) == (
        pynvml.nvmlClocksThrottleReasonSwPowerCap,
        pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    )


@given(st.lists(st.tuples(st.floats(0.01, 0.5), st.floats(0.0, 1000.0)), min_size=2, max_size=30))
def test_integrated_energy_lies_between_least_and_highest_power(steps):
    at_s = 0.0
    watched = WatchedGpu(index=0, name="x", handle=SimpleNamespace())
    for gap_s, power_w in steps:
        at_s += gap_s
        watched.samples.append(sample(at_s, power_w))
    use = summarize_gpu(watched, max_gap_s=1.0)
    span_s = at_s - watched.samples[0].at_s
    powers_w = [power_w for _, power_w in steps]

    assert min(powers_w) * span_s - 1e-6 <= use.energy_j <= max(powers_w) * span_s + 1e-6
    assert pytest.approx(use.energy_j) == use.power_mean_w * span_s


def sample(at_s: float, power_w: float) -> GpuSample:
    """Return a sample of power alone."""
    return GpuSample(
        at_s=at_s,
        utilization=None,
        power_w=power_w,
        energy_j=None,
        sm_clock_hz=None,
        memory_clock_hz=None,
        throttle_reasons=None,
        memory_used_bytes=None,
        temperature_c=None,
    )
