"""A random-weight Llama and its quantized tiers, made in the isolated ``quantize`` environment.

Writes a model folder and a calibration file; calls ``llmtier quantize`` for each scheme. Weights are random: speed and
size are those of a real model of that shape, answers mean nothing. Each printable character is a token.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtier.engine.environment import EnvironmentName, find_environment, home_path

MAKE = """
import json, random, sys
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder, rows, hidden, inner, layers, n_rows, n_tokens = *sys.argv[1:3], *map(int, sys.argv[3:])
torch.manual_seed(0)
words = ["<s>", "</s>", *map(chr, range(32, 127))]
characters = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
characters.decoder = decoders.Fuse()  # without it each token is followed by a space, a token itself
tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, bos_token="<s>", eos_token="</s>")
tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
tokenizer.save_pretrained(folder)
config = LlamaConfig(vocab_size=len(words), hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                     num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
                     max_position_embeddings=2048, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)
model = LlamaForCausalLM(config).to(torch.bfloat16)
model.lm_head.weight.data[:2] = 0  # never the likeliest: a special token has no text, so it would be no content
model.save_pretrained(folder)
draw = random.Random(0)
with open(rows, "w") as file:
    for _ in range(n_rows):
        file.write(json.dumps({"text": "".join(draw.choices(words[2:], k=n_tokens))}) + "\\n")
print(sum(parameter.numel() for parameter in model.parameters()))
"""


@dataclass(frozen=True)
class LlamaSize:
    """The shape of the model and how many rows the quantizer calibrates with."""

    hidden: int
    inner: int
    layers: int
    n_rows: int = 16
    row_tokens: int = 256


WIDE = LlamaSize(hidden=1024, inner=4096, layers=6)
"""101 M parameters, wide and shallow as small engines on a CPU like it."""

TINY = LlamaSize(hidden=256, inner=512, layers=2, n_rows=8, row_tokens=64)


@dataclass(frozen=True)
class Llama:
    """A made model: its folder, its calibration rows and the number of its parameters."""

    folder: Path
    rows: Path
    n_parameters: int


def make_llama(python: Path, folder: Path, size: LlamaSize) -> Llama:
    """Write the model to ``folder/model`` unless it is there already."""
    model, rows, count = folder / "model", folder / "rows.jsonl", folder / "n_parameters"
    if not count.exists():
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [size.hidden, size.inner, size.layers, size.n_rows, size.row_tokens]
        command = [str(python), "-I", "-c", MAKE, str(model), str(rows), *map(str, numbers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        count.write_text(done.stdout.split()[-1], encoding="utf-8")
    return Llama(model, rows, int(count.read_text(encoding="utf-8")))


def make_tiers(llama: Llama, schemes: Sequence[str], *, python: Path, size: LlamaSize) -> dict[str, Path]:
    """Quantize the model to each scheme with ``llmtier quantize``; return the folder of each tier by its name."""
    tiers = {}
    for scheme in schemes:
        folder = llama.folder if scheme == "bf16" else llama.folder.parent / f"model@{scheme}"
        if scheme != "bf16" and not folder.exists():
            run_quantize(llama, scheme, python=python, size=size)
        tiers[f"llama@{scheme}"] = folder
    return tiers


def run_quantize(llama: Llama, scheme: str, *, python: Path, size: LlamaSize) -> None:
    """Call the product's command; what it says goes to standard error."""
    command = [sys.executable, "-m", "llmtier", "quantize", str(llama.folder), "--scheme", scheme]
    command += ["--output", str(llama.folder.parent), "--python", str(python)]
    if scheme != "int8":
        command += ["--calibration", str(llama.rows), "--max-seq-tokens", str(size.row_tokens)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def find_python(name: EnvironmentName) -> Path | None:
    """Return the interpreter of an isolated environment; ``None`` where it is not installed."""
    environment = find_environment(name, home=home_path(os.environ))
    return None if environment is None else environment.python
