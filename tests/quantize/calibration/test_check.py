"""What a check says of a set: the system prompt once, a held-out file as part of its set, a manifest that was edited."""

import json

import pytest

from llmtier.core.errors import InputFileError
from llmtier.quantize.calibration.check import check_set, describe_file
from tests.quantize.calibration.conftest import chat, sentence, write_rows

ADDRESS = "jane.roe@mail-example.org"


@pytest.fixture
def prompted(recipe):
    """Return the recipe with an address in its system prompt."""
    recipe.write_text(recipe.read_text().replace("You help.", f"Send mail to {ADDRESS}"))
    return recipe


def test_finding_of_the_system_prompt_is_said_once_and_of_no_row(prompted, make):
    make(prompted)

    result = check_set(prompted)

    assert 0 == result.n_findings
    (said,) = result.prompt_findings
    assert said.startswith("the system prompt holds what looks like email (")
    assert ADDRESS not in said
    assert 1 == sum("email" in warning for warning in result.warnings)


def test_rows_that_hold_one_themselves_are_still_counted(prompted, make):
    rows = [chat(f"{sentence(n, 20)} write to john.doe@mail-example.org") for n in range(200, 220)]
    write_rows(prompted.parent / "sources" / "general.jsonl", rows)
    make(prompted)

    result = check_set(prompted)

    assert 0 < result.n_findings <= 20
    assert 1 == len(result.prompt_findings)


def test_bare_file_has_no_prompt_to_set_aside(prompted, make, tmp_path):
    make(prompted)
    bare = tmp_path / "bare.jsonl"
    bare.write_bytes(prompted.with_name("support.jsonl").read_bytes())

    result = check_set(bare)

    assert (result.n_rows, ()) == (result.n_findings, result.prompt_findings)


def test_heldout_file_means_its_set(recipe, make):
    manifest = make(recipe)

    result = check_set(recipe.with_name("support.heldout.jsonl"))

    assert recipe.with_name("support.jsonl") == result.path
    assert () == result.problems
    assert manifest.heldout is not None
    assert (manifest.calibration.n_rows, manifest.heldout.n_rows) == (result.n_rows, result.n_heldout_rows)


def test_heldout_file_alone_is_a_file_like_any_other(tmp_path):
    alone = write_rows(tmp_path / "alone.heldout.jsonl", [chat(sentence(1, 9)), chat(sentence(2, 9))])

    result = check_set(alone)

    assert (alone, 2, None, ()) == (result.path, result.n_rows, result.n_heldout_rows, result.problems)


@pytest.mark.parametrize(
    ("key", "value"), [("near_duplicate_similarity", "high"), ("near_duplicate_similarity", 7), ("system_prompt", 7)]
)
def test_recipe_that_was_edited_in_the_manifest_is_an_input_error(recipe, make, key, value):
    make(recipe)
    path = recipe.with_name("support.manifest.json")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "recipe": {**manifest["recipe"], key: value}}))

    with pytest.raises(InputFileError, match=rf"support\.manifest\.json: recipe\.{key}"):
        check_set(recipe)


def test_name_that_no_file_system_takes_is_an_input_error(tmp_path):
    with pytest.raises(InputFileError, match="cannot be read: File name too long"):
        check_set(tmp_path / f"{'a' * 250}.jsonl")
    with pytest.raises(InputFileError, match="cannot be read: File name too long"):
        describe_file(tmp_path / f"{'a' * 250}.jsonl", n_first_rows=1)
