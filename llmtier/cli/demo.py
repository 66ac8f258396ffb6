"""``llmtier demo``: the whole loop on the real engine, each stage run as the command a user would type.

Reads ``examples/demo`` of a clone; writes everything beside the profiles its configuration names (``build/demo``), at the
end ``summary.json``. Environments and checkpoints are reused, everything measured is measured again.
"""

import asyncio
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import JsonOption
from llmtier.core.errors import EngineStartError, InputFileError, LlmtierError, NegativeAnswerError

if TYPE_CHECKING:
    from llmtier.cli.demo_summary import Answer

REFERENCE = "mini@bf16"
MODELS = ("mini", "nano")
MAX_ACCURACY_LOSS = 0.01
READY_TIMEOUT_S = 600.0


def demo(
    examples: Annotated[Path, typer.Option(help="Folder of the demo in a clone of the repository.")] = Path(
        "examples/demo"
    ),
    is_json: JsonOption = False,
) -> None:
    """Run quantize, profile, replay, fit, serve on the real vLLM.

    Example: llmtier demo
    """
    config = examples / "llmtier.yaml"
    if not config.exists():
        raise InputFileError("not found; run the demo in a clone of the llmtier repository", path=config)
    started_s = time.perf_counter()
    prepare_policy(examples, config, build=find_build(config))
    answers = serve_and_ask(examples, config)
    summarize(config, answers, is_json=is_json, seconds=time.perf_counter() - started_s)


def find_build(config: Path) -> Path:
    """Return the folder that the demo's configuration reads its results from."""
    from llmtier.store.config import load_config

    folder = load_config(config).profiles.parent
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def prepare_policy(examples: Path, config: Path, *, build: Path) -> None:
    """Run the stages before serving."""
    for model in MODELS:
        run_stage("quantize", examples / "models" / model, "--scheme", "int8", "-o", build / "models")
    run_stage("profile", "-c", config)
    outcomes = build / "outcomes.parquet"
    run_stage("replay", examples / "data" / "traffic.jsonl", "-c", config, "-o", outcomes, "--force")
    policy = build / "policy.json"
    limits = ("--reference", REFERENCE, "--max-accuracy-loss", MAX_ACCURACY_LOSS)
    run_stage("fit-thresholds", outcomes, "--profiles", build / "profiles", *limits, "-o", policy, "--force")


def run_stage(*words: object) -> None:
    """Run one llmtier command as a process of its own, its output on standard error.

    Raises:
        StageError: It ended with another exit code than 0; the demo ends with the same.
    """
    arguments = [str(word) for word in words]
    output.say(f"\n$ llmtier {shlex.join(arguments)}")
    started_s = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "llmtier", *arguments], stdout=sys.stderr)
    with ended(process):
        code = process.wait()
    if code != 0:
        raise StageError(
            f"'llmtier {shlex.join(arguments)}' ended with exit code {code}; its message stands above", code
        )
    output.say(f"  {time.perf_counter() - started_s:.0f} s")


class StageError(LlmtierError):
    """A stage of the demo ended with an error, whose exit code is handed on."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code  # type: ignore[misc]  # of this instance: the stage's own code
        super().__init__(message)


@contextmanager
def ended(process: "subprocess.Popen[bytes]", *, grace_s: float = 40.0) -> Iterator[None]:
    """See to it that ``process`` has ended when the block is left, whatever happened."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def serve_and_ask(examples: Path, config: Path) -> "list[Answer]":
    """Start the gateway, ask it the held-out questions routed and pinned, stop it."""
    from llmtier.cli.demo_ask import ask_in_blocks
    from llmtier.store.prompts import read_prompts

    prompts = read_prompts(examples / "data" / "heldout.jsonl")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = ["serve", "-c", str(config), "--port", str(port)]
    output.say(f"\n$ llmtier {shlex.join(arguments)}")
    process = subprocess.Popen([sys.executable, "-m", "llmtier", *arguments], stdout=sys.stderr)
    with ended(process):
        base_url = f"http://127.0.0.1:{port}"
        wait_ready(process, base_url)
        output.say(
            "  asking through the openai client, streaming and not: routed (model 'auto') and pinned to the reference"
        )
        with output.progress("held-out questions", 2 * len(prompts)) as line:
            return asyncio.run(ask_in_blocks(base_url, prompts, models=("auto", REFERENCE), on_answer=line.advance))


def wait_ready(process: "subprocess.Popen[bytes]", base_url: str) -> None:
    """Wait until the gateway says that its engines answer.

    Raises:
        EngineStartError: It ended or was not ready in time.
    """
    deadline_s = time.perf_counter() + READY_TIMEOUT_S
    while time.perf_counter() < deadline_s:
        if process.poll() is not None:
            raise EngineStartError(
                f"'llmtier serve' ended with exit code {process.returncode}; its message stands above"
            )
        try:
            with urllib.request.urlopen(f"{base_url}/ready", timeout=5) as response:  # noqa: S310  # loopback only
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise EngineStartError(f"the gateway was not ready within {READY_TIMEOUT_S:.0f} s")


def summarize(config: Path, answers: "Sequence[Answer]", *, is_json: bool, seconds: float) -> None:
    """Write ``summary.json``, print the tables, and say plainly whether routing won.

    Raises:
        NegativeAnswerError: Routing was not cheaper, or lost more accuracy than 0.02.
    """
    from llmtier.cli import demo_summary
    from llmtier.engine.hardware import detect_hardware
    from llmtier.store.atomic import write_json
    from llmtier.store.config import load_config
    from llmtier.store.policies import read_policy
    from llmtier.store.profiles import read_profiles

    hardware = detect_hardware()
    loaded = load_config(config)
    profiles = read_profiles(loaded.profiles, hardware.slug)
    policy = None if loaded.policy is None else read_policy(loaded.policy)
    summary = demo_summary.build(answers, profiles, hardware=hardware, reference=REFERENCE, policy=policy)
    target = loaded.profiles.parent / "summary.json"
    write_json(target, summary)
    if is_json:
        output.print_json(summary)
    else:
        demo_summary.show(summary)
    output.say(f"\nthe whole loop took {seconds / 60:.1f} min; figures in {target}")
    verdict = demo_summary.judge(summary)
    if verdict is not None:
        raise NegativeAnswerError(verdict)
