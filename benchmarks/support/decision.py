"""Two tiers as the gateway sees them, with a policy and a load: what a decision is timed on."""

from dataclasses import replace

from llmtier.core.decision import Fallback
from llmtier.core.interval import Interval
from llmtier.core.latency_model import DomainBox, LatencyModel, LoadState, Metric, ResidualBucket, StepModel
from llmtier.core.policy import Goal, GoalKind, Judgement, Policy, PolicyTier, ScorerRef
from llmtier.core.profile import AccuracyEstimate, Cost, TierProfile
from llmtier.core.requirement import Requirement
from llmtier.core.tier import EngineIdentity
from llmtier.serve.choose import TierState

LIMITS = Requirement(ttft_s=2.0, e2el_s=30.0)
_UNIT = Interval(low=0.0, high=1.0)
_LOAD = LoadState(n_decoding=4, kv_tokens=2_000, arrival_rps=2.0, mean_input_tokens=300.0, mean_output_tokens=100.0)


def make_states(cheap: str, dear: str) -> dict[str, TierState]:
    """Return both tiers under load, each with a latency model."""
    return {
        cheap: TierState(name=cheap, profile=_make_profile(cheap, usd=1.0), load=_LOAD),
        dear: TierState(name=dear, profile=_make_profile(dear, usd=10.0), load=replace(_LOAD, n_decoding=8)),
    }


def make_policy(cheap: str, dear: str) -> Policy:
    """Return a policy that keeps the accuracy of ``dear`` to 5 points."""
    tiers = tuple(
        PolicyTier(name=name, checkpoint_digest=None, usd_per_request=usd, accuracy=0.8, share=0.5)
        for name, usd in ((cheap, 1.0), (dear, 10.0))
    )
    judgement = Judgement(
        n_fit=1_000,
        n_judge=500,
        accuracy=0.8,
        accuracy_interval=_UNIT,
        loss=0.0,
        loss_interval=_UNIT,
        usd_per_request=5.0,
        reference_usd_per_request=10.0,
        method="made up for a timing",
    )
    return Policy(
        tiers=tiers,
        reference=dear,
        scorer=ScorerRef(kind="learned", file="none", sha256="0" * 64),
        max_accuracy_gap=0.05,
        goal=Goal(kind=GoalKind.MAX_ACCURACY_LOSS, value=0.02),
        fallback=Fallback.MOST_ACCURATE,
        judgement=judgement,
        inputs={},
    )


def _make_profile(tier: str, *, usd: float) -> TierProfile:
    residuals = tuple(
        ResidualBucket(metric=metric, max_in_flight=None, n=100, quantiles=((0.5, 0.0), (0.95, 0.2)))
        for metric in Metric
    )
    wide = (0.0, 1e6)
    latency = LatencyModel(
        step=StepModel(
            alpha_s=0.01, prefill_s_per_token=1e-4, attention_s_per_token2=0, sequence_s=1e-3, kv_s_per_token=1e-7
        ),
        frontend_s=0.002,
        frontend_s_per_token=0.0,
        wait_share=0.5,
        mean_input_tokens=300.0,
        mean_output_tokens=100.0,
        domain=DomainBox(input_tokens=wide, output_tokens=wide, n_in_flight=wide),
        residuals=residuals,
        n_fit=500,
    )
    return TierProfile(
        tier=tier,
        checkpoint_digest=None,
        engine=EngineIdentity(name="openai", version="1"),
        hardware_fingerprint="0" * 12,
        device="cpu:0",
        co_tenants=(),
        context_tokens=100_000,
        points=(),
        accuracy=(AccuracyEstimate(domain="all", n=100, n_failed=0, accuracy=0.8, interval=_UNIT),),
        cost=Cost(usd_per_hour=1.0, usd_per_request=usd, usd_per_output_token=usd / 100, concurrency=4),
        latency=latency,
        max_in_flight=64,
    )
