"""What does a load client cost and add of its own? llmtier's against three peers, on one mock whose instants are known.

All clients drive the same mock engine (``support/sse_mock.py``, a process of its own), one after the other, in one run:

- ``chunks_per_core_s``: a closed loop of 48 streams of 100 chunks, one every 4 ms. Marginal: CPU time of a long run minus
  that of a short one, over the difference in chunks, so that start-up and imports count for nobody; the CPU time is
  that of all processes of the client. Decoding and statistics are inside.
- ``req_per_core_s``: the same of answers of one chunk without any wait.
- Errors: the client's value minus the mock's, which notes when a request came to its socket and when each chunk was
  handed to the kernel. llmtier's are per request and per gap, ``ttft_error_p50_s`` from the scheduled instant; of a
  peer's report only aggregates can be compared, so ``*_error_mean_s`` is computed alike for all.
- ``schedule_delay_p99_s``, llmtier only: 500 requests/s at equal gaps for 20 s, sent minus scheduled.

Mock and client share this machine's cores without being bound to any: a client that wants more than is left slows the
mock too, which its notes then show as true latency. Nothing else may run meanwhile.

Example: python benchmarks/loadgen.py --json benchmarks/results/loadgen.json
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from support.cpu_time import CountedRun, run_counted
from support.machine import describe_machine, publish
from support.peers import PEERS, Load, Peer, PeerError, Report
from support.truth import Mock, Note, Vector, aggregate_errors, mock_engine

DRIVER = Path(__file__).parent / "support" / "llmtier_load.py"
DRIVER_LIMIT_S = 240.0
CONCURRENCY = 48
OPEN_RATE_RPS = 500.0
OPEN_CHUNKS = 4
INTERVAL_S = 0.004


@dataclass(frozen=True)
class Pair:
    """A short and a long closed loop, whose difference is the marginal cost.

    Attributes:
        n_chunks: Content chunks of an answer.
        interval_s: Between two; 0 = at once.
        short_requests: Of the short run.
        long_requests: Of the long run.
        rounds: How often both are run; the median counts.
    """

    n_chunks: int
    interval_s: float
    short_requests: int
    long_requests: int
    rounds: int


@dataclass(frozen=True)
class Plan:
    """Everything that is run."""

    streams: Pair
    answers: Pair
    open_requests: int


FULL = Plan(Pair(100, INTERVAL_S, 480, 2400, 3), Pair(1, 0.0, 500, 8500, 3), 10_000)
QUICK = Plan(Pair(100, INTERVAL_S, 96, 480, 1), Pair(1, 0.0, 100, 4100, 1), 1000)


@dataclass(frozen=True)
class Marginal:
    """What the pairs of one client gave.

    Attributes:
        per_request_s: Marginal CPU time of a request in each round.
        report: Of the last long run.
        notes: The mock's of that run.
    """

    per_request_s: tuple[float, ...]
    report: Report
    notes: list[Note]

    @property
    def cpu_s(self) -> float:
        """The median round's time per request."""
        return statistics.median(self.per_request_s)


Drive = Callable[[Load], Report]


def measure_pair(drive: Drive, mock: Mock, pair: Pair, *, rounds: int) -> Marginal:
    """Run short and long in turn.

    Raises:
        PeerError: The client failed or left requests unanswered.
    """
    per_request_s: list[float] = []
    report, notes = drive_once(drive, mock, pair, CONCURRENCY)  # byte code and caches are made here
    for _ in range(rounds):
        report, notes = drive_once(drive, mock, pair, pair.short_requests)
        short_s = report.run.cpu_s
        report, notes = drive_once(drive, mock, pair, pair.long_requests)
        per_request_s.append((report.run.cpu_s - short_s) / (pair.long_requests - pair.short_requests))
    return Marginal(tuple(per_request_s), report, notes)


def drive_once(drive: Drive, mock: Mock, pair: Pair, n_requests: int) -> tuple[Report, list[Note]]:
    """Run a client once; return its report and the mock's notes on the requests that it counts."""
    mock.take_notes()
    report = drive(Load(mock.url, n_requests, CONCURRENCY, pair.n_chunks))
    notes = mock.take_notes()
    if len(notes) < n_requests:
        raise PeerError(f"{n_requests} requests were to be sent, the mock answered {len(notes)}")
    return report, notes[-n_requests:]  # a request to try the engine comes first


@dataclass(frozen=True)
class Sent:
    """What llmtier noted of one load; per request in the order of its number, chunks of all requests end to end."""

    scheduled_s: Vector
    sent_s: Vector
    content_s: tuple[Vector, ...]

    @property
    def ttft_s(self) -> Vector:
        """From the scheduled instant."""
        return self.first_s - self.scheduled_s

    @property
    def first_s(self) -> Vector:
        """The first chunks' instants."""
        return np.array([chunks[0] for chunks in self.content_s])

    @property
    def delay_s(self) -> Vector:
        """Sent minus scheduled."""
        return self.sent_s - self.scheduled_s


def read_sent(path: Path, *, n_chunks: int) -> Sent:
    """Read the driver's file.

    Raises:
        PeerError: A request failed or lacks chunks.
    """
    with np.load(path) as arrays:
        if not arrays["is_ok"].all() or (arrays["n_chunks"] != n_chunks).any():
            raise PeerError(f"llmtier: {int((~arrays['is_ok']).sum())} requests failed or chunks are missing")
        order = np.argsort(arrays["number"])
        content_s = arrays["content_s"].reshape(-1, n_chunks)[order]
        return Sent(arrays["scheduled_s"][order], arrays["sent_s"][order], tuple(content_s))


class Llmtier:
    """llmtier's client, driven as the peers are.

    Args:
        folder: Its files go here.
    """

    def __init__(self, folder: Path) -> None:
        self.out = folder / "llmtier.npz"

    def drive(self, load: Load) -> Report:
        """Run a closed loop."""
        return self.run(load, shape=f"closed:{load.concurrency}")

    def run(self, load: Load, *, shape: str) -> Report:
        """Run any load."""
        command = [sys.executable, str(DRIVER), load.url, "--shape", shape, "--requests", str(load.n_requests)]
        command += ["--max-tokens", str(load.n_chunks), "--out", str(self.out)]
        path = os.pathsep.join([str(DRIVER.parents[1]), os.environ.get("PYTHONPATH", "")])
        try:
            run: CountedRun = run_counted(command, limit_s=DRIVER_LIMIT_S, environ={"PYTHONPATH": path})
        except RuntimeError as error:
            raise PeerError(f"llmtier: {error}") from error
        sent = self.sent(load.n_chunks)
        gaps_s = [float(np.diff(chunks).mean()) for chunks in sent.content_s if chunks.size > 1]
        return Report(
            run,
            {
                "ttft_mean_s": float(sent.ttft_s.mean()),
                "ttft_p50_s": float(np.median(sent.ttft_s)),
                "itl_mean_s": statistics.fmean(gaps_s) if gaps_s else None,
            },
        )

    def sent(self, n_chunks: int) -> Sent:
        """Return the instants of the last load."""
        return read_sent(self.out, n_chunks=n_chunks)


def judge_instants(sent: Sent, notes: Sequence[Note]) -> dict[str, float]:
    """Compare each of llmtier's requests with what the mock noted of the very same one."""
    by_tag = {note.tag: note for note in notes}
    pairs = [(chunks, by_tag[number]) for number, chunks in enumerate(sent.content_s)]
    true_s = np.array([note.ttft_s for _, note in pairs])
    errors_s = sent.ttft_s - true_s
    from_send_s = sent.first_s - sent.sent_s - true_s
    gap_errors_s = np.concatenate([np.diff(chunks) - np.diff(note.written_s) for chunks, note in pairs])
    arrival_s = np.concatenate([chunks - np.array(note.written_s) for chunks, note in pairs])
    means_s = np.array([chunks[-1] - chunks[0] - note.written_s[-1] + note.written_s[0] for chunks, note in pairs])
    return {
        "ttft_error_p50_s": float(np.median(errors_s)),
        "ttft_error_p99_s": float(np.quantile(errors_s, 0.99)),
        "ttft_from_send_error_p50_s": float(np.median(from_send_s)),
        "itl_error_abs_mean_s": float(np.abs(gap_errors_s).mean()),
        "itl_error_abs_p99_s": float(np.quantile(np.abs(gap_errors_s), 0.99)),
        "request_itl_error_abs_mean_s": float(np.abs(means_s).mean() / (len(pairs[0][0]) - 1)),
        "chunk_late_p50_s": float(np.median(arrival_s)),
        "chunk_late_p99_s": float(np.quantile(arrival_s, 0.99)),
    }


def describe_costs(streams: Marginal, answers: Marginal, plan: Plan) -> dict[str, Any]:
    """Return a client's costs and the errors of its aggregates."""
    n_chunks = plan.streams.n_chunks
    span_s = max(note.written_s[-1] for note in streams.notes) - min(note.arrived_s for note in streams.notes)
    return {
        "req_per_core_s": 1 / answers.cpu_s,
        "chunks_per_core_s": n_chunks / streams.cpu_s,
        "cpu_s_per_request": answers.cpu_s,
        "cpu_s_per_chunk": streams.cpu_s / n_chunks,
        "cpu_s_per_request_rounds": list(answers.per_request_s),
        "cpu_s_per_chunk_rounds": [value / n_chunks for value in streams.per_request_s],
        "chunks_per_s": len(streams.notes) * n_chunks / span_s,
        **aggregate_errors(streams.report.latencies, streams.notes),
    }


def measure_llmtier(plan: Plan, mocks: Sequence[Mock], folder: Path) -> dict[str, Any]:
    """Measure llmtier's client on the three mocks: streams, answers, open loop."""
    client = Llmtier(folder)
    answers = measure_pair(client.drive, mocks[1], plan.answers, rounds=plan.answers.rounds)
    streams = measure_pair(client.drive, mocks[0], plan.streams, rounds=plan.streams.rounds)
    instants = judge_instants(client.sent(plan.streams.n_chunks), streams.notes)
    open_load = Load(mocks[2].url, plan.open_requests, CONCURRENCY, OPEN_CHUNKS)
    mocks[2].take_notes()
    client.run(open_load, shape=f"constant:{OPEN_RATE_RPS:g}")
    sent = client.sent(OPEN_CHUNKS)
    delay_s = np.quantile(sent.delay_s, [0.5, 0.99, 1.0]).tolist()
    return {
        **describe_costs(streams, answers, plan),
        **instants,
        **dict(zip(("schedule_delay_p50_s", "schedule_delay_p99_s", "schedule_delay_max_s"), delay_s, strict=True)),
        "open_loop": judge_instants(sent, mocks[2].take_notes()),
    }


def measure_peer(peer: Peer, plan: Plan, mocks: Sequence[Mock]) -> dict[str, Any]:
    """Install and measure a peer; what stops it is its result."""
    try:
        version = peer.install()
        rounds = min(peer.rounds, plan.streams.rounds)
        answers = measure_pair(peer.drive, mocks[1], plan.answers, rounds=rounds)
        streams = measure_pair(peer.drive, mocks[0], plan.streams, rounds=rounds)
    except PeerError as error:
        return {"error": str(error)}
    return {"version": version, **describe_costs(streams, answers, plan)}


def compare(ours: dict[str, Any], peers: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Return how many times the best peer's throughput per core second llmtier has; ``None`` without a peer."""
    measured = [peer for peer in peers.values() if "error" not in peer]
    return {
        f"ratio_{name}_to_best_peer": ours[name] / max(peer[name] for peer in measured) if measured else None
        for name in ("chunks_per_core_s", "req_per_core_s")
    }


def measure_all(plan: Plan, peers: Sequence[Peer], folder: Path) -> dict[str, Any]:
    """Run every client against the same three mocks."""
    with (
        mock_engine(n_chunks=plan.streams.n_chunks, interval_s=plan.streams.interval_s) as streams,
        mock_engine(n_chunks=plan.answers.n_chunks, interval_s=plan.answers.interval_s) as answers,
        mock_engine(n_chunks=OPEN_CHUNKS, interval_s=INTERVAL_S) as paced,
    ):
        mocks = (streams, answers, paced)
        ours = measure_llmtier(plan, mocks, folder)
        measured = {peer.name: measure_peer(peer, plan, mocks) for peer in peers}
    return {"llmtier": ours, "peers": measured, **compare(ours, measured)}


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description="Cost and errors of load clients.")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--quick", action="store_true", help="short loads: to see that it runs, not to be quoted")
    parser.add_argument("--peers-dir", type=Path, help="keep the peers' environments here for the next run")
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS), help="which; empty for none")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    wanted = {name for name in arguments.peers.split(",") if name}
    with TemporaryDirectory(prefix="loadgen-") as scratch:
        folder = (arguments.peers_dir or Path(scratch)).absolute()
        peers = [kind(folder) for kind in PEERS if kind.name in wanted]
        measured = measure_all(plan, peers, Path(scratch))
    conditions = {"cores_are_shared_by_mock_and_client": True, "plan": asdict(plan), "concurrency": CONCURRENCY}
    publish({"benchmark": "loadgen", "machine": describe_machine({}), **conditions, **measured}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
