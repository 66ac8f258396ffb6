"""Calibration recipes: the ``<name>.toml`` that says which texts a calibration set is made of.

Reads the recipe, and the file with the system prompt where it names one; writes nothing. Unknown keys and values that
cannot be meant are errors that name file, line and nearest key. The sources themselves are read elsewhere.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from llmtier.core.errors import ConfigError, InputFileError
from llmtier.store.calibration_paths import expand_home
from llmtier.store.config_errors import valid_keys
from llmtier.store.documents import place_name, shorten

GENERAL = "general"
GENERAL_SHARE = 0.25  # three quarters of the domain, one of general texts: the mix that published recipes use
SHARES_TOLERANCE = 1e-6
COLUMN = re.compile(r"\{([^{}\n]+)\}")
"""A column's name in a template."""

Location = tuple[int | str, ...]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FieldMapping(_Table):
    """Which columns of a source hold what: ``messages``, or ``text``, or ``user`` with ``assistant`` and ``system``."""

    messages: str | None = None
    text: str | None = None
    user: str | None = None
    assistant: str | None = None
    system: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(field is not None for field in (self.messages, self.text, self.user)) != 1:
            raise ValueError("give exactly one of 'messages', 'text' and 'user'")
        if self.user is None and (self.assistant is not None or self.system is not None):
            raise ValueError("'assistant' and 'system' go with 'user' only")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        named = (self.messages, self.text, self.user, self.assistant, self.system)
        return tuple(field for field in named if field is not None)


class Source(_Table):
    """One place that texts come from: a file or folder (``path``), or a Hugging Face dataset (``dataset``)."""

    path: str | None = Field(default=None, min_length=1)
    dataset: str | None = Field(default=None, min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    split: str = Field(default="train", min_length=1)
    config: str | None = Field(default=None, min_length=1)
    domain: Name | None = None
    limit: int | None = Field(default=None, ge=1)
    template: str | None = Field(default=None, min_length=1)
    fields: FieldMapping | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either 'path' (a file or folder) or 'dataset' (a Hugging Face id)")
        stray = {"revision", "split", "config"} & self.model_fields_set
        if self.path is not None and stray:
            raise ValueError(f"{min(stray)!r} goes with 'dataset' only")
        if self.template is not None and self.fields is not None:
            raise ValueError("give either 'template' or 'fields'")
        if self.template is not None and not template_columns(self.template):
            raise ValueError("'template' names no column; write {column} where its text belongs")
        return self

    @property
    def label(self) -> str:
        """What messages and the manifest call it."""
        return self.path or self.dataset or ""


class Recipe(_Table):
    """What a recipe says; ``docs/calibration.md`` explains each key."""

    name: Name
    description: str = ""
    licence: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    token_budget: int = Field(default=131_072, ge=1)
    sequence_tokens: int = Field(default=2048, ge=1)
    heldout_share: float = Field(default=0.2, ge=0, lt=1)
    heldout_token_budget: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=4, ge=1)
    near_duplicate_similarity: float = Field(default=0.8, gt=0, le=1)
    drop_findings: bool = False
    system_prompt: str | None = Field(default=None, min_length=1)
    system_prompt_file: str | None = Field(default=None, min_length=1)
    model: str | None = Field(default=None, min_length=1)
    shares: dict[Name, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    source: list[Source] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.system_prompt is not None and self.system_prompt_file is not None:
            raise ValueError("give either 'system_prompt' or 'system_prompt_file'")
        if not self.shares:
            if other := [domain for domain in self.domains if domain not in {self.name, GENERAL}]:
                raise ValueError(f"[shares] is needed: the sources are of domain {other[0]!r}, too")
            return self
        if lacking := [domain for domain in self.domains if domain not in self.shares]:
            raise ValueError(f"[shares] lacks the domain {lacking[0]!r} of a source")
        if idle := [domain for domain in self.shares if domain not in self.domains]:
            raise ValueError(f"[shares] names {idle[0]!r}, the domain of no source (they are: {_join(self.domains)})")
        total = sum(self.shares.values())
        if abs(total - 1) > SHARES_TOLERANCE:
            raise ValueError(f"[shares] must sum to 1, got {total:.6g}")
        return self

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains in the order in which the sources bring them."""
        return tuple(dict.fromkeys(self.domain_of(source) for source in self.source))

    def domain_of(self, source: Source) -> str:
        """Return the domain of a source: its own, or else the recipe's name."""
        return source.domain or self.name

    @property
    def share_by_domain(self) -> dict[str, float]:
        """Share of the token budget by domain; sums to 1."""
        if self.shares:
            return {domain: self.shares[domain] for domain in self.domains}
        if set(self.domains) == {self.name, GENERAL} and self.name != GENERAL:
            return {domain: GENERAL_SHARE if domain == GENERAL else 1 - GENERAL_SHARE for domain in self.domains}
        return dict.fromkeys(self.domains, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFile:
    """A recipe and where it lies.

    Attributes:
        path: The file; relative paths in it start from its folder.
        recipe: What it says.
        system_prompt: From the recipe or the file that it names; ``None`` when there is none.
    """

    path: Path
    recipe: Recipe
    system_prompt: str | None

    @property
    def sha256(self) -> str:
        """Digest of what the recipe says, the system prompt's text included; comments and layout do not count."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    @property
    def content(self) -> dict[str, Any]:
        """What the recipe says as plain data, defaults left out and the system prompt filled in."""
        said = self.recipe.model_dump(mode="json", exclude_unset=True, exclude={"system_prompt_file"})
        return said if self.system_prompt is None else {**said, "system_prompt": self.system_prompt}

    def resolve(self, text: str) -> Path:
        """Return the path that ``text`` means in this recipe.

        Raises:
            ConfigError: It starts from the home of a user that does not exist.
        """
        return self.path.parent / expand_home(text, path=self.path)


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe.

    Raises:
        ConfigError: It is absent, not TOML, or says something that cannot be meant; names line and nearest key.
        InputFileError: The file with the system prompt cannot be read or holds nothing.
    """
    text = _read(path)
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ConfigError(f"expected TOML: {exc}", path=path) from exc
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as exc:
        details = exc.errors(include_url=False)[0]
        raise ConfigError(_explain(details), path=path, line=line_of(text, details["loc"])) from exc
    return RecipeFile(path=path, recipe=recipe, system_prompt=_system_prompt(recipe, path))


def template_columns(template: str) -> tuple[str, ...]:
    """Return the columns that a template names in braces."""
    return tuple(dict.fromkeys(COLUMN.findall(template)))


def line_of(text: str, location: Location) -> int | None:
    """Return the line, from 1, of the key at ``location``, or else of the innermost table around it that stands there."""
    lines = _lines_by_location(text)
    prefixes = (location[:length] for length in range(len(location), 0, -1))
    return next((lines[prefix] for prefix in prefixes if prefix in lines), None)


def _lines_by_location(text: str) -> dict[Location, int]:
    """Return where each key and table begins. Knows one key a line, as people write recipes; not the whole of TOML."""
    lines: dict[Location, int] = {}
    n_tables: dict[str, int] = {}
    here: Location = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.match(r"\s*(\[\[?)\s*([\w.\"' -]+?)\s*\]", line):
            names = [name.strip(" \"'") for name in match[2].split(".")]
            if match[1] == "[[":
                n_tables[names[0]] = n_tables.get(names[0], 0) + 1
            index = (n_tables[names[0]] - 1,) if names[0] in n_tables else ()
            here = (names[0], *index, *names[1:])
            lines.setdefault(here, number)
        elif match := re.match(r"""\s*["']?([\w-]+)["']?\s*[.=]""", line):
            lines.setdefault((*here, match[1]), number)
    return lines


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as exc:
        raise ConfigError("no such recipe; docs/calibration.md shows how to write one", path=path) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"expected UTF-8: {exc.reason} at byte {exc.start + 1}", path=path) from exc
    except OSError as exc:
        raise ConfigError(f"cannot be read: {exc.strerror or exc}", path=path) from exc


def _system_prompt(recipe: Recipe, path: Path) -> str | None:
    if recipe.system_prompt_file is None:
        return recipe.system_prompt
    file = path.parent / expand_home(recipe.system_prompt_file, path=path)
    try:
        text = file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise InputFileError(f"the system prompt of {path.name} cannot be read: {exc}", path=file) from exc
    if not text:
        raise InputFileError(f"the system prompt of {path.name} is empty", path=file)
    return text


def _explain(details: ErrorDetails) -> str:
    *parent, key = details["loc"] or ("",)
    where = f" in {place_name(parent)}" if parent else ""
    match details["type"]:
        case "extra_forbidden":
            return f"unknown key {str(key)!r}{where}; {_suggest(str(key), valid_keys(Recipe, tuple(parent)))}"
        case "missing":
            return f"missing key {str(key)!r}{where}"
    message = details["msg"].removeprefix("Value error, ")
    got = "" if details["type"] == "value_error" else f", got {shorten(details['input'])}"
    place = place_name(details["loc"])
    return f"{place}: {message[:1].lower()}{message[1:]}{got}" if place else message


def _suggest(wrong: str, valid: list[str]) -> str:
    nearest = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.5)
    return f"nearest valid key: {nearest[0]!r}" if nearest else f"valid keys: {_join(valid)}"


def _join(names: Sequence[str]) -> str:
    return ", ".join(names)
