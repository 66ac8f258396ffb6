"""A gateway on a mock engine, as a process of its own."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def gateway_url(tmp_path: Path) -> Iterator[str]:
    """Return the base URL, without ``/v1``, of a gateway whose one tier answers ``four tokens of text``."""
    config = {
        "tiers": [
            {
                "name": "mock@bf16",
                "model": "m",
                "scheme": "bf16",
                "engine": {"kind": "mock", "mock": {"answers": {"hello": "four tokens of text"}}},
            }
        ],
        "gateway": {"default_tier": "mock@bf16"},
    }
    (tmp_path / "llmtier.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "llmtier", "serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield next(line.split()[-1] for line in process.stderr if line.startswith("serving on")).removesuffix("/v1")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
