"""The guess of a domain from the text."""

import random

import numpy as np

from llmtier.score.domain import MAX_DOMAINS, coarse_buckets, fit_domains
from llmtier.score.features import extract_text

VOCABULARY = {"law": "court appeal verdict judge", "food": "soup bread cheese salt", "sky": "cloud rain storm wind"}


def draw_rows(n, seed=0):
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        domain = draw.choice(sorted(VOCABULARY))
        words = draw.choices(VOCABULARY[domain].split(), k=3) + draw.choices(["the", "of", "and", "to", "in"], k=4)
        rows.append((extract_text(" ".join(words)), domain))
    return rows


def test_the_domain_of_a_new_text_is_guessed():
    model = fit_domains(draw_rows(200))
    unseen = draw_rows(100, seed=1)

    assert ("food", "law", "sky") == model.domains
    assert all(domain == model.guess(text).domain for text, domain in unseen)
    assert all(abs(model.posterior(text).sum() - 1) < 1e-9 for text, _ in unseen)


def test_a_text_that_says_nothing_gets_the_shares_of_the_domains():
    rows = draw_rows(60) + [(extract_text("cheese"), "food")] * 60
    model = fit_domains(rows)
    posterior = model.posterior(extract_text(""))

    assert "food" == model.guess(extract_text("")).domain
    assert abs(posterior[0] - sum(domain == "food" for _, domain in rows) / 120) < 0.01


def test_fewer_than_two_domains_are_nothing_to_guess():
    text = extract_text("hello")

    assert fit_domains([]) is None
    assert fit_domains([(text, None), (text, "one"), (text, "one")]) is None


def test_only_the_most_frequent_domains_are_guessed():
    text = extract_text("hello")
    rows = [(text, f"d{number:04d}") for number in range(MAX_DOMAINS + 50)] + [(text, "zz")] * 3
    model = fit_domains(rows)

    assert MAX_DOMAINS == len(model.domains)
    assert "zz" in model.domains


def test_coarse_buckets_are_those_of_the_words_each_once():
    text = extract_text(" ".join(f"word{number}" for number in range(400)))

    assert sorted({bucket >> 4 for bucket in text.buckets.tolist()}) == sorted(coarse_buckets(text).tolist())
    assert coarse_buckets(text).max() < 4096
    assert set(coarse_buckets(text).tolist()) == set(coarse_buckets(text.packed()).tolist())


def test_the_posterior_is_the_softmax_of_the_evidence():
    model = fit_domains(draw_rows(200))
    text = extract_text("the court of bread")
    evidence = model.prior + sum(model.evidence[bucket].astype(float) for bucket in set(coarse_buckets(text).tolist()))
    odds = np.exp(evidence)

    assert np.allclose(odds / odds.sum(), model.posterior(text), rtol=1e-5)
