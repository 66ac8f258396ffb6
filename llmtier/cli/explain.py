"""``llmtier explain``: why a prompt goes where it goes, tier by tier, on an idle system."""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from llmtier.core.decision import Offer, Reason
from llmtier.core.errors import UsageError
from llmtier.core.prompt import Message, Prompt
from llmtier.core.requirement import Requirement
from llmtier.core.utility import UtilityWeights

if TYPE_CHECKING:
    from llmtier.core.policy import Policy
    from llmtier.core.rule import Rule
    from llmtier.score.domain import DomainGuess
    from llmtier.score.scorer import Scorer
    from llmtier.score.signals import Signals
    from llmtier.serve.choose import Choice
    from llmtier.store.config_model import Config

Headers = tuple[tuple[bytes, bytes], ...]


def explain(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; standard input when absent or '-'.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    domain: Annotated[str | None, typer.Option(help="The request's domain label.")] = None,
    accuracy: Annotated[float | None, typer.Option(help="Lowest P(correct).", min=0, max=1)] = None,
    ttft_ms: Annotated[float | None, typer.Option(help="Highest time to first token.", min=0)] = None,
    e2el_ms: Annotated[float | None, typer.Option(help="Highest end-to-end latency.", min=0)] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="A request header that rules may ask for, as 'x-team: search'; repeatable.")
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the client's API key, for rules by key.")
    ] = None,
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
    headers = read_headers(header or (), key_env=key_env)
    explained = decide(text, config=config, domain=domain, requirement=requirement, headers=headers)
    if is_json:
        output.print_json(as_document(explained))
    else:
        show(explained)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A decision and what it rests on.

    Attributes:
        choice: Who serves and why.
        probabilities: Tier name to P(correct).
        guess: The domain that a prompt without one seems to be of.
        weights: Of the policy's utility; ``None`` where it takes the cheapest.
    """

    choice: "Choice"
    probabilities: Mapping[str, float]
    guess: "DomainGuess | None"
    weights: UtilityWeights | None


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


def read_headers(given: Iterable[str], *, key_env: str | None) -> Headers:
    """Return request headers as the gateway has them.

    Raises:
        UsageError: One is not of the form ``name: value``, or the key's variable is not set.
    """
    pairs: list[tuple[bytes, bytes]] = []
    for line in given:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise UsageError(f"--header {line!r}: expected 'name: value'")
        pairs.append((name.strip().lower().encode(), value.strip().encode()))
    if key_env is not None:
        if key_env not in os.environ:
            raise UsageError(f"--key-env {key_env}: that environment variable is not set")
        pairs.append((b"authorization", b"Bearer " + os.environ[key_env].encode()))
    return tuple(pairs)


def decide(
    text: str, *, config: Path, domain: str | None, requirement: Requirement, headers: Headers = ()
) -> Explained:
    """Decide for ``text`` as the gateway would with nothing in flight.

    Raises:
        UsageError: There is no policy yet, or a rule does not fit it.
    """
    from llmtier.cli.serve_state import load_profiles, load_routing
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
    probabilities = dict(scorer.probabilities(question, find_signals(loaded, policy, scorer, question)))
    rule = match_rule(loaded, policy, question, headers)
    names = {tier.name for tier in policy.tiers} | ({rule.tier} if rule is not None else set())
    states = {name: TierState(name=name, profile=profiles.get(name)) for name in sorted(names)}
    given = {name: value for name, value in asdict(requirement).items() if value is not None}
    needs = Needs(requirement=replace(loaded.slo.to_requirement(), **given), domain=domain)
    asked = Question(
        model="auto", needs=needs, probabilities=probabilities, size=PromptSize(n_characters=len(text)), rule=rule
    )
    return Explained(
        choice=choose(asked, states, policy=policy, default_tier=None),
        probabilities=probabilities,
        guess=scorer.guess_domain(question),
        weights=policy.weights,
    )


def find_signals(config: "Config", policy: "Policy", scorer: "Scorer", prompt: Prompt) -> "Signals":
    """Return the embedding of ``prompt`` where the scorer reads one; no engine runs here that could rate it."""
    from llmtier.cli.serve_signals import find_embedder
    from llmtier.score.signals import NO_SIGNALS, Signal, Signals
    from llmtier.score.text import scored_text

    if Signal.EMBEDDING not in scorer.reads:
        return NO_SIGNALS
    return Signals(embedding=find_embedder(config, policy)(scored_text(prompt)))


def match_rule(config: "Config", policy: "Policy", prompt: Prompt, headers: Headers) -> "Rule | None":
    """Return the rule that holds for ``prompt``."""
    from llmtier.serve.rules import find_rule, make_rules

    served = [tier.name for tier in config.tiers]
    rules = make_rules(config.routing.to_rules(), served=served, policy=policy)
    return find_rule(rules, prompt, domain=prompt.domain, headers=headers)


def as_document(explained: Explained) -> dict[str, object]:
    """Return the decision as one JSON-ready document."""
    choice = explained.choice
    return {
        "schema_version": 1,
        "tier": choice.decision.tier,
        "reason": choice.decision.reason.value,
        "rule": choice.decision.rule,
        "need_accuracy": choice.requirement.accuracy,
        "probabilities": dict(explained.probabilities),
        "guessed_domain": None if explained.guess is None else asdict(explained.guess),
        "weights": None if explained.weights is None else asdict(explained.weights),
        "utilities": find_utilities(explained),
        "offers": [asdict(offer) for offer in choice.decision.offers],
        "misses": [asdict(miss) for miss in choice.decision.misses],
    }


def find_utilities(explained: Explained) -> dict[str, float | None] | None:
    """Return each tier's utility; ``None`` where the policy takes the cheapest."""
    weights = explained.weights
    return None if weights is None else {one.tier: weights.value(one) for one in explained.choice.decision.offers}


def show(explained: Explained) -> None:
    """Print one row a tier, then the verdict."""
    choice, weights = explained.choice, explained.weights
    decision = choice.decision
    offers = sorted(decision.offers, key=lambda offer: (offer.usd is None, offer.usd))
    columns: tuple[str, ...] = ("tier", "P(correct)", "TTFT p95 ms", "E2EL p95 ms", "$/1k requests", "verdict")
    rows = [make_row(explained, offer) for offer in offers]
    title = f"Needs P(correct) of at least {output.percent(choice.requirement.accuracy)}"
    if weights is not None:
        columns = (*columns[:-1], "utility", columns[-1])
        rows = [(*row[:-1], show_utility(weights, offer), row[-1]) for row, offer in zip(rows, offers, strict=True)]
        title = f"{title}; utility: {weights.describe()}"
    output.print_table(title, columns, rows)
    if explained.guess is not None:
        guess = explained.guess
        typer.echo(f"no known domain given; from the text {guess.domain} ({output.percent(guess.probability)})")
    said = "" if decision.rule is None else f"; rule {decision.rule!r} held"
    typer.echo(f"{decision.tier or 'nobody'} ({decision.reason.value}{said})")


def make_row(explained: Explained, offer: Offer) -> tuple[str, ...]:
    """Return the cells of one tier."""
    decision = explained.choice.decision
    passed_over = {Reason.RULE: "passed over", Reason.HIGHEST_UTILITY: "lower utility"}.get(decision.reason, "dearer")
    misses = "; ".join(miss.describe().split(": ", 1)[1] for miss in decision.misses if miss.tier == offer.tier)
    return (
        offer.tier,
        output.percent(explained.probabilities.get(offer.tier)),
        output.milliseconds(offer.ttft_s),
        output.milliseconds(offer.e2el_s),
        output.dollars(None if offer.usd is None else 1000 * offer.usd),
        "chosen" if offer.tier == decision.tier else misses or passed_over,
    )


def show_utility(weights: UtilityWeights, offer: Offer) -> str:
    """Return the utility of an offer with its sign; unknown as a dash."""
    value = weights.value(offer)
    return "-" if value is None else f"{value:+.4f}"
