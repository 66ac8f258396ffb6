"""Names of columns: the user's brought to ours, and one column per tier gathered into one map.

``score:<tier>``, ``output_tokens:<tier>`` and ``confidence:<tier>`` are the wide form that tables have; a row of ours
holds ``scores``, ``output_tokens_by_tier`` and ``confidences``. Touches no file.
"""

from collections.abc import Mapping
from difflib import get_close_matches

from llmtier.core.errors import InputFileError, UsageError
from llmtier.store.documents import shorten
from llmtier.store.parquet import Row

TEXT_COLUMNS = frozenset({"prompt", "messages"})
PLAIN_COLUMNS = frozenset(
    {
        *TEXT_COLUMNS,
        *("id", "domain", "answer", "scorer", "arrival_s", "max_tokens", "weight", "rating"),
        *("scores", "output_tokens_by_tier", "confidences"),
    }
)
WIDE_COLUMNS = {"score": "scores", "output_tokens": "output_tokens_by_tier", "confidence": "confidences"}
LOG_COLUMNS = frozenset(
    {
        *("messages_json", "request_id", "received_at"),  # the gateway's own
        *("custom_id", "body", "response"),  # OpenAI batch
        *("startTime", "proxy_server_request"),  # LiteLLM spend log
    }
)


class ColumnMap:
    """Renames the columns of one load; remembers which of the asked ones no row had.

    Args:
        columns: Our name to the file's; our name may be wide, such as ``score:llama@awq``.

    Raises:
        UsageError: A name is none of ours.
    """

    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self._columns = dict(columns or {})
        self._taken = frozenset(self._columns.values())
        self._unseen = dict(self._columns)
        self._found: set[str] = set()
        for name in self._columns:
            _check_name(name)

    def reads(self, name: str) -> bool:
        """Tell whether a column of a file matters."""
        return name in self._taken or name in PLAIN_COLUMNS or name in LOG_COLUMNS or _wide_parts(name) is not None

    def apply(self, row: Row) -> Row:
        """Return the row under our names.

        Raises:
            ValueError: A tier's value in a column of its own differs from that in the map.
        """
        if self._unseen:
            self._note(row)
        if self._columns:
            row = self._rename(row)
        return _gather(row) if any(":" in key for key in row) else row

    def check_seen(self) -> None:
        """Refuse a mapping to a column that no row of any file had.

        Raises:
            InputFileError: Names the column and the nearest that is there.
        """
        for ours, theirs in self._unseen.items():
            near = get_close_matches(theirs, self._found, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(self._found)[:20])}"
            raise InputFileError(f"no row has a column {theirs!r}, which {ours!r} is to be read from; {hint}")

    def _rename(self, row: Row) -> Row:
        named = {ours: row[theirs] for ours, theirs in self._columns.items() if theirs in row}
        replaced = self._taken
        if not TEXT_COLUMNS.isdisjoint(named):  # the user said where the prompt stands: no log's form is looked for
            replaced = replaced | TEXT_COLUMNS | LOG_COLUMNS
        return {key: value for key, value in row.items() if key not in replaced} | named

    def _note(self, row: Row) -> None:
        self._found.update(list(row)[:1000])  # a log whose keys are ids must not fill the memory
        self._unseen = {ours: theirs for ours, theirs in self._unseen.items() if theirs not in row and ours not in row}


def _check_name(name: str) -> None:
    if name in PLAIN_COLUMNS or _wide_parts(name) is not None:
        return
    names = [*sorted(PLAIN_COLUMNS), *(f"{prefix}:<tier>" for prefix in WIDE_COLUMNS)]
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
    raise UsageError(f"cannot map a column to {name!r}, which is no name of ours; {hint}")


def _wide_parts(name: str) -> tuple[str, str] | None:
    """Return the map and the tier that a wide column's name stands for; ``None`` for any other."""
    prefix, separator, tier = name.partition(":")
    target = WIDE_COLUMNS.get(prefix)
    return (target, tier) if separator and tier and target is not None else None


def _gather(row: Row) -> Row:
    gathered: dict[str, dict[str, object]] = {}
    plain: Row = {}
    for key, value in row.items():
        parts = _wide_parts(key)
        if parts is None:
            plain[key] = value
            continue
        target, tier = parts
        values = gathered.setdefault(target, _as_map(row.get(target)))
        if value is not None and values.setdefault(tier, value) != value:
            raise ValueError(f"{key!r} and the {tier!r} of {target!r} differ; leave one out")
    return plain | gathered


def _as_map(found: object) -> dict[str, object]:
    """Return a copy of a map; anything else cannot be gathered into.

    Raises:
        ValueError: It is no map.
    """
    if found is None:
        return {}
    if isinstance(found, Mapping):
        return dict(found)
    raise ValueError(f"expected a map of tiers, got {shorten(found)}")
