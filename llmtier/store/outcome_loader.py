"""Gathers the outcomes of several files, row by row, and counts what is odd about them.

Holds the rows that are kept, and with a bound 8 bytes for each other row that states an id. ``outcomes`` is the door.
"""

import json
from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import LabelledPrompt
from llmtier.store.columns import ColumnMap
from llmtier.store.logs import text_advice
from llmtier.store.outcome_rows import merge_labelled, parse_labelled
from llmtier.store.prompts import FileRow, adapt, stream_rows
from llmtier.store.sample import Sample

EMPTY_PROMPT = "an empty prompt and are left out"
NO_TEXT = "no text, as the log did not keep it, and are left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A row that is kept; ``source`` counts the paths, ``place`` is ``<file>:<line or row>``."""

    labelled: LabelledPrompt
    source: int
    place: str
    received_at: datetime | None


class OutcomeLoader:
    """Takes paths one after the other.

    Args:
        columns: How the files call our columns.
        max_rows: How many prompts to keep; ``None`` for all.
        seed: Of the choice among them.
        known_tiers: The tiers that scores may be of; ``None`` for any.

    Raises:
        UsageError: ``max_rows`` is less than one.
    """

    def __init__(
        self, *, columns: ColumnMap, max_rows: int | None, seed: int, known_tiers: Collection[str] | None
    ) -> None:
        self.n_read = 0
        self._columns = columns
        self._known_tiers = None if known_tiers is None else frozenset(known_tiers)
        self._sample: Sample[_Kept] = Sample(max_rows=max_rows, seed=seed)
        self._left_out: dict[tuple[Path, str], tuple[int, int]] = {}  # how many, and the number of the first
        self._source = -1
        self._digests = array("Q")

    def read(self, path: Path, *, stem: str | None = None) -> None:
        """Take the rows of one file, or of a folder of traffic logs.

        Args:
            path: The file.
            stem: What the names of rows without an id begin with; ``None`` for the file's stem.

        Raises:
            InputFileError: The file is absent, empty or malformed, an id stands twice in it, or it disagrees
                with an earlier one.
        """
        self._source += 1
        self._digests = array("Q")
        silent: FileRow | None = None
        start: datetime | None = None
        n_texts = 0
        for found in stream_rows(path, columns=self._columns):
            self.n_read += 1
            row = adapt(found)
            if row is None:
                silent = silent or found
                self._count(found, NO_TEXT)
                continue
            n_texts += 1
            received_at = row.values.get("received_at")
            instant = received_at if isinstance(received_at, datetime) else None
            start = instant if start is None or (instant is not None and instant < start) else start
            self._take(row, instant, default_id=None if stem is None else f"{stem}-{row.number}")
        if not n_texts and silent is not None:
            raise InputFileError(text_advice(silent.values), path=path)
        self._set_arrivals(start)
        self._check_repeats(path)

    def rows(self) -> tuple[LabelledPrompt, ...]:
        """Return what is kept, in the order it came."""
        return tuple(kept.labelled for kept in self._sample.values())

    def left_out(self) -> list[str]:
        """Say which rows were left out, a sentence for each file and reason."""
        return [
            f"{path}: {n} {'row has' if n == 1 else 'rows have'} {reason if n > 1 else reason.replace(' are ', ' is ')} "
            f"(first: {first})"
            for (path, reason), (n, first) in self._left_out.items()
        ]

    def _take(self, row: FileRow, received_at: datetime | None, *, default_id: str | None) -> None:
        labelled = parse_labelled(row, default_id=default_id)
        if self._known_tiers is not None and not labelled.scores.keys() <= self._known_tiers:
            raise row.error(_unknown_tier(labelled.scores, self._known_tiers))
        text = labelled.prompt.last_user_text
        if not text or text.isspace():
            self._count(row, EMPTY_PROMPT)
            return
        new = _Kept(
            labelled=labelled, source=self._source, place=f"{row.path.name}:{row.number}", received_at=received_at
        )
        name = labelled.prompt.id
        known = self._sample.get(name)
        if known is None:
            self._sample.offer(name, new, digest=self._digest(row, labelled))
        elif known.source == self._source:
            raise row.error(f"id {name!r} is already that of {known.place}; ids must be unique")
        else:
            self._sample.replace(name, _merge(known, new, row))

    def _digest(self, row: FileRow, labelled: LabelledPrompt) -> int:
        """Return the digest of the id that the row states, or else of its contents, wherever it stands."""
        if not self._sample.is_bounded:
            return 0
        if row.values.get("id") is not None:
            digest = self._sample.digest(f"id {labelled.prompt.id}")
            self._digests.append(digest)
            return digest
        turns = [(message.role, message.content) for message in labelled.prompt.messages]
        return self._sample.digest(f"row {json.dumps([turns, sorted(labelled.scores.items())])}")

    def _count(self, row: FileRow, reason: str) -> None:
        n, first = self._left_out.get((row.path, reason), (0, row.number))
        self._left_out[row.path, reason] = (n + 1, first)

    def _set_arrivals(self, start: datetime | None) -> None:
        """Give the rows of a log that ends here their arrivals since its earliest instant."""
        if start is None:
            return
        for name in self._sample:
            kept = self._sample.get(name)
            if kept is not None and kept.source == self._source and kept.received_at is not None:
                arrival_s = (kept.received_at - start).total_seconds()
                prompt = replace(kept.labelled.prompt, arrival_s=arrival_s)
                self._sample.replace(
                    name, replace(kept, labelled=replace(kept.labelled, prompt=prompt), received_at=None)
                )

    def _check_repeats(self, path: Path) -> None:
        """Refuse an id that stood twice though neither row is kept; reads the file again where digests repeat."""
        import numpy as np

        digests = np.sort(np.frombuffer(self._digests, np.uint64))
        suspects = set(digests[1:][digests[1:] == digests[:-1]].tolist())
        if not suspects:
            return
        first: dict[str, FileRow] = {}
        for found in stream_rows(path, columns=self._columns):
            row = adapt(found)
            name = None if row is None else row.values.get("id")
            if row is None or name is None or self._sample.digest(f"id {name}") not in suspects:
                continue
            if (known := first.setdefault(str(name), row)) is not row:
                place = f"{known.path.name}:{known.number}"
                raise row.error(f"id {str(name)!r} is already that of {place}; ids must be unique")


def describe_rows(rows: Iterable[LabelledPrompt]) -> list[str]:
    """Say what is odd about the rows kept: exact duplicates, tiers of one score only, rows without a score."""
    first: dict[object, str] = {}
    repeated: list[tuple[str, str]] = []
    scores: dict[str, list[float]] = {}  # of each tier: number, least, greatest
    n_rows = n_scored = 0
    for row in rows:
        n_rows += 1
        n_scored += bool(row.scores)
        known = first.setdefault(row.prompt.messages, row.prompt.id)
        if known != row.prompt.id:
            repeated.append((known, row.prompt.id))
        _note_scores(scores, row.scores)
    return [*_describe_repeats(repeated), *_describe_constant(scores), *_describe_unlabelled(n_rows, n_scored)]


def _note_scores(seen: dict[str, list[float]], scores: Mapping[str, float]) -> None:
    for tier, score in scores.items():
        known = seen.setdefault(tier, [0, score, score])
        known[:] = known[0] + 1, min(known[1], score), max(known[2], score)


def _describe_repeats(repeated: list[tuple[str, str]]) -> list[str]:
    if not repeated:
        return []
    first, second = repeated[0]
    what = "1 prompt repeats another" if len(repeated) == 1 else f"{len(repeated)} prompts repeat others"
    return [f"{what} word for word under another id (first: {second!r} is {first!r})"]


def _describe_constant(scores: Mapping[str, list[float]]) -> list[str]:
    return [
        f"all {n:.0f} scores of tier {tier!r} are {least:g}; nothing can be learned about it"
        for tier, (n, least, greatest) in scores.items()
        if n > 1 and least == greatest
    ]


def _describe_unlabelled(n_rows: int, n_scored: int) -> list[str]:
    if n_scored == n_rows:
        return []
    return [f"{n_rows - n_scored} of {n_rows} prompts have no score"]


def _merge(known: _Kept, new: _Kept, row: FileRow) -> _Kept:
    try:
        labelled = merge_labelled(known.labelled, new.labelled)
    except ValueError as exc:
        raise row.error(str(exc)) from exc
    return replace(new, labelled=labelled, received_at=new.received_at if labelled.prompt.arrival_s is None else None)


def _unknown_tier(scores: Iterable[str], known: Collection[str]) -> str:
    tier = next(tier for tier in scores if tier not in known)
    near = get_close_matches(tier, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    return f"scores: tier {tier!r} is not known; {hint}"
