"""Recipes: defaults, what cannot be meant, and the line that an error names."""

import pytest

from llmtier.core.errors import ConfigError, InputFileError
from llmtier.store.calibration_recipe import read_recipe

LEAST = 'name = "support"\n\n[[source]]\npath = "a.jsonl"\n'


def write(folder, text):
    path = folder / "support.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_least_recipe_has_defaults(tmp_path):
    recipe = read_recipe(write(tmp_path, LEAST)).recipe

    assert (131_072, 2048, 0.2, 4, 0.8, 0) == (
        recipe.token_budget,
        recipe.sequence_tokens,
        recipe.heldout_share,
        recipe.min_tokens,
        recipe.near_duplicate_similarity,
        recipe.seed,
    )
    assert {"support": 1.0} == recipe.share_by_domain


def test_general_texts_are_a_quarter_unless_said_otherwise(tmp_path):
    text = LEAST + '[[source]]\npath = "b.jsonl"\ndomain = "general"\n'

    assert {"support": 0.75, "general": 0.25} == read_recipe(write(tmp_path, text)).recipe.share_by_domain


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("sede = 1\n" + LEAST, 1, "unknown key 'sede'; nearest valid key: 'seed'"),
        (LEAST + 'domian = "x"\n', 5, r"unknown key 'domian' in source\[0\]; nearest valid key: 'domain'"),
        (
            LEAST + '[[source]]\npath = "b"\npaht = 1\n',
            7,
            r"unknown key 'paht' in source\[1\]; nearest valid key: 'path'",
        ),
        (
            LEAST + '[source.fields]\ntxt = "b"\n',
            6,
            r"unknown key 'txt' in source\[0\].fields; nearest valid key: 'text'",
        ),
        (LEAST + '[source.fields]\nassistant = "b"\n', 5, r"source\[0\].fields: give exactly one of"),
        (LEAST + 'dataset = "org/name"\n', 3, r"source\[0\]: give either 'path'"),
        (LEAST + 'split = "test"\n', 3, "'split' goes with 'dataset' only"),
        (LEAST + 'template = "no column"\n', 3, "'template' names no column"),
        (LEAST.replace('name = "support"', "seed = 1"), None, "missing key 'name'"),
        (LEAST.replace("support", "a/b"), 1, "name: .*got 'a/b'"),
        ("heldout_share = 1.0\n" + LEAST, 1, "heldout_share: .*less than 1, got 1.0"),
        ("token_budget = 0\n" + LEAST, 1, "token_budget: .*got 0"),
        (LEAST + 'domain = "other"\n', None, r"\[shares\] is needed.*'other'"),
        (LEAST + "[shares]\nsupport = 0.5\n", None, r"\[shares\] must sum to 1, got 0.5"),
        (LEAST + "[shares]\nsupport = 0.5\nmath = 0.5\n", None, r"\[shares\] names 'math', the domain of no source"),
        (LEAST + "[shares]\nmath = 1\n", None, r"\[shares\] lacks the domain 'support'"),
        ('name = "a"\n', None, "missing key 'source'"),
        ("name = \n", None, "expected TOML: .*line 1"),
    ],
)
def test_what_cannot_be_meant_names_line_and_key(tmp_path, text, line, said):
    place = "support.toml: " if line is None else f"support.toml:{line}: "

    with pytest.raises(ConfigError, match=f"{place}.*{said}|{place}{said}"):
        read_recipe(write(tmp_path, text))


def test_absent_recipe_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such recipe"):
        read_recipe(tmp_path / "no.toml")


def test_digest_is_of_what_is_said_not_how(tmp_path):
    plain = read_recipe(write(tmp_path, LEAST)).sha256
    commented = read_recipe(write(tmp_path, "# a comment\n" + LEAST)).sha256
    other = read_recipe(write(tmp_path, "seed = 1\n" + LEAST)).sha256

    assert plain == commented
    assert plain != other


def test_system_prompt_comes_from_its_file_and_counts_in_the_digest(tmp_path):
    path = write(tmp_path, 'system_prompt_file = "prompt.txt"\n' + LEAST)
    (tmp_path / "prompt.txt").write_text("You help.\n")
    first = read_recipe(path)
    (tmp_path / "prompt.txt").write_text("You help a lot.\n")

    assert "You help." == first.system_prompt
    assert first.sha256 != read_recipe(path).sha256
    (tmp_path / "prompt.txt").write_text(" \n")
    with pytest.raises(InputFileError, match=r"prompt\.txt: the system prompt of support\.toml is empty"):
        read_recipe(path)
    (tmp_path / "prompt.txt").unlink()
    with pytest.raises(InputFileError, match=r"prompt\.txt: the system prompt of support\.toml cannot be read"):
        read_recipe(path)
