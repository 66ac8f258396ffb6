"""The embedder: a tiny exported model run for real, and what is refused."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, MachineError
from llmtier.engine.embedder import CHARS_PER_TOKEN, cut_text, cut_tokens, load_embedder, make_feed
from llmtier.store.embedders import digest_of_files, file_digests, read_embedder_manifest, write_embedder_manifest

pytest.importorskip("onnxruntime")
GOLDEN = Path(__file__).parents[1] / "golden" / "embedder"


@pytest.fixture(scope="module")
def embedder():
    return load_embedder(GOLDEN)


def test_near_texts_get_near_vectors(embedder):
    talk, weather, proof = (embedder.embed(text) for text in ("hello lunch", "the weather please", "prove the lemma"))

    assert talk @ weather > 0.5
    assert talk @ proof < 0
    assert talk.dtype == np.float32
    assert embedder.digest == read_embedder_manifest(GOLDEN).digest


@given(text=st.text(max_size=100) | st.just("\ud800 half a pair") | st.just("\0"))
def test_every_text_with_a_word_gives_a_unit_vector(embedder, text):
    vector = embedder.embed(f"hello {text}")

    assert (8,) == vector.shape
    assert float(vector @ vector) == pytest.approx(1, abs=1e-5)


def test_of_a_long_text_beginning_and_end_count(embedder):
    long = "hello a the lunch {} please weather"

    assert embedder.embed(long.format("")).tolist() == embedder.embed(long.format("prove the theorem")).tolist()
    assert embedder.embed(long.format("")).tolist() != embedder.embed(f"{long.format('')} prove").tolist()


@given(st.integers(0, 50), st.integers(1, 20))
def test_tokens_are_cut_in_the_middle_only(n, max_tokens):
    kept = cut_tokens(list(range(n)), max_tokens)

    assert min(n, max_tokens) == len(kept)
    assert sorted(set(kept)) == kept
    assert kept[-1:] == list(range(n))[-1:]


def test_only_so_many_characters_are_tokenized(embedder):
    seen = []

    class Recorder:
        def encode(self, text):
            seen.append(text)
            return embedder.tokenizer.encode(text)

    dataclasses.replace(embedder, tokenizer=Recorder()).embed("hello " * 10_000)

    assert [6 * CHARS_PER_TOKEN + 1] == [len(text) for text in seen]


@pytest.mark.parametrize("text", ["", "  "])
def test_a_text_without_a_token_has_no_embedding(embedder, text):
    assert embedder.embed(text) is None


def test_dimensions_that_are_not_the_manifests_are_an_error(embedder):
    other = dataclasses.replace(embedder, manifest=dataclasses.replace(embedder.manifest, dimensions=9))

    with pytest.raises(MachineError, match="expected 9 finite numbers, got shape \\(8,\\)"):
        other.embed("hello")


def test_inputs_that_nobody_makes_are_refused():
    feed = make_feed([4, 5], ("input_ids", "attention_mask", "token_type_ids"))

    assert [[4, 5]] == feed["input_ids"].tolist()
    assert [[1, 1]] == feed["attention_mask"].tolist()
    assert [[0, 0]] == feed["token_type_ids"].tolist()
    with pytest.raises(InputFileError, match="position_ids"):
        make_feed([4], ("position_ids",))


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_file_that_is_no_model_is_an_input_error(tmp_path, name):
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "tiny"))
    (folder / name).write_text("{}")
    files = file_digests(folder)
    manifest = dataclasses.replace(read_embedder_manifest(GOLDEN), files=files, digest=digest_of_files(files))
    write_embedder_manifest(folder, manifest)

    with pytest.raises(InputFileError, match="cannot be loaded"):
        load_embedder(folder)


@pytest.mark.parametrize("name", ["onnxruntime", "tokenizers"])
def test_without_the_libraries_the_message_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(MachineError, match=r"pip install 'llmtier\[semantic\]'"):
        load_embedder(GOLDEN)


def test_half_pairs_are_replaced_and_the_rest_is_kept():
    assert "?a" == cut_text("\ud800a", max_chars=2)
    assert "Zwölf 😀" == cut_text("Zwölf 😀", max_chars=99)
    assert "abc\nyz" == cut_text("abcdefg xyz", max_chars=5)
