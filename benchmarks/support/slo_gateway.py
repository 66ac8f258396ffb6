"""``llmtier serve`` with its real engines as a process: its configuration, readiness, CPU time, metrics and end.

The configuration is the given one with absolute paths and a traffic log of its own: nothing of a demo is changed.
"""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from support.gateway_peers import free_port

START_LIMIT_S = 240.0
STOP_LIMIT_S = 40.0
END_OF_LOG = 1500


class GatewayError(Exception):
    """The gateway did not start, or did not end by itself."""


@dataclass(frozen=True)
class Gateway:
    """One that runs.

    Attributes:
        url: Where it listens.
        process: Its one process; the engines are its children.
    """

    url: str
    process: psutil.Popen

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time so far of the gateway alone and of all engines together."""
        own = self.process.cpu_times()
        engines = 0.0
        for child in self.process.children(recursive=True):
            with suppress(psutil.Error):
                times = child.cpu_times()
                engines += times.user + times.system
        return {"gateway": own.user + own.system, "engines": engines}

    def metric(self, name: str) -> dict[str, float]:
        """Return the values of one metric by its labels' text."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5.0) as answer:  # noqa: S310 - http, ours
            lines = answer.read().decode().splitlines()
        found = [line.rpartition(" ") for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        return {labels.removeprefix(name): float(value) for labels, _, value in found}


def write_config(source: Path, folder: Path) -> Path:
    """Write the configuration for a run whose files go to ``folder``; return its path."""
    document: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    base = source.absolute().parent
    for key in ("profiles", "policy", "evaluation"):
        if key in document:
            document[key] = str((base / document[key]).resolve())
    for tier in document["tiers"]:
        if (base / tier["model"]).exists():
            tier["model"] = str((base / tier["model"]).resolve())
    gateway = {**document.get("gateway", {}), "log_dir": str(folder.absolute() / "traffic"), "workers": 1}
    document["gateway"] = {**gateway, "log_keep_bytes": None}
    path = folder / "llmtier.yaml"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")  # JSON is YAML
    return path


@contextmanager
def running_gateway(config: Path, tiers: Sequence[str]) -> Iterator[Gateway]:
    """Run the gateway and its engines until the block is left; then the traffic log is complete.

    Raises:
        GatewayError: It was not ready in time; holds the end of its output.
    """
    port, log = free_port(), config.parent / "serve.log"
    named = [part for tier in tiers for part in ("--tier", tier)]
    command = [sys.executable, "-m", "llmtier", "serve", "-c", str(config), *named, "--port", str(port)]
    with log.open("wb") as output:
        process = psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=config.parent,
            start_new_session=True,
        )
    gateway = Gateway(f"http://127.0.0.1:{port}", process)
    try:
        _await_ready(gateway, log)
        yield gateway
    finally:
        _stop(process)


def _await_ready(gateway: Gateway, log: Path) -> None:
    ends_s = time.perf_counter() + START_LIMIT_S
    while time.perf_counter() < ends_s:
        if gateway.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{gateway.url}/ready", timeout=5.0) as answer:  # noqa: S310 - http, ours
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise GatewayError(f"not ready: {log.read_text(encoding='utf-8', errors='replace')[-END_OF_LOG:]}")


def _stop(process: psutil.Popen) -> None:
    """End it as a user would, so that it writes its log; then end what is left of what it started."""
    members = [process, *process.children(recursive=True)] if process.is_running() else [process]
    with suppress(psutil.Error):
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=STOP_LIMIT_S)
    for member in alive:
        with suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(alive, timeout=STOP_LIMIT_S)
