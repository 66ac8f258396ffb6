"""What is read before the plan: model, calibration set, mappings, machine."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, UsageError
from llmtier.core.hardware import Hardware
from llmtier.core.tier import Checkpoint, Scheme
from llmtier.quantize.job import QuantizeJob
from llmtier.quantize.survey import (
    Earlier,
    count_rows,
    free_memory_bytes,
    measure_gflops,
    nearest_folder,
    read_mappings,
    survey,
)
from llmtier.store.checkpoints import CheckpointManifest, write_manifest

MACHINE = Hardware(cpu_model="CPU", cpu_flags=("avx2",), n_cores=2, memory_bytes=2**34)


@pytest.fixture
def make_job(write_llama, tmp_path):
    def make(**fields):
        values = {"schemes": (Scheme.INT8,), "model": write_llama(), "out": tmp_path / "new" / "out"}
        return QuantizeJob(**{**values, **fields})

    return make


def look(job, **options):
    return survey(job, detect=lambda: MACHINE, measure_speed=lambda: 123.0, **options)


def test_survey_finds_model_and_machine(make_job):
    found = look(make_job())

    assert ("LlamaForCausalLM", 2, 4096) == (found.architecture.name, found.architecture.n_layers, found.max_position)
    assert found.machine == MACHINE
    assert found.free_disk_bytes > 0
    assert found.free_memory_bytes > 0
    assert (None, None, None) == (found.rows, found.awq_mappings, found.gflops)


@pytest.mark.parametrize(
    "fields",
    [{"schemes": (Scheme.GPTQ,)}, {"schemes": (Scheme.INT8,), "smoothing_strength": 0.5}, {"has_fp8_kv_cache": True}],
)
def test_speed_is_measured_where_a_scheme_calibrates(fields, make_job):
    assert 123.0 == look(make_job(**fields)).gflops


def test_rows_are_counted_and_cut(make_job, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 39 + b"\n" + b"\n" + b"y" * 399 + b"\n")

    rows = count_rows(make_job(calibration=path, max_seq_tokens=50), 32_000)

    assert (2, 30.0, (10**2 + 50**2) / 2) == (rows.n_rows, rows.mean_tokens, rows.mean_square_tokens)


def test_small_vocabularies_are_of_characters(make_job, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 39 + b"\n")

    assert 40.0 == count_rows(make_job(calibration=path), 128).mean_tokens


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read"), (b"", "holds no rows"), (b"\n \n", "holds no rows")]
)
def test_absent_and_empty_sets_are_refused(content, reason, make_job, tmp_path):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InputFileError, match=reason):
        look(make_job(calibration=path))


def test_recipe_stands_for_the_rows_it_builds(make_job, tmp_path):
    recipe = tmp_path / "support.toml"
    recipe.write_text('name = "support"\ntoken_budget = 10\n[[source]]\npath = "source.jsonl"\n')
    job = make_job(calibration=recipe)
    with pytest.raises(InputFileError, match=r"run 'llmtier calibration build .*support\.toml'"):
        look(job)

    (tmp_path / "support.jsonl").write_text("{}\n")

    assert 1 == look(job).rows.n_rows


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "is no checkpoint"), ("{", "expected JSON"), ("[]", "JSON object")]
)
def test_folder_without_configuration_is_refused(content, reason, make_job):
    job = make_job()
    (job.model / "config.json").unlink()
    if content is not None:
        (job.model / "config.json").write_text(content)

    with pytest.raises(InputFileError, match=reason):
        look(job)


def test_model_without_safetensors_is_refused(make_job):
    job = make_job()
    (job.model / "model.safetensors").rename(job.model / "pytorch_model.bin")

    with pytest.raises(InputFileError, match="save_pretrained"):
        look(job)


def test_quantized_model_is_refused_by_name(make_job):
    job = make_job()
    config = json.loads((job.model / "config.json").read_text())
    (job.model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))

    with pytest.raises(UsageError, match=r"llama: already quantized \(gptq\)"):
        look(job)


def test_mappings_are_read(tmp_path):
    path = tmp_path / "mappings.yaml"
    path.write_text("- smooth: re:.*norm$\n  balance: [re:.*q_proj$, x]\n- {smooth: up, balance: down}\n")

    first, second = read_mappings(path)

    assert ("re:.*norm$", ("re:.*q_proj$", "x")) == (first.smooth, first.balance)
    assert ("up", ("down",)) == (second.smooth, second.balance)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "as YAML"),
        ("[", "as YAML"),
        ("", "expected a list"),
        ("{}", "expected a list"),
        ("[1]", "entry 1: expected smooth and balance"),
        ("- {smooth: a, balance: [b]}\n- {smooth: a, balances: [b]}", "entry 2: expected smooth and balance"),
        ("- {smooth: a, balance: []}", "names no layer"),
        ("- {smooth: a, balance: 3}", "balance"),
        ("- {smooth: 're:(', balance: [b]}", "no regular expression"),
    ],
)
def test_broken_mappings_are_refused(text, reason, tmp_path):
    path = tmp_path / "mappings.yaml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(InputFileError, match=reason):
        read_mappings(path)


def test_limit_of_a_container_bounds_the_free_memory(tmp_path):
    assert free_memory_bytes(tmp_path / "absent") > 10**6
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100\n")
    assert 400 == free_memory_bytes(tmp_path)

    (tmp_path / "memory.max").write_text("max\n")

    assert free_memory_bytes(tmp_path) > 10**6


def test_free_disk_is_that_of_the_nearest_folder(tmp_path):
    assert tmp_path == nearest_folder(tmp_path / "a" / "b")
    assert nearest_folder(tmp_path.__class__("relative/out")).is_absolute()


@pytest.fixture
def leave(provenance_of):
    """Write what an earlier run left: a finished checkpoint, or any other folder of some bytes."""

    def write(folder, *, n_bytes, recipe=None):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(n_bytes))
        if recipe is not None:
            checkpoint = Checkpoint(path=str(folder), scheme=Scheme.INT8, digest="0" * 64)
            manifest = CheckpointManifest(
                checkpoint=checkpoint, provenance=provenance_of({}), recipe=recipe, calibration_sha256=None, seconds=1.0
            )
            write_manifest(folder, manifest)

    return write


def test_nothing_is_found_where_nothing_was_written(make_job):
    assert {Scheme.INT8: Earlier()} == look(make_job()).earlier


def test_what_an_earlier_run_left_is_found_by_scheme(make_job, leave):
    job = make_job(schemes=(Scheme.INT8, Scheme.FP8))
    leave(job.out / "llama@int8", n_bytes=100, recipe={"scheme": "int8"})
    leave(job.out / "llama@int8-autoawq", n_bytes=30, recipe={})
    leave(job.out / "llama@fp8", n_bytes=200)
    leave(job.out / ".llmtier-work" / "llama@fp8" / "run", n_bytes=7)
    leave(job.out / ".llama@fp8.0123abcd.tmp", n_bytes=5)

    int8, fp8 = (look(job).earlier[scheme] for scheme in job.schemes)

    assert ({"scheme": "int8"}, True) == (int8.recipe, int8.is_exported)
    assert int8.n_bytes > 100
    assert int8.export_bytes > 30
    assert Earlier(n_bytes=200, work_bytes=7, stale_bytes=5) == fp8


def test_nothing_is_used_again_by_force_or_with_a_broken_manifest(make_job, leave):
    job = make_job()
    leave(job.out / "llama@int8", n_bytes=100, recipe={"scheme": "int8"})

    assert look(job, force=True).earlier[Scheme.INT8].recipe is None
    (job.out / "llama@int8" / "llmtier.json").write_text("{")
    assert look(job).earlier[Scheme.INT8].recipe is None


def test_speed_is_positive():
    assert measure_gflops() > 0


@given(lengths=st.lists(st.integers(1, 3_000), min_size=1, max_size=20), limit=st.integers(1, 600))
def test_estimated_lengths_obey_the_cut(lengths, limit, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(b"".join(b"x" * length + b"\n" for length in lengths))
    job = QuantizeJob(model=path, schemes=(Scheme.GPTQ,), out=path, calibration=path, max_seq_tokens=limit)

    rows = count_rows(job, None)

    assert len(lengths) == rows.n_rows
    assert 1 <= rows.mean_tokens <= limit or limit == 1
    assert rows.mean_tokens**2 <= rows.mean_square_tokens * (1 + 1e-9)
