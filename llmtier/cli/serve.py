"""``llmtier serve``: start the engines, check that policy and profiles describe them, run the gateway.

Reads ``llmtier.yaml``, the policy with its scorer, and the profiles; writes the traffic log.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import DEFAULT_CONFIG, ConfigOption
from llmtier.core.errors import PlanError

if TYPE_CHECKING:
    from llmtier.core.hardware import Hardware
    from llmtier.core.policy import Policy
    from llmtier.core.profile import TierProfile
    from llmtier.engine.tier import RunningTier
    from llmtier.route.rules import RuleBook
    from llmtier.score.scorer import Scorer
    from llmtier.serve.pool import ServedTier
    from llmtier.serve.signals import SignalPlan
    from llmtier.serve.state import AppState
    from llmtier.store.config_model import Config, TierConfig


def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    tier: Annotated[
        list[str] | None, typer.Option(help="Serve this tier; may be given again. Default: the policy's tiers.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: the configuration's.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; default: the configuration's; 0 takes a free one.", min=0, max=65535)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Serve though profiles do not cover the topology, or changed since the fit.")
    ] = False,
) -> None:
    """Run the OpenAI-compatible gateway.

    Example: llmtier serve -c llmtier.yaml --port 8000
    """
    from llmtier.cli.serve_signals import plan_signals
    from llmtier.engine.hardware import detect_hardware
    from llmtier.serve.rules import make_rules
    from llmtier.serve.run import check_port, run_in_loop
    from llmtier.serve.topology import check_profiles
    from llmtier.store.config import load_config

    loaded = load_config(config)
    address = (host or loaded.gateway.host, loaded.gateway.port if port is None else port)
    check_port(*address)
    hardware = detect_hardware()
    routing = load_routing(loaded)
    profiles = load_profiles(loaded, hardware)
    tiers = choose_served(loaded, tier or [], None if routing is None else routing[0])
    policy = None if routing is None else routing[0]
    check(tiers, profiles, policy, is_forced=force)
    if policy is not None and not force:
        check_profiles(policy, find_profile_digests(loaded, hardware))
    rules = make_rules(loaded.routing.to_rules(), served=[served.name for served in tiers], policy=policy)
    default_tier = None if routing is not None else choose_default(loaded, tiers)
    signals = plan_signals(loaded, routing, served=[served.name for served in tiers])
    run_in_loop(
        run(
            loaded,
            tiers,
            profiles=profiles,
            routing=routing,
            rules=rules,
            signals=signals,
            default_tier=default_tier,
            address=address,
        )
    )


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


def choose_served(config: "Config", names: Sequence[str], policy: "Policy | None") -> "list[TierConfig]":
    """Return the named tiers, else the policy's and those that rules pin to, else all."""
    from llmtier.cli.engines import choose_tiers

    if names or policy is None:
        return choose_tiers(config, names)
    pinned = [rule.pin for rule in config.routing.to_rules() if rule.pin is not None]
    return choose_tiers(config, list(dict.fromkeys([*(tier.name for tier in policy.tiers), *pinned])))


def check(
    tiers: "Sequence[TierConfig]", profiles: "Mapping[str, TierProfile]", policy: "Policy | None", *, is_forced: bool
) -> None:
    """Check, before any engine starts, that profiles and policy describe what is to be served.

    Raises:
        PlanError: They do not.
    """
    from llmtier.serve.topology import check_policy, check_topology
    from llmtier.store.checkpoints import open_checkpoint

    if not is_forced:
        check_topology({t.name: t.device for t in tiers if t.engine.kind == "vllm"}, profiles)
    if policy is not None:
        digests = {
            t.name: None if t.checkpoint_path is None else open_checkpoint(t.checkpoint_path, t.scheme).digest
            for t in tiers
        }
        check_policy(policy, digests)


def choose_default(config: "Config", tiers: "Sequence[TierConfig]") -> str:
    """Return where ``auto`` goes before there is a policy: the configured tier, else the first.

    Raises:
        PlanError: The configured tier is not served.
    """
    names = [tier.name for tier in tiers]
    wanted = config.gateway.default_tier
    if wanted is not None and wanted not in names:
        raise PlanError(
            f"gateway.default_tier {wanted} is not served (served: {', '.join(names)}); serve it, or name another"
        )
    return wanted or names[0]


async def run(
    config: "Config",
    tiers: "Sequence[TierConfig]",
    *,
    profiles: "Mapping[str, TierProfile]",
    routing: "tuple[Policy, Scorer] | None",
    rules: "RuleBook",
    signals: "SignalPlan",
    default_tier: str | None,
    address: tuple[str, int],
) -> None:
    """Keep engines and gateway up until a signal."""
    from llmtier.cli.engines import LOG_DIR, find_interpreters
    from llmtier.engine.hardware import detect_hardware
    from llmtier.engine.tier import running_tiers
    from llmtier.serve.run import serve_forever

    pythons = find_interpreters(tiers, detect_hardware())
    output.say(f"starting {', '.join(tier.name for tier in tiers)}")
    async with running_tiers(tiers, pythons=pythons, log_dir=LOG_DIR) as running:
        served = [to_served(tier, profiles.get(tier.name)) for tier in running.values()]
        state = make_state(config, served, routing, rules=rules, signals=signals, default_tier=default_tier)
        await serve_forever(
            state, host=address[0], port=address[1], on_ready=lambda url: output.say(f"serving on {url}/v1")
        )


def to_served(tier: "RunningTier", found: "TierProfile | None") -> "ServedTier":
    """Describe a running tier for the gateway; a profile of another checkpoint or engine is marked stale."""
    from llmtier.serve.pool import ServedTier
    from llmtier.serve.topology import find_unusable

    unusable = find_unusable(found, checkpoint_digest=tier.checkpoint_digest, engine=tier.identity)
    if unusable is not None:
        output.say(f"{tier.name}: {unusable.value}; routing leaves it out; run 'llmtier profile --tier {tier.name}'")
    return ServedTier(
        name=tier.name,
        base_url=tier.base_url,
        model_name=tier.model_name,
        api_key=tier.api_key,
        profile=found,
        unusable=unusable,
        health_path="/v1/models" if tier.identity.name == "openai" else "/health",
    )


def make_state(
    config: "Config",
    served: "Sequence[ServedTier]",
    routing: "tuple[Policy, Scorer] | None",
    *,
    rules: "RuleBook",
    signals: "SignalPlan",
    default_tier: str | None,
) -> "AppState":
    """Put the gateway together."""
    from llmtier.serve.log import TrafficLog
    from llmtier.serve.metrics import Metrics
    from llmtier.serve.pool import TierPool
    from llmtier.serve.relay import Deadlines
    from llmtier.serve.state import AppState
    from llmtier.store.traffic import TrafficWriter

    pool = TierPool(served)
    metrics = Metrics(pool)
    log_dir = config.gateway.log_dir
    traffic = None if log_dir is None else TrafficLog(TrafficWriter(log_dir), on_dropped=metrics.log_dropped.inc)
    return AppState(
        pool=pool,
        metrics=metrics,
        policy=None if routing is None else routing[0],
        scorer=None if routing is None else routing[1],
        signals=signals,
        rules=rules,
        default_tier=default_tier,
        defaults=config.slo.to_requirement(),
        deadlines=Deadlines(total_s=config.gateway.request_timeout_s),
        traffic=traffic,
        log_text=config.gateway.log_text,
    )
