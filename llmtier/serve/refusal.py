"""What the gateway answers when it does not forward: an OpenAI-shaped error with its HTTP status.

Holds the one exception that ends a request with a 4xx or 5xx of the gateway's own, and the
bytes of its body. Shape: https://platform.openai.com/docs/guides/error-codes, as the official
clients parse it. Sends nothing.
"""

import msgspec

from llmtier.core.errors import UsageError


class RequestRefusedError(UsageError):
    """One request cannot be served as asked.

    Args:
        message: What is wrong with which value, and what to do.
        status: HTTP status.
        code: Stable word for programs, such as ``model_not_found``.
        param: The body field or header that is meant; ``None`` when no single one is.
        retry_after_s: When asking again makes sense; ``None`` when it does not.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_request",
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        super().__init__(message)

    @property
    def body(self) -> bytes:
        """The JSON document that goes to the client."""
        return error_body(str(self), status=self.status, code=self.code, param=self.param)


def error_body(message: str, *, status: int, code: str, param: str | None = None) -> bytes:
    """Return ``{"error": {...}}``; the type follows the status as OpenAI's does."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(message: str, *, code: str) -> bytes:
    """Return an SSE event that makes client libraries raise; no ``[DONE]`` may follow it."""
    return b"data: " + error_body(message, status=500, code=code) + b"\n\n"
