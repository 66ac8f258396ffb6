"""Keys, tokens and passwords in a text.

Pure. Well-known formats are recognised by their prefix and length, as the vendors document them; ``name = value`` by the
name, and only where the value looks made up by a machine or a careful person: letters with digits or signs, and no
placeholder. Every repetition is bounded or cannot start twice in one run, so a scan takes time in proportion to the
text. detect-secrets 1.5 was measured instead (100 words, 2026-11-21): 10,900 µs a text with all its detectors, 47 µs
with nine of them, and it brings ``requests``; see ``scan`` for this one.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator

from llmtier.quantize.calibration.findings import FindingKind, Match

MARKS = (
    *("AKIA", "ASIA", "AIza", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-"),
    *("sk-", "sk_", "rk_", "xox", "hf_", "npm_", "pypi-", "SG."),
)
"""A text without any of these holds no key of a known format."""

KEY = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"  # Amazon Web Services
    r"|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|gh[oprsu]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|glpat-[A-Za-z0-9_-]{20,64}"  # GitLab
    r"|sk-(?=[A-Za-z0-9_-]{0,60}?[A-Za-z0-9]{16})[A-Za-z0-9_-]{20,255}"  # OpenAI, Anthropic and others; no slug
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,255}"  # Stripe
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}"  # Slack
    r"|hf_[A-Za-z0-9]{30,64}"  # Hugging Face
    r"|npm_[A-Za-z0-9]{36}"
    r"|pypi-[A-Za-z0-9_-]{50,255}"
    r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}"  # SendGrid
    r")(?![A-Za-z0-9])"
)
PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
JWT = re.compile(r"(?<![A-Za-z0-9_-])(eyJ[A-Za-z0-9_-]{8,4096})\.[A-Za-z0-9_-]{8,16384}\.[A-Za-z0-9_-]{8,4096}")
IN_URL = re.compile(r"://[^\s/:@]{1,64}:([^\s/:@]{3,128})@")

NAMES = ("passw", "pwd", "passphrase", "contrase", "mot de passe", "secret", "token", "key")
SAID = re.compile(  # in lower case: ignoring case takes four times as long
    r"(?:(?P<password>password|passwd|passphrase|passwort|pwd|contrase[nñ]a|mot de passe)"
    r"|secret|token|api[ _-]?key|access[ _-]?key)"
    r"[\"']?\s{0,4}(?::=|=|:|\bis\b)\s{0,4}[\"'`]?(?P<value>[^\s\"'`,;]{6,255})"
)
PLACEHOLDER = re.compile(
    r"[<>{}…•]|\w[(\[]|^[(\[*$%]|\.\.\.|x{4}|\*{4}|example|placeholder|change_?me|redacted|hidden|^your|^my[_-]|^env\b|://",
    re.IGNORECASE,
)
SHORTEST_PASSWORD = 6
SHORTEST_KEY = 16
FEWEST_DIFFERENT = 8
"""Characters: a real key of 20 drawn from 36 has fewer with a probability below 1e-4; ``sk-aaaa...`` has."""


def find_credentials(text: str) -> Iterator[Match]:
    """Yield every key, token and password of ``text``."""
    if "-----BEGIN" in text:
        yield from (at(FindingKind.PRIVATE_KEY, match) for match in PRIVATE_KEY.finditer(text))
    if "eyJ" in text:
        yield from (at(FindingKind.JWT, match) for match in JWT.finditer(text) if is_token_header(match[1]))
    if any(mark in text for mark in MARKS):
        yield from (at(FindingKind.API_KEY, match) for match in KEY.finditer(text) if looks_random(match[0]))
    if "://" in text and "@" in text:
        yield from (at(FindingKind.PASSWORD, match, 1) for match in IN_URL.finditer(text) if not is_stand_in(match[1]))
    lowered = text.replace("İ", "I").lower()  # the one character that lower() makes two of: places stay
    if any(name in lowered for name in NAMES):
        yield from find_assigned(text, lowered)


def find_assigned(text: str, lowered: str) -> Iterator[Match]:
    """Yield the values that ``text`` itself calls a password or a key."""
    for match in SAID.finditer(lowered):
        start = match.start("value")
        value = text[start : match.end("value")].rstrip(".!?:)")
        if match["password"]:
            if looks_like_password(value):
                yield Match(kind=FindingKind.PASSWORD, start=start, end=start + len(value))
        elif len(value) >= SHORTEST_KEY and looks_random(value) and not is_stand_in(value):
            yield Match(kind=FindingKind.API_KEY, start=start, end=start + len(value))


def looks_like_password(value: str) -> bool:
    """Tell whether ``value`` is long enough, and neither words nor signs alone nor a stand-in."""
    has_content = any(character.isalnum() for character in value)
    return len(value) >= SHORTEST_PASSWORD and has_content and not is_words(value) and not is_stand_in(value)


def is_words(value: str) -> bool:
    """Tell whether ``value`` is words of letters, joined as names are: ``old-password``, ``settings.password``."""
    return bool(re.fullmatch(r"[^\W\d_]+(?:[-_./][^\W\d_]+)*", value))


def is_stand_in(value: str) -> bool:
    """Tell whether ``value`` holds the place of a secret: ``<password>``, ``****``, ``${KEY}``, ``getpass()``."""
    return bool(PLACEHOLDER.search(value))


def looks_random(value: str) -> bool:
    """Tell whether ``value`` has letters, digits and many different characters."""
    has_digit = any(character.isdigit() for character in value)
    has_letter = any(character.isalpha() for character in value)
    return has_digit and has_letter and len(set(value)) >= FEWEST_DIFFERENT


def is_token_header(encoded: str) -> bool:
    """Tell whether ``encoded`` is the header of a JSON Web Token (RFC 7515): an object that names an algorithm."""
    try:
        header = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and "alg" in header


def at(kind: FindingKind, match: re.Match[str], group: int = 0) -> Match:
    """Return where a group of ``match`` lies."""
    return Match(kind=kind, start=match.start(group), end=match.end(group))
