"""Headers of weight files: what is read, and every way in which a file can be broken."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError
from llmtier.store.safetensors import INDEX_NAME, MAX_HEADER_BYTES, read_header, read_tensors


def write_file(path: Path, header: object, n_data: int) -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(n_data))
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "BF16") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def two_shards(tmp_path):
    write_file(tmp_path / "a.safetensors", {"__metadata__": {"format": "pt"}, "x.weight": entry([2, 3], 0, 12)}, 12)
    write_file(tmp_path / "b.safetensors", {"y.weight": entry([4], 0, 16, "F32")}, 16)
    (tmp_path / INDEX_NAME).write_text(
        json.dumps({"weight_map": {"x.weight": "a.safetensors", "y.weight": "b.safetensors"}})
    )
    return tmp_path


def test_tensors_of_all_shards_are_sorted_by_name(two_shards):
    found = read_tensors(two_shards)

    assert [("x.weight", "BF16", (2, 3), 12), ("y.weight", "F32", (4,), 16)] == [
        (tensor.name, tensor.dtype, tensor.shape, tensor.n_bytes) for tensor in found
    ]


def test_single_file_needs_no_index(tmp_path):
    write_file(tmp_path / "model.safetensors", {"x.weight": entry([2], 0, 4)}, 4)

    assert ["x.weight"] == [tensor.name for tensor in read_tensors(tmp_path)]


def test_weights_are_not_read(tmp_path):
    path = write_file(tmp_path / "model.safetensors", {"x.weight": entry([2**40], 0, 2**41)}, 0)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + 2**41)  # a hole of 2 TiB

    assert 2**41 == read_tensors(tmp_path)[0].n_bytes


def test_absent_shard_is_named(two_shards):
    (two_shards / "b.safetensors").unlink()

    with pytest.raises(InputFileError, match=r"b\.safetensors: is named by .* is not there"):
        read_tensors(two_shards)


def test_tensor_that_its_shard_lacks_is_named(two_shards):
    write_file(two_shards / "b.safetensors", {}, 0)

    with pytest.raises(InputFileError, match=r"places y\.weight in b\.safetensors"):
        read_tensors(two_shards)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("pytorch_model.bin", "save_pretrained"), ("model-q4.gguf", "GGUF is quantized"), ("x.txt", "no \\*")],
)
def test_other_formats_are_answered_with_what_to_do(name, advice, tmp_path):
    (tmp_path / name).write_bytes(b"")

    with pytest.raises(InputFileError, match=advice):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"x": "../b"}}', "{", '{"weight_map": {"x": 1}}']
)
def test_broken_index_is_refused(index, tmp_path):
    (tmp_path / INDEX_NAME).write_text(index)

    with pytest.raises(InputFileError, match=r"index of weight files|weight_map"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (b"weights", "cut short"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "cut short"),
        (struct.pack("<Q", 2) + b"[]", "no JSON object"),
        (struct.pack("<Q", 2) + b"\xff\xff", "not JSON"),
    ],
)
def test_file_that_is_no_safetensors_is_refused(data, reason, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)

    with pytest.raises(InputFileError, match=reason):
        read_header(path)


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        {"dtype": "BF16"},
        entry([2], 0, 3),
        entry([-2], 0, 4),
        entry([2], 4, 0),
        {"dtype": "BF16", "shape": [2], "data_offsets": [0]},
        {"dtype": "BF16", "shape": ["x"], "data_offsets": [0, 4]},
        {"dtype": "BF16", "shape": [2], "data_offsets": ["0", "4"]},
    ],
)
def test_wrong_entry_names_its_tensor(wrong, tmp_path):
    path = write_file(tmp_path / "model.safetensors", {"x.weight": wrong}, 8)

    with pytest.raises(InputFileError, match=r"tensor x\.weight"):
        read_header(path)


def test_unreadable_file_is_an_input_error(tmp_path):
    with pytest.raises(InputFileError, match="cannot be read"):
        read_header(tmp_path)


@given(cut=st.integers(0, 10_000))
def test_file_cut_anywhere_is_refused(cut, tmp_path_factory):
    header = {f"layer.{index}.weight": entry([8], 16 * index, 16 * index + 16) for index in range(4)}
    path = write_file(tmp_path_factory.mktemp("cut") / "model.safetensors", header, 64)
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])

    with pytest.raises(InputFileError):
        read_header(path)
