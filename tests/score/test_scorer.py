"""Laws of every scorer, and what each kind learns."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, SchemaVersionError, UsageError
from llmtier.core.prompt import LabelledPrompt, Message, Prompt
from llmtier.score.entropy import complexity
from llmtier.score.scorer import KINDS, assign_folds, fit_out_of_fold, fit_scorer, load_scorer
from llmtier.score.signals import Signals

TIERS = ("cheap", "dear")
WORDS = ("prove", "theorem", "integral", "lemma", "hello", "weather", "colour", "lunch")


def signals_of(text):
    """Return signals that a text determines: which words it holds, and how many of the hard ones."""
    held = np.array([1.0, *(float(word in text) for word in WORDS)], dtype=np.float32)
    return Signals(embedding=held / np.linalg.norm(held), rating=float(held[1:5].sum()) * 2)


def fit(kind, rows, tiers=TIERS, *, seed):
    return fit_scorer(kind, rows, tiers, seed=seed, signals=give_signals(rows))


def give_signals(rows):
    return [signals_of(row.prompt.last_user_text) for row in rows]


def ask(scorer, prompt):
    return scorer.probabilities(prompt, signals_of(prompt.last_user_text))


SKILLED = ("learned", "domain_mean")


@pytest.mark.parametrize("kind", KINDS)
def test_state_round_trip_gives_identical_probabilities(kind, make_labelled):
    rows = make_labelled(80, with_domains=True)
    scorer = fit(kind, rows, seed=3)
    again = load_scorer(kind, scorer.to_bytes())
    unseen = make_labelled(20, seed=9)

    assert (kind, TIERS) == (again.kind, again.tiers)
    assert all(ask(scorer, row.prompt) == ask(again, row.prompt) for row in [*rows, *unseen])
    assert all(scorer.probabilities(row.prompt) == again.probabilities(row.prompt) for row in unseen)
    assert scorer.to_bytes() == again.to_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_lie_in_range_for_any_text(kind, make_labelled):
    scorer = fit(kind, make_labelled(40, with_domains=True), seed=0)

    @settings(deadline=None, max_examples=30)
    @given(st.text(max_size=200), st.none() | st.text(max_size=5))
    def check(text, domain):
        prompt = Prompt(id="x", messages=(Message(role="user", content=text),), domain=domain)
        for found in (scorer.probabilities(prompt), ask(scorer, prompt)):
            assert set(TIERS) == set(found)
            assert all(0 <= value <= 1 for value in found.values())

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_fold_rows_come_in_the_order_given(kind, make_labelled):
    rows = make_labelled(60, with_domains=True)
    order = np.random.default_rng(0).permutation(60)
    _, straight = fit_out_of_fold(kind, rows, TIERS, seed=1, signals=give_signals(rows))
    again = [rows[row] for row in order]
    _, shuffled = fit_out_of_fold(kind, again, TIERS, seed=1, signals=give_signals(again))

    assert (60, 2) == straight.shape
    assert straight[order] == pytest.approx(shuffled, abs=1e-3)


@pytest.mark.parametrize(("kind", "with_domains"), [("learned", False), ("learned", True), ("domain_mean", True)])
def test_skilled_scorers_tell_easy_from_hard(kind, with_domains, make_labelled):
    scorer = fit_scorer(kind, make_labelled(300, with_domains=with_domains), TIERS, seed=0)
    unseen = make_labelled(100, seed=5, with_domains=with_domains)
    predicted = np.array([scorer.probabilities(row.prompt)["cheap"] for row in unseen])
    truth = np.array([row.scores["cheap"] for row in unseen])

    assert np.mean((predicted > 0.5) == (truth == 1)) >= 0.97
    assert all(scorer.probabilities(row.prompt)["dear"] > 0.95 for row in unseen)


def test_absent_and_unknown_domains_are_scored_by_the_text_alone(make_labelled, make_prompt):
    scorer = fit_scorer("learned", make_labelled(200, with_domains=True), TIERS, seed=0)
    text = "please tell me about lunch"
    absent, unknown, known = (scorer.probabilities(make_prompt(text, domain)) for domain in (None, "new", "easy"))

    assert absent == unknown
    assert absent != known


def test_entropy_scorer_learns_what_markers_mean(make_prompt):
    rows = [
        LabelledPrompt(
            prompt=make_prompt(f"{'def run(): pass' if n % 2 else 'good morning to all'} {n}", None, str(n)),
            scores={"cheap": float(n % 2 == 0), "dear": 1.0},
        )
        for n in range(100)
    ]
    scorer = fit_scorer("entropy", rows, TIERS, seed=0)

    assert scorer.probabilities(make_prompt("good evening to you"))["cheap"] > 0.8
    assert scorer.probabilities(make_prompt("def stop(): pass"))["cheap"] < 0.2
    assert complexity("def stop(): pass") > complexity("aaaa bbbb cccc")


def test_a_last_turn_that_says_nothing_is_read_with_the_turn_before(make_labelled):
    scorer = fit_scorer("learned", make_labelled(200), TIERS, seed=0)
    last = Message(role="user", content="yes again")
    after_hard = Prompt(id="a", messages=(Message(role="user", content="prove the theorem"), last))
    after_easy = Prompt(id="b", messages=(Message(role="user", content="tell me about lunch"), last))

    assert scorer.probabilities(after_hard)["cheap"] < 0.5 < scorer.probabilities(after_easy)["cheap"]


def test_identical_texts_share_a_fold():
    texts = [f"text {number % 30}" for number in range(120)]
    folds = assign_folds(texts, seed=4, folds=5)

    assert all(folds[number] == folds[number % 30] for number in range(120))
    assert [6] * 5 == np.bincount(folds[:30]).tolist()


def test_out_of_fold_is_not_fooled_by_noise(make_labelled):
    """Scores drawn at random: a scorer that saw its own rows would claim to know them."""
    draw = np.random.default_rng(2)
    rows = [dataclasses.replace(row, scores={"cheap": float(draw.random() < 0.5)}) for row in make_labelled(200)]
    _, predicted = fit_out_of_fold("learned", rows, ("cheap",), seed=0)
    truth = np.array([row.scores["cheap"] for row in rows])

    assert abs(predicted[truth == 1].mean() - predicted[truth == 0].mean()) < 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_a_tier_of_one_score_and_few_rows_is_predicted_without_certainty(kind, n, score, make_labelled):
    rows = [dataclasses.replace(row, scores={"only": score}) for row in make_labelled(n, with_domains=True)]
    scorer, predicted = fit_out_of_fold(kind, rows, ("only",), seed=0, signals=give_signals(rows))
    found = scorer.probabilities(rows[0].prompt)["only"]

    assert (n, 1) == predicted.shape
    assert 0 < found < 1
    assert kind == "random" or score == pytest.approx(found, abs=0.15)


def test_a_tier_is_fitted_on_the_rows_that_score_it(make_labelled):
    rows = make_labelled(240)
    partly = [
        dataclasses.replace(row, scores=row.scores if number % 4 else {"dear": 1.0}) for number, row in enumerate(rows)
    ]
    scorer, predicted = fit_out_of_fold("learned", partly, TIERS, seed=0)
    truth = np.array([row.scores["cheap"] for row in rows])

    assert np.mean((predicted[:, 0] > 0.5) == (truth == 1)) > 0.9
    assert scorer.probabilities(rows[0].prompt)["dear"] > 0.9


def test_scores_of_one_fold_alone_do_not_break_the_fit(make_labelled):
    rows = make_labelled(100)
    is_first = assign_folds([row.prompt.last_user_text for row in rows], seed=0, folds=5) == 0
    lopsided = [
        row if first else dataclasses.replace(row, scores={"dear": 1.0})
        for row, first in zip(rows, is_first, strict=True)
    ]

    assert np.isfinite(fit_out_of_fold("learned", lopsided, TIERS, seed=0)[1]).all()


@pytest.mark.parametrize("n", [0, 1, 9])
def test_too_few_labels_say_how_many_are_needed(n, make_labelled):
    with pytest.raises(InputFileError, match=f"cheap has {n} scored prompts, at least 10 are needed.*llmtier replay"):
        fit_scorer("learned", make_labelled(n), TIERS, seed=0)


def test_one_text_is_no_ground_for_a_scorer(make_labelled):
    with pytest.raises(InputFileError, match="same text"):
        fit_scorer("learned", make_labelled(1) * 30, TIERS, seed=0)


@pytest.mark.parametrize("kind", ["semantic", "learned+semantic"])
def test_embeddings_are_asked_for_where_they_are_needed(kind, make_labelled):
    with pytest.raises(InputFileError, match="no embedding"):
        fit_scorer(kind, make_labelled(40), TIERS, seed=0)


def test_a_stacked_scorer_without_its_embedding_is_the_learned_one(make_labelled):
    rows = make_labelled(120, with_domains=True)
    stacked, learned = fit("learned+semantic", rows, seed=0), fit("learned", rows, seed=0)
    prompt = make_labelled(1, seed=7)[0].prompt

    assert stacked.model.alone.to_bytes() == learned.model.to_bytes()
    assert ask(stacked, prompt) != stacked.probabilities(prompt)


def test_unknown_kinds_and_no_tier_are_usage_errors(make_labelled):
    with pytest.raises(UsageError, match="use one of: learned"):
        fit_scorer("magic", make_labelled(20), TIERS, seed=0)
    with pytest.raises(UsageError, match="unknown"):
        load_scorer("magic", b"{}")
    with pytest.raises(UsageError, match="at least one tier"):
        fit_scorer("learned", make_labelled(20), (), seed=0)


def test_another_schema_version_is_refused(make_labelled):
    state = fit_scorer("length", make_labelled(20), TIERS, seed=0).to_bytes()
    newer = state.replace(b'"schema_version":1', b'"schema_version":2')

    with pytest.raises(SchemaVersionError, match="schema 2, this llmtier reads 1"):
        load_scorer("length", newer)


def test_malformed_states_are_input_errors(make_labelled):
    rows = make_labelled(20, with_domains=True)
    document = json.loads(fit_scorer("learned", rows, TIERS, seed=0).to_bytes())
    model = document["model"]
    broken = [
        b"not json",
        b'{"schema_version": 1, "kind": "length"}',
        json.dumps({**document, "calibration": []}).encode(),
        json.dumps({**document, "model": {**model, "idf": ""}}).encode(),
        json.dumps({**document, "model": {**model, "means": [1.0]}}).encode(),
        json.dumps({**document, "extra": 1}).encode(),
    ]

    for state in broken:
        with pytest.raises(InputFileError, match="scorer"):
            load_scorer("learned", state)
