"""Measured points: finished load points, kept so that an interrupted profile goes on where it stopped.

One Parquet file a point, ``<folder>/<key>.<digest>.parquet``. The key is a digest of everything that
decided the measurement: what is asked for again under the same key need not be measured again. The
second digest is that of the file, so that one changed byte makes it none. A file that is torn,
foreign or of another version counts as none too. Measures and judges nothing.
"""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from llmtier.core.errors import InputFileError
from llmtier.store.atomic import disk_errors, write_bytes
from llmtier.store.documents import parse_json
from llmtier.store.parquet import Column, decode_columns, encode_columns, read_file
from llmtier.store.profiles import REQUEST_COLUMNS, RequestRow
from llmtier.store.text import replace_surrogates

SAMPLE_COLUMNS = (
    *REQUEST_COLUMNS,
    Column("content_s", "floats", unit="s"),
    Column("is_warmup", "bool"),
)

_ARTIFACT = "measured point"
_ADVICE = "it will be measured again"
_KEY = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.parquet")
_ROW_NAMES = tuple(column.name for column in REQUEST_COLUMNS)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One request of a saved point.

    Attributes:
        row: What a profile stores of it.
        content_s: Arrival of each content chunk on the row's clock.
        is_warmup: Sent to load the engine, never counted.
    """

    row: RequestRow
    content_s: tuple[float, ...] = ()
    is_warmup: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPoint:
    """One finished load point.

    Attributes:
        samples: Every request, warm-up and tail included, in the order in which they were given.
        facts: What else was seen, as plain data: the engine's counters, the device's use, the seed.
    """

    samples: tuple[SampleRow, ...]
    facts: Mapping[str, Any]


def point_key(document: Mapping[str, object]) -> str:
    """Return the sha256 of everything that decides a measurement; the order of keys does not matter.

    Args:
        document: Plain data and dataclasses: the tier's identity (checkpoint digest, engine, hardware
            fingerprint), load shape, workload, number of requests, seed, settings, and the version of
            llmtier's way to measure. What is left out here is taken to make no difference.

    Raises:
        ValueError: A number is NaN or infinite.
        TypeError: A value has no one way to be written, such as a set.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_to_plain)
    return hashlib.sha256(text.encode()).hexdigest()


class MeasuredPoints:
    """The finished points in one folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> SavedPoint | None:
        """Return the point saved under ``key``; ``None``, with a warning for each file there is, when none can be used.

        Raises:
            ValueError: ``key`` is none of ``point_key``.
        """
        for path in self._files_of(key):
            try:
                return _decode(_read_whole(path), key=key, path=path)
            except InputFileError as exc:
                logger.warning("saved load point ignored", extra={"path": str(path), "reason": str(exc)})
        return None

    def save(self, key: str, point: SavedPoint) -> None:
        """Put a point under ``key``, wholly or not at all, and remove what was there.

        Raises:
            ValueError: ``key`` is none of ``point_key``, or a value is NaN.
            DiskError: The file system refused; the other points are as they were.
        """
        older = self._files_of(key)
        data = _encode(key, point)
        path = self._folder / f"{key}.{_short_digest(data)}.parquet"
        write_bytes(path, data)
        with disk_errors(path):
            for file in set(older) - {path}:
                file.unlink(missing_ok=True)

    def keys(self) -> frozenset[str]:
        """Return the key of each file there is, readable or not."""
        names = (path.name for path in self._folder.glob("*.parquet"))
        return frozenset(name[:64] for name in names if _FILE_NAME.fullmatch(name))

    def discard(self, keys: Iterable[str]) -> None:
        """Remove the points of ``keys`` and what interrupted writes of them left, and the folder once it is empty.

        Raises:
            DiskError: The file system refused.
        """
        with disk_errors(self._folder):
            for key in keys:
                for file in (*self._files_of(key), *self._folder.glob(f".{key}.*.tmp")):
                    file.unlink(missing_ok=True)
        with suppress(OSError):  # it still holds something, or never was
            self._folder.rmdir()

    def _files_of(self, key: str) -> list[Path]:
        """Return the files of a key; two after a crash between writing one and removing its elder."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"expected a key of point_key, got {key!r}")
        return sorted(self._folder.glob(f"{key}.*.parquet"))


def _encode(key: str, point: SavedPoint) -> bytes:
    cells = zip(*(attrgetter(*_ROW_NAMES)(sample.row) for sample in point.samples), strict=True)
    values: dict[str, Sequence[Any]] = dict.fromkeys(_ROW_NAMES, ())
    values.update(zip(_ROW_NAMES, cells, strict=bool(point.samples)))
    values["content_s"] = tuple(sample.content_s for sample in point.samples)
    values["is_warmup"] = tuple(sample.is_warmup for sample in point.samples)
    facts = json.dumps(replace_surrogates(dict(point.facts)), allow_nan=False)
    metadata = {"key": key, "facts": facts, "seal": _seal(key)}
    return encode_columns(values, SAMPLE_COLUMNS, artifact=_ARTIFACT, metadata=metadata)


def _decode(data: bytes, *, key: str, path: Path) -> SavedPoint:
    found = decode_columns(data, SAMPLE_COLUMNS, path=path, artifact=_ARTIFACT, advice=_ADVICE)
    if found.metadata.get("seal") != _seal(key):
        raise InputFileError(f"is not what this llmtier writes under that key; {_ADVICE}", path=path)
    rows = zip(*(found.values[name] for name in _ROW_NAMES), strict=True)
    beside = zip(found.values["content_s"], found.values["is_warmup"], strict=True)
    samples = tuple(
        SampleRow(row=RequestRow(**dict(zip(_ROW_NAMES, row, strict=True))), content_s=content_s, is_warmup=is_warmup)
        for row, (content_s, is_warmup) in zip(rows, beside, strict=True)
    )
    return SavedPoint(samples=samples, facts=parse_json(found.metadata["facts"]))


def _read_whole(path: Path) -> bytes:
    data = read_file(path)
    if path.suffixes[:1] != [f".{_short_digest(data)}"]:
        raise InputFileError(f"was torn or changed after it was written; {_ADVICE}", path=path)
    return data


def _short_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _seal(key: str) -> str:
    """Bind a file to its key and to every name, type and unit of its table."""
    return hashlib.sha256(repr((key, SAMPLE_COLUMNS)).encode()).hexdigest()


def _to_plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no one way to be written into a key")
