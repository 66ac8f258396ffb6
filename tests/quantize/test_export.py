"""What AutoAWQ's layout can say of a checkpoint, and the stage around the worker; the repacking runs in tests/e2e."""

import itertools
import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import DiskError, InputFileError, MachineError, UsageError
from llmtier.core.tier import Scheme
from llmtier.quantize.export import autoawq_folder, export_autoawq
from llmtier.quantize.progress import Step
from llmtier.quantize.worker.export_autoawq import export_config, plan_files
from llmtier.quantize.worker.packed_checkpoint import (
    Layout,
    Piece,
    plan_pieces,
    read_layout,
    skipped_layers,
    weight_files,
)
from llmtier.quantize.worker.report import WorkerError
from llmtier.quantize.workplace import open_workplace
from llmtier.store import atomic
from llmtier.store.checkpoints import open_checkpoint, read_manifest, write_manifest
from llmtier.store.digests import checkpoint_digest

WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False, "actorder": None}
CONFIG = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0},
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None}},
        "ignore": ["lm_head", "re:.*gate$"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
    },
}
LAYOUT = Layout(group_size=32, is_symmetric=False, ignore=("lm_head",))


class FakeTensors:
    """Shapes and types by name, and the numbers of ``weight_shape``."""

    def __init__(self, **shapes):
        self.shapes = {name.replace("__", "."): shape for name, shape in shapes.items()}
        self.types = {name: "I32" if "weight_" in name else "BF16" for name in self.shapes}

    @classmethod
    def of_layer(cls, *, n_out=16, n_in=64, group_size=32):
        groups = n_in // group_size
        return cls(
            l__q__weight_packed=(n_out, n_in // 8),
            l__q__weight_scale=(n_out, groups),
            l__q__weight_zero_point=(n_out // 8, groups),
            l__q__weight_shape=(n_out, n_in),
            l__norm__weight=(n_in,),
            lm_head__weight=(100, n_in),
        )

    def __iter__(self):
        return iter(self.shapes)

    def __contains__(self, name):
        return name in self.shapes

    def shape(self, name):
        return self.shapes[name]

    def dtype(self, name):
        return self.types[name]

    def read(self, name):
        return self.shapes[name]


def with_weights(**changes):
    config = deepcopy(CONFIG)
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= changes
    return config


def with_quantization(**changes):
    return {**CONFIG, "quantization_config": {**CONFIG["quantization_config"], **changes}}


def groups_of(*schemes):
    return with_quantization(config_groups={f"group_{n}": scheme for n, scheme in enumerate(schemes)})


def test_read_layout_takes_groups_and_one_scale_per_channel():
    assert Layout(group_size=32, is_symmetric=False, ignore=("lm_head", "re:.*gate$")) == read_layout(CONFIG)
    assert read_layout(with_weights(actorder="static", symmetric=True)).is_symmetric
    channel = read_layout(with_weights(strategy="channel", group_size=None))
    assert channel.group_size is None
    assert 1 == channel.n_groups(4096)
    same = {"weights": WEIGHTS}
    assert 32 == read_layout(groups_of({**same, "targets": ["re:.*mlp.*"]}, {**same, "targets": ["Linear"]})).group_size


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama"}, "is not quantized"),
        (with_quantization(quant_method="gptq", format=None), "is gptq; only compressed-tensors"),
        (with_quantization(format="float-quantized"), r"is compressed-tensors \(float-quantized\)"),
        (with_quantization(config_groups={}), "in 0 ways"),
        (groups_of({"weights": WEIGHTS}, {"weights": {**WEIGHTS, "group_size": 64}}), "in 2 ways"),
        (groups_of({"weights": WEIGHTS}, {"weights": {**WEIGHTS, "symmetric": True}}), "in 2 ways"),
        (groups_of({"weights": WEIGHTS, "input_activations": {"num_bits": 8}}), "quantizes input_activations too"),
        (with_weights(num_bits=8), "weights of 8 bits"),
        (with_weights(type="float"), r"4 bits \(float\)"),
        (with_weights(strategy="tensor"), "scales per tensor"),
        (with_weights(actorder="group"), "activation order group"),
        (with_quantization(kv_cache_scheme={"num_bits": 8}), "has a kv_cache_scheme"),
        (with_quantization(transform_config={"config_groups": {"u": {}}}), "has a transform_config"),
    ],
)
def test_read_layout_refuses_what_autoawq_cannot_say(config, said):
    with pytest.raises(WorkerError, match=said) as caught:
        read_layout(config)

    assert "input" == caught.value.kind


def test_pieces_are_layers_and_the_tensors_left_over_with_their_bytes():
    pieces = plan_pieces(FakeTensors.of_layer(n_out=16, n_in=64), LAYOUT)

    # 1024 codes of half a byte, 32 scales of two bytes, 32 zeros of half a byte.
    assert [Piece(name="l.q", n_in=64, n_bytes=512 + 64 + 16)] == [piece for piece in pieces if piece.n_in]
    assert [("l.norm.weight", 128), ("lm_head.weight", 12800)] == [
        (piece.name, piece.n_bytes) for piece in pieces if piece.n_in is None
    ]


def test_symmetric_layer_needs_no_zero_point():
    tensors = FakeTensors.of_layer()
    del tensors.shapes["l.q.weight_zero_point"]
    symmetric = Layout(group_size=32, is_symmetric=True, ignore=())

    assert 3 == len(plan_pieces(tensors, symmetric))
    with pytest.raises(WorkerError, match=r"l\.q: has no weight_zero_point"):
        plan_pieces(tensors, LAYOUT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"l.q.weight_g_idx": (64,)}, r"l\.q\.weight_g_idx: AutoAWQ's layout has no such tensor"),
        ({"l.attn.k_scale": (1,)}, r"l\.attn\.k_scale: AutoAWQ's layout has no such tensor"),
        ({"l.q.weight_shape": (12, 64)}, r"l\.q: 12 outputs do not divide by 8"),
        ({"l.q.weight_shape": (16, 72)}, r"l\.q: 72 inputs do not divide into groups of 32"),
        ({"l.q.weight_scale": (16, 1)}, r"l\.q\.weight_scale: has shape \(16, 1\), expected \(16, 2\)"),
        ({"l.q.weight_zero_point": (16, 2)}, r"l\.q\.weight_zero_point: has shape \(16, 2\), expected \(2, 2\)"),
        ({"lm_head.weight_packed": (16, 8)}, "lm_head: is quantized"),
    ],
)
def test_plan_names_the_tensor_that_does_not_fit(changes, said):
    tensors = FakeTensors.of_layer()
    tensors.shapes |= changes
    tensors.types |= dict.fromkeys(changes, "I32")

    with pytest.raises(WorkerError, match=said):
        plan_pieces(tensors, LAYOUT)


def test_plan_refuses_unpacked_checkpoints_and_foreign_types():
    with pytest.raises(WorkerError, match="holds no packed weights"):
        plan_pieces(FakeTensors(l__q__weight=(16, 64)), LAYOUT)
    tensors = FakeTensors.of_layer()
    tensors.types["l.norm.weight"] = "F8_E4M3"
    with pytest.raises(WorkerError, match=r"l\.norm\.weight: is of type F8_E4M3"):
        plan_pieces(tensors, LAYOUT)


def test_skipped_layers_are_the_ignored_ones_and_every_other_matrix():
    tensors = FakeTensors.of_layer()
    tensors.shapes |= {"embed.weight": (100, 64), "mlp.gate.weight": (4, 64)}
    layout = Layout(group_size=32, is_symmetric=False, ignore=("re:.*gate$", "lm_head", "absent"))

    assert ["absent", "embed", "lm_head", "mlp.gate"] == skipped_layers(tensors, layout)


def test_skipped_layer_that_would_hide_a_quantized_one_is_refused():
    tensors = FakeTensors(mlp__gate__weight=(4, 64), mlp__gate_proj__weight_packed=(16, 8))

    with pytest.raises(WorkerError, match=r"mlp\.gate: .* would also skip mlp\.gate_proj"):
        skipped_layers(tensors, LAYOUT)


@given(sizes=st.lists(st.integers(1, 50)), max_bytes=st.integers(1, 60))
def test_files_hold_every_piece_once_in_order_and_within_the_limit(sizes, max_bytes):
    pieces = [Piece(name=str(n), n_bytes=size) for n, size in enumerate(sizes)]

    files = plan_files(pieces, max_bytes=max_bytes)

    assert pieces == [piece for file in files for piece in file]
    assert all(file for file in files)
    assert all(len(file) == 1 or sum(piece.n_bytes for piece in file) <= max_bytes for file in files)
    joined = [[*first, second[0]] for first, second in itertools.pairwise(files)]
    assert all(sum(piece.n_bytes for piece in file) > max_bytes for file in joined)


def test_config_states_the_layout_and_float16_everywhere():
    config = {**CONFIG, "text_config": {"dtype": "bfloat16", "hidden_size": 8}, "note": "bfloat16"}

    exported = export_config(config, LAYOUT, skipped=["lm_head"])

    assert {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    } == exported["quantization_config"]
    assert ("float16", "float16", "bfloat16") == (exported["dtype"], exported["torch_dtype"], exported["note"])
    assert {"dtype": "float16", "hidden_size": 8} == exported["text_config"]
    assert "compressed-tensors" == CONFIG["quantization_config"]["quant_method"]


def test_config_repeats_rotary_settings_by_the_names_that_older_readers_know():
    exported = export_config(CONFIG, LAYOUT, skipped=[])

    assert 500000.0 == exported["rope_theta"]
    assert {"rope_type": "llama3", "factor": 8.0} == exported["rope_scaling"]
    assert CONFIG["rope_parameters"] == exported["rope_parameters"]
    plain = export_config({**CONFIG, "rope_theta": 7.0, "rope_parameters": {"rope_theta": 7.0}}, LAYOUT, skipped=[])
    assert "rope_scaling" not in plain
    assert "rope_theta" not in export_config({"model_type": "opt"}, LAYOUT, skipped=[])


def test_channel_scales_are_groups_of_minus_one():
    channel = Layout(group_size=None, is_symmetric=True, ignore=())

    assert -1 == export_config(CONFIG, channel, skipped=[])["quantization_config"]["group_size"]


def test_weight_files_are_those_of_the_index(tmp_path):
    for name in ("a", "b", "stale"):
        (tmp_path / f"{name}.safetensors").touch()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}))

    assert ["a.safetensors", "b.safetensors"] == [path.name for path in weight_files(tmp_path)]
    index.write_text("[]")
    with pytest.raises(WorkerError, match="expected a weight_map"):
        weight_files(tmp_path)
    index.unlink()
    assert 3 == len(weight_files(tmp_path))
    with pytest.raises(WorkerError, match="no safetensors"):
        weight_files(tmp_path / "absent")


# What stands in for the environment's interpreter: the worker's promises without its libraries.
FAKE_PYTHON = """#!{python}
import json, pathlib, sys

job = json.loads(sys.argv[-1])
record = pathlib.Path({record!r})
record.write_text(record.read_text() + json.dumps(job) + "\\n" if record.exists() else json.dumps(job) + "\\n")
out = pathlib.Path(job["out"])

def report(event, **facts):
    print(json.dumps({{"event": event, **facts}}), flush=True)

def save():
    (out / "model.safetensors").write_text("repacked")
    (out / "config.json").write_text(json.dumps({{"quantization_config": {{"quant_method": "awq"}}}}))
    casts = {{"n_scales": 10, "n_scales_changed": 0, "n_others": 20, "n_others_changed": 3}}
    report("saved", scheme="awq", seconds_by_phase={{"export": 1.5}}, peak_memory_bytes=7, versions={{"torch": "2"}},
           casts=casts)

{body}
"""


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "tiny@gptq"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(with_weights(symmetric=True)))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def make_python(tmp_path):
    def make(body='report("note", message="model.safetensors: 1 of 1 linear layers")\nsave()'):
        path = tmp_path / "python"
        path.write_text(FAKE_PYTHON.format(python=sys.executable, record=str(tmp_path / "jobs.jsonl"), body=body))
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def n_jobs(tmp_path):
    record = tmp_path / "jobs.jsonl"
    return lambda: len(record.read_text().splitlines()) if record.exists() else 0


@pytest.fixture
def export(make_python, provenance_of, tmp_path):
    def call(checkpoint, out=None, python=None, **options):
        return export_autoawq(
            checkpoint,
            out or autoawq_folder(checkpoint),
            python=python or make_python(),
            provenance_of=provenance_of,
            **options,
        )

    return call


def folders_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir())


def test_export_lies_beside_its_source_and_is_described(checkpoint, export, tmp_path):
    out = export(checkpoint)

    assert tmp_path / "tiny@gptq-autoawq" == out
    assert ["tiny@gptq", "tiny@gptq-autoawq"] == folders_in(tmp_path)
    manifest = read_manifest(out)
    assert manifest is not None
    assert checkpoint_digest(out) == manifest.checkpoint.digest
    assert str(out) == manifest.checkpoint.path
    assert Scheme.AWQ is open_checkpoint(out).scheme
    assert ("autoawq", checkpoint_digest(checkpoint), "gptq") == tuple(
        manifest.recipe[name] for name in ("layout", "exported_from", "exported_scheme")
    )
    assert (None, None) == (manifest.checkpoint.source_digest, manifest.calibration_sha256)
    assert {"tiny@gptq": checkpoint_digest(checkpoint)} == manifest.provenance.inputs
    assert (1.5, 7) == (manifest.seconds, manifest.peak_memory_bytes)
    card = (out / "README.md").read_text()
    assert "`tiny@gptq` (gptq) in AutoAWQ's layout" in card
    assert "| other values that the cast changed | 3 of 20 |" in card
    assert "| digest of the unquantized model | unknown |" in card


def test_export_stays_a_tier_of_the_same_original(checkpoint, export, make_python, provenance_of):
    first = read_manifest(export(checkpoint))  # any manifest will do as the source's
    assert first is not None
    source = {"digest": checkpoint_digest(checkpoint), "source_digest": "0" * 64, "scheme": Scheme.GPTQ}
    described = type(first)(
        checkpoint=type(first.checkpoint)(path=str(checkpoint), **source),
        provenance=first.provenance,
        recipe={"group_size": 32},
        calibration_sha256="1" * 64,
        seconds=1.0,
    )
    write_manifest(checkpoint, described)

    manifest = read_manifest(export(checkpoint, force=True))

    assert manifest is not None
    assert ("0" * 64, "1" * 64) == (manifest.checkpoint.source_digest, manifest.calibration_sha256)
    assert {"group_size": 32} == manifest.recipe["exported_recipe"]


def test_same_checkpoint_is_exported_once(checkpoint, export, n_jobs):
    seen = []
    first = export(checkpoint)

    second = export(checkpoint, on_progress=seen.append)

    assert first == second
    assert 1 == n_jobs()
    assert [Step.REUSED] == [progress.event for progress in seen]


def test_finished_export_is_used_again_beside_a_run_under_way(checkpoint, export, n_jobs, tmp_path):
    first = export(checkpoint)

    with open_workplace(tmp_path, names=[]):
        assert first == export(checkpoint)

    assert 1 == n_jobs()


def test_export_removes_what_a_killed_one_left(checkpoint, export, tmp_path):
    (tmp_path / ".tiny@gptq-autoawq.0123abcd.tmp").mkdir()

    export(checkpoint)

    assert ["tiny@gptq", "tiny@gptq-autoawq"] == folders_in(tmp_path)


def test_other_source_damage_and_foreign_folders_need_force(checkpoint, export, n_jobs, tmp_path):
    out = export(checkpoint)
    (out / "model.safetensors").write_text("damaged")
    with pytest.raises(UsageError, match="files have changed since; use --force"):
        export(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UsageError, match=r"not exported from .*tiny@gptq; use --force"):
        export(checkpoint)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UsageError, match="--force"):
        export(checkpoint, tmp_path / "mine")

    assert 1 == n_jobs()
    assert "repacked" == (export(checkpoint, force=True) / "model.safetensors").read_text()


def test_export_into_its_own_source_is_refused(checkpoint, export, n_jobs):
    with pytest.raises(UsageError, match="a folder of its own"):
        export(checkpoint, checkpoint, force=True)

    assert 0 == n_jobs()


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ('report("refused", message="too wide", kind="input"); sys.exit(1)', InputFileError, "too wide"),
        ('report("refused", message="disk", kind="machine"); sys.exit(1)', MachineError, "disk"),
        ('(out / "model.safetensors").touch(); sys.exit("torch is absent")', MachineError, "torch is absent"),
        ('(out / "model.safetensors").touch()', MachineError, "without having saved"),
    ],
)
def test_failed_export_leaves_nothing(body, error, said, checkpoint, export, make_python):
    with pytest.raises(error, match=said):
        export(checkpoint, python=make_python(body))

    assert ["tiny@gptq"] == folders_in(checkpoint.parent)


def test_interrupted_export_leaves_nothing(checkpoint, export, tmp_path):
    def interrupt(progress):
        if progress.event is Step.NOTE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, on_progress=interrupt)

    assert ["tiny@gptq"] == folders_in(tmp_path)


def test_full_disk_at_the_end_leaves_nothing(checkpoint, export, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", refuse)

    with pytest.raises(DiskError, match="No space left"):
        export(checkpoint)

    assert ["tiny@gptq"] == folders_in(tmp_path)


def test_folder_that_is_no_checkpoint_is_an_input_error(export, tmp_path):
    (tmp_path / "empty").mkdir()

    with pytest.raises(InputFileError, match=r"no config\.json"):
        export(tmp_path / "empty")
