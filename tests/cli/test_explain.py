"""``llmtier explain`` with rules: it decides as the gateway would, and names the rule."""

import hashlib
import json
from dataclasses import replace

import pytest

from llmtier.core.decision import Fallback, Objective
from llmtier.core.interval import Interval
from llmtier.core.policy import Goal, GoalKind, Judgement, Policy, PolicyTier, ScorerRef
from llmtier.core.profile import Cost, LoadPoint, TierProfile
from llmtier.core.tier import EngineIdentity
from llmtier.core.utility import UtilityWeights

UNIT = Interval(low=0.0, high=1.0)
KEY = hashlib.sha256(b"sk-1").hexdigest()
CONFIG = f"""\
policy: policy.json
tiers:
- {{name: small, model: m, scheme: awq, engine: {{kind: mock}}}}
- {{name: big, model: m, scheme: bf16, engine: {{kind: mock}}}}
- {{name: spare, model: m, scheme: fp16, engine: {{kind: mock}}}}
routing:
  rules:
  - {{name: proofs, when: {{pattern: '(?i)\\bprove\\b'}}, least_tier: big}}
  - {{name: team, when: {{header: {{x-team: search}}}}, pin: spare}}
  - {{when: {{key_sha256: {KEY}}}, pin: big}}
"""


def make_profile(tier, usd):
    figures = dict.fromkeys(("ttft_p50_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s", "itl_p50_s", "itl_p95_s"), 0.1)
    point = LoadPoint(
        concurrency=1, n_ok=10, n_failed=0, duration_s=1.0, **figures, e2el_p50_s=0.5, e2el_p95_s=0.5,
        mean_input_tokens=10.0, mean_output_tokens=5.0,
    )  # fmt: skip
    return TierProfile(
        tier=tier,
        checkpoint_digest="d" * 64,
        engine=EngineIdentity(name="mock", version="1"),
        hardware_fingerprint="0" * 12,
        device="cpu",
        co_tenants=(),
        context_tokens=None,
        points=(point,),
        accuracy=(),
        cost=Cost(usd_per_hour=1.0, usd_per_request=usd, usd_per_output_token=usd / 5, concurrency=1),
    )


def make_policy():
    judgement = Judgement(
        n_fit=1, n_judge=1, accuracy=0.5, accuracy_interval=UNIT, loss=0.0, loss_interval=UNIT, usd_per_request=1.0,
        reference_usd_per_request=1.0, method="none",
    )  # fmt: skip
    return Policy(
        tiers=tuple(
            PolicyTier(name=name, checkpoint_digest=None, usd_per_request=1.0, accuracy=0.5, share=0.5)
            for name in ("small", "big")
        ),
        reference="big",
        scorer=ScorerRef(kind="learned", file="s.json", sha256="0" * 64),
        max_accuracy_gap=0.1,
        goal=Goal(kind=GoalKind.MAX_ACCURACY_LOSS, value=0.01),
        fallback=Fallback.MOST_ACCURATE,
        judgement=judgement,
        inputs={},
    )


class EvenScorer:
    reads: frozenset[str] = frozenset()

    def guess_domain(self, prompt):
        return None

    def probabilities(self, prompt, signals):
        return {"small": 0.9, "big": 0.9}


@pytest.fixture
def explain(llmtier, tmp_path, monkeypatch):
    """Return a function that explains a prompt under ``CONFIG`` and gives back the ended command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIENT_KEY", "sk-1")
    (tmp_path / "llmtier.yaml").write_text(CONFIG)
    profiles = {name: make_profile(name, usd) for name, usd in (("small", 0.1), ("big", 1.0), ("spare", 2.0))}
    monkeypatch.setattr("llmtier.cli.serve_state.load_routing", lambda config: (make_policy(), EvenScorer()))
    monkeypatch.setattr("llmtier.cli.serve_state.load_profiles", lambda config, hardware: profiles)

    def run(*words):
        return llmtier("explain", *words)

    return run


@pytest.mark.parametrize(
    ("words", "tier", "reason", "rule"),
    [
        (("hello",), "small", "cheapest_feasible", None),
        (("Prove it", "--header", "X-Team: search"), "big", "cheapest_feasible", "proofs"),
        (("hello", "--header", "X-Team: search"), "spare", "rule", "team"),
        (("hello", "--header", "X-Team: ads"), "small", "cheapest_feasible", None),
        (("hello", "--key-env", "CLIENT_KEY"), "big", "rule", "rule-3"),
    ],
)
def test_the_rule_that_holds_is_named(explain, words, tier, reason, rule):
    document = json.loads(explain(*words, "--json").out)

    assert (tier, reason, rule) == (document["tier"], document["reason"], document["rule"])


def test_people_see_the_rule_and_whom_it_barred(explain):
    said = explain("prove").out

    assert "rule 'proofs' held" in said
    assert [True] == [" rule " in f"{line} " for line in said.splitlines() if line.strip(" │|").startswith("small")]


def test_tiers_that_a_pin_passes_over_are_not_called_dearer(explain):
    said = explain("hello", "--key-env", "CLIENT_KEY").out

    assert "passed over" in said
    assert "dearer" not in said


def test_utility_has_a_column_of_its_own(explain, monkeypatch):
    """Both are right nine times in ten, after half a second; the dollars for 1,000 requests are 100 and 1,000."""
    weights = UtilityWeights(accuracy=1.0, latency_per_s=0.2, cost_per_usd_1k=0.001)
    policy = replace(make_policy(), objective=Objective.UTILITY, weights=weights)
    assert "utility" not in explain("hello").out
    monkeypatch.setattr("llmtier.cli.serve_state.load_routing", lambda config: (policy, EvenScorer()))
    document = json.loads(explain("hello", "--json").out)
    said = explain("hello").out

    assert ("small", "highest_utility") == (document["tier"], document["reason"])
    assert {"small": 0.7, "big": -0.2} == pytest.approx(document["utilities"])
    assert 0.2 == document["weights"]["latency_per_s"]
    assert all(word in said for word in ("+0.7000", "-0.2000", "lower utility", "0.2 x E2EL in s"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--header", "x-team"), "expected 'name: value'"),
        (("--key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY: that environment"),
    ],
)
def test_what_cannot_be_meant_is_refused(explain, words, expected):
    ended = explain("hello", *words)

    assert 2 == ended.code
    assert expected in " ".join(ended.err.split())
