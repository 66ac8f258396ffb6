"""Outcomes files and the journal of an unfinished replay."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import DiskError, InputFileError, SchemaVersionError, UsageError
from llmtier.core.prompt import AnswerScorer, LabelledPrompt, Message, Outcome, Prompt
from llmtier.store.outcomes import (
    append_outcomes_part,
    discard_outcomes_parts,
    journal_path,
    read_outcomes,
    read_outcomes_parts,
    write_outcomes,
)

TEXTS = st.text(max_size=12)
SPOKEN = TEXTS.filter(lambda text: text and not text.isspace())
PROMPTS = st.builds(
    Prompt,
    id=st.text(min_size=1, max_size=5),
    messages=st.lists(
        st.builds(Message, role=st.text(min_size=1, max_size=5), content=SPOKEN), min_size=1, max_size=2
    ).map(tuple),
    domain=st.none() | TEXTS,
    answer=st.none() | TEXTS,
    scorer=st.sampled_from(AnswerScorer),
    arrival_s=st.none() | st.floats(0, 1e9),
    max_tokens=st.none() | st.integers(1, 10**6),
)
LABELLED = st.lists(
    st.builds(
        LabelledPrompt,
        prompt=PROMPTS,
        scores=st.dictionaries(TEXTS, st.floats(0, 1), max_size=3),
        output_tokens=st.dictionaries(TEXTS, st.integers(0, 10**6), max_size=3),
        weight=st.just(1.0) | st.floats(1e-9, 1e9),
        rating=st.none() | st.floats(0, 10),
        confidences=st.dictionaries(TEXTS, st.floats(-1e6, 0), max_size=3),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda labelled: labelled.prompt.id,
)
NUMBERS = st.none() | st.floats(0, 1e6)
COUNTS = st.none() | st.integers(0, 10**6)
OUTCOMES = st.lists(
    st.builds(
        Outcome,
        prompt_id=TEXTS,
        tier=TEXTS,
        score=st.none() | st.floats(0, 1),
        text=st.none() | TEXTS,
        n_input_tokens=COUNTS,
        n_output_tokens=COUNTS,
        ttft_s=NUMBERS,
        e2el_s=NUMBERS,
        error=st.none() | TEXTS,
    ),
    max_size=4,
)


def ask(content="Hi", **fields):
    return Prompt(**{"id": "q", "messages": (Message(role="user", content=content),), **fields})


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_written_outcomes_read_back(tmp_path_factory, provenance):
    @settings(max_examples=15, deadline=None)
    @given(LABELLED)
    def check(labelled):
        path = tmp_path_factory.mktemp("outcomes") / "outcomes.parquet"
        write_outcomes(path, labelled, provenance=provenance)

        assert labelled == read_outcomes([path])

    check()


def test_provenance_is_in_the_file(tmp_path, provenance):
    path = tmp_path / "outcomes.parquet"
    write_outcomes(path, [LabelledPrompt(prompt=ask(), scores={"a": 1.0})], provenance=provenance)

    assert ["llmtier", "profile"] == json.loads(pq.read_schema(path).metadata[b"provenance"])["command"]


def test_outcomes_are_written_as_parquet_only(tmp_path, provenance):
    with pytest.raises(UsageError, match=r"end in \.parquet"):
        write_outcomes(tmp_path / "a.jsonl", [], provenance=provenance)


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_score_out_of_range_is_not_written(tmp_path, provenance, score):
    with pytest.raises(ValueError, match="score of a must lie in"):
        write_outcomes(
            tmp_path / "a.parquet", [LabelledPrompt(prompt=ask(), scores={"a": score})], provenance=provenance
        )


def test_json_lines_are_read(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        {"id": "q", "prompt": "Hi", "scores": {"a": 1, "b": None}, "output_tokens_by_tier": {"a": 3}, "domain": "x"},
    )

    assert [LabelledPrompt(prompt=ask(domain="x"), scores={"a": 1.0}, output_tokens={"a": 3})] == read_outcomes([path])


def test_prompt_that_no_tier_answered_has_no_scores(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"id": "q", "prompt": "Hi", "scores": None})

    assert [LabelledPrompt(prompt=ask(), scores={})] == read_outcomes([path])


def test_parquet_with_a_struct_of_scores_is_read(tmp_path):
    table = pa.table(
        {"prompt": ["Hi", "Ho"], "domain": ["x", "x"], "scores": [{"a": 1.0, "b": None}, {"a": 0.0, "b": 0.5}]}
    )
    pq.write_table(table, tmp_path / "a.parquet")

    assert [("a-1", {"a": 1.0}), ("a-2", {"a": 0.0, "b": 0.5})] == [
        (row.prompt.id, row.scores) for row in read_outcomes([tmp_path / "a.parquet"])
    ]


def test_outcomes_of_another_generation_are_refused(tmp_path):
    table = pa.table({"prompt": ["a"]}).replace_schema_metadata({"schema_version": "9"})
    pq.write_table(table, tmp_path / "a.parquet")

    with pytest.raises(SchemaVersionError, match="schema 9"):
        read_outcomes([tmp_path / "a.parquet"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scores": {"a": 2}}, "scores: score of a must lie in"),
        ({"scores": "high"}, "scores: .*dictionary, got 'high'"),
        ({"scores": [1]}, "scores: "),
        ({"scores": {"a": "good"}}, r"scores\.a: .*valid number"),
        ({"output_tokens_by_tier": {"a": 1.5}}, r"output_tokens_by_tier\.a: "),
        ({"prompt": None}, "expected either 'messages'"),
        ({"weight": 0}, "prompt a-2: weight must be positive and finite"),
        ({"weight": "much"}, "weight: "),
        ({"rating": 10.5}, r"prompt a-2: rating must lie in \[0, 10\]"),
        ({"confidences": {"a": "sure"}}, r"confidences\.a: "),
    ],
)
def test_malformed_row_is_named(tmp_path, change, expected):
    good = {"prompt": "Hi", "scores": {"a": 1}}
    path = write_lines(tmp_path / "a.jsonl", good, {**good, **change})

    with pytest.raises(InputFileError, match=rf"a\.jsonl:2: {expected}"):
        read_outcomes([path])


def test_row_without_scores_is_unlabelled(tmp_path):
    assert [{}] == [row.scores for row in read_outcomes([write_lines(tmp_path / "a.jsonl", {"prompt": "Hi"})])]


def test_outcomes_of_an_older_llmtier_lack_the_newer_columns(tmp_path, provenance):
    path = tmp_path / "a.parquet"
    row = LabelledPrompt(prompt=ask(), scores={"a": 1.0}, weight=2.0, rating=3.0, confidences={"a": -1.0})
    write_outcomes(path, [row], provenance=provenance)
    pq.write_table(pq.read_table(path).drop_columns(["weight", "rating", "confidences"]), path)

    assert [LabelledPrompt(prompt=ask(), scores={"a": 1.0})] == read_outcomes([path])


@pytest.mark.parametrize("confidence", [float("nan"), float("-inf")])
def test_confidence_that_is_no_number_is_not_written(tmp_path, provenance, confidence):
    row = LabelledPrompt(prompt=ask(), scores={"a": 1.0}, confidences={"a": confidence})

    with pytest.raises(ValueError, match="confidence of a must be finite"):
        write_outcomes(tmp_path / "a.parquet", [row], provenance=provenance)


def test_scores_of_one_prompt_in_several_files_are_joined(tmp_path):
    one = write_lines(tmp_path / "a.jsonl", {"id": "q", "prompt": "Hi", "scores": {"a": 1}})
    other = write_lines(tmp_path / "b.jsonl", {"id": "q", "prompt": "Hi", "scores": {"a": 1, "b": 0}})

    assert [LabelledPrompt(prompt=ask(), scores={"a": 1.0, "b": 0.0})] == read_outcomes([one, other])


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"prompt": "Ho"}, "id 'q' is another prompt"), ({"scores": {"a": 0}}, "id 'q' has another score of a")],
)
def test_files_that_disagree_are_refused(tmp_path, change, expected):
    row = {"id": "q", "prompt": "Hi", "scores": {"a": 1}}
    paths = [write_lines(tmp_path / "a.jsonl", row), write_lines(tmp_path / "b.jsonl", {**row, **change})]

    with pytest.raises(InputFileError, match=rf"b\.jsonl:1: {expected}"):
        read_outcomes(paths)


def test_journal_reads_back_what_was_appended(tmp_path_factory):
    @settings(max_examples=15, deadline=None)
    @given(OUTCOMES, OUTCOMES)
    def check(first, second):
        path = tmp_path_factory.mktemp("journal") / "outcomes.parquet"
        append_outcomes_part(path, first)
        append_outcomes_part(path, second)

        assert first + second == read_outcomes_parts(path)

    check()


def test_lone_surrogate_in_an_answer_does_not_spoil_the_journal(tmp_path):
    path = tmp_path / "outcomes.parquet"
    append_outcomes_part(path, [Outcome(prompt_id="1", tier="a", text="\ud800 \U0001f600")])

    assert ["\ufffd \U0001f600"] == [outcome.text for outcome in read_outcomes_parts(path)]


def test_torn_last_line_is_left_out_and_cut_off_by_the_next_append(tmp_path):
    path = tmp_path / "outcomes.parquet"
    first, second = (Outcome(prompt_id=name, tier="a", text="x" * 70_000) for name in "12")
    append_outcomes_part(path, [first, second])
    whole = journal_path(path).read_bytes()
    journal_path(path).write_bytes(whole[:-5])

    torn = read_outcomes_parts(path)
    append_outcomes_part(path, [second])

    assert [first] == torn
    assert [first, second] == read_outcomes_parts(path)


def test_journal_of_one_torn_line_is_empty(tmp_path):
    path = tmp_path / "outcomes.parquet"
    journal_path(path).write_text('{"prompt_id": ')

    assert [] == read_outcomes_parts(path)
    append_outcomes_part(path, [Outcome(prompt_id="1", tier="a")])
    assert ["1"] == [outcome.prompt_id for outcome in read_outcomes_parts(path)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [('{"prompt_id": \n', "expected a JSON object"), ('{"prompt_id": "1"}\n', "tier is missing"), ("\n", "not JSON")],
)
def test_malformed_whole_line_of_the_journal_is_named(tmp_path, line, expected):
    path = tmp_path / "outcomes.parquet"
    append_outcomes_part(path, [Outcome(prompt_id="1", tier="a")])
    with journal_path(path).open("a") as stream:
        stream.write(line)

    with pytest.raises(InputFileError, match=rf"partial\.jsonl:2: .*{expected}"):
        read_outcomes_parts(path)


def test_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "outcomes.parquet"
    append_outcomes_part(path, [Outcome(prompt_id="1", tier="a")])
    before = journal_path(path).read_bytes()
    real, calls = os.write, []

    def write(descriptor: int, data: memoryview) -> int:
        calls.append(descriptor)
        if len(calls) == 1:
            return int(real(descriptor, bytes(data)[:4]))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(DiskError, match="No space left"):
        append_outcomes_part(path, [Outcome(prompt_id="2", tier="a")])

    assert before == journal_path(path).read_bytes()


def test_discarded_journal_is_gone(tmp_path):
    path = tmp_path / "outcomes.parquet"
    append_outcomes_part(path, [Outcome(prompt_id="1", tier="a")])
    discard_outcomes_parts(path)
    discard_outcomes_parts(path)

    assert [] == read_outcomes_parts(path)
    assert [] == list(tmp_path.iterdir())
