"""Regular expressions that no text can make slow.

Python's own engine backtracks: one pattern such as ``(a+)+$`` and one prompt of its sender's choosing would
hold up every request of the gateway. The engine here is the one inside Pydantic, Rust's ``regex``: its time
grows with pattern times text and no faster, and it has no look-around and no back-references for that reason.
Syntax: https://docs.rs/regex/latest/regex/#syntax
"""

from collections.abc import Callable

from pydantic_core import SchemaError, SchemaValidator, core_schema

MAX_PATTERN_CHARACTERS = 1_000
"""Time also grows with the pattern; this is far beyond a list of words that people maintain by hand."""


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Return a search for ``pattern`` anywhere in a text.

    Raises:
        ValueError: It is no pattern of this engine, or too long; says what is wrong with it.
    """
    if not 0 < len(pattern) <= MAX_PATTERN_CHARACTERS:
        raise ValueError(f"a pattern must have 1 to {MAX_PATTERN_CHARACTERS} characters, got {len(pattern)}")
    try:
        validator = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except SchemaError as exc:
        raise ValueError(_explain(str(exc))) from exc

    def search(text: str) -> bool:
        # Half a surrogate pair is no UTF-8, and would otherwise hide a whole text from the rule.
        return validator.isinstance_python(text if text.isascii() else text.encode(errors="replace").decode())

    return search


def _explain(said: str) -> str:
    """Return the engine's own words in one line, the drawing of the place left out."""
    reason = next((line for line in reversed(said.splitlines()) if line.strip()), said)
    reason = reason.strip().removeprefix("error: ").removeprefix("SchemaError: ").rstrip(".")
    return f"the pattern is not valid: {reason}; syntax: https://docs.rs/regex/latest/regex/#syntax"
