"""How a tier's requests of late compare with what was predicted of them: the factor on its next predictions.

TTFT and TPOT apart, the median of observed / predicted over the last answered requests. Predicted is the offer's median
before any correction, so the factor is what reality is, not what is missing from the last guess, and cannot swing. It
starts at 1, and goes back there when nothing was learned for ``MAX_AGE_S``: a tier that was once too slow to be chosen
would else never be asked again. Instants are of one monotonic clock and passed in.
"""

import math
from collections import deque

from llmtier.core.decision import Offer
from llmtier.core.latency_model import Metric
from llmtier.serve.recent import RecentQuantile

LEAST, MOST = 0.5, 2.0
"""A factor beyond these is no drift but another machine or another model: profile it again."""

MAX_AGE_S = 300.0
"""Age at which an observation is forgotten."""


class Correction:
    """What is learned online of one tier.

    Attributes:
        ttft_ratio: Factor on predictions of TTFT, in [``LEAST``, ``MOST``]; 1 until enough is known. Likewise
            ``tpot_ratio``.
    """

    __slots__ = ("_tpot", "_ttft", "tpot_ratio", "ttft_ratio")

    def __init__(self) -> None:
        self._ttft = _Ratios()
        self._tpot = _Ratios()
        self.ttft_ratio = 1.0
        self.tpot_ratio = 1.0

    def learn(
        self,
        offer: Offer,
        *,
        now_s: float,
        ttft_s: float | None = None,
        e2el_s: float | None = None,
        n_output_tokens: int | None = None,
    ) -> None:
        """Take one request that was answered in full; one that failed or was cancelled must not come here.

        An answer that came whole tells no TTFT: what was predicted of it, corrected, is taken off.

        Args:
            offer: What was predicted of the tier that answered, when it was chosen.
            now_s: When the answer ended.
            ttft_s: From sending to the first content; ``None`` for an answer that came whole.
            e2el_s: From sending to the last content.
            n_output_tokens: As the engine counts them; ``None`` when it does not tell.
        """
        typical_ttft_s, typical_tpot_s = offer.typical_ttft_s, offer.typical_tpot_s
        if ttft_s is not None and typical_ttft_s:
            self.ttft_ratio = self._ttft.add(ttft_s / typical_ttft_s, now_s)
        if e2el_s is None or n_output_tokens is None or n_output_tokens < 2 or not typical_tpot_s:
            return
        if ttft_s is None:
            if typical_ttft_s is None:
                return
            ttft_s = typical_ttft_s * self.ttft_ratio
        self.tpot_ratio = self._tpot.add((e2el_s - ttft_s) / (n_output_tokens - 1) / typical_tpot_s, now_s)

    def forget(self, now_s: float) -> None:
        """Drop what is too old; to be called now and then, such as each second."""
        self.ttft_ratio = self._ttft.forget(now_s)
        self.tpot_ratio = self._tpot.forget(now_s)

    def drift_ratios(self) -> dict[Metric, float]:
        """Return the medians as they are, not clamped, of those that are known: for people to watch."""
        known = ((Metric.TTFT, self._ttft.median), (Metric.TPOT, self._tpot.median))
        return {metric: median for metric, median in known if median is not None}


class _Ratios:
    """Recent ratios with the instants at which they came."""

    __slots__ = ("_at_s", "_ratios")

    def __init__(self) -> None:
        self._ratios = RecentQuantile(0.5)
        self._at_s: deque[float] = deque()

    @property
    def median(self) -> float | None:
        return self._ratios.value

    def add(self, ratio: float, now_s: float) -> float:
        """Take one more where it can be meant; return the factor."""
        if 0.0 < ratio < math.inf:  # refuses NaN as well
            self._ratios.add(ratio)
            self._at_s.append(now_s)
            if len(self._at_s) > len(self._ratios):
                self._at_s.popleft()
        return self.forget(now_s)

    def forget(self, now_s: float) -> float:
        """Drop what is too old; return the factor."""
        while self._at_s and now_s - self._at_s[0] > MAX_AGE_S:
            self._at_s.popleft()
            self._ratios.drop_oldest()
        median = self._ratios.value
        return 1.0 if median is None else min(max(median, LEAST), MOST)
