"""Whether profiles and policy describe what is served."""

from dataclasses import replace

import pytest

from llmtier.core.decision import MissReason
from llmtier.core.device import parse_device
from llmtier.core.errors import PlanError
from llmtier.core.tier import EngineIdentity
from llmtier.serve.topology import check_policy, check_topology, find_unusable

DIGEST = "d" * 64


def devices(**labels):
    return {name: parse_device(label) for name, label in labels.items()}


def test_tiers_on_devices_of_their_own_need_no_co_tenants(make_profile):
    check_topology(devices(a="cpu:0", b="cpu:1"), {"a": make_profile("a"), "b": make_profile("b")})


def test_tiers_that_were_measured_together_may_share(make_profile):
    profiles = {"a": make_profile("a", co_tenants=("b",)), "b": make_profile("b", co_tenants=("a",))}

    check_topology(devices(a="cpu:0", b="cpu:0"), profiles)


def test_tiers_that_were_measured_alone_may_not_share(make_profile):
    profiles = {"a": make_profile("a"), "b": make_profile("b", co_tenants=("a",))}

    with pytest.raises(PlanError) as caught:
        check_topology(devices(a="cpu:0-1", b="cpu:1+2"), profiles)

    for words in ("tiers a and b share cpu:0+1 and cpu:1+2", "profile of a was", "--together", "--force"):
        assert words in str(caught.value)


def test_an_unprofiled_neighbour_spoils_a_profile(make_profile):
    with pytest.raises(PlanError, match="profile of a was"):
        check_topology(devices(a="gpu:0", b="gpu:0"), {"a": make_profile("a")})
    check_topology(devices(a="gpu:0", b="gpu:0"), {})


@pytest.mark.parametrize(
    ("digest", "engine", "expected"),
    [
        (DIGEST, EngineIdentity(name="mock", version="mock-1"), None),
        (DIGEST, None, None),
        ("e" * 64, None, MissReason.STALE_PROFILE),
        (DIGEST, EngineIdentity(name="mock", version="mock-2"), MissReason.STALE_PROFILE),
        (DIGEST, EngineIdentity(name="mock", version="mock-1", flags=("--x",)), MissReason.STALE_PROFILE),
    ],
)
def test_a_profile_of_something_else_is_stale(make_profile, digest, engine, expected):
    assert expected == find_unusable(make_profile("a"), checkpoint_digest=digest, engine=engine)


def test_no_profile_is_named_so():
    assert MissReason.NO_PROFILE == find_unusable(None, checkpoint_digest=None, engine=None)


def test_policy_must_match_the_served_tiers(make_policy):
    policy = make_policy("a", "b")
    check_policy(policy, {"a": DIGEST, "b": DIGEST, "c": None})

    with pytest.raises(PlanError, match="routes to b, which the configuration does not serve"):
        check_policy(policy, {"a": DIGEST})
    with pytest.raises(PlanError, match="another checkpoint of b"):
        check_policy(policy, {"a": DIGEST, "b": "e" * 64})


def test_policy_over_url_tiers_has_no_digests(make_policy):
    policy = make_policy("a")
    tiers = tuple(replace(tier, checkpoint_digest=None) for tier in policy.tiers)

    check_policy(replace(policy, tiers=tiers), {"a": None})
