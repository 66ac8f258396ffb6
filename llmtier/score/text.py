"""The text of a prompt that scorers read: the last user turns, without what a harness put around them.

Pure. A conversation's last turn is often "yes, go on": earlier turns of the user are read too while they
fit. Blocks that coding assistants add to every turn say nothing about how hard it is, and are left out.
"""

from llmtier.core.prompt import Message, Prompt

MAX_CHARS = 4_000
"""Characters of a prompt that are read; of a longer one the first and the last half of this."""

TURNS_CHARS = 2_000
"""Earlier user turns are read while all of them together are no longer than this."""

HARNESS_TAGS = (
    "system-reminder",
    "environment_details",
    "environment_context",
    "user_info",
    "project_layout",
    "additional_data",
    "attached_files",
    "ide_selection",
    "ide_opened_file",
    "command-name",
    "command-message",
    "command-args",
    "local-command-stdout",
)
"""Elements that coding assistants wrap around their own additions to a user's turn."""


def scored_text(prompt: Prompt) -> str:
    """Return what is scored of a prompt, at most ``MAX_CHARS`` + 1 characters.

    The turns of the user, oldest first and parted by a line end; without any, the last turn whoever spoke.
    """
    return cut_text(whole_text(prompt))


def whole_text(prompt: Prompt) -> str:
    """Return the same, however long it is."""
    messages = prompt.messages
    return strip_harness(messages[0].content) if len(messages) == 1 else _last_turns(messages)


def cut_text(text: str) -> str:
    """Return ``text``, or its head and tail when it is longer than ``MAX_CHARS``."""
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]}\n{text[-half:]}"


def strip_harness(text: str) -> str:
    """Return ``text`` without the blocks that a harness added, or unchanged when nothing else is in it."""
    if "<" not in text or "</" not in text:  # one character is found ten times as fast as two
        return text
    stripped = text
    for tag in HARNESS_TAGS:
        stripped = _without(stripped, f"<{tag}>", f"</{tag}>")
    return text if stripped == text or not stripped.strip() else stripped.strip()


def _last_turns(messages: tuple[Message, ...]) -> str:
    turns: list[str] = []
    n_chars = 0
    for message in reversed(messages):
        if message.role != "user":
            continue
        turn = strip_harness(message.content)
        if turns and n_chars + len(turn) > TURNS_CHARS:
            break
        turns.append(turn)
        n_chars += len(turn)
    return "\n".join(reversed(turns)) if turns else strip_harness(messages[-1].content)


def _without(text: str, opening: str, closing: str) -> str:
    """Cut out every block; one that is never closed stays."""
    start = text.find(opening)
    if start < 0:
        return text
    kept, place = [], 0
    while start >= 0:
        end = text.find(closing, start)
        if end < 0:
            break
        kept.append(text[place:start])
        place = end + len(closing)
        start = text.find(opening, place)
    kept.append(text[place:])
    return "".join(kept)
