"""Measured points: what was saved comes back whole, and nothing else ever does."""

import hashlib
import io
import logging
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import DiskError
from llmtier.core.tier import EngineIdentity
from llmtier.store import measured_points
from llmtier.store.measured_points import MeasuredPoints, SampleRow, SavedPoint, point_key
from llmtier.store.parquet import encode_rows
from llmtier.store.profiles import REQUEST_COLUMNS, RequestRow

KEY, OTHER = "a" * 64, "b" * 64
INSTANTS = st.floats(0, 1e6)
COUNTS = st.integers(0, 10**9)
TEXTS = st.text(max_size=8)
ROWS = st.builds(
    RequestRow,
    tier=TEXTS,
    concurrency=st.none() | COUNTS,
    prompt_id=TEXTS,
    scheduled_s=INSTANTS,
    sent_s=INSTANTS,
    first_s=st.none() | INSTANTS,
    last_s=st.none() | INSTANTS,
    done_s=INSTANTS,
    n_input_tokens=st.none() | COUNTS,
    n_output_tokens=st.none() | COUNTS,
    status=TEXTS,
    shape=TEXTS,
    n_chunks=st.none() | COUNTS,
    is_counted=st.none() | st.booleans(),
)
SAMPLES = st.builds(SampleRow, row=ROWS, content_s=st.lists(INSTANTS, max_size=5).map(tuple), is_warmup=st.booleans())
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
POINTS = st.builds(
    SavedPoint, samples=st.lists(SAMPLES, max_size=4).map(tuple), facts=st.dictionaries(TEXTS, PLAIN, max_size=3)
)


def make_point(n=3, **facts):
    row = RequestRow(
        tier="t", concurrency=2, prompt_id="p", scheduled_s=0.0, sent_s=0.1, first_s=0.2, last_s=0.9, done_s=1.0,
        n_input_tokens=5, n_output_tokens=3, shape="closed:2", n_chunks=2,
    )  # fmt: skip
    samples = [SampleRow(row=replace(row, prompt_id=f"p{i}"), content_s=(0.2, 0.9), is_warmup=i == 0) for i in range(n)]
    return SavedPoint(samples=tuple(samples), facts=facts)


@pytest.fixture
def points(tmp_path):
    return MeasuredPoints(tmp_path / "points")


def test_saved_points_read_back(tmp_path_factory):
    @settings(max_examples=40, deadline=None)
    @given(POINTS)
    def check(point):
        points = MeasuredPoints(tmp_path_factory.mktemp("points"))
        points.save(KEY, point)

        assert point == points.find(KEY)

    check()


def test_what_was_never_saved_is_not_found(points, caplog):
    assert points.find(KEY) is None
    assert frozenset() == points.keys()
    assert [] == caplog.records


def test_later_point_takes_the_place_of_the_earlier(points):
    points.save(KEY, make_point(seed=1))
    points.save(KEY, make_point(seed=2))

    assert {"seed": 2} == points.find(KEY).facts


def test_half_a_surrogate_pair_costs_no_point(points):
    point = make_point(error="a\ud800")
    samples = (replace(point.samples[0], row=replace(point.samples[0].row, status="b\ud800")),)
    points.save(KEY, replace(point, samples=samples))
    found = points.find(KEY)

    assert ("a\ufffd", "b\ufffd") == (found.facts["error"], found.samples[0].row.status)


@pytest.mark.parametrize("content_s", [(0.1, float("nan")), (float("nan"),)])
def test_nan_is_refused(points, content_s):
    point = make_point(1)
    with pytest.raises(ValueError, match="must not hold NaN"):
        points.save(KEY, replace(point, samples=(replace(point.samples[0], content_s=content_s),)))
    with pytest.raises(ValueError, match="not JSON compliant"):
        points.save(KEY, make_point(energy_j=content_s[-1]))

    assert frozenset() == points.keys()


@pytest.mark.parametrize("call", ["write", "replace"])
def test_full_disk_keeps_the_earlier_points(points, fill_disk, call):
    points.save(KEY, make_point(seed=1))
    fill_disk(call)

    with pytest.raises(DiskError, match="No space left"):
        points.save(OTHER, make_point())
    with pytest.raises(DiskError, match="No space left"):
        points.save(KEY, make_point(seed=2))

    assert make_point(seed=1) == points.find(KEY)
    assert points.find(OTHER) is None


def file_of(tmp_path, key=KEY):
    [file] = (tmp_path / "points").glob(f"{key}.*.parquet")
    return file


def assert_ignored(points, caplog, reason):
    with caplog.at_level(logging.WARNING, logger="llmtier.store.measured_points"):
        assert points.find(KEY) is None

    assert "saved load point ignored" == caplog.messages[-1]
    assert reason in caplog.records[-1].reason


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_torn_file_is_ignored(points, tmp_path, caplog, share):
    points.save(KEY, make_point(50))
    file = file_of(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])

    assert_ignored(points, caplog, "was torn or changed")


def test_one_changed_byte_makes_a_file_none(points, tmp_path):
    points.save(KEY, make_point(seed=4))
    file = file_of(tmp_path)
    data = file.read_bytes()

    for place in range(0, len(data), 97):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert points.find(KEY) is None
    file.write_bytes(data)
    assert make_point(seed=4) == points.find(KEY)


def test_whole_file_is_found_beside_a_torn_one(points, tmp_path):
    points.save(KEY, make_point(seed=4))
    for digest in ("0" * 16, "f" * 16):
        (tmp_path / "points" / f"{KEY}.{digest}.parquet").write_bytes(b"PAR1")

    assert make_point(seed=4) == points.find(KEY)
    points.save(KEY, make_point(seed=5))
    assert [file_of(tmp_path)] == list((tmp_path / "points").iterdir())


def test_file_of_another_key_is_ignored(points, tmp_path, caplog):
    points.save(OTHER, make_point())
    file = file_of(tmp_path, OTHER)
    file.rename(file.with_name(file.name.replace(OTHER, KEY)))

    assert_ignored(points, caplog, "not what this llmtier writes under that key")


def test_file_of_an_older_schema_is_ignored(points, caplog, monkeypatch):
    older = tuple(column for column in measured_points.SAMPLE_COLUMNS if column.name != "is_counted")
    with monkeypatch.context() as patch:
        patch.setattr(measured_points, "SAMPLE_COLUMNS", older)
        points.save(KEY, make_point())

    assert_ignored(points, caplog, "not what this llmtier writes under that key")


def put(tmp_path, data):
    folder = tmp_path / "points"
    folder.mkdir(exist_ok=True)
    (folder / f"{KEY}.{hashlib.sha256(data).hexdigest()[:16]}.parquet").write_bytes(data)


def test_other_artifact_is_ignored(points, tmp_path, caplog):
    put(tmp_path, encode_rows([], REQUEST_COLUMNS, artifact="requests"))

    assert_ignored(points, caplog, "expected measured point, found requests")


def test_what_is_no_table_is_ignored(points, tmp_path, caplog):
    put(tmp_path, b"a note, whole")

    assert_ignored(points, caplog, "expected Parquet")


def test_folder_in_the_place_of_a_file_is_ignored(points, tmp_path, caplog):
    (tmp_path / "points" / f"{KEY}.{'0' * 16}.parquet").mkdir(parents=True)

    assert_ignored(points, caplog, "cannot be read")


def test_discarded_points_are_gone_with_what_interrupted_writes_left(points, tmp_path):
    points.save(KEY, make_point())
    points.save(OTHER, make_point())
    (tmp_path / "points" / f".{KEY}.0.parquet.12345678.tmp").write_bytes(b"half")

    assert {KEY, OTHER} == points.keys()
    points.discard(points.keys() - {OTHER})
    assert [file_of(tmp_path, OTHER)] == list((tmp_path / "points").iterdir())
    points.discard([OTHER, KEY])
    assert not (tmp_path / "points").exists()
    points.discard([KEY])


def test_foreign_files_in_the_folder_stay(points, tmp_path):
    points.save(KEY, make_point())
    (tmp_path / "points" / "notes.parquet").write_bytes(b"mine")

    assert {KEY} == points.keys()
    points.discard(points.keys())
    assert ["notes.parquet"] == [path.name for path in (tmp_path / "points").iterdir()]


@pytest.mark.parametrize("key", ["", "a", "../" + "a" * 61, "A" * 64, "a" * 65])
def test_other_names_are_no_keys(points, key):
    with pytest.raises(ValueError, match="expected a key of point_key"):
        points.find(key)
    with pytest.raises(ValueError, match="expected a key of point_key"):
        points.save(key, make_point())


DOCUMENT = {"engine": EngineIdentity(name="vllm", flags=("--a",)), "seed": 1, "settings": {"n": 5, "shape": "closed:1"}}


def test_key_does_not_depend_on_the_order_of_keys():
    shuffled = {"settings": {"shape": "closed:1", "n": 5}, **dict(reversed(DOCUMENT.items()))}

    assert point_key(DOCUMENT) == point_key(shuffled)
    assert 64 == len(point_key(DOCUMENT))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"seed": None},
        {"settings": {"n": 6, "shape": "closed:1"}},
        {"engine": EngineIdentity(name="vllm", flags=("--b",))},
        {"more": None},
    ],
)
def test_key_depends_on_everything(changes):
    assert point_key(DOCUMENT) != point_key({**DOCUMENT, **changes})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_what_has_no_one_way_to_be_written_is_no_part_of_a_key(value):
    with pytest.raises((TypeError, ValueError), match=r"no one way|not JSON compliant"):
        point_key({"value": value})


def test_points_do_not_depend_on_row_groups(points, tmp_path):
    """A table that comes back in several chunks holds the same samples."""
    points.save(KEY, make_point(5))
    buffer = io.BytesIO()
    pq.write_table(pq.read_table(file_of(tmp_path)), buffer, row_group_size=2)
    points.discard([KEY])
    put(tmp_path, buffer.getvalue())

    assert make_point(5) == points.find(KEY)
