"""What a scan found, without giving it away, and where.

Pure vocabulary of ``credentials``, ``personal`` and ``scan``.
"""

from dataclasses import dataclass
from enum import StrEnum

SHOWN = 3
SHOWN_SHARE = 4  # at most a quarter is shown: three of a password's six characters would be half of it


class FindingKind(StrEnum):
    """What a piece of text seems to be."""

    API_KEY = "api_key"
    PRIVATE_KEY = "private_key"
    PASSWORD = "password"  # noqa: S105  the name of a kind
    JWT = "jwt"
    EMAIL = "email"
    PHONE = "phone"
    IBAN = "iban"
    CREDIT_CARD = "credit_card"
    IP_ADDRESS = "ip_address"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One place that should not go into a calibration set unseen.

    Attributes:
        kind: What it seems to be.
        masked: Its first characters, three at most, and its length; never the whole.
    """

    kind: FindingKind
    masked: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Where in a text a finding lies: characters ``start`` to ``end``."""

    kind: FindingKind
    start: int
    end: int

    def overlaps(self, other: "Match") -> bool:
        """Tell whether the two share a character."""
        return self.start < other.end and other.start < self.end


def mask(secret: str) -> str:
    """Return what may be shown of ``secret``."""
    shown = secret[: min(SHOWN, len(secret) // SHOWN_SHARE)]
    return f"{shown}… ({len(secret)} characters)"
