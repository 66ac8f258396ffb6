"""The user's rules at the gateway: what of a request they may look at, and whether their tiers are there.

Reads the decoded request and its raw headers; writes nothing. Which rule holds is ``route.rules``. A bearer
token is hashed here and goes no further: a configuration holds its sha256 alone.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from functools import partial

from llmtier.core.errors import PlanError
from llmtier.core.policy import Policy
from llmtier.core.prompt import Prompt
from llmtier.core.rule import Rule
from llmtier.route.rules import RequestFacts, RuleBook
from llmtier.score.text import scored_text
from llmtier.store.patterns import compile_pattern

_BEARER = b"bearer "


def make_rules(rules: Iterable[Rule], *, served: Collection[str], policy: Policy | None) -> RuleBook:
    """Return the rules ready to be asked.

    Raises:
        PlanError: A rule speaks of a tier that is not served, or bars by a tier that the policy does not rank.
    """
    given = tuple(rules)
    for rule in given:
        if rule.tier not in served:
            raise PlanError(
                f"routing rule {rule.name!r}: tier {rule.tier} is not served (served: {', '.join(served)}); "
                "serve it with --tier, or name another"
            )
        ranked = [rule.tier] if policy is None else [tier.name for tier in policy.tiers]
        if rule.least_tier is not None and rule.least_tier not in ranked:
            raise PlanError(
                f"routing rule {rule.name!r}: least_tier {rule.least_tier} is not among the policy's tiers "
                f"({', '.join(ranked)}), so none is known to be cheaper; name one of those, or pin"
            )
    return RuleBook(given, compile_pattern=compile_pattern)


def find_rule(
    rules: RuleBook | None, prompt: Prompt | None, *, domain: str | None, headers: Iterable[tuple[bytes, bytes]]
) -> Rule | None:
    """Return the first rule that holds for a request.

    Args:
        rules: The rules; ``None`` when there are none.
        prompt: Its text; ``None`` when it is token ids.
        domain: The client's label.
        headers: Of the request, names in lower case as ASGI has them.
    """
    if rules is None or not rules.rules:
        return None
    facts = RequestFacts(
        text=_no_text if prompt is None else partial(scored_text, prompt),
        n_characters=None if prompt is None else sum(len(message.content) for message in prompt.messages),
        domain=domain,
        headers=_read_headers(headers, rules.header_names),
        key_sha256=hash_bearer(headers) if rules.reads_keys else None,
    )
    return rules.find(facts)


def hash_bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the sha256 of the bearer token in hex; ``None`` without one, or with two."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1 or values[0][: len(_BEARER)].lower() != _BEARER:
        return None
    return hashlib.sha256(values[0][len(_BEARER) :].strip()).hexdigest()


def _read_headers(headers: Iterable[tuple[bytes, bytes]], wanted: Collection[str]) -> dict[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    for raw_name, value in headers if wanted else ():
        name = raw_name.decode("latin-1")
        if name in wanted:
            found.setdefault(name, []).append(value.decode("latin-1"))
    return {**found}


def _no_text() -> None:
    return None
