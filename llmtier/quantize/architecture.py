"""What a model is made of, as far as quantizing it asks: its linear layers, decoder layers, heads and experts.

Pure: works on ``config.json`` and on the names and shapes of the tensors; loads no weight and no library.
A weight of two dimensions counts as a linear layer unless its name is an embedding's; that is what
``targets="Linear"`` of llm-compressor finds in the models that Hugging Face's transformers loads.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from llmtier.core.errors import UsageError
from llmtier.store.safetensors import Tensor

EMBEDDING = re.compile(r"(?:^|\.)[^.]*(?:embed|wte|wpe|rotary|position)[^.]*$")
STACK = re.compile(r"^(?P<stack>(?:.+?\.)?(?:layers|blocks|block|h))\.(?P<index>\d+)\.")
OTHER_TOWERS = re.compile(r"vision|visual|audio|speech|image|encoder")
WEIGHT_TYPES = frozenset({"BF16", "F16", "F32"})
CONV1D_TYPES = frozenset({"gpt2", "openai-gpt"})  # transformers' Conv1D: transposed, not matched by "Linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear layer.

    Attributes:
        name: Of the module, such as ``model.layers.0.mlp.up_proj``.
        out_features: Rows of its weight.
        in_features: Columns of its weight.
        n_bytes: Its weight on disk.
        layer: Decoder layer it belongs to, from 0; ``None`` outside of them.
    """

    name: str
    out_features: int
    in_features: int
    n_bytes: int
    layer: int | None

    @property
    def n_weights(self) -> int:
        """Numbers in its weight."""
        return self.out_features * self.in_features


@dataclass(frozen=True, kw_only=True)  # no slots: the properties are cached
class Architecture:
    """A model's shape.

    Attributes:
        name: Class in ``config.json``, such as ``LlamaForCausalLM``; ``None`` when it names none.
        model_type: Such as ``llama``; ``None`` when it names none.
        linears: Every linear layer, by name.
        modules: Every module that owns a tensor, by name.
        stack: Name of the list of decoder layers, such as ``model.layers``.
        n_layers: Decoder layers.
        hidden_size: Width of the hidden state.
        head_size: Width of one attention head; ``None`` when unknown.
        n_heads: Attention heads; ``None`` when unknown.
        n_kv_heads: Key and value heads; fewer than ``n_heads`` with grouped-query attention.
        n_experts: Experts of a layer; 0 without.
        vocabulary_size: Tokens the model knows; ``None`` when unknown.
        n_parameters: Numbers in all tensors.
        n_bytes: All tensors on disk.
        packed: Tensors of three dimensions or more inside the decoder: experts stored in one piece.
    """

    name: str | None
    model_type: str | None
    linears: tuple[Linear, ...]
    modules: tuple[str, ...]
    stack: str
    n_layers: int
    hidden_size: int
    head_size: int | None
    n_heads: int | None
    n_kv_heads: int | None
    n_experts: int
    vocabulary_size: int | None
    n_parameters: int
    n_bytes: int
    packed: tuple[str, ...]

    @property
    def is_grouped_query(self) -> bool:
        """Whether several query heads share one key and value head."""
        return self.n_heads is not None and self.n_kv_heads is not None and self.n_kv_heads < self.n_heads

    @cached_property
    def linear_by_name(self) -> Mapping[str, Linear]:
        """The linear layers by their names."""
        return {linear.name: linear for linear in self.linears}

    @cached_property
    def modules_by_layer(self) -> Mapping[int, tuple[str, ...]]:
        """The modules of each decoder layer."""
        found: dict[int, list[str]] = {}
        for module in self.modules:
            layer = layer_of(module, self.stack)
            if layer is not None:
                found.setdefault(layer, []).append(module)
        return {layer: tuple(names) for layer, names in sorted(found.items())}

    def layers(self, linears: Iterable[Linear]) -> Mapping[int, tuple[Linear, ...]]:
        """Sort those of ``linears`` that lie in decoder layers by layer."""
        found: dict[int, list[Linear]] = {}
        for linear in linears:
            if linear.layer is not None:
                found.setdefault(linear.layer, []).append(linear)
        return {layer: tuple(parts) for layer, parts in sorted(found.items())}


def describe_architecture(config: Mapping[str, object], tensors: Iterable[Tensor]) -> Architecture:
    """Return the shape of a checkpoint.

    Raises:
        UsageError: It is quantized already, has no decoder layers, or layers of a kind that cannot be quantized.
    """
    tensors = tuple(tensors)
    text = text_config(config)
    check_kind(config, text, tensors)
    stack, n_layers = find_stack(tensors, stated=integer(text, "num_hidden_layers", "n_layer", "num_layers"))
    linears = find_linears(tensors, stack)
    names = config.get("architectures")
    hidden = integer(text, "hidden_size", "n_embd", "d_model")
    n_heads = integer(text, "num_attention_heads", "n_head")
    hidden_size = hidden or max((linear.in_features for linear in linears if linear.layer is not None), default=0)
    return Architecture(
        name=str(names[0]) if isinstance(names, list) and names else None,
        model_type=str(config["model_type"]) if "model_type" in config else None,
        linears=linears,
        modules=tuple(sorted({tensor.name.rpartition(".")[0] for tensor in tensors})),
        stack=stack,
        n_layers=n_layers,
        hidden_size=hidden_size,
        head_size=integer(text, "head_dim") or (hidden_size // n_heads if n_heads else None),
        n_heads=n_heads,
        n_kv_heads=integer(text, "num_key_value_heads") or n_heads,
        n_experts=integer(text, "num_experts", "num_local_experts", "n_routed_experts") or 0,
        vocabulary_size=integer(text, "vocab_size"),
        n_parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        n_bytes=sum(tensor.n_bytes for tensor in tensors),
        packed=tuple(t.name for t in tensors if len(t.shape) >= 3 and layer_of(t.name, stack) is not None),
    )


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the part of ``config.json`` that describes the language model: models that see keep it apart."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def check_kind(config: Mapping[str, object], text: Mapping[str, object], tensors: Iterable[Tensor]) -> None:
    """Refuse a checkpoint that is quantized already, by its configuration or by its types.

    Raises:
        UsageError: It is; names the method or a tensor.
    """
    found = config.get("quantization_config", text.get("quantization_config"))
    if found is not None:
        method = found.get("quant_method", "unknown") if isinstance(found, Mapping) else "unknown"
        raise UsageError(f"already quantized ({method}); give the bf16 or fp16 checkpoint it was made from")
    for tensor in tensors:
        if tensor.name.endswith(".weight") and tensor.dtype not in WEIGHT_TYPES:
            raise UsageError(
                f"already quantized ({tensor.name} is {tensor.dtype}); give the bf16 or fp16 checkpoint it was made from"
            )
    if text.get("model_type") in CONV1D_TYPES:
        raise UsageError(f"model type {text['model_type']}: its layers are Conv1D, which no scheme here quantizes")


def find_stack(tensors: Iterable[Tensor], *, stated: int | None) -> tuple[str, int]:
    """Return the name of the list of decoder layers and its length.

    Of several lists (a vision tower has one too) the one of the stated length, then the largest, is the decoder.

    Raises:
        UsageError: There is none of the stated length.
    """
    indices: dict[str, set[int]] = {}
    sizes: dict[str, int] = {}
    for tensor in tensors:
        match = STACK.match(tensor.name)
        if match:
            indices.setdefault(match["stack"], set()).add(int(match["index"]))
            sizes[match["stack"]] = sizes.get(match["stack"], 0) + tensor.n_bytes
    fitting = [name for name, found in indices.items() if stated is None or found >= set(range(stated))]
    if not fitting:
        found = ", ".join(f"{name} with {len(layers)}" for name, layers in indices.items()) or "none"
        raise UsageError(f"config.json states {stated} decoder layers, the weights hold {found}; is it whole?")
    best = max(fitting, key=lambda name: (OTHER_TOWERS.search(name) is None, sizes[name]))
    return best, stated if stated is not None else len(indices[best])


def find_linears(tensors: Iterable[Tensor], stack: str) -> tuple[Linear, ...]:
    """Return every weight of two dimensions that is no embedding."""
    found = []
    for tensor in tensors:
        name, _, kind = tensor.name.rpartition(".")
        if kind == "weight" and len(tensor.shape) == 2 and not EMBEDDING.search(name):
            out_features, in_features = tensor.shape
            found.append(
                Linear(
                    name=name,
                    out_features=out_features,
                    in_features=in_features,
                    n_bytes=tensor.n_bytes,
                    layer=layer_of(name, stack),
                )
            )
    return tuple(sorted(found, key=lambda linear: linear.name))


def layer_of(name: str, stack: str) -> int | None:
    """Return the decoder layer that a module or tensor lies in; ``None`` outside."""
    if not name.startswith(f"{stack}."):
        return None
    index = name[len(stack) + 1 :].partition(".")[0]
    return int(index) if index.isdigit() else None


def integer(config: Mapping[str, object], *names: str) -> int | None:
    """Return the first of these that is a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
