"""What the clients of the gateway benchmark send: bodies of given sizes, no two alike, cut from real questions.

Lies as plain files in one folder, so that wrk's script reads the same: ``pool`` (JSON-escaped text), and for each kind
of body ``<kind>.head``, ``<kind>.tail`` and ``<kind>.starts`` (a prompt's bytes, then where prompts begin). A prompt is
a number that no other has, then a stretch of the pool. Keys stand in the order of the official Python client.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import numpy as np

SIZES_BYTES = {"0.6KB": 600, "64KB": 65_536, "400KB": 409_600}
POOL_BYTES = 2_000_000
N_STARTS = 1024
NUMBER_DIGITS = 12
MAX_TOKENS = 100
SYSTEM = '{"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"'


@dataclass(frozen=True)
class Bodies:
    """Bodies of one kind.

    Attributes:
        head: From the first byte of a body to the prompt's number.
        tail: From the prompt's end to the body's.
        pool: Escaped text that prompts are cut from.
        starts: Where they begin.
        n_prompt: Their bytes.
    """

    head: bytes
    tail: bytes
    pool: bytes
    starts: tuple[int, ...]
    n_prompt: int

    @classmethod
    def read(cls, folder: Path, kind: str) -> Self:
        """Read what ``write_bodies`` wrote."""
        n_prompt, *starts = map(int, (folder / f"{kind}.starts").read_text(encoding="ascii").split())
        head, tail = ((folder / f"{kind}.{part}").read_bytes() for part in ("head", "tail"))
        return cls(head, tail, (folder / "pool").read_bytes(), tuple(starts), n_prompt)

    @property
    def n_bytes(self) -> int:
        """Length of a body."""
        return len(self.head) + NUMBER_DIGITS + 1 + self.n_prompt + len(self.tail)

    def writer(self, url: str, first_number: int) -> Callable[[], bytes]:
        """Return what makes the next request, head and body."""
        parts = urlsplit(url)
        lines = (f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json")
        opening = "\r\n".join((*lines, f"Content-Length: {self.n_bytes}", "", "")).encode() + self.head
        starts, number = cycle(self.starts), first_number

        def write() -> bytes:
            nonlocal number
            number += 1
            start = next(starts)
            return b"%b%012d %b%b" % (opening, number, self.pool[start : start + self.n_prompt], self.tail)

        return write


def name_kind(model: str, size: str, *, is_stream: bool = False) -> str:
    """Return what a kind of bodies is called."""
    return f"{model}-{size}{'-stream' if is_stream else ''}"


def write_bodies(folder: Path, texts: Sequence[str], models: Sequence[str]) -> None:
    """Write the bodies of every model and size."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(texts)).tolist()
    text = "\n".join(texts[index] for index in order)[:POOL_BYTES]
    pool = json.dumps(text.encode("ascii", errors="ignore").decode())[1:-1]
    (folder / "pool").write_text(pool, encoding="ascii")
    for model in models:
        for size, n_bytes in SIZES_BYTES.items():
            for is_stream in (False, True):
                kind = name_kind(model, size, is_stream=is_stream)
                _write_kind(folder / kind, pool, model, n_bytes, is_stream=is_stream)


def _write_kind(path: Path, pool: str, model: str, n_bytes: int, *, is_stream: bool) -> None:
    options = {"model": model, "max_tokens": MAX_TOKENS, **({"stream": True} if is_stream else {})}
    tail = '"}],' + json.dumps(options, separators=(",", ":"))[1:]
    n_prompt = n_bytes - len(SYSTEM) - len(tail) - NUMBER_DIGITS - 1
    starts = choose_starts(pool, n_prompt)
    for part, text in (("head", SYSTEM), ("tail", tail), ("starts", " ".join(map(str, (n_prompt, *starts))))):
        path.with_name(f"{path.name}.{part}").write_text(text, encoding="ascii")


def choose_starts(pool: str, n_prompt: int) -> list[int]:
    """Return random places whose stretch of ``n_prompt`` bytes cuts no escape in two."""
    draw = np.random.default_rng(n_prompt).integers(1, len(pool) - n_prompt, 4 * N_STARTS).tolist()
    whole = [start for start in draw if pool[start - 1] != "\\" and pool[start + n_prompt - 1] != "\\"]
    return whole[:N_STARTS]
