"""The semantic scorer: what it learns of embeddings, what it does without, and seeds without any label."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, UsageError
from llmtier.score import semantic
from llmtier.score.embedding import EmbeddingFeatures
from llmtier.score.prototypes import find_prototypes, nearness
from llmtier.score.scorer import load_scorer
from llmtier.score.seed_scorer import fit_seed_scorer
from llmtier.score.seeds import SeedModel, fit_seeds
from llmtier.score.semantic import SEMANTIC, fit_semantic, load_semantic
from llmtier.score.signals import Signal, Signals

TOPICS = np.linalg.qr(np.random.default_rng(7).normal(size=(16, 4)))[0].T
IS_HARD = np.array([False, True, True, False])


def draw_rows(n, *, seed=0, noise=0.1):
    """Prompts of four topics; ``cheap`` is right on two of them, ``dear`` always."""
    draw = np.random.default_rng(seed)
    topics = draw.integers(0, 4, n)
    vectors = TOPICS[topics] + noise * draw.normal(size=(n, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [EmbeddingFeatures(embedding=vector.astype(np.float32), log_length=3.0) for vector in vectors]
    return rows, np.column_stack([~IS_HARD[topics], np.ones(n)]).astype(float)


def without_embedding(rows):
    return [EmbeddingFeatures(embedding=None, log_length=row.log_length) for row in rows]


def table(model, rows):
    return np.stack([model.logits(row) for row in rows])


def test_topics_that_no_line_parts_are_told_apart():
    rows, scores = draw_rows(300)
    unseen, truth = draw_rows(100, seed=1)
    logits = table(fit_semantic(rows, scores, 0), unseen)

    assert np.mean((logits[:, 0] > 0) == (truth[:, 0] == 1)) >= 0.98
    assert (logits[:, 1] > 2).all()


def test_length_is_read_where_embeddings_say_nothing():
    draw = np.random.default_rng(0)
    same = np.ones(4, dtype=np.float32) / 2
    lengths = draw.normal(size=300)
    rows = [EmbeddingFeatures(embedding=same, log_length=float(length)) for length in lengths]
    model = fit_semantic(rows, (lengths < 0).astype(float)[:, np.newaxis], 0)
    short, long = (model.logits(EmbeddingFeatures(embedding=same, log_length=length))[0] for length in (-1.0, 1.0))

    assert short > 1 > -1 > long


def test_a_prompt_without_an_embedding_gets_base_rates():
    rows, scores = draw_rows(200)
    model = fit_semantic(rows, scores, 0)
    rate = 1 / (1 + np.exp(-model.logits(without_embedding(rows)[0])))

    assert rate.tolist() == pytest.approx(scores.mean(axis=0).tolist(), abs=0.01)


def test_rows_without_an_embedding_move_the_base_rates_alone():
    rows, scores = draw_rows(200)
    alone = fit_semantic(rows, scores, 0)
    mixed = fit_semantic([*rows, *without_embedding(rows)], np.vstack([scores, 0 * scores]), 0)

    assert table(alone, rows) == pytest.approx(table(mixed, rows))
    assert (mixed.base < alone.base).all()


def test_no_embedding_at_all_asks_for_an_embedder():
    rows = [EmbeddingFeatures(embedding=None, log_length=1.0)] * 30

    with pytest.raises(InputFileError, match="no embedding of any of the 30 prompts; name an embedder"):
        fit_semantic(rows, np.ones((30, 2)), 0)


def test_a_tier_without_a_score_among_embedded_rows_keeps_its_base_rate():
    rows, scores = draw_rows(60)
    scores[:, 1] = np.nan
    model = fit_semantic([*rows, *without_embedding(rows[:5])], np.vstack([scores, np.ones((5, 2))]), 0)

    assert model.logits(rows[0])[1] == pytest.approx(model.base[1])


def test_of_too_many_rows_a_seeded_sample_is_fitted(monkeypatch):
    monkeypatch.setattr(semantic, "MAX_FIT_ROWS", 50)
    rows, scores = draw_rows(400)

    assert fit_semantic(rows, scores, 3).to_bytes() == fit_semantic(rows, scores, 3).to_bytes()
    assert fit_semantic(rows, scores, 3).to_bytes() != fit_semantic(rows, scores, 4).to_bytes()


@pytest.mark.parametrize("n", [1, 2, 10])
def test_few_and_equal_rows_do_not_break_the_fit(n):
    rows, scores = draw_rows(1)
    model = fit_semantic(rows * n, np.repeat(scores, n, axis=0), 0)

    assert np.isfinite(table(model, rows)).all()


def test_state_round_trip_is_identical():
    rows, scores = draw_rows(150)
    model = fit_semantic(rows, scores, 0)
    again = load_semantic(model.to_bytes())

    assert table(model, rows).tolist() == table(again, rows).tolist()
    assert model.to_bytes() == again.to_bytes()


def test_embeddings_of_another_model_are_refused():
    rows, scores = draw_rows(40)
    other = EmbeddingFeatures(embedding=np.ones(8, dtype=np.float32), log_length=1.0)
    broken = EmbeddingFeatures(embedding=np.full(16, np.nan, dtype=np.float32), log_length=1.0)
    model = fit_semantic(rows, scores, 0)

    with pytest.raises(InputFileError, match="8 dimensions, the scorer was fitted on 16"):
        model.logits(other)
    with pytest.raises(InputFileError, match=r"shapes \(8,\) and \(16,\)"):
        fit_semantic([*rows, other], np.vstack([scores, scores[:1]]), 0)
    with pytest.raises(InputFileError, match="NaN"):
        fit_semantic([*rows, broken], np.vstack([scores, scores[:1]]), 0)


def test_malformed_states_are_input_errors():
    rows, scores = draw_rows(40)
    fitted = json.loads(fit_semantic(rows, scores, 0).to_bytes())
    seeds = json.loads(fit_seeds([TOPICS[0]], [TOPICS[1]], n_tiers=2).to_bytes())
    broken = [
        {},
        {"form": "other"},
        {**fitted, "weights": fitted["weights"][:-8]},
        {**fitted, "intercepts": [1.0]},
        {**fitted, "prototypes": "AAAA"},
        {**fitted, "extra": 1},
        {**seeds, "n_simple": 2},
        {**seeds, "n_dimensions": 0},
        {**seeds, "scale": 0.0},
        {**seeds, "seeds": "AAAA"},
    ]

    for state in broken:
        with pytest.raises(InputFileError, match="not a scorer"):
            load_semantic(json.dumps(state).encode())


def test_prototypes_find_the_topics_and_their_number_is_a_limit():
    rows, _ = draw_rows(400)
    vectors = np.stack([row.embedding for row in rows])
    found = find_prototypes(vectors, 4, seed=0)

    assert (found @ TOPICS.T).max(axis=0).min() > 0.98
    assert find_prototypes(vectors[:3], 10, seed=0).shape[0] <= 3
    assert (1, 16) == find_prototypes(np.repeat(vectors[:1], 20, axis=0), 5, seed=0).shape


@given(st.integers(1, 6), st.integers(0, 99))
def test_shares_sum_to_one_and_the_nearest_prototype_has_most(n_prototypes, seed):
    vectors = np.stack([row.embedding for row in draw_rows(30, seed=seed, noise=0.5)[0]])
    prototypes = find_prototypes(vectors, n_prototypes, seed=seed)
    shares = nearness(vectors, prototypes)

    assert shares.sum(axis=1) == pytest.approx(np.ones(30))
    assert np.linalg.norm(prototypes, axis=1) == pytest.approx(np.ones(len(prototypes)), abs=1e-5)
    assert np.argmax(vectors @ prototypes.T, axis=1).tolist() == shares.argmax(axis=1).tolist()


EASY, HARD = TOPICS[:2], TOPICS[2:]


def features_of(vector):
    return EmbeddingFeatures(embedding=vector.astype(np.float32), log_length=2.0)


def test_complexity_is_a_half_between_the_seeds_and_grows_toward_the_complex_ones():
    model = fit_seeds(list(EASY), list(HARD), n_tiers=2)
    easy, middle, hard = (model.complexity(vector) for vector in (EASY[1], (EASY[0] + HARD[0]) / 2**0.5, HARD[1]))

    assert easy < 0.3
    assert middle == pytest.approx(0.5)
    assert hard > 0.7


@given(st.integers(1, 5), st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_seeds_give_probabilities_that_rise_with_the_tier(n_tiers, weights):
    vector = np.array(weights) @ TOPICS
    logits = fit_seeds(list(EASY), list(HARD), n_tiers=n_tiers).logits(features_of(vector))

    assert (n_tiers,) == logits.shape
    assert (np.diff(logits) >= 0).all()
    assert (np.abs(logits) < 5).all()


def test_the_gain_of_a_dearer_tier_grows_with_complexity_and_the_dearest_is_always_sure():
    scorer = fit_seed_scorer(list(EASY), list(HARD), ("small", "middle", "big"))
    easy, hard = (as_probabilities(scorer, vector) for vector in (EASY[0], HARD[0]))

    assert hard["big"] - hard["small"] > easy["big"] - easy["small"] > 0
    assert hard["middle"] > hard["small"]
    assert easy["big"] == pytest.approx(hard["big"])


def as_probabilities(scorer, vector):
    logits = scorer.model.logits(features_of(vector))
    return dict(zip(scorer.tiers, (1 / (1 + np.exp(-logits))).tolist(), strict=True))


def test_seed_scorers_are_stored_and_loaded(make_prompt):
    scorer = fit_seed_scorer(list(EASY), list(HARD), ("small", "big"))
    again = SEMANTIC.load(scorer.model.to_bytes())
    unknown = again.logits(EmbeddingFeatures(embedding=None, log_length=1.0))

    assert isinstance(again, SeedModel)
    assert again.to_bytes() == scorer.model.to_bytes()
    assert 1 / (1 + np.exp(-unknown)) == pytest.approx([0.5, 0.99])
    assert frozenset({Signal.EMBEDDING}) == scorer.reads


def test_one_seed_a_side_is_enough_and_none_is_refused():
    assert fit_seeds(list(EASY[:1]), list(HARD[:1]), n_tiers=2).complexity(HARD[0]) > 0.9
    with pytest.raises(InputFileError, match="at least one simple and one complex"):
        fit_seeds([], list(HARD), n_tiers=2)
    with pytest.raises(InputFileError, match="shapes"):
        fit_seeds(list(EASY), [np.ones(3)], n_tiers=2)
    with pytest.raises(UsageError, match="at least one tier"):
        fit_seed_scorer(list(EASY), list(HARD), ())
    with pytest.raises(ValueError, match="at least one tier"):
        fit_seeds(list(EASY), list(HARD), n_tiers=0)


def test_the_recipe_reads_the_embedding_and_the_length_of_the_text(make_prompt):
    vector = TOPICS[0].astype(np.float32)
    found = SEMANTIC.extract(make_prompt("abc"), Signals(embedding=vector))

    assert found.embedding is vector
    assert found.log_length == pytest.approx(np.log(4))
    assert SEMANTIC.extract(make_prompt("abc"), Signals()).embedding is None


def test_a_seed_scorer_is_loaded_as_any_other_once_its_kind_is_registered():
    from llmtier.score.scorer import KINDS

    if "semantic" not in KINDS:
        pytest.skip("semantic is not registered yet")
    scorer = fit_seed_scorer(list(EASY), list(HARD), ("small", "big"))

    assert load_scorer("semantic", scorer.to_bytes()).to_bytes() == scorer.to_bytes()
