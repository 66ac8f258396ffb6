"""The worker that quantizes a model with AutoAWQ, run by the ``autoawq`` environment's interpreter.

    python -I bootstrap.py llmtier.quantize.worker.autoawq '{"model": ..., "calibration": ..., "schemes": [{"scheme": "awq", ...}]}'

Takes the job and writes the events of ``oneshot``, for the one scheme that AutoAWQ has. The checkpoint has AutoAWQ's own
layout. Runs on a GPU where there is one, otherwise on the CPU. Keeps no finished layers: a run that was killed begins
anew, but for the token ids.

AutoAWQ 0.2.9 is archived and ends at transformers 4.51, which misreads what transformers 5 writes; it is shown a folder
of links in which ``config.json`` and ``tokenizer_config.json`` say the same in the older words.
"""

import importlib.metadata
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from llmtier.quantize.worker.export_autoawq import export_config, read_config, rope_of_old, write_json
from llmtier.quantize.worker.oneshot import (
    COPIED_FILES,
    Stopwatch,
    machine_errors,
    peak_memory_bytes,
    prepare_environment,
    set_seed,
)
from llmtier.quantize.worker.packed_checkpoint import Layout
from llmtier.quantize.worker.report import Report, WorkerError, run_worker
from llmtier.quantize.worker.tokens import Samples, load_samples

if TYPE_CHECKING:
    from awq.models.base import BaseAWQForCausalLM

LIBRARIES = ("torch", "transformers", "autoawq")
OLD_VIEW = "as-transformers-4"
NEW_TOKENIZER_CLASSES = frozenset({"TokenizersBackend", "SentencePieceBackend"})


def make_old_view(source: Path, view: Path) -> Path:
    """Fill ``view`` with links to the source's files and with its configuration as transformers 4 reads it."""
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(parents=True)
    for path in source.iterdir():
        (view / path.name).symlink_to(path.absolute())
    config = read_config(source)
    dtype = {"torch_dtype": config["dtype"]} if "dtype" in config else {}
    replace_link(view / "config.json", {**config, **dtype, **rope_of_old(config)})
    tokenizer = source / "tokenizer_config.json"
    if tokenizer.exists():
        replace_link(view / tokenizer.name, old_tokenizer_config(json.loads(tokenizer.read_text(encoding="utf-8"))))
    return view


def replace_link(path: Path, document: Mapping[str, Any]) -> None:
    """Put a file in the place of a link; what the link leads to stays."""
    path.unlink()
    write_json(path, document)


def old_tokenizer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``tokenizer_config.json`` in the words of transformers 4."""
    old = dict(config)
    if old.get("tokenizer_class") in NEW_TOKENIZER_CLASSES:
        old["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(old.get("extra_special_tokens"), list):
        old["additional_special_tokens"] = old.pop("extra_special_tokens")
    return old


def load_model(view: Path) -> "BaseAWQForCausalLM":
    """Load the source in float16, AutoAWQ's only type; on the CPU, from where it takes layer by layer to a GPU.

    Raises:
        WorkerError: AutoAWQ does not know the architecture.
    """
    import torch
    from awq import AutoAWQForCausalLM

    try:
        return AutoAWQForCausalLM.from_pretrained(
            str(view), torch_dtype=torch.float16, device_map="cpu", trust_remote_code=False
        )
    except TypeError as error:  # "... isn't supported yet."
        raise WorkerError(f"AutoAWQ cannot take this model: {error}; use the default backend") from error


def check_ignored(model: "BaseAWQForCausalLM", ignore: Iterable[str]) -> None:
    """Refuse to leave out layers that AutoAWQ, which knows them by their names within a decoder layer, would quantize.

    Raises:
        WorkerError: Naming the first.
    """
    from torch.nn import Linear

    layers = {id(module) for layer in model.get_model_layers(model.model) for module in layer.modules()}
    linears = [
        name for name, module in model.model.named_modules() if isinstance(module, Linear) and id(module) in layers
    ]
    for pattern in ignore:
        taken = next((name for name in linears if is_match(name, pattern)), None)
        if taken is not None:
            raise WorkerError(f"--backend autoawq cannot leave out {taken} ({pattern}); use the default backend")


def is_match(name: str, pattern: str) -> bool:
    """Tell whether a layer is meant: by its name, or by ``re:`` and an expression that matches from its start."""
    return bool(re.match(pattern[3:], name)) if pattern.startswith("re:") else name == pattern


def make_quantizer(n_layers: int, report: Report) -> Any:  # noqa: ANN401 - a class of a library without types
    """Return AutoAWQ's quantizer class with a report after each layer."""
    from awq.quantize.quantizer import AwqQuantizer

    n_done = 0

    class ReportingQuantizer(AwqQuantizer):  # type: ignore[misc, unused-ignore]
        """Reports each layer that is finished."""

        def _apply_quant(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            nonlocal n_done
            super()._apply_quant(*args, **kwargs)
            n_done += 1
            report("layer", scheme="awq", n_done=n_done, n_total=n_layers)

    return ReportingQuantizer


def quantize(
    model: "BaseAWQForCausalLM", part: Mapping[str, Any], *, samples: Samples, max_tokens: int, report: Report
) -> None:
    """Quantize in place.

    AutoAWQ joins the samples and cuts them into blocks of one length, dropping the rest: a set shorter than one block
    is made one block.

    Raises:
        WorkerError: Weights or activations are not finite in float16.
    """
    n_layers = len(model.get_model_layers(model.model))
    try:
        model.quantize(
            quant_config=quant_config(part),
            calib_data=samples.ids,
            max_calib_samples=len(samples.ids),
            max_calib_seq_len=min(max_tokens, samples.n_tokens),
            n_parallel_calib_samples=1,  # all blocks at once would need memory for each
            quantizer_cls=make_quantizer(n_layers, report),
        )
    except AssertionError as error:  # AutoAWQ's own checks, most without a text
        message = (
            f"AutoAWQ found weights or activations that are not finite in float16 ({error}); use the default backend"
        )
        raise WorkerError(message, kind="input") from error


def save(model: "BaseAWQForCausalLM", layout: Layout, *, source: Path, out: Path) -> None:
    """Write weights, configuration and the source's tokenizer; AutoAWQ's own versions of the latter are not kept."""
    skipped = {
        name.removesuffix(".weight") for name, value in model.model.state_dict().items() if is_matrix(name, value)
    }
    model.save_quantized(str(out))
    (out / "generation_config.json").unlink(missing_ok=True)  # AutoAWQ turns sampling on in it
    write_json(out / "config.json", export_config(read_config(source), layout, skipped=sorted(skipped | {"lm_head"})))
    for path in (path for pattern in COPIED_FILES for path in source.glob(pattern) if path.is_file()):
        shutil.copyfile(path, out / path.name)


def quant_config(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return what AutoAWQ is told."""
    return {"zero_point": True, "q_group_size": part["group_size"], "w_bit": 4, "version": "GEMM"}


def is_matrix(name: str, value: Any) -> bool:  # noqa: ANN401 - a tensor
    """Tell whether an entry of a state dict is the matrix of a layer that was not quantized."""
    return name.endswith(".weight") and value.dim() == 2


def run_part(job: Mapping[str, Any], part: Mapping[str, Any], *, view: Path, samples: Samples, report: Report) -> None:
    """Load, quantize and save."""
    stopwatch = Stopwatch()
    report("loading", scheme="awq")
    set_seed(job["seed"])
    model = load_model(view)
    check_ignored(model, part["ignore"])
    stopwatch.lap("load")
    quantize(model, part, samples=samples, max_tokens=job["max_seq_tokens"], report=report)
    stopwatch.lap("quantize")
    layout = Layout(group_size=part["group_size"], is_symmetric=False, ignore=())
    save(model, layout, source=Path(job["model"]), out=Path(part["out"]))
    sampling = {name: job[name] for name in ("n_samples", "max_seq_tokens", "seed")}
    recipe = {"autoawq": {"quant_config": quant_config(part), "ignore": part["ignore"], **sampling}}
    write_json(Path(part["out"]) / "recipe.yaml", recipe)  # JSON is YAML
    stopwatch.lap("save")
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    facts = {"peak_memory_bytes": peak_memory_bytes(), "versions": versions}
    report("saved", scheme="awq", seconds_by_phase=stopwatch.seconds, **facts)


def run(job: dict[str, Any], report: Report) -> None:
    """Do the whole job."""
    prepare_environment()
    begun_s = perf_counter()
    stopwatch = Stopwatch()
    [part] = job["schemes"]
    with machine_errors(job):
        view = make_old_view(Path(job["model"]), Path(part["work"]) / OLD_VIEW)
        samples = load_samples({**job, "model": str(view)}, report=report)
        stopwatch.lap("tokenize")
        counts = {"n_samples": len(samples.ids), "n_tokens": samples.n_tokens, "n_cut": samples.n_cut}
        report("tokenized", **counts, seconds_by_phase=stopwatch.seconds)
        run_part(job, part, view=view, samples=samples, report=report)
        shutil.rmtree(view)
    report("done", seconds=round(perf_counter() - begun_s, 3), peak_memory_bytes=peak_memory_bytes())


if __name__ == "__main__":
    run_worker(run)
