"""Rows that are not independent of each other, made into units that are.

Reads labelled prompts, losses and weights; returns sums by unit for ``stats.betting``. A test of a mean needs
units that say nothing of each other: a prompt asked twice, or two requests of one conversation, are one. Splits
and tests nothing.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.core.prompt import LabelledPrompt, Prompt

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

MIN_TELLING_CHARS = 24
"""A shorter turn ("go on", "hello") is no sign that two conversations are one."""

_MARKS = re.compile(r"""[\s?!.,;:'"`]+""")
"""Signs such as + and < are kept: they make other questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Sums over the rows of each unit.

    Attributes:
        losses: Of weight x loss, one column a candidate, shape (n_units, n_candidates).
        masses: Of weights, shape (n_units,).
    """

    losses: Matrix
    masses: Vector

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self.masses)

    def take(self, places: NDArray[np.intp]) -> "Units":
        """Return the units at ``places``, in that order."""
        return Units(losses=self.losses[places], masses=self.masses[places])

    def shuffled(self, seed: int) -> "Units":
        """Return the units in an order that depends on their number and the seed alone."""
        return self.take(np.random.default_rng(seed).permutation(len(self)))


def group_rows(labelled: Sequence[LabelledPrompt]) -> NDArray[np.intp]:
    """Return the unit of each row, numbered by first appearance, shape (n,).

    Rows share a unit when their texts differ only in case, punctuation and spaces, or when they belong to
    one conversation; also when a chain of such pairs links them.
    """
    leaders = list(range(len(labelled)))
    first_with: dict[str, int] = {}
    for row, item in enumerate(labelled):
        for key in _keys(item.prompt):
            one, other = _leader(leaders, row), _leader(leaders, first_with.setdefault(key, row))
            leaders[max(one, other)] = min(one, other)
    roots = [_leader(leaders, row) for row in range(len(labelled))]
    return np.unique(np.array(roots, dtype=np.intp), return_inverse=True)[1].astype(np.intp)


def sum_units(losses: Matrix, weights: Vector, groups: NDArray[np.intp]) -> Units:
    """Return the sums by unit; a row of weight 1 with a unit of its own stays as it is.

    Args:
        losses: Of each row and candidate, shape (n, n_candidates).
        weights: Inverse inclusion probabilities, positive, shape (n,).
        groups: Unit of each row, from 0 without a hole, shape (n,).
    """
    n_units = int(groups.max(initial=-1)) + 1
    summed = np.zeros((n_units, losses.shape[1]))
    np.add.at(summed, groups, losses * weights[:, np.newaxis])
    masses = np.bincount(groups, weights=weights, minlength=n_units)
    return Units(losses=summed, masses=masses.astype(np.float64))


def normalise(text: str) -> str:
    """Return ``text`` in one case, with every run of white space as one space: what counts as the same prompt."""
    return re.sub(r"\s+", " ", text).strip().casefold()


def _keys(prompt: Prompt) -> Iterator[str]:
    """Yield what two rows of one unit have in common at least one of."""
    turns = [message for message in prompt.messages if message.role != "system"]
    last = _simplify(prompt.last_user_text)
    if len(turns) <= 1:
        yield last
        return
    if len(last) >= MIN_TELLING_CHARS:
        yield last
    opening = _simplify(turns[0].content)
    yield opening if len(opening) >= MIN_TELLING_CHARS else f"{opening}\n{_simplify(turns[1].content)}"


def _simplify(text: str) -> str:
    """Return a text that near-duplicates share; one of marks alone stays itself."""
    plain = normalise(text).casefold()
    return _MARKS.sub(" ", plain).strip() or plain


def _leader(leaders: list[int], row: int) -> int:
    """Return the first row of a unit; shortens the way there."""
    while leaders[row] != row:
        leaders[row] = leaders[leaders[row]]
        row = leaders[row]
    return row
