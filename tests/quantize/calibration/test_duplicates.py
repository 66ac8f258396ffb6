import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.quantize.calibration import duplicates
from llmtier.quantize.calibration.duplicates import DuplicateFinder, bands_for
from llmtier.quantize.calibration.minhash import (
    N_HASHES,
    SHINGLE_WORDS,
    content_keys,
    make_signatures,
    pieces,
    split_words,
)

WORDS = st.sampled_from(["refund", "order", "parcel", "late", "card", "login", "reset", "broken", "blue", "thanks"])
TEXTS = st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=25)


def find(texts, *, similarity=0.8, batch=7):
    finder = DuplicateFinder(similarity=similarity)
    for start in range(0, len(texts), batch):
        finder.add(texts[start : start + batch])
    return finder.find()


def clusters(texts, found):
    """The contents that were joined, whatever their order."""
    return {frozenset(texts[index] for index in np.flatnonzero(found.first == first)) for first in set(found.first)}


def random_texts(rng, n, *, n_words=60):
    return [" ".join(f"w{word}" for word in rng.integers(0, 3000, n_words)) for _ in range(n)]


def shingles(text):
    words = split_words(text)
    return {tuple(words[start : start + SHINGLE_WORDS]) for start in range(len(words) - SHINGLE_WORDS + 1)}


def jaccard(left, right):
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b)


def change_words(text, rng, n):
    words = text.split()
    for place in rng.choice(len(words), n, replace=False):
        words[place] = f"changed{rng.integers(10**9)}"
    return " ".join(words)


def test_find_knows_what_to_do_with_nothing():
    found = find([])

    assert 0 == len(found.first)
    assert (0, 0) == (found.n_exact, found.n_near)


def test_find_keeps_first_of_equal_documents():
    texts = ["", "hello", "  hello ", "Good  bye", "Good\nbye", "", "你好"]

    found = find(texts)

    assert [0, 1, 1, 3, 3, 0, 6] == found.first.tolist()
    assert [True, True, False, True, False, False, True] == found.is_kept.tolist()
    assert (3, 0) == (found.n_exact, found.n_near)


def test_composed_and_decomposed_characters_are_equal():
    assert [0, 0] == find(["café au lait", "cafe\u0301 au lait"], similarity=1.0).first.tolist()


def test_half_a_surrogate_pair_is_taken():
    assert [0, 1, 0] == find(["broken \ud800 text", "a text", "broken \ud800 text"]).first.tolist()


def test_similarity_of_one_finds_exact_duplicates_only():
    text = "please tell me where my parcel is " * 5

    found = find([text, text.upper(), text], similarity=1.0)

    assert [0, 1, 0] == found.first.tolist()
    assert (1, 0) == (found.n_exact, found.n_near)


def test_case_aside_equal_documents_are_near_duplicates():
    found = find(["Where is my parcel?", "where is my parcel?", "Hi", "hi"])

    assert [0, 0, 2, 2] == found.first.tolist()
    assert (0, 2) == (found.n_exact, found.n_near)


@pytest.mark.parametrize(("left", "right"), [("2 + 3", "2 - 3"), ("yes", "no"), ("hi", ""), ("今天天气", "明天下雨")])
def test_short_documents_that_differ_are_kept(left, right):
    assert find([left, right]).is_kept.all()


@pytest.mark.parametrize("similarity", [0.0, -0.5, 1.1, float("nan")])
def test_similarity_outside_its_range_is_refused(similarity):
    with pytest.raises(ValueError, match="similarity"):
        DuplicateFinder(similarity=similarity)


@pytest.mark.parametrize("similarity", [0.6, 0.7, 0.8, 0.9])
def test_planted_near_duplicates_are_found_and_others_are_not(similarity):
    n = 400  # planted pairs, each at least 0.1 more similar than asked
    rng = np.random.default_rng(1)
    n_words = 150 if similarity == 0.9 else 60
    originals = random_texts(rng, n, n_words=n_words)
    copies = []
    for original in originals:
        n_changed = n_words // 6
        copy = change_words(original, rng, n_changed)
        while jaccard(original, copy) < min(1.0, similarity + 0.1) - 1e-9 and n_changed:
            n_changed -= 1
            copy = change_words(original, rng, n_changed) if n_changed else original.upper()
        copies.append(copy)

    found = find([*originals, *copies], similarity=similarity, batch=500)

    assert found.is_kept[:n].all()
    assert 0.95 <= np.mean(found.first[n:] == np.arange(n))
    assert np.isin(found.first[n:] - np.arange(n), [0, n]).all()


def test_documents_clearly_less_similar_than_asked_are_not_joined():
    rng = np.random.default_rng(2)
    n = 600
    originals = random_texts(rng, n)
    halves = [change_words(original, rng, 12) for original in originals]  # Jaccard 0.3 to 0.5

    found = find([*originals, *halves], batch=500)

    assert 0.6 > max(map(jaccard, originals, halves))
    assert found.is_kept.all()


def test_documents_of_one_template_are_told_apart():
    rng = np.random.default_rng(3)
    frame = " ".join(f"frame{word}" for word in range(40))
    texts = [f"{frame} {' '.join(f'w{word}' for word in rng.integers(0, 5000, 50))}" for _ in range(400)]

    found = find([*texts, *(text + " ok" for text in texts)], batch=500)

    assert found.is_kept[:400].all()
    assert 0.95 <= np.mean(found.first[400:] == np.arange(400))


def test_bounded_comparison_ends_and_says_what_it_left_out(monkeypatch):
    text = " ".join(f"w{word}" for word in range(50))
    texts = [f"{text} {index}" for index in range(10)]
    assert 0 == find(texts).n_uncompared

    monkeypatch.setattr(duplicates, "COMPARED_AT_LEAST", 5)
    monkeypatch.setattr(duplicates, "COMPARED_PER_DOCUMENT", 0)
    found = find(texts)

    assert 9 == found.n_uncompared
    assert 0 == found.n_near


def test_find_may_be_asked_again_after_more_documents():
    finder = DuplicateFinder(similarity=0.8)
    finder.add(["one two three four", "five six seven eight"])
    finder.find()
    finder.add(["five six  seven eight"])

    assert [0, 1, 1] == finder.find().first.tolist()
    assert content_keys(["one two three four"])[0] == finder.keys[0]


@given(TEXTS, st.randoms(use_true_random=False), st.sampled_from([0.5, 0.8, 1.0]))
@settings(deadline=None)
def test_order_and_batches_do_not_change_what_is_joined(texts, random, similarity):
    shuffled = random.sample(texts, len(texts))

    found, again = find(texts, similarity=similarity), find(shuffled, similarity=similarity, batch=3)

    assert clusters(texts, found) == clusters(shuffled, again)
    assert (found.n_exact, found.n_near) == (again.n_exact, again.n_near)


@given(TEXTS)
@settings(deadline=None)
def test_first_is_a_kept_document_and_counts_add_up(texts):
    found = find(texts)

    assert (found.first <= np.arange(len(texts))).all()
    assert found.is_kept[found.first].all()
    assert len(texts) - found.n_exact - found.n_near == found.is_kept.sum()
    by_content = {}
    for text, first in zip(texts, found.first.tolist(), strict=True):
        assert first == by_content.setdefault(text, first)


@given(TEXTS, st.lists(st.text(alphabet="αβγδ ", min_size=10, max_size=40), max_size=10))
@settings(deadline=None)
def test_unrelated_documents_change_nothing(texts, others):
    alone = clusters(texts, find(texts))

    together = clusters([*others, *texts], find([*others, *texts]))

    assert {cluster & set(texts) for cluster in together} - {frozenset()} == alone


@given(TEXTS)
def test_signature_of_a_document_does_not_depend_on_its_neighbours(texts):
    together = make_signatures(texts)

    assert (len(texts), N_HASHES) == together.shape
    for text, signature in zip(texts, together, strict=True):
        assert make_signatures([text])[0].tolist() == signature.tolist()


def test_signature_agreement_estimates_jaccard_without_bias():
    rng = np.random.default_rng(4)
    n = 400
    originals = random_texts(rng, n)
    changed = [change_words(text, rng, 4) for text in originals]

    agreement = (make_signatures(originals) == make_signatures(changed)).mean(axis=1)
    errors = agreement - np.array(list(map(jaccard, originals, changed)))

    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(n)
    assert errors.std() < 0.044


@given(st.lists(st.text(max_size=5)))
def test_pieces_are_all_texts_in_order(texts):
    assert texts == [text for piece in pieces(texts) for text in piece]


def test_pieces_are_bounded():
    huge = "x" * 3_000_000

    assert [1, 2] == [len(piece) for piece in pieces([huge, huge, "small"])]
    assert [2000, 1] == [len(piece) for piece in pieces(["small"] * 2001)]


@pytest.mark.parametrize("similarity", [0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.999])
def test_bands_find_nearly_every_pair_as_similar_as_asked(similarity):
    n_bands, n_rows = bands_for(similarity)

    assert 0.98 <= 1 - (1 - similarity**n_rows) ** n_bands
    assert n_bands * n_rows <= N_HASHES


def test_signatures_of_unrelated_documents_agree_nowhere_to_speak_of():
    rng = np.random.default_rng(5)
    n = 1000

    left, right = make_signatures(random_texts(rng, n)), make_signatures(random_texts(rng, n))

    assert (left == right).mean() < 1e-3
