"""Layers left out must be whole groups of what vLLM fuses."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import UsageError
from llmtier.quantize.architecture import describe_architecture
from llmtier.quantize.fusion import (
    HEAD,
    ROUTERS,
    check_ignore,
    complete_ignore,
    fused_groups,
    is_ignored,
    quantized_linears,
)


@pytest.fixture(scope="module")
def experts(tensors):
    """Make one layer of two experts and a router."""
    shapes = {
        f"model.layers.0.mlp.experts.{index}.{name}.weight": (8, 8)
        for index in range(2)
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    shapes["model.layers.0.mlp.gate.weight"] = (2, 8)
    return describe_architecture({"num_hidden_layers": 1, "num_experts": 2, "hidden_size": 8}, tensors(shapes))


def test_groups_of_a_llama(llama):
    groups = [group.name for group in fused_groups(llama(num_hidden_layers=1))]

    assert ["model.layers.0.mlp.{gate_proj,up_proj}", "model.layers.0.self_attn.{q_proj,k_proj,v_proj}"] == groups


def test_all_experts_of_a_layer_are_one_group(experts):
    group = next(group for group in fused_groups(experts) if group.is_expert)

    assert ("model.layers.0.mlp.experts.*", 6) == (group.name, len(group.members))


@pytest.mark.parametrize(
    "ignore",
    [
        (),
        (HEAD,),
        ("re:.*down_proj$",),
        ("re:.*self_attn",),
        ("re:.*(q|k|v)_proj$",),
        ("re:.*layers\\.0\\.",),
        tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv"),
    ],
)
def test_whole_groups_may_be_left_out(ignore, llama):
    check_ignore(ignore, llama())


def test_split_group_is_answered_with_the_whole_pattern(llama):
    with pytest.raises(UsageError) as caught:
        check_ignore(("re:.*q_proj$",), llama())

    message = str(caught.value)
    assert "model.layers.0.self_attn.{q_proj,k_proj,v_proj}" in message
    assert "model.layers.0.self_attn.k_proj, model.layers.0.self_attn.v_proj would still be quantized" in message
    (advice,) = re.findall(r"give '(.+)' instead", message)
    check_ignore((advice,), llama())


def test_split_by_a_name_is_answered_with_the_other_names(llama):
    with pytest.raises(UsageError, match=r"give also --ignore model\.layers\.1\.mlp\.up_proj$"):
        check_ignore(("model.layers.1.mlp.gate_proj",), llama())


def test_split_of_experts_is_answered_with_all_of_them(experts):
    with pytest.raises(UsageError, match="all experts of a layer as one") as caught:
        check_ignore((r"re:.*experts\.1\.(gate|up)_proj",), experts)

    (advice,) = re.findall(r"give '(.+)' instead", str(caught.value))
    check_ignore((advice,), experts)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("re:.*qproj$", r"matches no linear layer; nearest is model\.layers\.\d\.self_attn\.q_proj"),
        ("model.layers.0.mlp.gateproj", r"nearest is model\.layers\.0\.mlp\.gate_proj"),
        ("zzzzz", "matches no linear layer$"),
        ("model.layers.0", r"to leave out all within it give 're:model\\\.layers\\\.0\\\.'"),
        ("re:(", "is no regular expression"),
        ("re:.*", "leaves no layer to quantize"),
        ("Linear", "leaves no layer to quantize"),
    ],
)
def test_useless_pattern_is_refused(pattern, reason, llama):
    with pytest.raises(UsageError, match=reason):
        check_ignore((pattern,), llama())


def test_head_is_always_left_out_and_may_be_absent(llama):
    assert ("x", HEAD) == complete_ignore(("x",), llama())
    assert (HEAD,) == complete_ignore((HEAD,), llama())

    check_ignore((HEAD,), llama(is_tied=True))


def test_routers_are_left_out(experts):
    ignore = complete_ignore((), experts)

    assert (HEAD, ROUTERS) == ignore
    assert "model.layers.0.mlp.gate" not in [linear.name for linear in quantized_linears(experts, ignore)]


@given(choice=st.sets(st.integers(0, 14)))
def test_accepted_patterns_never_split_a_group(choice, llama):
    model = llama()
    ignore = tuple(sorted(linear.name for index, linear in enumerate(model.linears) if index in choice))
    split = [
        group.name
        for group in fused_groups(model)
        if 0 < sum(is_ignored(name, ignore) for name in group.members) < len(group.members)
    ]
    if split or len(choice) == len(model.linears):
        with pytest.raises(UsageError):
            check_ignore(ignore, model)
    else:
        check_ignore(ignore, model)
