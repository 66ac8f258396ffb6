"""Answers that prove whose they are: what the soak's client orders in a prompt, its engine tells and its judge expects.

An order names a request, how many pieces its answer has and how long they are. Every piece holds the request's id and its
own number, and ends with a space, so that a loss, a repetition or another request's piece shows.
"""

import hashlib
import re
from dataclasses import dataclass

ORDER = re.compile(r"soak:([0-9a-f]{12}):(\d+):(\d+);")
_PIECE = re.compile(r"([0-9a-f]{12})\.(\d+)🙂")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tale:
    """One answer.

    Attributes:
        id: Of its request, 12 hex digits.
        n_pieces: Each is a token.
        n_pad: Characters of each beside its number.
    """

    id: str
    n_pieces: int
    n_pad: int = 0

    @property
    def order(self) -> str:
        """What a prompt begins with."""
        return f"soak:{self.id}:{self.n_pieces}:{self.n_pad};"

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces())

    @property
    def vector(self) -> list[float]:
        """The embedding; exact in any float."""
        return [int(self.id[at : at + 2], 16) / 256 for at in range(0, 12, 2)]

    def pieces(self, start: int = 0) -> list[str]:
        """Return the pieces from one on."""
        return [self._piece(number) for number in range(start, self.n_pieces)]

    def _piece(self, number: int) -> str:
        name = f"{self.id}.{number}"
        # No two alike: a gateway may take a run of one token for a broken engine.
        pad = hashlib.shake_128(name.encode()).hexdigest((self.n_pad + 1) // 2)[: self.n_pad]
        return f"{name}🙂{pad} "


def read_order(text: str) -> Tale | None:
    """Return what a prompt orders; ``None`` when it orders nothing."""
    found = ORDER.search(text)
    return None if found is None else Tale(id=found[1], n_pieces=int(found[2]), n_pad=int(found[3]))


def numbers_in(text: str, tale: Tale) -> tuple[list[int], int]:
    """Return the numbers of the tale's pieces in their order, and how many pieces of other tales there are."""
    found = _PIECE.findall(text)
    numbers = [int(number) for name, number in found if name == tale.id]
    return numbers, len(found) - len(numbers)
