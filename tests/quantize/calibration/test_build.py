"""The build as a whole, on small files: what is kept, how it is split, and that nothing half-done counts."""

import json
import random
import shutil
import sys
from dataclasses import replace

import pytest

from llmtier.core.errors import DiskError, InputFileError, MachineError, UsageError
from llmtier.quantize.calibration import build as build_module
from llmtier.quantize.calibration import duplicates, gather, tokens
from llmtier.quantize.calibration.planning import plan_build
from llmtier.quantize.calibration.steps import Phase
from llmtier.quantize.calibration.workfolder import work_folder
from llmtier.store.calibration import read_calibration
from llmtier.store.calibration_manifest import TokenMethod, paths_of, read_calibration_manifest
from llmtier.store.calibration_recipe import read_recipe
from tests.quantize.calibration.conftest import chat, read_rows, sentence, write_rows

COUNTER = """
import json, sys
job = json.loads(sys.argv[1])
rows = [json.loads(line) for line in open(job["rows"])]
print(json.dumps({"event": "counts", "counts": [10 * len(row["messages"][1]["content"].split()) for row in rows]}))
print(json.dumps({"event": "counted", "is_plain_text": True}))
"""


def texts(rows):
    return {row["messages"][1]["content"] for row in rows}


def test_set_meets_budget_and_shares_and_shares_nothing_with_the_heldout_split(recipe, make):
    recipe.write_text("heldout_token_budget = 100_000\n" + recipe.read_text())
    manifest = make(recipe)

    rows = read_rows(recipe.with_name("support.jsonl"))
    heldout = read_rows(recipe.with_name("support.heldout.jsonl"))
    longest = 200  # tokens of a row, by which a domain may exceed its share
    assert 1500 <= manifest.calibration.tokens_by_domain["support"] <= 1500 + longest
    assert 500 <= manifest.calibration.tokens_by_domain["general"] <= 500 + longest
    assert 20 == len(heldout)
    assert {"support": 12, "general": 8} == (manifest.heldout.rows_by_domain if manifest.heldout else {})
    assert not texts(rows) & texts(heldout)
    assert len(rows) == len(texts(rows)) == manifest.calibration.n_rows
    assert {"role": "system", "content": "You help."} == rows[0]["messages"][0]
    assert sum(stratum.n_rows for stratum in manifest.calibration.strata) == len(rows)
    assert not work_folder(paths_of(recipe.with_name("support.jsonl"))).exists()


def test_manifest_is_read_back_and_holds_the_facts(recipe, make):
    manifest = make(recipe)

    found = read_calibration_manifest(recipe.with_name("support.manifest.json"))
    assert manifest == found
    assert (100, 100) == (manifest.counts.n_rows, manifest.counts.n_kept)
    assert {"numpy", "rensa"} == manifest.versions.keys()
    assert TokenMethod.ESTIMATE == manifest.tokens.method
    assert ["sources/support.jsonl", "sources/general.jsonl"] == [source.label for source in manifest.sources]
    assert read_calibration(recipe).sha256 == manifest.calibration.sha256


def test_second_build_does_nothing_until_something_changes(recipe, make):
    first = make(recipe)
    assert first == make(recipe)

    recipe.write_text("# a comment\n" + recipe.read_text())
    assert plan_build(read_recipe(recipe)).is_current
    write_rows(recipe.parent / "sources" / "general.jsonl", [chat(sentence(5, 20))])
    assert not plan_build(read_recipe(recipe)).is_current
    assert ["general: only" in warning for warning in make(recipe).warnings].count(True) == 1


def test_order_of_a_source_and_number_of_processes_change_nothing(recipe, make, monkeypatch):
    make(recipe)
    before = recipe.with_name("support.jsonl").read_bytes()
    source = recipe.parent / "sources" / "support.jsonl"
    lines = source.read_text().splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    source.write_text("".join(lines))
    monkeypatch.setattr("llmtier.store.calibration_sources.CHUNK_ROWS", 7)

    make(recipe, n_processes=2)

    assert before == recipe.with_name("support.jsonl").read_bytes()


def test_seed_changes_the_draw(recipe, make):
    make(recipe)
    before = recipe.with_name("support.jsonl").read_bytes()
    recipe.write_text("seed = 1\n" + recipe.read_text())

    make(recipe)

    assert before != recipe.with_name("support.jsonl").read_bytes()


def test_duplicates_go_before_the_split(recipe, make):
    words = sentence(3, 60).split()
    near = [chat(" ".join([*words[:n], "changed", *words[n + 1 :]])) for n in (5, 25, 50)]
    exact = [chat(sentence(4, 14))] * 3
    write_rows(recipe.parent / "sources" / "general.jsonl", [chat(" ".join(words)), *near, *exact])

    counts = make(recipe).counts

    assert 3 == counts.n_exact_duplicates  # row 4 of support is one of them, too
    assert 3 == counts.n_near_duplicates


def test_short_rows_and_rows_without_text_are_counted(recipe, make):
    tool = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [1]}]}
    write_rows(recipe.parent / "sources" / "general.jsonl", [chat("Hi", "Yo"), tool, chat(sentence(99, 30))])

    manifest = make(recipe)

    assert (1, 1) == (manifest.sources[1].n_too_short, manifest.sources[1].n_without_text)
    assert any("1 of 3 rows hold no text" in warning for warning in manifest.warnings)


def test_too_few_documents_of_a_domain_are_said_and_never_repeated(recipe, make):
    recipe.write_text(recipe.read_text().replace("2000", "100_000"))

    manifest = make(recipe)

    assert 80 == manifest.calibration.n_rows
    assert any(warning.startswith("support: only ") for warning in manifest.warnings)
    assert any("the set is small (80 rows" in warning for warning in manifest.warnings)


def test_findings_are_told_masked_and_dropped_when_asked(recipe, make):
    secret = "jane.roe@mail-example.org"
    rows = [chat(f"{sentence(n, 20)} write to {secret}") for n in range(200, 220)]
    write_rows(recipe.parent / "sources" / "general.jsonl", rows)

    manifest = make(recipe)
    (finding,) = manifest.findings
    written = recipe.with_name("support.manifest.json").read_text()

    assert ("email", 20) == (finding.kind, finding.n_source_rows)
    assert 0 < finding.n_rows
    assert finding.places[0].startswith("general.jsonl:")
    assert secret not in written
    recipe.write_text("drop_findings = true\n" + recipe.read_text())
    manifest = make(recipe)
    assert 20 == manifest.counts.n_dropped_for_findings
    assert secret not in recipe.with_name("support.jsonl").read_text()
    assert 0 == manifest.findings[0].n_rows


def test_own_system_prompt_is_scanned_once(recipe, make):
    recipe.write_text(recipe.read_text().replace("You help.", "Send mail to jane.roe@mail-example.org"))

    manifest = make(recipe)

    assert () == manifest.findings
    assert any("the system prompt holds what looks like email" in warning for warning in manifest.warnings)


@pytest.mark.parametrize(
    ("row", "said"), [("{oops\n", "expected a JSON object"), ('{"foo": 1}\n', "name the columns in")]
)
def test_malformed_row_names_file_and_line_and_leaves_the_old_set(recipe, make, row, said):
    make(recipe)
    before = recipe.with_name("support.jsonl").read_bytes()
    with (recipe.parent / "sources" / "general.jsonl").open("a") as file:
        file.write(row)

    with pytest.raises(InputFileError, match=rf"general\.jsonl:41: .*{said}"):
        make(recipe)
    assert before == recipe.with_name("support.jsonl").read_bytes()


@pytest.mark.parametrize("rows", [[], [{"text": " "}], [{"text": "abc"}]])
def test_set_without_documents_is_an_error(recipe, make, rows):
    write_rows(recipe.parent / "sources" / "support.jsonl", rows)
    recipe.write_text('name = "support"\n[[source]]\npath = "sources/support.jsonl"\n')

    with pytest.raises(InputFileError, match=r"holds no rows|leaves no document"):
        make(recipe)


def test_interrupted_build_reads_finished_sources_no_more(recipe, make, monkeypatch):
    make(recipe)
    before = recipe.with_name("support.jsonl").read_bytes()
    make(recipe, output=recipe.parent / "undisturbed")
    recipe.write_text("seed = 5\n" + recipe.read_text())
    make(recipe, output=recipe.parent / "undisturbed")

    def stop(step):
        if step.phase is Phase.COMPARE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(recipe, on_step=stop)
    assert before == recipe.with_name("support.jsonl").read_bytes()
    monkeypatch.setattr(gather, "make_batch", None)
    steps = []
    make(recipe, on_step=steps.append)

    assert 2 == sum("of an earlier build" in step.label for step in steps)
    undisturbed = recipe.parent / "undisturbed" / "support.jsonl"
    assert undisturbed.read_bytes() == recipe.with_name("support.jsonl").read_bytes()


def test_half_written_spool_is_not_taken_for_a_finished_one(recipe, make):
    def stop(step):
        if step.phase is Phase.COMPARE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(recipe, on_step=stop)
    work = work_folder(paths_of(recipe.with_name("support.jsonl")))
    for lines in work.glob("spool-*.jsonl"):
        lines.write_bytes(lines.read_bytes()[:-10])
    steps = []

    assert 100 == make(recipe, on_step=steps.append).counts.n_kept
    assert not any("of an earlier build" in step.label for step in steps)


def test_stop_between_files_and_manifest_is_noticed_and_mended(recipe, make, monkeypatch):
    make(recipe)
    recipe.write_text("seed = 5\n" + recipe.read_text())

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "write_calibration_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            make(recipe)
    with pytest.raises(InputFileError, match="changed since it was built"):
        read_calibration(recipe)
    make(recipe)

    assert read_calibration(recipe).rows


def test_files_of_people_are_not_replaced_unasked(recipe, make):
    target = recipe.with_name("support.jsonl")
    target.write_text('{"text": "precious"}\n')
    with pytest.raises(UsageError, match=r"support\.jsonl was not made by this command; pass --force"):
        make(recipe)
    make(recipe, force=True)
    with target.open("a") as file:
        file.write('{"text": "added by hand"}\n')

    with pytest.raises(UsageError, match=r"support\.jsonl was changed since it was built"):
        make(recipe)


def test_source_is_never_replaced(recipe, make):
    recipe.write_text('name = "support"\n[[source]]\npath = "sources/support.jsonl"\n')

    with pytest.raises(UsageError, match="is a source and would be replaced"):
        make(recipe, output=recipe.parent / "sources", force=True)


def test_two_builds_at_once_are_refused(recipe, make):
    def build_again(step):
        if step.phase is Phase.COMPARE:
            make(recipe)

    with pytest.raises(UsageError, match="another build is under way"):
        make(recipe, on_step=build_again)


def test_full_disk_is_a_disk_error(recipe, make, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmtier.quantize.calibration.spool.np.save", refuse)

    with pytest.raises(DiskError, match="No space left on device; free some space"):
        make(recipe)


def test_tokens_are_counted_by_the_model_where_one_is_named(recipe, make, monkeypatch, tmp_path):
    worker = tmp_path / "counter.py"
    worker.write_text(COUNTER)
    monkeypatch.setattr(tokens, "COUNT_TOKENS", (str(worker),))
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_text("{}")

    manifest = make(recipe, model=str(model), python=lambda: sys.executable)

    rows = read_rows(recipe.with_name("support.jsonl"))
    n_tokens = sum(10 * len(row["messages"][1]["content"].split()) for row in rows)
    assert n_tokens == manifest.calibration.n_tokens
    assert 2000 <= n_tokens <= 2000 + 2 * 600
    assert (TokenMethod.EXACT, True) == (manifest.tokens.method, manifest.tokens.is_plain_text)
    assert any("has no chat template" in warning for warning in manifest.warnings)
    assert not plan_build(read_recipe(recipe)).is_current
    assert plan_build(read_recipe(recipe), model=str(model)).is_current
    (model / "tokenizer.json").write_text("{ }")
    assert not plan_build(read_recipe(recipe), model=str(model)).is_current


def test_counter_that_stops_early_is_an_error(recipe, make, monkeypatch, tmp_path):
    worker = tmp_path / "counter.py"
    worker.write_text('print(\'{"event": "counts", "counts": [1]}\')')
    monkeypatch.setattr(tokens, "COUNT_TOKENS", (str(worker),))

    with pytest.raises(MachineError, match="counting tokens ended after 1 of"):
        make(recipe, model="org/name", python=lambda: sys.executable)


def test_model_folder_without_tokenizer_is_an_error(recipe, make, tmp_path):
    with pytest.raises(InputFileError, match="holds no tokenizer"):
        make(recipe, model=str(tmp_path))


def test_heldout_split_is_no_larger_than_its_budget(recipe, make):
    recipe.write_text("heldout_token_budget = 400\n" + recipe.read_text())

    manifest = make(recipe)

    assert manifest.heldout is not None
    assert 400 <= manifest.heldout.n_tokens <= 400 + 2 * 200


def test_no_heldout_split_when_none_is_wanted(recipe, make):
    make(recipe)
    recipe.write_text("heldout_share = 0\n" + recipe.read_text())

    manifest = make(recipe)

    assert manifest.heldout is None
    assert not recipe.with_name("support.heldout.jsonl").exists()


def test_long_rows_count_up_to_the_sequence_length(recipe, make):
    recipe.write_text("sequence_tokens = 50\n" + recipe.read_text())

    manifest = make(recipe)

    assert manifest.calibration.n_tokens <= 50 * manifest.calibration.n_rows
    assert 0 < manifest.calibration.n_cut
    assert any("rows are longer than 50 tokens" in warning for warning in manifest.warnings)


def test_recipe_may_be_given_in_place_of_the_set(recipe, make):
    with pytest.raises(InputFileError, match="llmtier calibration build"):
        read_calibration(recipe)
    manifest = make(recipe)

    assert manifest.calibration.n_rows == len(read_calibration(recipe).rows)
    assert all(row.keys() == {"messages"} for row in read_calibration(recipe).rows)


def test_moved_set_needs_no_manifest_but_a_wrong_one_is_noticed(recipe, make, tmp_path):
    manifest = make(recipe)
    moved = tmp_path / "elsewhere" / "support.jsonl"
    moved.parent.mkdir()
    shutil.copy(recipe.with_name("support.jsonl"), moved)
    assert read_calibration(moved).rows
    other = json.loads(recipe.with_name("support.manifest.json").read_text())
    other["calibration"] = {**other["calibration"], "sha256": "0" * 64}
    (moved.parent / "support.manifest.json").write_text(json.dumps(other))

    with pytest.raises(InputFileError, match="changed since it was built"):
        read_calibration(moved)
    assert replace(manifest, heldout=None).splits == (manifest.calibration,)


@pytest.mark.parametrize("text", ["{", '{"schema_version": 99}'])
def test_broken_manifest_vouches_for_nothing_and_force_replaces_it(recipe, make, text):
    made = make(recipe)
    path = recipe.with_name(f"{made.name}.manifest.json")
    path.write_text(text)

    with pytest.raises(UsageError, match="--force"):
        make(recipe)
    again = make(recipe, force=True)

    assert made.calibration.sha256 == again.calibration.sha256
    assert text != path.read_text()


def test_rows_of_one_template_that_were_not_all_compared_are_said(recipe, make, monkeypatch):
    monkeypatch.setattr(duplicates, "COMPARED_AT_LEAST", 0)
    monkeypatch.setattr(duplicates, "COMPARED_PER_DOCUMENT", 0)
    frame = sentence(3, 60)
    write_rows(recipe.parent / "sources" / "general.jsonl", [chat(f"{frame} {n}") for n in range(20)])

    manifest = make(recipe)

    assert manifest.counts.n_uncompared > 0
    assert any("not all were compared" in warning for warning in manifest.warnings)
