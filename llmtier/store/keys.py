"""The keys file: who may ask the gateway, known by the sha256 of their key alone.

Reads JSON or YAML, writes JSON, atomically and for the owner's eyes (mode 0600). A key itself is made here,
shown once by the caller, and lies in no file. What a key allows is enforced by ``serve``.

    {"schema_version": 1, "keys": [{"name": "alice", "sha256": "…", "class": "chat", "tiers": ["llama@awq"]}]}
"""

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llmtier.core.errors import InputFileError, UsageError
from llmtier.store.atomic import beside, disk_errors, write_all

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}\z")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}\z")]

_N_SECRET_BYTES = 32
_PREFIX = "sk-llmtier-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One caller.

    Attributes:
        name: Unique in its file.
        digest: sha256 of the key, 32 bytes.
        created: Day on which the key was made; ``None`` when unknown.
        slo_class: SLO class of requests that name none.
        classes: SLO classes that requests may name; ``None`` means all.
        domain: Label of requests that state none.
        accuracy: Floor under whatever a request asks for, in [0, 1].
        max_usd: Ceiling over whatever a request asks for.
        tiers: Tiers that may serve; ``None`` means all.
    """

    name: str
    digest: bytes
    created: date | None = None
    slo_class: str | None = None
    classes: frozenset[str] | None = None
    domain: str | None = None
    accuracy: float | None = None
    max_usd: float | None = None
    tiers: frozenset[str] | None = None

    @property
    def states_needs(self) -> bool:
        """Whether a request with this key has needs though it states none."""
        stated = (self.slo_class, self.domain, self.accuracy, self.max_usd)
        return stated != (None, None, None, None)

    def may_use(self, tier: str) -> bool:
        """Return whether ``tier`` may serve this caller."""
        return self.tiers is None or tier in self.tiers

    def may_use_class(self, name: str) -> bool:
        """Return whether a request may name that SLO class; the key's own is always allowed."""
        return self.classes is None or name in self.classes or name == self.slo_class


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    name: Name
    sha256: str
    created: date | None = None
    slo_class: Word | None = Field(default=None, alias="class")
    classes: tuple[Word, ...] | None = None
    domain: Word | None = None
    accuracy: float | None = Field(default=None, ge=0, le=1)
    max_usd: float | None = Field(default=None, ge=0)
    tiers: tuple[str, ...] | None = Field(default=None, min_length=1)

    @field_validator("sha256")
    @classmethod
    def _is_digest(cls, digest: str) -> str:
        # The value is not shown: it may be the key itself, put here by mistake.
        if len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef"):
            raise ValueError("expected the key's sha256, 64 hex digits; 'llmtier keys add' makes an entry")
        return digest.lower()

    def to_key(self) -> ApiKey:
        return ApiKey(
            name=self.name,
            digest=bytes.fromhex(self.sha256),
            created=self.created,
            slo_class=self.slo_class,
            classes=None if self.classes is None else frozenset(self.classes),
            domain=self.domain,
            accuracy=self.accuracy,
            max_usd=self.max_usd,
            tiers=None if self.tiers is None else frozenset(self.tiers),
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    keys: tuple[_Entry, ...] = ()


def make_key() -> str:
    """Return a new key of 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(_N_SECRET_BYTES)


def digest_key(key: str | bytes) -> bytes:
    """Return what is kept of a key: its sha256."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a file, in its order.

    Raises:
        InputFileError: It is absent, neither JSON nor YAML, or an entry is wrong or stands twice.
    """
    try:
        keys = tuple(entry.to_key() for entry in _File.model_validate(_parse(path)).keys)
    except ValidationError as exc:
        raise InputFileError(_explain(exc), path=path) from exc
    for what, values in (("name", [key.name for key in keys]), ("sha256", [key.digest.hex()[:16] for key in keys])):
        value, n_times = Counter(values).most_common(1)[0] if values else ("", 0)
        if n_times > 1:
            raise InputFileError(f"{what} {value!r} stands twice; take one of the two away", path=path)
    return keys


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Put ``keys`` in the place of the file, readable by its owner only.

    Raises:
        UsageError: A key has a name or a value that the file does not take.
        DiskError: The file system refused; the old file is as it was.
    """
    document = {"schema_version": 1, "keys": [to_entry(key) for key in keys]}
    try:
        _File.model_validate(document)
    except ValidationError as exc:
        raise UsageError(f"cannot write {path}: {_explain(exc)}") from exc
    data = (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
    with disk_errors(path):
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(target, "tmp")
        try:
            _write_private(temporary, data)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_entry(key: ApiKey) -> dict[str, Any]:
    """Return a key as its entry in the file."""
    entry = {
        "name": key.name,
        "sha256": key.digest.hex(),
        "created": None if key.created is None else key.created.isoformat(),
        "class": key.slo_class,
        "classes": None if key.classes is None else sorted(key.classes),
        "domain": key.domain,
        "accuracy": key.accuracy,
        "max_usd": key.max_usd,
        "tiers": None if key.tiers is None else sorted(key.tiers),
    }
    return {name: value for name, value in entry.items() if value is not None}


def _parse(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as exc:
        raise InputFileError("no such keys file; 'llmtier keys add NAME' makes one", path=path) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise InputFileError(f"cannot be read: {exc}", path=path) from exc
    try:
        return json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text) or {}
    except (ValueError, RecursionError, yaml.YAMLError) as exc:
        raise InputFileError(f"neither JSON nor YAML: {' '.join(str(exc).split())}", path=path) from exc


def _explain(error: ValidationError) -> str:
    """Name the first wrong place, without its value: that may be a secret."""
    details = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(step) for step in details["loc"])
    message = details["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
