"""``llmtier calibration``: what people see, and how it ends."""

import json

import pytest

RECIPE = """\
name = "support"
token_budget = 300
[[source]]
path = "rows.jsonl"
"""


def row(number, more=""):
    return json.dumps({"prompt": f"question {number} about {number * 7} and {number * number}{more}"}) + "\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMTIER_HOME", str(tmp_path / "home"))
    (tmp_path / "support.toml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text("".join(map(row, range(100))))
    return tmp_path


def check(ended, code, *words):
    assert code == ended.code, ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err, ended.err


def test_build_show_check(llmtier, folder):
    built = llmtier("calibration", "build", "support.toml")
    check(built, 0, "read rows.jsonl: 100", "the set is small")
    assert "support.jsonl: " in built.out
    assert "support.heldout.jsonl: 20 rows" in built.out

    check(llmtier("calibration", "build", "support.toml"), 0, "up to date")
    shown = llmtier("calibration", "show", "support.toml", "--rows", "1")
    assert "made of 100 rows" in shown.out
    assert "user: question" in shown.out
    checked = llmtier("calibration", "check", "support.jsonl")
    check(checked, 0)
    assert "20 held-out rows; matches its manifest" in checked.out


def test_json_is_one_document(llmtier, folder):
    plan = json.loads(llmtier("calibration", "build", "support.toml", "--dry-run", "--json").out)
    assert (True, False) == (plan["is_plan"], plan["is_current"])
    assert not (folder / "support.jsonl").exists()
    built = json.loads(llmtier("calibration", "build", "support.toml", "--json").out)
    shown = json.loads(llmtier("calibration", "show", "support.toml", "--json").out)
    checked = json.loads(llmtier("calibration", "check", "support.toml", "--json").out)

    assert 1 == built["schema_version"] == shown["schema_version"] == checked["schema_version"]
    assert built["manifest"]["calibration"]["n_rows"] == shown["n_rows"] == checked["rows"]
    assert built["manifest"] == shown["made"]["manifest"]
    assert (True, [], 20) == (checked["is_fine"], checked["problems"], checked["heldout_rows"])


def test_dry_run_says_what_would_be_done(llmtier, folder):
    out = llmtier("calibration", "build", "support.toml", "--dry-run").out

    assert "would read rows.jsonl as support" in out
    assert "would choose 300 tokens: 100% support; counted by bytes / 4" in out
    assert "would write support.heldout.jsonl" in out


def test_output_folder(llmtier, folder):
    llmtier("calibration", "build", "support.toml", "--output", "sets/here")

    assert (folder / "sets" / "here" / "support.manifest.json").exists()
    assert not (folder / "support.jsonl").exists()


def test_changed_set_is_no_match(llmtier, folder):
    llmtier("calibration", "build", "support.toml")
    with (folder / "support.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')

    check(llmtier("calibration", "check", "support.toml"), 3, "support.jsonl: changed since it was built")
    check(llmtier("calibration", "build", "support.toml"), 2, "was changed since it was built; pass --force")
    check(llmtier("calibration", "build", "support.toml", "--force"), 0)
    check(llmtier("calibration", "check", "support.toml"), 0)


def test_bare_file_can_be_shown_and_checked(llmtier, folder):
    (folder / "bare.jsonl").write_text(
        '{"text": "one two three four"}\n{"messages": [{"role": "user", "content": "Hi"}]}\n'
    )

    shown = llmtier("calibration", "show", "bare.jsonl")
    check(shown, 0, "no manifest beside it")
    assert "text: one two three four" in shown.out
    assert "has no manifest to hold it against" in llmtier("calibration", "check", "bare.jsonl").out


def test_heldout_rows_that_were_calibrated_on_are_a_no(llmtier, folder):
    rows = "".join('{"text": "the very same words in both of the files"}\n' for _ in range(1))
    (folder / "bare.jsonl").write_text(rows)
    (folder / "bare.heldout.jsonl").write_text(rows)

    check(llmtier("calibration", "check", "bare.jsonl"), 5, "1 held-out rows are (nearly) equal to rows of bare.jsonl")


def test_findings_warn_or_fail(llmtier, folder):
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(row(number, " write to jane.roe@mail-example.org") for number in range(30))

    ended = llmtier("calibration", "build", "support.toml")
    check(ended, 0, "rows hold what looks like email (rows.jsonl:")
    assert "jane.roe@" not in ended.err + ended.out
    check(llmtier("calibration", "build", "support.toml", "--fail-on-findings"), 5, "secrets or personal data")
    check(llmtier("calibration", "check", "support.toml"), 0, "email")
    check(llmtier("calibration", "check", "support.toml", "--fail-on-findings"), 5, "secrets or personal data")


def test_finding_in_the_system_prompt_fails_build_and_check_alike(llmtier, folder):
    (folder / "support.toml").write_text('system_prompt = "Write to jane.roe@mail-example.org"\n' + RECIPE)
    said = "the system prompt holds what looks like secrets or personal data"

    check(llmtier("calibration", "build", "support.toml"), 0, "the system prompt holds what looks like email")
    for verb in ("build", "check"):  # this build finds the set up to date
        ended = llmtier("calibration", verb, "support.toml", "--fail-on-findings")
        check(ended, 5, said)
        assert "rows hold" not in ended.err
        assert "jane.roe@" not in ended.err + ended.out
    (folder / "support.toml").write_text(RECIPE)
    check(llmtier("calibration", "build", "support.toml", "--fail-on-findings"), 0)
    check(llmtier("calibration", "check", "support.toml", "--fail-on-findings"), 0)


def test_rows_without_a_word_can_be_shown(llmtier, folder):
    (folder / "bare.jsonl").write_text('{"messages": [{"role": "user", "content": ""}]}\n')

    check(llmtier("calibration", "show", "bare.jsonl"), 0)


@pytest.mark.parametrize(
    ("recipe", "code", "words"),
    [
        (RECIPE + "limmit = 3\n", 2, ("support.toml:5", "limmit", "'limit'")),
        (RECIPE.replace("rows.jsonl", "no.jsonl"), 3, ("no.jsonl", "no such file")),
        (RECIPE.replace("rows.jsonl", "support.toml"), 3, ("cannot tell what it holds",)),
    ],
)
def test_bad_recipe_is_one_line(llmtier, folder, recipe, code, words):
    (folder / "support.toml").write_text(recipe)

    ended = llmtier("calibration", "build", "support.toml")

    check(ended, code, *words)
    assert 1 == len(ended.err.strip().splitlines())


def test_absent_recipe_and_set(llmtier, folder):
    check(llmtier("calibration", "build", "no.toml"), 2, "no such recipe")
    check(llmtier("calibration", "show", "no.jsonl"), 3, "cannot be read")
    check(llmtier("calibration", "check", "support.toml"), 3, "llmtier calibration build")


def test_malformed_row_names_the_line(llmtier, folder):
    with (folder / "rows.jsonl").open("a") as file:
        file.write("{oops\n")

    check(llmtier("calibration", "build", "support.toml"), 3, "rows.jsonl:101")
    assert not (folder / "support.jsonl").exists()


def test_dataset_without_environment_names_the_interpreter(llmtier, folder):
    (folder / "support.toml").write_text('name = "support"\n[[source]]\ndataset = "org/name"\n')

    ended = llmtier("calibration", "build", "support.toml", "--python", str(folder / "no-python"))

    check(ended, 4, "no-python", "cannot be started")
