"""Outcomes of several files: what is kept, what is counted, what is refused, and that nothing else is held."""

import gc
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, UsageError
from llmtier.core.prompt import LabelledPrompt
from llmtier.store import outcome_loader
from llmtier.store.outcomes import load_outcomes, write_outcomes

N_ROWS = 40


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_rows(n_rows=N_ROWS, *, has_ids=True):
    rows = [{"id": f"q{n}", "prompt": f"Question {n}?", "scores": {"a": n % 2, "b": n % 3 / 2}} for n in range(n_rows)]
    return rows if has_ids else [{key: row[key] for key in ("prompt", "scores")} for row in rows]


def contents(found):
    return sorted((row.prompt.last_user_text, sorted(row.scores.items())) for row in found.rows)


@pytest.mark.parametrize("has_ids", [True, False])
def test_sample_depends_neither_on_order_nor_on_how_files_are_split(tmp_path_factory, has_ids):
    rows = make_rows(has_ids=has_ids)

    @settings(max_examples=20, deadline=None)
    @given(st.permutations(range(N_ROWS)), st.lists(st.integers(1, N_ROWS - 1), unique=True, max_size=4))
    def check(order, cuts):
        folder = tmp_path_factory.mktemp("split")
        ends = [0, *sorted(cuts), N_ROWS]
        paths = [
            write_lines(folder / f"{number}.jsonl", *(rows[place] for place in order[start:end]))
            for number, (start, end) in enumerate(pairwise(ends))
        ]

        split = load_outcomes(paths, max_rows=7, seed=3)

        assert (N_ROWS, 7) == (split.n_read, len(split.rows))
        assert whole == contents(split)

    whole = contents(load_outcomes([write_lines(tmp_path_factory.mktemp("a") / "a.jsonl", *rows)], max_rows=7, seed=3))
    check()


def test_another_seed_keeps_other_rows(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *make_rows())

    assert 1 < len({str(contents(load_outcomes([path], max_rows=7, seed=seed))) for seed in range(4)})


@settings(max_examples=20, deadline=None)
@given(max_rows=st.integers(1, N_ROWS + 5))
def test_rows_of_one_id_in_two_files_are_both_kept_or_both_dropped(tmp_path_factory, max_rows):
    rows = make_rows()
    folder = tmp_path_factory.mktemp("tiers")
    paths = [
        write_lines(folder / f"{tier}.jsonl", *({**row, "scores": {tier: row["scores"][tier]}} for row in order))
        for tier, order in (("a", rows), ("b", rows[::-1]))
    ]

    found = load_outcomes(paths, max_rows=max_rows)

    assert min(max_rows, N_ROWS) == len(found.rows)
    assert all({"a", "b"} == set(row.scores) for row in found.rows)
    assert contents(load_outcomes([write_lines(folder / "all.jsonl", *rows)], max_rows=max_rows)) == contents(found)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_no_more_rows_are_held_than_are_kept(tmp_path, monkeypatch, provenance, name):
    rows = make_rows(5000)
    path = write_lines(tmp_path / "a.jsonl", *rows)
    if name == "a.csv":
        path = tmp_path / name
        path.write_text("id,prompt,score:a\n" + "".join(f"{row['id']},{row['prompt']},1\n" for row in rows))
    elif name == "a.parquet":
        write_outcomes(tmp_path / name, load_outcomes([path]).rows, provenance=provenance)
        path = tmp_path / name
    parse, calls, held = outcome_loader.parse_labelled, [], []

    def spy(row, *, default_id):
        calls.append(row.number)
        if len(calls) in {2500, 4990}:
            held.append(sum(type(thing) is LabelledPrompt for thing in gc.get_objects()))
        return parse(row, default_id=default_id)

    monkeypatch.setattr(outcome_loader, "parse_labelled", spy)
    gc.collect()
    before = sum(type(thing) is LabelledPrompt for thing in gc.get_objects())
    load_outcomes([path], max_rows=10)

    assert 5000 == len(calls)
    assert all(count - before <= 12 for count in held), held


def test_first_rows_are_taken_before_the_last_is_read(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", *make_rows(100))
    with path.open("a") as stream:
        stream.write("{oops\n")
    parse, calls = outcome_loader.parse_labelled, []
    monkeypatch.setattr(
        outcome_loader,
        "parse_labelled",
        lambda row, *, default_id: calls.append(1) or parse(row, default_id=default_id),
    )

    with pytest.raises(InputFileError, match=r"a\.jsonl:101: "):
        load_outcomes([path])
    assert 100 == len(calls)


@pytest.mark.parametrize("max_rows", [None, 1, 2, 30])
def test_id_that_stands_twice_in_a_file_is_refused_even_where_it_is_not_kept(tmp_path, max_rows):
    rows = make_rows(20)
    for place in (0, 7, 13):
        path = write_lines(tmp_path / "a.jsonl", *rows, {**rows[place], "prompt": "Another?"})

        with pytest.raises(
            InputFileError, match=rf"a\.jsonl:21: id 'q{place}' is already that of a\.jsonl:{place + 1}"
        ):
            load_outcomes([path], max_rows=max_rows)


def test_equal_digests_of_different_ids_are_no_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr(outcome_loader.Sample, "digest", lambda *_: 7)

    assert 2 == len(load_outcomes([write_lines(tmp_path / "a.jsonl", *make_rows())], max_rows=2).rows)


def test_files_of_one_name_give_their_rows_different_ids(tmp_path):
    paths = []
    for day in ("mon", "tue"):
        (tmp_path / day).mkdir()
        paths.append(write_lines(tmp_path / day / "log.jsonl", {"prompt": day, "scores": {"a": 1}}))

    assert ["mon", "tue"] == [row.prompt.last_user_text for row in load_outcomes(paths).rows]


def test_what_one_file_lacks_another_adds(tmp_path):
    base = {"id": "q", "prompt": "Hi"}
    one = write_lines(tmp_path / "a.jsonl", {**base, "scores": {"a": 1}, "weight": 3})
    other = write_lines(
        tmp_path / "b.jsonl",
        {
            **base,
            "domain": "x",
            "answer": "7",
            "scorer": "number",
            "arrival_s": 2,
            "rating": 4,
            "confidences": {"a": -1},
        },
    )

    found, turned = (load_outcomes(paths).rows[0] for paths in ((one, other), (other, one)))

    assert found == turned
    assert ("x", "7", "number", 2.0) == (
        found.prompt.domain,
        found.prompt.answer,
        found.prompt.scorer,
        found.prompt.arrival_s,
    )
    assert (3.0, 4.0, {"a": -1.0}, {"a": 1.0}) == (found.weight, found.rating, found.confidences, found.scores)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"rating": 1}, {"rating": 2}, "another rating"),
        ({"weight": 3}, {"weight": 2}, "another weight"),
    ],
)
def test_files_that_disagree_are_refused(tmp_path, first, second, expected):
    row = {"id": "q", "prompt": "Hi", "scores": {}}
    paths = [write_lines(tmp_path / "a.jsonl", {**row, **first}), write_lines(tmp_path / "b.jsonl", {**row, **second})]

    with pytest.raises(InputFileError, match=rf"b\.jsonl:1: id 'q' has {expected}"):
        load_outcomes(paths)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("NaN", r"NaN"),
        ("1.5", r"score of a must lie in \[0, 1\]"),
        ("-0.1", "must lie"),
        ("Infinity", "Infinity"),
        ("true", None),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_score_out_of_range_is_named(tmp_path, score, expected, name):
    if name == "a.csv":
        text = f"prompt,score:a\nx,1\ny,{score}\n"
        where = r"a\.csv:3: "
    else:
        text = f'{{"prompt": "x", "scores": {{"a": 1}}}}\n\n{{"prompt": "y", "scores": {{"a": {score}}}}}\n'
        where = r"a\.jsonl:3: "
    (tmp_path / name).write_text(text)

    if expected is None:
        assert [{"a": 1.0}, {"a": 1.0}] == [row.scores for row in load_outcomes([tmp_path / name]).rows]
        return
    with pytest.raises(InputFileError, match=where) as caught:
        load_outcomes([tmp_path / name])
    assert 3 == caught.value.exit_code


@pytest.mark.parametrize(
    ("known", "expected"), [(["llama@awq", "b"], "did you mean 'llama@awq'"), (["x", "b"], "known are b, x")]
)
def test_tier_that_is_not_known_is_named(tmp_path, known, expected):
    rows = [{"prompt": "x", "scores": {"b": 1}}, {"prompt": "y", "scores": {"lama@awq": 1, "b": 0}}]

    with pytest.raises(InputFileError, match=rf"a\.jsonl:2: scores: tier 'lama@awq' is not known; {expected}"):
        load_outcomes([write_lines(tmp_path / "a.jsonl", *rows)], known_tiers=known)
    assert 2 == len(load_outcomes([tmp_path / "a.jsonl"], known_tiers=["lama@awq", "b"]).rows)


def test_empty_prompts_are_left_out_and_counted(tmp_path):
    blank = [{"role": "system", "content": "S"}, {"role": "user", "content": " \n"}]
    rows = [
        {"prompt": "x", "scores": {"a": 1}},
        {"prompt": "", "scores": {"a": 0}},
        {"messages": blank, "scores": {"a": 0}},
    ]

    found = load_outcomes([write_lines(tmp_path / "a.jsonl", *rows)])

    assert (["x"], 3) == ([row.prompt.last_user_text for row in found.rows], found.n_read)
    assert (f"{tmp_path / 'a.jsonl'}: 2 rows have an empty prompt and are left out (first: 2)",) == found.warnings


def test_file_of_empty_prompts_is_refused(tmp_path):
    with pytest.raises(InputFileError, match=r"a\.jsonl: no row holds a prompt with text"):
        load_outcomes([write_lines(tmp_path / "a.jsonl", {"prompt": " ", "scores": {"a": 1}})])


def test_rows_whose_text_the_log_did_not_keep_are_counted(tmp_path):
    row = {"request_id": "1", "startTime": "2026-01-01T00:00:00Z", "messages": "{}"}
    said = {**row, "request_id": "2", "messages": [{"role": "user", "content": "Hi"}]}
    later = {**said, "request_id": "3", "startTime": "2026-01-01T00:00:07Z"}

    found = load_outcomes([write_lines(tmp_path / "a.jsonl", later, row, said)])

    assert [("3", 7.0), ("2", 0.0)] == [(row.prompt.id, row.prompt.arrival_s) for row in found.rows]
    assert "a.jsonl: 1 row has no text, as the log did not keep it, and is left out (first: 2)" in found.warnings[0]


def test_labels_of_unusual_types_are_read(tmp_path):
    row = {"prompt": "x", "scores": None, "weight": "2", "rating": 3, "output_tokens_by_tier": {"a": "7"}}

    (labelled,) = load_outcomes([write_lines(tmp_path / "a.jsonl", row)]).rows

    assert ({}, 2.0, 3.0, {"a": 7}) == (labelled.scores, labelled.weight, labelled.rating, labelled.output_tokens)


def test_arrivals_of_each_log_begin_at_its_own_earliest_row(tmp_path):
    row = {"startTime": "2026-01-01T00:00:05Z", "messages": [{"role": "user", "content": "Hi"}]}
    paths = [
        write_lines(tmp_path / "a.jsonl", {"prompt": "x"}, {**row, "request_id": "1"}),
        write_lines(
            tmp_path / "b.jsonl", {**row, "request_id": "0", "startTime": "2026-01-01"}, {**row, "request_id": "2"}
        ),
    ]

    arrivals = {found.prompt.id: found.prompt.arrival_s for found in load_outcomes(paths).rows}

    assert {"a-1": None, "1": 0.0, "0": 0.0, "2": 5.0} == arrivals


def test_log_without_texts_names_the_setting(tmp_path):
    row = {"request_id": "1", "startTime": "2026-01-01T00:00:00Z", "messages": "{}"}

    with pytest.raises(InputFileError, match="store_prompts_in_spend_logs: true"):
        load_outcomes([write_lines(tmp_path / "a.jsonl", row)])


def test_what_is_odd_about_the_scores_is_counted(tmp_path):
    rows = [
        {"prompt": "x", "scores": {"a": 1, "b": 1, "c": 1}},
        {"prompt": "y", "scores": {"a": 1, "b": 0}},
        {"prompt": "x", "scores": {"a": 1, "b": 0}},
        {"prompt": "z"},
    ]

    found = load_outcomes([write_lines(tmp_path / "a.jsonl", *rows)])

    assert (
        "1 prompt repeats another word for word under another id (first: 'a-3' is 'a-1')",
        "all 3 scores of tier 'a' are 1; nothing can be learned about it",
        "1 of 4 prompts have no score",
    ) == found.warnings


def test_bound_below_one_is_refused(tmp_path):
    with pytest.raises(UsageError, match=">= 1"):
        load_outcomes([tmp_path / "a.jsonl"], max_rows=0)
