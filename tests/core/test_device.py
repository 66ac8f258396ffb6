"""Device labels and overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.device import Device, DeviceKind, parse_device

INDICES = st.sets(st.integers(0, 40), min_size=1, max_size=12).map(lambda found: tuple(sorted(found)))
DEVICES = st.one_of(
    st.sampled_from([Device(kind=DeviceKind.AUTO), Device(kind=DeviceKind.CPU)]),
    st.builds(Device, kind=st.sampled_from([DeviceKind.CPU, DeviceKind.GPU]), indices=INDICES),
)


@pytest.mark.parametrize("label", ["auto", "cpu", "cpu:0", "cpu:0-3", "cpu:0+2", "gpu:0", "gpu:0+1", "cpu:0-3+6"])
def test_documented_label_is_its_own_canonical_form(label):
    assert label == parse_device(label).label


def test_order_and_overlap_within_a_label_do_not_matter():
    assert parse_device("cpu:0-2+5") == parse_device("cpu:5+1-2+0-1")


@given(DEVICES)
def test_parse_inverts_label(device):
    assert device == parse_device(device.label)


@pytest.mark.parametrize(
    "text",
    ["", "cpux", "cpu:", "gpu", "auto:0", "cpu:-1", "cpu:3-1", "cpu:0,2", "cpu:0-", "tpu:0", "cpu:٣", "cpu:0-9999999"],
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="device"):
        parse_device(text)


@pytest.mark.parametrize("indices", [(), (1, 0), (1, 1)])
def test_indices_must_ascend(indices):
    with pytest.raises(ValueError, match="ascend"):
        Device(kind=DeviceKind.CPU, indices=indices)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("cpu:0", "cpu:1", False),
        ("cpu:0-3", "cpu:3+4", True),
        ("cpu", "cpu:7", True),
        ("cpu", "gpu:0", False),
        ("gpu:0", "gpu:0+1", True),
        ("gpu:0", "gpu:1", False),
        ("auto", "gpu:1", True),
        ("auto", "auto", True),
    ],
)
def test_devices_share_when_they_have_something_in_common(one, other, expected):
    assert expected is parse_device(one).shares_with(parse_device(other))


@given(DEVICES, DEVICES)
def test_sharing_is_mutual(one, other):
    assert one.shares_with(other) is other.shares_with(one)


def test_cores_are_those_to_pin_to():
    assert (0, 1, 2) == parse_device("cpu:0-2").cores
    assert parse_device("cpu").cores is None
    assert parse_device("gpu:0").cores is None
