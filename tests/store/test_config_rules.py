"""``routing.rules`` of llmtier.yaml: what they may say, and where their errors are."""

import hashlib
from importlib import resources

import pytest

from llmtier.cli.init import render
from llmtier.core.errors import ConfigError
from llmtier.core.rule import Condition, Rule
from llmtier.store.config import load_config
from llmtier.store.patterns import compile_pattern

TIERS = "tiers:\n- {name: big, model: m, scheme: bf16}\n- {name: small, model: m, scheme: awq}\n"
KEY = hashlib.sha256(b"sk-team-a").hexdigest()


@pytest.fixture
def load(tmp_path):
    def load_text(text, **environ):
        path = tmp_path / "llmtier.yaml"
        path.write_text(text)
        return load_config(path, environ=environ)

    return load_text


@pytest.fixture
def refusal(load):
    def message(text, **environ):
        with pytest.raises(ConfigError) as caught:
            load(text, **environ)
        return str(caught.value).replace(str(caught.value.path), "llmtier.yaml")

    return message


def test_everything_that_a_rule_may_say_is_read(load):
    text = f"""\
routing:
  rules:
    - name: code to the big one
      when:
        pattern: "(?i)\\\\bprove\\\\b"
        domain: math
        header: {{X-Team: search}}
        key_sha256: {KEY.upper()}
        min_chars: 2000
      least_tier: big
    - when: {{domain: chat}}
      pin: small
"""
    first, second = load(TIERS + text).routing.to_rules()

    when = Condition(
        pattern=r"(?i)\bprove\b",
        domain="math",
        headers=(("x-team", "search"),),
        key_sha256=KEY,
        min_characters=2000,
    )
    assert Rule(name="code to the big one", when=when, least_tier="big") == first
    assert Rule(name="rule-2", when=Condition(domain="chat"), pin="small") == second


def test_a_condition_that_is_null_asks_for_nothing(load):
    text = "routing: {rules: [{when: {pattern: null, key_sha256: null, domain: x}, pin: big}]}\n"

    assert Condition(domain="x") == load(TIERS + text).routing.to_rules()[0].when


@pytest.mark.parametrize("text", ["", "routing: {}\n", "routing: {rules: []}\n"])
def test_without_rules_there_are_none(load, text):
    assert () == load(TIERS + text).routing.to_rules()


def test_values_may_come_from_the_environment(load):
    text = "routing: {rules: [{when: {key_sha256: '${KEY}'}, pin: big}]}\n"

    assert KEY == load(TIERS + text, KEY=KEY).routing.to_rules()[0].when.key_sha256


RULES = TIERS + "routing:\n  rules:\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  - when: {domain: x}\n    pin: bgi\n", "7: routing.rules[0].pin: no tier 'bgi'; nearest valid name: 'big'"),
        ("  - when: {domain: x}\n\n    least_tier: q9\n", "8: routing.rules[0].least_tier: no tier 'q9'; valid names: big"),
        ("  - when: {domain: x}\n", "6: routing.rules[0]: a rule needs either 'least_tier' or 'pin', and not both"),
        ("  - {when: {domain: x}, pin: big, least_tier: big}\n", "6: routing.rules[0]: a rule needs either"),
        ("  - pin: big\n", "6: missing key 'when' in routing.rules[0]"),
        ("  - pin: big\n    when: {}\n", "7: routing.rules[0].when: needs at least one condition: pattern, domain"),
        ("  - pin: big\n    when: {pattern: '(a'}\n", "7: routing.rules[0].when.pattern: the pattern is not valid: unclosed"),
        ("  - pin: big\n    when: {pattern: '(?!a)b'}\n", "7: routing.rules[0].when.pattern: the pattern is not valid: look"),
        ("  - pin: big\n    when: {patern: a}\n", "7: unknown key 'patern' in routing.rules[0].when; nearest valid key: 'pat"),
        ("  - pin: big\n    when: {key: a}\n", "7: unknown key 'key' in routing.rules[0].when; valid keys: domain, header, key_"),
        ("  - pin: big\n    when: {header: {X-A: 1}}\n", "7: routing.rules[0].when.header.X-A: expected a valid string, got 1"),
        ("  - pin: big\n    when: {header: {X-A: b, x-a: c}}\n", "7: routing.rules[0].when.header: a header is named twice"),
        ("  - pin: big\n    when: {header: {a b: c}}\n", "7: routing.rules[0].when.header: 'a b' is no name of a header"),
        ("  - pin: big\n    when: {header: {Authorization: c}}\n", "'authorization' is a secret; match the bearer token with"),
        ("  - pin: big\n    when: {header: {x-llmtier-domain: c}}\n", "match a label with 'domain'"),
        ("  - pin: big\n    when: {min_chars: -1}\n", "7: routing.rules[0].when.min_chars: expected greater than or equal"),
        ("  - {pin: big, when: {domain: x}, name: a}\n  - {pin: big, when: {domain: x}, name: a}\n", "7: rule name 'a' stands"),
        ("  - {pin: big, when: {domain: x}, name: \"a\\nb\"}\n", "6: routing.rules[0].name: "),
        ("  - pin: big\n    wehn: {}\n", "7: unknown key 'wehn' in routing.rules[0]; nearest valid key: 'when'"),
    ],
)  # fmt: skip
def test_error_names_line_and_key(refusal, text, expected):
    assert expected in refusal(RULES + text)


def test_a_key_put_in_by_mistake_is_not_shown(refusal):
    message = refusal(RULES + "  - pin: big\n    when: {key_sha256: sk-secret}\n")

    assert "llmtier.yaml:7: routing.rules[0].when.key_sha256: expected the key's sha256" in message
    assert "sk-secret" not in message


@pytest.fixture
def shipped(tmp_path):
    """Return the template of ``llmtier init`` with its example of rules switched on."""
    text = render("models/m", has_gpu=False)
    start = text.index("# routing:")
    end = text.index("\n\n", start)
    example = "\n".join(line.removeprefix("# ") for line in text[start:end].splitlines())
    path = tmp_path / "llmtier.yaml"
    path.write_text(text[:start] + example + text[end:])
    return path


def test_the_shipped_example_is_off_by_default(tmp_path):
    path = tmp_path / "llmtier.yaml"
    path.write_text(render("models/m", has_gpu=False))

    assert () == load_config(path, environ={}).routing.to_rules()
    assert "# routing:" in resources.files("llmtier.cli").joinpath("templates/llmtier.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Prove that there are infinitely many primes.", "mathematics"),
        (r"Simplify \frac{a^2-b^2}{a-b}", "mathematics"),
        ("```python\nprint(1)\n```", "code"),
        ("Why does this fail?\n\ndef f(x):\n    return x", "code"),
        ("#include <stdio.h>", "code"),
        ("What is the weather like in Rome?", None),
        ("Improve this sentence, please; it is in a class of its own.", None),
        ("I will import goods from Spain", None),
    ],
)
def test_the_shipped_example_knows_mathematics_and_code(shipped, text, name):
    rules = load_config(shipped, environ={}).routing.to_rules()
    hits = [rule.name for rule in rules if compile_pattern(rule.when.pattern or "")(text)]

    assert {"m@bf16"} == {rule.least_tier for rule in rules}
    assert ([] if name is None else [name]) == hits
