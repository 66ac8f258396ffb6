"""What ``llmtier.yaml`` says of full, late and failing tiers reaches the gateway, and nothing is on that was not asked for."""

import pytest

from llmtier.cli.serve import check_safe, choose_served
from llmtier.cli.serve_state import make_state
from llmtier.core.errors import PlanError
from llmtier.route.rules import RuleBook
from llmtier.serve.hedge import HedgeSettings
from llmtier.serve.pool import ServedTier
from llmtier.serve.signals import SignalPlan
from llmtier.store.config import load_config
from llmtier.store.patterns import compile_pattern

TIERS = "tiers: [{model: m, scheme: bf16, name: a, engine: {kind: mock}}, {model: m, scheme: bf16, name: b, engine: {kind: mock}}]\n"


@pytest.fixture
def configure(tmp_path):
    def write(gateway):
        path = tmp_path / "llmtier.yaml"
        path.write_text(f"{TIERS}gateway: {gateway}\n")
        return load_config(path, environ={})

    return write


@pytest.mark.parametrize(
    ("gateway", "expected"),
    [
        ("{}", (None, True, None)),
        (
            "{hedge: {}, when_full: wait, safe_tier: b}",
            (HedgeSettings(is_on=True), False, "b"),
        ),
        (
            "{hedge: {budget_share: 0.1, max_saved: 2, max_prompt_tokens: 9, max_load_share: 0.2}}",
            (
                HedgeSettings(is_on=True, budget_share=0.1, max_saved=2, max_prompt_tokens=9, max_load_share=0.2),
                True,
                None,
            ),
        ),
    ],
)
def test_the_configuration_is_the_gateways(configure, gateway, expected):
    served = [ServedTier(name=name, base_url="http://127.0.0.1:1", model_name="m") for name in "ab"]
    rules = RuleBook((), compile_pattern=compile_pattern)

    state = make_state(configure(gateway), served, None, rules=rules, signals=SignalPlan(), default_tier="a")

    assert expected == (state.hedge, state.admission.upgrades, state.safe_tier)


def test_a_safe_tier_that_is_not_served_is_told_before_any_engine_starts(configure):
    config = configure("{safe_tier: b}")

    assert ["a", "b"] == [tier.name for tier in choose_served(config, [], None)]
    with pytest.raises(PlanError, match=r"gateway.safe_tier b is not served \(served: a\)"):
        choose_served(config, ["a"], None)
    with pytest.raises(PlanError, match="not served"):
        check_safe(config, ["a"])
