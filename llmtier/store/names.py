"""Names that become folders: which ones are safe."""

import re

TIER_NAME_PATTERN = r"[A-Za-z0-9_@+-][A-Za-z0-9._@+-]{0,99}"


def check_tier_name(name: str) -> str:
    """Return ``name`` when it is safe as a folder name.

    Raises:
        ValueError: It is not; says what is allowed.
    """
    if not re.fullmatch(TIER_NAME_PATTERN, name):
        raise ValueError(
            f"tier name {name!r} must be 1 to 100 of letters, digits and . _ @ + -, and not start with a dot; set 'name'"
        )
    return name
