"""What is wrong with a configuration, in a line each: Pydantic's errors made readable.

Knows the model's keys, so that a mistyped one is answered with the nearest valid one. Pure.
"""

import difflib
import re
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml import Node

from llmtier.core.errors import ConfigError, locate
from llmtier.store.config_model import Config
from llmtier.store.config_tree import find_key, find_node, line_of, source_of
from llmtier.store.documents import place_name


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """One thing that is wrong; ``line`` counts from 1."""

    line: int
    message: str


def find_problems(error: ValidationError, root: Node) -> list[Problem]:
    """Return every problem in the order of the file."""
    return sorted({_to_problem(details, root) for details in error.errors(include_url=False)})


def to_error(problems: Iterable[Problem], *, path: Path) -> ConfigError:
    """Return one error: the first problem located by the error itself, each further one on its own line."""
    first, *others = problems
    lines = [first.message, *(locate(problem.message, path=path, line=problem.line) for problem in others)]
    return ConfigError("\n".join(lines), path=path, line=first.line)


def duplicate_names(config: Config, root: Node) -> Iterator[Problem]:
    """Yield a problem for each tier name that stands twice."""
    seen: dict[str, int] = {}
    for index, tier in enumerate(config.tiers):
        line = line_of(find_node(root, ("tiers", index, "name"))[0])
        if tier.name in seen:
            where = f"first on line {seen[tier.name]}; give one of them another 'name'"
            yield Problem(line=line, message=f"tier name {tier.name!r} stands twice, {where}")
        seen.setdefault(tier.name, line)


def unknown_default(config: Config, root: Node) -> Iterator[Problem]:
    """Yield a problem when the gateway's default or safe tier is none of the tiers."""
    gateway = config.gateway
    names = [tier.name for tier in config.tiers]
    for key, wanted in (("default_tier", gateway.default_tier), ("safe_tier", gateway.safe_tier)):
        if wanted is not None and wanted not in names:
            line = line_of(find_node(root, ("gateway", key))[0])
            yield Problem(line=line, message=f"gateway.{key}: no tier {wanted!r}; {_suggest(wanted, names, 'name')}")


def faulty_rules(config: Config, root: Node) -> Iterator[Problem]:
    """Yield a problem for each rule that speaks of a tier which is none, or has another's name."""
    names = [tier.name for tier in config.tiers]
    seen: dict[str, int] = {}
    for index, rule in enumerate(config.routing.to_rules()):
        place = ("routing", "rules", index)
        line = line_of(find_node(root, place)[0])
        if rule.name in seen:
            where = f"first on line {seen[rule.name]}; give one of them another 'name'"
            yield Problem(line=line, message=f"rule name {rule.name!r} stands twice, {where}")
        seen.setdefault(rule.name, line)
        if rule.tier not in names:
            key = "pin" if rule.least_tier is None else "least_tier"
            advice = _suggest(rule.tier, names, "name")
            line = line_of(find_node(root, (*place, key))[0])
            yield Problem(line=line, message=f"{place_name((*place, key))}: no tier {rule.tier!r}; {advice}")


def _to_problem(details: ErrorDetails, root: Node) -> Problem:
    location = details["loc"]
    if details["type"] == "invalid_key" or location[-1:] == ("[key]",):
        return _faulty_key(details, tuple(step for step in location if step != "[key]"), root)
    node, is_found = find_node(root, location)
    match details["type"]:
        case "extra_forbidden":
            return _unknown_key(location, root)
        case "missing":
            return Problem(line=line_of(node), message=f"missing key {str(location[-1])!r}{_within(location[:-1])}")
        case "literal_error" if location == ("schema_version",):
            message = f"schema {source_of(node)}, this llmtier reads 1; run 'llmtier init' to write a new file"
            return Problem(line=line_of(node), message=message)
    message = _explain(details, source_of(node) if is_found else "")
    place = place_name(location)
    return Problem(line=line_of(node), message=f"{place}: {message}" if place else message)


def _unknown_key(location: tuple[int | str, ...], root: Node) -> Problem:
    *parent, key = location
    node = find_key(find_node(root, tuple(parent))[0], str(key))
    advice = _suggest(str(key), valid_keys(Config, tuple(parent)), "key")
    return Problem(line=line_of(node), message=f"unknown key {str(key)!r}{_within(tuple(parent))}; {advice}")


def _faulty_key(details: ErrorDetails, location: tuple[int | str, ...], root: Node) -> Problem:
    *parent, key = location
    node = find_key(find_node(root, tuple(parent))[0], str(key))
    what = f"key {key}{_within(tuple(parent))}"
    if details["type"] == "string_pattern_mismatch":
        return Problem(line=line_of(node), message=f"{what} must match {details['ctx']['pattern']}")
    return Problem(line=line_of(node), message=f"{what} is no text; put it in quotes")


def valid_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the model at ``location`` has."""
    current: Any = model
    for step in location:
        current = _step_into(current, step)
    return sorted(current.model_fields) if _is_model(current) else []


def _step_into(annotation: Any, step: int | str) -> Any:  # noqa: ANN401 - annotations have no common type
    if isinstance(step, int):
        return _unwrap(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return _unwrap(get_args(annotation)[1])
    return _unwrap(annotation.model_fields[step].annotation) if _is_model(annotation) else None


def _unwrap(annotation: Any) -> Any:  # noqa: ANN401 - as above
    """Strip ``Annotated`` and ``| None``."""
    if get_origin(annotation) in {Annotated, Union, types.UnionType}:
        return _unwrap(get_args(annotation)[0])
    return annotation


def _is_model(annotation: Any) -> bool:  # noqa: ANN401 - as above
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _explain(details: ErrorDetails, source: str) -> str:
    message = details["msg"]
    if details["type"] == "value_error":
        return message.removeprefix("Value error, ")
    got = f", got {source}" if source else ""
    text = f"{message[:1].lower()}{message[1:]}{got}".replace("input should be", "expected")
    if details["type"] == "string_type" and source:
        return f"{text}; put it in quotes"
    if details["type"] != "enum":
        return text
    valid = re.findall(r"'([^']*)'", message)
    nearest = difflib.get_close_matches(source.strip("'\""), valid, n=1)
    return f"{text}; nearest valid value: {nearest[0]!r}" if nearest else text


def _suggest(wrong: str, valid: list[str], noun: str) -> str:
    nearest = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.5)
    return f"nearest valid {noun}: {nearest[0]!r}" if nearest else f"valid {noun}s: {', '.join(valid)}"


def _within(location: tuple[int | str, ...]) -> str:
    return f" in {place_name(location)}" if location else ""
