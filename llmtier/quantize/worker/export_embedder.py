"""The worker that writes a sentence-embedding model as ONNX, with a tokenizer and pooling that need no torch.

    python -I bootstrap.py llmtier.quantize.worker.export_embedder '{"path": "...", "out": "...", "precision": "int8", ...}'

Reads a folder of sentence-transformers or plain transformers format: ``modules.json`` says how token vectors become one
(mean of all without it). Writes ``model.onnx`` and ``tokenizer.json`` into ``out``; the model takes ``input_ids`` alone,
one text a row without padding, and gives unit vectors. Tries it on a few texts against torch.

Ends with ``exported``: dimensions, tokens, pooling, the least cosine and the libraries' versions.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtier.quantize.worker.report import Report, WorkerError, run_worker

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

MODEL_NAME, TOKENIZER_NAME = "model.onnx", "tokenizer.json"  # as store.embedders names them; workers import no store
OPSET = 17
POOLING_FILES = ["modules.json", "sentence_bert_config.json", "*/config.json", "*/model.safetensors"]
POOLINGS = ("mean", "cls", "max", "lasttoken")
FLAGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "lasttoken": "lasttoken"}
"""How ``1_Pooling/config.json`` calls them, after ``pooling_mode_``."""

TRIAL_TEXTS = (
    "Hello there!",
    "What is the capital of France?",
    "Prove that the square root of two is irrational, and state each lemma that you use.",
    "def add(a, b):\n    return a + b\n\nWhy does add('1', 2) fail, and how would you make it work for both?",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "A train leaves at 9:40 and travels 312 km at 78 km/h; when does it arrive? " * 12,
)


def fetch_pooling(hub_id: str, revision: str | None) -> None:
    """Complete the snapshot of a hub model with the files that say how it pools.

    Raises:
        WorkerError: The hub cannot be reached.
    """
    import httpx
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(hub_id, revision=revision, allow_patterns=POOLING_FILES)
    except (OSError, httpx.HTTPError) as error:
        raise WorkerError(f"{hub_id}: its pooling cannot be fetched: {error}", kind="machine") from error


def read_json(path: Path) -> Any:  # noqa: ANN401 - JSON is any of six types
    """Return a JSON file's content.

    Raises:
        WorkerError: It is absent or malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkerError(f"{path}: cannot be read as JSON: {error}", kind="input") from error


def read_modules(folder: Path) -> tuple[str, list[Path], Path]:
    """Return the pooling, the folders of dense layers after it, and the folder of the transformer itself.

    Raises:
        WorkerError: A module is of a kind that is not exported.
    """
    if not (folder / "modules.json").is_file():
        return "mean", [], folder
    pooling, dense, transformer = "mean", [], folder
    for module in read_json(folder / "modules.json"):
        kind, path = str(module["type"]).rpartition(".")[2], folder / str(module["path"])
        match kind:
            case "Transformer":
                transformer = path
            case "Pooling":
                pooling = read_pooling(path / "config.json")
            case "Dense":
                dense.append(path)
            case "Normalize":  # done in any case
                pass
            case _:
                raise WorkerError(f"{folder}: its module {kind!r} is not known to llmtier", kind="input")
    return pooling, dense, transformer


def read_pooling(path: Path) -> str:
    """Return the one of ``POOLINGS`` that a pooling's configuration names.

    Raises:
        WorkerError: It names none, several, or one that is not exported.
    """
    config = read_json(path)
    named = [str(config["pooling_mode"])] if "pooling_mode" in config else []
    flagged = [name.removeprefix("pooling_mode_") for name, is_on in config.items() if is_on is True]
    named += [FLAGS.get(flag, flag) for flag in flagged if f"pooling_mode_{flag}" in config]
    if len(named) != 1 or named[0] not in POOLINGS:
        raise WorkerError(f"{path}: expected one pooling of {', '.join(POOLINGS)}, got {named}", kind="input")
    return named[0]


def load_dense(path: Path) -> "torch.nn.Module":
    """Return a linear layer with its activation.

    Raises:
        WorkerError: The activation is not exported, or the weights are not there.
    """
    import torch
    from safetensors.torch import load_file

    config = read_json(path / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in {"Identity", "Tanh"}:
        raise WorkerError(f"{path}: its activation {activation!r} is not known to llmtier", kind="input")
    layer = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    try:
        weights = load_file(path / "model.safetensors")
    except OSError as error:
        raise WorkerError(f"{path}: its weights cannot be read: {error}", kind="input") from error
    layer.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in weights.items()})
    return torch.nn.Sequential(layer, getattr(torch.nn, activation)())


def build_encoder(folder: Path, *, pooling: str, dense: Sequence[Path]) -> "torch.nn.Module":
    """Return a module from token ids of shape (n_texts, n_tokens) to unit vectors, in float32.

    Raises:
        WorkerError: transformers cannot load the folder.
    """
    import torch
    from transformers import AutoModel

    try:
        backbone = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise WorkerError(f"{folder}: transformers cannot load it: {reason}", kind="input") from error
    layers = [load_dense(path) for path in dense]

    class Encoder(torch.nn.Module):  # type: ignore[misc, unused-ignore]  # torch is untyped here
        """Transformer, pooling, dense layers, unit norm."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.dense = torch.nn.Sequential(*layers)

        def forward(self, input_ids: "torch.Tensor") -> "torch.Tensor":
            """Return shape (n_texts, n_dimensions)."""
            tokens = self.backbone(input_ids=input_ids, return_dict=True).last_hidden_state
            return torch.nn.functional.normalize(self.dense(pool(tokens, pooling)), dim=-1)

    return Encoder().eval()


def pool(tokens: "torch.Tensor", pooling: str) -> "torch.Tensor":
    """Return one vector a text from shape (n_texts, n_tokens, n_hidden), no padding among them."""
    match pooling:
        case "cls":
            return tokens[:, 0]
        case "lasttoken":
            return tokens[:, -1]
        case "max":
            return tokens.amax(dim=1)
        case _:
            return tokens.mean(dim=1)


def save_tokenizer(folder: Path, out: Path, *, max_tokens: int) -> int:
    """Write ``tokenizer.json`` and return how many tokens of a text the model can read, at most ``max_tokens``.

    Raises:
        WorkerError: The model has no tokenizer of that format.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise WorkerError(f"{folder}: its tokenizer cannot be loaded: {error}", kind="input") from error
    if not tokenizer.is_fast:
        raise WorkerError(f"{folder}: its tokenizer has no tokenizer.json form", kind="input")
    fast = tokenizer.backend_tokenizer
    fast.no_padding()
    fast.no_truncation()
    fast.save(str(out / TOKENIZER_NAME))
    positions = getattr(AutoConfig.from_pretrained(folder), "max_position_embeddings", None)
    return int(min(max_tokens, tokenizer.model_max_length, positions or max_tokens))


def export_onnx(encoder: "torch.nn.Module", path: Path) -> None:
    """Trace the encoder and write it."""
    import torch

    example = torch.randint(5, 500, (1, 16))
    axes = {"input_ids": {0: "texts", 1: "tokens"}, "embedding": {0: "texts"}}
    with torch.inference_mode():
        torch.onnx.export(
            encoder,
            (example,),
            str(path),
            input_names=["input_ids"],
            output_names=["embedding"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def quantize_onnx(source: Path, target: Path) -> None:
    """Write the model with 8-bit weights, a scale for each output channel; activations are quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source, target, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gather"]
    )


def try_out(encoder: "torch.nn.Module", out: Path, *, max_tokens: int) -> tuple[int, float]:
    """Return the dimensions, and the least cosine between torch and the written files over the trial texts."""
    import numpy as np
    import onnxruntime
    import tokenizers
    import torch

    session = onnxruntime.InferenceSession(str(out / MODEL_NAME), providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(str(out / TOKENIZER_NAME))
    tokenizer.enable_truncation(max_tokens)
    cosines: list[float] = []
    found: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
    for text in TRIAL_TEXTS:
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(ids)).numpy()
        found = session.run(None, {"input_ids": ids})[0]
        cosines.append(float((expected * found).sum()))
    return found.shape[1], min(cosines)


def run(job: dict[str, Any], report: Report) -> None:
    """Export, try, report."""
    import onnx
    import onnxruntime
    import torch
    import transformers

    folder, out = Path(job["path"]), Path(job["out"])
    if job["hub_id"] is not None:
        fetch_pooling(job["hub_id"], job["revision"])
    pooling, dense, transformer = read_modules(folder)
    encoder = build_encoder(transformer, pooling=pooling, dense=dense)
    max_tokens = save_tokenizer(transformer, out, max_tokens=job["max_tokens"])
    report("note", message="tracing the model")
    full = out / "fp32.onnx"
    export_onnx(encoder, full)
    if job["precision"] == "int8":
        report("note", message="quantizing it to 8 bits")
        quantize_onnx(full, out / MODEL_NAME)
        full.unlink()
    else:
        full.rename(out / MODEL_NAME)
    dimensions, agreement = try_out(encoder, out, max_tokens=max_tokens)
    versions = {one.__name__: str(one.__version__) for one in (onnx, onnxruntime, torch, transformers)}
    report(
        "exported",
        dimensions=dimensions,
        max_tokens=max_tokens,
        pooling=pooling,
        agreement=agreement,
        versions=versions,
    )


if __name__ == "__main__":
    run_worker(run)
