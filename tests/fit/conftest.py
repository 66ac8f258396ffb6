"""Synthetic tiers and outcomes for the fit."""

import random

import pytest

from llmtier.core.policy import Goal, GoalKind
from llmtier.core.profile import Cost, LoadPoint, TierProfile
from llmtier.core.prompt import LabelledPrompt, Message, Prompt
from llmtier.core.tier import EngineIdentity
from llmtier.fit.prices import price_profiles
from llmtier.fit.run import fit_policy
from llmtier.fit.settings import FitSettings

HARD = ("prove", "theorem", "integral", "lemma")
EASY = ("hello", "weather", "colour", "lunch")
FILLERS = ("please", "tell", "me", "about", "the", "thing", "now", "again", "why", "how")


@pytest.fixture(scope="session")
def make_profile():
    """Return a function that makes a tier's profile of one load point."""

    def make(tier, usd=1.0, *, device="cpu:0", co_tenants=(), has_points=True, engine="vllm"):
        point = LoadPoint(
            concurrency=1, n_ok=10, n_failed=0, duration_s=1.0, ttft_p50_s=0.1, ttft_p95_s=0.1, tpot_p50_s=0.01,
            tpot_p95_s=0.01, itl_p50_s=None, itl_p95_s=None, e2el_p50_s=None, e2el_p95_s=None,
            mean_input_tokens=5.0, mean_output_tokens=9.0,
        )  # fmt: skip
        cost = Cost(usd_per_hour=1.0, usd_per_request=usd, usd_per_output_token=usd / 9, concurrency=1)
        return TierProfile(
            tier=tier, checkpoint_digest=f"digest-{tier}", engine=EngineIdentity(name=engine),
            hardware_fingerprint="f", device=device, co_tenants=tuple(co_tenants), context_tokens=128,
            points=(point,) if has_points else (), accuracy=(), cost=cost,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def profiles(make_profile):
    """``cheap`` at 1 and ``dear`` at 10, each on its own core."""
    return {"cheap": make_profile("cheap", 1.0), "dear": make_profile("dear", 10.0, device="cpu:1")}


@pytest.fixture(scope="session")
def make_labelled():
    """Return a function that draws prompts: ``cheap`` answers the easy half, ``dear`` answers ``dear_accuracy``."""

    def make(n, *, seed=0, dear_accuracy=1.0, noise=0.0):
        draw = random.Random(seed)
        rows = []
        for number in range(n):
            is_hard = draw.random() < 0.5
            words = [*draw.sample(FILLERS, 4), draw.choice(HARD if is_hard else EASY), draw.choice("abcdefghijklmnop")]
            draw.shuffle(words)
            is_right = (not is_hard) != (draw.random() < noise)
            prompt = Prompt(id=str(number), messages=(Message(role="user", content=" ".join(words)),))
            scores = {"cheap": float(is_right), "dear": float(draw.random() < dear_accuracy)}
            rows.append(LabelledPrompt(prompt=prompt, scores=scores))
        return rows

    return make


@pytest.fixture(scope="session")
def fit(profiles):
    """Return ``fit_policy`` with usual settings."""

    def run(
        labelled, *, profiles=profiles, tiers=None, max_accuracy_loss=0.02, goal=None, seed=0, signals=None, **options
    ):
        named = sorted({tier for item in labelled for tier in item.scores}) if tiers is None else tiers
        goal = goal or Goal(kind=GoalKind.MAX_ACCURACY_LOSS, value=max_accuracy_loss)
        settings = FitSettings(goal=goal, seed=seed, **{"inputs": {"outcomes": "0" * 64}, **options})
        return fit_policy(labelled, price_profiles(named, profiles), settings, signals=signals)

    return run
