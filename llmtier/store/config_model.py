"""What ``llmtier.yaml`` may say: every key, its type, default and range.

Pydantic models, frozen, unknown keys refused. ``config`` reads the file and says where an error
lies; nothing here touches the disk except to tell a model's folder from a hub id.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llmtier.core.device import Device, DeviceKind, parse_device
from llmtier.core.errors import UsageError
from llmtier.core.requirement import Requirement
from llmtier.core.rule import Condition, Rule
from llmtier.core.tier import Scheme, default_tier_name
from llmtier.store.config_base import ConfigModel, ConfigPath, expand_home, find_folder, resolve_path
from llmtier.store.config_gateway import ClassName, GatewayConfig, SloClassConfig, SloConfig
from llmtier.store.names import check_tier_name
from llmtier.store.patterns import compile_pattern


def _parse_device(value: object) -> object:
    return value if isinstance(value, Device) else parse_device(str(value))


_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
"""Headers whose values are secrets, which a configuration must not hold."""


def _check_header(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]+", name):
        raise ValueError(f"{name!r} is no name of a header")
    if name in _SECRET_HEADERS:
        raise ValueError(f"the value of {name!r} is a secret; match the bearer token with 'key_sha256'")
    if name.startswith("x-llmtier-"):
        raise ValueError(f"{name!r} states a need, which the gateway reads itself; match a label with 'domain'")


class EngineKind(StrEnum):
    """What serves a tier: an engine that llmtier starts, a URL, or the scripted mock."""

    VLLM = "vllm"
    OPENAI = "openai"
    MOCK = "mock"


def _drop_version(url: str) -> str:
    """Accept the usual form with ``/v1`` at the end: every caller adds the path it needs."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


Url = Annotated[str, StringConstraints(pattern=r"^https?://\S+$"), AfterValidator(_drop_version)]


class EngineConfig(ConfigModel):
    """The ``engine`` of a tier.

    Attributes:
        kind: Who serves.
        url: Base URL without ``/v1``; for ``openai`` only, which needs it or ``urls``.
        urls: Base URLs of several engines that serve the same model with the same settings; ``url`` is left out then.
        python: An interpreter that has vLLM, in place of the isolated environment.
        api_key_env: Environment variable that holds the key for ``url``.
        model_name: What the server calls the model; ``None`` means the tier's name.
        args: Arguments of vLLM by name, passed on unchanged.
        env: Environment variables of the engine's process.
        start_timeout_s: How long it may take to be ready.
        mock: Settings of the mock engine; ``None`` means its defaults.
    """

    kind: EngineKind = EngineKind.VLLM
    url: Url | None = None
    urls: tuple[Url, ...] = Field(default=(), max_length=64)
    python: ConfigPath | None = None
    api_key_env: str | None = Field(default=None, min_length=1)
    model_name: str | None = Field(default=None, min_length=1)
    args: dict[str, JsonValue] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    start_timeout_s: float = Field(default=300.0, gt=0)
    mock: dict[str, JsonValue] | None = None

    @field_validator("env", mode="before")
    @classmethod
    def _numbers_to_text(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: str(item) if type(item) in {int, float} else item for key, item in value.items()}

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if (self.url is not None or bool(self.urls)) != (self.kind is EngineKind.OPENAI):
            raise ValueError("'url' belongs to kind 'openai', which needs it or 'urls', and to no other kind")
        if self.url is not None and self.urls:
            raise ValueError("give 'url' or 'urls', not both")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("'urls' names one engine twice")
        if self.mock is not None and self.kind is not EngineKind.MOCK:
            raise ValueError("'mock' belongs to kind 'mock' only")
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """The URLs, be it one or several; empty for engines without."""
        return self.urls if self.url is None else (self.url,)


class PriceConfig(ConfigModel):
    """The ``price`` of a tier's device; tiers that are profiled together on one device split it by busy time."""

    usd_per_hour: float = Field(ge=0)


class TierConfig(ConfigModel):
    """One of ``tiers``.

    Attributes:
        name: Unique; ``model@scheme`` when the file gives none.
        model: Absolute path of a checkpoint, or a hub id.
        scheme: How the weights are stored.
        device: Where the engine runs.
        engine: What serves it.
        price: ``None`` when unknown.
    """

    model: str = Field(min_length=1)
    scheme: Scheme
    name: Annotated[str, AfterValidator(check_tier_name)] = "unnamed"
    device: Annotated[Device, BeforeValidator(_parse_device)] = Device(kind=DeviceKind.AUTO)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    price: PriceConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: object) -> object:
        if not isinstance(data, dict) or data.get("name") is not None:
            return data
        model, scheme = data.get("model"), data.get("scheme")
        if not isinstance(model, str) or scheme not in list(Scheme):
            return {key: value for key, value in data.items() if key != "name"}  # the other key's error comes first
        return {**data, "name": default_tier_name(model, Scheme(scheme))}

    @field_validator("model")
    @classmethod
    def _resolve_model(cls, model: str, info: ValidationInfo) -> str:
        """Make a path absolute; what does not look like one is a hub id."""
        path = expand_home(Path(model))
        looks_local = path.is_absolute() or model.startswith(".") or (find_folder(info) / path.parts[0]).is_dir()
        return str(resolve_path(path, info)) if looks_local else model

    @property
    def model_path(self) -> Path | None:
        """Return the checkpoint's folder; ``None`` for a hub id."""
        path = Path(self.model)
        return path if path.is_absolute() else None

    @property
    def checkpoint_path(self) -> Path | None:
        """Return the folder that a launched engine loads; ``None`` for a hub id and for tiers that others run."""
        return self.model_path if self.engine.kind is EngineKind.VLLM else None

    @property
    def served_name(self) -> str:
        """Return what the server calls the model."""
        return self.engine.model_name or self.name


class LoadConfig(ConfigModel):
    """How ``profile`` loads a tier.

    Attributes:
        concurrency: Requests in flight at each load point, ascending.
        requests_per_point: Requests measured at each.
        warmup_requests: Requests sent first and not measured.
        max_tokens: Longest answer to ask for.
        max_input_tokens: Longest prompt of the latency model's own requests.
        shapes: Load shapes to report in place of closed loops, such as ``poisson:2.5``.
        precision: Largest relative half width of the mean E2EL's 95 % interval; points are repeated until it is reached.
        budget_s: Longest repeat of a point for that.
        latency_model: Whether a latency model is fitted; without one the router interpolates between points.
    """

    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 4, 16), min_length=1)
    requests_per_point: int = Field(default=128, ge=1)
    warmup_requests: int = Field(default=16, ge=0)
    max_tokens: int = Field(default=64, ge=1)
    max_input_tokens: int = Field(default=512, ge=1)
    shapes: tuple[str, ...] = ()
    precision: float | None = Field(default=None, gt=0, lt=1)
    budget_s: float = Field(default=600.0, gt=0)
    latency_model: bool = True

    @field_validator("concurrency")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value != tuple(sorted(set(value))):
            raise ValueError(f"load points must ascend without repetition, got {list(value)}")
        return value


class ConditionConfig(ConfigModel):
    """The ``when`` of a rule: everything that is given must hold of a request.

    Attributes:
        pattern: Searched for in the text that scorers read; linear-time syntax, see ``store.patterns``.
        domain: The request's label, exactly.
        header: Request headers, whatever the case of their names, and their exact values.
        key_sha256: Of the bearer token, in hex.
        min_chars: Fewest characters of all messages together.
    """

    pattern: str | None = None
    domain: str | None = Field(default=None, min_length=1)
    header: dict[str, str] = Field(default_factory=dict)
    key_sha256: str | None = None
    min_chars: int | None = Field(default=None, ge=0)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            compile_pattern(pattern)
        return pattern

    @field_validator("header")
    @classmethod
    def _readable(cls, header: dict[str, str]) -> dict[str, str]:
        lowered = {name.lower(): value for name, value in header.items()}
        if len(lowered) != len(header):
            raise ValueError(f"a header is named twice: {', '.join(header)}")
        for name in lowered:
            _check_header(name)
        return lowered

    @field_validator("key_sha256")
    @classmethod
    def _is_digest(cls, digest: str | None) -> str | None:
        # The value is not shown: it may be the key itself, put here by mistake.
        if digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise ValueError('expected the key\'s sha256, 64 hex digits: printf %s "$KEY" | sha256sum')
        return None if digest is None else digest.lower()

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if self.to_condition().is_empty:
            raise ValueError(f"needs at least one condition: {', '.join(ConditionConfig.model_fields)}")
        return self

    def to_condition(self) -> Condition:
        """Return it as plain data."""
        return Condition(
            pattern=self.pattern,
            domain=self.domain,
            headers=tuple(self.header.items()),
            key_sha256=self.key_sha256,
            min_characters=self.min_chars,
        )


class RuleConfig(ConfigModel):
    """One of ``routing.rules``; exactly one of the two tiers is given.

    Attributes:
        name: Shown in logs and in the header ``x-llmtier-rule``; ``rule-1`` and so on when the file gives none.
        when: Which requests it is for.
        least_tier: Tiers cheaper than this one may not be chosen.
        pin: The tier that serves.
    """

    name: str | None = Field(default=None, pattern=r"^[!-~]([ -~]{0,98}[!-~])?$")
    when: ConditionConfig
    least_tier: str | None = None
    pin: str | None = None

    @model_validator(mode="after")
    def _says_where(self) -> Self:
        if (self.least_tier is None) == (self.pin is None):
            raise ValueError("a rule needs either 'least_tier' or 'pin', and not both")
        return self

    def to_rule(self, index: int) -> Rule:
        """Return it as plain data; ``index`` is its place in the file, from 0."""
        name = self.name or f"rule-{index + 1}"
        return Rule(name=name, when=self.when.to_condition(), least_tier=self.least_tier, pin=self.pin)


class RoutingConfig(ConfigModel):
    """What the user demands of routing, and what scorers that read more than the text are given.

    Attributes:
        rules: The first that holds wins, before any scorer is asked.
        embedder: Folder that ``llmtier embedder export`` wrote; for ``semantic`` and ``learned+semantic``.
        rater: Tier that rates how hard a prompt is; for ``self_assess`` and ``hybrid``.
        rating_band: How far a prompt's gain may lie from the policy's gap to be rated; ``None`` rates every one.
        rating_timeout_s: Longest wait for a rating.
    """

    rules: tuple[RuleConfig, ...] = ()
    embedder: ConfigPath | None = None
    rater: str | None = None
    rating_band: float | None = Field(default=None, ge=0, le=1)
    rating_timeout_s: float = Field(default=2.0, gt=0)

    def to_rules(self) -> tuple[Rule, ...]:
        """Return the rules as plain data, in the file's order."""
        return tuple(rule.to_rule(index) for index, rule in enumerate(self.rules))


class Config(ConfigModel):
    """The whole of ``llmtier.yaml``; every path is absolute.

    Attributes:
        profiles: Folder that ``profile`` writes and the router reads.
        policy: What ``serve`` obeys; ``None`` before there is one.
        evaluation: Prompts that ``profile`` scores tiers on.
        tiers: In the file's order; never empty.
        slo: Limits of requests that state none.
        slo_classes: Limits by a name that requests and API keys can give.
    """

    schema_version: Literal[1] = 1
    profiles: Annotated[ConfigPath, Field(validate_default=True)] = Path("profiles")
    policy: ConfigPath | None = None
    evaluation: ConfigPath | None = None
    tiers: list[TierConfig] = Field(min_length=1)
    slo: SloConfig = Field(default_factory=SloConfig)
    slo_classes: dict[ClassName, SloClassConfig] = Field(default_factory=dict)
    load: LoadConfig = Field(default_factory=LoadConfig)
    routing: RoutingConfig = Field(default_factory=RoutingConfig)
    gateway: GatewayConfig = Field(default_factory=GatewayConfig)

    @model_validator(mode="after")
    def _knows_its_classes(self) -> Self:
        unknown = self.gateway.priorities.keys() - self.slo_classes.keys()
        if unknown:
            raise ValueError(f"gateway.priorities names {', '.join(sorted(unknown))}, which slo_classes does not have")
        return self

    def to_classes(self) -> dict[str, Requirement]:
        """Return the SLO classes as requests' needs."""
        return {name: limits.to_requirement() for name, limits in self.slo_classes.items()}

    def tier(self, name: str) -> TierConfig:
        """Return the tier of that name.

        Raises:
            UsageError: There is none; names those there are.
        """
        by_name = {tier.name: tier for tier in self.tiers}
        if name not in by_name:
            raise UsageError(f"no tier {name!r} in the configuration; there are {', '.join(by_name)}")
        return by_name[name]
