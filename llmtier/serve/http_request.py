"""What a server grants its clients, and a request as handlers see it.

Holds data only; ``http_reader`` makes requests of bytes.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one server grants its clients.

    Attributes:
        head_bytes: Longest request line and headers together.
        body_bytes: Longest body, as declared and as counted.
        buffered_bytes: Bodies of all requests together, from their arrival to the end of their answers.
        head_s: From a request's first byte to the end of its head, in all: a drop now and then does not extend it.
        body_s: From the end of a head to the end of its body, in all.
        keepalive_s: How long a connection may stay idle; longer than client pools keep theirs, as nginx's default.
        stall_s: How long a client may take nothing of what is written to it.
        linger_s: How long a connection stays half open after a refusal, so that the client can read why.
        n_connections: Connections open at once; above, 503 and the end.
        drain_high_bytes: A client that leaves more than this unread makes its reply unwritable.
    """

    head_bytes: int = 65_536
    body_bytes: int = 10_000_000
    buffered_bytes: int = 1 << 30
    head_s: float = 10.0
    body_s: float = 30.0
    keepalive_s: float = 75.0
    stall_s: float = 60.0
    linger_s: float = 2.0
    n_connections: int = 10_000
    drain_high_bytes: int = 65_536

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"ServerLimits.{name} is {getattr(self, name)}; it must be above 0")


@dataclass(slots=True)
class HttpRequest:
    """One request, whole.

    Attributes:
        method: As sent, in capitals.
        path: The target before ``?``, raw: neither decoded nor normalized, and never of the Host header.
        query: The target after ``?``; empty without one.
        headers: Names in lower case, in order; trailer fields are not among them.
        body: All of it, out of its chunks.
        received_s: Clock when its head began.
        complete_s: Clock when its body was complete.
        is_http10: Whether the client speaks HTTP/1.0, and so knows no chunks.
        is_keep_alive: Whether the client would send another request after it.
    """

    method: str
    path: str
    query: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    received_s: float
    complete_s: float
    is_http10: bool = False
    is_keep_alive: bool = True

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header, named in lower case."""
        for sent, value in self.headers:
            if sent == name:
                return value
        return None
