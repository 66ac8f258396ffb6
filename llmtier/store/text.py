"""Text that files can hold: lone halves of surrogate pairs become U+FFFD.

Python strings may hold them (a model's broken escape, a file name that is not UTF-8); UTF-8 can
not, and losing an hour's profile to one character would be worse.
"""

from typing import Any


def replace_surrogates(value: Any) -> Any:  # noqa: ANN401 - walks plain data of any shape
    """Return plain data with every lone surrogate replaced; whole pairs become their character."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
        case list() | tuple():
            return [replace_surrogates(item) for item in value]
        case _:
            return value
