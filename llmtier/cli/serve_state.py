"""What the gateway is made of, read from the configuration's files: policy, scorer, profiles, keys, the traffic log.

Reads files; starts and listens to nothing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.cli import logs, output

if TYPE_CHECKING:
    from llmtier.core.hardware import Hardware
    from llmtier.core.policy import Policy
    from llmtier.core.profile import TierProfile
    from llmtier.engine.tier import RunningTier
    from llmtier.route.rules import RuleBook
    from llmtier.score.scorer import Scorer
    from llmtier.serve.board import Board
    from llmtier.serve.keys import KeyRing
    from llmtier.serve.log import TrafficLog
    from llmtier.serve.metrics import Metrics
    from llmtier.serve.pool import ServedTier, TierPool
    from llmtier.serve.signals import SignalPlan
    from llmtier.serve.state import AppState
    from llmtier.store.config_model import Config


def load_routing(config: "Config") -> "tuple[Policy, Scorer] | None":
    """Return the policy and its scorer; ``None`` when there is no policy yet."""
    from llmtier.score.scorer import load_scorer
    from llmtier.store.policies import read_policy, read_scorer_state

    if config.policy is None or not config.policy.exists():
        return None
    policy = read_policy(config.policy)
    return policy, load_scorer(policy.scorer.kind, read_scorer_state(config.policy, policy))


def load_profiles(config: "Config", hardware: "Hardware") -> "dict[str, TierProfile]":
    """Return the profiles of this machine; none is an answer, and makes every tier ineligible for routing."""
    from llmtier.store.profiles import read_profiles

    folder = config.profiles / hardware.slug
    if not folder.is_dir() or not any(folder.iterdir()):
        output.say(f"no profiles of this machine in {folder}; run 'llmtier profile'")
        return {}
    return read_profiles(config.profiles, hardware.slug)


def find_profile_digests(config: "Config", hardware: "Hardware") -> dict[str, str]:
    """Return the digests of this machine's profiles; empty without any."""
    from llmtier.store.profiles import digest_profiles

    folder = config.profiles / hardware.slug
    return digest_profiles(config.profiles, hardware.slug) if folder.is_dir() and any(folder.iterdir()) else {}


def to_served(tier: "RunningTier", found: "TierProfile | None") -> "ServedTier":
    """Describe a running tier for the gateway; a profile of another checkpoint or engine is marked stale."""
    from llmtier.serve.pool import ServedTier
    from llmtier.serve.resume import Origin
    from llmtier.serve.topology import find_unusable

    unusable = find_unusable(found, checkpoint_digest=tier.checkpoint_digest, engine=tier.identity)
    if unusable is not None:
        output.say(f"{tier.name}: {unusable.value}; routing leaves it out; run 'llmtier profile --tier {tier.name}'")
    first, *more = tier.urls or (tier.base_url,)
    return ServedTier(
        name=tier.name,
        base_url=first,
        more_urls=tuple(more),
        model_name=tier.model_name,
        api_key=tier.api_key,
        profile=found,
        unusable=unusable,
        health_path="/v1/models" if tier.identity.name == "openai" else "/health",
        origin=Origin(
            engine_kind=tier.identity.name,
            engine_version=tier.identity.version,
            checkpoint_digest=tier.checkpoint_digest,
            engine_flags=tier.identity.flags,
        ),
    )


def load_keys(config: "Config") -> "KeyRing | None":
    """Return who may ask; ``None`` when nobody is asked for a key."""
    from llmtier.serve.keys import KeyRing
    from llmtier.store.keys import read_keys

    path = config.gateway.keys_file
    return None if path is None else KeyRing(read_keys(path))


def make_state(
    config: "Config",
    served: "Sequence[ServedTier]",
    routing: "tuple[Policy, Scorer] | None",
    *,
    rules: "RuleBook",
    signals: "SignalPlan",
    default_tier: str | None,
    board: "Board | None" = None,
    worker: int = 0,
) -> "AppState":
    """Put the gateway together."""
    from llmtier.serve.metrics import Metrics
    from llmtier.serve.pool import TierPool

    pool = TierPool(served, board=board, worker=worker)
    metrics = Metrics(pool, policy_digest=digest_policy(config, routing))
    traffic = _make_log(config, metrics)
    return _assemble(config, routing, pool, metrics, traffic, rules=rules, signals=signals, default_tier=default_tier)


def digest_policy(config: "Config", routing: "tuple[Policy, Scorer] | None") -> str | None:
    """Return the sha256 of the policy's file; ``None`` without a policy."""
    from llmtier.store.digests import file_sha256

    return None if routing is None or config.policy is None else file_sha256(config.policy)


def renew_state(path: Path, host: str, kept: "AppState") -> "AppState":
    """Return what a gateway is made of by the configuration as it is now; engines, log and counts stay.

    Raises:
        LlmtierError: A file is malformed, or does not fit the tiers that are served.
    """
    from dataclasses import replace

    from llmtier.cli.serve import check, check_safe, choose_default
    from llmtier.cli.serve_signals import plan_signals
    from llmtier.serve.keys import check_exposure
    from llmtier.serve.rules import make_rules
    from llmtier.store.config import load_config

    config = load_config(path)
    has_keys = config.gateway.keys_file is not None
    check_exposure(host, has_keys=has_keys, allows_anonymous=config.gateway.allow_anonymous)
    names = list(kept.pool.tiers)
    tiers = [config.tier(name) for name in names]
    routing = load_routing(config)
    policy = None if routing is None else routing[0]
    check(tiers, {}, policy, is_forced=True)
    check_safe(config, names)
    renewed = _assemble(
        config,
        routing,
        kept.pool,
        kept.metrics,
        kept.traffic,
        rules=make_rules(config.routing.to_rules(), served=names, policy=policy),
        signals=plan_signals(config, routing, served=names),
        default_tier=None if routing is not None else choose_default(config, tiers),
    )
    return replace(renewed, watch=kept.watch, page=kept.page, reload=kept.reload, new_id=kept.new_id)


def _assemble(  # everything that a gateway is made of
    config: "Config",
    routing: "tuple[Policy, Scorer] | None",
    pool: "TierPool",
    metrics: "Metrics",
    traffic: "TrafficLog | None",
    *,
    rules: "RuleBook",
    signals: "SignalPlan",
    default_tier: str | None,
) -> "AppState":
    from llmtier.serve.admission_plan import AdmissionSettings
    from llmtier.serve.caps import Caps
    from llmtier.serve.hedge import HedgeSettings
    from llmtier.serve.http_server import ServerLimits
    from llmtier.serve.priority_queue import Priority
    from llmtier.serve.relay import Deadlines
    from llmtier.serve.resume import ResumeMode
    from llmtier.serve.state import AppState, Limits

    gateway = config.gateway
    caps = gateway.caps.model_dump(exclude={"body_bytes"})
    return AppState(
        pool=pool,
        metrics=metrics,
        policy=None if routing is None else routing[0],
        policy_digest=digest_policy(config, routing),
        scorer=None if routing is None else routing[1],
        signals=signals,
        rules=rules,
        default_tier=default_tier,
        safe_tier=gateway.safe_tier,
        defaults=config.slo.to_requirement(),
        classes=config.to_classes(),
        keys=load_keys(config),
        caps=Caps(**caps, allowed=frozenset(gateway.allow_fields)),
        admission=AdmissionSettings(
            upgrades=gateway.when_full == "upgrade",
            priorities={name: Priority[word.upper()] for name, word in gateway.priorities.items()},
        ),
        sticky_s=gateway.sticky_s,
        hedge=None if gateway.hedge is None else HedgeSettings(is_on=True, **gateway.hedge.model_dump()),
        deadlines=Deadlines(
            first_byte_s=gateway.first_byte_timeout_s,
            stall_s=gateway.stall_timeout_s,
            total_s=gateway.request_timeout_s,
        ),
        resume=None if gateway.resume == "off" else ResumeMode(gateway.resume),
        limits=Limits(server=ServerLimits(body_bytes=gateway.caps.body_bytes)),
        traffic=traffic,
        log_text=gateway.log_text,
    )


def _make_log(config: "Config", metrics: "Metrics") -> "TrafficLog | None":
    """Return what writes rows and lines; ``None`` when neither is wanted."""
    from llmtier.serve.lines import LineFormat, LineWriter
    from llmtier.serve.log import TrafficLog
    from llmtier.store.traffic import Rotation, TrafficWriter

    gateway = config.gateway
    writer = None
    if gateway.log_dir is not None:
        rotation = Rotation(age_s=gateway.log_rotate_s, keep_bytes=gateway.log_keep_bytes)
        writer = TrafficWriter(gateway.log_dir, rotation=rotation)
    lines = None
    if logs.is_verbose():
        form = LineFormat.TEXT if sys.stderr.isatty() else LineFormat.JSON
        lines = LineWriter(sys.stderr.fileno(), format=form, on_dropped=metrics.lines_dropped.inc)
    if writer is None and lines is None:
        return None
    return TrafficLog(
        writer,
        on_dropped=metrics.log_dropped.inc,
        on_lost=metrics.log_lost.inc,
        on_removed=metrics.log_files_removed.inc,
        lines=lines,
    )
