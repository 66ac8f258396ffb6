"""What sites are called, and the order in which those of a tier are asked."""

from hypothesis import given
from hypothesis import strategies as st

from llmtier.serve.site import group_sites, name_site, order_sites

LOADS = st.dictionaries(st.sampled_from([name_site("a", number) for number in range(1, 6)]), st.integers(0, 20))


def test_the_first_site_is_called_as_its_tier():
    names = [name_site("m@awq", number) for number in (1, 2, 3)]

    assert ["m@awq", "m@awq#2", "m@awq#3"] == names
    assert {"m@awq": names, "b": ["b"]} == group_sites([*names, "b"])


@given(loads=LOADS)
def test_the_least_busy_comes_first(loads):
    ordered = order_sites(loads, None)

    assert sorted(loads.values()) == [loads[name] for name in ordered]


@given(loads=LOADS, conversation=st.binary(min_size=1, max_size=64))
def test_a_conversation_costs_nobody_a_long_wait(loads, conversation):
    ordered = order_sites(loads, conversation)

    assert sorted(loads) == sorted(ordered)
    if loads:
        least = min(loads.values())
        assert loads[ordered[0]] <= 2 * least + 2


@given(conversation=st.binary(min_size=1, max_size=64))
def test_a_conversation_has_one_home_while_sites_are_alike(conversation):
    loads = {name_site("a", number): 1.0 for number in range(1, 5)}
    (home, second, *_) = order_sites(loads, conversation)
    backwards = dict(reversed(loads.items()))

    assert home == order_sites(backwards, conversation)[0]
    del backwards[second]
    assert home == order_sites(backwards, conversation)[0]


def test_equals_come_in_the_order_given():
    assert ["b", "a", "c"] == order_sites({"b": 1, "a": 1, "c": 2}, None)
