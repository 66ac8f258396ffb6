"""The hybrid scorer: which members it takes, how weights move from their start, and who speaks when a signal lacks."""

import json

import numpy as np
import pytest

from llmtier.core.errors import InputFileError
from llmtier.score import hybrid
from llmtier.score.hybrid import (
    ENOUGH_SIGNALS,
    HYBRID,
    N_FOLDS,
    START_WEIGHTS,
    HybridFeatures,
    assign_inner_folds,
    choose_members,
    fit_hybrid,
    fit_weights,
    load_hybrid,
)
from llmtier.score.signals import Signal, Signals

VECTORS = {True: np.array([1, 0], dtype=np.float32), False: np.array([0, 1], dtype=np.float32)}


@pytest.fixture
def make_rows(make_labelled):
    """Return a function that draws features and scores; ``rated`` of them carry a rating, ``embedded`` an embedding.

    Ratings and embeddings tell easy from hard prompts, as the words do.
    """

    def make(n, *, rated=0, embedded=0, seed=0):
        labelled = make_labelled(n, seed=seed)
        rows = []
        for number, row in enumerate(labelled):
            is_easy = row.scores["cheap"] == 1.0
            rating = (2.0 if is_easy else 8.0) if number < rated else None
            embedding = VECTORS[is_easy] if number < embedded else None
            rows.append(HybridFeatures(row.prompt, Signals(embedding=embedding, rating=rating)))
        return rows, np.array([[row.scores["cheap"], row.scores["dear"]] for row in labelled])

    return make


@pytest.mark.parametrize(
    ("rated", "embedded", "kinds"),
    [
        (0, 0, ("learned", "entropy")),
        (120, 0, ("learned", "self_assess")),
        (0, 120, ("semantic", "entropy")),
        (120, 120, ("semantic", "self_assess")),
        (ENOUGH_SIGNALS, ENOUGH_SIGNALS - 1, ("learned", "self_assess")),
    ],
)
def test_members_are_those_whose_signals_are_there(make_rows, rated, embedded, kinds):
    rows, _ = make_rows(120, rated=rated, embedded=embedded)

    assert kinds == choose_members(rows)


def test_of_few_rows_half_must_carry_a_signal(make_rows):
    assert ("learned", "self_assess") == choose_members(make_rows(20, rated=10)[0])
    assert ("learned", "entropy") == choose_members(make_rows(20, rated=9)[0])


def test_the_order_of_easy_and_hard_is_learned_whoever_the_members_are(make_rows):
    for rated, embedded in ((0, 0), (200, 0), (0, 200), (200, 200)):
        rows, scores = make_rows(200, rated=rated, embedded=embedded)
        model = fit_hybrid(rows, scores, 0)
        unseen, truth = make_rows(60, rated=rated and 60, embedded=embedded and 60, seed=5)
        logits = np.stack([model.logits(row) for row in unseen])

        assert np.mean((logits[:, 0] > 0) == (truth[:, 0] == 1)) >= 0.95
        assert (logits[:, 1] > 2).all()


def test_weights_without_evidence_stay_at_the_start():
    start = [*START_WEIGHTS, 0.0]

    assert start == fit_weights(np.zeros((0, 2)), np.zeros(0), base=0.3).tolist()
    assert start == fit_weights(np.ones((9, 2)), np.full(9, np.nan), base=0.3).tolist()


def draw_deviations(n, *, first, second):
    """Deviations of two members, and targets whose logit is their sum weighted so."""
    draw = np.random.default_rng(0)
    deviations = draw.normal(size=(n, 2))
    chances = 1 / (1 + np.exp(-deviations @ np.array([first, second])))
    return deviations, (draw.random(n) < chances).astype(float)


def test_few_labels_leave_the_weights_near_the_start_and_many_move_them():
    few = fit_weights(*draw_deviations(30, first=0.0, second=1.5), base=0.0)
    many = fit_weights(*draw_deviations(20_000, first=0.0, second=1.5), base=0.0)

    assert few[:2] == pytest.approx(START_WEIGHTS, abs=0.25)
    assert many[:2] == pytest.approx([0.0, 1.5], abs=0.1)


def test_a_member_that_is_always_wrong_gets_no_weight_rather_than_a_negative_one():
    weights = fit_weights(*draw_deviations(20_000, first=-1.0, second=1.0), base=0.0)

    assert 0.0 == weights[0]


def test_a_member_without_its_signal_leaves_the_other_alone(make_rows):
    rows, scores = make_rows(200, rated=200, embedded=200)
    model = fit_hybrid(rows, scores, 0)
    prompt = make_rows(1, seed=9)[0][0]._prompt
    both, rating, embedding, neither = (
        model.logits(HybridFeatures(prompt, signals)).tolist()
        for signals in (
            Signals(embedding=VECTORS[True], rating=2.0),
            Signals(rating=2.0),
            Signals(embedding=VECTORS[True]),
            Signals(),
        )
    )

    assert rating == model.models[1].logits(2.0).tolist()
    assert model.base.tolist() == neither
    told = HybridFeatures(prompt, Signals(embedding=VECTORS[True])).of("semantic")
    assert model.models[0].logits(told).tolist() == embedding
    assert 4 == len({tuple(logits) for logits in (both, rating, embedding, neither)})


def test_a_fitted_model_says_which_signals_it_really_reads(make_rows):
    assert frozenset() == fit_hybrid(*make_rows(60), 0).reads
    assert frozenset({Signal.RATING}) == fit_hybrid(*make_rows(60, rated=60), 0).reads
    assert frozenset(Signal) == HYBRID.reads


def test_ratings_of_a_band_alone_are_enough_to_fit(make_rows):
    rows, scores = make_rows(300, rated=60)
    model = fit_hybrid(rows, scores, 0)
    unrated, rated = make_rows(2, seed=3, rated=1)[0][::-1]

    assert ("learned", "self_assess") == model.kinds
    assert model.logits(unrated).tolist() == model.models[0].logits(unrated.of("learned")).tolist()
    assert np.isfinite(model.logits(rated)).all()


def test_a_tier_with_no_score_among_the_told_rows_keeps_the_start(make_rows):
    rows, scores = make_rows(120, rated=60)
    scores[:60, 1] = np.nan
    model = fit_hybrid(rows, scores, 0)

    assert [*START_WEIGHTS] == model.weights[1].tolist()
    assert [*START_WEIGHTS] != model.weights[0].tolist()


def test_inner_folds_do_not_depend_on_order_and_keep_equal_texts_together(make_rows):
    rows, _ = make_rows(80)
    folds = assign_inner_folds([*rows, *rows])
    order = np.random.default_rng(1).permutation(80)

    assert folds[:80].tolist() == folds[80:].tolist()
    assert folds[:80][order].tolist() == assign_inner_folds([rows[row] for row in order]).tolist()
    assert [80 // N_FOLDS] * N_FOLDS == np.bincount(folds[:80]).tolist()


def test_rows_of_one_text_do_not_break_the_fit(make_rows):
    rows, scores = make_rows(1)
    model = fit_hybrid(rows * 12, np.repeat(scores, 12, axis=0), 0)

    assert np.isfinite(model.logits(rows[0])).all()


def test_state_round_trip_holds_the_members(make_rows):
    rows, scores = make_rows(80, rated=80, embedded=80)
    model = fit_hybrid(rows, scores, 0)
    again = load_hybrid(model.to_bytes())

    assert [model.logits(row).tolist() for row in rows] == [again.logits(row).tolist() for row in rows]
    assert ("semantic", "self_assess") == again.kinds
    assert model.to_bytes() == again.to_bytes()


def test_malformed_states_are_input_errors(make_rows):
    document = json.loads(fit_hybrid(*make_rows(40), 0).to_bytes())
    members = document["members"]
    broken = [
        {},
        {**document, "weights": [[1.0]]},
        {**document, "offsets": [1.0]},
        {**document, "members": members[:1]},
        {**document, "members": [{**members[0], "kind": "magic"}, members[1]]},
        {**document, "members": [members[1], {**members[1], "model": {}}]},
    ]

    for state in broken:
        with pytest.raises(InputFileError, match="not a scorer"):
            load_hybrid(json.dumps(state).encode())


def test_each_member_extracts_once(make_rows, monkeypatch):
    rows, scores = make_rows(40)
    calls = []
    recipe = hybrid._MEMBERS["entropy"]

    class Counting:
        kind, reads, fit, load = recipe.kind, recipe.reads, staticmethod(recipe.fit), staticmethod(recipe.load)

        @staticmethod
        def extract(prompt, signals):
            calls.append(prompt.id)
            return recipe.extract(prompt, signals)

    monkeypatch.setitem(hybrid._MEMBERS, "entropy", Counting)
    fit_hybrid(rows, scores, 0)

    assert 40 == len(calls)
