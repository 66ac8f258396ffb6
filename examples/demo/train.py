"""Train the demo's two small models, `nano` and `mini`, on the support-desk task mix.

Reads `tasks.py` only. Writes one folder per model under `--out`: bfloat16 weights, configuration, character tokenizer
with a chat template, generation defaults and `training.json` (seed, steps, seconds, accuracy per kind). Needs
PyTorch and Transformers. It does not write the demo's splits (`make_data.py` does) and never trains on one of them:
the training stream draws only from the hash buckets set aside for it.
"""

import argparse
import json
import logging
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import measure
import tasks

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
SPECIALS = ("<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unk|>")
PAD, BOS, END, USER, ASSISTANT = range(5)
CHARACTERS = "\n" + "".join(map(chr, range(32, 127))) + "àáâäåæçèéêëíïñóôöøúûüß£€°½"
VOCABULARY_SIZE = 128
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
IGNORED = -100
MEASURED_ROWS = 1200
MEASURED_SEED = 1


@dataclass(frozen=True)
class Recipe:
    """Shape and training settings of one model.

    Attributes:
        layers: Number of decoder layers; this sets the latency.
        width: Hidden size, a multiple of 128 (the quantization group).
        inner: Inner size of the feed-forward part, a multiple of 128.
        heads: Attention heads; there are as many for keys and values.
        steps: Optimizer steps in all.
        batch_rows: Rows in one step.
        peak_rate: Highest learning rate.
        shares: Share of each kind among the other rows.
    """

    layers: int
    width: int
    inner: int
    heads: int
    steps: int
    batch_rows: int
    peak_rate: float
    shares: dict[str, float]
    shows_work: bool = False


RECIPES = {
    "nano": Recipe(
        layers=2,
        width=128,
        inner=384,
        heads=4,
        steps=900,
        batch_rows=128,
        peak_rate=4e-3,
        shares=tasks.KIND_SHARES,
    ),
    "mini": Recipe(
        layers=8,
        width=128,
        inner=384,
        heads=4,
        steps=1400,
        batch_rows=128,
        peak_rate=3e-3,
        shares={"intent": 0.12, "order_id": 0.13, "json": 0.2, "sort": 0.3, "total": 0.25},
        shows_work=True,
    ),
}


def token_ids(text: str) -> list[int]:
    """Return the ids of a text, one per character."""
    return [len(SPECIALS) + CHARACTERS.index(character) for character in text]


def make_tokenizer() -> Any:  # noqa: ANN401  (the type lives in an optional package)
    """Build the character tokenizer with its chat template."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *CHARACTERS))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIALS[-1]))
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIALS[PAD],
        bos_token=SPECIALS[BOS],
        eos_token=SPECIALS[END],
        unk_token=SPECIALS[-1],
        additional_special_tokens=[SPECIALS[USER], SPECIALS[ASSISTANT]],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(recipe: Recipe) -> Any:  # noqa: ANN401
    """Build an untrained model of the recipe's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # on short rows the plain form trains faster than the fused one
    return model


def rows(recipe: Recipe, seed: int) -> Iterator[tuple[list[int], int]]:
    """Yield training rows without end: the ids of a whole exchange, and where the answer starts."""
    rng = random.Random(f"{seed}-train")  # noqa: S311  (a repeatable draw, not a secret)
    questions = tasks.stream("train", rng, recipe.shares)
    for task in questions:
        answer = tasks.work_out(task) if recipe.shows_work else task.answer
        ids = [BOS, USER, *token_ids(task.prompt), ASSISTANT]
        yield [*ids, *token_ids(answer), END], len(ids)


def batches(recipe: Recipe, seed: int, parts: int = 4) -> Iterator[list[tuple[Any, Any]]]:
    """Yield the tensors of one step after the other, in parts of rows of similar length to save padding."""
    import torch

    source = rows(recipe, seed)
    while True:
        drawn = sorted((next(source) for _ in range(recipe.batch_rows)), key=lambda row: len(row[0]))
        size = math.ceil(len(drawn) / parts)
        step = []
        for begin in range(0, len(drawn), size):
            part = drawn[begin : begin + size]
            width = math.ceil(max(len(ids) for ids, _ in part) / 8) * 8
            inputs = torch.full((len(part), width), PAD)
            labels = torch.full((len(part), width), IGNORED)
            for place, (ids, start) in enumerate(part):
                inputs[place, : len(ids)] = torch.tensor(ids)
                labels[place, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
            step.append((inputs, labels))
        yield step


def run_step(model: Any, step: list[tuple[Any, Any]]) -> float:  # noqa: ANN401
    """Add up the gradients of one step and return its loss per answer token.

    Padding sits at the right, so causal attention alone keeps it out of every answer and no mask is needed.
    """
    import torch
    from torch.nn.functional import cross_entropy

    answer_tokens = sum(int((labels != IGNORED).sum()) for _, labels in step)
    total = 0.0
    for inputs, labels in step:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
            kept = labels != IGNORED
            logits = model.lm_head(hidden[kept])
        loss = cross_entropy(logits.float(), labels[kept], reduction="sum") / answer_tokens
        loss.backward()
        total += float(loss.detach())
    return total


def rate_at(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine down to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizers(model: Any, peak_rate: float) -> list[Any]:  # noqa: ANN401
    """Return Muon for the matrices inside the layers and AdamW for the rest, at one peak rate."""
    import torch

    inside = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2]
    chosen = {id(weight) for weight in inside}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.Muon(inside, lr=peak_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(name: str, recipe: Recipe, seed: int) -> tuple[Any, float]:
    """Train one model and return it with the seconds it took."""
    import torch

    torch.manual_seed(seed)
    model = make_model(recipe)
    optimizers = make_optimizers(model, recipe.peak_rate)
    begun_s = time.monotonic()
    source = batches(recipe, seed)
    for step in range(recipe.steps):
        loss = run_step(model, next(source))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, recipe.steps, recipe.peak_rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            logger.info("%s step %d loss %.4f at %.0f s", name, step + 1, loss, time.monotonic() - begun_s)
    return model, time.monotonic() - begun_s


def save(model: Any, folder: Path) -> Any:  # noqa: ANN401
    """Write the weights in bfloat16 with tokenizer and generation defaults; return the tokenizer.

    The defaults are greedy by way of `top_k` 1: a temperature of 0 is not a valid default in Transformers.
    """
    import torch
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=END, pad_token_id=PAD, do_sample=True, top_k=1, max_new_tokens=64
    )
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    return tokenizer


def train_and_save(name: str, recipe: Recipe, seed: int, out: Path) -> None:
    """Train one model, write its folder and measure it on held-out questions."""
    model, train_s = train(name, recipe, seed)
    tokenizer = save(model, out / name)
    counts = measure.per_kind(model.eval(), tokenizer, tasks.draw("heldout", MEASURED_ROWS, MEASURED_SEED))
    record = {
        "name": name,
        "seed": seed,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "recipe": asdict(recipe),
        "train_s": round(train_s),
        "heldout": {kind: {"right": right, "asked": asked} for kind, (right, asked) in counts.items()},
    }
    (out / name / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    logger.info("%s held-out %s", name, {kind: round(right / asked, 3) for kind, (right, asked) in counts.items()})


def main() -> None:
    """Train the models asked for on the command line."""
    import torch

    parser = argparse.ArgumentParser(description="Train the demo's models.")
    parser.add_argument("--model", choices=(*RECIPES, "all"), default="all")
    parser.add_argument("--out", type=Path, default=HERE / "models")
    parser.add_argument("--steps", type=int, help="train for this many steps instead of the recipe's")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(arguments.threads)
    for name in RECIPES if arguments.model == "all" else (arguments.model,):
        recipe = RECIPES[name]
        if arguments.steps:
            recipe = replace(recipe, steps=arguments.steps)
        train_and_save(name, recipe, arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
