"""What a replay will ask and cost: roles of tiers, the sample that a budget pays for, and how both are shown.

Reads profiles for prices and the log for who served what; asks nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typing_extensions import override

from llmtier.cli import output
from llmtier.core.errors import UsageError
from llmtier.evaluate.method import ScoreBy

if TYPE_CHECKING:
    from llmtier.core.prompt import Prompt
    from llmtier.evaluate.plan import Plan
    from llmtier.store.columns import ColumnMap
    from llmtier.store.config_model import Config, TierConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Who does what in a replay.

    Attributes:
        tiers: Asked every prompt; with agreement the reference tier is among them.
        method: How answers are scored.
        reference: With agreement.
        judge: With verdicts.
        rater: Rates each prompt's complexity; ``None`` when nobody does.
    """

    tiers: "tuple[TierConfig, ...]"
    method: ScoreBy
    reference: str | None = None
    judge: "TierConfig | None" = None
    rater: "TierConfig | None" = None

    @property
    def requests_per_prompt(self) -> dict[str, int]:
        """Requests that one prompt takes at most, by tier; a judge sees each different answer once."""
        counts = dict.fromkeys((tier.name for tier in self.tiers), 1)
        if self.judge is not None:
            counts[self.judge.name] = counts.get(self.judge.name, 0) + len(self.tiers)
        if self.rater is not None:
            counts[self.rater.name] = counts.get(self.rater.name, 0) + 1
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent; ``None`` for no limit.

    Attributes:
        max_requests: Over all tiers.
        usd: At the profiles' prices.
        hardware: Folder of the profiles; ``None`` for this machine's.
    """

    max_requests: int | None = None
    usd: float | None = None
    hardware: str | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.max_requests is not None or self.usd is not None


def choose_roles(
    config: "Config",
    names: Sequence[str],
    *,
    method: ScoreBy,
    reference: str | None,
    judge: str | None,
    rater: str | None,
) -> Roles:
    """Return who does what.

    Raises:
        UsageError: A tier is unknown, or an option is missing or belongs to another way of scoring.
    """
    from llmtier.cli.engines import choose_tiers

    check_belongs("--reference", reference, ScoreBy.AGREEMENT, method)
    check_belongs("--judge", judge, ScoreBy.JUDGE, method)
    tiers = choose_tiers(config, names)
    if reference is not None and config.tier(reference) not in tiers:
        tiers = choose_tiers(config, [*names, reference])
        output.say(f"{reference} is asked too: it is the reference")
    if judge is not None and judge in [tier.name for tier in tiers]:
        output.say(f"{judge} grades its own answers too; models tend to prefer those, see docs/replay.md")
    return Roles(
        tiers=tuple(tiers),
        method=method,
        reference=reference,
        judge=None if judge is None else config.tier(judge),
        rater=None if rater is None else config.tier(rater),
    )


def check_belongs(option: str, value: str | None, owner: ScoreBy, method: ScoreBy) -> None:
    """Refuse an option without its method, and the method without its option.

    Raises:
        UsageError: Names both.
    """
    if value is not None and method is not owner:
        raise UsageError(f"{option} belongs to --score-by {owner.value}; this run scores by {method.value}")
    if value is None and method is owner:
        raise UsageError(f"--score-by {owner.value} needs {option} TIER")


def make_plan(
    config: "Config", roles: Roles, prompts: "Sequence[Prompt]", *, log: Path, budget: Budget, seed: int
) -> "Plan":
    """Draw the prompts that the budget pays for; all of them without one.

    Raises:
        UsageError: The budget pays for none, or is in dollars and a price is unknown.
    """
    from llmtier.evaluate.plan import plan_sample

    if not budget.is_limited:
        return plan_sample(prompts, n=None, seed=seed)
    n = count_affordable(config, roles, budget)
    return plan_sample(prompts, n=n, seed=seed, served_by=read_served_by(log))


def count_affordable(config: "Config", roles: Roles, budget: Budget) -> int:
    """Return how many prompts the budget pays for.

    Raises:
        UsageError: None, or a price is unknown.
    """
    needs = roles.requests_per_prompt
    limits = []
    if budget.max_requests is not None:
        limits.append(budget.max_requests // sum(needs.values()))
        if limits[0] == 0:
            each = ", ".join(f"{tier} {n}" for tier, n in needs.items())
            raise UsageError(f"--max-requests {budget.max_requests} pays for no prompt: each takes {each}")
    if budget.usd is not None:
        usd = usd_per_prompt(needs, require_prices(config, roles, budget.hardware))
        if usd > budget.usd:
            raise UsageError(
                f"--budget-usd {budget.usd:g} pays for no prompt: each costs about {output.dollars(usd)} at the "
                "profiles' prices"
            )
        limits.append(int(budget.usd / usd) if usd > 0 else MANY)
    return min(limits)


MANY = 2**53
"""Prompts that a budget pays for when they cost nothing."""


def usd_per_prompt(needs: Mapping[str, int], prices: Mapping[str, float]) -> float:
    """Return what one prompt costs on all tiers together."""
    return sum(n * prices[tier] for tier, n in needs.items())


def require_prices(config: "Config", roles: Roles, hardware: str | None) -> dict[str, float]:
    """Return each tier's price per request, as its profile measured it.

    Raises:
        UsageError: A tier has none; says what to do instead.
    """
    prices = read_prices(config, hardware)
    missing = [tier for tier in roles.requests_per_prompt if tier not in prices]
    if missing:
        raise UsageError(
            f"--budget-usd needs the price of {', '.join(missing)}, and {config.profiles} does not hold it; set "
            "price.usd_per_hour and run 'llmtier profile', or give --max-requests instead"
        )
    return prices


def read_prices(config: "Config", hardware: str | None) -> dict[str, float]:
    """Return the price per request of each profiled tier that has one; empty without profiles."""
    from llmtier.engine.hardware import detect_hardware
    from llmtier.store.profiles import MANIFEST_NAME, read_profiles

    slug = hardware or detect_hardware().slug
    if hardware is None and not any(config.profiles.glob(f"{slug}/*/{MANIFEST_NAME}")):
        return {}
    profiles = read_profiles(config.profiles, slug)
    return {name: profile.cost.usd_per_request for name, profile in profiles.items() if profile.cost is not None}


def read_served_by(log: Path) -> dict[str, str]:
    """Return the tier that served each prompt, by the prompt's id, where the log says so.

    A gateway's log calls it ``tier``, LiteLLM's ``model``.
    """
    from llmtier.store.prompts import stream_rows

    served: dict[str, str] = {}
    for row in stream_rows(log, columns=served_columns()):
        values = row.values
        name = values.get("tier") or (values.get("model") if "request_id" in values else None)
        key = values.get("request_id") or values.get("id") or f"{row.path.stem}-{row.number}"
        if isinstance(name, str) and name:
            served[str(key)] = name
    return served


def served_columns() -> "ColumnMap":
    """Return the map that reads who served a row, and no texts, as they stand in the file."""
    from llmtier.store.columns import ColumnMap

    class ServedColumns(ColumnMap):
        """Reads few columns and renames none."""

        @override
        def reads(self, name: str) -> bool:
            return name in {"id", "request_id", "tier", "model"}

    return ServedColumns()


def plan_document(plan: "Plan", roles: Roles, prices: Mapping[str, float]) -> dict[str, object]:
    """Return the plan as JSON-ready data; ``usd`` is ``None`` where a price is unknown."""
    n = len(plan.prompts)
    needs = roles.requests_per_prompt
    is_priced = all(tier in prices for tier in needs)
    return {
        "digest": plan.digest,
        "seed": plan.seed,
        "prompts": plan.n_total,
        "asked": n,
        "max_requests": {tier: n * count for tier, count in needs.items()},
        "usd": n * usd_per_prompt(needs, prices) if is_priced else None,
        "strata": [
            {**asdict(share.stratum), "prompts": share.n_total, "asked": share.n_drawn, "weight": share.weight}
            for share in plan.shares
        ],
    }


def show_plan(plan: "Plan", roles: Roles, prices: Mapping[str, float], *, is_json: bool) -> None:
    """Print the plan to standard output."""
    document = plan_document(plan, roles, prices)
    if is_json:
        output.print_json({"schema_version": 1, "score_by": roles.method.value, "plan": document})
        return
    rows = [
        (
            share.stratum.domain or "-",
            share.stratum.length or "-",
            share.stratum.tier or "-",
            str(share.n_total),
            str(share.n_drawn),
            f"{share.weight:.3g}",
        )
        for share in plan.shares
    ]
    title = f"Plan {plan.digest}: {len(plan.prompts)} of {plan.n_total} prompts"
    output.print_table(title, ("domain", "length", "served by", "prompts", "asked", "weight"), rows)
    n = len(plan.prompts)
    each = ", ".join(f"{tier} {n * count}" for tier, count in roles.requests_per_prompt.items())
    usd = document["usd"]
    price = f"about {output.dollars(usd)}" if isinstance(usd, float) else "price unknown"
    typer.echo(f"requests, at most: {each}; {price}")
