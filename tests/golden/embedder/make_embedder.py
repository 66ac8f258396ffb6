"""Make the tiny embedder beside this file: the mean of fixed word vectors, 8 dimensions, 12 words.

Needs onnx, numpy and tokenizers, as the ``embed`` environment has them; ``python make_embedder.py`` in this folder.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["[UNK]", "hello", "weather", "colour", "lunch", "prove", "theorem", "integral", "lemma", "the", "a", "please"]
HERE = Path(__file__).parent


def make_model():
    """Write ``model.onnx``."""
    table = np.random.default_rng(0).normal(size=(len(WORDS), 8)).astype(np.float32)
    table[1:5] += 2.0  # small talk lies together, and far from mathematics
    table[5:9] -= 2.0
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("ReduceMean", ["tokens"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["embedding"], axis=-1, p=2),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["texts", "tokens"])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", 8])
    graph = helper.make_graph(nodes, "tiny", [ids], [out], [numpy_helper.from_array(table, "table")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), HERE / "model.onnx")


def make_tokenizer():
    """Write ``tokenizer.json``."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(HERE / "tokenizer.json"))


def make_manifest():
    """Write ``embedder.json``."""
    files = {name: hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in ("model.onnx", "tokenizer.json")}
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    manifest = {
        "name": "tiny",
        "digest": hashlib.sha256(lines.encode()).hexdigest(),
        "dimensions": 8,
        "max_tokens": 6,
        "pooling": "mean",
        "is_normalised": True,
        "precision": "fp32",
        "inputs": ["input_ids"],
        "files": files,
        "agreement": 1.0,
        "versions": {"onnx": onnx.__version__},
        "schema_version": 1,
    }
    (HERE / "embedder.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_model()
    make_tokenizer()
    make_manifest()
