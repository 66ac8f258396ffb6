"""Re-asks in a log: who asked nearly the same again within minutes, and which tier had served the time before.

Reads requests with their key, instant, text and tier, in any order; returns counts by tier for
``prices.with_retries``. That somebody asks again soon says that the answer was of no use (Hassan et al., Beyond
Clicks, CIKM 2013, on reformulated queries). It is a sign and no proof, so whatever looks like a program is left out:
steps of a tool loop, polls, one template filled again and again. Charges nothing itself.
"""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice, pairwise

from llmtier.core.prompt import Message
from llmtier.fit.units import MIN_TELLING_CHARS, normalise
from llmtier.score.text import cut_text, strip_harness

WINDOW_S = 300.0
MIN_JACCARD = 0.8
MAX_ASKS = 5
"""Nearly the same asked more often in one go is a program's doing: a poll, a health check, a template."""

_WORD = re.compile(r"""[^\s?!.,;:'"`]+""")
_DIGITS = re.compile(r"\d+")
_POSTINGS = 8
_CANDIDATES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request of a log; what it does not say is ``None``.

    Attributes:
        key: Who asked.
        arrival_s: When, from any instant that is the same for all rows.
        text: What is compared: of ``comparable_text``, or a digest of the request where the log keeps no text.
        tier: Who answered.
        frame: What must be equal beside the key, such as the digest of the system prompt.
    """

    key: str | None
    arrival_s: float | None
    text: str | None
    tier: str | None
    frame: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRetries:
    """What a tier served, and what came back.

    Attributes:
        n_served: Requests that it answered.
        asked_again_on: Tier to re-asks that it served after this one; each request has at most one.
    """

    n_served: int
    asked_again_on: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_retried(self) -> int:
        """Requests that a re-ask followed."""
        return sum(self.asked_again_on.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """The re-asks of a log.

    Attributes:
        tiers: By name.
        n_keys: Different keys among the requests that count.
        n_unknown: Requests without key, instant, text or tier: nothing can be told of them.
        n_machine: Requests left out because nearly the same was asked more than ``MAX_ASKS`` times in one go.
    """

    tiers: Mapping[str, TierRetries]
    n_keys: int = 0
    n_unknown: int = 0
    n_machine: int = 0

    @property
    def n_served(self) -> int:
        """Requests that count."""
        return sum(tier.n_served for tier in self.tiers.values())


def comparable_text(messages: Sequence[Message]) -> str:
    """Return what two askings of one thing have in common: the words of the last user turn.

    A turn that says little by itself ("go on"), and a request that ends with a tool's result, are compared as a
    whole: their digest is returned, a single word that no other conversation shares.
    """
    turns = [message for message in messages if message.role != "system"]
    if turns and turns[-1].role == "user":
        text = _simplify(cut_text(strip_harness(turns[-1].content)))
        if len(turns) == 1 or len(text) >= MIN_TELLING_CHARS:
            return text
    return _digest("\x1e".join(f"{message.role}\x1f{message.content}" for message in messages))


def frame_of(messages: Sequence[Message]) -> str:
    """Return the digest of the system prompt, whatever numbers and dates it holds; empty without one."""
    system = "\n".join(message.content for message in messages if message.role == "system")
    return _digest(_DIGITS.sub("0", _simplify(system))) if system else ""


def find_retries(rows: Iterable[Asked], *, window_s: float = WINDOW_S) -> Retries:
    """Return, for each tier, how many of its requests were asked again.

    A request is a re-ask when its key, in its frame, asked nearly the same at most ``window_s`` before: the same
    words, or word sets whose Jaccard similarity is at least ``MIN_JACCARD`` while their numbers agree. In a chain
    each link is charged to the tier that served the link before.

    Args:
        rows: In any order: the result does not depend on it.
        window_s: At least 0.
    """
    n_rows = 0
    known: list[_Known] = []
    for row in rows:
        n_rows += 1
        if row.key is None or row.arrival_s is None or row.text is None or row.tier is None:
            continue
        if math.isfinite(row.arrival_s):
            known.append((row.key, row.frame, row.arrival_s, row.text, row.tier))
    known.sort()
    tally = _Tally()
    for _, group in groupby(known, key=lambda row: row[:2]):
        for thread in _find_threads(list(group), window_s):
            tally.add(thread)
    return tally.result(n_unknown=n_rows - len(known), n_keys=len({row[0] for row in known}))


_Known = tuple[str, str, float, str, str]
"""Key, frame, arrival, text, tier: in this order they are sorted."""


class _Tally:
    """Counts threads: askings of nearly the same, oldest first."""

    def __init__(self) -> None:
        self._served: Counter[str] = Counter()
        self._again: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._n_machine = 0

    def add(self, thread: Sequence[str]) -> None:
        """Count the tiers of one thread."""
        if len(thread) > MAX_ASKS:
            self._n_machine += len(thread)
            return
        self._served.update(thread)
        for before, after in pairwise(thread):
            self._again[before][after] += 1

    def result(self, *, n_unknown: int, n_keys: int) -> Retries:
        """Return the counts."""
        tiers = {
            tier: TierRetries(n_served=n, asked_again_on=dict(sorted(self._again.get(tier, {}).items())))
            for tier, n in sorted(self._served.items())
        }
        return Retries(tiers=tiers, n_keys=n_keys, n_unknown=n_unknown, n_machine=self._n_machine)


def _find_threads(rows: Sequence[_Known], window_s: float) -> Iterator[list[str]]:
    """Yield the tiers of each thread of one key's requests, which come sorted by arrival."""
    if all(later[2] - earlier[2] > window_s for earlier, later in pairwise(rows)):
        yield from ([row[4]] for row in rows)
        return
    index = _Index(rows, window_s)
    threads: list[list[int]] = []
    thread_of: list[list[int]] = []
    for place, row in enumerate(rows):
        found = index.find_latest(place)
        thread = None if found is None else thread_of[found]
        if thread is None or rows[thread[-1]][2] >= row[2]:  # what came at the same instant is no answer to it
            thread = []
            threads.append(thread)
        thread.append(place)
        thread_of.append(thread)
        index.add(place)
    for thread in threads:
        yield [rows[place][4] for place in thread]


class _Index:
    """Finds the latest similar request of one key by the rarest words of each.

    Two sets of Jaccard similarity s share a word among the first n - ceil(s n) + 1 of either, whatever the order
    of all words (prefix filtering: Chaudhuri et al. 2006; Bayardo et al. 2007); the rarest first leave the fewest to
    compare. Of each word the last ``_POSTINGS`` requests are looked at, of all words ``_CANDIDATES``: that bounds
    the time where a key fills one template.
    """

    def __init__(self, rows: Sequence[_Known], window_s: float) -> None:
        self._rows = rows
        self._window_s = window_s
        self._words = [frozenset(row[3].split()) for row in rows]
        n_with = Counter(chain.from_iterable(self._words))
        rank = {word: n for n, word in enumerate(sorted(n_with, key=lambda word: (n_with[word], word)))}
        self._prefixes = [sorted(map(rank.__getitem__, words))[: _prefix_length(len(words))] for words in self._words]
        numbers = frozenset(filter(_DIGITS.search, n_with))
        self._numbers = [words & numbers for words in self._words]
        self._last_with: dict[str, list[int]] = {}
        self._postings: dict[int, list[int]] = {}

    def add(self, place: int) -> None:
        """Let a request be found."""
        self._last_with.setdefault(self._rows[place][3], []).append(place)
        for word in self._prefixes[place]:
            self._postings.setdefault(word, []).append(place)

    def find_latest(self, place: int) -> int | None:
        """Return the latest similar request before this one's instant and within the window."""
        same = next(
            (at for at in reversed(self._last_with.get(self._rows[place][3], ())) if self._is_before(at, place)), None
        )
        if same is not None and not self._is_recent(same, place):
            same = None
        least = -1 if same is None else same
        for at in sorted(self._candidates(place), reverse=True):
            if at <= least:
                break
            if self._is_similar(at, place):
                return at
        return same

    def _find_equal(self, place: int) -> int | None:
        for at in reversed(self._last_with.get(self._rows[place][3], ())):
            if self._is_before(at, place):
                return at if self._is_recent(at, place) else None
        return None

    def _candidates(self, place: int) -> set[int]:
        found: set[int] = set()
        for word in self._prefixes[place]:
            for at in islice(reversed(self._postings.get(word, ())), _POSTINGS):
                if not self._is_recent(at, place):
                    break
                if self._is_before(at, place):
                    found.add(at)
            if len(found) >= _CANDIDATES:
                break
        return found

    def _is_before(self, at: int, place: int) -> bool:
        return self._rows[at][2] < self._rows[place][2]

    def _is_recent(self, at: int, place: int) -> bool:
        return self._rows[place][2] - self._rows[at][2] <= self._window_s

    def _is_similar(self, at: int, place: int) -> bool:
        one, other = self._words[at], self._words[place]
        sizes = sorted((len(one), len(other)))
        if sizes[0] < _least_shared(sizes[1]) or self._numbers[at] != self._numbers[place]:
            return False
        n_shared = len(one & other)
        return n_shared >= _least_shared(len(one) + len(other) - n_shared)


def _prefix_length(n_words: int) -> int:
    return n_words - _least_shared(n_words) + 1


def _least_shared(n_words: int) -> int:
    """Return how many of so many words two sets must share; 0.8 x 35 is 28, though floats say more."""
    return math.ceil(round(MIN_JACCARD * n_words, 6))


def _simplify(text: str) -> str:
    """Return the words of a text without case and punctuation; one of marks alone stays itself."""
    plain = normalise(text)
    return " ".join(_WORD.findall(plain)) or plain


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
