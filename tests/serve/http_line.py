"""A connection to an engine over a transport that is none, for tests of how bytes are read."""

from llmtier.serve.http_connection import UpstreamConnection

OK = b"HTTP/1.1 200 OK\r\n"


class StubTransport:
    """Takes what a connection does to its transport."""

    def __init__(self):
        self.written = []
        self.is_aborted = False
        self.is_paused = False

    def is_closing(self):
        return self.is_aborted

    def write(self, data):
        self.written.append(bytes(data))

    def writelines(self, pieces):
        self.written.append(b"".join(pieces))

    def abort(self):
        self.is_aborted = True

    def pause_reading(self):
        self.is_paused = True

    def resume_reading(self):
        self.is_paused = False


class StubPool:
    """Remembers which connections came back."""

    def __init__(self):
        self.free = []
        self.n_gone = 0

    def release(self, connection):
        self.free.append(connection)

    def forget(self, connection):
        self.n_gone += 1


class Line:
    """A connection that has just sent a request, and both its ends.

    Attributes:
        pieces: What has been piped.
    """

    def __init__(self, loop):
        self.pool = StubPool()
        self.transport = StubTransport()
        self.now_s = 0.0
        self.connection = UpstreamConnection(self.pool, clock=lambda: self.now_s, loop=loop)
        self.connection.connection_made(self.transport)
        self.answer = self.connection.ask(b"POST / HTTP/1.1\r\n\r\n", b"")
        self.pieces = []
        self.ended = None

    def feed(self, data):
        """Deliver bytes as the loop does, and pipe from the moment the head is there."""
        if not self.transport.is_aborted:
            self.connection.data_received(data)
        self.pipe()

    def pipe(self):
        head = self.answer.head
        if self.ended is None and head.done() and head.exception() is None:
            self.ended = self.answer.pipe(self.pieces.append)

    def end(self):
        """Deliver the end of the input and of the connection."""
        if not self.transport.is_aborted:
            self.connection.eof_received()
        self.connection.connection_lost(None)
        self.pipe()

    @property
    def failure(self):
        """The exception that the caller sees; an error if the caller would wait for ever."""
        head = self.answer.head
        return head.exception() or self.ended.exception()


def cut(data, places):
    places = sorted({place for place in places if 0 < place < len(data)})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
