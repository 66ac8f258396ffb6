"""The ways to score an answer; light, for the command line's help names them."""

from enum import StrEnum


class ScoreBy(StrEnum):
    """What an answer is held against."""

    REFERENCE = "reference"
    """The row's reference answer."""
    AGREEMENT = "agreement"
    """The answer of a reference tier."""
    JUDGE = "judge"
    """A model's verdict."""
