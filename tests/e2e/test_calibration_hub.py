"""The real ``datasets`` and ``transformers``: a folder in the place of a hub id, a small hub that refuses, exact counts."""

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typing_extensions import override

from llmtier.core.errors import InputFileError, MachineError
from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.quantize.calibration.hub import FetchedRows, fetch_rows
from llmtier.quantize.calibration.spool import Documents, write_spool
from llmtier.quantize.calibration.tokens import TokenCounter
from llmtier.store.calibration_recipe import FieldMapping, Source
from tests.quantize.calibration.test_batch import make_batches

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"question": f"What is {n} + 1?", "answer": str(n + 1), "note": None} for n in range(5)]
DATA = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
MINI = Path(__file__).parents[2] / "examples" / "demo" / "models" / "mini"


class FakeHub(ThreadingHTTPServer):
    """Serves one dataset, ``org/sums``, or refuses it.

    Attributes:
        refusal: Status and ``X-Error-Code`` given instead of its description; ``None`` for none.
        asked: Paths that were asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refusal: tuple[int, str | None] | None = None
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        if self.server.refusal is not None:
            self.refuse(*self.server.refusal)
        elif path.startswith("/api/datasets/org/sums/tree"):
            entries = [{"type": "file", "path": "train.jsonl", "size": len(DATA), "oid": "0" * 40}]
            self.answer(json.dumps(entries if path.count("/") < 8 else []).encode())
        elif path.startswith("/api/datasets/org/sums/revision/") and path.rpartition("/")[2] not in {"main", COMMIT}:
            self.refuse(404, "RevisionNotFound")
        elif path.startswith("/api/datasets/org/sums"):
            siblings = [{"rfilename": "train.jsonl", "size": len(DATA)}]
            self.answer(json.dumps({"id": "org/sums", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.endswith("/train.jsonl"):
            self.answer(DATA, {"X-Repo-Commit": COMMIT, "ETag": '"1"', "Accept-Ranges": "bytes"})
        else:
            self.refuse(404, "EntryNotFound" if "resolve" in path else "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815 - the name that the server calls

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(b"[]")

    @override
    def log_message(self, *_: object) -> None:
        pass

    def answer(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
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
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def fetch(source: Source, tmp_path: Path, python: Path, *, folder: Path | None = None) -> FetchedRows:
    return fetch_rows(source, folder=folder, out=tmp_path / "rows.jsonl", python=lambda: python)


def read(fetched: FetchedRows) -> list[dict[str, object]]:
    return [json.loads(line) for line in fetched.path.read_text().splitlines()]


def test_dataset_streams_from_the_hub_and_is_fetched_once(hub, python, tmp_path):
    source = Source(dataset="org/sums", limit=3, fields=FieldMapping(user="question", assistant="answer"))

    fetched = fetch(source, tmp_path, python)

    assert (COMMIT, 3) == (fetched.revision, fetched.n_rows)
    assert [{key: row[key] for key in ("question", "answer")} for row in ROWS[:3]] == read(fetched)
    hub.asked.clear()
    assert fetched == fetch(source, tmp_path, python)
    assert [] == hub.asked


def test_folder_in_the_place_of_an_id_needs_no_hub(python, tmp_path):
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(DATA)

    fetched = fetch(Source(dataset="sums"), tmp_path, python, folder=folder)

    assert ROWS == read(fetched)
    assert fetched.revision is None
    with pytest.raises(InputFileError, match=r"sums: .*split"):
        fetch_rows(
            Source(dataset="sums", split="other"), folder=folder, out=tmp_path / "other.jsonl", python=lambda: python
        )


@pytest.mark.parametrize(
    ("refusal", "error", "said"),
    [
        (
            (401, "GatedRepo"),
            MachineError,
            r"is gated: accept the licence at http.*/datasets/org/sums and set HF_TOKEN",
        ),
        ((403, None), MachineError, "is gated: accept the licence"),
        ((401, "RepoNotFound"), MachineError, "does not exist, or is private"),
        ((404, "RepoNotFound"), InputFileError, "no such dataset; check the spelling of org/sums"),
        ((501, None), MachineError, "the hub failed .*; try again"),
    ],
)
def test_refusal_says_what_to_do(refusal, error, said, hub, python, tmp_path):
    hub.refusal = refusal

    with pytest.raises(error, match=said):
        fetch(Source(dataset="org/sums"), tmp_path, python)
    assert not (tmp_path / "rows.jsonl.done").exists()


def test_unknown_revision_is_an_input_error(hub, python, tmp_path):
    with pytest.raises(InputFileError, match="has no revision v9"):
        fetch(Source(dataset="org/sums", revision="v9"), tmp_path, python)


def test_hub_that_is_out_of_reach_is_a_machine_error(hub, python, monkeypatch, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")

        with pytest.raises(MachineError, match=r"cannot be reached .*; check the network and HF_ENDPOINT"):
            fetch(Source(dataset="org/sums"), tmp_path, python)


def test_path_that_does_not_exist_is_no_id_and_an_input_error(hub, python, tmp_path):
    with pytest.raises(InputFileError, match=r"\./sources/x: is neither a folder nor the id of a dataset"):
        fetch(Source(dataset="./sources/x"), tmp_path, python)
    assert [] == hub.asked


def test_tokenizer_out_of_reach_is_a_machine_error(hub, python, monkeypatch, tmp_path):
    documents = Documents((write_spool(tmp_path, "spool", make_batches(tmp_path, [{"text": "words"}])),), (0,))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")

        with pytest.raises(MachineError, match="org/sums: its tokenizer cannot be loaded"):
            TokenCounter("org/sums", python, tmp_path).count(documents, documents.sources)


def test_tokens_are_counted_as_the_quantizer_sees_them(python, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "Where is order 7? " * (n + 1)}]} for n in range(3)]
    documents = Documents((write_spool(tmp_path, "spool", make_batches(tmp_path, rows)),), (0,))
    counter = TokenCounter(str(MINI), python, tmp_path)

    first, second, third = counter.count(documents, documents.sources + range(3))

    assert 0 < first < second < third
    assert second - first == third - second
    shutil.copytree(MINI, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(InputFileError, match="tokenizer cannot be loaded"):
        TokenCounter(str(tmp_path / "broken"), python, tmp_path).count(documents, documents.sources)
