"""Who asks: credentials in headers, keys in memory, and hosts that must not be open to everyone."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import PlanError
from llmtier.serve.keys import KeyRing, check_exposure, hash_credential, is_loopback
from llmtier.serve.refusal import RequestRefusedError
from llmtier.store.keys import ApiKey, digest_key


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer secret"),
        (b"authorization", b"bearer  secret "),
        (b"x-api-key", b"secret"),
        (b"api-key", b"secret"),
    ],
)
def test_finds_a_key_wherever_clients_put_it(header):
    assert hashlib.sha256(b"secret").digest() == hash_credential([(b"host", b"h"), header])


def test_the_same_key_twice_is_one_key():
    headers = [(b"authorization", b"Bearer secret"), (b"x-api-key", b"secret")]

    assert digest_key("secret") == hash_credential(headers)


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Basic abc")], [(b"authorization", b"Bearer ")]])
def test_finds_none_where_there_is_none(headers):
    assert hash_credential(headers) is None


@pytest.mark.parametrize("second", [(b"authorization", b"Bearer b"), (b"api-key", b"b"), (b"api-key", b"")])
def test_refuses_two_different_keys(second):
    with pytest.raises(RequestRefusedError, match="two different") as caught:
        hash_credential([(b"authorization", b"Bearer a"), second])

    assert (401, "invalid_api_key") == (caught.value.status, caught.value.code)


@given(secrets=st.lists(st.binary(min_size=1), min_size=1, max_size=8, unique=True), stranger=st.binary(min_size=1))
def test_knows_each_key_and_no_other(secrets, stranger):
    keys = [ApiKey(name=str(number), digest=digest_key(secret)) for number, secret in enumerate(secrets)]
    ring = KeyRing(keys)

    assert keys == [ring.check(digest_key(secret)) for secret in secrets]
    if stranger not in secrets:
        with pytest.raises(RequestRefusedError, match="not known"):
            ring.check(digest_key(stranger))


def test_digests_that_begin_alike_are_told_apart():
    keys = [ApiKey(name=name, digest=b"same" + name.encode() * 28) for name in "abc"]

    assert keys == [KeyRing(keys).check(key.digest) for key in keys]


def test_nobody_passes_without_a_key():
    with pytest.raises(RequestRefusedError, match="Authorization") as caught:
        KeyRing([]).check(None)

    assert 401 == caught.value.status


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("box", False),
        ("localhost.example.com", False),
    ],
)
def test_only_loopback_is_served_without_keys(host, is_local):
    assert is_local == is_loopback(host)
    check_exposure(host, has_keys=True, allows_anonymous=False)
    check_exposure(host, has_keys=False, allows_anonymous=True)
    if is_local:
        check_exposure(host, has_keys=False, allows_anonymous=False)
    else:
        with pytest.raises(PlanError, match=r"gateway\.keys_file"):
            check_exposure(host, has_keys=False, allows_anonymous=False)
