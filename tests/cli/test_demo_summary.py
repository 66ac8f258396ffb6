"""The demo's summary says what happened, also when it was bad."""

import pytest

from llmtier.cli import demo_summary
from llmtier.cli.demo_summary import Answer
from llmtier.core.decision import Fallback
from llmtier.core.hardware import Hardware
from llmtier.core.interval import Interval
from llmtier.core.policy import Goal, GoalKind, Guarantee, Policy, PolicyTier, ScorerRef
from llmtier.core.profile import AccuracyEstimate, Cost, TierProfile
from llmtier.core.tier import EngineIdentity

HARDWARE = Hardware(cpu_model="x", cpu_flags=(), n_cores=2, memory_bytes=1)


def make_profile(tier, usd_per_output_token):
    return TierProfile(
        tier=tier,
        checkpoint_digest="d",
        engine=EngineIdentity(name="vllm", version="0.32.0"),
        hardware_fingerprint="f",
        device="cpu:0",
        co_tenants=(),
        context_tokens=256,
        points=(),
        accuracy=(
            AccuracyEstimate(domain="all", n=10, n_failed=0, accuracy=0.9, interval=Interval(low=0.5, high=1.0)),
        ),
        cost=Cost(usd_per_hour=1, usd_per_request=1e-5, usd_per_output_token=usd_per_output_token, concurrency=16),
    )


def make_answers(model, tier, scores, error=None):
    return [
        Answer(
            prompt_id=str(index), model=model, tier=tier, score=score,
            e2el_s=0.1 if error is None else None, n_output_tokens=10, error=error,
        )
        for index, score in enumerate(scores)
    ]  # fmt: skip


PROFILES = {"big": make_profile("big", 4e-6), "small": make_profile("small", 1e-6)}


def build(routed, baseline):
    return demo_summary.build([*routed, *baseline], PROFILES, hardware=HARDWARE, reference="big")


def test_summary_compares_paired_answers():
    summary = build(make_answers("auto", "small", [1, 1, 0, 1]), make_answers("big", "big", [1, 1, 1, 1]))

    assert 0.25 == summary["loss"]["mean"]
    assert {"small": 1.0} == summary["routed"]["shares"]
    assert 1000 * 10 * 1e-6 == pytest.approx(summary["routed"]["usd_per_1k_requests"])
    assert {"name": "vllm", "version": "0.32.0"} == summary["engine"]
    assert 4 == summary["held_out_prompts"]


def test_verdict_names_lost_accuracy():
    summary = build(make_answers("auto", "small", [0] * 10), make_answers("big", "big", [1] * 10))

    assert "accuracy" in demo_summary.judge(summary)


def test_verdict_names_missing_savings():
    summary = build(make_answers("auto", "big", [1] * 10), make_answers("big", "big", [1] * 10))

    assert "cost less" in demo_summary.judge(summary)


def test_a_win_has_no_complaint():
    summary = build(make_answers("auto", "small", [1] * 10), make_answers("big", "big", [1] * 10))

    assert demo_summary.judge(summary) is None


def test_failed_requests_make_the_cost_unknown_not_cheap():
    summary = build(make_answers("auto", None, [0] * 10, error="cut"), make_answers("big", "big", [1] * 10))

    assert summary["routed"]["usd_per_1k_requests"] is None
    assert summary["routed"]["e2el_p95_s"] is None
    assert {"failed": 1.0} == summary["routed"]["shares"]
    assert "failed" in demo_summary.judge(summary)


def make_policy(max_loss):
    guarantee = Guarantee(
        statement="mean score at most so much below", max_loss=max_loss, min_accuracy=None, confidence=0.95, n_labels=9,
        n_units=9, method="", population="",
    )  # fmt: skip
    return Policy(
        tiers=(PolicyTier(name="big", checkpoint_digest="d", usd_per_request=1.0, accuracy=1.0, share=1.0),),
        reference="big", scorer=ScorerRef(kind="learned", file="", sha256=""), max_accuracy_gap=0.0,
        goal=Goal(kind=GoalKind.MAX_ACCURACY_LOSS, value=max_loss), fallback=Fallback.MOST_ACCURATE, judgement=None,
        inputs={}, guarantee=guarantee,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mean", "low", "high", "verdict"),
    [
        (0.001, -0.002, 0.004, "kept"),
        (0.008, 0.002, 0.014, "kept as far as these questions tell"),
        (0.012, 0.002, 0.022, "not seen to hold, nor to be broken"),
        (0.05, 0.03, 0.07, "broken"),
    ],
)
def test_a_promise_is_held_against_fresh_questions(mean, low, high, verdict):
    loss = {"mean": mean, "ci95": [low, high], "n": 1200}

    assert verdict == demo_summary.check_promise(make_policy(0.01), loss)["verdict"]
