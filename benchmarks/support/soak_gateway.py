"""``llmtier serve`` with several workers as a process, for the soak and the overload benchmark.

Writes its configuration, knows its control process and its workers, reads its own pages and its memory, ends it.
"""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from support.gateway_peers import free_port

START_LIMIT_S, STOP_LIMIT_S = 60.0, 45.0
END_OF_LOG = 1500
PAGE_LIMIT_S = 5.0


class GatewayError(Exception):
    """The gateway did not start."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """One that runs.

    Attributes:
        url: Where it serves; likewise ``admin_url`` of the control process.
        process: The control process, whose children are the workers.
        config: Its file; likewise ``log``, its output.
    """

    url: str
    admin_url: str
    process: psutil.Popen
    config: Path
    log: Path

    def worker_pids(self) -> list[int]:
        """Return the workers' process ids, by number.

        Raises:
            OSError: The control process does not answer.
        """
        pids: list[int] = json.loads(read_page(f"{self.admin_url}/workers"))["pids"]
        return pids

    def rss_bytes(self) -> dict[int, int]:
        """Return the resident memory of every gateway process, by process id."""
        found: dict[int, int] = {}
        with suppress(psutil.Error):
            for member in [self.process, *self.process.children(recursive=True)]:
                with suppress(psutil.Error):
                    found[member.pid] = member.memory_info().rss
        return found

    def takes_hangup(self) -> bool:
        """Tell whether SIGHUP means something to the control process; to one that does not know it, it is the end."""
        with suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
            caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
            return caught is not None and bool(int(caught[1], 16) >> (signal.SIGHUP - 1) & 1)
        return False

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the values on the metrics page whose names begin so.

        Raises:
            OSError: The control process does not answer.
        """
        lines = read_page(f"{self.admin_url}/metrics").decode().splitlines()
        found = [line.rpartition(" ") for line in lines if line.startswith(prefix)]
        return {name: float(value) for name, _, value in found}


def read_page(url: str) -> bytes:
    """Return a page.

    Raises:
        OSError: It does not come, or not with 200.
    """
    with urllib.request.urlopen(url, timeout=PAGE_LIMIT_S) as answer:  # noqa: S310 - http, ours
        page: bytes = answer.read()
        return page


def write_config(
    folder: Path,
    tiers: Mapping[str, str],
    *,
    gateway: Mapping[str, Any],
    rules: Sequence[Mapping[str, Any]] = (),
    load: Mapping[str, Any] | None = None,
) -> Path:
    """Write a configuration of tiers behind URLs; return its path."""
    document = {
        "tiers": [
            {
                "name": name,
                "model": "m",
                "scheme": "bf16",
                "engine": {"kind": "openai", "url": url, "model_name": "m"},
                "price": {"usd_per_hour": number},
            }
            for number, (name, url) in enumerate(tiers.items(), start=1)
        ],
        "routing": {"rules": list(rules)},
        "gateway": {"log_dir": "traffic", **gateway},
        **({"load": dict(load), "evaluation": "evaluation.jsonl"} if load else {}),
    }
    path = folder / "llmtier.yaml"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")  # JSON is YAML
    return path


@contextmanager
def running_gateway(config: Path, *, n_workers: int) -> Iterator[Gateway]:
    """Run the gateway until the block is left.

    Raises:
        GatewayError: It was not ready in time; holds the end of its output.
    """
    port, admin_port, log = free_port(), free_port(), config.parent / "serve.log"
    command = [sys.executable, "-m", "llmtier", "serve", "-c", str(config), "--port", str(port)]
    command += ["--workers", str(n_workers), "--admin-port", str(admin_port)]
    with log.open("wb") as output:
        process = psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=config.parent,
            start_new_session=True,
        )
    gateway = Gateway(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}", process, config, log)
    try:
        _await_ready(gateway)
        yield gateway
    finally:
        stop(process)


def _await_ready(gateway: Gateway) -> None:
    ends_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < ends_s and gateway.process.poll() is None:
        try:
            read_page(f"{gateway.url}/ready")
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise GatewayError(f"not ready: {gateway.log.read_text(encoding='utf-8', errors='replace')[-END_OF_LOG:]}")


def stop(process: psutil.Popen) -> None:
    """End it as a user would, then kill what is left of it."""
    members = [process, *process.children(recursive=True)] if process.is_running() else [process]
    with suppress(psutil.Error):
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=STOP_LIMIT_S)
    for member in alive:
        with suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(alive, timeout=STOP_LIMIT_S)
