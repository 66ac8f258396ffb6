"""Laws of the user's rules: which one holds, and what it can and cannot do to a decision."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.decision import Fallback, MissReason, Offer, Reason
from llmtier.core.requirement import Requirement
from llmtier.core.rule import Condition, Rule
from llmtier.core.utility import UtilityWeights
from llmtier.route.decide import decide, find_misses
from llmtier.route.rules import EDGE_CHARACTERS, RequestFacts, RuleBook, barred_by_cost, barred_by_order

WEIGHTS = UtilityWeights(accuracy=1.0, cost_per_usd_1k=0.1)
TIERS = "abcdef"

maybe = lambda values: st.none() | values  # noqa: E731  # reads as the strategies around it
words = st.sampled_from(["code", "prove", "hello"])
conditions = st.builds(
    Condition,
    pattern=maybe(words),
    domain=maybe(st.sampled_from(["math", "chat"])),
    headers=st.lists(st.tuples(st.sampled_from(["x-team", "x-app"]), words), max_size=2).map(tuple),
    key_sha256=maybe(st.sampled_from(["0" * 64, "1" * 64])),
    min_characters=maybe(st.integers(0, 20)),
).filter(lambda condition: not condition.is_empty)
rules = st.builds(Rule, name=words, when=conditions, pin=st.sampled_from(TIERS))
facts = st.builds(
    lambda text, **more: RequestFacts(text=lambda: text, **more),
    maybe(st.lists(words).map(" ".join)),
    n_characters=maybe(st.integers(0, 20)),
    domain=maybe(st.sampled_from(["math", "chat", "other"])),
    headers=st.dictionaries(st.sampled_from(["x-team", "x-app", "host"]), st.lists(words, min_size=1)),
    key_sha256=maybe(st.sampled_from(["0" * 64, "2" * 64])),
)
offers = st.lists(
    st.builds(
        Offer,
        tier=st.sampled_from(TIERS),
        accuracy=maybe(st.floats(0, 1)),
        usd=maybe(st.floats(0, 10)),
        ttft_s=maybe(st.floats(0, 10)),
        n_in_flight=st.integers(0, 3),
        context_tokens=maybe(st.integers(0, 100)),
        is_healthy=st.booleans(),
        unusable=maybe(st.just(MissReason.NO_PROFILE)),
    ),
    unique_by=lambda offer: offer.tier,
)
requirements = st.builds(
    Requirement,
    ttft_s=maybe(st.floats(0, 10)),
    accuracy=maybe(st.floats(0, 1)),
    context_tokens=maybe(st.integers(0, 100)),
)
orders = st.permutations(TIERS)


def contains(pattern):
    return lambda text: pattern in text


def book(*given_rules):
    return RuleBook(given_rules, compile_pattern=contains)


def singles(condition):
    """Return the parts of a condition, each alone."""
    for name in ("pattern", "domain", "key_sha256", "min_characters"):
        if getattr(condition, name) is not None:
            yield Condition(**{name: getattr(condition, name)})
    for header in condition.headers:
        yield Condition(headers=(header,))


@given(st.lists(rules), facts)
def test_the_first_rule_that_holds_wins(several, request_facts):
    alone = [rule for rule in several if book(rule).find(request_facts) is not None]

    assert (alone[0] if alone else None) == book(*several).find(request_facts)


@given(rules, facts)
def test_a_rule_holds_when_each_of_its_conditions_does(rule, request_facts):
    parts = [dataclasses.replace(rule, when=part) for part in singles(rule.when)]

    assert all(book(part).find(request_facts) for part in parts) == (book(rule).find(request_facts) is rule)


@given(rules)
def test_what_is_unknown_holds_no_condition(rule):
    assert book(rule).find(RequestFacts()) is None


@given(facts)
def test_without_rules_none_holds(request_facts):
    assert book().find(request_facts) is None


@given(requirements, offers, st.sampled_from(list(Fallback)))
def test_without_a_barred_tier_the_decision_is_the_same(requirement, candidates, fallback):
    barred = barred_by_order("a", ["a", *TIERS[1:]])

    assert decide(requirement, candidates, fallback=fallback, weights=WEIGHTS) == decide(
        requirement, candidates, fallback=fallback, weights=WEIGHTS, barred=barred
    )


@given(requirements, offers, orders, st.sampled_from(TIERS), st.sampled_from(list(Fallback)))
def test_no_cheaper_tier_is_chosen_while_an_allowed_one_is_feasible(requirement, candidates, order, least, fallback):
    barred = barred_by_order(least, order)
    allowed = [offer for offer in candidates if order.index(offer.tier) >= order.index(least)]
    decision = decide(requirement, candidates, fallback=fallback, weights=WEIGHTS, barred=barred)

    if any(not list(find_misses(requirement, offer)) for offer in allowed):
        assert Reason.CHEAPEST_FEASIBLE is decision.reason
        assert decide(requirement, allowed).tier == decision.tier


@given(requirements, offers, orders, st.sampled_from(TIERS), st.sampled_from(list(Fallback)))
def test_a_barred_tier_serves_only_where_no_allowed_one_can_be_reached(requirement, candidates, order, least, fallback):
    barred = barred_by_order(least, order)
    decision = decide(requirement, candidates, fallback=fallback, weights=WEIGHTS, barred=barred)
    unreachable = {m.tier for m in decision.misses if m.reason in {MissReason.UNHEALTHY, MissReason.CONTEXT}}

    assert barred & {offer.tier for offer in candidates} == {
        miss.tier for miss in decision.misses if miss.reason is MissReason.RULE
    }
    if decision.tier in barred:
        assert Reason.FALLBACK is decision.reason
        assert all(offer.tier in unreachable for offer in candidates if offer.tier not in barred)


def test_the_text_is_made_once_and_only_for_a_pattern_that_is_reached():
    made = []

    def make_text():
        made.append(1)
        return "hello"

    def find(*conditions_):
        made.clear()
        several = [Rule(name=str(n), when=when, pin="a") for n, when in enumerate(conditions_)]
        found = book(*several).find(RequestFacts(text=make_text, domain="math"))
        return (None if found is None else found.name, len(made))

    asks_text = Condition(pattern="prove")
    assert (None, 1) == find(asks_text, asks_text)
    assert ("0", 0) == find(Condition(domain="math"), asks_text)
    assert (None, 0) == find(Condition(domain="chat", pattern="hello"))


def test_of_a_long_text_head_and_tail_are_searched():
    def found(text):
        return book(Rule(name="r", when=Condition(pattern="code"), pin="a")).find(RequestFacts(text=lambda: text))

    filler = "x" * 2 * EDGE_CHARACTERS
    assert [True, True, False] == [
        bool(found(text)) for text in ("code" + filler, filler + "code", filler + "code" + filler)
    ]
    assert found("x" * EDGE_CHARACTERS + "code")


def test_a_header_may_come_with_several_values():
    rule = Rule(name="r", when=Condition(headers=(("x-team", "a"),)), pin="a")

    assert book(rule).find(RequestFacts(headers={"x-team": ["b", "a"]})) is rule
    assert book(rule).find(RequestFacts(headers={"x-team": ["A", "ab"]})) is None


def test_a_book_knows_what_it_must_be_told():
    asks = Condition(headers=(("x-team", "a"),), key_sha256="0" * 64)

    assert (frozenset({"x-team"}), True) == (
        book(Rule(name="r", when=asks, pin="a")).header_names,
        book(Rule(name="r", when=asks, pin="a")).reads_keys,
    )
    assert not book(Rule(name="r", when=Condition(domain="math"), pin="a")).reads_keys


def test_tiers_before_the_least_one_are_barred():
    assert {"a", "b"} == barred_by_order("c", ["a", "b", "c", "d"])
    assert frozenset() == barred_by_order("z", ["a", "b"])


def test_by_cost_every_tier_is_barred_that_is_not_known_to_be_as_dear():
    assert {"cheap", "unknown"} == barred_by_cost("least", {"cheap": 1.0, "unknown": None, "least": 2.0, "even": 2.0})
    assert {"cheap", "dear"} == barred_by_cost("least", {"cheap": 1.0, "least": None, "dear": 9.0})


@pytest.mark.parametrize("tiers", [{}, {"least_tier": "a", "pin": "b"}])
def test_a_rule_says_one_thing(tiers):
    with pytest.raises(ValueError, match="either least_tier or pin"):
        Rule(name="r", when=Condition(domain="math"), **tiers)


def test_a_rule_without_a_condition_is_refused():
    with pytest.raises(ValueError, match="at least one condition"):
        Rule(name="r", when=Condition(), pin="a")
    assert not Condition(min_characters=0).is_empty
