"""Headers to needs: units, defaults, and no junk that passes silently."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.requirement import Requirement
from llmtier.serve.needs import read_needs
from llmtier.serve.refusal import RequestRefusedError

DEFAULTS = Requirement(ttft_s=9.0, e2el_s=8.0)


def read(*headers, defaults=DEFAULTS):
    return read_needs(headers, defaults=defaults, context_tokens=12)


def test_milliseconds_become_seconds_and_defaults_fill_the_rest():
    needs = read(
        (b"x-llmtier-ttft-ms", b"400"),
        (b"x-llmtier-tpot-ms", b"12.5"),
        (b"x-llmtier-accuracy", b"0.9"),
        (b"x-llmtier-max-usd", b"1e-4"),
        (b"x-llmtier-domain", b"support.en"),
        (b"accept", b"*/*"),
    )

    expected = Requirement(ttft_s=0.4, tpot_s=0.0125, e2el_s=8.0, accuracy=0.9, usd=0.0001, context_tokens=12)
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


@given(name=st.binary(max_size=12), value=st.binary(max_size=12))
def test_any_header_is_read_or_refused(name, value):
    with suppress(RequestRefusedError):
        read((b"x-llmtier-" + name, value))
