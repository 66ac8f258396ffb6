"""The worker that quantizes a model, run by the ``quantize`` environment's interpreter.

    python -I bootstrap.py llmtier.quantize.worker.oneshot '{"model": ..., "calibration": ..., "schemes": [...]}'

Reads the source checkpoint and the calibration rows (JSON lines); writes each quantized checkpoint into
the folder that the job names for it, and what a restart needs into the work folders. Standard output carries JSON
lines of progress and nothing else; whatever the libraries print goes to standard error. Ends at once when its
standard input closes, so that it never outlives the command that started it.

It checks nothing that ``job.plan`` has checked, and writes no manifest.
Written against llm-compressor 0.14 (one model, one recipe, ``oneshot``).
"""

import errno
import gc
import importlib.metadata
import os
import random
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import TYPE_CHECKING, Any

from llmtier.quantize.worker.finite import is_finite
from llmtier.quantize.worker.layers import PIPELINE_VERSION, open_store
from llmtier.quantize.worker.pipeline import LayerPipeline
from llmtier.quantize.worker.recipe import make_recipe
from llmtier.quantize.worker.report import Report, WorkerError, run_worker
from llmtier.quantize.worker.tokens import Samples, load_samples, make_loader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIBRARIES = ("torch", "transformers", "llmcompressor", "compressed-tensors")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
COPIED_FILES = (*TOKENIZER_FILES, "chat_template*", "generation_config.json")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
BUSY_CORES = 0.5
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
ROUTINE_WARNINGS = ("No accelerator available", "Calibration pipeline is set to", "Detected an MoE model")
"""Of llm-compressor, on every run and of no use to people."""


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


def load_libraries() -> None:
    """Import what every job needs, which takes seconds, and nothing that depends on the job."""
    prepare_environment()
    import llmcompressor  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401


def prepare_environment() -> None:
    """Set what the libraries read from the environment, before they are imported.

    Threads that wait spin, unless other work wants the cores: spinning then costs more than the work itself. GPTQ of an
    85 M Llama on 2 idle cores took 39 s spinning and 51 s sleeping (2 runs each, 2026-11-21); AWQ of a 2 x 128 model on
    2 busy ones 139 and 19 s (2026-11-20).
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if busy_cores() > BUSY_CORES:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def busy_cores(interval_s: float = 0.1) -> float:
    """Return how many cores are kept busy by others than this process and its parent; 0 where the system is silent.

    Uses the time to import numpy, which starts no OpenMP threads, and sleeps for the rest of the interval.
    """
    begun_s, before = perf_counter(), read_cpu_ticks()
    if before is None:
        return 0.0
    import numpy as np  # noqa: F401

    sleep(max(0.0, interval_s - (perf_counter() - begun_s)))
    after = read_cpu_ticks()
    busy, total = (0, 0) if after is None else (after[0] - before[0], after[1] - before[1])
    return busy / total * (os.cpu_count() or 1) if total else 0.0


def read_cpu_ticks(path: Path = Path("/proc/stat")) -> tuple[int, int] | None:
    """Return the ticks that others kept the cores busy, and all ticks; ``None`` where the system does not tell.

    Others are all but this process, which imports, and its parent, which waits for it later.
    """
    try:
        ticks = [int(word) for word in path.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        ours = sum(map(process_ticks, (os.getpid(), os.getppid())))
    except (OSError, ValueError):
        return None
    return sum(ticks) - ticks[3] - ticks[4] - ours, sum(ticks)  # less idle and waiting for the disk


def process_ticks(pid: int) -> int:
    """Return the ticks that a process has run; raises ``OSError`` where the system does not tell."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(words[11]) + int(words[12])  # its name, before the bracket, may hold anything


def load_model(path: str) -> "PreTrainedModel":
    """Load the source in the type its weights are stored in.

    Raises:
        WorkerError: It cannot be loaded, or a weight is NaN or infinite.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    except (OSError, ValueError, KeyError) as error:
        if is_disk_or_memory(error):
            raise
        raise WorkerError(f"{path}: transformers cannot load it: {error}", kind="input") from error
    for name, weight in model.named_parameters():
        if not is_finite(weight):
            raise WorkerError(f"{path}: weight {name} holds NaN or infinity; the checkpoint is broken", kind="input")
    return model


def compress(
    model: "PreTrainedModel",
    part: dict[str, Any],
    job: dict[str, Any],
    *,
    samples: Samples | None,
    report: Report,
) -> LayerPipeline | None:
    """Quantize ``model`` in place by the recipe of one scheme.

    Args:
        model: As loaded.
        part: The scheme.
        job: What all schemes share.
        samples: To calibrate on; ``None`` where none are needed.
        report: Told of every layer.

    Returns:
        What went through the layers; ``None`` without samples.
    """
    from llmcompressor import oneshot
    from llmcompressor.pipelines.registry import CalibrationPipeline

    recipe = make_recipe(part, model)
    if samples is None:
        oneshot(model=model, recipe=recipe)
        return None
    store = open_store(Path(part["work"]), identity_of(part, job, samples))
    spill = Path(part["work"]) / "spill" if part["spills"] else None
    pipeline = LayerPipeline(store, report, part["scheme"], spill)
    name = f"llmtier_{part['scheme']}"
    CalibrationPipeline.register_value(value=lambda: pipeline, name=name)
    loader = make_loader(samples.ids, max_tokens=job["max_seq_tokens"])
    oneshot(model=model, recipe=recipe, dataset=loader, num_calibration_samples=len(loader), pipeline=name)
    return pipeline


def identity_of(part: dict[str, Any], job: dict[str, Any], samples: Samples) -> dict[str, object]:
    """Return all that a layer's bits depend on: the inputs, the libraries, and how sums are split among threads."""
    import torch

    return {
        "inputs": part["fingerprint"],
        "token_ids": samples.sha256,
        "pipeline": PIPELINE_VERSION,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "n_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "seed": job["seed"],
    }


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


def reset_peak_memory() -> None:
    """Let the peak count from now on, as far as the system can."""
    import torch

    with suppress(OSError):  # not Linux, or not allowed: then the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Return this process's largest resident memory since ``reset_peak_memory``."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def peak_device_bytes() -> int | None:
    """Return the most memory that tensors held on the GPU; ``None`` without one."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def run_scheme(
    job: dict[str, Any], part: dict[str, Any], *, samples: Samples | None, report: Report, stopwatch: Stopwatch
) -> None:
    """Load, quantize and save for one scheme; the model is loaded anew, as quantizing changes it in place."""
    reset_peak_memory()
    report("loading", scheme=part["scheme"])
    set_seed(job["seed"])
    model = load_model(job["model"])
    stopwatch.lap("load")
    pipeline = compress(model, part, job, samples=samples if part["needs_data"] else None, report=report)
    stopwatch.lap("quantize")
    save(model, source=Path(job["model"]), out=Path(part["out"]))
    stopwatch.lap("save")
    resumed = pipeline.resumed if pipeline else []
    if resumed:
        stopwatch.seconds["earlier_runs"] = round(sum(facts.seconds for facts in resumed), 3)
    report(
        "saved",
        scheme=part["scheme"],
        seconds_by_phase=stopwatch.seconds,
        peak_memory_bytes=peak_memory_bytes(),
        peak_device_bytes=peak_device_bytes(),
        n_rounded=sum(facts.n_rounded for facts in pipeline.finished) if pipeline else None,
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
    )


def forget_model() -> None:
    """Drop what llm-compressor's session holds of the last model, so that two never lie in memory at once."""
    from llmcompressor.core import reset_session

    reset_session()
    gc.collect()


def report_warnings(report: Report) -> None:
    """Report what llm-compressor warns of as notes: on standard error nobody would see it."""
    import llmcompressor  # noqa: F401 - its import removes all sinks
    from loguru import logger

    def tell(message: Any) -> None:  # noqa: ANN401 - of a library without types
        text = " ".join(str(message.record["message"]).split())
        if not text.startswith(ROUTINE_WARNINGS):
            report("note", message=text)

    logger.add(tell, level="WARNING")


def run(job: dict[str, Any], report: Report) -> None:
    """Do the whole job: tokenize once, then one scheme after the other."""
    begun_s = perf_counter()
    stopwatch = Stopwatch({"libraries": round(process_time(), 3)})  # loaded in one thread while the job was made out
    with machine_errors(job):
        samples = load_samples(job, report=report) if job["calibration"] is not None else None
        if samples is not None:
            stopwatch.lap("tokenize")
            counts = {"n_samples": len(samples.ids), "n_tokens": samples.n_tokens, "n_cut": samples.n_cut}
            report("tokenized", **counts, is_plain_text=samples.is_plain_text, seconds_by_phase=stopwatch.seconds)
            stopwatch = Stopwatch()
        report_warnings(report)
        for number, part in enumerate(job["schemes"]):
            if number > 0:
                forget_model()
                stopwatch = Stopwatch()
            run_scheme(job, part, samples=samples, report=report, stopwatch=stopwatch)
    report("done", seconds=round(perf_counter() - begun_s, 3), peak_memory_bytes=peak_memory_bytes())


@contextmanager
def machine_errors(job: dict[str, Any]) -> Iterator[None]:
    """Say in one line that memory or disk ran out, and which option to lower.

    Raises:
        WorkerError: They did.
    """
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:  # safetensors and torch have classes of their own for a full disk or memory
        kind = is_disk_or_memory(error)
        match kind:
            case "disk":
                message = f"the disk is full ({error}); free some space and run the same command again"
            case "machine":
                options = f"--samples (now {job['n_samples']}) or --max-seq-tokens (now {job['max_seq_tokens']})"
                message = (
                    f"out of memory ({str(error)[:200] or type(error).__name__}); lower {options} and run it again"
                )
            case _:
                raise
        raise WorkerError(message, kind=kind) from error


def is_disk_or_memory(error: BaseException) -> str | None:
    """Tell what ran out, as the kind of a refusal: ``disk``, ``machine`` for memory, ``None`` for any other error."""
    text = str(error).lower()
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "no space left" in text:
        return "disk"
    if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        return "machine"
    return "machine" if getattr(error, "errno", None) == errno.ENOMEM else None


if __name__ == "__main__":
    run_worker(run, load_libraries)
