"""How far an answer agrees with the reference tier's: for logs in which nobody wrote what would have been right.

Pure; two texts in, a score in [0, 1] out. Never raises on what a model wrote. What agrees need not be
right, and two right answers in other words agree only in part: see docs/replay.md.
"""

import re
import unicodedata
from collections import Counter
from itertools import islice
from typing import assert_never

from llmtier.core.prompt import AnswerScorer
from llmtier.evaluate.answers import first_json, score_answer

SHORT_WORDS = 5
"""Answers of at most so many words agree wholly or not at all: a share of common words would mean nothing."""

MAX_TOKENS = 20_000
"""Tokens of an answer that are compared."""

# Around an answer these change nothing: quotes, markdown, a full stop. Signs, brackets, "#" and "+" may.
_TRIM = " \t\n\r.,;:!?\"'`*_\u2018\u2019\u201c\u201d\u00ab\u00bb\u3002"
# Scripts written without spaces count by character; else a word, or any one mark, for marks are what code is made of.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_NUMBER = re.compile(
    r"[$\u20ac\u00a3]?\s*[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?\s*%?"
)
_FENCED = re.compile(r"```\w*\s*\n(.*?)\n?```", re.DOTALL)


def score_agreement(scorer: AnswerScorer, reference: str, text: str) -> float:
    """Return how far ``text`` agrees with ``reference``; the first of these rules that fits decides.

    1. The same after trimming, Unicode NFC, case folding and one space for each run of them: 1.
    2. The row asks for a number or JSON, or the reference is nothing else: 1 when ``text`` gives the same, else 0,
       as ``score_answer`` compares.
    3. Both have at most ``SHORT_WORDS`` words: 0.
    4. The F1 of their tokens: twice what they share over what both have together.

    Args:
        scorer: Of the row; ``exact``, which is also what a row has that names none, decides nothing.
        reference: What the reference tier answered.
        text: What another tier answered.
    """
    left, right = _normalize(reference), _normalize(text)
    if left == right:
        return 1.0
    wanted = _wanted_value(scorer, reference)
    if wanted is not None:
        return score_answer(*wanted, text)
    left_tokens, right_tokens = _tokens(left), _tokens(right)
    if max(_count_words(left_tokens), _count_words(right_tokens)) <= SHORT_WORDS:
        return 0.0
    return _f1(left_tokens, right_tokens)


def _wanted_value(scorer: AnswerScorer, reference: str) -> tuple[AnswerScorer, str] | None:
    """Return how to compare by value, and with what; ``None`` for prose and where the reference holds no value."""
    match scorer:
        case AnswerScorer.NUMBER:
            return (scorer, reference) if score_answer(scorer, reference, reference) == 1.0 else None
        case AnswerScorer.JSON:
            value = first_json(reference)
            return None if value is None else (scorer, value)
        case AnswerScorer.EXACT:
            return _lone_value(reference)
        case _:
            assert_never(scorer)


def _lone_value(reference: str) -> tuple[AnswerScorer, str] | None:
    """Return the number or the JSON container that ``reference`` is, when it is nothing else."""
    trimmed = reference.strip(_TRIM)
    if trimmed and _NUMBER.fullmatch(trimmed):
        return (AnswerScorer.NUMBER, reference)
    fenced = _FENCED.fullmatch(reference.strip())
    body = (fenced.group(1) if fenced else reference).strip()
    is_container = body[:1] + body[-1:] in {"{}", "[]"}
    return (AnswerScorer.JSON, body) if is_container and first_json(body) == body else None


def _normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).strip(_TRIM)


def _tokens(text: str) -> list[str]:
    return [found.group() for found in islice(_TOKEN.finditer(text), MAX_TOKENS)]


def _count_words(tokens: list[str]) -> int:
    return sum(token.isalnum() for token in tokens)


def _f1(left: list[str], right: list[str]) -> float:
    n_common = (Counter(left) & Counter(right)).total()
    return 2 * n_common / (len(left) + len(right)) if n_common else 0.0
