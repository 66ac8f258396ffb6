"""What the gateway has on one engine now, counted as it relays: the load that the latency model asks for.

An event costs a few additions, whatever is in flight. The counts are exact for this process; those of the gateway's
other processes and the load of strangers are added when a state is asked for. A request that failed or was cancelled leaves its arrival and nothing
else. Windows and rates are those of ``profile.ledger_view``, which rebuilds this state for the fit: a model is
asked with what it was judged on. Instants are of one monotonic clock and passed in. Sends nothing.
"""

from collections import deque
from dataclasses import dataclass

from llmtier.core.latency_model import LoadState
from llmtier.engine.wire import Usage
from llmtier.serve.lengths import OutputLengths

CHARACTERS_PER_TOKEN = 4.0
"""English under the common vocabularies; in force until engines have told their own counts."""

WINDOW = 32
"""Requests that a rate or a mean looks back on."""

FEWEST = 8
"""Requests behind a rate or a mean; with fewer it stays unknown, and what was profiled holds."""

_PRIOR_TOKENS = 100.0  # weight of the start value of the ratio: about one short request
_FORGET = 1.0 - 1.0 / WINDOW

LoadCounts = tuple[float, ...]
"""What one process has on an engine: requests decoding and prefilling, prompt tokens of the latter, tokens held by the
former, arrivals per second (0 when unknown). Five floats, so that processes can share and sum them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSize:
    """How long a prompt is, as far as it is known before an engine counts it.

    Attributes:
        n_characters: Of its text, template left out.
        n_tokens: Exact where the prompt is token ids; ``None`` for text.
    """

    n_characters: int = 0
    n_tokens: int | None = None

    def estimate_tokens(self, tokens_per_character: float) -> int:
        """Return how many tokens an engine of that ratio counts, at least 1."""
        n_tokens = self.n_characters * tokens_per_character if self.n_tokens is None else self.n_tokens
        return max(round(n_tokens), 1)


class Flight:
    """One request on an engine; the pool opens and ends it.

    Attributes:
        size: Of its prompt.
        sent_s: When it was sent.
        input_tokens: Estimated for text.
        kv_tokens: What it holds in the engine's cache; 0 until it decodes.
        is_seen: Whether a token of its answer has been seen.
        max_tokens: Longest answer that was asked for; ``None`` when open.
    """

    __slots__ = ("_ledger", "input_tokens", "is_seen", "kv_tokens", "max_tokens", "sent_s", "size")

    def __init__(
        self, ledger: "TierLedger", size: PromptSize, *, sent_s: float, input_tokens: int, max_tokens: int | None
    ) -> None:
        self._ledger = ledger
        self.size = size
        self.max_tokens = max_tokens
        self.sent_s = sent_s
        self.input_tokens = input_tokens
        self.kv_tokens = 0
        self.is_seen = False

    def note_piece(self, now_s: float) -> None:
        """Count one more token of a stream; the first one ends the prefill."""
        ledger = self._ledger
        if not self.is_seen:
            ledger.see_first(self)
        self.kv_tokens += 1
        ledger.kv_tokens += 1
        ledger.newest_s = now_s

    def learn(self, usage: Usage) -> None:
        """Take what the engine counted of the request, once it has been answered in full."""
        self._ledger.learn(self.size, usage, max_tokens=self.max_tokens)


class TierLedger:
    """The running counts of one engine.

    Attributes:
        n_decoding: As in ``LoadState``; likewise ``prefill_tokens`` and ``kv_tokens``.
        n_seen: Those of ``n_decoding`` whose tokens are seen.
        newest_s: When the newest token of any request came; ``None`` before the first.
        tokens_per_character: Of recent prompts, the engine's template included.
        lengths: Of recent answers.
    """

    __slots__ = (
        "_arrivals_s", "_input_tokens", "_n_characters", "_n_tokens", "_output_tokens", "_prefilling", "kv_tokens",
        "lengths", "n_decoding", "n_seen", "newest_s", "prefill_tokens", "tokens_per_character",
    )  # fmt: skip

    def __init__(self) -> None:
        self.n_decoding = 0
        self.n_seen = 0
        self.prefill_tokens = 0
        self.kv_tokens = 0
        self.newest_s: float | None = None
        self.tokens_per_character = 1.0 / CHARACTERS_PER_TOKEN
        self._n_tokens = _PRIOR_TOKENS
        self._n_characters = _PRIOR_TOKENS * CHARACTERS_PER_TOKEN
        self._prefilling: dict[Flight, None] = {}  # in the order they were sent
        self._arrivals_s: deque[float] = deque(maxlen=WINDOW)
        self._input_tokens = _RecentMean()
        self._output_tokens = _RecentMean()
        self.lengths = OutputLengths()

    @property
    def n_in_flight(self) -> int:
        """Every request on the engine."""
        return self.n_decoding + len(self._prefilling)

    def begin(self, size: PromptSize, *, now_s: float, is_stream: bool, max_tokens: int | None = None) -> Flight:
        """Put one more request on the engine; ``end`` must follow.

        An answer that comes whole shows no first token. Such a request counts as decoding from the start,
        half of a mean answer in, because that is where most of its time goes.
        """
        self._arrivals_s.append(now_s)
        input_tokens = size.estimate_tokens(self.tokens_per_character)
        flight = Flight(self, size, sent_s=now_s, input_tokens=input_tokens, max_tokens=max_tokens)
        self._input_tokens.add(flight.input_tokens)
        self._prefilling[flight] = None
        self.prefill_tokens += flight.input_tokens
        if not is_stream:
            self._start_decoding(flight, n_tokens=round((self._output_tokens.value or 0.0) / 2))
        return flight

    def see_first(self, flight: Flight) -> None:
        """Note that the first token of ``flight`` has come."""
        if not flight.kv_tokens:
            self._start_decoding(flight, n_tokens=0)
        flight.is_seen = True
        self.n_seen += 1

    def end(self, flight: Flight) -> None:
        """Take ``flight`` off the engine, however it went."""
        if flight.kv_tokens:
            self.n_decoding -= 1
            self.kv_tokens -= flight.kv_tokens
            self.n_seen -= flight.is_seen
        else:
            self._end_prefill(flight)

    def learn(self, size: PromptSize, usage: Usage, *, max_tokens: int | None = None) -> None:
        """Take an engine's own counts of an answered request."""
        if usage.prompt_tokens and size.n_characters:  # token ids and bare images teach no ratio
            self._n_tokens = _FORGET * self._n_tokens + usage.prompt_tokens
            self._n_characters = _FORGET * self._n_characters + size.n_characters
            self.tokens_per_character = self._n_tokens / self._n_characters
        if usage.completion_tokens is not None:
            self._output_tokens.add(usage.completion_tokens)
            self.lengths.add(usage.completion_tokens, max_tokens)

    def arrival_rps(self, now_s: float) -> float | None:
        """Return the recent rate of requests sent here; ``None`` until ``FEWEST`` have been.

        n arrivals and the request that asks make n gaps. The last of them is still open when nobody comes, so
        the rate falls.
        """
        n = len(self._arrivals_s)
        span_s = now_s - self._arrivals_s[0] if n >= FEWEST else 0.0
        return n / span_s if span_s > 0 else None

    def counts(self, now_s: float) -> LoadCounts:
        """Return what other processes need to know of this one; the rate is that of ``now_s``."""
        n_prefilling = float(len(self._prefilling))
        rate_rps = self.arrival_rps(now_s) or 0.0
        return (float(self.n_decoding), n_prefilling, float(self.prefill_tokens), float(self.kv_tokens), rate_rps)

    def state(
        self,
        now_s: float,
        *,
        co_tenants: tuple[tuple[str, float], ...] = (),
        others: LoadCounts | None = None,
        n_foreign: float = 0.0,
    ) -> LoadState:
        """Return what a request that arrives now finds.

        Args:
            now_s: Now.
            co_tenants: Passed through.
            others: Sums over the gateway's other processes; ``None`` when there are none.
            n_foreign: Requests on the engine that are no process's of this gateway.
        """
        begun_s = self._step_start()
        n_prefilling = len(self._prefilling)
        n_late, late_tokens = self._count_late(begun_s) if n_prefilling else (0, 0)
        own = LoadState(
            self.n_decoding,
            n_prefilling,
            self.prefill_tokens,
            n_prefilling - n_late,
            self.prefill_tokens - late_tokens,
            self.kv_tokens,
            self.arrival_rps(now_s),
            self._input_tokens.value,
            self._output_tokens.value,
            None if begun_s is None else max(now_s - begun_s, 0.0),
            co_tenants,
        )
        if others is not None:
            own = self._add_others(own, others)
        return _add_foreign(own, n_foreign) if n_foreign > 0 else own

    def _add_others(self, own: LoadState, others: LoadCounts) -> LoadState:
        """Return the load of all processes.

        Where only others' tokens tell when the running step began, its age is unknown, and so is who joined it.
        """
        n_decoding, n_prefilling, prefill_tokens, kv_tokens, rate_rps = others
        is_hidden = not self.n_seen and n_decoding + n_prefilling > 0
        return LoadState(
            own.n_decoding + int(n_decoding),
            own.n_prefilling + int(n_prefilling),
            own.prefill_tokens + int(prefill_tokens),
            0 if is_hidden else own.n_joined,
            0 if is_hidden else own.joined_tokens,
            own.kv_tokens + int(kv_tokens),
            (own.arrival_rps or 0.0) + rate_rps or None,
            own.mean_input_tokens,
            own.mean_output_tokens,
            None if is_hidden else own.step_age_s,
            own.co_tenants,
        )

    def _step_start(self) -> float | None:
        """Return when the running step began: with the newest token, or with the first prompt on an idle engine."""
        if self.n_seen:
            return self.newest_s
        if self.n_decoding or not self._prefilling:
            return None
        first_s = next(iter(self._prefilling)).sent_s
        return first_s if self.newest_s is None else max(first_s, self.newest_s)

    def _count_late(self, begun_s: float | None) -> tuple[int, int]:
        """Count prompts, and their tokens, that were sent after the running step began: those of one step's time."""
        if begun_s is None:
            return len(self._prefilling), self.prefill_tokens
        n, tokens = 0, 0
        for flight in reversed(self._prefilling):
            if flight.sent_s <= begun_s:
                break
            n += 1
            tokens += flight.input_tokens
        return n, tokens

    def _end_prefill(self, flight: Flight) -> None:
        del self._prefilling[flight]
        self.prefill_tokens -= flight.input_tokens

    def _start_decoding(self, flight: Flight, *, n_tokens: int) -> None:
        self._end_prefill(flight)
        self.n_decoding += 1
        flight.kv_tokens = flight.input_tokens + n_tokens
        self.kv_tokens += flight.kv_tokens


def _add_foreign(load: LoadState, n_foreign: float) -> LoadState:
    """Return ``load`` with requests of others that decode, each as long as the gateway's own of late.

    Their rate is not seen. By Little's law it stands to the own rate as their number to the own number; with none of
    its own in flight the gateway knows no rate, and the load is taken to last.
    """
    n_own, n = load.n_in_flight, round(n_foreign)
    context = (load.mean_input_tokens or 0.0) + (load.mean_output_tokens or 0.0) / 2
    rate_rps = load.arrival_rps
    return LoadState(
        load.n_decoding + n,
        load.n_prefilling,
        load.prefill_tokens,
        load.n_joined,
        load.joined_tokens,
        load.kv_tokens + round(n * context),
        rate_rps * (n_own + n) / n_own if rate_rps is not None and n_own else None,
        load.mean_input_tokens,
        load.mean_output_tokens,
        load.step_age_s if n_own else None,
        load.co_tenants,
    )


class _RecentMean:
    """Mean of the last ``WINDOW`` values."""

    __slots__ = ("_sum", "_values")

    def __init__(self) -> None:
        self._values: deque[int] = deque(maxlen=WINDOW)
        self._sum = 0

    def add(self, value: int) -> None:
        """Take one more value."""
        if len(self._values) == WINDOW:
            self._sum -= self._values[0]
        self._values.append(value)
        self._sum += value

    @property
    def value(self) -> float | None:
        """The mean; ``None`` below ``FEWEST`` values."""
        return self._sum / len(self._values) if len(self._values) >= FEWEST else None
