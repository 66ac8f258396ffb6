"""Profiles: round trip, identity, refusals."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import DiskError, InputFileError, SchemaVersionError
from llmtier.core.interval import Interval
from llmtier.core.profile import AccuracyEstimate, Cost, LoadPoint, TierProfile
from llmtier.core.tier import EngineIdentity
from llmtier.store.parquet import write_rows
from llmtier.store.profiles import (
    REQUEST_COLUMNS,
    AccuracyItem,
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
METRICS = {
    f"{name}_{quantile}_s": st.none() | NUMBERS
    for name in ("ttft", "tpot", "itl", "e2el")
    for quantile in ("p50", "p95")
}
POINTS = st.builds(
    LoadPoint,
    concurrency=st.integers(1, 500),
    n_ok=COUNTS,
    n_failed=COUNTS,
    duration_s=st.floats(1e-6, 1e6),
    mean_input_tokens=st.none() | NUMBERS,
    mean_output_tokens=st.none() | NUMBERS,
    **METRICS,
)
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
    points=st.lists(POINTS, max_size=3, unique_by=lambda point: point.concurrency).map(
        lambda points: tuple(sorted(points, key=lambda point: point.concurrency))
    ),
    accuracy=st.lists(ESTIMATES, max_size=2, unique_by=lambda estimate: estimate.domain).map(tuple),
    cost=st.none()
    | st.builds(
        Cost,
        usd_per_hour=NUMBERS,
        usd_per_request=NUMBERS,
        usd_per_output_token=st.none() | NUMBERS,
        concurrency=st.integers(1, 64),
    ),
)
REQUESTS = st.lists(
    st.builds(
        RequestRow,
        tier=TEXTS,
        concurrency=st.integers(1, 64),
        prompt_id=TEXTS,
        scheduled_s=NUMBERS,
        sent_s=NUMBERS,
        first_s=st.none() | NUMBERS,
        last_s=st.none() | NUMBERS,
        done_s=NUMBERS,
        n_input_tokens=st.none() | COUNTS,
        n_output_tokens=st.none() | COUNTS,
        status=TEXTS,
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
    def write_one(profile, *, root=tmp_path, on=hardware):
        return write_profile(root, on, profile, requests=[], items=[], provenance=provenance)

    return write_one


def test_written_profiles_read_back(tmp_path_factory, hardware, provenance):
    @settings(max_examples=15, deadline=None)
    @given(PROFILES, REQUESTS, ITEMS)
    def check(profile, requests, items):
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


def test_load_points_and_domains_must_be_in_order(write):
    profile = make_profile()

    with pytest.raises(ValueError, match="must ascend"):
        write(replace(profile, points=profile.points * 2))
    with pytest.raises(ValueError, match="stands twice"):
        write(replace(profile, accuracy=profile.accuracy * 2))


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


def test_table_other_than_the_manifests_is_refused(write):
    folder = write(make_profile())
    other = write(make_profile(tier="other", context_tokens=1))
    (folder / "profile.parquet").write_bytes((other / "points.parquet").read_bytes())

    with pytest.raises(InputFileError, match=r"is not the table that manifest\.json names"):
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
