"""The live ledger and the profiler's rebuilt one: a model must be asked with the state that it was fitted on."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmtier.engine.wire import Usage
from llmtier.profile.ledger_view import rebuild_states
from llmtier.profile.sample import RequestSample
from llmtier.serve.ledger import FEWEST, WINDOW, PromptSize, TierLedger
from llmtier.store.profiles import RequestRow

PIECE, DONE, SENT = range(3)  # of one instant, in this order


@st.composite
def loads(draw):
    """Draw streams of an engine that steps once a second: who was sent before a step has its next token at its end."""
    samples = []
    sent_s = sorted(draw(st.lists(st.integers(1, 120), min_size=1, max_size=40, unique=True)))
    for number, at in enumerate(sent_s):
        now_s = at / 4 + 0.01  # never at a step's end
        n_tokens = draw(st.integers(1, 6))
        content_s = tuple(math.ceil(now_s) + 1.0 + step for step in range(n_tokens))
        row = RequestRow(
            tier="t", concurrency=None, prompt_id=str(number), scheduled_s=now_s, sent_s=now_s, first_s=content_s[0],
            last_s=content_s[-1], done_s=content_s[-1], n_input_tokens=draw(st.integers(1, 99)), n_output_tokens=n_tokens,
        )  # fmt: skip
        samples.append(RequestSample(row=row, content_s=content_s))
    return samples


def replay(samples):
    """Return what the ledger says at each send."""
    events = []
    for index, sample in enumerate(samples):
        events.append((sample.row.sent_s, SENT, index))
        events.append((sample.row.done_s, DONE, index))
        events.extend((at_s, PIECE, index) for at_s in sample.content_s)
    ledger, flights, states = TierLedger(), {}, []
    for now_s, kind, index in sorted(events):
        if kind == SENT:
            states.append(ledger.state(now_s))
            size = PromptSize(n_tokens=samples[index].row.n_input_tokens)
            flights[index] = ledger.begin(size, now_s=now_s, is_stream=True)
        elif kind == PIECE:
            flights[index].note_piece(now_s)
        else:
            ledger.end(flights[index])
            flights[index].learn(Usage(completion_tokens=samples[index].row.n_output_tokens))
    return states


@given(loads())
def test_the_ledger_says_what_the_profiler_rebuilds(samples):
    for n_before, (live, rebuilt) in enumerate(zip(replay(samples), rebuild_states(samples), strict=True)):
        early = {"mean_input_tokens": None, "mean_output_tokens": None}  # the ledger waits for some requests

        assert replace(rebuilt, **early) == replace(live, **early)
        if n_before >= FEWEST:
            assert rebuilt.mean_input_tokens == live.mean_input_tokens
        if live.mean_output_tokens is not None and n_before <= WINDOW:  # one leaves answers of one instant unordered
            assert rebuilt.mean_output_tokens == live.mean_output_tokens
