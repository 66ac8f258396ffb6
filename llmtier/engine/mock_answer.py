"""What a mock engine says: the tokens of a request and of its answer.

Pure. An answer that is scripted for the last user text is given as written, cut
at ``max_tokens``. Any other text is echoed, over and over, until the answer has
the asked length: the same request always gets the same answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from llmtier.engine.mock_settings import MockSettings, MockTokenizer

# As OpenAI's /v1/completions: an answer of 16 tokens when the request sets no limit.
_DEFAULT_OUTPUT_TOKENS = 16

# Every character is in exactly one match: joined tokens are the text.
_WORD = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MockAnswer:
    """An answer before it is timed.

    Attributes:
        tokens: At least one; joined they are the text.
        finish_reason: ``stop`` when the answer ended by itself, ``length`` when it was cut.
    """

    tokens: tuple[str, ...]
    finish_reason: str


def split_tokens(text: str, tokenizer: MockTokenizer) -> list[str]:
    """Return the tokens of a text; joined they are the text."""
    return list(text) if tokenizer is MockTokenizer.CHARACTERS else _WORD.findall(text)


def count_tokens(texts: Sequence[str], tokenizer: MockTokenizer) -> int:
    """Return the tokens of a prompt's texts, at least 1."""
    return max(sum(len(split_tokens(text, tokenizer)) for text in texts), 1)


def choose_answer(text: str, settings: MockSettings, *, max_tokens: int | None, ignores_end: bool) -> MockAnswer:
    """Return the answer to the last user text.

    Args:
        text: As the request holds it.
        settings: Scripted answers, tokenizer and output length.
        max_tokens: The request's limit; ``None`` without one.
        ignores_end: Repeat the answer until ``max_tokens`` (vLLM's ``ignore_eos``).
    """
    scripted = settings.answers.get(text)
    source = split_tokens(text if scripted is None else scripted, settings.tokenizer) or ["token"]
    n_natural = settings.output_tokens if scripted is None else len(source)
    n_limit = max_tokens or n_natural or _DEFAULT_OUTPUT_TOKENS
    n_tokens = n_limit if ignores_end or n_natural is None else min(n_natural, n_limit)
    tokens = source[:n_tokens] if n_tokens <= len(source) else _repeat(source, n_tokens, settings.tokenizer)
    is_whole = not ignores_end and n_tokens == n_natural
    return MockAnswer(tokens=tuple(tokens), finish_reason="stop" if is_whole else "length")


def _repeat(source: Sequence[str], n_tokens: int, tokenizer: MockTokenizer) -> list[str]:
    """Repeat tokens; words keep a space between the rounds, so that they count the same when split again."""
    if tokenizer is MockTokenizer.CHARACTERS:
        return list(islice(cycle(source), n_tokens))
    words = [word.strip() or "token" for word in source]
    return [word if n == 0 else f" {word}" for n, word in enumerate(islice(cycle(words), n_tokens))]
