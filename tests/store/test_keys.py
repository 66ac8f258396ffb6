"""The keys file: what it may say, who may read it, and that no key lies in it."""

import stat
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import DiskError, InputFileError, UsageError
from llmtier.store.keys import ApiKey, digest_key, make_key, read_keys, write_keys

words = st.text(alphabet="abc019._-", min_size=1, max_size=8)
api_keys = st.builds(
    ApiKey,
    name=words,
    digest=st.binary(min_size=32, max_size=32),
    created=st.none() | st.dates(),
    slo_class=st.none() | words,
    classes=st.none() | st.frozensets(words, max_size=3),
    domain=st.none() | words,
    accuracy=st.none() | st.floats(0, 1),
    max_usd=st.none() | st.floats(0, 1e6),
    tiers=st.none() | st.frozensets(st.text(alphabet="ab@/", min_size=1), min_size=1, max_size=3),
)


@given(keys=st.lists(api_keys, max_size=4, unique_by=(lambda key: key.name, lambda key: key.digest)))
def test_what_is_written_is_read_again(tmp_path_factory, keys):
    path = tmp_path_factory.mktemp("keys") / "keys.json"

    write_keys(path, keys)

    assert tuple(keys) == read_keys(path)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_new_key_is_long_unique_and_kept_as_a_digest_alone(tmp_path):
    secret, other = make_key(), make_key()

    write_keys(tmp_path / "keys.json", [ApiKey(name="a", digest=digest_key(secret))])

    assert len(secret) > 50
    assert secret != other
    assert secret not in (tmp_path / "keys.json").read_text()
    assert digest_key(secret) == digest_key(secret.encode()) == read_keys(tmp_path / "keys.json")[0].digest


def test_a_file_with_wider_permissions_is_narrowed(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text("{}")
    path.chmod(0o644)

    write_keys(path, [])

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert ["keys.json"] == [entry.name for entry in tmp_path.iterdir()]


def test_people_may_write_yaml(tmp_path):
    path = tmp_path / "keys.yaml"
    digest = "AB" * 32
    path.write_text(f"keys:\n- {{name: alice, sha256: {digest}, created: 2026-11-02, class: chat, tiers: [m@awq]}}\n")

    (key,) = read_keys(path)

    assert ("alice", bytes.fromhex(digest), date(2026, 11, 2)) == (key.name, key.digest, key.created)
    assert (True, False) == (key.may_use("m@awq"), key.may_use("m@bf16"))


def test_an_empty_file_knows_nobody(tmp_path):
    (tmp_path / "keys.yaml").write_text("# later\n")

    assert () == read_keys(tmp_path / "keys.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: [", "neither JSON nor YAML"),
        ('{"keys": [}', "neither JSON nor YAML"),
        ("- a\n", "dictionary"),
        ("keys: [{name: a, sha256: sk-secret}]", "64 hex digits"),
        ("keys: [{name: 'a b', sha256: " + "0" * 64 + "}]", "keys.0.name"),
        ("keys: [{name: a, sha256: '" + "0" * 64 + "', clas: x}]", "keys.0.clas"),
        ("keys: [{name: a, sha256: '" + "0" * 64 + "', accuracy: 2}]", "keys.0.accuracy"),
        ("keys: [{name: a, sha256: '" + "0" * 64 + "', tiers: []}]", "keys.0.tiers"),
        (
            "keys: [{name: a, sha256: '" + "0" * 64 + "'}, {name: a, sha256: '" + "1" * 64 + "'}]",
            "name 'a' stands twice",
        ),
        ("keys: [{name: a, sha256: '" + "0" * 64 + "'}, {name: b, sha256: '" + "0" * 64 + "'}]", "sha256 '0000"),
        ("schema_version: 2\nkeys: []\n", "schema_version"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path, text, words):
    path = tmp_path / "keys.yaml"
    path.write_text(text)

    with pytest.raises(InputFileError, match=words) as caught:
        read_keys(path)

    assert str(path) in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_says_how_to_make_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputFileError, match="llmtier keys add"):
        read_keys(tmp_path / "keys.json")


def test_refuses_to_write_what_it_would_not_read(tmp_path):
    with pytest.raises(UsageError, match=r"keys\.0\.name"):
        write_keys(tmp_path / "keys.json", [ApiKey(name="a b", digest=b"0" * 32)])

    assert not list(tmp_path.iterdir())


def test_a_refusing_file_system_leaves_the_old_file(tmp_path):
    path = tmp_path / "file" / "keys.json"
    (tmp_path / "file").write_text("not a folder")

    with pytest.raises(DiskError):
        write_keys(path, [])
