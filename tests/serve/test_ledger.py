"""The ledger of one engine: what it counts, what it learns, and that nothing is left behind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.latency_model import LoadState
from llmtier.engine.wire import Usage
from llmtier.serve.ledger import FEWEST, WINDOW, PromptSize, TierLedger

SIZE = PromptSize(n_characters=400)


def begin(ledger, *, now_s=0.0, size=SIZE, is_stream=True):
    return ledger.begin(size, now_s=now_s, is_stream=is_stream)


def fill(ledger, arrivals_s):
    for now_s in arrivals_s:
        ledger.end(begin(ledger, now_s=now_s))


def mean_lengths(ledger):
    state = ledger.state(0.0)
    return state.mean_input_tokens, state.mean_output_tokens


def test_a_stream_prefills_then_decodes_then_is_gone():
    ledger = TierLedger()
    flight = begin(ledger)
    alone = LoadState(n_prefilling=1, prefill_tokens=100, n_joined=1, joined_tokens=100, step_age_s=0.5)
    assert alone == ledger.state(0.5)

    flight.note_piece(1.0)
    flight.note_piece(1.5)
    assert LoadState(n_decoding=1, kv_tokens=102, step_age_s=0.25) == ledger.state(1.75)

    ledger.end(flight)
    assert LoadState() == ledger.state(2.0)


def test_a_whole_answer_counts_as_decoding_half_a_mean_answer_in():
    ledger = TierLedger()
    for _ in range(FEWEST):
        ledger.learn(SIZE, Usage(prompt_tokens=100, completion_tokens=20))
    flight = begin(ledger, is_stream=False)

    state = ledger.state(0.0)
    assert (1, 0, 0, 110) == (state.n_decoding, state.n_prefilling, state.prefill_tokens, state.kv_tokens)
    assert state.step_age_s is None

    ledger.end(flight)
    assert (0, 0) == (ledger.n_in_flight, ledger.kv_tokens)


def test_a_step_has_no_age_once_no_stream_is_decoding():
    ledger = TierLedger()
    stream = begin(ledger)
    stream.note_piece(1.0)
    begin(ledger, is_stream=False)
    assert 1.0 == ledger.state(2.0).step_age_s

    ledger.end(stream)
    assert ledger.state(2.0).step_age_s is None


def test_prompts_join_the_step_that_begins_with_the_newest_token():
    ledger = TierLedger()
    stream = begin(ledger, now_s=0.0)
    early = begin(ledger, now_s=1.0, size=PromptSize(n_tokens=30))
    late = begin(ledger, now_s=3.0, size=PromptSize(n_tokens=7))

    def joined():
        state = ledger.state(5.0)
        return state.n_joined, state.joined_tokens, state.step_age_s

    assert (1, 100, 5.0) == joined()  # the engine was idle when the first came

    stream.note_piece(2.0)
    assert (1, 30, 3.0) == joined()

    stream.note_piece(4.0)
    assert (2, 37, 1.0) == joined()

    ledger.end(early)
    assert (1, 7, 1.0) == joined()

    ledger.end(stream)
    ledger.end(late)
    assert (0, 0, None) == joined()


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["begin", "piece", "end"]), st.booleans(), st.integers(0, 999))
    )
)
def test_the_counts_are_those_of_the_requests_in_flight(events):
    """However requests interleave, the running sums equal a recount, and all is zero when all have ended."""
    ledger, flights, pieces = TierLedger(), {}, {}
    for now_s, (slot, event, is_stream, length) in enumerate(events):
        if event == "begin" and slot not in flights:
            flights[slot] = begin(ledger, now_s=now_s, size=PromptSize(n_tokens=length), is_stream=is_stream)
            pieces[slot] = (max(length, 1), is_stream, 0)
        elif event == "piece" and slot in flights and pieces[slot][1]:
            flights[slot].note_piece(now_s)
            pieces[slot] = (*pieces[slot][:2], pieces[slot][2] + 1)
        elif event == "end" and slot in flights:
            ledger.end(flights.pop(slot))
            del pieces[slot]
    waiting = [length for length, is_stream, n in pieces.values() if is_stream and not n]
    decoding = [length + n for length, is_stream, n in pieces.values() if n or not is_stream]

    assert (len(waiting), sum(waiting)) == (ledger.n_in_flight - ledger.n_decoding, ledger.prefill_tokens)
    assert (len(decoding), sum(decoding)) == (ledger.n_decoding, ledger.kv_tokens)

    for flight in flights.values():
        ledger.end(flight)
    left = ledger.state(float(len(events)))
    assert (0, 0, 0, 0) == (left.n_decoding, left.n_prefilling, left.prefill_tokens, left.kv_tokens)
    assert left.step_age_s is None


def test_the_rate_is_unknown_at_first_then_that_of_the_window_and_falls_in_silence():
    ledger = TierLedger()
    fill(ledger, [float(second) for second in range(FEWEST - 1)])
    assert ledger.arrival_rps(7.0) is None

    fill(ledger, [FEWEST - 1.0])
    assert 1.0 == pytest.approx(ledger.arrival_rps(float(FEWEST)))

    fill(ledger, [100.0 + number / 10 for number in range(WINDOW)])
    at_once, later = ledger.arrival_rps(103.2), ledger.arrival_rps(131.0)
    assert 10.0 == pytest.approx(at_once)
    assert WINDOW / 31 == pytest.approx(later)


def test_a_burst_at_one_instant_has_no_rate():
    ledger = TierLedger()
    fill(ledger, [5.0] * FEWEST)

    assert ledger.arrival_rps(5.0) is None


def test_token_ratio_starts_at_four_characters_and_follows_the_engine():
    ledger = TierLedger()
    assert 100 == begin(ledger).input_tokens

    for _ in range(400):
        ledger.learn(PromptSize(n_characters=300), Usage(prompt_tokens=100))
    assert 1 / 3 == pytest.approx(ledger.tokens_per_character, rel=1e-3)
    assert 133 == begin(ledger).input_tokens


def test_token_ids_are_exact_and_teach_no_ratio():
    ledger = TierLedger()
    ledger.learn(PromptSize(n_tokens=7), Usage(prompt_tokens=7))

    assert 0.25 == ledger.tokens_per_character
    assert 7 == begin(ledger, size=PromptSize(n_tokens=7)).input_tokens
    assert 1 == begin(ledger, size=PromptSize()).input_tokens


def test_mean_lengths_need_some_requests_and_then_forget_old_ones():
    ledger = TierLedger()
    for length in range(1, FEWEST):
        ledger.end(begin(ledger, size=PromptSize(n_tokens=length)))
        ledger.learn(SIZE, Usage(completion_tokens=2 * length))
    assert (None, None) == mean_lengths(ledger)

    begin(ledger, size=PromptSize(n_tokens=12)).learn(Usage(completion_tokens=24))
    assert (5.0, 10.0) == mean_lengths(ledger)

    for _ in range(WINDOW):
        begin(ledger, size=PromptSize(n_tokens=30)).learn(Usage(completion_tokens=64))
    assert (30.0, 64.0) == mean_lengths(ledger)


def test_an_answer_without_usage_teaches_nothing():
    ledger = TierLedger()
    for _ in range(FEWEST):
        begin(ledger).learn(Usage())

    assert ledger.state(0.0).mean_output_tokens is None
    assert 0.25 == ledger.tokens_per_character


def test_counts_are_what_other_processes_need():
    ledger = TierLedger()
    fill(ledger, [0.1 * n for n in range(FEWEST)])
    decoding = begin(ledger, now_s=0.9)
    decoding.note_piece(1.0)
    begin(ledger, now_s=1.0, size=PromptSize(n_tokens=7))

    assert (1.0, 1.0, 7.0, 101.0, ledger.arrival_rps(2.0)) == ledger.counts(2.0)
    assert 0.0 == TierLedger().counts(2.0)[-1]


ROUND = st.lists(st.sampled_from(["begin", "piece", "end"]), max_size=30)


def play(steps, *ledgers):
    """Do the same on each ledger; the last request that was begun is the one that goes on."""
    rounds = []
    for now_s, step in enumerate(steps):
        if step == "begin":
            rounds.append([begin(ledger, now_s=now_s) for ledger in ledgers])
        elif rounds and step == "piece":
            for flight in rounds[-1]:
                flight.note_piece(now_s)
        elif rounds:
            for ledger, flight in zip(ledgers, rounds.pop(), strict=True):
                ledger.end(flight)


@given(ROUND, ROUND)
def test_two_processes_together_see_what_one_would(mine, theirs):
    """The counts add up; only the running step is seen by whose tokens come alone."""
    one, two, whole = TierLedger(), TierLedger(), TierLedger()
    play(mine, one, whole)
    play(theirs, two, whole)
    seen, expected = one.state(99.0, others=two.counts(99.0)), whole.state(99.0)

    for name in ("n_decoding", "n_prefilling", "prefill_tokens", "kv_tokens"):
        assert getattr(expected, name) == getattr(seen, name)
    assert seen.n_joined <= seen.n_prefilling
    assert (one.arrival_rps(99.0) or 0) + (two.arrival_rps(99.0) or 0) == (seen.arrival_rps or 0)


def test_a_step_that_only_others_see_has_no_age_and_nobody_in_it():
    ledger = TierLedger()
    begin(ledger)
    assert (1, 100, 2.0) == joined_of(ledger.state(2.0, others=(0.0,) * 5))
    assert (0, 0, None) == joined_of(ledger.state(2.0, others=(1.0, 0.0, 0.0, 50.0, 0.0)))

    begin(ledger).note_piece(1.0)
    assert (1, 100, 1.0) == joined_of(ledger.state(2.0, others=(1.0, 0.0, 0.0, 50.0, 0.0)))


def joined_of(state):
    return state.n_joined, state.joined_tokens, state.step_age_s


def test_the_load_of_strangers_decodes_and_comes_as_the_own_does():
    ledger = TierLedger()
    for _ in range(FEWEST):
        ledger.learn(SIZE, Usage(prompt_tokens=100, completion_tokens=20))
    fill(ledger, [0.5 * n for n in range(FEWEST)])
    flight = begin(ledger, now_s=4.0)
    flight.note_piece(4.0)
    own, crowded = ledger.state(4.5), ledger.state(4.5, n_foreign=3.0)

    assert (1, 4) == (own.n_decoding, crowded.n_decoding)
    assert own.kv_tokens + round(3 * (own.mean_input_tokens + 10)) == crowded.kv_tokens
    assert pytest.approx(4 * own.arrival_rps) == crowded.arrival_rps
    assert own.step_age_s == crowded.step_age_s == 0.5

    ledger.end(flight)
    alone = ledger.state(4.5, n_foreign=3.0)
    assert (3, None, None) == (alone.n_decoding, alone.arrival_rps, alone.step_age_s)
    assert ledger.state(4.5) == ledger.state(4.5, n_foreign=0.0)


def test_answers_teach_lengths_by_what_was_asked_for():
    ledger = TierLedger()
    for _ in range(FEWEST):
        short = ledger.begin(SIZE, now_s=0.0, is_stream=True, max_tokens=16)
        short.learn(Usage(completion_tokens=12))
        begin(ledger).learn(Usage(completion_tokens=300))
        begin(ledger).learn(Usage())  # unknown teaches nothing

    assert 12 == ledger.lengths.find_long(16)
    assert 300 == ledger.lengths.find_long(None)
