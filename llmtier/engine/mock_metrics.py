"""The mock engine's metrics page, under vLLM's own names (tests/golden holds a recorded page).

Holds the page and ``MeteredEngine``, which takes the instants that the page's histograms need. As in
vLLM, TTFT and ITL are observed when the token comes, the others when the request ends by itself.
The mock has no prefix cache and never preempts: those counters stand at 0, as in a vLLM without them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from typing_extensions import override

from llmtier.core.engine_delta import Tally
from llmtier.engine.clock import Clock
from llmtier.engine.mock_engine import MockEngine, MockSequence
from llmtier.engine.mock_settings import MockSettings

_FINISH_REASONS = ("stop", "length", "abort", "error")


@dataclass(slots=True, kw_only=True)
class _Instants:
    """When what happened to one request."""

    submitted_s: float
    joined_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Observed:
    """A histogram's running sum and count."""

    total: float = 0.0
    n: int = 0

    def add(self, value: float) -> None:
        """Observe one value."""
        self.total += value
        self.n += 1


@dataclass(slots=True, kw_only=True)
class _Histograms:
    """Everything observed since the start, in seconds."""

    ttft: _Observed = field(default_factory=_Observed)
    itl: _Observed = field(default_factory=_Observed)
    e2el: _Observed = field(default_factory=_Observed)
    queue: _Observed = field(default_factory=_Observed)
    prefill: _Observed = field(default_factory=_Observed)
    decode: _Observed = field(default_factory=_Observed)

    def add_token(self, instants: _Instants, now_s: float, *, is_first: bool) -> None:
        """Observe one token."""
        if is_first:
            instants.first_s = now_s
            self.ttft.add(now_s - instants.submitted_s)
        else:
            self.itl.add(now_s - instants.last_s)
        instants.last_s = now_s

    def add_request(self, instants: _Instants) -> None:
        """Observe one request that has ended by itself."""
        self.e2el.add(instants.last_s - instants.submitted_s)
        self.queue.add(instants.joined_s - instants.submitted_s)
        self.prefill.add(instants.first_s - instants.joined_s)
        self.decode.add(instants.last_s - instants.first_s)


class MeteredEngine(MockEngine):
    """A mock engine that also knows how long its requests took, on its own clock."""

    def __init__(self, settings: MockSettings, *, clock: Clock) -> None:
        super().__init__(settings, clock=clock)
        self._histograms = _Histograms()
        self._instants: dict[MockSequence, _Instants] = {}

    @property
    def tallies(self) -> dict[str, Tally]:
        """Return the histograms by vLLM's names."""
        seen = self._histograms
        named = {
            "time_to_first_token_seconds": seen.ttft,
            "inter_token_latency_seconds": seen.itl,
            "e2e_request_latency_seconds": seen.e2el,
            "request_queue_time_seconds": seen.queue,
            "request_prefill_time_seconds": seen.prefill,
            "request_decode_time_seconds": seen.decode,
        }
        return {name: Tally(total=observed.total, n=observed.n) for name, observed in named.items()}

    @override
    def submit(self, *, n_prompt_tokens: int, n_output_tokens: int, finish_reason: str = "length") -> MockSequence:
        sequence = super().submit(
            n_prompt_tokens=n_prompt_tokens, n_output_tokens=n_output_tokens, finish_reason=finish_reason
        )
        self._instants[sequence] = _Instants(submitted_s=self._clock.now_s())
        return sequence

    @override
    def cancel(self, sequence: MockSequence) -> None:
        super().cancel(sequence)
        self._instants.pop(sequence, None)

    @override
    def _begin_step(self) -> float:
        n_before = len(self._running)
        now_s = self._clock.now_s()
        step_s = super()._begin_step()
        for sequence in self._running[n_before:]:
            self._instants[sequence].joined_s = now_s
        return step_s

    @override
    def _end_step(self) -> None:
        running = self._running
        now_s = self._clock.now_s()
        super()._end_step()
        for sequence in running:
            self._histograms.add_token(self._instants[sequence], now_s, is_first=sequence.n_done == 1)
            if sequence.is_finished:
                self._histograms.add_request(self._instants.pop(sequence))


def render_metrics(engine: MockEngine, *, model_name: str, kv_capacity_tokens: int) -> bytes:
    """Return the page in the Prometheus text format; histograms of time only of a ``MeteredEngine``."""
    label = f'engine="0",model_name="{model_name}"'
    lines = [
        *_plain_lines(engine, label, kv_capacity_tokens=kv_capacity_tokens),
        *_step_lines(engine, label),
        *(_time_lines(engine, label) if isinstance(engine, MeteredEngine) else ()),
        *_finish_lines(engine, model_name),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _plain_lines(engine: MockEngine, label: str, *, kv_capacity_tokens: int) -> Iterator[str]:
    counters = engine.counters
    samples: tuple[tuple[str, str, float], ...] = (
        ("num_requests_running", "gauge", engine.n_running),
        ("num_requests_waiting", "gauge", engine.n_waiting),
        ("kv_cache_usage_perc", "gauge", min(engine.n_kv_tokens / kv_capacity_tokens, 1.0)),
        ("num_preemptions_total", "counter", 0),
        ("prefix_cache_queries_total", "counter", 0),
        ("prefix_cache_hits_total", "counter", 0),
        ("prompt_tokens_total", "counter", counters.n_prompt_tokens),
        ("generation_tokens_total", "counter", counters.n_generation_tokens),
    )
    for name, kind, value in samples:
        yield f"# TYPE vllm:{name} {kind}"
        yield f"vllm:{name}{{{label}}} {float(value)}"


def _step_lines(engine: MockEngine, label: str) -> Iterator[str]:
    counters = engine.counters
    n_tokens = counters.n_prompt_tokens + counters.n_generation_tokens
    yield "# TYPE vllm:iteration_tokens_total histogram"
    yield f'vllm:iteration_tokens_total_bucket{{{label},le="+Inf"}} {float(counters.n_steps)}'
    yield f"vllm:iteration_tokens_total_count{{{label}}} {float(counters.n_steps)}"
    yield f"vllm:iteration_tokens_total_sum{{{label}}} {float(n_tokens)}"


def _time_lines(engine: MeteredEngine, label: str) -> Iterator[str]:
    for name, tally in engine.tallies.items():
        yield f"# TYPE vllm:{name} histogram"
        yield f"vllm:{name}_count{{{label}}} {float(tally.n)}"
        yield f"vllm:{name}_sum{{{label}}} {tally.total!r}"


def _finish_lines(engine: MockEngine, model_name: str) -> Iterator[str]:
    yield "# TYPE vllm:request_success_total counter"
    for reason in _FINISH_REASONS:
        count = float(engine.counters.finished[reason])
        yield f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{model_name}"}} {count}'
