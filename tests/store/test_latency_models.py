"""Latency models: exact round trip, and nothing but whole models is read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, SchemaVersionError
from llmtier.core.latency_model import DomainBox, LatencyModel, Metric, ResidualBucket, StepModel
from llmtier.store.latency_models import decode_latency_model, encode_latency_model

PATH = Path("latency_model.json")
POSITIVE = st.floats(0, allow_infinity=False)
ANY = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 10**9)
PAIRS = st.tuples(ANY, ANY)
STEPS = st.builds(
    StepModel,
    alpha_s=POSITIVE,
    prefill_s_per_token=POSITIVE,
    attention_s_per_token2=POSITIVE,
    sequence_s=POSITIVE,
    kv_s_per_token=POSITIVE,
)
BUCKETS = st.builds(
    ResidualBucket,
    metric=st.sampled_from(Metric),
    max_in_flight=st.none() | COUNTS,
    n=COUNTS,
    quantiles=st.lists(PAIRS, max_size=3).map(tuple),
)
MODELS = st.builds(
    LatencyModel,
    step=STEPS,
    frontend_s=ANY,
    frontend_s_per_token=ANY,
    wait_share=ANY,
    mean_input_tokens=ANY,
    mean_output_tokens=ANY,
    domain=st.builds(DomainBox, input_tokens=PAIRS, output_tokens=PAIRS, n_in_flight=PAIRS),
    residuals=st.lists(BUCKETS, max_size=3).map(tuple),
    n_fit=COUNTS,
    max_batched_tokens=st.none() | COUNTS,
    max_sequences=st.none() | COUNTS,
    co_tenants=st.lists(st.tuples(st.text(max_size=8), ANY), max_size=2).map(tuple),
)


@settings(deadline=None)
@given(MODELS)
def test_written_models_read_back(model):
    assert model == decode_latency_model(encode_latency_model(model), path=PATH)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_model_with_a_number_that_json_lacks_is_written(latency_model, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_latency_model(replace(latency_model, frontend_s=value))


def change(model, **changes):
    return json.dumps({**json.loads(encode_latency_model(model)), **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"step": {}}, r"step\.alpha_s is missing"),
        ({"step": {"alpha_s": -1.0}}, r"step"),
        ({"frontend_s": "soon"}, "frontend_s: input should be a valid number"),
        ({"frontend_s": None}, "frontend_s"),
        ({"frontend_s": float("nan")}, "NaN is not JSON"),
        ({"domain": {"input_tokens": [1.0]}}, r"domain\.input_tokens"),
        ({"residuals": [{"metric": "speed_s"}]}, r"residuals\[0\]\.metric"),
        ({"schema_version": None}, "found no schema_version"),
    ],
)
def test_document_that_is_no_model_says_where(latency_model, changes, expected):
    with pytest.raises(InputFileError, match=rf"latency_model\.json: .*{expected}"):
        decode_latency_model(change(latency_model, **changes), path=PATH)


def test_negative_coefficient_is_refused(latency_model):
    data = encode_latency_model(latency_model).replace(b'"alpha_s": 0.004', b'"alpha_s": -0.004')

    with pytest.raises(InputFileError, match="alpha_s must be >= 0"):
        decode_latency_model(data, path=PATH)


def test_number_too_great_for_a_float_is_refused(latency_model):
    data = encode_latency_model(latency_model).replace(b'"alpha_s": 0.004', b'"alpha_s": 1e999')

    with pytest.raises(InputFileError, match="expected finite numbers; run 'llmtier profile' again"):
        decode_latency_model(data, path=PATH)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{", b"7"])
def test_junk_is_refused(data):
    with pytest.raises(InputFileError, match="expected a latency model"):
        decode_latency_model(data, path=PATH)


def test_other_version_is_refused(latency_model):
    with pytest.raises(SchemaVersionError, match="schema 2, this llmtier reads 1"):
        decode_latency_model(change(latency_model, schema_version=2), path=PATH)
