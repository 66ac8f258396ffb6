"""Lines of text files and rows of JSON lines, one at a time: no more than a line is held.

msgspec decodes, five times as fast as ``json``; what it refuses goes to ``jsonl.parse_line``, whose message says what
is wrong and where. ``csv_rows`` reads its lines here too.
"""

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import msgspec

from llmtier.core.errors import InputFileError
from llmtier.store.jsonl import parse_line
from llmtier.store.parquet import Row

_HEAD_BYTES = 1 << 16
_BLANK = b" \t\r\n\xef\xbb\xbf"
_FOREIGN = (
    (b"PAR1", "it is Parquet; let its name end in .parquet"),
    (b"\x1f\x8b", "it is compressed (gzip); unpack it first"),
    (b"\x28\xb5\x2f\xfd", "it is compressed (zstd); unpack it first"),
    (b"PK\x03\x04", "it is a zip archive or a spreadsheet; unpack it, or save it as CSV"),
    (b"\xff\xfe", "it is UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "it is UTF-16; save it as UTF-8"),
)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line counted from 1, its bytes with the line feed).

    Raises:
        InputFileError: The file cannot be read, or its beginning is that of a binary file.
    """
    try:
        with BufferedReader(path.open("rb", buffering=0), _HEAD_BYTES) as stream:
            _refuse_binary(stream.peek(), path=path)
            yield from enumerate(stream, start=1)
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc


def read_json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line counted from 1, object) of each line that is not blank.

    Raises:
        InputFileError: The file cannot be read or is binary; a line is not UTF-8, not JSON or no object.
    """
    decode = msgspec.json.Decoder().decode
    for number, raw in read_lines(path):
        try:
            row = decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            if not raw.strip(_BLANK):
                continue
            row = parse_line(raw, path=path, number=number)
        if type(row) is not dict:
            row = parse_line(raw, path=path, number=number)  # raises, and says what stands there
        yield number, row


def _refuse_binary(head: bytes, *, path: Path) -> None:
    for magic, reason in _FOREIGN:
        if head.startswith(magic):
            raise InputFileError(f"is not text: {reason}", path=path)
    if (place := head.find(b"\0")) >= 0:
        raise InputFileError(f"is not text: byte {place + 1} is NUL; expected JSON lines or CSV in UTF-8", path=path)
