"""Whether a stream that an engine calls a success is one; the signs are those of ``answer_check.py``.

Fed with whole events as the relay passes them on, it looks into the first few, and afterwards only compares the first
bytes of each chunk's text with those of the one before: a healthy stream costs some 0.3 us a chunk. Keeps no text but
the last chunk's.
"""

import re

import msgspec

from llmtier.serve.answer_check import (
    FEWEST_REPEATS,
    REPEATED_SHARE,
    UNREADABLE,
    AnswerUsage,
    Choice,
    Complaint,
    Expected,
    has_bare_nan,
    has_nan,
    is_absent,
    is_worthless,
)

_N_LOOKED_INTO = 8
"""Chunks with text that are decoded: NaN comes from the first token on, or not at all."""

_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_TEXT = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments|delta)"\s*:\s*"(?=[^"])')
_OPENINGS = (b"data:", b"event:", b"id:", b"retry:", b":", b"\n")
"""What an event begins with; anything else is a part of one, or no SSE."""

_STRING = re.compile(rb'(?:[^"\\]|\\.)*')


_BUSY = frozenset({408, 429})


class _Error(msgspec.Struct, gc=False):
    code: int | str | None = None


class _Response(msgspec.Struct, gc=False):
    error: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct, gc=False):
    type: str | None = None
    error: msgspec.Raw = msgspec.Raw()
    response: _Response | None = None
    choices: list[Choice] | None = None
    usage: AnswerUsage | None = None


_EVENT = msgspec.json.Decoder(_Event)
_ERROR = msgspec.json.Decoder(_Error)
_PLAIN = Expected()


class StreamCheck:
    """The state of one stream.

    Complaints come once, the first there is: for counting, and for another tier while nothing was sent. A run of one
    token is known after 64 chunks, so the client has had them; it is not to be cut off, since somebody may have asked
    for it, but its end is to be told as what it is, as that of a whole answer is.

    Args:
        expected: What the request allows the answer to be.

    Attributes:
        complaint: What is wrong; ``None`` so far.
        has_text: Whether anything came that a client can use.
    """

    __slots__ = (
        "_ends",
        "_error",
        "_expected",
        "_head",
        "_is_unclear",
        "_n_chunks",
        "_n_looks",
        "_previous",
        "_run",
        "_start",
        "_unit",
        "_usage",
        "complaint",
        "has_text",
    )

    def __init__(self, expected: Expected = _PLAIN) -> None:
        self.complaint: Complaint | None = None
        self.has_text = False
        self._expected = expected
        self._ends: dict[int, Choice] = {}
        self._error = msgspec.Raw()
        self._is_unclear = False  # an event could not be read, or belongs to neither chat nor completions
        self._usage: AnswerUsage | None = None
        self._n_looks = 0
        self._n_chunks = 0  # with text
        self._head = b""  # a chunk before its text; empty while each chunk is looked into
        self._start = b""  # of the last chunk's text
        self._previous = b""  # the last chunk, where ``_unit`` is not known
        self._unit = b""  # what the last chunk's text is a repetition of
        self._run = 0  # chunks in a row that are

    @property
    def is_worthless(self) -> bool:
        """Whether what came is known to be none; an error that the engine tells of is its own word."""
        return self.complaint is not None and self.complaint is not Complaint.ERROR

    @property
    def has_failed(self) -> bool:
        """Whether its engine tells of an error that is not the request's: any but a 4xx, and those that pass."""
        if self.complaint is not Complaint.ERROR:
            return False
        try:
            code = _ERROR.decode(self._error).code
        except UNREADABLE:
            return True
        return not isinstance(code, int) or not 400 <= code < 500 or code in _BUSY

    @property
    def has_begun(self) -> bool:
        """Whether something came that a client can use, or that is not understood here."""
        return self.has_text or self._is_unclear or self.complaint is Complaint.ERROR

    def feed(self, events: bytes) -> Complaint | None:
        """Take the events that came; return the complaint if it is they that give rise to it."""
        head = self._head
        at = len(head)
        if len(events) >= 2 * at or not events.startswith(head):  # the first, several, or of another form
            return self._look(events)
        start = events[at : at + 2]
        if start[1:] == b'"':  # one character
            start = start[:1] * 2
        if start == self._start:
            return self._compare(events, at)
        self._n_chunks += 1
        self._start, self._previous, self._unit, self._run = start, events, b"", 1
        return None

    def finish(self, n_tokens: int | None = None) -> Complaint | None:
        """Return the complaint if it is the end, as it should be, of a stream that brought nothing.

        Args:
            n_tokens: Tokens of the answer by the engine's count, where the events were fed without it.
        """
        if self.complaint is not None or self.has_text or self._is_unclear:
            return None
        usage = self._usage or AnswerUsage(completion_tokens=n_tokens)
        if is_worthless(list(self._ends.values()), usage, self._expected):
            return self._complain(Complaint.EMPTY)
        return None

    def _look(self, events: bytes) -> Complaint | None:
        self._unit = self._unit or _read_text(self._previous, len(self._head))
        for event in _BOUNDARY.split(events) if b"\r" in events else events.split(b"\n\n"):
            head = self._head
            if head and event.startswith(head):
                complaint = self._compare(event, len(head))
            else:
                complaint = self._inspect(event) if event else None
            if complaint is not None:
                return complaint
        return None

    def _inspect(self, event: bytes) -> Complaint | None:
        found = _TEXT.search(event)
        self._is_unclear = self._is_unclear or not event.startswith(_OPENINGS)
        if found is None or self._n_looks < _N_LOOKED_INTO or b'"error"' in event:
            complaint = self._read(_join_data(event))
            if complaint is not None:
                return self._complain(complaint)
        if found is None:
            return None
        self.has_text = True
        self._n_looks += 1
        if self._n_looks >= _N_LOOKED_INTO:
            self._head = event[: found.end()]
        return self._compare(event, found.end())

    def _read(self, payload: bytes) -> Complaint | None:
        if payload in (b"", b"[DONE]"):
            return None
        try:
            event = _EVENT.decode(payload)
        except UNREADABLE:
            self._is_unclear = True
            return Complaint.NAN if has_bare_nan(payload) else None
        error = event.error if event.response is None else event.response.error
        if event.type == "error" or not is_absent(error):
            self._error = error
            return Complaint.ERROR
        self._is_unclear = self._is_unclear or event.type is not None
        self._usage = event.usage or self._usage
        return self._take(event.choices or [])

    def _take(self, choices: list[Choice]) -> Complaint | None:
        for choice in choices:
            if self._n_looks < _N_LOOKED_INTO and has_nan(choice.logprobs, self._expected):
                return Complaint.NAN
            self.has_text = self.has_text or not choice.is_empty
            if choice.finish_reason is not None:
                self._ends[choice.index] = choice
        return None

    def _compare(self, event: bytes, at: int) -> Complaint | None:
        """Count a chunk whose text begins at ``at``, and whether it repeats what came before."""
        text = _read_text(event, at)
        if not text:
            return None
        self._n_chunks += 1
        unit = self._unit or _read_text(self._previous, len(self._head))
        if unit and text + unit == unit + text:  # only repetitions of one string commute
            self._unit = min(unit, text, key=len)
            self._run += 1
        else:
            self._unit, self._run = text, 1
        start = (text + text)[:2]  # two of them may come as one chunk
        self._start = start if start[1:] != b'"' else start[:1] * 2  # as ``feed`` has it
        if self._run >= FEWEST_REPEATS and self._run >= REPEATED_SHARE * self._n_chunks:
            return self._complain(Complaint.REPETITION)
        return None

    def _complain(self, complaint: Complaint) -> Complaint | None:
        if self.complaint is not None:
            return None
        self.complaint = complaint
        return complaint


def _read_text(event: bytes, at: int) -> bytes:
    """Return the text that begins at ``at``, as it is written in JSON."""
    text = event[at : event.find(b'"', at)]
    if text.endswith(b"\\"):  # that quote is of the text
        found = _STRING.match(event, at)
        return b"" if found is None else found[0]
    return text


def _join_data(event: bytes) -> bytes:
    return b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
