"""Compare answers with reference answers: text in, a score in [0, 1] out.

Pure, and never raises on what a model wrote: an answer that cannot be read
scores 0. A reference answer that cannot be read is the user's mistake and is to
be found before anything is asked: ``check_reference``.
"""

import itertools
import json
import re
import unicodedata
from collections import deque
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import assert_never

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import AnswerScorer, Prompt

# A sign after a word character is a minus between two numbers; comma, underscore and no-break spaces part thousands.
_NUMBER = re.compile(
    r"(?:(?<![\w.])[-+])?"
    r"(?:\d{1,3}(?:[,_\u00a0\u202f]\d{3})+(?!\d)|\d+|(?<!\d)(?=\.\d))"
    r"(?:\.\d+)?(?:[eE][-+]?\d+)?"
)
_THOUSANDS_MARKS = str.maketrans("", "", ",_\u00a0\u202f")
_MINUS_SIGNS = str.maketrans(dict.fromkeys("\u2212\ufe63\uff0d", "-"))

_CONTAINER_START = re.compile(r"[\[{]")
_SCALAR_START = re.compile(r'"|(?<![\w.+-])(?:-?\d|true\b|false\b|null\b)')
_MAX_JSON_STARTS = 64  # each start may read the whole text; bounds junk such as thousands of brackets


def score_answer(scorer: AnswerScorer, expected: str, text: str) -> float:
    """Return 1.0 when ``text`` gives the ``expected`` answer, else 0.0.

    Args:
        scorer: ``exact``: the same after trimming, Unicode NFC and one space for each run of them.
            ``number``: the last number in both is the same; thousands marks, signs and exponents are read.
            ``json``: the first JSON value in ``text``, prose and code fences around it skipped, equals
            ``expected`` in depth; ``3`` equals ``3.0`` but not ``true``, and keys have no order.
        expected: The reference answer.
        text: What the model wrote.
    """
    match scorer:
        case AnswerScorer.EXACT:
            return float(_normalize(expected) == _normalize(text))
        case AnswerScorer.NUMBER:
            return _score_number(expected, text)
        case AnswerScorer.JSON:
            return _score_json(expected, text)
        case _:
            assert_never(scorer)


def check_reference(prompt: Prompt, *, path: Path | str | None = None, line: int | None = None) -> None:
    """Refuse a reference answer that its own scorer would never accept; none at all is fine.

    Raises:
        InputFileError: The answer is no number or no JSON document; ``path`` and ``line`` go into the message.
    """
    if prompt.answer is None or score_answer(prompt.scorer, prompt.answer, prompt.answer) == 1.0:
        return
    raise InputFileError(
        f"prompt {prompt.id}: its answer {prompt.answer[:80]!r} cannot be read by the scorer '{prompt.scorer.value}'; "
        "correct the answer or choose another scorer",
        path=path,
        line=line,
    )


def _normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _score_number(expected: str, text: str) -> float:
    wanted, given = _last_number(expected), _last_number(text)
    return float(wanted is not None and wanted == given)


def _last_number(text: str) -> Decimal | None:
    found = deque(_NUMBER.finditer(text.translate(_MINUS_SIGNS)), maxlen=1)
    if not found:
        return None
    try:
        return Decimal(found[0].group().translate(_THOUSANDS_MARKS))
    except InvalidOperation:  # an exponent beyond what Decimal holds
        return None


def _score_json(expected: str, text: str) -> float:
    try:
        wanted = _DECODER.decode(expected)
        given, _, _ = _first_value(text, _CONTAINER_START if _is_container(wanted) else _SCALAR_START)
        return float(_same(wanted, given))
    except (ValueError, InvalidOperation, RecursionError):
        return 0.0


def first_json(text: str) -> str | None:
    """Return the text of the first JSON object or list in ``text``, else of the first JSON value, else ``None``."""
    for start in (_CONTAINER_START, _SCALAR_START):
        try:
            _, begin, end = _first_value(text, start)
        except (ValueError, RecursionError):
            continue
        return text[begin:end]
    return None


def _first_value(text: str, start: re.Pattern[str]) -> tuple[object, int, int]:
    """Return the first value that begins with ``start``, and where it lies."""
    for found in itertools.islice(start.finditer(text), _MAX_JSON_STARTS):
        try:
            value, end = _DECODER.raw_decode(text, found.start())
        except (ValueError, InvalidOperation):
            continue
        return value, found.start(), end
    raise ValueError("no JSON value in the answer")


def _is_container(value: object) -> bool:
    return isinstance(value, dict | list)


def _same(left: object, right: object) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right  # to Python, True == 1
    return left == right


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


# Decimals compare exactly and have no limit of digits; NaN and Infinity, which Python would read, are refused.
_DECODER = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse_constant)
