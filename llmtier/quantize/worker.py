"""The stand-alone script that quantizes a model, run by the ``quantize`` environment's interpreter.

    python -I worker.py '{"model": ..., "calibration": ..., "schemes": [{"scheme": "awq", "group_size": 128, "out": ...}]}'

Reads the source checkpoint and the calibration rows (JSON lines); writes each quantized checkpoint into
the folder that the job names for it. Standard output carries JSON lines of progress and nothing else;
whatever the libraries print goes to standard error. Ends at once when its standard input closes, so that
it never outlives the command that started it.

It imports nothing of llmtier, checks nothing that ``job.plan`` has checked, and writes no manifest.
Written against llm-compressor 0.14 (one model, one recipe, ``oneshot``).
"""

import importlib.metadata
import json
import os
import random
import resource
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from llmcompressor.modifiers import Modifier
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIBRARIES = ("torch", "transformers", "llmcompressor", "compressed-tensors")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
COPIED_FILES = (*TOKENIZER_FILES, "chat_template*", "generation_config.json")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait sleep instead of spinning. Where other work shares the cores, spinning costs more than the
    # work: AWQ, 2 layers of width 128, 64 rows, 2 busy AVX-512 cores: 139 s spinning, 19 s sleeping (2026-11-20).
    "OMP_WAIT_POLICY": "PASSIVE",
}
PRESET_GROUP_SIZE = 128  # of compressed-tensors' W4A16 and W4A16_ASYM

Report = Callable[..., None]


class WorkerError(Exception):
    """The job cannot be done; the message says why, for people."""


@dataclass(slots=True)
class Stopwatch:
    """Seconds per phase, in the order of the phases."""

    seconds: dict[str, float] = field(default_factory=dict)
    since_s: float = field(default_factory=perf_counter)

    def lap(self, phase: str) -> None:
        """Book the time since the last lap under ``phase``."""
        now_s = perf_counter()
        self.seconds[phase] = round(now_s - self.since_s, 3)
        self.since_s = now_s


def open_report() -> Report:
    """Keep the real standard output for progress and send everything else to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # also catches what native libraries print

    def report(event: str, **facts: object) -> None:
        events.write(json.dumps({"event": event, **facts}) + "\n")

    return report


def leave_with_parent() -> None:
    """End this process when the parent's end of our standard input closes, however the parent died."""

    def watch() -> None:
        while os.read(0, 1):  # unbuffered: a buffered reader would hold its lock at exit
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_rows(path: Path, *, n_samples: int, seed: int) -> list[dict[str, Any]]:
    """Return at most ``n_samples`` calibration rows, drawn by ``seed``, in the file's order."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    chosen = sorted(random.Random(seed).sample(range(len(lines)), min(n_samples, len(lines))))  # noqa: S311
    return [json.loads(lines[index]) for index in chosen]


def token_ids(tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], *, max_tokens: int) -> list[int]:
    """Return the ids of one row, cut to ``max_tokens``; a chat template brings its own special tokens."""
    if "messages" in row:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(row["text"])["input_ids"]
    doubled = ids[:2] == [tokenizer.bos_token_id] * 2
    return list(ids[1 if doubled else 0 :][:max_tokens])


def tokenize(job: dict[str, Any]) -> list[list[int]]:
    """Return the token ids of the calibration rows; none without a calibration file.

    Raises:
        WorkerError: There are messages and no chat template, or no row holds a token.
    """
    from transformers import AutoTokenizer

    if job["calibration"] is None:
        return []
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rows = read_rows(Path(job["calibration"]), n_samples=job["n_samples"], seed=job["seed"])
    if tokenizer.chat_template is None and any("messages" in row for row in rows):
        raise WorkerError(f"{job['model']}: has no chat template to render messages by; give rows of text")
    samples = [token_ids(tokenizer, row, max_tokens=job["max_seq_tokens"]) for row in rows]
    if not any(samples):
        raise WorkerError(f"{job['calibration']}: no row holds a token")
    return [ids for ids in samples if ids]


def equal_length_batches(samples: list[list[int]], *, max_tokens: int) -> list[list[list[int]]]:
    """Put samples of one length together, at most ``max_tokens`` a batch: nothing is padded, nothing is cut.

    AWQ runs each layer some twenty times over every batch; short chats are several times faster so.
    """
    batches: list[list[list[int]]] = []
    for ids in sorted(samples, key=len):
        last = batches[-1] if batches else []
        if last and len(last[0]) == len(ids) and (len(last) + 1) * len(ids) <= max_tokens:
            last.append(ids)
        else:
            batches.append([ids])
    return batches


def make_loader(samples: list[list[int]], *, max_tokens: int) -> "torch.utils.data.DataLoader[dict[str, torch.Tensor]]":
    """Return batches of shape (n_samples, n_tokens), in order.

    A loader of ours is taken as it is; llm-compressor's own would sample without a seed and cut by length.
    """
    import torch

    tensors = [torch.tensor(batch) for batch in equal_length_batches(samples, max_tokens=max_tokens)]
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tensors]
    return torch.utils.data.DataLoader(rows, batch_size=1, shuffle=False, collate_fn=lambda one: one[0])


def four_bit_format(*, is_symmetric: bool, group_size: int) -> dict[str, Any]:
    """Return a modifier's arguments for 4-bit weights: the preset, or the same with another group size."""
    if group_size == PRESET_GROUP_SIZE:
        return {"scheme": "W4A16" if is_symmetric else "W4A16_ASYM", "targets": ["Linear"]}
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size, "symmetric": is_symmetric}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def make_recipe(scheme: str, *, group_size: int | None) -> "list[Modifier]":
    """Return the modifiers of a scheme; the output head stays unquantized in all of them."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    ignore = ["lm_head"]
    size = group_size or PRESET_GROUP_SIZE
    match scheme:
        case "int8":  # weights rounded per channel, activations per token at run time: no data
            return [QuantizationModifier(targets=["Linear"], scheme="W8A8", ignore=ignore)]
        case "fp8":
            return [QuantizationModifier(targets=["Linear"], scheme="FP8_DYNAMIC", ignore=ignore)]
        case "gptq":  # "static": vLLM refuses the other activation orders
            format_ = four_bit_format(is_symmetric=True, group_size=size)
            return [GPTQModifier(**format_, ignore=ignore, actorder="static")]
        case "awq":
            format_ = four_bit_format(is_symmetric=False, group_size=size)
            return [AWQModifier(duo_scaling=True), QuantizationModifier(**format_, ignore=ignore)]
    raise WorkerError(f"scheme {scheme} is not one that this script writes: int8, fp8, gptq, awq")


def check_awq_knows(model: "PreTrainedModel") -> None:
    """Refuse an architecture for which AWQ would silently fall back on Llama's layer names.

    Raises:
        WorkerError: llm-compressor lists no mapping for it.
    """
    from llmcompressor.modifiers.transform.awq import AWQ_MAPPING_REGISTRY
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import AWQ_DYNAMIC_MAPPING_REGISTRY

    name = type(model).__name__
    if name not in AWQ_MAPPING_REGISTRY and name not in AWQ_DYNAMIC_MAPPING_REGISTRY:
        raise WorkerError(f"awq: llm-compressor knows no layer mapping for {name}; use --scheme gptq")


def allow_awq_without_accelerator() -> None:
    """Keep AWQ from pinning memory where no accelerator exists: llm-compressor 0.13 and 0.14 crash there."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_args, **_kwargs: None


def report_layers(scheme: str, *, n_layers: int, report: Report) -> Callable[[], None]:
    """Report each layer that calibration has finished; call the result to stop.

    llm-compressor has no progress hook: this wraps the callback that ends each traced part of the model.
    """
    from llmcompressor.core import LifecycleCallbacks

    original = LifecycleCallbacks.sequential_epoch_end
    n_done = 0

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal n_done
        result = original(*args, **kwargs)
        n_done += 1
        if n_done <= n_layers:  # the last part is the output head, which stays as it is
            report("layer", scheme=scheme, n_done=n_done, n_total=n_layers)
        return result

    def stop() -> None:
        LifecycleCallbacks.sequential_epoch_end = original

    LifecycleCallbacks.sequential_epoch_end = counting
    return stop


def load_model(path: str) -> "PreTrainedModel":
    """Load the source in the type its weights are stored in."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype="auto")


def compress(
    model: "PreTrainedModel", part: dict[str, Any], *, loader: "torch.utils.data.DataLoader[Any] | None", report: Report
) -> None:
    """Quantize ``model`` in place by the recipe of one scheme; ``loader`` is ``None`` where it needs no data."""
    from llmcompressor import oneshot

    scheme = part["scheme"]
    recipe = make_recipe(scheme, group_size=part["group_size"])
    if loader is None:
        oneshot(model=model, recipe=recipe)
        return
    if scheme == "awq":
        check_awq_knows(model)
        allow_awq_without_accelerator()
    stop = report_layers(scheme, n_layers=model.config.get_text_config().num_hidden_layers, report=report)
    try:
        oneshot(model=model, recipe=recipe, dataset=loader, num_calibration_samples=len(loader))
    finally:
        stop()


def save(model: "PreTrainedModel", *, source: Path, out: Path) -> None:
    """Write the weights compressed, and the source's tokenizer and generation defaults byte for byte.

    Saving a tokenizer object instead would write back the state that tokenizing left in it.
    """
    model.save_pretrained(out, save_compressed=True)
    for path in (path for pattern in COPIED_FILES for path in source.glob(pattern) if path.is_file()):
        shutil.copyfile(path, out / path.name)


def set_seed(seed: int) -> None:
    """Seed every generator that the libraries may draw from."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the libraries draw from the global one)
    torch.manual_seed(seed)


def peak_memory_bytes() -> int:
    """Return this process's largest resident memory so far; with several schemes the first ones count in."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def run_scheme(job: dict[str, Any], part: dict[str, Any], *, samples: list[list[int]], report: Report) -> None:
    """Load, quantize and save for one scheme; the model is loaded anew, as quantizing changes it in place."""
    stopwatch = Stopwatch()
    report("loading", scheme=part["scheme"])
    set_seed(job["seed"])
    model = load_model(job["model"])
    stopwatch.lap("load")
    loader = make_loader(samples, max_tokens=job["max_seq_tokens"]) if part["needs_data"] else None
    compress(model, part, loader=loader, report=report)
    stopwatch.lap("quantize")
    save(model, source=Path(job["model"]), out=Path(part["out"]))
    stopwatch.lap("save")
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    report(
        "saved",
        scheme=part["scheme"],
        seconds_by_phase=stopwatch.seconds,
        peak_memory_bytes=peak_memory_bytes(),
        versions=versions,
    )


def run(job: dict[str, Any], *, report: Report) -> None:
    """Do the whole job: tokenize once, then one scheme after the other."""
    begun_s = perf_counter()
    stopwatch = Stopwatch()
    samples = tokenize(job)
    stopwatch.lap("tokenize")
    if samples:
        n_tokens = sum(map(len, samples))
        report("tokenized", n_samples=len(samples), n_tokens=n_tokens, seconds_by_phase=stopwatch.seconds)
    for part in job["schemes"]:
        run_scheme(job, part, samples=samples, report=report)
    report("done", seconds=round(perf_counter() - begun_s, 3), peak_memory_bytes=peak_memory_bytes())


def main() -> None:
    """Run the job that the first argument holds."""
    report = open_report()
    leave_with_parent()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        run(json.loads(sys.argv[1]), report=report)
    except WorkerError as error:
        report("refused", message=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
