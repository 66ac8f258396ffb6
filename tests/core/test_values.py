"""Values refuse nonsense when they are made."""

import math

import pytest

from llmtier.core.decision import Miss, MissReason, Offer
from llmtier.core.hardware import Gpu, Hardware
from llmtier.core.interval import Interval
from llmtier.core.profile import LoadPoint
from llmtier.core.prompt import Message, Outcome, Prompt
from llmtier.core.requirement import Requirement
from llmtier.core.tier import Scheme, default_tier_name


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_requirement_refuses_nan_and_negative(value):
    with pytest.raises(ValueError, match="ttft_s"):
        Requirement(ttft_s=value)


def test_requirement_refuses_accuracy_above_one():
    with pytest.raises(ValueError, match="accuracy"):
        Requirement(accuracy=1.5)


def test_offer_refuses_nan():
    with pytest.raises(ValueError, match="tpot_s"):
        Offer(tier="a", accuracy=0.5, usd=1.0, tpot_s=math.nan)


@pytest.mark.parametrize(("low", "high", "confidence"), [(1, 0, 0.9), (math.nan, 1, 0.9), (0, 1, 1.0)])
def test_interval_refuses_nonsense(low, high, confidence):
    with pytest.raises(ValueError, match=r"interval|confidence"):
        Interval(low=low, high=high, confidence=confidence)


def test_outcome_refuses_score_outside_unit_interval():
    with pytest.raises(ValueError, match="score"):
        Outcome(prompt_id="p", tier="t", score=1.1)


def test_prompt_needs_a_message_and_finds_the_last_user_text():
    with pytest.raises(ValueError, match="at least one"):
        Prompt(id="p", messages=())
    turns = (
        Message(role="user", content="a"),
        Message(role="user", content="b"),
        Message(role="assistant", content="c"),
    )

    assert "b" == Prompt(id="p", messages=turns).last_user_text
    assert "s" == Prompt(id="p", messages=(Message(role="system", content="s"),)).last_user_text


def test_load_point_derives_throughput_and_keeps_unknown_unknown():
    point = LoadPoint(
        concurrency=2, n_ok=10, n_failed=0, duration_s=5.0, ttft_p50_s=None, ttft_p95_s=None, tpot_p50_s=None,
        tpot_p95_s=None, itl_p50_s=None, itl_p95_s=None, e2el_p50_s=None, e2el_p95_s=None,
        mean_input_tokens=None, mean_output_tokens=None,
    )  # fmt: skip

    assert 2.0 == point.request_rps
    assert point.output_tokens_per_s is None


def test_tier_name_takes_the_last_part_of_the_model():
    assert "llama@awq" == default_tier_name("models/llama/", Scheme.AWQ)


def test_hardware_slug_and_fingerprint_tell_machines_apart():
    cpu = Hardware(cpu_model="AMD EPYC 9R14 Processor", cpu_flags=("avx2",), n_cores=2, memory_bytes=1)
    gpu = Hardware(
        cpu_model="x", cpu_flags=(), n_cores=8, memory_bytes=1,
        gpus=(Gpu(name="NVIDIA L4", compute_capability=(8, 9), memory_bytes=24),),
    )  # fmt: skip

    assert "amd-epyc-9r14-2c" == cpu.slug
    assert "nvidia-l4-x1" == gpu.slug
    assert cpu.fingerprint != gpu.fingerprint


def test_miss_describes_itself_for_people():
    miss = Miss(tier="a", reason=MissReason.TTFT, offered=None, needed=0.5)

    assert "a: ttft unknown, needs 0.5" == miss.describe()
    assert "a: unhealthy" == Miss(tier="a", reason=MissReason.UNHEALTHY).describe()
