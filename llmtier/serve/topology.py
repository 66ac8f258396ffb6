"""Do the profiles describe what is about to be served? Pure checks, before any engine starts.

Three questions: were tiers that share a device measured together; is a profile of the very
checkpoint and engine that run; was the policy fitted on these tiers. Reads what is passed in.
"""

from collections.abc import Mapping
from itertools import combinations

from llmtier.core.decision import MissReason
from llmtier.core.device import Device
from llmtier.core.errors import PlanError
from llmtier.core.policy import Policy
from llmtier.core.profile import TierProfile
from llmtier.core.tier import EngineIdentity


def check_topology(devices: Mapping[str, Device], profiles: Mapping[str, TierProfile]) -> None:
    """Check that tiers on one device were measured with each other running.

    Args:
        devices: Tier name to device; tiers behind a URL are left out.
        profiles: Tier name to profile; a tier without one claims nothing that could be wrong.

    Raises:
        PlanError: A profile of a pair that shares a device was measured without the other tier.
    """
    for one, other in combinations(sorted(devices), 2):
        if not devices[one].shares_with(devices[other]):
            continue
        alone = [tier for tier, neighbour in ((one, other), (other, one)) if _is_uncovered(tier, neighbour, profiles)]
        if alone:
            place = " and ".join(sorted({devices[one].label, devices[other].label}))
            raise PlanError(
                f"tiers {one} and {other} share {place}, but the profile of {' and of '.join(alone)} was measured "
                f"without the other running, so its latencies are too good; run 'llmtier profile --together', "
                f"give them devices of their own, or serve anyway with --force"
            )


def find_unusable(
    profile: TierProfile | None, *, checkpoint_digest: str | None, engine: EngineIdentity | None
) -> MissReason | None:
    """Return why ``profile`` does not describe what runs; ``None`` when it does.

    Args:
        profile: What was measured; ``None`` without a profile.
        checkpoint_digest: Of the files that are served; ``None`` behind a URL.
        engine: What runs; ``None`` when that cannot be known, and then it is not compared.
    """
    if profile is None:
        return MissReason.NO_PROFILE
    is_other = profile.checkpoint_digest != checkpoint_digest or (engine is not None and profile.engine != engine)
    return MissReason.STALE_PROFILE if is_other else None


def check_policy(policy: Policy, digests: Mapping[str, str | None]) -> None:
    """Check that a policy was fitted on the tiers that are served.

    Args:
        policy: What ``auto`` would obey.
        digests: Served tier name to checkpoint digest; ``None`` behind a URL.

    Raises:
        PlanError: A tier of the policy is not served, or is another checkpoint now.
    """
    absent = [tier.name for tier in policy.tiers if tier.name not in digests]
    if absent:
        raise PlanError(
            f"the policy routes to {', '.join(absent)}, which the configuration does not serve "
            f"(served: {', '.join(digests)}); add the tier or run 'llmtier fit-thresholds' again"
        )
    changed = [tier.name for tier in policy.tiers if tier.checkpoint_digest != digests[tier.name]]
    if changed:
        raise PlanError(
            f"the policy was fitted on another checkpoint of {', '.join(changed)} than the one that is served; "
            f"replay the traffic and run 'llmtier fit-thresholds' again"
        )


def check_profiles(policy: Policy, digests: Mapping[str, str]) -> None:
    """Check that the costs which a policy was fitted with are those of the present profiles.

    Args:
        policy: What ``auto`` would obey.
        digests: Tier name to digest of its profile; a tier without one is ineligible anyway.

    Raises:
        PlanError: A profile was measured again.
    """
    changed = [
        tier.name
        for tier in policy.tiers
        if tier.profile_digest is not None and digests.get(tier.name, tier.profile_digest) != tier.profile_digest
    ]
    if changed:
        raise PlanError(
            f"the profile of {', '.join(changed)} was measured again since the policy was fitted, so its costs no "
            "longer hold; run 'llmtier fit-thresholds' again, or serve anyway with --force"
        )


def _is_uncovered(tier: str, neighbour: str, profiles: Mapping[str, TierProfile]) -> bool:
    return tier in profiles and neighbour not in profiles[tier].co_tenants
