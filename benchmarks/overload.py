"""What is left of an engine's goodput when it is asked for three times what it can take?

One mock engine with eight places and an endless queue, as vLLM has. Its capacity is that of closed loops around the knee;
then requests come at random instants at half, one, two and three times that, each with a deadline, once straight to the
engine and once through ``llmtier serve`` with several workers, whose profile is measured here. Clients wait beyond the
deadline before they leave, so that an answer that is late has cost as much as a good one.

- ``goodput_rps``: answers whole within the deadline, a second, while the load is steady.
- ``goodput_at_highest_to_peak``: that at the highest load to the best of all loads of the same target; likewise
  ``goodput_at_highest_to_capacity``, to what the bare engine answers at best.
- ``shed``: refusals by status; ``shed_with_retry_after``: share that say when to ask again; ``shed_p95_s``: how soon they come.
- ``answered_p95_s``: of the answers, whether in time or not.

Rounds alternate between the targets; figures are medians over rounds, with the range beside the headline.

Example: python benchmarks/overload.py --json benchmarks/results/overload.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import uvloop
from support.machine import describe_machine, publish
from support.overload_engine import Speed, await_idle, running_engine
from support.overload_load import Target, Terms, load_closed, load_open, summarise
from support.soak_gateway import GatewayError, running_gateway, write_config

TIER = "only"
EXIT_NO_GATEWAY = 4
END_OF_ERRORS = 800
MERGED = ("shed", "shed_reasons", "failed")
"""Counts, which are added up over rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is put on.

    Attributes:
        loads: Multiples of the capacity.
        seconds: Of each; likewise ``capacity_s`` of a closed loop.
        knee: Connections of the closed loops.
        deadline_s: Of every request.
        patience_s: How long clients wait.
        rounds: Of everything but the capacity.
        n_workers: Of the gateway.
        speed: The engine's.
        profiled: Concurrencies of the tier's profile; likewise ``profile_requests`` of each.
        seed: Of arrivals; the same for both targets.
    """

    loads: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    seconds: float = 15.0
    capacity_s: float = 5.0
    knee: tuple[int, ...] = (8, 12, 16)
    deadline_s: float = 0.5
    patience_s: float = 3.0
    rounds: int = 3
    n_workers: int = 2
    speed: Speed = field(default_factory=Speed)
    profiled: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24)
    profile_requests: int = 96
    seed: int = 0

    @property
    def terms(self) -> Terms:
        """What every request asks for."""
        return Terms(max_tokens=self.speed.output_tokens, deadline_s=self.deadline_s, patience_s=self.patience_s)


QUICK = Plan(
    loads=(1.0, 3.0), seconds=5.0, capacity_s=2.0, knee=(8, 16), rounds=1, profiled=(1, 8, 16), profile_requests=32
)


def measure_capacity(plan: Plan, target: Target) -> dict[str, float]:
    """Return answers a second by connections."""
    found = {}
    for n in plan.knee:
        load = load_closed(target, plan.terms, n_connections=n, seconds=plan.capacity_s)
        found[str(n)] = round(uvloop.run(load), 2)
    return found


def measure_loads(plan: Plan, target: Target, engine: str, *, capacity_rps: float, number: int) -> dict[str, Any]:
    """Put every load on a target, each on an idle engine; return what came, by load."""
    measured = {}
    for load in plan.loads:
        rng = Random(plan.seed + 1000 * number + int(10 * load))
        sending = load_open(target, plan.terms, rate_rps=load * capacity_rps, seconds=plan.seconds, rng=rng)
        found, late_s = uvloop.run(sending)
        is_idle = await_idle(engine, limit_s=plan.patience_s + 10.0)
        measured[f"{load:g}"] = {
            **summarise(found, plan.terms, seconds=plan.seconds),
            "client_late_p99_s": round(late_s, 4),
            "idle_afterwards": is_idle,
        }
    return measured


def summarise_rounds(rounds: Sequence[dict[str, Any]], capacity_rps: float) -> dict[str, Any]:
    """Return medians of all loads, and what the highest keeps of the peak."""
    loads = {load: _merge([found[load] for found in rounds]) for load in rounds[0]}
    goodput = {load: found["goodput_rps"] for load, found in loads.items()}
    highest = max(goodput, key=float)
    peak_rps = max(goodput.values())
    kept = [found[highest]["goodput_rps"] / max(one["goodput_rps"] for one in found.values()) for found in rounds]
    return {
        "goodput_rps": goodput,
        "peak_rps": peak_rps,
        "goodput_at_highest_to_peak": round(goodput[highest] / peak_rps, 4),
        "goodput_at_highest_to_peak_by_round": [round(share, 4) for share in kept],
        "goodput_at_highest_to_capacity": round(goodput[highest] / capacity_rps, 4),
        "loads": loads,
    }


def _merge(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key, first in found[0].items():
        values = [one[key] for one in found if one[key] is not None]
        if key in MERGED:
            names = sorted({name for value in values for name in value})
            merged[key] = {name: sum(value.get(name, 0) for value in values) for name in names}
        elif isinstance(first, bool):
            merged[key] = all(values)
        else:
            merged[key] = statistics.median(values) if values else None
    return merged


def profile(config: Path, deadline_s: float) -> None:
    """Have the tier profiled, and the knee found at which it still meets the deadline.

    Raises:
        GatewayError: It cannot be.
    """
    command = [sys.executable, "-m", "llmtier", "profile", "-c", str(config), "--latency-model"]
    command += ["--slo-e2el-ms", f"{deadline_s * 1000:g}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=config.parent)
    if done.returncode != 0:
        raise GatewayError(f"profile: {done.stderr[-END_OF_ERRORS:]}")


def write_files(plan: Plan, folder: Path, engine: str, options: dict[str, Any]) -> Path:
    """Write configuration and evaluation set; return the configuration's path."""
    messages = [{"role": "user", "content": "What is one and one?"}, {"role": "assistant", "content": "word"}]
    (folder / "evaluation.jsonl").write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    load = {
        "concurrency": list(plan.profiled),
        "requests_per_point": plan.profile_requests,
        "warmup_requests": 8,
        "max_tokens": plan.speed.output_tokens,
    }
    return write_config(folder, {TIER: engine}, gateway={"default_tier": TIER, **options}, load=load)


def measure(plan: Plan, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run engine and gateway and load both; return what was found.

    Raises:
        GatewayError: It cannot be profiled or does not start.
    """
    with running_engine(plan.speed, folder) as engine:
        config = write_files(plan, folder, engine, options)
        tell("profiling")
        profile(config, plan.deadline_s)
        direct = Target(url=engine, model="m", states_deadline=False)
        with running_gateway(config, n_workers=plan.n_workers) as gateway:
            targets = {
                "direct": direct,
                "llmtier": Target(url=gateway.url, model="auto", states_deadline=True),
            }
            closed = measure_capacity(plan, direct)
            capacity_rps = max(closed.values())
            rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in targets}
            for number in range(plan.rounds):
                for name, target in targets.items():
                    tell(f"round {number + 1}, {name}, capacity {capacity_rps:.1f} requests/s")
                    found = measure_loads(plan, target, engine, capacity_rps=capacity_rps, number=number)
                    rounds[name].append(found)
    results = {name: summarise_rounds(found, capacity_rps) for name, found in rounds.items()}
    return {"capacity_rps": capacity_rps, "closed_rps_by_connections": closed, **results}


def tell(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description="Goodput under overload, with llmtier and without.")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--quick", action="store_true", help="two short loads, one round: to see that it runs")
    parser.add_argument("--keep", type=Path, help="keep configuration, profile and outputs here")
    parser.add_argument(
        "--gateway-option",
        action="append",
        default=[],
        metavar="KEY=JSON",
        help="set in the configuration's 'gateway'; may be given again",
    )
    arguments = parser.parse_args()
    options = {key: json.loads(value) for key, _, value in (text.partition("=") for text in arguments.gateway_option)}
    plan = QUICK if arguments.quick else Plan()
    with tempfile.TemporaryDirectory(prefix="llmtier-overload-") as scratch:
        folder = (arguments.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = measure(plan, folder, options)
        except GatewayError as error:
            tell(str(error))
            return EXIT_NO_GATEWAY
    machine = describe_machine({"numpy": np.__version__})
    publish({"benchmark": "overload", "machine": machine, "plan": asdict(plan), **found}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
