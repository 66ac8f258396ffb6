"""Profiles: round trip, identity, refusals."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import DiskError, InputFileError, SchemaVersionError
from llmtier.core.interval import Interval
from llmtier.core.profile import AccuracyEstimate, Cost, LoadPoint, TierProfile
from llmtier.core.tier import EngineIdentity
from llmtier.store.parquet import read_any, write_rows
from llmtier.store.profile_rows import POINT_COLUMNS, PROFILE_COLUMNS
from llmtier.store.profiles import (
    REQUEST_COLUMNS,
    AccuracyItem,
    LoadRecord,
    RequestRow,
    read_items,
    read_profile,
    read_profile_manifest,
    read_profiles,
    read_requests,
    write_profile,
)

NUMBERS = st.floats(0, 1e6)
COUNTS = st.integers(0, 10**9)
TEXTS = st.text(max_size=8)
ENGINES = st.builds(
    EngineIdentity,
    name=TEXTS,
    version=st.none() | TEXTS,
    flags=st.lists(TEXTS, max_size=2).map(tuple),
    environment=st.lists(TEXTS, max_size=2).map(tuple),
)
FACTS = {
    column.name: st.none() | {"float64": NUMBERS, "int64": COUNTS, "bool": st.booleans()}[column.type]
    for column in POINT_COLUMNS
    if column.nullable and column.name not in {"concurrency", "shape", "invalid"}
}


def make_points(concurrency):
    return st.builds(
        LoadPoint,
        concurrency=concurrency,
        n_ok=COUNTS,
        n_failed=COUNTS,
        duration_s=st.floats(1e-6, 1e6),
        shape=TEXTS,
        invalid=st.lists(TEXTS, max_size=2).map(tuple),
        **FACTS,
    )


CLOSED = st.lists(make_points(st.integers(1, 500)), max_size=3, unique_by=lambda point: point.concurrency).map(
    lambda points: tuple(sorted(points, key=lambda point: point.concurrency))
)
OTHERS = st.lists(make_points(st.none()), max_size=2).map(tuple)
INTERVALS = st.builds(lambda low, width: Interval(low=low, high=low + width), st.floats(0, 1), st.floats(0, 1))
ESTIMATES = st.builds(
    AccuracyEstimate, domain=TEXTS, n=COUNTS, n_failed=COUNTS, accuracy=st.floats(0, 1), interval=INTERVALS
)
PROFILES = st.builds(
    TierProfile,
    tier=st.from_regex(r"[A-Za-z0-9][a-z@._-]{0,8}", fullmatch=True),
    checkpoint_digest=st.none() | TEXTS,
    engine=ENGINES,
    hardware_fingerprint=TEXTS,
    device=st.sampled_from(["cpu:0", "gpu:0+1"]),
    co_tenants=st.lists(TEXTS, max_size=2).map(tuple),
    context_tokens=st.none() | COUNTS,
    points=st.tuples(CLOSED, OTHERS).map(lambda pair: pair[0] + pair[1]),
    accuracy=st.lists(ESTIMATES, max_size=2, unique_by=lambda estimate: estimate.domain).map(tuple),
    cost=st.none()
    | st.builds(
        Cost,
        usd_per_hour=NUMBERS,
        usd_per_request=NUMBERS,
        usd_per_output_token=st.none() | NUMBERS,
        concurrency=st.integers(1, 64),
    ),
    goodput_rps=st.none() | NUMBERS,
    max_in_flight=st.none() | st.integers(1, 500),
)
REQUESTS = st.lists(
    st.builds(
        RequestRow,
        tier=TEXTS,
        concurrency=st.none() | st.integers(1, 64),
        prompt_id=TEXTS,
        scheduled_s=NUMBERS,
        sent_s=NUMBERS,
        first_s=st.none() | NUMBERS,
        last_s=st.none() | NUMBERS,
        done_s=NUMBERS,
        n_input_tokens=st.none() | COUNTS,
        n_output_tokens=st.none() | COUNTS,
        status=TEXTS,
        shape=TEXTS,
        n_chunks=st.none() | COUNTS,
        is_counted=st.none() | st.booleans(),
    ),
    max_size=3,
)
ITEMS = st.lists(
    st.builds(
        AccuracyItem,
        prompt_id=TEXTS,
        domain=st.none() | TEXTS,
        scorer=TEXTS,
        expected=st.none() | TEXTS,
        text=st.none() | TEXTS,
        score=st.floats(0, 1),
        error=st.none() | TEXTS,
    ),
    max_size=3,
)


def make_profile(tier="mini@bf16", **changes):
    interval = Interval(low=0.6, high=0.8)
    point = LoadPoint(
        concurrency=1, n_ok=3, n_failed=0, duration_s=2.0, mean_input_tokens=None, mean_output_tokens=None,
        ttft_p50_s=0.1, ttft_p95_s=0.2, tpot_p50_s=None, tpot_p95_s=None, itl_p50_s=None, itl_p95_s=None,
        e2el_p50_s=0.3, e2el_p95_s=0.4,
    )  # fmt: skip
    profile = TierProfile(
        tier=tier,
        checkpoint_digest="ab" * 32,
        engine=EngineIdentity(name="vllm"),
        hardware_fingerprint="f" * 12,
        device="cpu:0",
        co_tenants=(),
        context_tokens=512,
        points=(point,),
        accuracy=(AccuracyEstimate(domain="all", n=10, n_failed=0, accuracy=0.7, interval=interval),),
        cost=None,
    )
    return replace(profile, **changes)


@pytest.fixture
def write(tmp_path, hardware, provenance):
    def write_one(profile, *, root=tmp_path, on=hardware, requests=(), load=None):
        return write_profile(root, on, profile, requests=requests, items=[], provenance=provenance, load=load)

    return write_one


def test_written_profiles_read_back(tmp_path_factory, hardware, provenance, latency_model):
    @settings(max_examples=15, deadline=None)
    @given(PROFILES, REQUESTS, ITEMS, st.booleans())
    def check(profile, requests, items, has_model):
        profile = replace(profile, latency=latency_model if has_model else None)
        root = tmp_path_factory.mktemp("profiles")
        folder = write_profile(root, hardware, profile, requests=requests, items=items, provenance=provenance)

        assert profile == read_profile(folder)
        assert requests == read_requests(folder)
        assert items == read_items(folder)
        assert {profile.tier: profile} == read_profiles(root, hardware.slug)

    check()


def test_profile_lies_under_its_hardware_and_tier_with_its_provenance(tmp_path, write, hardware, provenance):
    folder = write(make_profile())
    tables = {"requests.parquet", "points.parquet", "accuracy.parquet", "profile.parquet"}

    assert tmp_path / "nvidia-l4-x2" / "mini@bf16" == folder
    assert {*tables, "manifest.json"} == {path.name for path in folder.iterdir()}
    assert provenance == read_profile_manifest(folder).provenance
    assert tables == read_profile_manifest(folder).files.keys()


def test_newer_profile_takes_the_place_of_the_older(tmp_path, write):
    write(make_profile(context_tokens=1))
    folder = write(make_profile(context_tokens=2))

    assert 2 == read_profile(folder).context_tokens
    assert [folder] == list(folder.parent.iterdir())


@pytest.mark.parametrize("call", ["write", "replace"])
def test_full_disk_leaves_the_older_profile(write, fill_disk, call):
    old = make_profile()
    folder = write(old)
    fill_disk(call)

    with pytest.raises(DiskError, match="No space left"):
        write(make_profile(context_tokens=2))

    assert old == read_profile(folder)
    assert [folder] == list(folder.parent.iterdir())


@pytest.mark.parametrize("name", ["../up", ".hidden", "a/b", "", "a" * 101, "ä"])
def test_tier_name_that_is_no_safe_folder_is_refused(write, name):
    with pytest.raises(ValueError, match="tier name"):
        write(make_profile(tier=name))


@pytest.mark.parametrize("concurrencies", [(4, 1), (None, 1), (1, None, 4)])
def test_closed_loops_must_stand_first_and_ascend(write, concurrencies):
    point = make_profile().points[0]
    points = tuple(replace(point, concurrency=concurrency) for concurrency in concurrencies)

    with pytest.raises(ValueError, match="closed loops must stand first and ascend"):
        write(make_profile(points=points))


def test_one_concurrency_has_one_valid_closed_loop(write):
    point = make_profile().points[0]
    invalid = replace(point, invalid=("no steady state",), seed=7)

    with pytest.raises(ValueError, match=r"two valid closed loops of one concurrency in \[1, 1\]"):
        write(make_profile(points=(point, point)))
    assert (invalid, point) == read_profile(write(make_profile(points=(invalid, point)))).points


def test_points_of_one_open_shape_are_kept_apart_in_their_order(write):
    point = replace(make_profile().points[0], concurrency=None, shape="poisson:2", asked_rps=2.0)
    points = tuple(replace(point, seed=seed) for seed in (5, 3, 4))

    assert points == read_profile(write(make_profile(points=points))).points


def test_a_domain_must_not_stand_twice(write):
    with pytest.raises(ValueError, match="stands twice"):
        write(make_profile(accuracy=make_profile().accuracy * 2))


def test_manifest_tells_how_the_load_was_made(write):
    load = LoadRecord(
        settings={"shapes": ["closed:1"], "precision": None},
        seeds=(3, 4),
        self_test={"schedule_delay_p99_s": 0.001},
        engine_side=({"preemptions": 2},),
        co_tenant_shares={"nano@int8": "cpu:0"},
    )
    folder = write(make_profile(), load=load)
    unwatched = write(make_profile("other"), load=LoadRecord(engine_side=(None,)))

    assert load == read_profile_manifest(folder).load
    assert (None,) == read_profile_manifest(unwatched).load.engine_side
    assert LoadRecord() == read_profile_manifest(write(make_profile())).load


def test_engine_side_has_one_record_a_point(tmp_path, write):
    with pytest.raises(ValueError, match="2 records of the engine's side for 1 load points"):
        write(make_profile(), load=LoadRecord(engine_side=(None, None)))

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("load", [{"settings": {"rate_rps": float("inf")}}, {"self_test": {"x_s": float("nan")}}])
def test_numbers_that_json_lacks_never_reach_the_manifest(write, load):
    folder = write(make_profile())

    with pytest.raises(ValueError, match="not JSON compliant"):
        write(make_profile(context_tokens=1), load=LoadRecord(**load))

    assert 512 == read_profile(folder).context_tokens


def test_nan_never_reaches_the_disk(tmp_path, write):
    profile = make_profile()
    points = (replace(profile.points[0], ttft_p95_s=float("nan")),)

    with pytest.raises(ValueError, match="ttft_p95_s must not hold NaN"):
        write(replace(profile, points=points))

    assert [] == list(tmp_path.iterdir())


def test_folders_without_a_manifest_are_no_profiles(tmp_path, write):
    folder = write(make_profile())
    (folder.parent / "unfinished").mkdir()
    hidden = folder.parent / ".mini@bf16.12345678.old"
    hidden.mkdir()
    (hidden / "manifest.json").write_text("{}")

    assert ["mini@bf16"] == list(read_profiles(tmp_path))


@pytest.mark.parametrize("slug", [None, "nvidia-l4-x2"])
def test_absent_profiles_say_what_to_run(tmp_path, slug):
    with pytest.raises(InputFileError, match=r"holds no profile.*run 'llmtier profile'"):
        read_profiles(tmp_path, slug)


def test_tier_profiled_on_two_machines_needs_the_hardware(tmp_path, write, hardware):
    write(make_profile())
    write(make_profile(context_tokens=9), on=replace(hardware, gpus=()))

    with pytest.raises(InputFileError, match="profiled on amd-epyc-7b13-2c and nvidia-l4-x2; name the hardware"):
        read_profiles(tmp_path)
    assert 9 == read_profiles(tmp_path, "amd-epyc-7b13-2c")["mini@bf16"].context_tokens


def change_manifest(folder, **changes):
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_older_schema_is_refused(write):
    folder = write(make_profile())
    change_manifest(folder, schema_version=0)

    with pytest.raises(SchemaVersionError, match="schema 0, this llmtier reads 1; run 'llmtier profile' again"):
        read_profile(folder)


def test_malformed_manifest_names_the_key(write):
    folder = write(make_profile())
    change_manifest(folder, engine={})

    with pytest.raises(InputFileError, match=r"manifest\.json: engine\.name is missing"):
        read_profile(folder)


def make_older(folder, name, artifact, columns):
    """Leave in a table only what the first version of profiles wrote, and make the manifest agree."""
    data = [{column.name: row[column.name] for column in columns} for row in read_any(folder / name).rows]
    write_rows(folder / name, data, columns, artifact=artifact)
    document = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    later = ("goodput_rps", "max_in_flight", "load")
    older = {key: value for key, value in document.items() if key not in later}
    (folder / "manifest.json").write_text(json.dumps({**older, "files": {**document["files"], name: digest}}))


def test_profile_of_the_first_version_is_one_of_closed_loops(write):
    points = tuple(replace(make_profile().points[0], concurrency=n, shape="x", seed=1) for n in (1, 4))
    folder = write(make_profile(points=points, goodput_rps=1.0))
    n_old = [column.name for column in POINT_COLUMNS].index("shape")
    names = {"tier", "domain", *(column.name for column in POINT_COLUMNS[:n_old])}
    old_columns = [c for c in PROFILE_COLUMNS if c.name in names or c.name.startswith("accuracy")]
    make_older(folder, "profile.parquet", "profile", old_columns)

    older = tuple(replace(point, shape=f"closed:{point.concurrency}", seed=None) for point in points)
    assert make_profile(points=older) == read_profile(folder)
    assert LoadRecord() == read_profile_manifest(folder).load


def test_requests_of_the_first_version_are_of_closed_loops(write):
    row = RequestRow(
        tier="t", concurrency=4, prompt_id="p", scheduled_s=0.0, sent_s=0.0, first_s=None, last_s=None, done_s=1.0,
        n_input_tokens=None, n_output_tokens=None, shape="x", n_chunks=3, is_counted=True,
    )  # fmt: skip
    folder = write(make_profile(), requests=[row])
    make_older(folder, "requests.parquet", "requests", REQUEST_COLUMNS[:11])

    assert [replace(row, shape="closed:4", n_chunks=None, is_counted=None)] == read_requests(folder)


def test_latency_model_other_than_the_manifests_is_refused(write, latency_model):
    folder = write(make_profile(latency=latency_model))
    file = folder / "latency_model.json"
    file.write_text(file.read_text().replace("97", "98"))

    with pytest.raises(InputFileError, match=r"latency_model\.json: is not the file that manifest\.json names"):
        read_profile(folder)
    file.unlink()
    with pytest.raises(InputFileError, match=r"latency_model\.json: cannot be read"):
        read_profile(folder)


def test_latency_model_that_the_manifest_does_not_name_is_left_aside(write, latency_model):
    folder = write(make_profile())
    (folder / "latency_model.json").write_text("foreign")

    assert read_profile(folder).latency is None


def test_table_other_than_the_manifests_is_refused(write):
    folder = write(make_profile())
    other = write(make_profile(tier="other", context_tokens=1))
    (folder / "profile.parquet").write_bytes((other / "points.parquet").read_bytes())

    with pytest.raises(InputFileError, match=r"is not the file that manifest\.json names"):
        read_profile(folder)


def test_absent_table_is_refused(write):
    folder = write(make_profile())
    (folder / "profile.parquet").unlink()
    (folder / "requests.parquet").unlink()

    with pytest.raises(InputFileError, match=r"profile\.parquet: cannot be read"):
        read_profile(folder)
    with pytest.raises(InputFileError, match=r"requests\.parquet: cannot be read"):
        read_requests(folder)


def test_requests_of_another_artifact_are_refused(write):
    folder = write(make_profile())
    write_rows(folder / "requests.parquet", [], REQUEST_COLUMNS, artifact="traffic")

    with pytest.raises(InputFileError, match="expected requests, found traffic"):
        read_requests(folder)
