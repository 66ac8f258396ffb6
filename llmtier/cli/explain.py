"""``llmtier explain``: why a prompt goes where it goes, tier by tier, on an idle system."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from llmtier.core.errors import UsageError
from llmtier.core.prompt import Message, Prompt
from llmtier.core.requirement import Requirement

if TYPE_CHECKING:
    from llmtier.serve.choose import Choice


def explain(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; standard input when absent or '-'.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    domain: Annotated[str | None, typer.Option(help="The request's domain label.")] = None,
    accuracy: Annotated[float | None, typer.Option(help="Lowest P(correct).", min=0, max=1)] = None,
    ttft_ms: Annotated[float | None, typer.Option(help="Highest time to first token.", min=0)] = None,
    e2el_ms: Annotated[float | None, typer.Option(help="Highest end-to-end latency.", min=0)] = None,
    is_json: JsonOption = False,
) -> None:
    """Say why a prompt goes where it goes.

    Example: llmtier explain "What do 187 and 254 come to?"
    """
    text = read_prompt(prompt)
    requirement = Requirement(
        accuracy=accuracy,
        ttft_s=None if ttft_ms is None else ttft_ms / 1000,
        e2el_s=None if e2el_ms is None else e2el_ms / 1000,
    )  # what is not given comes from the configuration's slo, as in the gateway
    choice, probabilities = decide(text, config=config, domain=domain, requirement=requirement)
    if is_json:
        output.print_json(as_document(choice, probabilities))
    else:
        show(choice, probabilities)


def read_prompt(argument: str | None) -> str:
    """Return the prompt from the argument or from standard input.

    Raises:
        UsageError: Neither holds one.
    """
    if argument is not None and argument != "-":
        return argument
    if sys.stdin.isatty():
        raise UsageError('no prompt; try: llmtier explain "What do 187 and 254 come to?"')
    return sys.stdin.read()


def decide(
    text: str, *, config: Path, domain: str | None, requirement: Requirement
) -> "tuple[Choice, dict[str, float]]":
    """Decide for ``text`` as the gateway would with nothing in flight.

    Raises:
        UsageError: There is no policy yet.
    """
    from llmtier.cli.serve import load_profiles, load_routing
    from llmtier.engine.hardware import detect_hardware
    from llmtier.serve.choose import Question, TierState, choose
    from llmtier.serve.ledger import PromptSize
    from llmtier.serve.needs import Needs
    from llmtier.store.config import load_config

    loaded = load_config(config)
    routing = load_routing(loaded)
    if routing is None:
        raise UsageError(f"no policy yet: 'policy' of {config} names no file that exists; run 'llmtier fit-thresholds'")
    policy, scorer = routing
    profiles = load_profiles(loaded, detect_hardware())
    question = Prompt(id="explain", messages=(Message(role="user", content=text),), domain=domain)
    probabilities = dict(scorer.probabilities(question))
    states = {tier.name: TierState(name=tier.name, profile=profiles.get(tier.name)) for tier in policy.tiers}
    given = {name: value for name, value in asdict(requirement).items() if value is not None}
    needs = Needs(requirement=replace(loaded.slo.to_requirement(), **given), domain=domain)
    size = PromptSize(n_characters=len(text))
    asked = Question(model="auto", needs=needs, probabilities=probabilities, size=size)
    return choose(asked, states, policy=policy, default_tier=None), probabilities


def as_document(choice: "Choice", probabilities: dict[str, float]) -> dict[str, object]:
    """Return the decision as one JSON-ready document."""
    return {
        "schema_version": 1,
        "tier": choice.decision.tier,
        "reason": choice.decision.reason.value,
        "need_accuracy": choice.requirement.accuracy,
        "probabilities": probabilities,
        "offers": [asdict(offer) for offer in choice.decision.offers],
        "misses": [asdict(miss) for miss in choice.decision.misses],
    }


def show(choice: "Choice", probabilities: dict[str, float]) -> None:
    """Print one row a tier, then the verdict."""
    decision = choice.decision
    rows = []
    for offer in sorted(decision.offers, key=lambda offer: (offer.usd is None, offer.usd)):
        misses = "; ".join(miss.describe().split(": ", 1)[1] for miss in decision.misses if miss.tier == offer.tier)
        verdict = "chosen" if offer.tier == decision.tier else misses or "dearer"
        rows.append(
            (
                offer.tier, output.percent(probabilities.get(offer.tier)), output.milliseconds(offer.ttft_s),
                output.milliseconds(offer.e2el_s), output.dollars(None if offer.usd is None else 1000 * offer.usd), verdict,
            )
        )  # fmt: skip
    columns = ("tier", "P(correct)", "TTFT p95 ms", "E2EL p95 ms", "$/1k requests", "verdict")
    need = output.percent(choice.requirement.accuracy)
    output.print_table(f"Needs P(correct) of at least {need}", columns, rows)
    typer.echo(f"{decision.tier or 'nobody'} ({decision.reason.value})")
