"""What llm-compressor is told for each scheme: its modifiers, written against llm-compressor 0.14.

Pure but for the libraries' own objects; the output head stays unquantized unless the job says otherwise.
"""

from typing import TYPE_CHECKING, Any

from llmtier.quantize.worker.report import WorkerError

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier
    from transformers import PreTrainedModel

PRESET_GROUP_SIZE = 128  # of compressed-tensors' W4A16 and W4A16_ASYM
KV_CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def make_recipe(part: dict[str, Any], model: "PreTrainedModel") -> "list[Modifier]":
    """Return the modifiers of one scheme.

    Raises:
        WorkerError: The scheme is not one of ours, or AWQ or SmoothQuant knows no mapping for the architecture.
    """
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    common = {"ignore": list(part["ignore"])} | ({"kv_cache_scheme": KV_CACHE} if part["has_fp8_kv_cache"] else {})
    match part["scheme"]:
        case "int8" if part["smoothing_strength"] is not None:
            gptq = GPTQModifier(targets=["Linear"], scheme="W8A8", actorder=None, **common)
            return [smoothquant(part["smoothing_strength"], model), gptq]
        case "int8":  # weights rounded per channel, activations per token at run time: no data
            return [QuantizationModifier(targets=["Linear"], scheme="W8A8", **common)]
        case "fp8":
            return [QuantizationModifier(targets=["Linear"], scheme="FP8_DYNAMIC", **common)]
        case "fp8_block":
            return [QuantizationModifier(targets=["Linear"], scheme="FP8_BLOCK", **common)]
        case "gptq":  # "static": vLLM refuses the other activation orders
            return [GPTQModifier(**four_bit_format(part, is_symmetric=True), actorder="static", **common)]
        case "awq":
            format_ = four_bit_format(part, is_symmetric=False)
            return [awq(part["awq_mappings"], model), QuantizationModifier(**format_, **common)]
    raise WorkerError(f"scheme {part['scheme']} is not one that this worker writes: int8, fp8, fp8_block, gptq, awq")


def four_bit_format(part: dict[str, Any], *, is_symmetric: bool) -> dict[str, Any]:
    """Return a modifier's arguments for 4-bit weights: the preset, or the same with another group size."""
    group_size = part["group_size"] or PRESET_GROUP_SIZE
    if group_size == PRESET_GROUP_SIZE:
        return {"scheme": "W4A16" if is_symmetric else "W4A16_ASYM", "targets": ["Linear"]}
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size, "symmetric": is_symmetric}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def smoothquant(strength: float, model: "PreTrainedModel") -> "Modifier":
    """Return the transform that moves outliers of activations into the weights.

    Raises:
        WorkerError: llm-compressor lists no mapping for the architecture and would take Llama's unasked.
    """
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from llmcompressor.modifiers.transform.smoothquant.utils import MAPPINGS_REGISTRY

    if type(model).__name__ not in MAPPINGS_REGISTRY:
        raise WorkerError(f"--smoothquant: llm-compressor knows no layer mapping for {type(model).__name__}")
    return SmoothQuantModifier(smoothing_strength=strength)


def awq(mappings: list[dict[str, Any]] | None, model: "PreTrainedModel") -> "Modifier":
    """Return the AWQ transform, with the user's mappings where there are any.

    Raises:
        WorkerError: There are none, and llm-compressor knows none for the architecture: it would take Llama's unasked.
    """
    from llmcompressor.modifiers.transform.awq import AWQ_MAPPING_REGISTRY, AWQMapping, AWQModifier
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import AWQ_DYNAMIC_MAPPING_REGISTRY

    pin_only_with_accelerator()
    if mappings is not None:
        rules = [AWQMapping(mapping["smooth"], list(mapping["balance"])) for mapping in mappings]
        return AWQModifier(duo_scaling=True, mappings=rules)
    name = type(model).__name__
    if name not in AWQ_MAPPING_REGISTRY and name not in AWQ_DYNAMIC_MAPPING_REGISTRY:
        raise WorkerError(f"awq: no layer mapping is known for {name}; give --awq-mappings FILE, or take --scheme gptq")
    return AWQModifier(duo_scaling=True)


def pin_only_with_accelerator() -> None:
    """Keep AWQ from pinning memory where no accelerator exists: llm-compressor 0.13 and 0.14 crash there."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_args, **_kwargs: None
