"""Does the gateway lose anything? Half an hour of mixed traffic while engines, workers and clients go wrong at random.

``llmtier serve`` with several workers stands before three scripted engines. Requests of all endpoints and many sizes, whole
and streamed, come at random instants; every answer holds its request's id and numbered pieces. Engines fail in every
way that ``support/soak_faults.py`` lists, are killed, stopped and hang; workers are killed; the configuration is
reloaded where the gateway knows SIGHUP; clients leave, and some read slowly. At the end it is told to stop amid traffic.

Every request must end in one of these: ``complete`` and right, to the byte; ``refused`` with 429, 502, 503 or 504 and an
OpenAI error; ``told`` by an error event after a right beginning; ``left`` by its client. What a killed worker's clients
lose is ``cut_by_kill``, within half a second of the kill. All else is bad:

- ``lost``: no end, a cut that nobody told of, wrong or missing pieces. ``duplicated``: pieces twice.
  ``unexplained_errors``: any other status, or a refusal that is no error document.
- ``bad_by_fault``: what engines did to the requests that ended badly.
- ``rss_growth_bytes``: of the processes that lived all the time, after a warm-up; see ``support/soak_memory.py``.
- ``in_flight_at_rest``: what the gateway counts as under way when nothing is.
- ``cut_after_kill_s``: from the kill of a worker to the end of what it cut: what comes much later needs a look.
- ``cancelled_within_s``: from a client's leaving to its engine's seeing it, but for engines that were stopped.

Example: python benchmarks/soak.py --json benchmarks/results/soak.json --minutes 30
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
import uvloop
from support.machine import describe_machine, publish
from support.soak_ask import RULE_HEADER, TIERS
from support.soak_chaos import Chaos, EngineHost, Intervals
from support.soak_client import Clients, Tally
from support.soak_gateway import STOP_LIMIT_S, Gateway, GatewayError, running_gateway, write_config
from support.soak_judge import Outcome
from support.soak_memory import report_memory

EXIT_NO_GATEWAY, EXIT_BAD = 4, 5
DRAIN_LOAD_S, DRAIN_AFTER_S = 2.0, 0.2
SETTLE_S = 3.0
MAX_LOG_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is done, and for how long.

    Attributes:
        seconds: Of the load.
        rate_rps: Mean.
        fault_share: Share of an engine's requests that go wrong.
        n_workers: Of the gateway.
        request_timeout_s: The gateway's; likewise ``first_byte_timeout_s`` and ``stall_timeout_s``. What hangs ends by them.
        log_rotate_s: How old a row of its traffic log gets before it is written.
        intervals: Between blows.
        seed: Of all draws.
    """

    seconds: float = 1800.0
    rate_rps: float = 50.0
    fault_share: float = 0.12
    n_workers: int = 2
    request_timeout_s: float = 8.0
    first_byte_timeout_s: float = 3.0
    stall_timeout_s: float = 2.0
    log_rotate_s: float = 20.0
    intervals: Intervals = field(default_factory=Intervals)
    seed: int = 0


QUICK = Plan(
    seconds=90.0,
    intervals=Intervals(engine_kill_s=8.0, engine_stop_s=15.0, engine_hang_s=10.0, worker_kill_s=15.0, reload_s=15.0),
)


async def soak(plan: Plan, engines: EngineHost, gateway: Gateway) -> dict[str, Any]:
    """Put the load on while everything goes wrong; return what became of it."""
    rng = Random(plan.seed)
    chaos = Chaos(engines, gateway, Random(plan.seed + 1))
    async with Clients(gateway.url, rng, chaos.kills_s) as clients:
        watching = asyncio.create_task(chaos.watch())
        raging = asyncio.create_task(chaos.run(plan.intervals))
        await clients.load(plan.rate_rps, plan.seconds)
        await _cancel(raging)
        await clients.rest()
        await _cancel(watching)
        await asyncio.sleep(SETTLE_S)
        counts = _read_counts(gateway)
        drain = await _drain(plan, clients, gateway)
    return {
        **report(clients.tally, engines.journal, chaos.stops_s),
        "cut_after_kill_s": quantiles([_since_kill(at_s, chaos.kills_s) for at_s in clients.tally.cut_s]),
        **report_memory(chaos.watched.rss),
        **counts,
        "drain": drain,
        "done": dict(chaos.done),
        "workers_killed_at_s": [round(kill_s - clients.begun_s, 2) for kill_s in chaos.kills_s],
        "metrics_pages": {"came": chaos.watched.n_pages, "lost": chaos.watched.n_pages_lost},
    }


async def _cancel(task: asyncio.Task[None]) -> None:
    """End a task that goes on for ever.

    Raises:
        BaseException: What it failed with before.
    """
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _drain(plan: Plan, clients: Clients, gateway: Gateway) -> dict[str, Any]:
    """Tell the gateway to stop amid traffic; what is under way is judged like all else."""
    before = Counter(clients.tally.outcomes)
    await clients.load(plan.rate_rps, DRAIN_LOAD_S)
    await asyncio.sleep(DRAIN_AFTER_S)
    n_open, begun_s = clients.n_open, time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    await clients.rest()
    try:
        status = await asyncio.to_thread(gateway.process.wait, STOP_LIMIT_S)
    except psutil.TimeoutExpired:
        status = None
    return {
        "n_open": n_open,
        "took_s": round(time.monotonic() - begun_s, 2),
        "exit_status": status,
        "outcomes": {str(name): n for name, n in (clients.tally.outcomes - before).items()},
    }


def _read_counts(gateway: Gateway) -> dict[str, Any]:
    """Return what the gateway says of itself when nothing is under way; absent where it does not answer."""
    try:
        in_flight = gateway.metrics("llmtier_tier_inflight{")
        requests = gateway.metrics("llmtier_requests_total{")
    except OSError:
        return {"in_flight_at_rest": None}
    return {"in_flight_at_rest": sum(in_flight.values()), "gateway_counts": requests}


def report(tally: Tally, journal: Path, stops_s: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return what became of all requests, and what the engines had done to those that ended badly."""
    faults, gone_s = read_journal(journal)
    outcomes = {str(name): tally.outcomes[name] for name in Outcome}
    delays_s = [
        gone_s[name] - left_s
        for name, left_s in tally.left_s.items()
        if name in gone_s and not any(begun_s <= left_s <= ended_s for begun_s, ended_s in stops_s)
    ]
    by_fault = Counter(f"{faults.get(name, 'no fault')} -> {how}" for name, how in tally.bad_ids.items())
    return {
        "requests": sum(tally.outcomes.values()),
        "lost": outcomes["lost"],
        "duplicated": outcomes["duplicated"],
        "unexplained_errors": outcomes["unexplained"],
        "outcomes": outcomes,
        "reasons": {f"{name}: {why}": n for (name, why), n in sorted(tally.reasons.items()) if why},
        "endpoints": dict(sorted(tally.endpoints.items())),
        "faults": dict(Counter(fault for found in faults.values() for fault in found.split("+"))),
        "bad_by_fault": dict(by_fault.most_common()),
        "shed_without_retry_after": tally.shed_without_retry,
        "cancelled_within_s": quantiles(delays_s),
        "bad": [{**asdict(bad), "fault": faults.get(bad.id)} for bad in tally.bad],
    }


def read_journal(path: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Return the faults by request, joined by ``+``, and when an engine saw last that its client had left."""
    faults: dict[str, str] = {}
    gone_s: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, name, what, at_s = line.split(" ")
        if kind == "gone":
            gone_s[name] = float(at_s)
        else:
            faults[name] = f"{faults[name]}+{what}" if name in faults else what
    return faults, gone_s


def _since_kill(at_s: float, kills_s: Sequence[float]) -> float:
    return min(at_s - kill_s for kill_s in kills_s if kill_s <= at_s)


def quantiles(values_s: Sequence[float]) -> dict[str, Any]:
    """Return how many there are, and three quantiles."""
    if not values_s:
        return {"n": 0}
    p50_s, p99_s = np.quantile(values_s, [0.5, 0.99])
    return {"n": len(values_s), "p50_s": round(p50_s, 4), "p99_s": round(p99_s, 4), "max_s": round(max(values_s), 4)}


def run(plan: Plan, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Start engines and gateway, soak, and return what was found.

    Raises:
        GatewayError: It does not start.
    """
    # Rows of the traffic log that wait for their file are memory that comes and goes: often, so that no saw is measured.
    options = {"log_rotate_s": plan.log_rotate_s, **options}
    rules = [{"name": tier, "when": {"header": {RULE_HEADER: tier}}, "pin": tier} for tier in TIERS[1:]]
    limits = ("request_timeout_s", "first_byte_timeout_s", "stall_timeout_s")
    settings = {**{name: asdict(plan)[name] for name in limits}, "default_tier": TIERS[0], **options}
    engines = EngineHost(TIERS, folder, plan.fault_share)
    try:
        config = write_config(folder, engines.urls, gateway=settings, rules=rules)
        with running_gateway(config, n_workers=plan.n_workers) as gateway:
            found = uvloop.run(soak(plan, engines, gateway))
            crashes = [line for line in _read_lines(gateway.log) if "Traceback" in line or "Error:" in line]
    finally:
        engines.close()
    return {**found, "log": {"n_errors": len(crashes), "first": crashes[:MAX_LOG_LINES]}}


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def read_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Mixed traffic under random faults: is anything lost?")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--minutes", type=float, help="of load; default 30")
    parser.add_argument("--quick", action="store_true", help="90 s, with faults close to each other")
    parser.add_argument("--rate-rps", type=float, help="mean of arrivals")
    parser.add_argument("--fault-share", type=float, help="of an engine's requests")
    parser.add_argument("--workers", type=int, help="of the gateway")
    parser.add_argument("--seed", type=int, help="of all draws")
    parser.add_argument("--keep", type=Path, help="keep configuration, journal and the gateway's output here")
    parser.add_argument(
        "--gateway-option",
        action="append",
        default=[],
        metavar="KEY=JSON",
        help="set in the configuration's 'gateway'; may be given again",
    )
    return parser.parse_args()


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan with what the command line changes."""
    changes = {
        "seconds": None if arguments.minutes is None else 60 * arguments.minutes,
        "rate_rps": arguments.rate_rps,
        "fault_share": arguments.fault_share,
        "n_workers": arguments.workers,
        "seed": arguments.seed,
    }
    return replace(QUICK if arguments.quick else Plan(), **{k: v for k, v in changes.items() if v is not None})


def main() -> int:
    """Measure, print and write; return the exit status."""
    arguments = read_arguments()
    plan = make_plan(arguments)
    options = {key: json.loads(value) for key, _, value in (text.partition("=") for text in arguments.gateway_option)}
    with tempfile.TemporaryDirectory(prefix="llmtier-soak-") as scratch:
        folder = (arguments.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = run(plan, options, folder)
        except GatewayError as error:
            print(error, file=sys.stderr)
            return EXIT_NO_GATEWAY
    machine = describe_machine({"uvloop": version("uvloop"), "aiohttp": version("aiohttp")})
    publish({"benchmark": "soak", "machine": machine, "plan": asdict(plan), **found}, arguments.json)
    return EXIT_BAD if found["lost"] + found["duplicated"] + found["unexplained_errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
