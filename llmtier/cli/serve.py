"""``llmtier serve``: start the engines, check that policy and profiles describe them, run the gateway.

Reads ``llmtier.yaml``, the policy with its scorer, and the profiles; writes the traffic log.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import DEFAULT_CONFIG, ConfigOption
from llmtier.core.errors import PlanError, UsageError

if TYPE_CHECKING:
    from llmtier.core.policy import Policy
    from llmtier.core.profile import TierProfile
    from llmtier.route.rules import RuleBook
    from llmtier.score.scorer import Scorer
    from llmtier.serve.pool import ServedTier
    from llmtier.serve.signals import SignalPlan
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
    workers: Annotated[
        str | None,
        typer.Option(help="Processes that serve: a number, or 'auto' for one a core; default: the configuration's."),
    ] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(help="Port of metrics and state beside the traffic's; 0 takes a free one.", min=0, max=65535),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Serve though profiles do not cover the topology, or changed since the fit.")
    ] = False,
) -> None:
    """Run the OpenAI-compatible gateway.

    Example: llmtier serve -c llmtier.yaml --port 8000
    """
    from llmtier.cli.serve_signals import plan_signals
    from llmtier.cli.serve_state import find_profile_digests, load_keys, load_profiles, load_routing
    from llmtier.engine.hardware import detect_hardware
    from llmtier.serve.keys import check_exposure
    from llmtier.serve.rules import make_rules
    from llmtier.serve.run import check_port, run_in_loop
    from llmtier.serve.topology import check_profiles
    from llmtier.store.config import load_config

    loaded = load_config(config)
    address = (host or loaded.gateway.host, loaded.gateway.port if port is None else port)
    keys = load_keys(loaded)
    check_exposure(address[0], has_keys=keys is not None, allows_anonymous=loaded.gateway.allow_anonymous)
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
    plan = ServePlan(
        config=config.absolute(),
        host=address[0],
        port=address[1],
        n_workers=count_workers(loaded.gateway.workers if workers is None else workers),
        admin_port=loaded.gateway.admin_port if admin_port is None else admin_port,
        default_tier=default_tier,
    )
    run_in_loop(run(loaded, tiers, profiles=profiles, routing=routing, rules=rules, signals=signals, plan=plan))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """How the gateway runs.

    Attributes:
        config: The configuration's file, for worker processes.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        n_workers: Processes that serve; with 1 everything is in this one.
        admin_port: Port of the control process's pages; ``None`` leaves them out where there is one process.
        default_tier: Where ``auto`` goes without a policy.
    """

    config: Path
    host: str
    port: int
    n_workers: int
    admin_port: int | None
    default_tier: str | None

    @property
    def admin_url(self) -> str | None:
        """Where the pages will be; ``None`` where there are none, or any port will do."""
        return f"http://127.0.0.1:{self.admin_port}" if self.admin_port else None


def count_workers(wanted: str | int) -> int:
    """Return how many processes are to serve.

    Raises:
        UsageError: It is neither a positive number nor ``auto``.
    """
    if str(wanted) == "auto":
        return len(os.sched_getaffinity(0))
    if not str(wanted).isdecimal() or int(wanted) < 1:
        raise UsageError(f"workers must be a number from 1 on, or auto; got {wanted!r}")
    return int(wanted)


def choose_served(config: "Config", names: Sequence[str], policy: "Policy | None") -> "list[TierConfig]":
    """Return the named tiers, else the policy's, those that rules pin to and the safe one, else all.

    Raises:
        PlanError: The safe tier is not among them.
    """
    from llmtier.cli.engines import choose_tiers

    if not names and policy is not None:
        pinned = [rule.pin for rule in config.routing.to_rules() if rule.pin is not None]
        safe = [] if config.gateway.safe_tier is None else [config.gateway.safe_tier]
        names = list(dict.fromkeys([*(tier.name for tier in policy.tiers), *pinned, *safe]))
    tiers = choose_tiers(config, names)
    check_safe(config, [tier.name for tier in tiers])
    return tiers


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


def check_safe(config: "Config", names: Sequence[str]) -> None:
    """Check that the safe tier, where one is configured, is among those that are served.

    Raises:
        PlanError: It is not.
    """
    safe = config.gateway.safe_tier
    if safe is not None and safe not in names:
        raise PlanError(
            f"gateway.safe_tier {safe} is not served (served: {', '.join(names)}); serve it, or name another"
        )


async def run(
    config: "Config",
    tiers: "Sequence[TierConfig]",
    *,
    profiles: "Mapping[str, TierProfile]",
    routing: "tuple[Policy, Scorer] | None",
    rules: "RuleBook",
    signals: "SignalPlan",
    plan: ServePlan,
) -> None:
    """Keep engines and gateway up until a signal."""
    from llmtier.cli.engines import LOG_DIR, find_interpreters
    from llmtier.cli.serve_state import make_state, renew_state, to_served
    from llmtier.engine.hardware import detect_hardware
    from llmtier.engine.tier import running_tiers
    from llmtier.serve.run import serve_forever

    pythons = find_interpreters(tiers, detect_hardware())
    output.say(f"starting {', '.join(tier.name for tier in tiers)}")
    async with running_tiers(tiers, pythons=pythons, log_dir=LOG_DIR) as running:
        served = [to_served(tier, profiles.get(tier.name)) for tier in running.values()]
        if plan.n_workers > 1:
            await run_workers(served, plan)
            return
        state = make_state(config, served, routing, rules=rules, signals=signals, default_tier=plan.default_tier)
        await serve_forever(
            replace(state, reload=partial(renew_state, plan.config, plan.host)),
            host=plan.host,
            port=plan.port,
            admin_port=plan.admin_port,
            on_ready=partial(_say_ready, admin_url=plan.admin_url),
        )


async def run_workers(served: "Sequence[ServedTier]", plan: ServePlan) -> None:
    """Keep several worker processes up until a signal."""
    from llmtier.cli import logs
    from llmtier.cli.serve_worker import WorkerOrders, run_worker
    from llmtier.serve.control import ControlPlan, control_forever
    from llmtier.serve.metrics import CountBook

    orders = WorkerOrders(
        config=plan.config,
        host=plan.host,
        served=tuple(served),
        default_tier=plan.default_tier,
        is_verbose=logs.is_verbose(),
    )
    await control_forever(
        served,
        ControlPlan(host=plan.host, port=plan.port, n_workers=plan.n_workers, admin_port=plan.admin_port or 0),
        make_target=lambda seat: partial(run_worker, orders, seat),
        make_book=CountBook,
        on_ready=_say_ready,
    )


def _say_ready(url: str, admin_url: str | None = None) -> None:
    output.say(f"serving on {url}/v1")
    if admin_url is not None:
        output.say(f"metrics on {admin_url}/metrics")
