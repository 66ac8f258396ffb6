"""JSON documents and dataclasses: reading with the place in the message, versions, decoding.

Every versioned JSON artifact passes through ``read_document``; core dataclasses are rebuilt
from plain data by Pydantic, which core itself does not know. Writing is ``atomic.write_json``.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from llmtier.core.errors import InputFileError, SchemaVersionError

SCHEMA_VERSION = 1
"""The one version that every artifact has today."""

T = TypeVar("T")


def parse_json(text: str) -> Any:  # noqa: ANN401 - JSON is any of six types
    """Parse strict JSON: no NaN, no infinity, no lone surrogates.

    Raises:
        ValueError: Says what is wrong, and the column where known.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        raise ValueError(f"not JSON: {exc.msg} at column {exc.colno}") from exc
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if "\\u" in text:
        _refuse_surrogates(document)
    return document


def read_document(path: Path, *, artifact: str, advice: str) -> dict[str, Any]:
    """Read a versioned JSON object.

    Args:
        path: The file.
        artifact: What it should be, such as ``policy``.
        advice: What to do when it is of another version.

    Raises:
        InputFileError: It is absent, not UTF-8, not JSON or not an object.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc
    except ValueError as exc:
        raise InputFileError(f"expected a {artifact} as JSON in UTF-8: {exc}", path=path) from exc
    if not isinstance(document, dict):
        raise InputFileError(f"expected a {artifact}, a JSON object", path=path)
    check_schema_version(document.get("schema_version"), path=path, artifact=artifact, advice=advice)
    return document


def check_schema_version(found: object, *, path: Path, artifact: str, advice: str) -> None:
    """Refuse every version but ours.

    Raises:
        InputFileError: There is no version: llmtier did not write it.
        SchemaVersionError: There is another one.
    """
    if found is None:
        raise InputFileError(f"expected a {artifact} written by llmtier, found no schema_version; {advice}", path=path)
    if str(found) != str(SCHEMA_VERSION):
        raise SchemaVersionError(f"schema {found}, this llmtier reads {SCHEMA_VERSION}; {advice}", path=path)


class Decoder(Generic[T]):
    """Rebuilds one dataclass or Pydantic model from plain data; unknown keys are left aside."""

    def __init__(self, kind: type[T]) -> None:
        self._adapter = TypeAdapter(kind)

    def decode(self, document: object, *, path: Path, line: int | None = None) -> T:
        """Return the object.

        Raises:
            InputFileError: A key is absent or a value is of the wrong kind; names it.
        """
        try:
            return self._adapter.validate_python(document)
        except ValidationError as exc:
            raise InputFileError(describe(exc), path=path, line=line) from exc


def describe(error: ValidationError) -> str:
    """Say in one line what the first wrong value is and what was expected."""
    first = error.errors(include_url=False)[0]
    place = place_name(first["loc"])
    if first["type"] == "missing":
        return f"{place or 'the row'} is missing"
    said = first["msg"].removeprefix("Value error, ")
    message = said if first["type"] == "value_error" else f"{said[:1].lower()}{said[1:]}, got {shorten(first['input'])}"
    return f"{place}: {message}" if place else message


def place_name(location: Iterable[int | str]) -> str:
    """Write a path into a document as people do: ``tiers[0].scheme``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return text.removeprefix(".")


def shorten(value: object, *, limit: int = 60) -> str:
    """Return a value's literal, cut when long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; leave the key out or write null")


def _refuse_surrogates(document: object) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise ValueError("a \\u escape is half of a surrogate pair, which is no text") from exc
