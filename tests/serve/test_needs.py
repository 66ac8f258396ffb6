"""Headers to needs: units, defaults, and no junk that passes silently."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.requirement import Requirement
from llmtier.serve.needs import Needs, NeedsReader, Stated
from llmtier.serve.refusal import RequestRefusedError
from llmtier.store.keys import ApiKey

DEFAULTS = Requirement(ttft_s=9.0, e2el_s=8.0)
CLASSES = {"chat": Requirement(ttft_s=0.4), "async": Requirement(e2el_s=2.0, accuracy=0.9, usd=0.01)}
READER = NeedsReader(defaults=DEFAULTS, classes=CLASSES)


def make_key(**facts):
    return ApiKey(name="k", digest=b"d" * 32, **facts)


def refusal(*headers, **more):
    with pytest.raises(RequestRefusedError) as caught:
        READER.read(headers, **more)
    return caught.value


def read(*headers):
    return READER.read(headers)


def test_milliseconds_become_seconds_and_defaults_fill_the_rest():
    needs = read(
        (b"x-llmtier-ttft-ms", b"400"),
        (b"x-llmtier-tpot-ms", b"12.5"),
        (b"x-llmtier-accuracy", b"0.9"),
        (b"x-llmtier-max-usd", b"1e-4"),
        (b"x-llmtier-domain", b"support.en"),
        (b"accept", b"*/*"),
    )

    expected = Requirement(ttft_s=0.4, tpot_s=0.0125, e2el_s=8.0, accuracy=0.9, usd=0.0001)
    assert (expected, "support.en") == (needs.requirement, needs.domain)


@pytest.mark.parametrize("value", [b"", b"nan", b"inf", b"-1", b"1_0", b" 5", b"5ms", b"0x1", b"\xb2"])
@pytest.mark.parametrize("name", [b"x-llmtier-ttft-ms", b"x-llmtier-accuracy", b"x-llmtier-max-usd"])
def test_refuses_what_is_no_number(name, value):
    with pytest.raises(RequestRefusedError, match="expected a non-negative number"):
        read((name, value))


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([(b"x-llmtier-accuracy", b"1.01")], "from 0 to 1"),
        ([(b"x-llmtier-domain", b"a b")], "letters"),
        ([(b"x-llmtier-latency", b"5")], "unknown header x-llmtier-latency; known: x-llmtier-accuracy"),
        ([(b"x-llmtier-e2el-ms", b"5"), (b"x-llmtier-e2el-ms", b"5")], "twice"),
    ],
)
def test_refuses_what_cannot_be_meant(headers, words):
    with pytest.raises(RequestRefusedError, match=words):
        read(*headers)


def test_a_request_that_states_nothing_shares_one_answer():
    anonymous = READER.read([(b"accept", b"*/*"), (b"x-llmtier-session", b"any thing")])

    assert Needs(requirement=DEFAULTS) == anonymous
    assert anonymous is READER.read([], key=make_key(tiers=frozenset({"a"})))


def test_the_same_headers_share_one_answer_and_others_do_not():
    headers = [(b"x-llmtier-ttft-ms", b"400")]

    assert READER.read(headers) is READER.read([(b"host", b"h"), *headers])
    assert 0.5 == READER.read([(b"x-llmtier-ttft-ms", b"500")]).requirement.ttft_s
    assert "d" == READER.read(headers, key=make_key(domain="d")).domain
    assert READER.read(headers).domain is None


def test_no_more_than_so_many_answers_are_remembered():
    reader = NeedsReader(defaults=DEFAULTS)

    for milliseconds in range(3000):
        assert milliseconds / 1000 == reader.read([(b"x-llmtier-ttft-ms", b"%d" % milliseconds)]).requirement.ttft_s

    assert len(reader._remembered) <= 1024


def test_a_class_fills_what_the_request_leaves_open_and_defaults_fill_the_rest():
    needs = READER.read([(b"x-llmtier-class", b"async"), (b"x-llmtier-accuracy", b"0.5")])

    expected = Requirement(ttft_s=9.0, e2el_s=2.0, accuracy=0.5, usd=0.01)
    assert Needs(requirement=expected, slo_class="async") == needs


def test_header_wins_over_body_over_key_over_class_over_defaults():
    key = make_key(slo_class="chat", domain="of-key")
    stated = Stated(ttft_ms=300.0, tpot_ms=20.0, domain="of-body", slo_class="async")

    assert 0.2 == READER.read([(b"x-llmtier-ttft-ms", b"200")], stated=stated, key=key).requirement.ttft_s
    assert (0.3, "of-body", "async") == flat(READER.read([], stated=stated, key=key))
    assert (0.4, "of-key", "chat") == flat(READER.read([], key=key))
    assert (9.0, None, None) == flat(READER.read([]))
    assert "chat" == READER.read([(b"x-llmtier-class", b"chat")], stated=stated).slo_class


def flat(needs):
    return needs.requirement.ttft_s, needs.domain, needs.slo_class


def test_zero_is_a_value_and_not_an_absence():
    needs = READER.read([(b"x-llmtier-accuracy", b"0")], stated=Stated(max_usd=0.0, slo_class="async"))

    assert (0.0, 0.0) == (needs.requirement.accuracy, needs.requirement.usd)


def test_a_key_holds_its_requests_to_floor_and_ceiling():
    key = make_key(accuracy=0.7, max_usd=0.1)

    low = READER.read([(b"x-llmtier-accuracy", b"0.5"), (b"x-llmtier-max-usd", b"5")], key=key)
    high = READER.read([(b"x-llmtier-accuracy", b"0.9"), (b"x-llmtier-max-usd", b"0.05")], key=key)
    silent = READER.read([], key=key)

    assert [(0.7, 0.1), (0.9, 0.05), (0.7, 0.1)] == [
        (needs.requirement.accuracy, needs.requirement.usd) for needs in (low, high, silent)
    ]


def test_names_of_llm_d_mean_the_same():
    headers = [
        (b"x-llm-d-slo-ttft-ms", b"100"),
        (b"x-llm-d-slo-tpot-ms", b"20"),
        (b"x-llm-d-inference-objective", b"async"),
        (b"x-llm-d-inference-fairness-id", b"anything at all"),
    ]

    needs = READER.read(headers)

    assert (0.1, 0.02, 2.0) == (needs.requirement.ttft_s, needs.requirement.tpot_s, needs.requirement.e2el_s)
    assert "twice as x-llm-d-slo-ttft-ms" in str(refusal(headers[0], (b"x-llmtier-ttft-ms", b"100")))


def test_refuses_classes_that_are_not_there_or_not_granted():
    unknown = refusal((b"x-llmtier-class", b"vip"))
    barred = refusal((b"x-llmtier-class", b"async"), key=make_key(slo_class="chat", classes=frozenset()))

    assert (400, "unknown SLO class 'vip'; known: chat, async") == (unknown.status, str(unknown))
    assert (403, "class_not_allowed") == (barred.status, barred.code)
    assert "chat" == READER.read([(b"x-llmtier-class", b"chat")], key=make_key(slo_class="chat")).slo_class


def test_length_joins_the_limits_only_where_asked():
    needs = READER.read([(b"x-llmtier-class", b"async")])

    long = needs.with_context(99)

    assert (None, 99) == (needs.requirement.context_tokens, long.requirement.context_tokens)
    assert needs == Needs(
        requirement=Requirement(ttft_s=9.0, e2el_s=2.0, accuracy=0.9, usd=0.01), slo_class=long.slo_class
    )


@given(name=st.binary(max_size=12), value=st.binary(max_size=12))
def test_any_header_is_read_or_refused(name, value):
    with suppress(RequestRefusedError):
        read((b"x-llmtier-" + name, value))
