"""The stage around the worker: progress, failure, interruption, reuse, what lies on disk after each."""

import json
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llmtier.core.errors import InputFileError, MachineError, UsageError
from llmtier.core.tier import Scheme
from llmtier.quantize import run
from llmtier.quantize.job import Backend, QuantizeJob
from llmtier.quantize.progress import Step
from llmtier.quantize.workplace import WORK_FOLDER, open_workplace
from llmtier.store.checkpoints import open_checkpoint, read_manifest
from llmtier.store.digests import checkpoint_digest, file_sha256

PYTHON = Path(sys.executable)


@pytest.fixture
def job(source: Path, calibration: Path, tmp_path: Path) -> QuantizeJob:
    return QuantizeJob(
        model=source, schemes=(Scheme.INT8, Scheme.AWQ), out=tmp_path / "out", calibration=calibration, seed=3
    )


@pytest.fixture
def quantize(provenance_of, monkeypatch):
    def call(job, fake, **options):
        monkeypatch.setattr(run, "WORKERS", dict.fromkeys(Backend, fake.command))
        return run.quantize(job, python=PYTHON, provenance_of=provenance_of, **options)

    return call


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def is_running(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except ProcessLookupError:
        return False
    return True


def test_quantize_writes_a_described_checkpoint_for_each_scheme(job, quantize, fake_worker, source, calibration):
    fake = fake_worker()

    paths = quantize(job, fake)

    assert [job.out / "tiny@int8", job.out / "tiny@awq"] == paths
    assert ["tiny@awq", "tiny@int8"] == left_in(job.out)
    manifest = read_manifest(paths[1])
    assert manifest is not None
    assert checkpoint_digest(source) == manifest.checkpoint.source_digest
    assert checkpoint_digest(paths[1]) == manifest.checkpoint.digest
    assert str(paths[1]) == manifest.checkpoint.path
    assert file_sha256(calibration) == manifest.calibration_sha256
    assert {"torch": "2.13.0", "llmcompressor": "0.14.0.1"} == manifest.recipe["versions"]
    assert (128, 3, 2, 9) == tuple(
        manifest.recipe[name] for name in ("group_size", "seed", "n_samples_used", "n_tokens")
    )
    assert (2.25, 1000) == (manifest.seconds, manifest.peak_memory_bytes)
    assert {"tiny", "support.jsonl"} == set(manifest.provenance.inputs)
    assert Scheme.AWQ is open_checkpoint(paths[1]).scheme


def test_scheme_without_data_claims_no_calibration(job, quantize, fake_worker):
    manifest = read_manifest(quantize(job, fake_worker())[0])

    assert manifest is not None
    assert manifest.calibration_sha256 is None
    assert "n_samples" not in manifest.recipe
    assert 2.0 == manifest.seconds


def test_model_card_states_source_scheme_and_data(job, quantize, fake_worker, calibration):
    paths = quantize(job, fake_worker())

    awq = (paths[1] / "README.md").read_text()
    assert "`tiny` quantized to **awq** (W4A16_ASYM, groups of 128)" in awq
    assert f"2 rows, 9 tokens, file sha256 `{file_sha256(calibration)}`" in awq
    assert "torch 2.13.0, llmcompressor 0.14.0.1" in awq
    assert "none: weights are rounded without data" in (paths[0] / "README.md").read_text()


def test_worker_gets_the_plan_and_no_calibration_that_it_does_not_need(job, quantize, fake_worker):
    fake = fake_worker()

    quantize(job, fake)
    quantize(replace(job, schemes=(Scheme.FP8,), n_samples=7), fake)

    both, alone = fake.calls
    assert str(job.calibration) == both["calibration"]
    assert [("int8", None), ("awq", 128)] == [(part["scheme"], part["group_size"]) for part in both["schemes"]]
    assert (None, 7, 3) == (alone["calibration"], alone["n_samples"], alone["seed"])


def test_progress_arrives_in_order_and_saved_means_on_disk(job, quantize, fake_worker):
    seen = []

    def watch(progress):
        there = [scheme.value for scheme in job.schemes if (job.out / f"tiny@{scheme.value}").exists()]
        seen.append((progress.event, progress.scheme, there))

    quantize(job, fake_worker(), on_progress=watch)

    notes = sum(event is Step.NOTE for event, _, _ in seen)
    assert [
        *[(Step.NOTE, None, [])] * notes,
        (Step.TOKENIZED, None, []),
        (Step.LOADING, Scheme.INT8, []),
        (Step.SAVED, Scheme.INT8, ["int8"]),
        (Step.LOADING, Scheme.AWQ, ["int8"]),
        (Step.SAVED, Scheme.AWQ, ["int8", "awq"]),
        (Step.DONE, None, ["int8", "awq"]),
    ] == seen


def test_manifest_is_written_last(job, quantize, fake_worker, monkeypatch):
    def write_and_look(directory, manifest):
        before = set(left_in(directory))
        assert {"config.json", "model.safetensors", "README.md"} == before
        assert directory.name not in {"tiny@int8", "tiny@awq"}
        original(directory, manifest)

    original = run.write_manifest
    monkeypatch.setattr(run, "write_manifest", write_and_look)

    quantize(job, fake_worker())


def test_failed_worker_leaves_no_target_and_shows_its_last_lines(job, quantize, fake_worker):
    fake = fake_worker('print("noise\\rtqdm 100%", file=sys.stderr); sys.exit("RuntimeError: out of luck")')

    with pytest.raises(MachineError, match=r"exit code 1(?s:.*)    tqdm 100%\n    RuntimeError: out of luck"):
        quantize(job, fake)

    assert [] == left_in(job.out)


def test_failure_keeps_the_schemes_that_were_finished(job, quantize, fake_worker):
    with pytest.raises(MachineError):
        quantize(job, fake_worker('save(job["schemes"][0]); sys.exit(1)'))

    assert ["tiny@int8"] == left_in(job.out)

    fake = fake_worker()
    quantize(job, fake)
    assert ["awq"] == [part["scheme"] for part in fake.calls[-1]["schemes"]]


def test_killed_worker_is_named_as_such(job, quantize, fake_worker):
    with pytest.raises(MachineError, match=r"signal 9.*memory"):
        quantize(job, fake_worker("os.kill(os.getpid(), 9)"))

    assert [] == left_in(job.out)


def test_worker_that_leaves_a_scheme_out_is_an_error(job, quantize, fake_worker):
    with pytest.raises(MachineError, match="without writing awq"):
        quantize(job, fake_worker('save(job["schemes"][0])'))

    assert ["tiny@int8"] == left_in(job.out)


def test_worker_that_refuses_is_a_usage_error(job, quantize, fake_worker):
    with pytest.raises(UsageError, match="no mapping"):
        quantize(job, fake_worker('report("refused", message="awq: no mapping"); sys.exit(1)'))


def test_worker_that_speaks_something_else_is_an_error(job, quantize, fake_worker):
    with pytest.raises(MachineError, match="expected a JSON line of progress, got 'hello'"):
        quantize(job, fake_worker('print("hello", flush=True); time.sleep(60)'))


def test_interruption_ends_the_worker_and_leaves_nothing(job, quantize, fake_worker):
    fake = fake_worker("(pathlib.Path(job['schemes'][0]['out']) / 'model.safetensors').touch(); time.sleep(60)")

    def interrupt(progress):
        if progress.event is Step.TOKENIZED:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(job, fake, on_progress=interrupt)

    assert [] == left_in(job.out)
    assert not any(is_running(call["pid"]) for call in fake.calls)


def wait_until(condition):
    """Let other processes go on until ``condition()``; the time limit of the test ends a wait in vain."""
    while not condition():
        time.sleep(0.01)


def test_worker_starts_while_the_inputs_are_digested(job, quantize, fake_worker, monkeypatch):
    fake = fake_worker()
    digest = run.digest_inputs

    def digest_late(*arguments):
        wait_until(lambda: fake.started)
        assert [] == fake.calls
        return digest(*arguments)

    monkeypatch.setattr(run, "digest_inputs", digest_late)
    quantize(job, fake)

    assert fake.started == [call["pid"] for call in fake.calls]


def test_waiting_worker_ends_when_the_inputs_are_refused(job, quantize, fake_worker, monkeypatch):
    fake = fake_worker()

    def refuse(*_arguments):
        wait_until(lambda: fake.started)
        raise InputFileError("is broken", path=job.model)

    monkeypatch.setattr(run, "digest_inputs", refuse)
    with pytest.raises(InputFileError, match="is broken"):
        quantize(job, fake)

    assert not any(map(is_running, fake.started))
    assert [] == left_in(job.out)


def test_same_inputs_are_used_again(job, quantize, fake_worker):
    fake = fake_worker()
    first = quantize(job, fake)
    seen = []

    second = quantize(job, fake, on_progress=seen.append)

    assert first == second
    assert 1 == len(fake.calls) == len(fake.started)
    assert [Scheme.INT8, Scheme.AWQ] == [progress.scheme for progress in seen if progress.event is Step.REUSED]


def test_finished_checkpoints_are_used_again_beside_a_run_under_way(job, quantize, fake_worker):
    fake = fake_worker()
    first = quantize(job, fake)

    with open_workplace(job.out, names=[]):
        assert first == quantize(job, fake)

    assert 1 == len(fake.calls)


def test_layers_left_of_finished_checkpoints_are_removed(job, quantize, fake_worker):
    fake = fake_worker()
    quantize(job, fake)
    left = job.out / WORK_FOLDER / "tiny@awq"
    left.mkdir(parents=True)
    (left / "stage-0-part-0.safetensors").touch()

    quantize(job, fake)

    assert ["tiny@awq", "tiny@int8"] == left_in(job.out)


def test_checkpoint_moved_aside_by_a_killed_replacement_is_used_again(job, quantize, fake_worker):
    fake = fake_worker()
    paths = quantize(job, fake)
    paths[0].rename(job.out / ".tiny@int8.0123abcd.old")

    assert paths == quantize(job, fake)

    assert 1 == len(fake.calls)
    assert ["tiny@awq", "tiny@int8"] == left_in(job.out)


def test_what_another_run_wrote_while_this_one_waited_is_used_again(job, quantize, fake_worker, monkeypatch):
    fake = fake_worker()

    @contextmanager
    def wait(out, **options):
        monkeypatch.setattr(run, "open_workplace", open_workplace)
        quantize(job, fake)
        with open_workplace(out, **options) as workplace:
            yield workplace

    monkeypatch.setattr(run, "open_workplace", wait)
    quantize(job, fake)

    assert 1 == len(fake.calls)


def test_checkpoint_of_other_mappings_is_not_used_again(job, quantize, fake_worker, tmp_path):
    fake = fake_worker()
    mappings = tmp_path / "mappings.yaml"
    mappings.write_text("- smooth: re:.*input_layernorm$\n  balance: [re:.*q_proj$, re:.*k_proj$, re:.*v_proj$]\n")
    own = replace(job, schemes=(Scheme.AWQ,), awq_mappings=mappings)
    quantize(own, fake)
    quantize(own, fake)

    with pytest.raises(UsageError, match=r"made with awq_mappings \[.*, not None"):
        quantize(replace(own, awq_mappings=None), fake)

    assert 1 == len(fake.calls)


def test_only_what_shapes_the_result_forbids_reuse(job, quantize, fake_worker):
    fake = fake_worker()
    quantize(replace(job, schemes=(Scheme.INT8,)), fake)

    quantize(replace(job, schemes=(Scheme.INT8,), n_samples=5, calibration=None), fake)

    assert 1 == len(fake.calls)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 4}, "seed 3, not 4"),
        ({"n_samples": 5}, "n_samples 256, not 5"),
        ({"max_seq_tokens": 5}, "max_seq_tokens 512, not 5"),
        ({"group_size": 64}, "group_size 128, not 64"),
    ],
)
def test_other_options_are_refused_without_force(change, said, job, quantize, fake_worker):
    fake = fake_worker()
    quantize(job, fake)

    with pytest.raises(UsageError, match=f"{said}; use --force"):
        quantize(replace(job, **change), fake)

    assert 1 == len(fake.calls)


def test_other_source_and_other_data_are_refused_without_force(job, quantize, fake_worker, source, calibration):
    fake = fake_worker()
    quantize(job, fake)

    calibration.write_text('{"text": "other"}\n')
    with pytest.raises(UsageError, match="another calibration set; use --force"):
        quantize(job, fake)
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(UsageError, match="another source model; use --force"):
        quantize(job, fake)


def test_damaged_target_is_not_used_again(job, quantize, fake_worker):
    fake = fake_worker()
    paths = quantize(job, fake)
    (paths[0] / "model.safetensors").write_bytes(b"cut")

    with pytest.raises(UsageError, match="files have changed"):
        quantize(job, fake)


def test_foreign_folder_is_not_overwritten(job, quantize, fake_worker):
    fake = fake_worker()
    (job.out / "tiny@awq").mkdir(parents=True)
    (job.out / "tiny@awq" / "mine.txt").touch()

    with pytest.raises(UsageError, match="--force"):
        quantize(job, fake)

    assert [] == fake.calls


def test_force_makes_everything_again(job, quantize, fake_worker):
    fake = fake_worker()
    paths = quantize(job, fake)
    (paths[0] / "stale.txt").touch()

    quantize(replace(job, seed=9), fake, force=True)

    assert 2 == len(fake.calls)
    assert "stale.txt" not in left_in(paths[0])
    manifest = read_manifest(paths[1])
    assert manifest is not None
    assert 9 == manifest.recipe["seed"]


def test_wrong_calibration_row_is_named_before_anything_starts(job, quantize, fake_worker, calibration):
    fake = fake_worker()
    calibration.write_text('{"text": "fine"}\n{"texts": "wrong"}\n')

    with pytest.raises(InputFileError, match=r"support\.jsonl:2: "):
        quantize(job, fake)

    assert [] == fake.calls


@pytest.mark.parametrize("text", [None, "[]", "{"])
def test_source_that_is_no_checkpoint_is_an_input_error(text, job, quantize, fake_worker, source):
    (source / "config.json").unlink() if text is None else (source / "config.json").write_text(text)

    with pytest.raises(InputFileError):
        quantize(job, fake_worker())


def test_absent_interpreter_says_what_to_install(job, provenance_of, tmp_path):
    with pytest.raises(MachineError, match="llmtier env install quantize"):
        run.quantize(job, python=tmp_path / "none", provenance_of=provenance_of)

    assert [] == left_in(job.out)


def test_source_given_as_the_current_folder_still_names_the_target(job, quantize, fake_worker, source, monkeypatch):
    monkeypatch.chdir(source)

    paths = quantize(replace(job, model=Path(), schemes=(Scheme.INT8,)), fake_worker())

    assert ["tiny@int8"] == [path.name for path in paths]


def test_every_step_has_a_line_for_people(job, quantize, fake_worker):
    lines = []
    n_notes = len(run.prepare(job).notes)

    quantize(job, fake_worker(), on_progress=lambda progress: lines.append(progress.describe()))

    assert [
        "calibrating on 2 rows, 9 tokens",
        "int8: loading",
        "int8: saved after 2.0 s",
        "awq: loading",
        "awq: saved after 2.0 s",
        "done in 2.0 s",
    ] == lines[n_notes:]


def test_worker_job_is_json_that_names_staging_folders_beside_the_targets(job, quantize, fake_worker):
    fake = fake_worker()

    quantize(job, fake)

    outs = [Path(part["out"]) for part in fake.calls[0]["schemes"]]
    assert all(out.parent == job.out and out.name not in {"tiny@int8", "tiny@awq"} for out in outs)
    assert json.dumps(fake.calls[0])
