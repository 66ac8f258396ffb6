"""One measured request: its row and the instants of its content chunks."""

from dataclasses import dataclass

from llmtier.core.timing import RequestTiming
from llmtier.store.profiles import RequestRow

STATUS_OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSample:
    """One request of a load.

    Attributes:
        row: What is stored of it.
        content_s: Arrival of each content chunk on the row's clock, ascending; of a failed request those that came.
        is_warmup: Sent to load the engine, never counted.
    """

    row: RequestRow
    content_s: tuple[float, ...] = ()
    is_warmup: bool = False

    @property
    def is_ok(self) -> bool:
        """Whether it was answered."""
        return self.row.status == STATUS_OK

    @property
    def timing(self) -> RequestTiming:
        """Its instants."""
        return RequestTiming(
            scheduled_s=self.row.scheduled_s,
            sent_s=self.row.sent_s,
            done_s=self.row.done_s,
            content_s=self.content_s,
            n_output_tokens=self.row.n_output_tokens,
        )
