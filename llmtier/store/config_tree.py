"""The YAML of a configuration as a tree of nodes that know their lines.

Composes the text, refuses a key that stands twice, puts environment variables in, and finds the
node at a path such as ``("tiers", 0, "scheme")``. What the keys mean is not known here.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from llmtier.core.errors import ConfigError

_REFERENCE = re.compile(r"\$\{([^}]*)\}?")


def parse_tree(text: str, *, path: Path, environ: Mapping[str, str]) -> tuple[MappingNode, Any]:
    """Return the tree of a document and its plain data, with ``${NAME}`` replaced.

    Raises:
        ConfigError: It is not YAML or no mapping, a key stands twice, or a variable is not set.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, MappingNode):
            raise ConfigError("expected a mapping with the key 'tiers'", path=path)
        check_duplicate_keys(root, path=path)
        expand_variables(root, path=path, environ=environ)
        return root, loader.construct_document(root)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else None
        raise ConfigError(f"not YAML: {exc.problem or exc.context}", path=path, line=line) from exc
    except (yaml.YAMLError, ValueError) as exc:  # a forbidden character; a date such as 2026-13-40
        raise ConfigError(f"not YAML: {' '.join(str(exc).split())}", path=path) from exc


def check_duplicate_keys(root: Node, *, path: Path) -> None:
    """Refuse a key that stands twice in one mapping.

    Raises:
        ConfigError: Names both lines.
    """
    for node in _walk(root, set()):
        seen: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, MappingNode) else ():
            name = str(key.value)
            if name in seen:
                message = f"key {name!r} stands twice, first on line {seen[name]}; remove one"
                raise ConfigError(message, path=path, line=line_of(key))
            seen[name] = line_of(key)


def expand_variables(root: Node, *, path: Path, environ: Mapping[str, str]) -> None:
    """Replace ``${NAME}`` in every scalar of the tree, in place.

    Raises:
        ConfigError: A reference is malformed, or its variable is not set; names the line.
    """
    for node in _walk(root, set()):
        if isinstance(node, ScalarNode) and "${" in node.value:
            node.value = _expand(node, path=path, environ=environ)


def find_node(root: Node, location: tuple[int | str, ...]) -> tuple[Node, bool]:
    """Return the deepest node on the way to ``location``, and whether that is its end."""
    node = root
    for step in location:
        child = _child(node, step)
        if child is None:
            return node, False
        node = child
    return node, True


def find_key(node: Node, name: str) -> Node:
    """Return the node of a mapping's key, else the mapping's own."""
    keys = [key for key, _ in node.value] if isinstance(node, MappingNode) else []
    return next((key for key in keys if key.value == name), node)


def line_of(node: Node) -> int:
    """Return the line a node begins on, counted from 1."""
    return int(node.start_mark.line) + 1


def source_of(node: Node) -> str:
    """Return the text of a scalar as the file has it, so that no expanded secret is shown; "" for others."""
    mark = node.start_mark
    if not isinstance(node, ScalarNode) or mark.buffer is None:
        return ""
    return str(mark.buffer[mark.pointer : node.end_mark.pointer]).strip()


def _walk(node: Node, seen: set[int]) -> Iterator[Node]:
    """Yield each node once, whatever aliases there are; an alias may even hold itself."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield node
    match node:
        case MappingNode():
            for key, value in node.value:
                yield from _walk(key, seen)
                yield from _walk(value, seen)
        case SequenceNode():
            for item in node.value:
                yield from _walk(item, seen)


def _child(node: Node, step: int | str) -> Node | None:
    if isinstance(node, SequenceNode) and isinstance(step, int):
        return node.value[step] if step < len(node.value) else None
    if isinstance(node, MappingNode):
        return next((value for key, value in node.value if key.value == str(step)), None)
    return None


def _expand(node: ScalarNode, *, path: Path, environ: Mapping[str, str]) -> str:
    def look_up(match: re.Match[str]) -> str:
        name = match[1]
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or not match[0].endswith("}"):
            raise ConfigError(f"expected ${{NAME}}, got {match[0]!r}", path=path, line=line_of(node))
        if name not in environ:
            raise ConfigError(f"environment variable {name} is not set; export it", path=path, line=line_of(node))
        return environ[name]

    return _REFERENCE.sub(look_up, node.value)
