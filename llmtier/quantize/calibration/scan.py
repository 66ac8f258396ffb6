"""Secrets and personal data in one text: a warning, no proof of absence.

Pure. Cheap tests for a character or a word come before each expression. Nothing found is ever returned whole.
"""

from bisect import bisect_left
from itertools import chain

from llmtier.quantize.calibration.credentials import find_credentials
from llmtier.quantize.calibration.findings import Finding, FindingKind, Match, mask
from llmtier.quantize.calibration.personal import find_personal

__all__ = ["Finding", "FindingKind", "scan"]


def scan(text: str) -> tuple[Finding, ...]:
    """Return what in ``text`` looks like a secret or like personal data, in the order of the text.

    Where two readings overlap, secrets win over personal data, and checked numbers over unchecked ones.
    """
    kept: list[Match] = []  # in the order of the text, none overlapping another
    for match in chain(find_credentials(text), find_personal(text)):
        place = bisect_left(kept, match.start, key=start_of)
        if not any(match.overlaps(other) for other in kept[max(0, place - 1) : place + 1]):
            kept.insert(place, match)
    return tuple(Finding(kind=match.kind, masked=mask(text[match.start : match.end])) for match in kept)


def start_of(match: Match) -> int:
    """Return where ``match`` begins."""
    return match.start
