"""E-mail addresses, phone numbers, bank accounts, cards and IP addresses in a text.

Pure. Numbers that carry a check (card: Luhn; IBAN: ISO 7064 mod 97) must pass it; addresses and numbers set aside for
examples (RFC 2606, RFC 5737, 555-01xx) and private networks are nobody's and not reported. A number without a check
must be written as a phone number is: with its country code, or grouped. Names and postal addresses are not recognised.
"""

import ipaddress
import re
from collections.abc import Iterator

from llmtier.quantize.calibration.credentials import at
from llmtier.quantize.calibration.findings import FindingKind, Match

EMAIL = re.compile(  # git@host:path is no one
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9@-]|:[\w/])"
)
NOBODYS_DOMAIN = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net))?|test|invalid|localhost|local)$", re.IGNORECASE)

MANY_DIGITS = re.compile(r"\d(?:[ ()./-]{0,3}\d){7}")
"""A text without eight digits close together holds no phone number, card or account."""

IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "FO", "GL", "NL"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "LT", "LU", "XK"), 20),
    **dict.fromkeys(("CH", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "DE", "GB", "GE", "IE", "ME", "RS"), 22),
    **dict.fromkeys(("AE", "GI", "IL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN"), 24),
    **dict.fromkeys(("PT",), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "PL"), 28),
    **dict.fromkeys(("BR", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
}
"""Characters of an account number by country, from the IBAN registry of SWIFT; other countries are not recognised."""

CARD = re.compile(  # a lookahead: what begins within a number that is no card is tried too
    r"(?<!\w)(?<!\w[.,-])(?="
    r"(\d{4}([ -])\d{4}\2\d{4}\2\d{1,7}|\d{4}([ -])\d{6}\3\d{4,5}|\d{13,19})"
    r"(?![A-Za-z0-9])(?!-\w)(?!\.\d))"
)
CARD_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|5\d\d)\d{12}|35\d{14}"
)

PHONE = re.compile(
    r"(?<![\w+.,-])(?:"
    r"\+[1-9](?:[ ()./-]{0,3}\d){7,14}"  # E.164: a country code, 15 digits in all at most
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])\d{3}[.-]\d{4}"  # North America
    r"|(?<!\d )(?:\(0[1-9]\d{0,4}\) ?|0[1-9]\d{0,4}[ /-])(?:[ /-]?\d){6,9}"  # with a trunk 0, as in most of Europe
    r")(?![\w-])(?![.,/]\d)"
)
SHORTEST_UNGROUPED = 11  # the sign and ten digits: +12345678 alone is a number
FEWEST_TRUNK_DIGITS = 9  # 0800-1700 are opening hours
FICTION = re.compile(r"55501\d\d$")
DATE = re.compile(r"\d{1,2}[ ./-]\d{1,2}[ ./-](?:19|20)\d\d")

# The digit before the look behind: the engine then skips to digits, and takes 1 µs instead of 13.
IPV4 = re.compile(r"\d(?<![\w.-]\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w-])(?!\.\d)")
VERSION = re.compile(r"(?:version|release|build|v)[ :=]{0,2}$", re.IGNORECASE)
IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){3,7}(?![\w:])")  # 2000::/3: what is routed


def find_personal(text: str) -> Iterator[Match]:
    """Yield what in ``text`` points to a person or an account; the surest kind first."""
    if "@" in text:
        yield from (
            at(FindingKind.EMAIL, match) for match in EMAIL.finditer(text) if not NOBODYS_DOMAIN.search(match[1])
        )
    if MANY_DIGITS.search(text):
        yield from (found for match in IBAN.finditer(text) if (found := check_iban(match)) is not None)
        yield from (
            at(FindingKind.CREDIT_CARD, match, 1) for match in CARD.finditer(text) if is_card(digits_of(match[1]))
        )
        yield from (at(FindingKind.PHONE, match) for match in PHONE.finditer(text) if is_phone(match[0]))
    if text.count(".") >= 3:
        yield from (at(FindingKind.IP_ADDRESS, match) for match in IPV4.finditer(text) if is_public_ipv4(match))
    if "::" in text or text.count(":") >= 7:
        yield from (at(FindingKind.IP_ADDRESS, match) for match in IPV6.finditer(text) if is_public(match[0]))


def check_iban(match: re.Match[str]) -> Match | None:
    """Return where the account number lies, without a word behind it; ``None`` when it is none."""
    length = IBAN_LENGTHS.get(match[0][:2])
    if length is None:
        return None
    end, n_characters = match.start(), 0
    while end < match.end() and n_characters < length:
        n_characters += match.string[end] != " "
        end += 1
    compact = match.string[match.start() : end].replace(" ", "")
    is_whole = end == match.end() or match.string[end] == " "
    if len(compact) != length or not is_whole or not passes_mod_97(compact):
        return None
    return Match(kind=FindingKind.IBAN, start=match.start(), end=end)


def passes_mod_97(compact: str) -> bool:
    """Tell whether the check digits fit: country and check last, letters as 10 to 35, the remainder 1 (ISO 7064)."""
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def is_card(digits: str) -> bool:
    """Tell whether an issuer has such numbers and the last digit checks."""
    return len(set(digits)) > 1 and bool(CARD_ISSUER.fullmatch(digits)) and passes_luhn(digits)


def passes_luhn(digits: str) -> bool:
    """Tell whether the last digit checks: every second from the right doubled, digits summed, a multiple of ten."""
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def is_phone(written: str) -> bool:
    """Tell whether it is long enough for a phone number, and no date, round figure or number set aside for fiction."""
    digits = digits_of(written)
    if len(set(digits)) < 3 or DATE.match(written) or FICTION.search(digits):
        return False
    if written.startswith("+"):
        return len(written) > len(digits) + 1 or len(written) >= SHORTEST_UNGROUPED
    return len(digits) >= FEWEST_TRUNK_DIGITS


def is_public_ipv4(match: re.Match[str]) -> bool:
    """Tell whether it is somebody's address, and not called a version."""
    before = match.string[max(0, match.start() - 12) : match.start()]
    return not VERSION.search(before) and is_public(match[0])


def is_public(written: str) -> bool:
    """Tell whether it is an address that is routed: not private, loopback or set aside for documentation."""
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


def digits_of(written: str) -> str:
    """Return the digits alone."""
    return "".join(character for character in written if character.isdigit())
