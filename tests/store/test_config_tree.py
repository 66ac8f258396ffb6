"""Finding places in the YAML of a configuration."""

from pathlib import Path

from llmtier.store.config_tree import find_node, line_of, parse_tree


def test_place_that_is_not_there_is_answered_with_the_deepest_that_is():
    root, document = parse_tree("a: 1\nb:\n- x: y\n", path=Path("llmtier.yaml"), environ={})

    found = [find_node(root, location) for location in (("b", 0, "x"), ("b", 0, "z"), ("b", 5), ("a", "c"), ("c",))]

    assert {"a": 1, "b": [{"x": "y"}]} == document
    assert [(3, True), (3, False), (3, False), (1, False), (1, False)] == [(line_of(node), end) for node, end in found]
