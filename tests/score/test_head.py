"""The head that requests are scored by says what the rows of the fit say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.score.blocks import N_DENSE, prepare
from llmtier.score.features import extract_text
from llmtier.score.head import Head
from llmtier.score.learned import LEARNED, fit_learned
from llmtier.score.learned_model import PromptFeatures, load_model
from llmtier.score.words import N_BUCKETS

TEXTS = ("Add 12 and 30.", "prove the theorem, prove it", "What?", "def f(x): return x", "π β 中文", "", "lunch " * 40)
FITTED = [extract_text(text).packed() for text in TEXTS]


@pytest.fixture(scope="module", params=[1, 2, 3, 4, 9])
def parts(request):
    """Return weights drawn at random for a number of tiers."""
    draw = np.random.default_rng(request.param)
    n_tiers = request.param
    return {
        "preparation": prepare(FITTED),
        "text": draw.standard_normal((N_BUCKETS, n_tiers)),
        "dense": draw.standard_normal((N_DENSE, n_tiers)),
        "intercepts": draw.standard_normal(n_tiers),
        "embedding": draw.standard_normal((3, n_tiers)),
    }


def by_rows(parts, features, embedding):
    """Return the logits in double precision, from the rows that a fit makes."""
    preparation = parts["preparation"]
    outputs = preparation.text_row(features) @ parts["text"][features.buckets]
    outputs = outputs + preparation.dense_row(features.numeric) @ parts["dense"] + parts["intercepts"]
    return outputs if embedding is None else outputs + embedding @ parts["embedding"]


def test_a_head_gives_the_logits_of_the_fits_rows(parts):
    head = Head.make(*parts.values())

    @settings(deadline=None, max_examples=60)
    @given(st.one_of(st.sampled_from(TEXTS), st.text(max_size=200)), st.booleans(), st.booleans())
    def check(text, is_packed, has_embedding):
        features = extract_text(text)
        embedding = np.array([0.6, 0.0, -0.8], dtype=np.float32) if has_embedding else None
        expected = by_rows(parts, features.packed(), embedding)

        assert expected == pytest.approx(
            head.outputs(features.packed() if is_packed else features, embedding), abs=1e-4
        )

    check()


def test_a_loaded_model_has_laid_out_all_that_requests_ask_for(make_labelled):
    """The first request of each kind must find no work of milliseconds left."""
    for with_domains, n_heads in ((False, 1), (True, 2)):
        rows = make_labelled(60, with_domains=with_domains)
        features = [PromptFeatures(extract_text(row.prompt.last_user_text), row.prompt.domain) for row in rows]
        scores = np.array([[row.scores["cheap"], row.scores["dear"]] for row in rows])
        model = load_model(fit_learned([LEARNED.pack(row) for row in features], scores, 0).to_bytes())
        laid_out = set(model._mixes)
        for domain in (None, "easy", "unheard of"):
            model.logits(features[0]._replace(domain=domain))

        assert laid_out == set(model._mixes)
        assert n_heads == len(laid_out)


def test_a_fit_reads_packed_rows_as_it_reads_plain_ones(make_labelled):
    rows = make_labelled(60, with_domains=True)
    scores = np.array([[row.scores["cheap"]] for row in rows])
    features = [PromptFeatures(extract_text(row.prompt.last_user_text), row.prompt.domain) for row in rows]
    packed = [LEARNED.pack(row) for row in features]

    assert fit_learned(features, scores, 0).to_bytes() == fit_learned(packed, scores, 0).to_bytes()
