"""The engine of the overload benchmark: llmtier's mock with a few places, and a queue without an end, as vLLM's."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from support.gateway_peers import free_port
from support.soak_gateway import read_page

START_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast it is: a step lasts ``alpha_s`` and ``sequence_s`` more for each request that runs.

    Attributes:
        max_num_seqs: Requests that run at once; others wait, first come, first served.
        output_tokens: Of every answer, a step each.
    """

    alpha_s: float = 0.004
    sequence_s: float = 0.0005
    max_num_seqs: int = 8
    output_tokens: int = 12


@contextmanager
def running_engine(speed: Speed, folder: Path) -> Iterator[str]:
    """Run it until the block is left; gives its URL.

    Raises:
        RuntimeError: It does not answer in time.
    """
    settings = folder / "mock.json"
    fixed = {"model_name": "m", "beta_s_per_token": 0.0, "context_tokens": 100_000}
    settings.write_text(json.dumps(asdict(speed) | fixed), encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "llmtier.engine.mock", "--port", str(port), "--settings", str(settings)]
    with (folder / "engine.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _await_answer(url)
        yield url
    finally:
        process.kill()
        process.wait()


def _await_answer(url: str) -> None:
    ends_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < ends_s:
        try:
            read_page(f"{url}/health")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the mock engine at {url} does not answer")


def await_idle(url: str, limit_s: float) -> bool:
    """Wait until nothing runs or waits there; return whether that came to be."""
    ends_s = time.monotonic() + limit_s
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    while time.monotonic() < ends_s:
        lines = [line for line in read_page(f"{url}/metrics").decode().splitlines() if line.startswith(names)]
        if lines and all(float(line.rpartition(" ")[2]) == 0 for line in lines if "_by_reason" not in line):
            return True
        time.sleep(0.1)
    return False
