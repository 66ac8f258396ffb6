"""Policies and their scorer's sidecar."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.decision import Fallback, Objective
from llmtier.core.errors import DiskError, InputFileError, SchemaVersionError
from llmtier.core.interval import Interval
from llmtier.core.policy import Goal, GoalKind, Guarantee, Judgement, Policy, PolicyTier, ScorerRef
from llmtier.core.utility import UtilityWeights
from llmtier.store.policies import read_policy, read_scorer_state, write_policy

UNITS = st.floats(0, 1)
NUMBERS = st.floats(0, 1e6)
TEXTS = st.text(max_size=8)
INTERVALS = st.builds(lambda low, width: Interval(low=low, high=low + width), st.floats(-1, 1), UNITS)
JUDGEMENTS = st.builds(
    Judgement,
    n_fit=st.integers(0, 10**6),
    n_judge=st.integers(0, 10**6),
    accuracy=UNITS,
    accuracy_interval=INTERVALS,
    loss=st.floats(-1, 1),
    loss_interval=INTERVALS,
    usd_per_request=NUMBERS,
    reference_usd_per_request=NUMBERS,
    method=TEXTS,
)
TIERS = st.lists(
    st.builds(
        PolicyTier,
        name=TEXTS,
        checkpoint_digest=st.none() | TEXTS,
        usd_per_request=NUMBERS,
        accuracy=UNITS,
        share=UNITS,
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda tier: tier.name,
).map(tuple)


GOALS = st.one_of(
    st.builds(Goal, kind=st.sampled_from([GoalKind.MAX_ACCURACY_LOSS, GoalKind.MIN_ACCURACY]), value=UNITS),
    st.builds(Goal, kind=st.just(GoalKind.BUDGET_USD_PER_1K), value=st.floats(0, 1e6)),
    st.builds(Goal, kind=st.just(GoalKind.TARGET_SHARES), shares=st.just({"a": 0.25, "b": 0.75})),
    st.just(Goal(kind=GoalKind.DEFAULT_THRESHOLDS)),
    st.just(Goal(kind=GoalKind.UTILITY)),
)
WEIGHTS = st.builds(UtilityWeights, accuracy=st.floats(0.001, 9), latency_per_s=UNITS, cost_per_usd_1k=UNITS)
GUARANTEES = st.builds(
    Guarantee,
    statement=TEXTS,
    max_loss=st.none() | UNITS,
    min_accuracy=st.none() | UNITS,
    confidence=UNITS,
    n_labels=st.integers(0, 10**6),
    n_units=st.integers(0, 10**6),
    method=TEXTS,
    population=TEXTS,
)


@st.composite
def policies(draw):
    tiers = draw(TIERS)
    weights = draw(st.none() | WEIGHTS)
    return Policy(
        tiers=tiers,
        reference=draw(st.sampled_from(tiers)).name,
        scorer=ScorerRef(kind=draw(st.sampled_from(["entropy", "learned"])), file="", sha256=""),
        max_accuracy_gap=draw(st.none() | UNITS),
        goal=draw(GOALS),
        guarantee=draw(st.none() | GUARANTEES),
        gap_by_domain=draw(st.dictionaries(TEXTS, UNITS, max_size=2)),
        labels_needed=draw(st.none() | st.integers(1, 10**6)),
        warnings=tuple(draw(st.lists(TEXTS, max_size=2))),
        fallback=draw(st.sampled_from([f for f in Fallback if weights is not None or f is not Fallback.UTILITY])),
        objective=Objective.CHEAPEST if weights is None else Objective.UTILITY,
        weights=weights,
        judgement=draw(st.none() | JUDGEMENTS),
        inputs=draw(st.dictionaries(TEXTS, TEXTS, max_size=2)),
    )


@pytest.fixture
def policy():
    interval = Interval(low=0.0, high=0.5)
    return Policy(
        tiers=(PolicyTier(name="a", checkpoint_digest=None, usd_per_request=1e-6, accuracy=0.5, share=1.0),),
        reference="a",
        scorer=ScorerRef(kind="learned", file="", sha256=""),
        max_accuracy_gap=0.1,
        goal=Goal(kind=GoalKind.MAX_ACCURACY_LOSS, value=0.01),
        fallback=Fallback.MOST_ACCURATE,
        judgement=Judgement(
            n_fit=1,
            n_judge=1,
            accuracy=0.5,
            accuracy_interval=interval,
            loss=0.0,
            loss_interval=interval,
            usd_per_request=1e-6,
            reference_usd_per_request=1e-6,
            method="none",
        ),
        inputs={},
    )


def test_written_policies_read_back(tmp_path_factory, provenance):
    @settings(max_examples=15, deadline=None)
    @given(policies(), st.binary(max_size=20))
    def check(policy, state):
        path = tmp_path_factory.mktemp("policies") / "policy.json"
        written = write_policy(path, policy, state, provenance=provenance)

        assert written == read_policy(path)
        assert (policy.tiers, policy.judgement) == (written.tiers, written.judgement)
        assert state == read_scorer_state(path, written)

    check()


def test_a_policy_without_objective_takes_the_cheapest(tmp_path, policy, provenance):
    """As those written before there was another."""
    path = tmp_path / "policy.json"
    write_policy(path, policy, b"state", provenance=provenance)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({key: document[key] for key in document if key not in {"objective", "weights"}}))

    assert (Objective.CHEAPEST, None) == (read_policy(path).objective, read_policy(path).weights)


def test_older_scorer_is_removed_and_other_files_are_not(tmp_path, policy, provenance):
    path = tmp_path / "policy.json"
    (tmp_path / "policy.scorer-of-mine.json").write_text("{}")
    write_policy(path, policy, b"one", provenance=provenance)
    written = write_policy(path, policy, b"two", provenance=provenance)

    assert {"policy.json", "policy.scorer-of-mine.json", written.scorer.file} == {
        file.name for file in tmp_path.iterdir()
    }


def test_unreadable_policy_is_replaced(tmp_path, policy, provenance):
    path = tmp_path / "policy.json"
    path.write_text("{")
    written = write_policy(path, policy, b"state", provenance=provenance)

    assert written == read_policy(path)


@pytest.mark.parametrize("call", ["write", "replace"])
def test_full_disk_leaves_the_older_policy_with_its_scorer(tmp_path, policy, provenance, fill_disk, call):
    path = tmp_path / "policy.json"
    old = write_policy(path, policy, b"old", provenance=provenance)
    fill_disk(call)

    with pytest.raises(DiskError, match="No space left"):
        write_policy(path, policy, b"new", provenance=provenance)

    assert old == read_policy(path)
    assert b"old" == read_scorer_state(path, old)
    assert 2 == len(list(tmp_path.iterdir()))


def test_scorer_other_than_the_policys_is_refused(tmp_path, policy, provenance):
    path = tmp_path / "policy.json"
    written = write_policy(path, policy, b"state", provenance=provenance)
    (tmp_path / written.scorer.file).write_bytes(b"other")

    with pytest.raises(InputFileError, match=r"is not the scorer that policy\.json was fitted with"):
        read_scorer_state(path, written)


def test_absent_scorer_is_refused(tmp_path, policy, provenance):
    path = tmp_path / "policy.json"
    written = write_policy(path, policy, b"state", provenance=provenance)
    (tmp_path / written.scorer.file).unlink()

    with pytest.raises(InputFileError, match="cannot be read"):
        read_scorer_state(path, written)


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        (
            {"schema_version": 2},
            SchemaVersionError,
            "schema 2, this llmtier reads 1; run 'llmtier fit-thresholds' again",
        ),
        ({"reference": "b"}, InputFileError, "reference tier b is not among"),
        ({"fallback": "hope"}, InputFileError, "fallback: .*got 'hope'"),
        ({"max_accuracy_gap": 2}, InputFileError, "max_accuracy_gap must lie in"),
        ({"objective": "utility"}, InputFileError, "weights belong to utility"),
        ({"weights": {"accuracy": 1}}, InputFileError, "weights belong to utility"),
        ({"objective": "utility", "weights": {"accuracy": -1}}, InputFileError, "weights: weights must be finite"),
        ({"fallback": "utility"}, InputFileError, "fallback utility needs the objective utility"),
        ({"tiers": [{}]}, InputFileError, r"tiers\[0\]\.name is missing"),
        ({"judgement": {"accuracy_interval": 3}}, InputFileError, r"judgement\.\w+ is missing"),
    ],
)
def test_malformed_policy_is_refused(tmp_path, policy, provenance, change, error, expected):
    path = tmp_path / "policy.json"
    write_policy(path, policy, b"state", provenance=provenance)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(error, match=expected):
        read_policy(path)


def test_absent_policy_is_an_input_error(tmp_path):
    with pytest.raises(InputFileError, match=r"policy\.json: cannot be read: No such file"):
        read_policy(tmp_path / "policy.json")
