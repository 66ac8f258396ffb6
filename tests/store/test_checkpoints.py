"""Checkpoint folders with and without a manifest."""

import json
import logging

import pytest

from llmtier.core.errors import InputFileError, SchemaVersionError
from llmtier.core.tier import Checkpoint, Scheme
from llmtier.store.checkpoints import CheckpointManifest, infer_scheme, open_checkpoint, read_manifest, write_manifest
from llmtier.store.digests import checkpoint_digest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


@pytest.fixture
def manifest(folder, provenance):
    checkpoint = Checkpoint(
        path=str(folder), scheme=Scheme.INT8, digest=checkpoint_digest(folder), source_digest="ab" * 32
    )
    return CheckpointManifest(
        checkpoint=checkpoint,
        provenance=provenance,
        recipe={"preset": "W8A8", "ignore": ["lm_head"], "n_samples": 4},
        calibration_sha256=None,
        seconds=1.5,
    )


def test_manifest_reads_back(folder, manifest):
    write_manifest(folder, manifest)

    assert manifest == read_manifest(folder)


def test_folder_without_manifest_has_none(folder):
    assert read_manifest(folder) is None


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        ({"schema_version": 3}, SchemaVersionError, "schema 3, this llmtier reads 1; quantize the model again"),
        ({"schema_version": None}, InputFileError, "no schema_version"),
        ({"checkpoint": {}}, InputFileError, r"checkpoint\.path is missing"),
        ({"seconds": "long"}, InputFileError, "seconds: .*got 'long'"),
    ],
)
def test_malformed_manifest_is_refused(folder, manifest, change, error, expected):
    write_manifest(folder, manifest)
    file = folder / "llmtier.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))

    with pytest.raises(error, match=expected):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_manifest_that_is_no_json_object_is_refused(folder, text):
    (folder / "llmtier.json").write_text(text, errors="surrogateescape")

    with pytest.raises(InputFileError, match="expected a checkpoint manifest"):
        read_manifest(folder)


def test_checkpoint_with_manifest_keeps_scheme_and_source(folder, manifest):
    write_manifest(folder, manifest)

    assert manifest.checkpoint == open_checkpoint(folder)
    assert manifest.checkpoint == open_checkpoint(folder, Scheme.INT8)


def test_scheme_other_than_the_manifests_is_refused(folder, manifest):
    write_manifest(folder, manifest)

    with pytest.raises(InputFileError, match="was quantized to int8, not awq"):
        open_checkpoint(folder, Scheme.AWQ)


def test_changed_weights_change_the_digest_and_warn(folder, manifest, caplog):
    write_manifest(folder, manifest)
    (folder / "model.safetensors").write_bytes(b"other")

    with caplog.at_level(logging.WARNING):
        found = open_checkpoint(folder)

    assert manifest.checkpoint.digest != found.digest
    assert "changed since it was written" in caplog.text


def test_plain_folder_takes_the_scheme_it_is_told(folder):
    expected = Checkpoint(path=str(folder), scheme=Scheme.FP8, digest=checkpoint_digest(folder))

    assert expected == open_checkpoint(folder, Scheme.FP8)


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InputFileError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


def compressed(fmt, **weights):
    groups = {"group_0": {"weights": weights}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": fmt, "config_groups": groups}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Scheme.BF16),
        ({"torch_dtype": "float32"}, Scheme.BF16),
        ({"dtype": "bfloat16"}, Scheme.BF16),
        ({"dtype": "float16"}, Scheme.FP16),
        ({"quantization_config": {"quant_method": "awq"}}, Scheme.AWQ),
        ({"quantization_config": {"quant_method": "gptq"}}, Scheme.GPTQ),
        ({"quantization_config": {"quant_method": "mxfp4"}}, Scheme.MXFP4),
        ({"quantization_config": {"quant_method": "fp8"}}, Scheme.FP8),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, Scheme.FP8_BLOCK),
        (compressed("int-quantized", num_bits=8), Scheme.INT8),
        (compressed("float-quantized", num_bits=8, strategy="channel"), Scheme.FP8),
        (compressed("float-quantized", num_bits=8, strategy="block"), Scheme.FP8_BLOCK),
        (compressed("pack-quantized", num_bits=4, symmetric=True), Scheme.GPTQ),
        (compressed("pack-quantized", num_bits=4, symmetric=False), Scheme.AWQ),
        (compressed("nvfp4-pack-quantized", num_bits=4), Scheme.NVFP4),
        (compressed("mxfp4-pack-quantized", num_bits=4), Scheme.MXFP4),
    ],
)
def test_scheme_is_told_from_the_config(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert expected is infer_scheme(tmp_path)


@pytest.mark.parametrize(
    "config",
    [{"quantization_config": {"quant_method": "bitsandbytes"}}, compressed("dense"), compressed("int-quantized")],
)
def test_unknown_quantization_asks_for_the_scheme(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(InputFileError, match="state 'scheme'"):
        infer_scheme(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_malformed_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(InputFileError, match=r"config\.json"):
        infer_scheme(tmp_path)
