"""The real hub library against a small hub on this machine: tiny models, refusals, an interrupted download."""

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typing_extensions import override

from llmtier.core.errors import DiskError, InputFileError, MachineError
from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.quantize.fetch import resolve_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "consolidated.safetensors": b"the same again",
    "pytorch_model.bin": b"the same again",
    "onnx/model.safetensors": b"another format",
}


class FakeHub(ThreadingHTTPServer):
    """Serves the part of the hub's interface that a download uses.

    Attributes:
        repositories: Files by model id.
        refusals: Status and ``X-Error-Code`` by model id; given instead of its description.
        closed_files: As ``refusals``, given instead of files.
        cut: Names of files of which half is sent.
        served: Paths of the files that were sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {"org/tiny": MODEL}
        self.refusals: dict[str, tuple[int, str | None]] = {}
        self.closed_files: dict[str, tuple[int, str | None]] = {}
        self.claimed_bytes: dict[str, int] = {}
        self.cut: set[str] = set()
        self.served: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        words = urlsplit(self.path).path.strip("/").split("/")
        if words[:2] == ["api", "models"]:
            self.describe("/".join(words[2:4]), words[4:])
        elif "resolve" in words:
            self.send_file("/".join(words[:2]), "/".join(words[4:]))
        else:
            self.refuse(404, None)

    do_HEAD = do_GET  # noqa: N815 - the name that the server calls

    @override
    def log_message(self, *_: object) -> None:
        pass

    def describe(self, hub_id: str, rest: list[str]) -> None:
        if hub_id in self.server.refusals:
            return self.refuse(*self.server.refusals[hub_id])
        files = self.server.repositories.get(hub_id)
        if files is None:
            return self.refuse(404, "RepoNotFound")
        if rest[:1] == ["revision"] and rest[1] not in {"main", COMMIT}:
            return self.refuse(404, "RevisionNotFound")
        sizes = {name: self.server.claimed_bytes.get(name, len(data)) for name, data in files.items()}
        if rest[:1] == ["tree"]:
            entries = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            return self.answer(json.dumps(entries).encode())
        siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
        return self.answer(json.dumps({"id": hub_id, "sha": COMMIT, "siblings": siblings}).encode())

    def send_file(self, hub_id: str, name: str) -> None:
        if hub_id in self.server.closed_files:
            return self.refuse(*self.server.closed_files[hub_id])
        data = self.server.repositories[hub_id][name]
        if self.command == "GET":
            self.server.served.append(name)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if name in self.server.cut and self.command == "GET":
            self.close_connection = True
            return self.answer(data[: len(data) // 2], headers, n_bytes=len(data))
        return self.answer(data, headers)

    def answer(self, data: bytes, headers: dict[str, str] | None = None, *, n_bytes: int | None = None) -> None:
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if n_bytes is None else n_bytes))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def python() -> Path:
    environment = find_environment(EnvironmentName.QUANTIZE, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install quantize'")
    return environment.python


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_model_is_downloaded_once_without_what_quantizing_does_not_need(hub, python, tmp_path):
    said = []

    model = resolve_model(
        "org/tiny", revision=None, python_of=lambda: python, on_progress=lambda step: said.append(step.message)
    )

    assert ("tiny", COMMIT) == (model.name, model.revision)
    assert model.path.is_relative_to(tmp_path / "hf")
    assert ["config.json", "model.safetensors", "tokenizer.json"] == sorted(path.name for path in model.path.iterdir())
    assert MODEL["model.safetensors"] == (model.path / "model.safetensors").read_bytes()
    assert [f"org/tiny: revision {COMMIT[:12]}, 0.00 GB in 3 files; downloading what the cache lacks"] == said
    hub.served.clear()
    assert model == resolve_model("org/tiny", revision="main", python_of=lambda: python)
    assert [] == hub.served


def test_cached_model_will_do_when_the_hub_is_gone(hub, python, monkeypatch):
    model = resolve_model("org/tiny", revision=None, python_of=lambda: python)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = []

    again = resolve_model(
        "org/tiny", revision=None, python_of=lambda: python, on_progress=lambda step: said.append(step.message)
    )

    assert model == again
    assert "using the copy in the cache" in said[0]


def test_cut_download_is_an_error_and_the_next_run_completes_it(hub, python):
    hub.cut.add("model.safetensors")
    with pytest.raises(MachineError):
        resolve_model("org/tiny", revision=None, python_of=lambda: python)
    hub.cut.clear()
    hub.served.clear()

    model = resolve_model("org/tiny", revision=None, python_of=lambda: python)

    assert MODEL["model.safetensors"] == (model.path / "model.safetensors").read_bytes()
    assert ["model.safetensors"] == hub.served


@pytest.mark.parametrize(
    ("refusal", "error", "said"),
    [
        ((401, "GatedRepo"), MachineError, r"is gated: accept the licence at http.*/org/tiny and set HF_TOKEN"),
        ((403, "GatedRepo"), MachineError, "is gated: accept the licence"),
        ((403, None), MachineError, "is refused to you"),
        ((401, "RepoNotFound"), MachineError, "does not exist, or is private"),
        ((404, "RepoNotFound"), InputFileError, "no such model there; check the spelling of org/tiny"),
        ((501, None), MachineError, "the hub failed .*; try again"),
    ],
)
def test_refusal_says_what_to_do(refusal, error, said, hub, python):
    hub.refusals["org/tiny"] = refusal

    with pytest.raises(error, match=said):
        resolve_model("org/tiny", revision=None, python_of=lambda: python)


def test_model_that_is_shown_but_not_handed_out_is_gated(hub, python):
    hub.closed_files["org/tiny"] = (401, "GatedRepo")

    with pytest.raises(MachineError, match="is gated: accept the licence"):
        resolve_model("org/tiny", revision=None, python_of=lambda: python)


def test_unknown_revision_and_repositories_that_cannot_be_quantized_are_input_errors(hub, python):
    hub.repositories["org/bin"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    hub.repositories["org/gguf"] = {"model.safetensors": b"x", "README.md": b"x"}

    with pytest.raises(InputFileError, match="has no revision v9"):
        resolve_model("org/tiny", revision="v9", python_of=lambda: python)
    with pytest.raises(InputFileError, match=r"holds no safetensors.*config\.json, pytorch_model\.bin"):
        resolve_model("org/bin", revision=None, python_of=lambda: python)
    with pytest.raises(InputFileError, match=r"holds no config\.json"):
        resolve_model("org/gguf", revision=None, python_of=lambda: python)
    assert [] == hub.served


def test_model_larger_than_the_disk_is_refused_before_anything_is_downloaded(hub, python):
    hub.claimed_bytes["model.safetensors"] = 10**18

    with pytest.raises(DiskError, match=r"1000000000\.0 GB to come, .* set HF_HOME"):
        resolve_model("org/tiny", revision=None, python_of=lambda: python)
    assert [] == hub.served


def test_hub_that_is_out_of_reach_is_a_machine_error(hub, python, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")

        with pytest.raises(MachineError, match=r"cannot be reached .*; check the network"):
            resolve_model("org/tiny", revision=None, python_of=lambda: python)
