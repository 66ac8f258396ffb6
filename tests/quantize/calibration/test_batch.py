"""Batches and spools: what is kept of each row, and that a spool gives back what went in, in any order."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import MachineError
from llmtier.quantize.calibration.batch import make_batch, peak_memory_bytes
from llmtier.quantize.calibration.document import Shape
from llmtier.quantize.calibration.pool import map_in_order
from llmtier.quantize.calibration.spool import Documents, decode_line, open_spool, write_spool
from llmtier.store.calibration_sources import Chunk


def make_batches(folder, rows, *, n_at_once=2):
    """Return the batches of rows as if they stood in a file."""
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    for start in range(0, len(lines), n_at_once):
        part = tuple(lines[start : start + n_at_once])
        numbers = tuple(range(start + 1, start + 1 + len(part)))
        chunk = Chunk(path=folder / "a.jsonl", numbers=numbers, rows=part)
        yield make_batch(chunk, shape=Shape(domain="d"), min_tokens=1)


@given(st.lists(st.text(min_size=1).filter(str.strip), max_size=12), st.randoms())
def test_spool_gives_back_what_went_in(tmp_path_factory, texts, random):
    folder = tmp_path_factory.mktemp("spool")
    documents = Documents((write_spool(folder, "a", make_batches(folder, [{"text": text} for text in texts])),), (0,))
    indices = random.sample(range(len(texts)), len(texts))

    assert texts == [text for some in documents.texts() for text in some]
    assert [texts[index] for index in indices] == [decode_line(line)["text"] for line in documents.lines(indices)]
    assert [f"a.jsonl:{index + 1}" for index in indices] == [documents.place(index) for index in indices]
    again = open_spool(folder, "a")
    assert again is not None
    assert np.array_equal(documents.records, again.records)


def test_equal_texts_have_equal_keys_wherever_they_lie(tmp_path):
    rows = [{"text": "same"}, {"text": "other"}, {"text": "same"}]

    keys = np.concatenate([batch.records["key"] for batch in make_batches(tmp_path, rows)])

    assert keys[0] == keys[2] != keys[1]


def test_absent_and_broken_spools_are_none(tmp_path):
    assert open_spool(tmp_path, "a") is None
    write_spool(tmp_path, "a", make_batches(tmp_path, [{"text": "some words"}]))
    (tmp_path / "a.npy").write_bytes(b"")

    assert open_spool(tmp_path, "a") is None


def test_peak_memory_is_that_of_this_process():
    peak = peak_memory_bytes()

    assert peak is None or 10**6 < peak < 10**11


def double(number):
    if number == 13:
        raise ValueError("13")
    return 2 * number


def die(number):
    import os

    os._exit(number)


@pytest.mark.parametrize("n_items", [0, 2, 12])
def test_pool_keeps_the_order(n_items):
    assert [2 * n for n in range(n_items)] == list(map_in_order(double, range(n_items), n_processes=2))


def test_pool_raises_what_the_work_raised_in_its_place():
    found = map_in_order(double, range(20), n_processes=2)

    assert [2 * n for n in range(13)] == [next(found) for _ in range(13)]
    with pytest.raises(ValueError, match="13"):
        next(found)


def test_killed_process_is_a_machine_error():
    with pytest.raises(MachineError, match="a process of the build was killed"):
        list(map_in_order(die, range(1, 9), n_processes=2))
