"""Parsing what the kernel and the NVIDIA driver print, and one look at the real machine."""

import os
import subprocess
from pathlib import Path

import pytest

from llmtier.core.hardware import Gpu
from llmtier.engine import hardware
from llmtier.engine.hardware import detect_hardware, parse_cpuinfo, parse_nvidia_smi, query_nvidia_smi

GIB = 1024**3

XEON = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum  8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8 movdiri

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum  8481C CPU @ 2.70GHz
flags\t\t: fpu
"""
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes asimddp sve i8mm bf16
CPU implementer\t: 0x41
"""


def test_parse_cpuinfo_reads_model_and_kernel_flags_of_first_core():
    model, flags = parse_cpuinfo(XEON, fallback_model="x86_64")

    assert model == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert flags == ("amx_bf16", "amx_int8", "amx_tile", "avx2", "avx512_bf16", "avx512_vnni", "avx512f")


def test_parse_cpuinfo_reads_arm_features_and_takes_the_fallback_name():
    assert ("aarch64", ("asimd", "asimddp", "bf16", "i8mm", "sve")) == parse_cpuinfo(GRAVITON, fallback_model="aarch64")


@pytest.mark.parametrize("text", ["", "no colon here", ":::", "flags:"])
def test_parse_cpuinfo_survives_junk(text):
    assert ("unknown", ()) == parse_cpuinfo(text, fallback_model="")


def test_parse_nvidia_smi_keeps_device_order():
    text = "NVIDIA L4, 8.9, 23034, 550.54.15\nNVIDIA H100 80GB HBM3, 9.0, 81559, 550.54.15\n"

    gpus, driver = parse_nvidia_smi(text, shared_memory_bytes=GIB)

    assert driver == "550.54.15"
    assert gpus == (
        Gpu(name="NVIDIA L4", compute_capability=(8, 9), memory_bytes=23034 * 1024**2),
        Gpu(name="NVIDIA H100 80GB HBM3", compute_capability=(9, 0), memory_bytes=81559 * 1024**2),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        "  MIG 1g.10gb     Device  0: (UUID: MIG-41a5)\n",
        "NVIDIA A100, [N/A], 40960, 550.54.15\n",
        "NVIDIA A100, [Insufficient Permissions], 40960, [Insufficient Permissions]\n",
    ],
)
def test_parse_nvidia_smi_leaves_out_what_is_no_gpu(text):
    assert ((), None) == parse_nvidia_smi(text, shared_memory_bytes=GIB)


def test_parse_nvidia_smi_gives_a_gpu_without_own_memory_the_processors():
    gpus, driver = parse_nvidia_smi("NVIDIA GB10, 12.1, [N/A], [N/A]\n", shared_memory_bytes=119 * GIB)

    assert gpus == (Gpu(name="NVIDIA GB10", compute_capability=(12, 1), memory_bytes=119 * GIB),)
    assert driver is None


def fake_program(folder: Path, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_query_nvidia_smi_returns_what_the_program_prints(tmp_path, monkeypatch):
    fake_program(tmp_path, "echo NVIDIA L4, 8.9, 23034, 550.54.15")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert query_nvidia_smi() == "NVIDIA L4, 8.9, 23034, 550.54.15\n"


def test_query_nvidia_smi_counts_a_failing_driver_as_no_gpu(tmp_path, monkeypatch, caplog):
    fake_program(tmp_path, "echo failed because it could not talk to the driver; exit 9")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert query_nvidia_smi() == ""
    assert "nvidia-smi failed" in caplog.text


def test_query_nvidia_smi_counts_a_hanging_driver_as_no_gpu(tmp_path, monkeypatch):
    def hang(*args, **kwargs):
        raise subprocess.TimeoutExpired(cmd="nvidia-smi", timeout=kwargs["timeout"])

    fake_program(tmp_path, "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(hardware.subprocess, "run", hang)

    assert query_nvidia_smi() == ""


def test_detect_hardware_describes_this_machine():
    found = detect_hardware()

    assert found.cpu_model
    assert found.n_cores == len(os.sched_getaffinity(0))
    assert found.memory_bytes > 2**28
    assert found == detect_hardware()
