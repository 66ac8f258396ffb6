"""Who asks: the API key of a request, checked against the sha256 digests that the keys file holds.

In memory, without a lock; a new file makes a new ring. A key is hashed once and goes no further: rules, records
and limits know its digest alone. Reads headers; the file is ``store.keys``.
"""

import hmac
import ipaddress
from collections.abc import Iterable

from llmtier.core.errors import PlanError
from llmtier.serve.refusal import RequestRefusedError
from llmtier.store.keys import ApiKey, digest_key

Headers = Iterable[tuple[bytes, bytes]]

_BEARER = b"bearer "
_KEY_HEADERS = frozenset({b"x-api-key", b"api-key"})
_N_LOOKUP_BYTES = 4
"""Entries are found by so much of their digest, which is no secret, and told apart in constant time."""


class KeyRing:
    """The keys that may ask.

    Args:
        keys: Of the keys file.
    """

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._by_start: dict[bytes, tuple[ApiKey, ...]] = {}
        for key in keys:
            start = key.digest[:_N_LOOKUP_BYTES]
            self._by_start[start] = (*self._by_start.get(start, ()), key)

    def check(self, digest: bytes | None) -> ApiKey:
        """Return whose key it is.

        Args:
            digest: What ``hash_credential`` found.

        Raises:
            RequestRefusedError: 401; there is no key, or none that is known.
        """
        if digest is None:
            raise _unauthorized("an API key is needed: send 'Authorization: Bearer <key>'")
        for key in self._by_start.get(digest[:_N_LOOKUP_BYTES], ()):
            if hmac.compare_digest(key.digest, digest):
                return key
        raise _unauthorized("this API key is not known here")


def hash_credential(headers: Headers) -> bytes | None:
    """Return the sha256 of the request's key: a bearer token, ``x-api-key`` or ``api-key``; ``None`` without one.

    Raises:
        RequestRefusedError: 401; two different keys, of which a proxy and the gateway might each believe another.
    """
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if value[: len(_BEARER)].lower() != _BEARER:
                continue
            secret = value[len(_BEARER) :].strip()
        elif name in _KEY_HEADERS:
            secret = value.strip()
        else:
            continue
        if found is not None and not hmac.compare_digest(found, secret):
            raise _unauthorized("the request holds two different API keys; send one")
        found = secret
    return digest_key(found) if found else None


def check_exposure(host: str, *, has_keys: bool, allows_anonymous: bool) -> None:
    """Check, before a port opens, that it is not open to everyone by mistake.

    Raises:
        PlanError: ``host`` can be reached from other machines, and nobody would have to show a key.
    """
    if has_keys or allows_anonymous or is_loopback(host):
        return
    raise PlanError(
        f"{host} can be reached from other machines and no API key would be asked for: set gateway.keys_file "
        "('llmtier keys add NAME' makes a key), listen on 127.0.0.1, or set gateway.allow_anonymous: true"
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``; a name other than ``localhost`` counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _unauthorized(message: str) -> RequestRefusedError:
    return RequestRefusedError(message, status=401, code="invalid_api_key")
