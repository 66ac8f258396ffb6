"""The one definition of TTFT, TPOT, ITL and E2EL: instants are stored, latencies derived.

Definitions follow ``vllm bench serve`` (vllm/benchmarks/lib/endpoint_request_func.py),
except that TTFT waits for the first chunk with *content*: an empty role chunk is no token.
Latencies count from the scheduled instant (no coordinated omission) or, named
``..._from_send_s``, from the instant the request left.
All instants are seconds on one monotonic clock.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTiming:
    """The instants of one request; ``None`` where the event never came.

    Attributes:
        scheduled_s: When the load shape wanted it sent.
        sent_s: When the first byte was handed to the connection.
        content_s: Arrival of each content chunk, ascending; empty when none came.
        done_s: End of the response or of the attempt.
        n_output_tokens: As the engine's ``usage`` reports; ``None`` when unreported.
    """

    scheduled_s: float
    sent_s: float
    done_s: float
    content_s: tuple[float, ...] = ()
    n_output_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.scheduled_s <= self.sent_s <= self.done_s:
            raise ValueError("instants must satisfy scheduled_s <= sent_s <= done_s")

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from the scheduled instant."""
        return self.content_s[0] - self.scheduled_s if self.content_s else None

    @property
    def ttft_from_send_s(self) -> float | None:
        """Time to first token, from the send instant."""
        return self.content_s[0] - self.sent_s if self.content_s else None

    @property
    def e2el_s(self) -> float | None:
        """End-to-end latency to the last content chunk, from the scheduled instant."""
        return self.content_s[-1] - self.scheduled_s if self.content_s else None

    @property
    def e2el_from_send_s(self) -> float | None:
        """End-to-end latency to the last content chunk, from the send instant."""
        return self.content_s[-1] - self.sent_s if self.content_s else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (e2el - ttft) / (n - 1); ``None`` for n < 2."""
        if not self.content_s or self.n_output_tokens is None or self.n_output_tokens < 2:
            return None
        return (self.content_s[-1] - self.content_s[0]) / (self.n_output_tokens - 1)

    @property
    def itl_s(self) -> tuple[float, ...]:
        """Gaps between consecutive content chunks, shape (n_chunks - 1,)."""
        return tuple(later - earlier for earlier, later in zip(self.content_s, self.content_s[1:], strict=False))


def predict_e2el_s(*, ttft_s: float, tpot_s: float, n_output_tokens: float) -> float:
    """Return TTFT plus one TPOT for each token after the first."""
    return ttft_s + tpot_s * max(n_output_tokens - 1.0, 0.0)
