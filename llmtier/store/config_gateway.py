"""What ``llmtier.yaml`` may say of serving: SLO defaults and classes, and the ``gateway``."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from typing_extensions import override

from llmtier.core.requirement import Requirement
from llmtier.store.config_base import ConfigModel, ConfigPath
from llmtier.store.permissions import Permission

ClassName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


def _check_workers(value: object) -> object:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256
    if not is_count and value != "auto":
        raise ValueError("expected a number from 1 to 256, or auto for one a core")
    return value


Workers = Annotated[int | Literal["auto"], BeforeValidator(_check_workers)]


def _read_switch(value: object) -> object:
    """Take YAML's ``off`` for the word."""
    return "off" if value is False else value


Resume = Annotated[Literal["off", "text", "ids"], BeforeValidator(_read_switch)]


class SloConfig(ConfigModel):
    """Latency limits of requests that state none; ``None`` means no limit."""

    ttft_s: float | None = Field(default=None, gt=0)
    tpot_s: float | None = Field(default=None, gt=0)
    e2el_s: float | None = Field(default=None, gt=0)

    def to_requirement(self) -> Requirement:
        """Return the limits as a request's need."""
        return Requirement(ttft_s=self.ttft_s, tpot_s=self.tpot_s, e2el_s=self.e2el_s)


class SloClassConfig(SloConfig):
    """One of ``slo_classes``; what it leaves open falls to ``slo``.

    Attributes:
        accuracy: Lowest P(correct).
        max_usd: Highest price of a request.
    """

    accuracy: float | None = Field(default=None, ge=0, le=1)
    max_usd: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.to_requirement() == Requirement():
            raise ValueError(f"needs at least one limit: {', '.join(SloClassConfig.model_fields)}")
        return self

    @override
    def to_requirement(self) -> Requirement:
        """Return the limits as a request's need."""
        return Requirement(
            ttft_s=self.ttft_s, tpot_s=self.tpot_s, e2el_s=self.e2el_s, accuracy=self.accuracy, usd=self.max_usd
        )


class CapsConfig(ConfigModel):
    """What a request may hold at most; more is refused with 400 (a longer body with 413).

    Attributes:
        n: Answers to one prompt.
        max_tokens: Length of an answer; requests that leave it open get this one. ``None`` leaves it to the engine.
        tools: Tools.
        stops: Stop sequences.
        inputs: Prompts or texts in one request.
        schema_bytes: Length of a JSON schema or grammar.
        regex_chars: Length of a regular expression that the answer shall match.
        body_bytes: Length of the body.
    """

    n: int = Field(default=8, ge=1, le=128)
    max_tokens: int | None = Field(default=None, ge=1)
    tools: int = Field(default=128, ge=0)
    stops: int = Field(default=16, ge=0)
    inputs: int = Field(default=2048, ge=1)
    schema_bytes: int = Field(default=65_536, ge=0)
    regex_chars: int = Field(default=512, ge=0)
    body_bytes: int = Field(default=10_000_000, ge=1024)


class HedgeConfig(ConfigModel):
    """When a first byte that is late is asked for from a second tier as well; whichever speaks first serves.

    Attributes:
        budget_share: Such requests as a share of all.
        max_saved: How many of them a quiet time may save up.
        max_prompt_tokens: Longest prompt that is asked for twice.
        max_load_share: Share of its limit that a tier may have in flight to be asked as well.
    """

    budget_share: float = Field(default=0.05, ge=0, le=1)
    max_saved: float = Field(default=5.0, ge=1)
    max_prompt_tokens: int = Field(default=2048, ge=0)
    max_load_share: float = Field(default=0.5, ge=0, le=1)


class GatewayConfig(ConfigModel):
    """How ``serve`` listens, whom it answers, and what it keeps.

    Attributes:
        host: Address to listen on.
        port: 0 takes any free port.
        workers: Processes that share the port; ``auto`` is one a core.
        admin_port: Port of metrics and state beside the traffic's, on the loopback address; 0 takes a free one.
            ``None`` opens none where one process serves.
        keys_file: API keys, as ``llmtier keys add`` writes them; ``None`` asks for none.
        allow_anonymous: Whether other machines may ask without a key.
        caps: Bounds of a request.
        allow_fields: Body fields that clients may use though they can hurt an engine.
        priorities: SLO class to ``high``, ``normal`` or ``low``: who goes first where requests wait for a tier.
        when_full: What ``auto`` does where the cheapest tier that meets the need has no room: ``upgrade`` takes a dearer one
            that has, ``wait`` waits while the limits of time allow.
        sticky_s: How long after its last turn a conversation stays on its tier; 0 chooses anew each turn.
        resume: Whether a stream that broke is carried on: by token ids, so that nothing differs, by its text, or not.
        log_dir: Folder of the traffic log; ``None`` writes none.
        log_text: Whether the traffic log keeps messages.
        log_rotate_s: Longest time that one file of the traffic log is written.
        log_keep_bytes: Size that the log's files may have together, the oldest going first; ``None`` keeps all.
        default_tier: Where ``auto`` goes before a policy exists; ``None`` means the first served tier.
        safe_tier: Where a request goes when routing itself fails; ``None`` means the policy's reference tier, else the
            default tier.
        hedge: When a late first byte is asked for twice; ``None`` for never.
        request_timeout_s: How long an answer may take.
        first_byte_timeout_s: How long the first byte of a stream may take before another tier is asked.
        stall_timeout_s: How long an engine may send nothing within a stream.
    """

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65_535)
    workers: Workers = 1
    admin_port: int | None = Field(default=None, ge=0, le=65_535)
    keys_file: ConfigPath | None = None
    allow_anonymous: bool = False
    caps: CapsConfig = Field(default_factory=CapsConfig)
    allow_fields: tuple[Permission, ...] = ()
    priorities: dict[ClassName, Literal["high", "normal", "low"]] = Field(default_factory=dict)
    when_full: Literal["upgrade", "wait"] = "upgrade"
    sticky_s: float = Field(default=0.0, ge=0)
    resume: Resume = "off"
    log_dir: ConfigPath | None = None
    log_text: bool = False
    log_rotate_s: float = Field(default=300.0, gt=0)
    log_keep_bytes: int | None = Field(default=None, gt=0)
    default_tier: str | None = None
    safe_tier: str | None = None
    hedge: HedgeConfig | None = None
    request_timeout_s: float = Field(default=120.0, gt=0)
    first_byte_timeout_s: float = Field(default=60.0, gt=0)
    stall_timeout_s: float = Field(default=30.0, gt=0)
