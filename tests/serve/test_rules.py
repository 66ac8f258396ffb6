"""What rules see of a request, and which rules a gateway refuses to start with."""

import hashlib

import pytest

from llmtier.core.errors import PlanError
from llmtier.core.prompt import Message, Prompt
from llmtier.core.rule import Condition, Rule
from llmtier.serve.rules import find_rule, hash_bearer, make_rules

KEY = hashlib.sha256(b"sk-1").hexdigest()


def make(when, **tier):
    return make_rules([Rule(name="r", when=when, **tier or {"pin": "a"})], served=["a"], policy=None)


def prompt(*contents, role="user"):
    return Prompt(id="p", messages=tuple(Message(role=role, content=content) for content in contents))


def find(when, given=None, *, domain=None, headers=()):
    return find_rule(make(when), given, domain=domain, headers=headers) is not None


def test_patterns_see_the_users_last_turns_and_not_the_system_prompt():
    system = Prompt(id="p", messages=(Message(role="system", content="prove"), Message(role="user", content="hello")))
    harness = prompt("<system-reminder>prove</system-reminder> hello")

    assert [True, False, False] == [find(Condition(pattern="prove"), it) for it in (prompt("prove"), system, harness)]


def test_length_counts_every_message():
    assert [True, False] == [find(Condition(min_characters=n), prompt("abc", "defg")) for n in (7, 8)]
    assert find(Condition(min_characters=0), prompt(""))


def test_token_ids_have_neither_text_nor_length():
    assert not find(Condition(pattern="."), None)
    assert not find(Condition(min_characters=0), None)
    assert find(Condition(domain="math"), None, domain="math")


def test_headers_and_keys_are_found():
    headers = [(b"host", b"x"), (b"x-team", b"search"), (b"authorization", b"bearer  sk-1")]

    assert find(Condition(headers=(("x-team", "search"),), key_sha256=KEY), headers=headers)
    assert not find(Condition(headers=(("x-team", "Search"),)), headers=headers)
    assert not find(Condition(key_sha256=KEY), headers=headers[:2])


@pytest.mark.parametrize(
    "values", [[], [b"Basic sk-1"], [b"sk-1"], [b""], [b"Bearer sk-1", b"Bearer sk-1"], [b"Bearer sk-2"]]
)
def test_only_one_bearer_token_is_a_key(values):
    assert KEY != hash_bearer([(b"authorization", value) for value in values])


def test_no_rules_ask_nothing():
    assert find_rule(None, prompt("x"), domain=None, headers=()) is None
    assert find_rule(make_rules([], served=["a"], policy=None), prompt("x"), domain=None, headers=()) is None


def test_a_tier_that_is_not_served_is_refused(make_policy):
    with pytest.raises(PlanError, match=r"rule 'r': tier b is not served \(served: a\); serve it with --tier"):
        make_rules([Rule(name="r", when=Condition(domain="x"), pin="b")], served=["a"], policy=None)


def test_a_least_tier_outside_the_policy_is_refused_but_a_pin_is_not(make_policy):
    policy = make_policy("b", "c")
    when = Condition(domain="x")

    with pytest.raises(PlanError, match=r"least_tier a is not among the policy's tiers \(b, c\)"):
        make_rules([Rule(name="r", when=when, least_tier="a")], served=["a", "b", "c"], policy=policy)
    assert make_rules([Rule(name="r", when=when, pin="a")], served=["a", "b", "c"], policy=policy).rules
