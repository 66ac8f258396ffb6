"""``fit-thresholds --retries-from``: reads who asked again, charges it, and says so."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.cli import output

if TYPE_CHECKING:
    from llmtier.fit.prices import Prices
    from llmtier.fit.retries import Asked, Retries


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryReport:
    """What was charged, as one line a tier and as data; empty without ``--retries-from``."""

    prices: "Prices"
    retries: "Retries | None" = None

    def lines(self) -> Iterator[str]:
        """Yield what the terminal shows."""
        for tier in self._tiers():
            seen = None if self.retries is None else self.retries.tiers.get(tier)
            if seen is None:
                yield f"retries: {tier} served nothing of the log, charged {self._charge(tier)}"
                continue
            share = output.percent(seen.n_retried / seen.n_served)
            yield f"retries: {tier} {share} of {seen.n_served:,} requests, charged {self._charge(tier)}"

    def as_document(self) -> dict[str, object] | None:
        """Return it JSON-ready; ``None`` where nothing was read."""
        if self.retries is None:
            return None
        return {
            "tiers": {
                tier: {
                    "n_served": 0 if seen is None else seen.n_served,
                    "n_retried": 0 if seen is None else seen.n_retried,
                    "usd_per_request": self.prices.retry_usd.get(tier, 0.0),
                }
                for tier in self._tiers()
                for seen in [self.retries.tiers.get(tier)]
            },
            "n_unknown": self.retries.n_unknown,
            "n_machine": self.retries.n_machine,
        }

    def _tiers(self) -> Sequence[str]:
        return () if self.retries is None or self.retries.n_served == 0 else self.prices.by_cost

    def _charge(self, tier: str) -> str:
        return f"{output.dollars(1000 * self.prices.retry_usd.get(tier, 0.0))} for 1,000 requests"


def charge_retries(prices: "Prices", log: Path | None, *, window_s: float) -> RetryReport:
    """Return the prices with what re-asks cost, and say what is odd about the log.

    Raises:
        InputFileError: The log is absent, empty or malformed.
    """
    if log is None:
        return RetryReport(prices=prices)
    from llmtier.fit.prices import with_retries
    from llmtier.fit.retries import find_retries

    retries = find_retries(_read(log), window_s=window_s)
    for warning in _find_oddities(retries, prices, log):
        output.say(f"warning: {warning}")
    return RetryReport(prices=with_retries(prices, retries), retries=retries)


def _read(log: Path) -> "Iterator[Asked]":
    from llmtier.fit.retries import Asked, comparable_text, frame_of
    from llmtier.store.served import stream_served

    for row in stream_served(log):
        yield Asked(
            key=row.key,
            arrival_s=row.arrival_s,
            text=row.digest if row.messages is None else comparable_text(row.messages),
            tier=row.tier,
            frame="" if row.messages is None else frame_of(row.messages),
        )


def _find_oddities(retries: "Retries", prices: "Prices", log: Path) -> Iterator[str]:
    if retries.n_served + retries.n_machine == 0:
        yield (
            f"{log}: no row has all of key, instant, text and tier, so no re-ask can be recognised and none is charged; "
            "the gateway logs keys of clients that send one"
        )
        return
    if retries.n_unknown:
        yield f"{log}: {retries.n_unknown:,} rows lack key, instant, text or tier; they count as nothing"
    if retries.n_machine:
        yield f"{log}: {retries.n_machine:,} requests look like a program's (polls, one template); they count as nothing"
    if retries.n_keys == 1:
        yield f"{log}: all requests have one key; equal questions of different people would count as re-asks"
    if retries.n_served and not prices.usd.keys() & retries.tiers.keys():
        names = ", ".join(sorted(retries.tiers)[:5])
        yield f"{log}: none of its tiers ({names}) is among those to fit ({', '.join(prices.usd)}); nothing is charged"
