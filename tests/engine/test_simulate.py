"""The simulator: the very instants of the mock engine, which runs beside it on a virtual clock."""

import asyncio
import selectors

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from llmtier.engine.mock import mock_app
from llmtier.engine.mock_engine import MockEngine
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.engine.simulate import Simulation, find_refused, simulate

KNOWN = MockSettings(alpha_s=1.0, beta_s_per_token=0.01, sequence_s=0.1, gamma_s_per_kv_token=0.001)


class VirtualSelector(selectors.SelectSelector):
    """Waits for nothing: moves the loop's time on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.time_s = 0.0

    @override
    def select(self, timeout=None):
        self.time_s += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time; a Clock too."""

    def __init__(self) -> None:
        self.selector = VirtualSelector()
        super().__init__(self.selector)

    @override
    def time(self) -> float:
        return self.selector.time_s

    def now_s(self) -> float:
        return self.selector.time_s

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


async def token_instants(engine: MockEngine, clock: VirtualLoop, n_input: int, n_output: int) -> list[float]:
    sequence = engine.submit(n_prompt_tokens=n_input, n_output_tokens=n_output)
    return [clock.now_s() async for _ in sequence.tokens()]


def run_mock(mock: MockSettings, arrivals_s, n_input, n_output, concurrency=None) -> list[tuple[float, list[float]]]:
    """Drive the real mock engine; return arrival and token instants of each request in the order of its number."""
    loop = VirtualLoop()
    engine = MockEngine(mock, clock=loop)
    refused = find_refused(mock, len(n_input))
    found: list[tuple[float, list[float]]] = [(0.0, [])] * len(n_input)
    items = iter(range(len(n_input)))

    async def send(number: int) -> None:
        began_s = loop.now_s()
        answer = [] if refused[number] else await token_instants(engine, loop, n_input[number], n_output[number])
        found[number] = (began_s, answer)

    async def arrive(number: int) -> None:
        await loop.sleep(arrivals_s[number])
        await send(number)

    async def work(worker: int) -> None:
        await loop.sleep(arrivals_s[worker])
        for number in items:
            await send(number)

    async def everyone() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(len(arrivals_s)):
                group.create_task(arrive(number) if concurrency is None else work(number))

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(everyone())
    return found


def seen(result: Simulation) -> list[tuple[float, list[float]]]:
    return [(request.arrival_s, list(request.token_s)) for request in result.requests()]


def flat(found: list[tuple[float, list[float]]]) -> list[float]:
    return [instant for arrival_s, tokens in found for instant in (arrival_s, *tokens)]


def assert_same(expected: list[tuple[float, list[float]]], result: Simulation) -> None:
    assert [len(tokens) for _, tokens in expected] == [len(tokens) for _, tokens in seen(result)]
    assert pytest.approx(flat(expected), abs=1e-6) == flat(seen(result))


MOCKS = st.builds(
    MockSettings,
    alpha_s=st.floats(0.01, 2.0),
    beta_s_per_token=st.sampled_from([0.0, 0.01]),
    sequence_s=st.sampled_from([0.0, 0.1]),
    gamma_s_per_kv_token=st.sampled_from([0.0, 0.001]),
    noise=st.sampled_from([0.0, 0.3]),
    max_num_seqs=st.integers(1, 5),
    seed=st.integers(0, 9),
    faults=st.sampled_from([(), (Fault(kind=FaultKind.ERROR, probability=0.3),)]),
)
LENGTHS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 8)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(mock=MOCKS, lengths=LENGTHS, rate_rps=st.floats(0.05, 5.0), seed=st.integers(0, 99))
def test_open_loop_is_the_mock_engine_to_the_instant(mock, lengths, rate_rps, seed):
    n_input, n_output = zip(*lengths, strict=True)
    arrivals_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rate_rps, len(lengths))).tolist()

    result = simulate(mock, arrivals_s, n_input, n_output, np.random.default_rng(mock.seed))

    assert_same(run_mock(mock, arrivals_s, n_input, n_output), result)


@settings(max_examples=60, deadline=None)
@given(mock=MOCKS, lengths=LENGTHS, concurrency=st.integers(1, 8), gap_s=st.sampled_from([0.0, 0.37, 11.3]))
def test_closed_loop_is_the_mock_engine_to_the_instant(mock, lengths, concurrency, gap_s):
    n_input, n_output = zip(*lengths, strict=True)
    starts_s = [gap_s * worker for worker in range(concurrency)]

    result = simulate(mock, starts_s, n_input, n_output, np.random.default_rng(mock.seed), concurrency)

    # Requests freed at one instant may be taken up in any order by equal workers: the set of instants is what counts.
    expected = run_mock(mock, starts_s, n_input, n_output, concurrency)
    assert_same(expected, result)


def test_step_time_is_the_known_formula():
    result = simulate(KNOWN, [5.0], [20], [3], np.random.default_rng(0))

    first = 5.0 + 1.0 + 0.01 * 20 + 0.1 + 0.001 * 20
    second = first + 1.0 + 0.1 + 0.001 * 21
    assert pytest.approx([first, second, second + 1.0 + 0.1 + 0.001 * 22]) == list(result.requests()[0].token_s)
    assert pytest.approx([first - 5.0]) == result.ttft_s.tolist()
    assert pytest.approx([(1.1 + 0.021 + 1.1 + 0.022 - 0.0) / 2]) == result.tpot_s.tolist()


def test_place_in_the_batch_is_waited_for():
    mock = MockSettings(alpha_s=1.0, beta_s_per_token=0.0, sequence_s=0.0, max_num_seqs=2)
    result = simulate(mock, [0.0, 0.0, 0.0], [1, 1, 1], [1, 3, 1], np.random.default_rng(0))

    assert [(1.0,), (1.0, 2.0, 3.0), (2.0,)] == [request.token_s for request in result.requests()]
    assert [2, 2, 1] == result.n_running.tolist()
    assert 5 == result.n_token_events


def test_arrays_agree_with_the_requests():
    mock = MockSettings(noise=0.2, max_num_seqs=4, faults=(Fault(kind=FaultKind.REFUSE, probability=0.2),))
    rng = np.random.default_rng(1)
    n_output = rng.integers(1, 20, 200)
    result = simulate(mock, np.cumsum(rng.exponential(0.005, 200)), rng.integers(1, 9, 200), n_output, rng)

    answered = [request for request in result.requests() if not request.is_refused]
    assert 0 < 200 - len(answered) == int(result.is_refused.sum())
    assert pytest.approx([one.token_s[0] - one.arrival_s for one in answered]) == result.ttft_s.tolist()
    assert pytest.approx([one.done_s - one.arrival_s for one in answered]) == result.e2el_s.tolist()
    assert sum(len(one.token_s) for one in answered) == result.n_token_events == int(result.n_running.sum())


def test_refusals_are_those_of_the_mock():
    mock = MockSettings(
        seed=4,
        faults=(Fault(kind=FaultKind.RATE_LIMIT, on_nth_request=3), Fault(kind=FaultKind.ERROR, probability=0.3)),
    )
    app = mock_app(mock)

    expected = [app._fault_of(number) is not None for number in range(1, 101)]
    assert expected == find_refused(mock, 100).tolist()
    assert expected[2]


@pytest.mark.parametrize(
    ("arrivals_s", "n_output", "mock", "words"),
    [
        ([1.0, 0.5], [1, 1], KNOWN, "ascend"),
        ([0.0], [1, 1], KNOWN, "each start an instant"),
        ([0.0, 1.0], [1, 0], KNOWN, "1 token or more"),
        ([0.0, 1.0], [1, 1], MockSettings(faults=(Fault(kind=FaultKind.CUT),)), "cannot simulate the fault cut"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arrivals_s, n_output, mock, words):
    with pytest.raises(ValueError, match=words):
        simulate(mock, arrivals_s, [5, 5], n_output, np.random.default_rng(0))
