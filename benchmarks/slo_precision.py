"""How often is the gateway right when it says that a tier meets a request's limits, with real engines on shared cores?

Two tiers of the demo run on vLLM behind one ``llmtier serve`` process; engines, gateway and client share the machine's
cores. After a closed loop that finds what the pair can take, Poisson loads at 30, 60 and 90 % of it send requests whose
limits lie around what the gateway predicted of late. A decision "this tier meets them" was right when the client's own
clock says that every limit held:

- ``slo_precision``: P(limits met | the decision said so); ``slo_recall``: P(the decision said so | limits met).
- ``calibration``: share of answers no slower than the predicted 95th percentile, by tier and load.
- ``predictors``: the same requests judged, afterwards, by the model without its online correction, by the profile's
  own 95th percentile at that concurrency, and by the tier's 95th percentile of the last minute.

``--samples DIR`` keeps what the client saw and the traffic log; ``--rejudge`` judges what lies there without an engine.

Example: python benchmarks/slo_precision.py --json benchmarks/results/slo_precision.json
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from support.machine import describe_machine, publish
from support.slo_gateway import Gateway, running_gateway, write_config
from support.slo_load import Client, Drawer, Seen, read_bodies
from support.slo_replay import Replay
from support.slo_report import (
    report_calibration,
    report_correction,
    report_decisions,
    report_false_promises,
    report_gateway,
    report_load,
    report_predictors,
)
from support.slo_rows import join, read_seen, write_seen

from llmtier.core.errors import LlmtierError
from llmtier.core.profile import TierProfile
from llmtier.engine.hardware import detect_hardware
from llmtier.store.config import load_config
from llmtier.store.profiles import read_profiles
from llmtier.store.traffic import read_traffic

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo"
TIERS = ("nano@bf16", "mini@bf16")
"""Cheapest first."""

DRIFT = "llmtier_profile_drift_ratio"
EXIT_NO_ENVIRONMENT = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is put on the gateway.

    Attributes:
        shares: Of the capacity, one a load.
        seconds: Of each load.
        warm_up_s: Of the closed loop without limits; every tier and length is predicted in it.
        capacity_s: Of the closed loop with limits whose rate is the capacity.
        n_connections: Of both.
        seed: Of prompts, limits and arrivals.
    """

    shares: tuple[float, ...] = (0.3, 0.6, 0.9)
    seconds: float = 240.0
    warm_up_s: float = 12.0
    capacity_s: float = 15.0
    n_connections: int = 32
    seed: int = 0


QUICK = Plan(shares=(0.5,), seconds=15.0, warm_up_s=5.0, capacity_s=5.0)


def measure(plan: Plan, config: Path, samples: Path) -> dict[str, Any]:
    """Run engines and gateway, put every load on, keep what was seen; return the facts of the run."""
    drawer = Drawer(read_bodies(DEMO / "data" / "traffic.jsonl"), TIERS, np.random.default_rng(plan.seed))
    seen: list[Seen] = []
    facts: dict[str, Any] = {"plan": asdict(plan), "loads": {}}
    shutil.rmtree(samples / "traffic", ignore_errors=True)  # of an earlier run
    with running_gateway(write_config(config, samples), TIERS) as gateway:
        client = Client(gateway.url, drawer)
        loop = {"n_connections": plan.n_connections}
        seen += client.closed("warm-up", **loop, seconds=plan.warm_up_s, has_limits=False)
        found = client.closed("capacity", **loop, seconds=plan.capacity_s, has_limits=True)
        seen += found
        facts["capacity_rps"] = len(found) / plan.capacity_s
        for share in plan.shares:
            name, rate_rps = f"{share:.0%}", share * facts["capacity_rps"]
            tell(f"{name} of {facts['capacity_rps']:.1f} requests/s")
            found, facts["loads"][name] = put(client, gateway, name, rate_rps=rate_rps, seconds=plan.seconds)
            seen += found
        facts["drift"] = gateway.metric(DRIFT)
    write_seen(seen, samples / "seen.jsonl")
    (samples / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def put(
    client: Client, gateway: Gateway, name: str, *, rate_rps: float, seconds: float
) -> tuple[list[Seen], dict[str, Any]]:
    """Put one load on; return what was seen, and the CPU time that it took."""
    before, client_s, begun_s = gateway.cpu_s(), time.process_time(), time.perf_counter()
    seen = client.poisson(name, rate_rps=rate_rps, seconds=seconds)
    after, wall_s = gateway.cpu_s(), time.perf_counter() - begun_s
    used_s = {part: after[part] - before[part] for part in after} | {"client": time.process_time() - client_s}
    return seen, {
        "rate_rps": round(rate_rps, 2),
        "seconds": round(wall_s, 1),
        "cores_used": {part: round(cpu_s / wall_s, 4) for part, cpu_s in used_s.items()},
        "gateway_cpu_s_per_1k": round(used_s["gateway"] / max(len(seen), 1) * 1000.0, 4),
    }


def evaluate(samples: Path, facts: Mapping[str, Any], profiles: Mapping[str, TierProfile]) -> dict[str, Any]:
    """Judge what was kept."""
    seen = read_seen(samples / "seen.jsonl")
    log = read_traffic(samples / "traffic")
    loads = dict(facts["loads"])
    judged = [one for one in seen if one.load in loads]
    replay = Replay(log, profiles)
    rows, n_unknown = join(judged, log, replay.found, profiles)
    for name in loads:
        mine = [row for row in rows if row.seen.load == name]
        loads[name] |= report_load(mine, [one for one in judged if one.load == name])
    decisions = report_decisions(rows)
    return {
        **{f"slo_{name}": decisions["all"][name] for name in ("precision", "recall", "accuracy")},
        "capacity_rps": round(facts["capacity_rps"], 2),
        "n_not_in_log": n_unknown,
        "loads": loads,
        "decisions": decisions,
        "calibration": report_calibration(rows),
        "predictors": report_predictors(rows),
        "false_promises": report_false_promises(rows),
        "gateway": report_gateway(rows),
        "correction": {**report_correction(rows, replay), "gauge_at_the_end": facts["drift"]},
        "plan": facts["plan"],
    }


def find_profiles(config: Path, names: Sequence[str]) -> tuple[dict[str, TierProfile], dict[str, Any]]:
    """Return the profiles of this machine, and what of them belongs into the result.

    Raises:
        LlmtierError: There are none.
    """
    found = read_profiles(load_config(config).profiles, detect_hardware().slug)
    profiles = {name: found[name] for name in names}
    facts = {name: {"engine": asdict(p.engine), "device": p.device} for name, p in profiles.items()}
    return profiles, facts


def tell(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description="How often a live decision on SLOs is right, with real engines.")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--config", type=Path, default=DEMO / "llmtier.yaml", help="of the demo, profiled and fitted")
    parser.add_argument("--samples", type=Path, help="keep here what was seen and logged")
    parser.add_argument("--rejudge", action="store_true", help="measure nothing: judge what --samples holds")
    parser.add_argument("--quick", action="store_true", help="one short load")
    arguments = parser.parse_args()
    begun_s = time.perf_counter()
    try:
        profiles, tiers = find_profiles(arguments.config, TIERS)
    except (LlmtierError, KeyError) as error:
        tell(f"{error}; run 'llmtier demo' first")
        return EXIT_NO_ENVIRONMENT
    with tempfile.TemporaryDirectory(prefix="llmtier-bench-") as scratch:
        samples = arguments.samples or Path(scratch)
        samples.mkdir(parents=True, exist_ok=True)
        if arguments.rejudge:
            facts = json.loads((samples / "facts.json").read_text(encoding="utf-8"))
        else:
            facts = measure(QUICK if arguments.quick else Plan(), arguments.config, samples)
        found = evaluate(samples, facts, profiles)
    engine = next(iter(tiers.values()))["engine"]
    document = {
        "benchmark": "slo_precision",
        "machine": describe_machine({engine["name"]: engine["version"], "numpy": np.__version__}),
        "tiers": tiers,
        **found,
        "wall_s": round(time.perf_counter() - begun_s, 1),
    }
    publish(document, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
