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


def test_coarse_buckets_ascend_without_repetition():
    buckets = coarse_buckets(extract_text(" ".join(f"word{number}" for number in range(400))))

    assert (np.diff(buckets.astype(int)) > 0).all()
    assert buckets.max() < 4096
