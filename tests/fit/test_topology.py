"""Tiers that disturb each other never stand in one policy."""

import pytest

from llmtier.core.errors import PlanError
from llmtier.fit.topology import may_stand_together, tier_sets


@pytest.mark.parametrize(
    ("a", "b", "is_fine"),
    [
        ("cpu:0", "cpu:1", True),
        ("cpu:0-3", "cpu:2", False),
        ("cpu:0+2", "cpu:1", True),
        ("cpu", "cpu:7", False),
        ("cpu:0", "gpu:0", True),
        ("auto", "gpu:0", False),
    ],
)
def test_tiers_stand_together_where_their_devices_are_apart(make_profile, a, b, is_fine):
    left, right = make_profile("a", device=a), make_profile("b", device=b)

    assert is_fine == may_stand_together(left, right) == may_stand_together(right, left)


def test_a_device_that_cannot_be_read_is_named(make_profile):
    with pytest.raises(PlanError, match="profile of b: device must be"):
        may_stand_together(make_profile("a"), make_profile("b", device="attic"))


def test_tiers_profiled_together_may_stand_together(make_profile):
    a, b = make_profile("a", co_tenants=["b"]), make_profile("b", co_tenants=["a"])

    assert may_stand_together(a, b)
    assert not may_stand_together(a, make_profile("b"))


def test_servers_behind_a_url_share_no_device(make_profile):
    assert may_stand_together(make_profile("a"), make_profile("b", engine="openai"))


def test_sets_hold_the_reference_and_one_tier_a_device(make_profile):
    profiles = {
        name: make_profile(name, device=device)
        for name, device in {"big": "cpu:1", "big-q": "cpu:1", "small": "cpu:0", "small-q": "cpu:0"}.items()
    }

    assert [("big",), ("big", "small"), ("big", "small-q")] == list(tier_sets(profiles, "big"))


def test_too_many_tiers_to_weigh_are_refused(make_profile):
    profiles = {str(core): make_profile(str(core), device=f"cpu:{core}") for core in range(12)}

    with pytest.raises(PlanError, match="11 tiers beside the reference 0"):
        list(tier_sets(profiles, "0"))
