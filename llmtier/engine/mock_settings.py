"""What a mock engine is told to be: its speed, its answers and its faults.

Holds data and checks; reads one JSON file when asked. How the settings act is
in mock_engine.py (speed), mock_answer.py (answers) and mock.py (faults).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path

import msgspec

from llmtier.core.errors import ConfigError


class MockTokenizer(StrEnum):
    """What counts as a token."""

    WORDS = "words"
    """A run of non-space characters with the white space before it."""

    CHARACTERS = "characters"
    """One Unicode code point."""


class FaultKind(StrEnum):
    """How a request goes wrong; counted in tokens sent where that matters."""

    REFUSE = "refuse"
    """HTTP 503."""
    RATE_LIMIT = "rate_limit"
    """HTTP 429 with ``Retry-After: delay_s``."""
    ERROR = "error"
    """HTTP 500."""
    HANG = "hang"
    """Nothing is answered, not even headers."""
    HEADERS_ONLY = "headers_only"
    """Headers with status 200, then nothing."""
    EMPTY_BODY = "empty_body"
    """Headers with status 200 and a body of no bytes."""
    SLOW_START = "slow_start"
    """The request enters the engine ``delay_s`` late, then all is well."""
    CUT = "cut"
    """The connection closes after ``after_tokens``."""
    STALL = "stall"
    """Silence of ``delay_s`` after ``after_tokens``, for ever when that is absent; then the rest."""
    MALFORMED = "malformed"
    """One chunk that is no JSON after ``after_tokens``, then the rest."""
    ERROR_CHUNK = "error_chunk"
    """An error object inside the HTTP 200 stream after ``after_tokens``, as vLLM reports a dying engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One scripted fault.

    Attributes:
        kind: What happens.
        on_nth_request: Only on this generation request, counted from 1; on each when ``None``.
        probability: Of happening on a request that matches, drawn from the settings' seed.
        after_tokens: Tokens sent before it; an answer that is shorter stays whole.
        delay_s: See the kinds; ``None`` means for ever, or no delay where the kind goes on by itself.
    """

    kind: FaultKind
    on_nth_request: int | None = None
    probability: float = 1.0
    after_tokens: int = 0
    delay_s: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must lie in [0, 1], got {self.probability}")
        if self.after_tokens < 0 or (self.delay_s is not None and not self.delay_s >= 0):
            raise ValueError("after_tokens and delay_s must be >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class MockSettings:
    """A mock engine.

    One engine step lasts ``alpha_s + beta_s_per_token * prefill + sequence_s * n +
    gamma_s_per_kv_token * kv`` with the prompt tokens of the requests that join in
    it, the running requests, and the tokens these hold (prompt and output so far).

    Attributes:
        model_name: The only ``model`` that requests may name.
        version: What ``/version`` says.
        alpha_s: Fixed time of a step.
        beta_s_per_token: Per prompt token that is prefilled in the step.
        sequence_s: Per running request.
        gamma_s_per_kv_token: Per token held.
        noise: Standard deviation of the logarithm of a factor of mean 1 on each step; 0 for none.
        max_num_seqs: Running requests; more wait, first come, first served.
        context_tokens: Longest prompt plus output; more is refused with 400.
        kv_capacity_tokens: What ``kv_cache_usage_perc`` is a share of; never limits admission.
        tokenizer: What counts as a token.
        output_tokens: Length of an unscripted answer; ``max_tokens`` of the request when ``None``.
        answers: Last user text to answer.
        start_s: Everything is refused with 503 for so long after the start.
        seed: Of noise and fault probabilities.
        faults: The first that matches a request happens.
    """

    model_name: str = "mock"
    version: str = "mock-1"
    alpha_s: float = 0.001
    beta_s_per_token: float = 0.00001
    sequence_s: float = 0.0001
    gamma_s_per_kv_token: float = 0.0
    noise: float = 0.0
    max_num_seqs: int = 64
    context_tokens: int = 8192
    kv_capacity_tokens: int = 65536
    tokenizer: MockTokenizer = MockTokenizer.WORDS
    output_tokens: int | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 0.0
    seed: int = 0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        _require("alpha_s", self.alpha_s, least=0)
        _require("beta_s_per_token", self.beta_s_per_token, least=0)
        _require("sequence_s", self.sequence_s, least=0)
        _require("gamma_s_per_kv_token", self.gamma_s_per_kv_token, least=0)
        _require("noise", self.noise, least=0)
        _require("start_s", self.start_s, least=0)
        _require("max_num_seqs", self.max_num_seqs, least=1)
        _require("context_tokens", self.context_tokens, least=1)
        _require("kv_capacity_tokens", self.kv_capacity_tokens, least=1)
        _require("seed", self.seed, least=0)
        if self.output_tokens is not None:
            _require("output_tokens", self.output_tokens, least=1)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object]) -> "MockSettings":
        """Return settings from plain data, as a configuration file holds them.

        Raises:
            ConfigError: An unknown key, or a value of the wrong kind; names the key.
        """
        _require_known(mapping, {entry.name for entry in fields(cls)}, where="mock")
        faults = mapping.get("faults", ())
        if isinstance(faults, list | tuple):
            for fault in faults:
                _require_known(fault, {entry.name for entry in fields(Fault)}, where="mock.faults")
        try:
            return msgspec.convert(dict(mapping), cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"mock: {error}") from error


def read_mock_settings(path: Path) -> MockSettings:
    """Return the settings in a JSON file.

    Raises:
        ConfigError: No such file, no JSON object, or not settings.
    """
    try:
        document = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"expected a JSON object of mock settings: {error}", path=path) from error
    if not isinstance(document, dict):
        raise ConfigError("expected a JSON object of mock settings", path=path)
    return MockSettings.from_mapping(document)


def _require(name: str, value: float, *, least: float) -> None:
    if not value >= least:  # also refuses NaN
        raise ValueError(f"{name} must be >= {least}, got {value}")


def _require_known(mapping: object, known: set[str], *, where: str) -> None:
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected key: value pairs, got {mapping!r}")
    for key in mapping:
        if key not in known:
            nearest = get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ConfigError(f"{where}: unknown key {key!r}; did you mean {nearest[0]!r}?")
