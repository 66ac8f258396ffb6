"""The plan as people see it in 80 columns, and as a program reads it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from llmtier.cli.quantize_plan import bytes_text, count_text, document, render, time_text
from llmtier.core.hardware import Hardware
from llmtier.core.tier import Scheme
from llmtier.quantize.job import Estimate, Facts, PlannedScheme, QuantizePlan
from llmtier.quantize.target import Grade, Verdict, resolve_target

CPU = Hardware(cpu_model="CPU", cpu_flags=("avx2",), n_cores=2, memory_bytes=2**34)
FACTS = Facts(
    target=resolve_target("h100", CPU),
    architecture="LlamaForCausalLM",
    n_layers=32,
    n_parameters=8_030_000_000,
    source_bytes=16_060_000_000,
    n_linears=224,
    n_kept=1,
    n_rows=256,
    n_rows_available=1_000,
    n_tokens=131_072,
    free_memory_bytes=24 * 10**9,
    free_disk_bytes=80 * 10**9,
    gflops=205.0,
)


def make_estimate(**fields):
    values = {
        "memory_bytes": 21_800_000_000,
        "activation_cache_bytes": 1_300_000_000,
        "disk_bytes": 5_700_000_000,
        "work_bytes": 0,
        "seconds_low": 4_000.0,
        "seconds_high": 9_000.0,
        "unknown_time": None,
        "spills": False,
    }
    return Estimate(**{**values, **fields})


def make_planned(scheme=Scheme.GPTQ, **fields):
    values = {
        "scheme": scheme,
        "preset": "W4A16",
        "folder": Path("models/llama-8b@gptq"),
        "needs_data": True,
        "group_size": 128,
        "verdict": Verdict(grade=Grade.FAST, reason="Marlin"),
        "estimate": make_estimate(),
    }
    return PlannedScheme(**{**values, **fields})


def make_plan(*schemes, notes=("be [bold]careful[/bold]",), facts=FACTS):
    others = {Scheme.NVFP4: Verdict(grade=Grade.POINTLESS, reason="weights only", better=(Scheme.AWQ,))}
    return QuantizePlan(schemes=schemes or (make_planned(),), notes=notes, facts=facts, others=others)


def printed(plan, *, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(plan))
    return console.file.getvalue()


def test_plan_names_model_target_data_and_room():
    text = printed(make_plan())

    assert "LlamaForCausalLM, 32 layers, 8.0 B parameters, 16.1 GB" in text
    assert "224 quantized, 1 kept" in text
    assert "NVIDIA H100, compute capability 9.0, 80 GiB (data sheet)" in text
    assert "256 of 1000 rows, about 131.1 k tokens" in text
    assert "24.0 GB of memory, 80.0 GB of disk" in text


def test_row_holds_verdict_and_estimates():
    (row,) = [line for line in printed(make_plan()).splitlines() if "gptq" in line]

    assert ["gptq", "fast", "128", "21.8 GB", "1.3 GB", "5.7 GB", "1.1-2.5 h"] == [
        cell.strip() for cell in row.strip("│").split("│")
    ]


@pytest.mark.parametrize("n_layers", [1, 8])
def test_nothing_is_wider_than_80_columns(n_layers):
    spilling = make_planned(scheme=Scheme.FP8_BLOCK, estimate=make_estimate(spills=True))
    text = printed(make_plan(spilling, notes=("word " * 60,) * n_layers))

    assert max(map(len, text.splitlines())) <= 80
    assert "1.3 GB on disk" in text


def test_notes_are_printed_as_they_are():
    text = printed(make_plan())

    assert "- be [bold]careful[/bold]" in text
    assert "other schemes there: nvfp4 pointless" in text


def test_what_is_unknown_is_not_invented():
    bare = make_planned(scheme=Scheme.INT8, group_size=None, verdict=None, estimate=None, needs_data=False)

    text = printed(QuantizePlan(schemes=(bare,), notes=()))

    (row,) = [line for line in text.splitlines() if "int8" in line]
    assert {"int8", "-"} == {cell.strip() for cell in row.strip("│").split("│")}


def test_document_is_json_with_every_number():
    found = json.loads(json.dumps(document(make_plan()), allow_nan=False))

    assert (1, True) == (found["schema_version"], found["is_plan"])
    assert ["models/llama-8b@gptq"] == found["checkpoints"]
    assert 5_700_000_000 == found["schemes"][0]["estimate"]["disk_bytes"]
    assert "fast" == found["schemes"][0]["verdict"]["grade"]
    assert "h100" == found["facts"]["target"]["name"]
    assert "pointless" == found["other_schemes"]["nvfp4"]["grade"]
    assert None is json.loads(json.dumps(document(make_plan(facts=None))))["facts"]


@pytest.mark.parametrize(
    ("low_s", "high_s", "expected"),
    [
        (3.6, 12.0, "4-12 s"),
        (0.4, 80.0, "0-80 s"),
        (50.0, 300.0, "0.8-5.0 min"),
        (120.0, 1200.0, "2-20 min"),
        (1800.0, 7200.0, "0.5-2.0 h"),
        (None, None, "unknown"),
    ],
)
def test_time_is_an_interval_in_one_unit(low_s, high_s, expected):
    assert expected == time_text(make_estimate(seconds_low=low_s, seconds_high=high_s))


def test_sizes_and_counts():
    assert ["12 MB", "1.5 GB", "950 kB"] == [bytes_text(size) for size in (12_000_000, 1_500_000_000, 950_000)]
    assert ["999", "38.3 k", "1.7 M", "8.0 B"] == [count_text(n) for n in (999, 38_260, 1_738_880, 8_030_261_248)]
