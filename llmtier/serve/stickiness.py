"""A conversation stays on its tier, so that the engine's prefix cache stays warm.

A bounded table in one process: conversation -> tier, forgotten after a time without a turn, the longest unused
first. Nothing is promised to the client: a tier is kept only while it meets the request's need, and a worker
process that does not know a conversation decides afresh, which costs one cold prefix and no answer's quality. So
workers share no table and take no lock. Among replicas of one tier every worker picks the same one, by
rendezvous hashing of the conversation. Hashes text; keeps none.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

from llmtier.core.decision import Decision
from llmtier.core.prompt import Message
from llmtier.serve.needs import SESSION_HEADER

STICKY = "sticky"
"""The reason of a decision that keeps a conversation where it was."""

CAPACITY = 50_000
_HEAD_CHARS = 4096
"""Of each message that is hashed: long documents cost no more than this."""


class StickyTable:
    """Where conversations went.

    Args:
        ttl_s: Time after its last turn that a conversation is remembered.
        clock: Monotonic seconds.
        capacity: Most conversations.
    """

    def __init__(self, *, ttl_s: float, clock: Callable[[], float], capacity: int = CAPACITY) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._capacity = capacity
        self._tiers: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tiers)

    def find(self, conversation: bytes) -> str | None:
        """Return the tier that served its last turn; ``None`` when it is new or forgotten."""
        known = self._tiers.get(conversation)
        if known is None:
            return None
        tier, seen_s = known
        if self._clock() - seen_s > self._ttl_s:
            del self._tiers[conversation]
            return None
        return tier

    def note(self, conversation: bytes, tier: str) -> None:
        """Remember the tier that serves this turn."""
        self._tiers[conversation] = (tier, self._clock())
        self._tiers.move_to_end(conversation)
        if len(self._tiers) > self._capacity:
            self._tiers.popitem(last=False)


def keep(previous: str | None, decision: Decision) -> str | None:
    """Return the tier for the next turn: ``previous`` while it was offered and has no miss, else the decision's.

    So a conversation that needs more moves up as any request does, and one that needs less stays where it is.
    """
    if previous is None or previous == decision.tier:
        return decision.tier
    is_offered = any(offer.tier == previous for offer in decision.offers)
    has_missed = any(miss.tier == previous for miss in decision.misses)
    return previous if is_offered and not has_missed else decision.tier


def find_session(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the conversation's name as the client states it; ``None`` without ``x-llmtier-session``."""
    return next((value for name, value in headers if name == SESSION_HEADER and value), None)


def identify(messages: Sequence[Message], *, session: bytes | None, caller: bytes = b"") -> bytes | None:
    """Return what a conversation is known by, 16 bytes; ``None`` when there is nothing to know it by.

    Args:
        messages: From the first on; later turns change nothing.
        session: What the client calls it; it wins over the messages.
        caller: Digest of the API key: equal names or openings of two callers are two conversations.
    """
    if session is None and not messages:
        return None
    digest = blake2b(digest_size=16, key=caller[:32])
    if session is not None:
        digest.update(b"session\0" + session)
        return digest.digest()
    for message in messages:
        text = f"{message.role}\0{len(message.content)}\0{message.content[:_HEAD_CHARS]}\0"
        digest.update(text.encode(errors="surrogatepass"))
        if message.role == "user":
            break
    return digest.digest()


def pick_replica(conversation: bytes, replicas: Sequence[str]) -> str:
    """Return the replica that every worker picks for a conversation; when one leaves, only its own move.

    Raises:
        ValueError: There are no replicas.
    """
    return max(replicas, key=lambda name: blake2b(name.encode(), key=conversation[:64], digest_size=8).digest())
