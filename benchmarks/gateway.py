"""What does a gateway add? llmtier's against two Rust routers and the LiteLLM proxy, in front of one upstream.

Every gateway runs alone on one core; clients, upstream and this process share another. llmtier routes each request by a
``learned`` policy (fitted here on MMLU outcomes) between two tiers with latency models (profiled here), with metrics and
traffic log on; the peers take the same two upstreams in turn. No two prompts are alike, so remembered scores help nobody.
A round starts every candidate anew, one after the other; rounds repeat, and the median and the range are over rounds.

- ``cpu_s_per_1k``: user and system time of the process tree at 16 connections, 0.6 KB bodies; ``bodies`` has the others.
  Of a long load less that of a short one, so that start-up and first-time work count for nobody.
- ``rps``: answers a second by connections (wrk). ``busy``: the gateway's share of its core meanwhile; where that is
  far below 1 the other core was the limit.
- ``added_p50_s``, ``added_p99_s``: quantiles of latency less those of the same load without a gateway, in the same round.
- ``chunk_cpu_us``: CPU time by relayed event of 64 streams of 100 content chunks, one every 4 ms, likewise a difference.
  ``added_ttft_p99_s``: from the request to the first content, which the upstream sends at once.
- ``foreign``: share of the gateway's core that went to processes which do not belong to it. CPU times bear with some of
  that, rates and latencies do not: a run that shows more than a few per cent is not to be quoted.
- ``rss_growth_bytes``: resident memory of a fresh process tree after ``rss_requests`` more than the first tenth of that.

Example: python benchmarks/gateway.py --json benchmarks/results/gateway.json
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from support.gateway_bodies import SIZES_BYTES, write_bodies
from support.gateway_load import (
    N_STREAMS,
    Cores,
    LoadError,
    Target,
    Watch,
    measure_cost,
    measure_rate,
    run_client,
    run_wrk,
    running_upstream,
    tree_rss_bytes,
)
from support.gateway_peers import PEERS, ROUTED, Gateway, Llmtier
from support.machine import describe_machine, publish
from support.mmlu import read_rows
from support.peers import PeerError

DATA_FILE = "routellm_mmlu.parquet"
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
EXIT_NO_TOOLS = 4
CONNECTIONS = (1, 16, 64)
COST_CONNECTIONS = 16
HEADLINE = "0.6KB"
RSS_LIMIT_S = 60.0
"""A slow gateway does not get to its requests; how many it got to is in the result."""


@dataclass(frozen=True)
class Plan:
    """How long everything is loaded.

    Attributes:
        rounds: How often every candidate is started and measured.
        spans_s: Of the short and the long load whose difference is a cost.
        load_s: Of the other loads.
        rss_requests: Between the two readings of memory.
    """

    rounds: int
    spans_s: tuple[float, float]
    load_s: float
    rss_requests: int


FULL = Plan(3, (1.0, 5.0), 3.0, 200_000)
QUICK = Plan(1, (1.0, 3.0), 1.0, 20_000)


def measure_latency(target: Target, plan: Plan, *, stretch: float = 1.0) -> dict[str, Any]:
    """Return quantiles of latency by connections, and how many answers failed."""
    loads = {str(n): run_client(target, connections=n, seconds=plan.load_s * stretch) for n in CONNECTIONS}
    return {
        "p50_s": {n: load["p50_s"] for n, load in loads.items()},
        "p99_s": {n: load["p99_s"] for n, load in loads.items()},
        "n_errors": sum(load["n_errors"] for load in loads.values()),
    }


def measure_direct(target: Target, plan: Plan) -> dict[str, Any]:
    """Measure the load without a gateway."""
    streams = run_client(target, connections=N_STREAMS, seconds=plan.spans_s[1], is_stream=True)
    return {
        "rps": {str(n): run_wrk(target, HEADLINE, connections=n, seconds=plan.load_s)["rps"] for n in CONNECTIONS},
        **measure_latency(target, plan),
        "ttft_p50_s": streams["p50_s"],
        "ttft_p99_s": streams["p99_s"],
    }


def measure_round(gateway: Gateway, plan: Plan, direct: Mapping[str, Any]) -> dict[str, Any]:
    """Start a gateway, measure it and stop it.

    Raises:
        LoadError: It does not start, or a client fails.
    """
    with gateway.run() as (target, process):
        watch = Watch(process, gateway.cores.gateway)
        short_s, long_s = (span_s * gateway.stretch for span_s in plan.spans_s)
        cost = partial(measure_cost, process, spans_s=(short_s, long_s), settle_s=gateway.settle_s)
        whole = partial(cost, counted="n_answers")
        costs = {HEADLINE: whole(wrk_load(target, HEADLINE, COST_CONNECTIONS))}
        rates = {
            n: measure_rate(process, wrk_load(target, HEADLINE, n), plan.load_s * gateway.stretch) for n in CONNECTIONS
        }
        time.sleep(gateway.settle_s)
        latency = measure_latency(target, plan, stretch=gateway.stretch)
        streams = cost(stream_load(target), counted="n_chunks")
        for size in SIZES_BYTES:  # large ones last: they leave the slow with a backlog
            if size != HEADLINE:
                costs[size] = whole(wrk_load(target, size, COST_CONNECTIONS))
        counts = gateway.read_counts(target) if isinstance(gateway, Llmtier) else {}
        foreign = watch.foreign()
    loads = [*(run.long for run in costs.values()), *(rate.found for rate in rates.values()), streams.long, latency]
    return {
        "cpu_s_per_1k": 1000 * costs[HEADLINE].each_s,
        "bodies": {size: {"cpu_s_per_1k": 1000 * run.each_s, "rps": run.long["rps"]} for size, run in costs.items()},
        "rps": {str(n): rate.found["rps"] for n, rate in rates.items()},
        "busy": {str(n): rate.busy for n, rate in rates.items()},
        **{f"added_{name}": subtract(latency[name], direct[name]) for name in ("p50_s", "p99_s")},
        "chunk_cpu_us": 1e6 * streams.each_s,
        **{f"added_ttft_{q}_s": difference(streams.long[f"{q}_s"], direct[f"ttft_{q}_s"]) for q in ("p50", "p99")},
        "n_errors": sum(load["n_errors"] for load in loads),
        "foreign": foreign,
        **({"counts": counts} if counts else {}),
    }


def wrk_load(target: Target, size: str, connections: int) -> Callable[[float], dict[str, Any]]:
    """Return a load of whole answers that lasts as long as it is told."""
    return lambda seconds: run_wrk(target, size, connections=connections, seconds=seconds)


def stream_load(target: Target) -> Callable[[float], dict[str, Any]]:
    """Return a load of streams that lasts as long as it is told."""
    return lambda seconds: run_client(target, connections=N_STREAMS, seconds=seconds, is_stream=True)


def measure_growth(gateway: Gateway, plan: Plan) -> dict[str, Any]:
    """Return by how much a fresh gateway's memory grows over many requests after a warm-up.

    Raises:
        LoadError: It does not start, or wrk fails.
    """
    with gateway.run() as (target, process):
        load = wrk_load(target, HEADLINE, COST_CONNECTIONS)
        send(load, plan.rss_requests // 10)
        time.sleep(gateway.settle_s)
        before_bytes = tree_rss_bytes(process)
        n_requests = send(load, plan.rss_requests)
        time.sleep(gateway.settle_s)
        growth_bytes = tree_rss_bytes(process) - before_bytes
    return {"rss_growth_bytes": growth_bytes, "rss_bytes": before_bytes + growth_bytes, "rss_requests": n_requests}


def send(load: Callable[[float], dict[str, Any]], n_requests: int) -> int:
    """Put on a load until ``n_requests`` are answered or the time is over; return how many were."""
    n_sent, ends_s = 0, time.perf_counter() + RSS_LIMIT_S
    while n_sent < n_requests and time.perf_counter() < ends_s:
        rate_rps = n_sent / (time.perf_counter() - ends_s + RSS_LIMIT_S) if n_sent else None
        left_s = 1.0 if rate_rps is None else (n_requests - n_sent) / rate_rps
        n_sent += load(min(max(left_s, 1.0), 20.0, max(ends_s - time.perf_counter(), 1.0)))["n_answers"]
    return n_sent


def difference(value: float | None, base: float | None) -> float | None:
    """Return what is added; ``None`` where one is absent."""
    return None if value is None or base is None else value - base


def subtract(values: Mapping[str, float | None], base: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return what is added, key by key."""
    return {key: difference(value, base[key]) for key, value in values.items()}


def summarise(rounds: Sequence[Any], pick: Callable[[Sequence[float]], Any]) -> Any:  # noqa: ANN401 - a tree of figures
    """Return one tree for those of all rounds, each leaf what ``pick`` makes of its values; ``None`` without any."""
    if isinstance(rounds[0], Mapping):
        keys = dict.fromkeys(key for tree in rounds for key in tree)
        return {key: summarise([tree[key] for tree in rounds if key in tree], pick) for key in keys}
    known = [value for value in rounds if value is not None]
    return pick(known) if known else None


def describe(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return medians, and beside them the range."""
    ranges = summarise(rounds, lambda values: [min(values), max(values)])
    return {**summarise(rounds, statistics.median), "n_rounds": len(rounds), "range": ranges}


class Runner:
    """Takes every candidate through the rounds; one that fails is out from there on, and says why.

    Args:
        plan: How long.
        candidates: In the order of a round.
        direct: The upstream itself.
    """

    def __init__(self, plan: Plan, candidates: Sequence[Gateway], direct: Target) -> None:
        self._plan = plan
        self._candidates = candidates
        self._direct = direct
        self._rounds: dict[str, list[dict[str, Any]]] = {gateway.name: [] for gateway in candidates}
        self._whole: dict[str, dict[str, Any]] = {gateway.name: {} for gateway in candidates}

    def run(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Return the figures of the upstream and of each candidate."""
        for gateway in self._candidates:
            self._whole[gateway.name] |= self._attempt(gateway, "set up", partial(prepare, gateway))
        bases = []
        for number in range(self._plan.rounds):
            bases.append(base := measure_direct(self._direct, self._plan))
            turn = number % max(len(self._candidates), 1)  # who comes first changes: the machine drifts
            for gateway in (*self._candidates[turn:], *self._candidates[:turn]):
                step = partial(measure_round, gateway, self._plan, base)
                if found := self._attempt(gateway, f"round {number + 1}", step):
                    self._rounds[gateway.name].append(found)
        for gateway in self._candidates:
            self._whole[gateway.name] |= self._attempt(gateway, "memory", partial(measure_growth, gateway, self._plan))
        return describe(bases), {name: self._result(name) for name in self._rounds}

    def _attempt(self, gateway: Gateway, what: str, step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        whole = self._whole[gateway.name]
        if "error" in whole:
            return {}
        print(f"{gateway.name}: {what}", file=sys.stderr, flush=True)
        try:
            return step()
        except (LoadError, PeerError, OSError) as error:
            whole["error"] = f"{what}: {error}".replace(str(gateway.folder.parent), "...")
            print(f"{gateway.name}: {what}: {error}", file=sys.stderr, flush=True)
            return {}

    def _result(self, name: str) -> dict[str, Any]:
        rounds = self._rounds[name]
        return {**self._whole[name], **(describe(rounds) if rounds else {})}


def prepare(gateway: Gateway) -> dict[str, Any]:
    """Install and set up a gateway; return its version where it is another project's."""
    found = gateway.prepare()
    return {} if found is None else {"version": found}


def compare(ours: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return each peer's cost over llmtier's: above 1, llmtier is the cheaper one."""
    return {
        name: {
            key: peer[key] / ours[key] for key in ("cpu_s_per_1k", "chunk_cpu_us") if peer.get(key) and ours.get(key)
        }
        for name, peer in peers.items()
    }


def make_candidates(arguments: argparse.Namespace, place: tuple[Any, ...], peers: Path) -> list[Gateway]:
    """Return the gateways that were asked for."""
    scratch, *rest = place
    outcomes = arguments.data / DATA_FILE
    programs = {"llmtier": f"{sys.executable} -m llmtier"}
    programs |= dict(text.split("=", 1) for text in arguments.llmtier_command)
    ours = [Llmtier(scratch, *rest, outcomes=outcomes, program=line, name=name) for name, line in programs.items()]
    others = [kind(peers, *rest) for kind in PEERS]
    wanted = set(filter(None, arguments.only.split(",")))
    return [gateway for gateway in (*ours, *others) if not wanted or gateway.name in wanted]


def measure_all(arguments: argparse.Namespace, plan: Plan, cores: Cores, scratch: Path) -> dict[str, Any]:
    """Run everything; return the result without what it ran on."""
    bodies = scratch / "bodies"
    write_bodies(bodies, [row.prompt.last_user_text for row in read_rows(arguments.data / DATA_FILE)], (ROUTED, "m"))
    with running_upstream(scratch, core=cores.load) as upstreams:
        peers_folder = (arguments.peers or scratch / "peers").absolute()
        candidates = make_candidates(arguments, (scratch, upstreams, bodies, cores), peers_folder)
        base, found = Runner(plan, candidates, Target(upstreams[0], "m", bodies)).run()
    peers = {name: found.pop(name) for name in [kind.name for kind in PEERS] if name in found}
    ours = found.pop("llmtier", {"error": "was not asked for"})
    return {
        "llmtier": ours,
        "peers": peers,
        "other_llmtiers": found,
        "direct": base,
        "times_llmtier": compare(ours, peers),
    }


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="What a gateway adds: llmtier beside its peers.")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument(
        "--quick", action="store_true", help="short loads, one round: to see that it runs, not to be quoted"
    )
    parser.add_argument("--only", default="", help="these candidates, separated by commas; default: all")
    parser.add_argument("--peers", type=Path, help="keep the peers' environments here for the next run")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help=f"folder with {DATA_FILE}")
    parser.add_argument("--rounds", type=int, help="of every candidate")
    parser.add_argument("--requests", type=int, help="over which memory is watched")
    parser.add_argument(
        "--llmtier-command",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another checkout's llmtier; may be given again",
    )
    return parser.parse_args()


def find_lack(arguments: argparse.Namespace) -> str | None:
    """Return what keeps the benchmark from running."""
    if shutil.which("wrk") is None:
        return "wrk is missing: apt-get install wrk"
    if len(os.sched_getaffinity(0)) < 2:
        return "two cores are needed: one for the gateway, one for clients and upstream"
    data = arguments.data / DATA_FILE
    return None if data.is_file() else f"{data} is missing; name its folder with --data"


def wrk_version() -> str:
    """Return what wrk says of itself."""
    command = [shutil.which("wrk") or "wrk", "-v"]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return text.partition(" [")[0].removeprefix("wrk ")


def main() -> int:
    """Measure, print and write; return the exit status."""
    arguments = read_arguments()
    if lack := find_lack(arguments):
        print(lack, file=sys.stderr)
        return EXIT_NO_TOOLS
    plan = QUICK if arguments.quick else FULL
    plan = replace(plan, rounds=arguments.rounds or plan.rounds, rss_requests=arguments.requests or plan.rss_requests)
    machine = describe_machine({"wrk": wrk_version(), "uvloop": version("uvloop"), "httptools": version("httptools")})
    gateway_core, load_core, *_ = sorted(os.sched_getaffinity(0))
    cores = Cores(gateway_core, load_core)
    os.sched_setaffinity(0, {load_core})
    with TemporaryDirectory(prefix="gateway-") as scratch:
        measured = measure_all(arguments, plan, cores, Path(scratch))
    pinned = {"cores": asdict(cores) | {"note": "gateway alone on one core; clients and upstream share the other"}}
    command = ["python", "benchmarks/gateway.py", *(["--quick"] if arguments.quick else [])]
    heading = {"benchmark": "gateway", "command": command, "machine": machine, **pinned}
    publish({**heading, "plan": asdict(plan), "n_streams": N_STREAMS, **measured}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
