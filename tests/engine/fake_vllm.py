"""Stands in for an interpreter with vLLM: takes its command line, behaves as told by FAKE_VLLM.

A new process costs 50 ms here; the real engine takes half a minute (tests/e2e).
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('stubborn', flush=True); time.sleep(60)"
)


class Handler(BaseHTTPRequestHandler):
    """Answers the three pages that a launch reads, and one completion."""

    def do_GET(self) -> None:
        card = {"id": option("--served-model-name"), "max_model_len": 512}
        pages = {"/health": "", "/version": {"version": "0.0-fake"}, "/v1/models": {"data": [card]}}
        body = json.dumps(pages[self.path]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if os.environ.get("FAKE_VLLM") == "dies_on_request":
            write("ValueError: Unsupported CPU attention configuration: head_dim=16")
            os._exit(1)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        chunk = {"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}
        self.wfile.write(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())

    def log_request(self, *_: object) -> None:  # type: ignore[explicit-override]  # typing_extensions is not there
        """Be silent."""


def write(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def main() -> None:
    behaviour = os.environ.get("FAKE_VLLM", "serve")
    write(f"cores {sorted(os.sched_getaffinity(0))}")
    write("INFO config: trust_remote_code=False")
    if behaviour == "die":
        for line in range(30):
            write(f"line {line}")
        sys.exit(3)
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "never_ready":
        time.sleep(60)
    if behaviour in {"stubborn", "orphan"}:
        child = subprocess.Popen([sys.executable, "-c", STUBBORN], start_new_session=True, stdout=subprocess.PIPE)
        child.stdout.readline()  # type: ignore[union-attr]  # the child ignores SIGTERM from here on
        write(f"child {child.pid}")
    if behaviour == "orphan":
        os._exit(4)
    ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler).serve_forever()


if __name__ == "__main__":
    main()
