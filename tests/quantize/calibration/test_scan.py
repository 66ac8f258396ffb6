import base64
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.quantize.calibration.scan import FindingKind, scan


def kinds(text):
    return [finding.kind for finding in scan(text)]


def random_part(n):
    """Characters that look drawn: no key of anybody."""
    return ("q7Rk2ZpV9xLm4TbN8cWd3HsY6fJg1AeU5" * 4)[:n]


def token(header):
    part = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
    return f"{part}.{random_part(40)}.{random_part(43)}"


SECRETS = [
    (FindingKind.API_KEY, "AKIA" + "Q7RK2ZPV9XLM4TBN"),
    (FindingKind.API_KEY, "ghp_" + random_part(36)),
    (FindingKind.API_KEY, "github_pat_" + random_part(60)),
    (FindingKind.API_KEY, "glpat-" + random_part(20)),
    (FindingKind.API_KEY, "sk-" + random_part(48)),
    (FindingKind.API_KEY, "sk-proj-" + random_part(80)),
    (FindingKind.API_KEY, "sk_live_" + random_part(24)),
    (FindingKind.API_KEY, "xoxb-" + "2048391756-" + random_part(24)),
    (FindingKind.API_KEY, "AIza" + random_part(35)),
    (FindingKind.API_KEY, "hf_" + random_part(34)),
    (FindingKind.API_KEY, "npm_" + random_part(36)),
    (FindingKind.API_KEY, "SG." + random_part(22) + "." + random_part(43)),
    (FindingKind.JWT, token({"alg": "HS256", "typ": "JWT"})),
    (FindingKind.PRIVATE_KEY, "-----BEGIN PRIVATE KEY-----"),
    (FindingKind.PRIVATE_KEY, "-----BEGIN OPENSSH PRIVATE KEY-----"),
    (FindingKind.PRIVATE_KEY, "-----BEGIN PGP PRIVATE KEY BLOCK-----"),
]
PERSONAL = [
    (FindingKind.EMAIL, "mary.o+news@mail.firm.co.uk"),
    (FindingKind.PHONE, "+49 (0)170 1234567"),
    (FindingKind.PHONE, "+441632960983"),
    (FindingKind.PHONE, "(212) 736-5000"),
    (FindingKind.PHONE, "1-212-736-5000"),
    (FindingKind.PHONE, "01 42 68 53 00"),
    (FindingKind.PHONE, "0170/1234567"),
    (FindingKind.IBAN, "DE89 3704 0044 0532 0130 00"),
    (FindingKind.IBAN, "GB82WEST12345698765432"),
    (FindingKind.CREDIT_CARD, "4111 1111 1111 1111"),
    (FindingKind.CREDIT_CARD, "5500-0000-0000-0004"),
    (FindingKind.CREDIT_CARD, "378282246310005"),
    (FindingKind.CREDIT_CARD, "3782 822463 10005"),
    (FindingKind.IP_ADDRESS, "8.8.4.4"),
    (FindingKind.IP_ADDRESS, "2001:4860:4860::8888"),
]


@pytest.mark.parametrize(("kind", "secret"), SECRETS + PERSONAL)
@pytest.mark.parametrize("frame", ["{}", "Please use {}, thanks.", "It is {}.", "({})", 'x="{}"', "a\n{}\nb", "é {} ü"])
def test_scan_finds_each_kind_once_and_masks_it(kind, secret, frame):
    (finding,) = scan(frame.format(secret))

    assert kind is finding.kind
    assert secret not in finding.masked
    assert finding.masked.startswith(secret[: min(3, len(secret) // 4)])
    assert f"({len(secret)} characters)" in finding.masked


@pytest.mark.parametrize(
    "text",
    [
        "password = hunter22",
        'DB_PASSWORD="tr0ub4dor&3"',
        '{"password": "s3cret-value"}',
        "My password is Winter2024!",
        "passwd: 83749201",
        "İstanbul İ PASSWORD: Bosporus7",
        "Passwort: geheim123",
        "postgres://admin:pa55w0rd@db.internal/prod",
    ],
)
def test_scan_finds_passwords(text):
    assert [FindingKind.PASSWORD] == kinds(text)


@pytest.mark.parametrize("name", ["api_key", "API-KEY", "client_secret", "access_token", "apiKey"])
def test_scan_finds_keys_of_unknown_format_by_their_name(name):
    assert [FindingKind.API_KEY] == kinds(f'{name} = "{random_part(32)}"')


@pytest.mark.parametrize(
    "text",
    [
        "My order ORD-40257 has not arrived.",
        "I paid 4111 for the phone and 1,299.00 for the screen.",
        "Order 4111111111111112 is late.",  # the last digit does not check
        "Reference ORD-4111111111111111, item SKU_4111111111111111.",
        "0000 0000 0000 0000",
        "Tracking number 1Z999AA10123456784.",
        "It was delivered on 01-02-2024 at 10:30, not on 2024-01-02.",
        "Between 12/11/2023 14:05:33 and 03.04.2024",
        "We are open 0800-1700.",
        "Call the hotline 212-555-0142.",  # set aside for fiction
        "Revenue grew from 1 000 000 to 12 345 678 units (+20 000 000).",
        "Python 3.11.4, version 10.2.33.4, v8.8.8.8",
        "Router 192.168.1.1, localhost 127.0.0.1, documentation 203.0.113.7, 2001:db8::1",
        "999.888.777.666",
        "std::vector<int>::iterator, at 12:30:45:99",
        "jane@example.com, bob@example.org, root@localhost, x@mail.test",
        "git clone git@github.com:org/repo.git",
        "@decorator\ndef f(): a @ b",
        "Your password is case-sensitive. Password: required",
        "password: ********, password = <your password>, password=${PASSWORD}, password=$1",
        "password = getpass.getpass(); token = os.environ['TOKEN']; secret = load_secret(path)",
        "def login(user: str, password: str) -> None:",
        "token: the smallest unit of text; key: value pairs; secret = settings.secret",
        "sk-learn-based-text-classification-pipeline-2",
        "risk-assessment-2024-final-version",
        "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx, api_key = 'your-api-key-goes-here-1'",
        "eyJub3QiOiJhIGp3dCJ9.aaaaaaaaaaaa.bbbbbbbbbbbb",  # an object, but no header
        "-----BEGIN PUBLIC KEY-----, -----BEGIN CERTIFICATE-----",
        "DE00 3704 0044 0532 0130 00",  # the check digits do not fit
        "ISBN 978-3-16-148410-0, 3.14159265358979, 0.1234567890123",
        "1 2 3 4 5 6 7 8 9 10 11 12",
        "x = [10, 20, 30, 40]; 2 ** 64 = 18446744073709551616",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "123e4567-e89b-12d3-a456-426614174000",
    ],
)
def test_scan_leaves_ordinary_text_alone(text):
    assert () == scan(text)


def test_scan_reports_each_place_in_the_order_of_the_text():
    text = "8.8.4.4 then mary@firm.org, card 2024 4111 1111 1111 1111 123, IBAN DE89 3704 0044 0532 0130 00 BIC"

    assert [FindingKind.IP_ADDRESS, FindingKind.EMAIL, FindingKind.CREDIT_CARD, FindingKind.IBAN] == kinds(text)


def test_scan_reads_overlapping_places_as_the_graver_kind():
    assert [FindingKind.PASSWORD] == kinds("https://mary:pa55w0rd@firm.org/x")
    assert [FindingKind.API_KEY] == kinds("password: ghp_" + random_part(36))


REPEATED = [
    *("a", "1", " ", "1 ", "+1", "a.", "a@", "@a.", "a@b.", ":", "0", "(", "é", "१", "4111 ", "4111-", "01 ", "1."),
    *("password", "password ", "password:", "key= ", "eyJ", "eyJaaaaaaaa.", "sk-", "sk-a-", "xoxb-", "SG."),
    *("-----BEGIN ", "DE89 ", "AB12", "2001:", "2000:", "://", "://a:", "://a:b@"),
]


@pytest.mark.parametrize("unit", REPEATED)
def test_scan_of_a_long_repetition_ends_soon(unit):
    n = 100_000 // len(unit)

    for ending in ("", "@", "!", "="):  # the test's time limit is the assertion
        scan(unit * n + ending)


def test_scan_of_many_findings_ends_soon():
    assert 5_000 == len(scan("mary@firm.org, 8.8.4.4. " * 2_500))


@given(st.text(alphabet=string.printable + "é…", max_size=200))
def test_scan_takes_any_text_and_never_shows_much(text):
    for finding in scan(text):
        shown = finding.masked.partition("…")[0]
        assert len(shown) <= 3


@given(st.sampled_from(PERSONAL), st.text(alphabet="abcdefghij ", max_size=40))
def test_words_around_do_not_hide_a_finding(case, words):
    kind, secret = case

    assert kind in kinds(f"{words} {secret} {words}")


@given(st.text(alphabet="0123456789", min_size=15, max_size=15))
def test_one_wrong_digit_is_no_card(digits):
    prefix = "4" + digits[:14]
    numbers = [f"{prefix}{last}" for last in range(10)]

    assert 1 >= sum(FindingKind.CREDIT_CARD in kinds(number) for number in numbers)


def test_places_stay_where_lower_case_has_more_characters():
    assert "B" == scan("İİİ Password: Bospor7")[0].masked[0]


def test_lower_case_is_as_long_for_every_character_but_one():
    assert "İ" == "".join(chr(code) for code in range(0x110000) if len(chr(code).lower()) != 1)
