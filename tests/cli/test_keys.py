"""``llmtier keys``: a key is shown once, listed by its digest, and taken away by name."""

import json

import pytest

from llmtier.store.keys import digest_key, read_keys

CONFIG = {
    "tiers": [{"name": "t", "model": "m", "scheme": "bf16", "engine": {"kind": "mock"}}],
    "slo_classes": {"chat": {"ttft_s": 0.4}},
    "gateway": {"keys_file": "secret/keys.json"},
}


@pytest.fixture
def keys(llmtier, tmp_path):
    """Return a function that runs ``llmtier keys WORDS...``, and the keys file."""
    config = tmp_path / "llmtier.yaml"
    config.write_text(json.dumps(CONFIG))
    return lambda *words: llmtier("keys", *words, "-c", config), tmp_path / "secret" / "keys.json"


def test_a_key_is_made_listed_and_revoked(keys):
    run, path = keys

    added = run("add", "alice", "--class", "chat", "--tier", "t", "--accuracy", "0.7")
    secret = added.out.strip()
    listed = run("list", "--json")
    revoked = run("revoke", "alice")

    assert (0, 0, 0) == (added.code, listed.code, revoked.code)
    entry = json.loads(listed.out)["keys"][0]
    assert {"name": "alice", "class": "chat", "tiers": ["t"], "accuracy": 0.7} == {
        name: value for name, value in entry.items() if name not in {"sha256", "created"}
    }
    assert digest_key(secret).hex() == entry["sha256"]
    assert secret not in added.err + listed.out
    assert () == read_keys(path)


def test_a_program_gets_one_document_with_the_key(keys):
    run, path = keys

    document = json.loads(run("add", "bot", "--json").out)

    assert digest_key(document["key"]) == read_keys(path)[0].digest


def test_people_get_a_table(keys):
    run, _ = keys
    run("add", "alice", "--allow-class", "chat")

    assert "alice" in run("list").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("add", "alice"), "already"),
        (("add", "a b"), "name"),
        (("add", "bob", "--class", "vip"), "no SLO class 'vip' in the configuration; there are: chat"),
        (("add", "bob", "--tier", "x"), "no tier 'x'"),
        (("revoke", "bob"), "no key named 'bob'"),
    ],
)
def test_says_what_is_wrong(keys, words, message):
    run, path = keys
    run("add", "alice")

    ended = run(*words)

    assert 2 == ended.code
    assert message in ended.err
    assert ["alice"] == [key.name for key in read_keys(path)]


def test_says_where_the_file_is_to_be_named(llmtier, tmp_path):
    config = tmp_path / "llmtier.yaml"
    config.write_text(json.dumps({"tiers": CONFIG["tiers"]}))

    ended = llmtier("keys", "list", "-c", config)

    assert (2, True) == (ended.code, "keys_file: keys.json" in ended.err)
