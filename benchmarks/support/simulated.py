"""Simulated engines as a profiler sees them: settings with known truth, their capacity, runs as request samples.

Pure: draws arrivals and lengths from a seed, simulates, and converts. Clients add nothing unless a
``ClientDelay`` says so.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmtier.engine.mock_settings import MockSettings
from llmtier.engine.simulate import Simulation, simulate
from llmtier.profile.sample import STATUS_OK, RequestSample
from llmtier.store.profiles import RequestRow

Vector = NDArray[np.float64]
REFUSED = "http 500"


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Prompt and answer lengths: uniform between two bounds, both included, in tokens."""

    n_input: tuple[int, int]
    n_output: tuple[int, int]

    def draw(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the lengths of ``n`` requests, shape (n,) each."""
        return (
            rng.integers(self.n_input[0], self.n_input[1] + 1, n),
            rng.integers(self.n_output[0], self.n_output[1] + 1, n),
        )

    @property
    def mean_input(self) -> float:
        """Mean prompt."""
        return sum(self.n_input) / 2

    @property
    def mean_output(self) -> float:
        """Mean answer."""
        return sum(self.n_output) / 2

    @property
    def mean_held(self) -> float:
        """Mean tokens that a running request holds in one of its steps: E[sum of (prompt + k), k < answer] / E[answer]."""
        answers = np.arange(self.n_output[0], self.n_output[1] + 1)
        return float((self.mean_input * answers + answers * (answers - 1) / 2).mean() / answers.mean())


@dataclass(frozen=True, kw_only=True)
class ClientDelay:
    """What lies between engine and client: a fixed time each way together, and an exponential one on each chunk."""

    fixed_s: float = 0.0003
    jitter_s: float = 0.00005


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An engine and the requests it gets."""

    name: str
    engine: MockSettings
    lengths: Lengths

    @property
    def saturation_rps(self) -> float:
        """Return the rate of answers when the batch is always full: exact, since the noise has mean 1.

        A full batch of n runs n / E[answer] answers per step; without a limit that matters n is the largest allowed.
        """
        engine, lengths, n = self.engine, self.lengths, self.engine.max_num_seqs
        ends_per_step = n / lengths.mean_output
        step_s = (
            engine.alpha_s
            + engine.beta_s_per_token * lengths.mean_input * ends_per_step
            + engine.sequence_s * n
            + engine.gamma_s_per_kv_token * n * lengths.mean_held
        )
        return ends_per_step / step_s

    def open_run(self, rate_rps: float, n: int, seed: int, *, is_constant: bool = False) -> Simulation:
        """Simulate an open loop, Poisson unless constant; the same seed scales the same arrivals to any rate."""
        rng = np.random.default_rng((seed, 1))
        gaps = np.ones(n) if is_constant else rng.exponential(1.0, n)
        n_input, n_output = self.lengths.draw(n, rng)
        return simulate(self.engine, np.cumsum(gaps) / rate_rps, n_input, n_output, np.random.default_rng((seed, 2)))

    def closed_run(self, concurrency: int, n: int, seed: int) -> Simulation:
        """Simulate a closed loop whose workers start together."""
        n_input, n_output = self.lengths.draw(n, np.random.default_rng((seed, 1)))
        noise = np.random.default_rng((seed, 2))
        return simulate(self.engine, np.zeros(concurrency), n_input, n_output, noise, concurrency)

    def with_lengths(self, lengths: Lengths) -> "Scene":
        """Return the same engine under other requests."""
        return replace(self, lengths=lengths)


def to_samples(
    run: Simulation,
    *,
    n_warmup: int,
    shape: str,
    concurrency: int | None = None,
    delay: ClientDelay | None = None,
    seed: int = 0,
) -> list[RequestSample]:
    """Return what a client would have recorded, in the order of arrival.

    Args:
        run: The simulation.
        n_warmup: The first so many are marked as warm-up.
        shape: Label of the load.
        concurrency: Of a closed loop.
        delay: What the client adds; ``None`` for nothing.
        seed: Of its jitter.
    """
    rng = np.random.default_rng((seed, 3))
    samples = []
    for number, request in enumerate(run.requests()):
        content_s = request.token_s if delay is None else _delayed(request.token_s, delay, rng)
        row = RequestRow(
            tier="simulated",
            concurrency=concurrency,
            prompt_id=str(number),
            scheduled_s=request.arrival_s,
            sent_s=request.arrival_s,
            first_s=content_s[0] if content_s else None,
            last_s=content_s[-1] if content_s else None,
            done_s=content_s[-1] if content_s else request.arrival_s,
            n_input_tokens=request.n_input_tokens if content_s else None,
            n_output_tokens=len(content_s) or None,
            status=REFUSED if request.is_refused else STATUS_OK,
            shape=shape,
            n_chunks=len(content_s) or None,
        )
        samples.append(RequestSample(row=row, content_s=content_s, is_warmup=number < n_warmup))
    return samples


def _delayed(token_s: tuple[float, ...], delay: ClientDelay, rng: np.random.Generator) -> tuple[float, ...]:
    late_s = delay.fixed_s + rng.exponential(delay.jitter_s, len(token_s))
    return tuple(np.maximum.accumulate(np.array(token_s) + late_s).tolist())
