"""The gateways that are measured: how each is installed, told of its upstreams, started and known to be ready.

Peers are installed into virtual environments of their own under one folder, without their dependencies where those are
engines that a router does not load. Commands are of vllm-router 0.1.17, smg 1.13 and LiteLLM 1.109.
"""

import json
import shlex
import socket
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psutil
from typing_extensions import override

from support.gateway_load import Cores, LoadError, Target, running_process
from support.peers import PIP, run_step

HELPERS = ("setproctitle", "orjson", "uvloop", "fastapi", "uvicorn", "aiohttp", "requests", "httpx")
CHEAP, DEAR = "mixtral-8x7b", "gpt-4"
"""Tiers of llmtier: the models whose outcomes its scorer is fitted on."""
ROUTED = "auto"
END_OF_LOG = 600


class Gateway(ABC):
    """A gateway: ``prepare`` it once, then ``run`` it as often as wanted.

    Args:
        folder: Its files go here.
        upstreams: URLs of the tiers.
        bodies: Folder of bodies.
        cores: Where it may run.
    """

    name: str
    model: ClassVar[str] = "m"
    start_limit_s: ClassVar[float] = 60.0
    settle_s: ClassVar[float] = 0.3
    """How long after a load it still works on it."""
    stretch: ClassVar[float] = 1.0
    """How much longer than others it is loaded: slow ones answer too few otherwise."""

    def __init__(self, folder: Path, upstreams: Sequence[str], bodies: Path, cores: Cores) -> None:
        self.folder = folder / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.upstreams = upstreams
        self.cores = cores
        self._bodies = bodies

    def prepare(self) -> str | None:
        """Install and set up; return the version, ``None`` for the tree this benchmark is part of.

        Raises:
            PeerError: A step failed.
        """
        return None

    @abstractmethod
    def command(self, port: int) -> list[str]:
        """Return the command line."""

    def environ(self) -> Mapping[str, str]:
        """Return what is added to the environment."""
        return {}

    @contextmanager
    def run(self) -> Iterator[tuple[Target, psutil.Process]]:
        """Run it until the block is left.

        Raises:
            LoadError: It did not answer a request in time; holds the end of its output.
        """
        port, log = free_port(), self.folder / "output.log"
        log.unlink(missing_ok=True)
        target = Target(f"http://127.0.0.1:{port}", self.model, self._bodies)
        command, environ = self.command(port), self.environ()
        with running_process(command, core=self.cores.gateway, log=log, environ=environ, cwd=self.folder) as process:
            try:
                await_answer(target, process, self.start_limit_s)
            except LoadError as error:
                end = log.read_text(encoding="utf-8", errors="replace")[-END_OF_LOG:]
                raise LoadError(f"{error}: {end}".replace(str(self.folder), "...")) from error
            yield target, process


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def await_answer(target: Target, process: psutil.Process, limit_s: float) -> None:
    """Wait until a chat completion comes back whole.

    Raises:
        LoadError: The process ended, or none came in time.
    """
    body = {"model": target.model, "messages": [{"role": "user", "content": "Are you there?"}]}
    request = urllib.request.Request(target.endpoint, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310 - http, ours
    ends_s, why = time.perf_counter() + limit_s, "nobody listens"
    while time.perf_counter() < ends_s:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise LoadError("ended while it started")
        try:
            with urllib.request.urlopen(request, timeout=5.0) as answer:  # noqa: S310 - http, ours
                if json.load(answer)["choices"]:
                    return
        except (OSError, ValueError, LookupError) as error:
            why = str(error)
        time.sleep(0.25)
    raise LoadError(f"no answer within {limit_s:g} s ({why})")


class Installed(Gateway):
    """A peer from the package index."""

    packages: ClassVar[tuple[tuple[str, ...], ...]]
    """Arguments of pip, call by call; the first ends with what the version is asked of."""
    distribution: ClassVar[str]

    @property
    def bin(self) -> Path:
        """Folder of its programs."""
        return self.folder / "venv" / "bin"

    @override
    def prepare(self) -> str | None:
        if not (self.folder / "installed").is_file():
            run_step([sys.executable, "-m", "venv", "--clear", str(self.folder / "venv")])
            for packages in self.packages:
                run_step([str(self.bin / "python"), *PIP, *packages])
            (self.folder / "installed").touch()
        code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
        return run_step([str(self.bin / "python"), "-c", code, self.distribution]).strip()


class VllmRouter(Installed):
    """vllm-router, Rust behind a Python launcher."""

    name = distribution = "vllm-router"
    packages = (("--no-deps", "vllm-router==0.1.17"), HELPERS)

    @override
    def command(self, port: int) -> list[str]:
        return [
            *(str(self.bin / "python"), "-m", "vllm_router.launch_router", "--worker-urls", *self.upstreams),
            *("--policy", "round_robin", "--host", "127.0.0.1", "--port", str(port)),
            *("--prometheus-port", str(free_port())),
        ]


class Smg(Installed):
    """smg, Rust behind a Python launcher."""

    name = distribution = "smg"
    packages = (("--no-deps", "smg==1.13.0", "sglang-router"), HELPERS)

    @override
    def command(self, port: int) -> list[str]:
        return [
            *(str(self.bin / "smg"), "launch", "--worker-urls", *self.upstreams),
            *("--policy", "round_robin", "--host", "127.0.0.1", "--port", str(port)),
            *("--prometheus-port", str(free_port())),
        ]


class LiteLlm(Installed):
    """The LiteLLM proxy, one worker, no database."""

    name = distribution = "litellm"
    packages = (("litellm[proxy]", "uvloop"),)
    start_limit_s = 180.0
    stretch = 2.0
    settle_s = 3.0  # it goes on with requests whose clients have left

    @override
    def environ(self) -> Mapping[str, str]:
        return {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    @override
    def command(self, port: int) -> list[str]:
        models = [
            {"model_name": "m", "litellm_params": {"model": "openai/m", "api_base": f"{url}/v1", "api_key": "none"}}
            for url in self.upstreams
        ]
        config = self.folder / "config.yaml"
        config.write_text(json.dumps({"model_list": models}), encoding="utf-8")  # JSON is YAML
        program = [str(self.bin / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        return [*program, "--num_workers", "1"]


PEERS: tuple[type[Installed], ...] = (VllmRouter, Smg, LiteLlm)


class Llmtier(Gateway):
    """llmtier of any checkout: routes by a fitted ``learned`` policy and profiles, keeps metrics and a traffic log.

    Args:
        outcomes: What the policy is fitted on.
        program: The command line of ``llmtier``, without a subcommand.
        name: What it is called in the result.
    """

    model = ROUTED
    settle_s = 6.0  # the traffic log writes what it holds after 5 s of silence

    def __init__(self, *place: Any, outcomes: Path, program: str, name: str = "llmtier") -> None:  # noqa: ANN401 - a Gateway's own
        self.name = name
        super().__init__(*place)
        self._outcomes = outcomes
        self._program = shlex.split(program)

    @override
    def prepare(self) -> str | None:
        questions = [{"role": "user", "content": "What is one and one?"}, {"role": "assistant", "content": "word"}]
        (self.folder / "evaluation.jsonl").write_text(
            "".join(json.dumps({"messages": questions}) + "\n" for _ in range(1)), encoding="utf-8"
        )
        (self.folder / "llmtier.yaml").write_text(json.dumps(self._config()), encoding="utf-8")  # JSON is YAML
        prices = f"{CHEAP}=1,{DEAR}=10"
        fit = [
            "fit-thresholds",
            str(self._outcomes),
            "--costs",
            prices,
            "--max-accuracy-loss",
            "0.05",
            "--max-rows",
            "6000",
        ]
        self._step(*fit, "--force", "-o", "policy.json")
        self._step("profile", "-c", "llmtier.yaml", "--latency-model")
        return None

    def _step(self, *arguments: str) -> None:
        where = ["env", "-C", str(self.folder), "taskset", "-c", str(self.cores.gateway)]
        run_step([*where, *self._program, *arguments])

    def _config(self) -> dict[str, Any]:
        tiers = [
            {
                "name": name,
                "model": "m",
                "scheme": "bf16",
                "engine": {"kind": "openai", "url": url, "model_name": "m"},
                "price": {"usd_per_hour": usd},
            }
            for name, url, usd in zip((CHEAP, DEAR), self.upstreams, (1, 10), strict=True)
        ]
        load = {"concurrency": [1, 16, 64], "requests_per_point": 80, "warmup_requests": 4, "max_tokens": 16}
        return {
            "policy": "policy.json",
            "evaluation": "evaluation.jsonl",
            "tiers": tiers,
            "load": load,
            "gateway": {"log_dir": "traffic"},
        }

    @override
    def command(self, port: int) -> list[str]:
        return [*self._program, "serve", "-c", "llmtier.yaml", "--port", str(port)]

    @staticmethod
    def read_counts(target: Target) -> dict[str, Any]:
        """Return its own counts of decisions and of remembered scores; empty where its metrics are not found."""
        try:
            with urllib.request.urlopen(f"{target.url}/metrics", timeout=5.0) as answer:  # noqa: S310 - http, ours
                lines = answer.read().decode().splitlines()
        except (OSError, urllib.error.URLError):
            return {}
        wanted = ("llmtier_route_decisions_total", "llmtier_score_cache_", "llmtier_log_dropped_total")
        found = [line.rpartition(" ") for line in lines if line.startswith(wanted) and "_created" not in line]
        return {name: float(value) for name, _, value in found}
