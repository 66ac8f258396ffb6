"""AWQ's mappings resolved against the module names of a model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import UsageError
from llmtier.quantize.architecture import describe_architecture
from llmtier.quantize.awq_mappings import find_coverage
from llmtier.quantize.job import AwqMapping
from llmtier.quantize.survey import read_registry

REGISTRY = read_registry()
HEAD = ("lm_head",)


def cover(model, *, ignore=HEAD, given=None):
    return find_coverage(model, REGISTRY, ignore=ignore, given=given)


def mapping(smooth, *balance):
    return AwqMapping(smooth=smooth, balance=balance)


def test_registry_holds_the_architectures_of_llm_compressor():
    assert REGISTRY.version.startswith("0.14")
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "Gemma2ForCausalLM"} <= set(REGISTRY.mappings)
    assert REGISTRY.mappings["Qwen3NextForCausalLM"] is None
    assert "LlamaForCausalLM" in REGISTRY.smoothquant
    assert "llama" in REGISTRY.autoawq_model_types


def test_llama_has_four_mappings_in_every_layer(llama):
    coverage = cover(llama(num_hidden_layers=3))

    assert (12, 3, 0) == (len(coverage.resolved), coverage.n_layers, coverage.n_skipped)
    first = next(one for one in coverage.resolved if one.smooth == "model.layers.0.input_layernorm")
    assert tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv") == first.balance


def test_grouped_queries_skip_the_values(llama):
    coverage = cover(llama(num_key_value_heads=2))

    assert (6, 2, 2) == (len(coverage.resolved), coverage.n_layers, coverage.n_skipped)


def test_each_expert_is_scaled_against_its_own(tensors):
    shapes = {"model.layers.0.post_attention_layernorm.weight": (8,), "model.layers.0.mlp.gate.weight": (2, 8)}
    shapes |= {
        f"model.layers.0.mlp.experts.{index}.{name}.weight": (8, 8)
        for index in range(2)
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    config = {"architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 1, "num_experts": 2, "hidden_size": 8}
    found = {one.smooth: one.balance for one in cover(describe_architecture(config, tensors(shapes))).resolved}

    for index in range(2):
        expert = f"model.layers.0.mlp.experts.{index}"
        assert (f"{expert}.down_proj",) == found[f"{expert}.up_proj"]
    assert 5 == len(found["model.layers.0.post_attention_layernorm"])


def test_unknown_architecture_is_refused_with_the_nearest_and_an_example(llama):
    with pytest.raises(UsageError, match=r"LlamaForCausalLMX \(nearest: .*--awq-mappings FILE.*smooth:.*--scheme gptq"):
        cover(llama(name="LlamaForCausalLMX"))


def test_own_mappings_serve_an_unknown_architecture(llama):
    coverage = cover(llama(name="Own"), given=(mapping("re:.*up_proj$", "re:.*down_proj$"),))

    assert 2 == coverage.n_layers


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (mapping("re:.*norm_x$", "re:.*down_proj$"), r"re:\.\*norm_x\$ matches no module"),
        (mapping("re:.*up_proj$", "re:.*downproj$"), "nearest is down_proj"),
        (mapping("lm_head", "re:.*down_proj$"), "no decoder layer holds all of"),
    ],
)
def test_own_mapping_that_matches_nothing_is_named(own, reason, llama):
    with pytest.raises(UsageError, match=reason):
        cover(llama(), given=(own,))


def test_registered_architecture_with_other_names_is_refused(tensors):
    model = describe_architecture(
        {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 8},
        tensors({"model.layers.0.wq.weight": (8, 8)}),
    )

    with pytest.raises(UsageError, match="match no decoder layer"):
        cover(model)


def test_mappings_built_at_run_time_are_not_judged(llama):
    assert cover(llama(name="Qwen3NextForCausalLM")).n_layers is None


@given(layers=st.sets(st.integers(0, 3), max_size=3))
def test_layers_left_out_are_not_covered(layers, llama):
    ignore = (*HEAD, *(f"re:model\\.layers\\.{layer}\\." for layer in layers))

    coverage = cover(llama(num_hidden_layers=4), ignore=ignore)

    assert set(range(4)) - layers == {one.layer for one in coverage.resolved}
    assert 4 - len(layers) == coverage.n_layers
