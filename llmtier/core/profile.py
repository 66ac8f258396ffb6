"""What was measured of a tier: load points, accuracy and cost, each with n and bounds."""

from dataclasses import dataclass

from llmtier.core.interval import Interval
from llmtier.core.latency_model import LatencyModel
from llmtier.core.tier import EngineIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """One load on one tier, summed up over its steady window; a metric without data is ``None``, never 0.

    Attributes:
        concurrency: Requests kept in flight by a closed loop; ``None`` for any other shape.
        n_ok: Requests of the window that answered.
        n_failed: Requests of the whole point, warm-up left out, that did not; they count in no latency.
        duration_s: Answers over throughput of the window, where a request that began before it or ended after it counts
            by the share of its time inside; in profiles of older versions first send to last completion.
        ttft_p50_s: Median of ``RequestTiming.ttft_s``; likewise ``p95`` and the other metrics.
        mean_input_tokens: Over the answered requests; likewise ``mean_output_tokens``.
        shape: Label of the load shape, such as ``closed:4`` or ``poisson:2.5``; "" in profiles of older versions.
        asked_rps: Arrival rate asked for; ``None`` for a closed loop.
        achieved_rps: Arrival rate that was sent, over the same span; ``None`` for a closed loop.
        n_sent: Requests sent, warm-up and tail included; ``None`` when unknown.
        is_steady: Whether a steady window was found; ``None`` when nobody looked.
        little_residual: (L - lambda W) / L over the window; ``None`` when undetermined.
        mean_in_flight: Time average over the window; likewise ``None``.
        schedule_delay_p50_s: Sent minus scheduled; likewise ``p99``.
        ttft_from_send_p50_s: TTFT from the send instant; likewise ``p95`` and ``e2el``.
        ttft_p95_high_s: Upper bound of the 95th percentile at ``bound_confidence``; likewise the others;
            ``None`` where n is too small to have one.
        bound_confidence: Of those bounds.
        invalid: Why the point must not be believed, one gate each; empty when it may.
        seed: Of arrivals and prompts.
    """

    concurrency: int | None
    n_ok: int
    n_failed: int
    duration_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    tpot_p50_s: float | None
    tpot_p95_s: float | None
    itl_p50_s: float | None
    itl_p95_s: float | None
    e2el_p50_s: float | None
    e2el_p95_s: float | None
    mean_input_tokens: float | None
    mean_output_tokens: float | None
    shape: str = ""
    asked_rps: float | None = None
    achieved_rps: float | None = None
    n_sent: int | None = None
    is_steady: bool | None = None
    little_residual: float | None = None
    mean_in_flight: float | None = None
    schedule_delay_p50_s: float | None = None
    schedule_delay_p99_s: float | None = None
    ttft_from_send_p50_s: float | None = None
    ttft_from_send_p95_s: float | None = None
    e2el_from_send_p50_s: float | None = None
    e2el_from_send_p95_s: float | None = None
    ttft_p95_high_s: float | None = None
    tpot_p95_high_s: float | None = None
    e2el_p95_high_s: float | None = None
    bound_confidence: float | None = None
    invalid: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if (self.concurrency is not None and self.concurrency < 1) or not self.duration_s > 0:
            raise ValueError("a load point needs concurrency >= 1 and duration_s > 0")

    @property
    def request_rps(self) -> float:
        """Answered requests per second."""
        return self.n_ok / self.duration_s

    @property
    def output_tokens_per_s(self) -> float | None:
        """Output tokens per second; ``None`` when the engine reported no usage."""
        return None if self.mean_output_tokens is None else self.mean_output_tokens * self.request_rps


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyEstimate:
    """Mean score of a tier on an evaluation set, failures counted as wrong.

    Attributes:
        domain: The set's domain; ``"all"`` for every row together.
        n: Rows asked.
        n_failed: Rows whose request failed; each counts 0.
        accuracy: Mean score in [0, 1].
        interval: Bounds of ``accuracy``.
    """

    domain: str
    n: int
    n_failed: int
    accuracy: float
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Price of a tier at its best measured throughput.

    Attributes:
        usd_per_hour: What the device share costs, as configured.
        usd_per_request: ``usd_per_hour / 3600 / request_rps`` at ``concurrency``.
        usd_per_output_token: ``usd_per_hour / 3600 / output_tokens_per_s`` there; ``None`` without usage.
        concurrency: The load point the throughput was taken from.
    """

    usd_per_hour: float
    usd_per_request: float
    usd_per_output_token: float | None
    concurrency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TierProfile:
    """Everything the router knows of one tier on one machine.

    Attributes:
        tier: The tier's name.
        checkpoint_digest: ``Checkpoint.digest`` of what was measured; ``None`` for a tier behind a URL.
        engine: What ran.
        hardware_fingerprint: ``Hardware.fingerprint`` of the machine.
        device: The device share it ran on, such as ``cpu:0`` or ``gpu:0``.
        co_tenants: Other tiers whose engines were up on ``device`` meanwhile, sorted.
        context_tokens: The engine's longest prompt plus output; ``None`` when unknown.
        points: Closed loops by ascending concurrency, then the other shapes in the order they were measured.
        accuracy: One estimate per domain, ``"all"`` first.
        cost: ``None`` without a price.
        latency: The fitted latency model; ``None`` in a profile that has none.
        goodput_rps: Highest rate that met the SLOs; ``None`` when it was not searched for.
        max_in_flight: In flight at that rate, the knee: more waits without serving more; ``None`` likewise.
    """

    tier: str
    checkpoint_digest: str | None
    engine: EngineIdentity
    hardware_fingerprint: str
    device: str
    co_tenants: tuple[str, ...]
    context_tokens: int | None
    points: tuple[LoadPoint, ...]
    accuracy: tuple[AccuracyEstimate, ...]
    cost: Cost | None
    latency: LatencyModel | None = None
    goodput_rps: float | None = None
    max_in_flight: int | None = None

    @property
    def closed_points(self) -> tuple[LoadPoint, ...]:
        """The closed loops that may be believed, by ascending concurrency."""
        return tuple(point for point in self.points if point.concurrency is not None and not point.invalid)

    def accuracy_of(self, domain: str | None) -> AccuracyEstimate | None:
        """Return the estimate of ``domain``, else of all rows, else ``None``."""
        by_domain = {estimate.domain: estimate for estimate in self.accuracy}
        return by_domain.get(domain or "all") or by_domain.get("all")
