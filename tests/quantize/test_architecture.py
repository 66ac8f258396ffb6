"""What a model is made of, told from its configuration and the names and shapes of its tensors."""

import pytest

from llmtier.core.errors import UsageError
from llmtier.quantize.architecture import describe_architecture
from llmtier.store.safetensors import Tensor

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8}


def describe(tensors, shapes, **fields):
    return describe_architecture({**CONFIG, **fields}, tensors(shapes))


def test_llama_has_seven_linear_layers_a_layer_and_a_head(llama):
    model = llama(num_hidden_layers=3, num_key_value_heads=2)

    assert 3 * 7 + 1 == len(model.linears)
    assert {None: 1, 0: 7, 1: 7, 2: 7} == {
        layer: sum(linear.layer == layer for linear in model.linears) for layer in (None, 0, 1, 2)
    }
    assert ("model.layers", 3, 128, 32) == (model.stack, model.n_layers, model.hidden_size, model.head_size)
    assert model.is_grouped_query
    assert 2 * model.n_parameters == model.n_bytes


def test_tied_model_has_no_head(llama):
    assert "lm_head" not in llama(is_tied=True).linear_by_name


def test_embeddings_norms_and_convolutions_are_no_linear_layers(tensors):
    shapes = {
        "model.embed_tokens.weight": (9, 8),
        "transformer.wpe.weight": (9, 8),
        "model.layers.0.norm.weight": (8,),
        "model.layers.0.conv1d.weight": (8, 1, 4),
        "model.layers.0.proj.weight": (8, 8),
        "model.layers.0.proj.bias": (8,),
    }

    model = describe(tensors, shapes)

    assert ["model.layers.0.proj"] == [linear.name for linear in model.linears]
    assert ("model.layers.0.conv1d.weight",) == model.packed


@pytest.mark.parametrize("name", ["model.layers.{}.x", "transformer.h.{}.x", "model.language_model.layers.{}.x"])
def test_decoder_is_found_by_its_length_beside_a_vision_tower(name, tensors):
    shapes = {f"{name.format(index)}.weight": (8, 8) for index in range(2)}
    shapes |= {f"visual.blocks.{index}.x.weight": (64, 64) for index in range(2)}

    model = describe(tensors, shapes, num_hidden_layers=2)

    assert name.partition(".{")[0] == model.stack
    assert 2 == sum(linear.layer is None for linear in model.linears)


def test_numbers_of_experts_are_not_taken_for_layers(tensors):
    shapes = {f"model.layers.0.mlp.experts.{index}.up_proj.weight": (8, 8) for index in range(4)}

    model = describe(tensors, shapes, num_experts=4)

    assert (1, 4, {0}) == (model.n_layers, model.n_experts, {linear.layer for linear in model.linears})


def test_sizes_of_a_model_that_sees_stand_in_its_text_part(tensors):
    shapes = {f"model.layers.{index}.x.weight": (8, 8) for index in range(3)}

    model = describe_architecture({"text_config": {"num_hidden_layers": 3, "hidden_size": 8}}, tensors(shapes))

    assert (None, None, 3, 8) == (model.name, model.model_type, model.n_layers, model.hidden_size)


def test_weights_with_fewer_layers_than_stated_are_refused(tensors):
    with pytest.raises(UsageError, match=r"states 2 decoder layers, the weights hold model\.layers with 1"):
        describe(tensors, {"model.layers.0.x.weight": (8, 8)}, num_hidden_layers=2)
    with pytest.raises(UsageError, match="the weights hold none"):
        describe(tensors, {"x.weight": (8, 8)})


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization_config": {"quant_method": "awq"}},
        {"text_config": {"quantization_config": {"quant_method": "awq"}}},
    ],
)
def test_quantized_source_is_refused_by_its_configuration(fields, tensors):
    with pytest.raises(UsageError, match=r"already quantized \(awq\)"):
        describe(tensors, {"model.layers.0.x.weight": (8, 8)}, **fields)


def test_quantized_source_is_refused_by_its_types():
    tensor = Tensor(name="model.layers.0.x.weight", dtype="F8_E4M3", shape=(8, 8), n_bytes=64)

    with pytest.raises(UsageError, match=r"already quantized \(model\.layers\.0\.x\.weight is F8_E4M3\)"):
        describe_architecture(CONFIG, [tensor])


def test_transposed_layers_are_refused(tensors):
    with pytest.raises(UsageError, match="Conv1D"):
        describe(tensors, {"h.0.attn.c_attn.weight": (8, 24)}, model_type="gpt2")
