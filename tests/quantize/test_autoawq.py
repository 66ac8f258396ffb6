"""What AutoAWQ's old transformers is shown of a new checkpoint; the rest runs in tests/e2e/test_export_autoawq.py."""

import json

import pytest

from llmtier.quantize.worker.autoawq import is_match, make_old_view, old_tokenizer_config

CONFIG = {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}
TOKENIZER = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|user|>"], "bos_token": "<s>"}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_old_view_says_the_same_in_older_words_and_leaves_the_source_alone(source, tmp_path):
    view = make_old_view(source, tmp_path / "work" / "view")

    config = json.loads((view / "config.json").read_text())
    assert ("bfloat16", 500000.0) == (config["torch_dtype"], config["rope_theta"])
    assert {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|user|>"],
        "bos_token": "<s>",
    } == json.loads((view / "tokenizer_config.json").read_text())
    assert source / "model.safetensors" == (view / "model.safetensors").readlink()
    assert CONFIG == json.loads((source / "config.json").read_text())
    assert TOKENIZER == json.loads((source / "tokenizer_config.json").read_text())


def test_old_view_is_made_anew_and_needs_no_tokenizer_config(source, tmp_path):
    view = make_old_view(source, tmp_path / "view")
    (source / "tokenizer_config.json").unlink()

    again = make_old_view(source, tmp_path / "view")

    assert view == again
    assert ["config.json", "model.safetensors"] == sorted(path.name for path in again.iterdir())


def test_tokenizers_that_transformers_4_knows_stay_as_they_are():
    known = {"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": {"image_token": "<i>"}}

    assert known == old_tokenizer_config(known)


def test_ignored_layers_are_names_or_expressions_from_the_start():
    assert is_match("model.layers.0.mlp.gate", "re:.*gate$")
    assert is_match("lm_head", "lm_head")
    assert not is_match("model.lm_head", "lm_head")
    assert not is_match("model.layers.0.mlp.gate", "re:gate")
