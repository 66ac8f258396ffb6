"""Requests of asked lengths: random words, counted in tokens by the engine itself.

Pure. No tokenizer is needed: a handful of probes tells how many tokens the engine counts for so many
words (``WordBudget``), whatever its model and chat template. A length is thereby met on average; how
long a prompt really was says the ``usage`` of its answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmtier.core.prompt import Message
from llmtier.profile.lengths import SyntheticLengths
from llmtier.profile.workload import RequestStyle, WorkItem
from llmtier.store.arrivals import Arrival

_WORD_TEXT = """
    able acid aged also area army away baby back ball band bank base bath bear beat been beer bell belt best bill bird
    blow blue boat body bomb bond bone book boom born boss both bowl bulk burn bush busy call calm came camp card care
    case cash cast cell chat chip city club coal coat code cold come cook cool cope copy core cost crew crop dark data
    date dawn days dead deal dean dear debt deep deny desk dial diet disc disk does done door dose down draw drew drop
    drug dual duke dust duty each earn ease east easy edge else even ever evil exit face fact fail fair fall farm fast
    fate fear feed feel feet fell felt file fill film find fine fire firm fish five flat flow food foot ford form fort
    four free from fuel full fund gain game gate gave gear gift girl give glad goal goes gold golf gone good gray grew
    grey grow gulf hair half hall hand hang hard harm hate have head hear heat held help here hero high hill hire hold
    hole holy home hope host hour huge hung hunt hurt idea inch into iron item join jump jury just keen keep kick kind
    king knee knew know lack lady laid lake land lane last late lead left less life lift like line link list live load
    loan lock long look lord lose loss lost love luck made mail main make male many mark mass meal mean meat meet menu
"""

WORDS = tuple(_WORD_TEXT.split())
"""Short common words, which most tokenizers know as one token each."""

PROBE_WORDS = (1, 61, 62, 64, 65)
"""Lengths in words of the probes: together each word once, so that the mean is that of all words; rising."""

_SERIAL_WORDS = 3  # 253 ** 3 = 16 million prompts before a number comes again


@dataclass(frozen=True, slots=True, kw_only=True)
class WordBudget:
    """How many tokens an engine counts for a prompt of random words.

    Attributes:
        tokens_fixed: Of the chat template around them.
        tokens_per_word: Of each word.
    """

    tokens_fixed: float
    tokens_per_word: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.tokens_fixed) and np.isfinite(self.tokens_per_word) and self.tokens_per_word > 0):
            raise ValueError(f"words must take tokens, got {self.tokens_fixed} + {self.tokens_per_word} per word")

    def n_words(self, n_tokens: int) -> int:
        """Return how many words come nearest to a prompt of ``n_tokens``; at least one."""
        return max(1, round((n_tokens - self.tokens_fixed) / self.tokens_per_word))

    def n_tokens(self, n_words: int) -> int:
        """Return how long a prompt of ``n_words`` is on average."""
        return max(1, round(self.tokens_fixed + self.tokens_per_word * n_words))


def fit_word_budget(probes: Sequence[tuple[int, int]]) -> WordBudget:
    """Return the straight line through (words sent, prompt tokens counted) of two or more probes, by least squares.

    Raises:
        ValueError: All probes had the same length, or the count does not grow with the words.
    """
    n_words, n_tokens = (np.array(side, dtype=np.float64) for side in zip(*probes, strict=True))
    spread = n_words - n_words.mean()
    if not spread.any():
        raise ValueError("counting tokens per word takes probes of at least two lengths")
    slope = float(spread @ n_tokens / (spread @ spread))
    if slope <= 0:
        raise ValueError(f"the engine's prompt_tokens do not grow with the prompt: {list(probes)}")
    return WordBudget(tokens_fixed=float(n_tokens.mean() - slope * n_words.mean()), tokens_per_word=slope)


def probe_item(n_words: int, *, seed: int, style: RequestStyle) -> WorkItem:
    """Return a request of ``n_words`` words for one token of answer, to ``fit_word_budget`` with its ``usage``.

    The words follow each other in an order of the seed; a probe begins where the shorter ones of ``PROBE_WORDS`` end.
    """
    order = np.random.default_rng(seed).permutation(len(WORDS))
    begin = sum(shorter for shorter in PROBE_WORDS if shorter < n_words)
    text = " ".join(WORDS[order[(begin + place) % len(WORDS)]] for place in range(n_words))
    messages = [Message(role="user", content=text)]
    return WorkItem(
        id=f"probe-{n_words}",
        path=style.path,
        fields=style.fields(messages, max_tokens=1, is_exact=False),
        prompt_id=f"probe-{n_words}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """A part that many prompts begin with, as a system prompt or a document asked about again and again.

    Attributes:
        n_prefixes: How many there are; each request takes one of them at random.
        prefix_tokens: Length of each, part of the prompt's length.
    """

    n_prefixes: int
    prefix_tokens: int

    def __post_init__(self) -> None:
        if self.n_prefixes < 1 or self.prefix_tokens < 1:
            raise ValueError("shared prefixes need n_prefixes and prefix_tokens of at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Random words and how many tokens they are about, the chat template included."""

    content: str
    n_tokens: int


class TextMaker:
    """Makes prompts that differ from their first words on, so that none is served from a prefix cache.

    Args:
        budget: Of the engine.
        seed: Of every word.
        prefix: What prompts share nevertheless; ``None`` for nothing.
    """

    def __init__(self, budget: WordBudget, *, seed: int, prefix: SharedPrefix | None = None) -> None:
        self._budget = budget
        self._rng = np.random.default_rng([seed, 1])  # 1: apart from the lengths of the same seed
        self._serial = int(self._rng.integers(0, len(WORDS) ** _SERIAL_WORDS))
        self._prefixes: list[list[str]] = []
        if prefix is not None:
            n_words = max(1, round(prefix.prefix_tokens / budget.tokens_per_word))
            self._prefixes = [self._own_words(n_words) for _ in range(prefix.n_prefixes)]

    def make(self, n_tokens: int) -> Text:
        """Return a text of about ``n_tokens``: at least one word, and one beyond a shared prefix."""
        n_words = self._budget.n_words(n_tokens)
        shared = self._prefixes[int(self._rng.integers(len(self._prefixes)))] if self._prefixes else []
        words = [*shared, *self._own_words(max(1, n_words - len(shared)))]
        return Text(content=" ".join(words), n_tokens=self._budget.n_tokens(len(words)))

    def _own_words(self, n_words: int) -> list[str]:
        """Return random words; the first three are a running number, the fastest digit first."""
        self._serial += 1
        digits = [self._serial // len(WORDS) ** place % len(WORDS) for place in range(min(_SERIAL_WORDS, n_words))]
        rest = self._rng.integers(0, len(WORDS), n_words - len(digits)).tolist()
        return [WORDS[index] for index in (*digits, *rest)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSource:
    """An endless supply of requests whose lengths follow a law.

    Attributes:
        lengths: Of prompts and answers.
        budget: Of the engine.
        seed: Of lengths and words.
        style: How they are put; answers have exactly the drawn length where the engine can be told so.
        prefix: What prompts share; ``None`` makes each distinct.
    """

    lengths: SyntheticLengths
    budget: WordBudget
    seed: int
    style: RequestStyle = field(default_factory=RequestStyle)
    prefix: SharedPrefix | None = None

    def __iter__(self) -> Iterator[WorkItem]:
        texts = TextMaker(self.budget, seed=self.seed, prefix=self.prefix)
        return make_items(self._pairs(), texts, self.style)

    def _pairs(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, 0])
        while True:
            yield self.lengths.input.draw(rng), self.lengths.output.draw(rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSource:
    """A supply of requests as long as those of a trace, in its order; it begins anew after the last.

    Attributes:
        arrivals: At least one; see ``store.arrivals.read_arrivals``. A length of 0 is asked as 1.
        budget: Of the engine; likewise ``seed style prefix`` as in ``SyntheticSource``.
    """

    arrivals: Sequence[Arrival]
    budget: WordBudget
    seed: int
    style: RequestStyle = field(default_factory=RequestStyle)
    prefix: SharedPrefix | None = None

    def __post_init__(self) -> None:
        if not self.arrivals:
            raise ValueError("a trace needs at least one arrival")

    def __iter__(self) -> Iterator[WorkItem]:
        texts = TextMaker(self.budget, seed=self.seed, prefix=self.prefix)
        return make_items(self._pairs(), texts, self.style)

    def _pairs(self) -> Iterator[tuple[int, int]]:
        while True:
            for arrival in self.arrivals:
                yield max(1, arrival.input_tokens), max(1, arrival.output_tokens)


def make_items(pairs: Iterable[tuple[int, int]], texts: TextMaker, style: RequestStyle) -> Iterator[WorkItem]:
    """Yield a request for each (input tokens, output tokens)."""
    for number, (input_tokens, output_tokens) in enumerate(pairs):
        text = texts.make(input_tokens)
        messages = [Message(role="user", content=text.content)]
        yield WorkItem(
            id=f"synthetic-{number}",
            path=style.path,
            fields=style.fields(messages, max_tokens=output_tokens, is_exact=True),
            prompt_id=f"synthetic-{number}",
            n_input_tokens=text.n_tokens,
            n_output_tokens=style.expected_output_tokens(output_tokens),
        )
