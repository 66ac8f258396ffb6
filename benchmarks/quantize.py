"""What does llmtier add to a bare ``oneshot`` script, is a killed run the undisturbed one, how fast are sets built?

Three questions, answered in one run on one machine with the isolated ``quantize`` environment:

- ``wall_ratio``, ``peak_ratio``: ``llmtier quantize`` against a script of twenty lines that calls llm-compressor's
  ``oneshot`` on the same random-weight Llama and the same rows, both as whole commands; medians of the ratios of
  interleaved pairs, the worse of int8 and gptq. Memory is that of all processes of the command together.
- ``kills``: the command is killed (SIGKILL) at a random moment and started again; its tensors are compared.
- ``calibration_build``: ``llmtier calibration build`` on a generated JSONL file.

Example: python benchmarks/quantize.py --json benchmarks/results/quantize.json
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from support.machine import describe_machine, publish
from support.processes import Run, kill_after, measure

from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.engine.environment_build import installed_versions

EXIT_NO_ENVIRONMENT = 4
SCHEMES = ("int8", "gptq")
COMPARED = ("torch", "transformers", "llmcompressor", "compressed-tensors")
LLMTIER = (sys.executable, "-m", "llmtier")

MAKE_MODEL = """
import json, random, sys
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
import torch

folder, rows, hidden, inner, layers, n_rows, n_tokens = *sys.argv[1:3], *map(int, sys.argv[3:])
torch.manual_seed(0)
words = ["<s>", "</s>", *map(chr, range(32, 127))]
tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
config = LlamaConfig(vocab_size=len(words), hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                     num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
                     max_position_embeddings=2048, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)
model = LlamaForCausalLM(config).to(torch.bfloat16)
model.save_pretrained(folder)
draw = random.Random(0)
with open(rows, "w") as file:
    for _ in range(n_rows):
        file.write(json.dumps({"text": "".join(draw.choices(words[2:], k=n_tokens))}) + "\\n")
print(sum(parameter.numel() for parameter in model.parameters()))
"""

BARE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier

source, rows, scheme, out = sys.argv[1:]
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(source)
if scheme == "int8":
    oneshot(model=model, recipe=QuantizationModifier(targets=["Linear"], scheme="W8A8", ignore=["lm_head"]))
else:
    ids = [torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]]) for line in open(rows)]
    data = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    loader = torch.utils.data.DataLoader(data, batch_size=1, collate_fn=lambda batch: batch[0])
    recipe = GPTQModifier(targets=["Linear"], scheme="W4A16", ignore=["lm_head"], actorder="static")
    oneshot(model=model, recipe=recipe, dataset=loader, num_calibration_samples=len(loader))
model.save_pretrained(out, save_compressed=True)
tokenizer.save_pretrained(out)
"""


@dataclass(frozen=True)
class Size:
    """How large the benchmark's model and data are."""

    hidden: int
    inner: int
    layers: int
    n_rows: int
    n_tokens: int


FULL = Size(hidden=1024, inner=2816, layers=12, n_rows=16, n_tokens=512)
SMALL = Size(hidden=256, inner=512, layers=4, n_rows=32, n_tokens=256)


@dataclass(frozen=True)
class Bench:
    """A model and rows in a scratch folder.

    Attributes:
        python: Interpreter of the ``quantize`` environment.
        folder: Everything lies here.
        n_parameters: Of the model.
        size: As asked.
    """

    python: Path
    folder: Path
    n_parameters: int
    size: Size

    def llmtier(self, scheme: str, out: Path) -> list[str]:
        """Return the product's command."""
        data = ["--calibration", str(self.folder / "rows.jsonl"), "--max-seq-tokens", str(self.size.n_tokens)]
        data = data if scheme != "int8" else []
        model = str(self.folder / "model")
        return [
            *LLMTIER,
            "quantize",
            model,
            "--scheme",
            scheme,
            "--output",
            str(out),
            "--python",
            str(self.python),
            *data,
        ]

    def bare(self, scheme: str, out: Path) -> list[str]:
        """Return the bare script's command."""
        script = self.folder / "bare.py"
        script.write_text(BARE, encoding="utf-8")
        paths = [str(self.folder / "model"), str(self.folder / "rows.jsonl")]
        return [str(self.python), "-I", str(script), *paths, scheme, str(out)]


def make_bench(python: Path, folder: Path, size: Size) -> Bench:
    """Write a random Llama and random rows."""
    folder.mkdir(parents=True)
    numbers = [size.hidden, size.inner, size.layers, size.n_rows, size.n_tokens - 1]  # and BOS
    command = [
        str(python),
        "-I",
        "-c",
        MAKE_MODEL,
        str(folder / "model"),
        str(folder / "rows.jsonl"),
        *map(str, numbers),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Bench(python, folder, int(done.stdout.split()[-1]), size)


def compare(bench: Bench, scheme: str, n_pairs: int) -> dict[str, object]:
    """Run pairs of both commands, in turns first; return their ratios and whether their tensors agree."""
    runs: dict[str, list[Run]] = {"bare": [], "llmtier": []}
    for number in range(n_pairs):
        for who in ("bare", "llmtier") if number % 2 == 0 else ("llmtier", "bare"):
            out = bench.folder / who
            shutil.rmtree(out, ignore_errors=True)
            command = bench.bare(scheme, out) if who == "bare" else bench.llmtier(scheme, out)
            runs[who].append(measure(command))
    pairs = list(zip(runs["llmtier"], runs["bare"], strict=True))
    written = {tensor_digest(bench.folder / "bare"), tensor_digest(bench.folder / "llmtier" / f"model@{scheme}")}
    return {
        "wall_ratio": spread([ours.seconds / bare.seconds for ours, bare in pairs]),
        "peak_ratio": spread([ours.peak_bytes / bare.peak_bytes for ours, bare in pairs]),
        "same_tensors": len(written) == 1,
        "runs": {who: [asdict(run) for run in those] for who, those in runs.items()},
    }


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Return median, extremes and n."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def tensor_digest(folder: Path) -> str:
    """Return sha256 over a checkpoint's weights."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise RuntimeError(f"{folder}: holds no weights")
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in weights)).hexdigest()


def kill_trials(bench: Bench, n_trials: int, seed: int) -> dict[str, object]:
    """Kill gptq at random moments, start it again, and count the results that are those of an undisturbed run."""
    draw = random.Random(seed)
    whole = measure(bench.llmtier("gptq", bench.folder / "undisturbed"))
    wanted = tensor_digest(bench.folder / "undisturbed" / "model@gptq")
    trials = []
    for number in range(n_trials):
        was_running = False
        while not was_running:  # a moment after the end says nothing
            out = bench.folder / f"killed-{number}"
            shutil.rmtree(out, ignore_errors=True)
            delay_s = draw.uniform(0, whole.seconds)
            was_running = kill_after(bench.llmtier("gptq", out), delay_s)
        left = sorted(path.name for path in out.glob("model@*")) if out.exists() else []
        again = measure(bench.llmtier("gptq", out))
        identical = tensor_digest(out / "model@gptq") == wanted
        trials.append(
            {
                "delay_s": delay_s,
                "whole_after_kill": left,
                "restart_s": again.seconds,
                "identical": identical,
            }
        )
    counts = {"trials": n_trials, "identical": sum(bool(trial["identical"]) for trial in trials)}
    return {
        **counts,
        "undisturbed_s": whole.seconds,
        "each": trials,
    }


WORDS = 20_000


def write_documents(path: Path, n: int, seed: int) -> None:
    """Write ``n`` documents of 20 to 180 words; one in ten repeats an earlier one, one in ten does so with a word changed."""
    draw = random.Random(seed)
    recent: list[list[str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(n):
            kind = number % 10
            if kind < 2 and recent:
                words = list(draw.choice(recent))
                if kind == 1:
                    words[draw.randrange(len(words))] = f"w{draw.randrange(WORDS)}"
            else:
                words = [f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(20, 180))]
                recent = [*recent[-999:], words]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")


RECIPE = """
name = "bench"
licence = "none"
description = "random words"
seed = 0
token_budget = 1000000
sequence_tokens = 2048

[[source]]
path = "documents.jsonl"
"""


def build_set(folder: Path, n_documents: int) -> dict[str, object]:
    """Build a calibration set of generated documents."""
    folder.mkdir(parents=True)
    write_documents(folder / "documents.jsonl", n_documents, seed=0)
    (folder / "bench.toml").write_text(RECIPE, encoding="utf-8")
    run = measure([*LLMTIER, "calibration", "build", str(folder / "bench.toml")])
    manifest = json.loads((folder / "bench.manifest.json").read_text(encoding="utf-8"))
    size_bytes = (folder / "documents.jsonl").stat().st_size
    counts = manifest["counts"]
    return {
        "documents": n_documents,
        "seconds": run.seconds,
        "peak_bytes": run.peak_bytes,
        "input_bytes": size_bytes,
        "counts": counts,
    }


def worst(results: dict[str, dict[str, object]], name: str) -> float:
    """Return the largest median ratio among the schemes."""
    return max(result[name]["median"] for result in results.values())  # type: ignore[index,no-any-return]


def parse_arguments() -> argparse.Namespace:
    """Return what was asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--quick", action="store_true", help="a small model, one pair, two kills, 20,000 documents")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write; return the exit status."""
    arguments = parse_arguments()
    environment = find_environment(EnvironmentName.QUANTIZE, home=home_path(os.environ))
    if environment is None:
        print("the quantize environment is missing: run 'llmtier env install quantize'", file=sys.stderr)
        return EXIT_NO_ENVIRONMENT
    n_pairs, n_kills, n_documents = (
        (1, 2, 20_000) if arguments.quick else (arguments.pairs, arguments.kills, arguments.documents)
    )
    begun_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llmtier-bench-") as scratch:
        bench = make_bench(environment.python, Path(scratch) / "pairs", SMALL if arguments.quick else FULL)
        small = make_bench(environment.python, Path(scratch) / "kills", SMALL)
        schemes = {scheme: compare(bench, scheme, n_pairs) for scheme in SCHEMES}
        kills = kill_trials(small, n_kills, arguments.seed)
        built = build_set(Path(scratch) / "set", n_documents)
    versions = installed_versions(environment.path)
    document = {
        "benchmark": "quantize",
        "machine": describe_machine({name: versions[name] for name in COMPARED}),
        "model": {"n_parameters": bench.n_parameters, **asdict(bench.size)},
        "wall_ratio": worst(schemes, "wall_ratio"),
        "peak_ratio": worst(schemes, "peak_ratio"),
        "schemes": schemes,
        "calibration_build": built,
        "kills": kills,
        "seconds": time.perf_counter() - begun_s,
    }
    publish(document, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
