"""Quantiles of the last values: the same as of a sorted list of them."""

import math

from hypothesis import given
from hypothesis import strategies as st

from llmtier.serve.recent import FEWEST, RecentQuantile


@given(st.lists(st.none() | st.integers(-3, 9), max_size=60), st.sampled_from([0.5, 0.9]), st.integers(8, 20))
def test_it_is_the_quantile_of_what_the_window_holds(events, level, size):
    """A number is added; ``None`` drops the oldest."""
    recent, held = RecentQuantile(level, size=size), []
    for event in events:
        if event is not None:
            recent.add(event)
            held = [*held, event][-size:]
        elif held:
            recent.drop_oldest()
            held = held[1:]
        rank = min(math.ceil((len(held) + 1) * level), len(held))

        assert len(held) == len(recent)
        assert (sorted(held)[rank - 1] if len(held) >= FEWEST else None) == recent.value
