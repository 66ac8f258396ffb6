"""What ``fit-thresholds`` reads: options as text, outcomes, prices, embeddings, seed sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.cli import output
from llmtier.core.decision import Objective
from llmtier.core.errors import InputFileError, UsageError
from llmtier.core.policy import Goal, GoalKind
from llmtier.core.requirement import Requirement
from llmtier.core.utility import UtilityWeights

if TYPE_CHECKING:
    from llmtier.core.profile import TierProfile
    from llmtier.core.prompt import LabelledPrompt
    from llmtier.engine.embedder import Embedder
    from llmtier.fit.prices import Prices
    from llmtier.score.signals import Signals
    from llmtier.store.outcomes import OutcomeSet

DEFAULT_MAX_LOSS = 0.01
MAX_ROWS = 200_000
"""Rows that are kept of larger logs: a scorer learns no more from the next million."""


def parse_pairs(text: str, option: str) -> dict[str, float]:
    """Return ``small=1,large=10`` as numbers by name.

    Raises:
        UsageError: It is of another form, or a name stands twice.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
            number = 0.0
        if not equals or not name.strip() or name.strip() in found:
            raise UsageError(f"{option} {text!r}: expected pairs such as small=0.7,large=0.3, each tier once")
        found[name.strip()] = number
    return found


def parse_columns(given: Sequence[str]) -> dict[str, str] | None:
    """Return ``ours=theirs`` pairs; ``None`` when there are none.

    Raises:
        UsageError: One is of another form.
    """
    pairs = [part.partition("=") for part in given]
    bad = [part for part, (ours, equals, theirs) in zip(given, pairs, strict=True) if not (ours and equals and theirs)]
    if bad:
        raise UsageError(f"--column {bad[0]!r}: expected ours=theirs, such as prompt=question or score:small=small_ok")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs} or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """The options that name a goal, as given.

    Attributes:
        loss: ``--max-accuracy-loss``.
        floor: ``--min-accuracy``.
        budget: ``--budget-usd-per-1k``.
        shares: ``--target-shares``.
    """

    loss: float | None = None
    floor: float | None = None
    budget: float | None = None
    shares: str | None = None


def make_goal(given: Goals, *, objective: Objective, is_labelled: bool) -> Goal:
    """Return what was asked for; without any goal, a loss of a point with labels and default thresholds without.

    Raises:
        UsageError: Several goals, or one out of range.
    """
    options = {
        "--objective utility": None if objective is Objective.CHEAPEST else objective,
        "--max-accuracy-loss": given.loss,
        "--min-accuracy": given.floor,
        "--budget-usd-per-1k": given.budget,
        "--target-shares": given.shares,
    }
    named = [option for option, value in options.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)}: a policy is fitted for one goal; give one of them")
    if objective is Objective.UTILITY:
        return Goal(kind=GoalKind.UTILITY)
    try:
        if given.floor is not None:
            return Goal(kind=GoalKind.MIN_ACCURACY, value=given.floor)
        if given.budget is not None:
            return Goal(kind=GoalKind.BUDGET_USD_PER_1K, value=given.budget)
        if given.shares is not None:
            return Goal(kind=GoalKind.TARGET_SHARES, shares=parse_pairs(given.shares, "--target-shares"))
        if given.loss is None and not is_labelled:
            return Goal(kind=GoalKind.DEFAULT_THRESHOLDS)
        loss = DEFAULT_MAX_LOSS if given.loss is None else given.loss
        return Goal(kind=GoalKind.MAX_ACCURACY_LOSS, value=loss)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def parse_weights(text: str | None) -> UtilityWeights | None:
    """Return ``accuracy=1,latency_s=0.05,usd_per_1k=0.02`` as weights; ``None`` when none are given.

    Raises:
        UsageError: Another name, or a weight that is out of range.
    """
    if text is None:
        return None
    given = parse_pairs(text, "--weights")
    names = ("accuracy", "latency_s", "usd_per_1k")
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UsageError(f"--weights names {', '.join(unknown)}; there are {', '.join(names)}")
    accuracy, latency_s, usd_per_1k = (given.get(name, 0.0) for name in names)
    try:
        return UtilityWeights(accuracy=accuracy, latency_per_s=latency_s, cost_per_usd_1k=usd_per_1k)
    except ValueError as exc:
        raise UsageError(f"--weights {text!r}: {exc}") from exc


def read_labels(
    paths: Sequence[Path], *, columns: Sequence[str], max_rows: int, seed: int, tiers: Sequence[str] | None
) -> "OutcomeSet":
    """Read outcomes and say what is odd about them."""
    from llmtier.store.outcomes import load_outcomes

    found = load_outcomes(paths, columns=parse_columns(columns), max_rows=max_rows, seed=seed)
    for warning in found.warnings:
        output.say(f"warning: {warning}")
    if found.n_read > len(found.rows) >= max_rows:
        output.say(f"kept {len(found.rows):,} of {found.n_read:,} rows, a seeded sample; raise --max-rows for more")
    if tiers is not None:
        check_tiers(tiers, found.rows)
    return found


def check_tiers(tiers: Sequence[str], rows: "Sequence[LabelledPrompt]") -> None:
    """Refuse a named tier that no row scores, where rows have scores at all.

    Raises:
        UsageError: Names the nearest tier that is scored.
    """
    from difflib import get_close_matches

    scored = sorted({tier for row in rows for tier in row.scores})
    for tier in tiers:
        if scored and tier not in scored:
            near = get_close_matches(tier, scored, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"no prompt has a score of tier {tier!r}; scored are {', '.join(scored)}{hint}")


def refuse_overwrite(out: Path, *, is_forced: bool) -> None:
    """Refuse to write over a file unless that was asked for.

    Raises:
        UsageError: It is there.
    """
    if out.exists() and not is_forced:
        raise UsageError(f"{out} exists; choose another --output, or --force to overwrite it")


def make_limits(*, ttft_ms: float | None, e2el_ms: float | None) -> Requirement:
    """Return latency limits given in milliseconds."""
    return Requirement(
        ttft_s=None if ttft_ms is None else ttft_ms / 1000, e2el_s=None if e2el_ms is None else e2el_ms / 1000
    )


def find_prices(
    named: Sequence[str] | None,
    rows: "Sequence[LabelledPrompt]",
    *,
    costs: str | None,
    profiles: "Mapping[str, TierProfile]",
) -> "Prices":
    """Return the prices of the tiers to fit: given by hand, else those of the profiles."""
    from llmtier.fit.prices import price_by_hand, price_profiles

    tiers = choose_tiers(named, rows, costs=costs, profiles=sorted(profiles))
    if costs is not None:
        return price_by_hand(tiers, parse_pairs(costs, "--costs"))
    return price_profiles(tiers, profiles)


def choose_tiers(
    named: Sequence[str] | None, rows: "Sequence[LabelledPrompt]", *, costs: str | None, profiles: Sequence[str]
) -> tuple[str, ...]:
    """Return the tiers to fit: those named, else those scored, else those that have a price.

    Raises:
        InputFileError: Nothing names a tier.
    """
    if named is not None:
        return tuple(dict.fromkeys(named))
    scored = sorted({tier for row in rows for tier in row.scores})
    found = scored or (sorted(parse_pairs(costs, "--costs")) if costs is not None else sorted(profiles))
    if not found:
        raise InputFileError("no prompt has a score and no profile names a tier; give --costs small=1,large=10")
    return tuple(found)


def embed_prompts(embedder: "Embedder | None", rows: "Sequence[LabelledPrompt]") -> "dict[str, Signals]":
    """Return the signals of each prompt by its id: its rating, and its embedding where there is an embedder."""
    from llmtier.score.signals import Signals
    from llmtier.score.text import scored_text

    if embedder is None:
        return {row.prompt.id: Signals(rating=row.rating) for row in rows}
    found: dict[str, Signals] = {}
    with output.progress("embedding prompts", len(rows)) as line:
        for row in rows:
            found[row.prompt.id] = Signals(rating=row.rating, embedding=embedder.embed(scored_text(row.prompt)))
            line.advance()
    return found


def read_sentences(path: Path) -> list[str]:
    """Return the lines of a text file that hold anything.

    Raises:
        InputFileError: It is absent, not text, or empty.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as exc:
        raise InputFileError("is not UTF-8 text", path=path) from exc
    except OSError as exc:
        raise InputFileError(exc.strerror or "cannot be read", path=path) from exc
    if not any(lines):
        raise InputFileError("holds no sentence", path=path)
    return [line for line in lines if line]
