"""A seeded simulation of one engine at three times its capacity: what admission saves.

The engine shares its steps: with n requests a token takes 6 ms + 0.35 ms x n (figures of a published mock engine).
Answers are lognormal, mean 64 tokens; each must be whole within 3 s of its arrival. No wall clock is involved.
"""

import heapq
import math
import random
from dataclasses import dataclass, field

import pytest

from llmtier.serve.admission import Admission, Place, PlaceState
from llmtier.serve.admission_plan import AdmissionSettings, TierLimit

KNEE = 32
LIMIT_S = 3.0
MEAN_TOKENS, SIGMA = 64.0, 0.5
STEP_S = 0.006 + 0.00035 * KNEE
CAPACITY_RPS = KNEE / (MEAN_TOKENS * STEP_S)
PREDICTED_S = MEAN_TOKENS * math.exp(SIGMA * (1.645 - SIGMA / 2)) * STEP_S  # p95 at the knee
N_REQUESTS = 2500

NO_BOUND = AdmissionSettings(max_waiting=10**9, max_waiting_in_all=10**9, max_wait_s=1e9, promote_after_s=math.inf)


@dataclass
class Run:
    """One simulated engine behind one admission."""

    settings: AdmissionSettings
    max_in_flight: int | None
    has_deadlines: bool
    now_s: float = 0.0
    progress: float = 0.0  # tokens that a request in flight all along would have
    running: list[tuple[float, int, float, Place]] = field(
        default_factory=list
    )  # (progress at its end, number, arrival, place)
    events: list[tuple[float, int, float, Place | None]] = field(default_factory=list)
    n_good: int = 0
    n_done: int = 0

    def __post_init__(self):
        limit = TierLimit(max_in_flight=self.max_in_flight, service_s=MEAN_TOKENS * STEP_S)
        self.admission = Admission({"t": limit}, self.settings, clock=lambda: self.now_s)

    def goodput_rps(self, rate_rps, *, seed=1):
        dice = random.Random(seed)
        at_s = 0.0
        for number in range(N_REQUESTS):
            at_s += dice.expovariate(rate_rps)
            tokens = dice.lognormvariate(math.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA)
            heapq.heappush(self.events, (at_s, number, tokens, None))
        while self.events or self.running:
            self.step()
        return self.n_good / at_s

    def step(self):
        """Go to the next arrival, expiry or end of an answer."""
        pace_s = 0.006 + 0.00035 * len(self.running)
        end_s = self.now_s + max(self.running[0][0] - self.progress, 0.0) * pace_s if self.running else math.inf
        next_s = min(end_s, self.events[0][0] if self.events else math.inf)
        self.progress += (next_s - self.now_s) / pace_s
        self.now_s = next_s
        if end_s <= next_s:
            _, _, arrival_s, place = heapq.heappop(self.running)
            self.n_done += 1
            self.n_good += self.now_s - arrival_s <= LIMIT_S
            place.leave()
            return
        _, number, tokens, place = heapq.heappop(self.events)
        if place is not None:
            place._expire()
        else:
            self.arrive(number, tokens)

    def arrive(self, number, tokens):
        ends = {"deadline_s": self.now_s + LIMIT_S, "predicted_s": PREDICTED_S} if self.has_deadlines else {}
        place = self.admission.enter("t", **ends)
        arrival_s = self.now_s
        if not isinstance(place, Place):
            return
        if place.state is PlaceState.RUNNING:
            self.start(number, tokens, arrival_s, place)
            return
        place._future = OnTurn(lambda: place.shed is None and self.start(number, tokens, arrival_s, place))
        latest_s = place._waiting.latest_start_s
        if latest_s < math.inf:
            heapq.heappush(self.events, (latest_s, N_REQUESTS + number, 0.0, place))

    def start(self, number, tokens, arrival_s, place):
        heapq.heappush(self.running, (self.progress + tokens, number, arrival_s, place))


class OnTurn:
    """Stands for the future of a waiting request."""

    def __init__(self, act):
        self.act = act

    def done(self):
        return False

    def set_result(self, _):
        self.act()


def with_admission():
    return Run(AdmissionSettings(), KNEE, has_deadlines=True)


def plain_fifo():
    return Run(NO_BOUND, KNEE, has_deadlines=False)


def everything_at_once():
    return Run(NO_BOUND, None, has_deadlines=False)


@pytest.fixture(scope="module")
def peak_rps():
    """The best goodput of any of the three at any load up to the engine's capacity."""
    return max(
        make().goodput_rps(share * CAPACITY_RPS)
        for make in (with_admission, plain_fifo, everything_at_once)
        for share in (0.8, 0.95, 1.1)
    )


def test_goodput_at_three_times_capacity_stays_at_the_peak(peak_rps):
    assert with_admission().goodput_rps(3 * CAPACITY_RPS) >= 0.9 * peak_rps


@pytest.mark.parametrize("make", [plain_fifo, everything_at_once])
def test_without_admission_it_collapses(make, peak_rps):
    """Otherwise the test above would show nothing."""
    run = make()

    assert run.goodput_rps(3 * CAPACITY_RPS) < 0.3 * peak_rps
    assert N_REQUESTS == run.n_done
