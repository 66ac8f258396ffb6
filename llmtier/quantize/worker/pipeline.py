"""The calibration loop: layer by layer as llm-compressor's sequential pipeline, but it can be killed and go on.

Two passes over every layer: one that the modifier watches, and one with the quantized layer, whose outputs the next
layer reads (the model is ``llmcompressor/pipelines/sequential`` 0.14; its tracing, cache and events are used as they
are). What is added: a finished layer is kept on disk and, after a restart, loaded in place of the first pass; outputs
that are not finite end the run; the cache may lie in files; every layer is reported.

Each modifier gets a loop of its own, as in the library's "independent" pipeline; one that needs no data gets none.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from llmtier.quantize.worker.finite import is_finite
from llmtier.quantize.worker.layers import LayerStore, PartFacts
from llmtier.quantize.worker.report import Report, WorkerError
from llmtier.quantize.worker.spill import make_cache_class

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Traced:
    """A model cut so that each part holds at most one decoder layer; what lies before, between and after goes along.

    Attributes:
        subgraphs: The parts, in the order of execution.
        kept: For each part the modules that a modifier may change, by their names in the model.
        n_layers: Decoder layers in each part and all before it.
    """

    subgraphs: list[Any]
    kept: "list[dict[str, torch.nn.Module]]"
    n_layers: list[int]


@dataclass(frozen=True, slots=True)
class LayerPipeline:
    """A calibration pipeline for llm-compressor's registry; called with model, loader and data arguments.

    Attributes:
        store: Finished layers of this run.
        report: Gets a ``layer`` event after each layer.
        scheme: Named in the events.
        spill: Folder for the activation cache; ``None`` keeps it in memory.
        finished: Facts of every part so far, an earlier run's first.
        resumed: Those of an earlier run.
    """

    store: LayerStore
    report: Report
    scheme: str
    spill: Path | None
    finished: list[PartFacts] = field(default_factory=list)
    resumed: list[PartFacts] = field(default_factory=list)

    def __call__(self, model: Any, loader: Any, arguments: Any) -> None:  # noqa: ANN401 - objects of an untyped library
        """Run every modifier of the active session in turn."""
        from compressed_tensors.utils import patch_attr
        from llmcompressor.core import active_session
        from llmcompressor.pipelines.registry import CalibrationPipeline

        recipe = active_session().lifecycle.recipe
        modifiers = list(recipe.modifiers)
        data_free = CalibrationPipeline.load_from_registry("datafree")
        stages = [modifier for modifier in modifiers if modifier.requires_calibration_data]
        with patch_attr(recipe, "modifiers", None):
            for modifier in modifiers:
                recipe.modifiers = [modifier]
                if modifier in stages:
                    loop = Loop(self, stages.index(modifier), len(stages), model, trace(model, loader, arguments))
                    loop.run(loader, arguments)
                else:
                    data_free(model, loader, arguments)
        self.store.wait()


@dataclass(frozen=True, slots=True)
class Loop:
    """One modifier's way through the layers.

    Attributes:
        pipeline: Its settings.
        stage: Which of the ``n_stages`` modifiers that need data.
        model: The model, in the state that the earlier modifiers left.
        traced: It, cut into layers.
    """

    pipeline: LayerPipeline
    stage: int
    n_stages: int
    model: Any
    traced: Traced

    def run(self, loader: Any, arguments: Any) -> None:  # noqa: ANN401
        """Load what an earlier run finished and calibrate the rest."""
        from llmcompressor.core import LifecycleCallbacks

        n_parts = len(self.traced.subgraphs)
        n_done = min(self.pipeline.store.n_done(self.stage), n_parts)
        LifecycleCallbacks.calibration_start()
        with calibrating(self.model):
            for index in range(n_done):
                facts = self.pipeline.store.load(self.stage, index, self.traced.kept[index])
                self.pipeline.resumed.append(facts)
                self.pipeline.finished.append(facts)
                self.tell(index, is_resumed=True)
            if n_done < n_parts:
                self.calibrate(self.make_cache(loader, arguments), n_done=n_done)
            LifecycleCallbacks.calibration_end()

    def make_cache(self, loader: Any, arguments: Any) -> Any:  # noqa: ANN401
        """Return the cache that holds every batch's inputs to the next layer."""
        import torch
        from llmcompressor.utils.dev import get_main_device

        cache_class = make_cache_class(self.pipeline.spill)
        return cache_class.from_dataloader(loader, get_main_device(), torch.device(arguments.sequential_offload_device))

    def calibrate(self, cache: Any, *, n_done: int) -> None:  # noqa: ANN401
        """Take the batches through every layer; finished ones are passed through only."""
        from compressed_tensors.offload import disable_offloading

        for index in range(len(self.traced.subgraphs)):
            with disable_offloading():
                if index >= n_done:
                    self.watch(index, cache)
                if index < len(self.traced.subgraphs) - 1:  # nothing reads the outputs of the last one
                    self.propagate(index, cache)

    def watch(self, index: int, cache: Any) -> None:  # noqa: ANN401
        """Pass all batches through a layer under the modifier's hooks, let it change the layer, keep the layer.

        Raises:
            WorkerError: An output is NaN or infinite.
        """
        from llmcompressor.core import LifecycleCallbacks, active_session

        begun_s = perf_counter()
        n_rounded = self.n_rounded()
        subgraph = self.traced.subgraphs[index]
        for number, inputs in enumerate(cache.iter(subgraph.input_names)):
            active_session().state.current_batch_idx = number
            outputs = subgraph.forward(self.model, **inputs)
            if self.traced.n_layers[index]:  # before the first layer there may be masks of minus infinity
                check_finite(outputs, n_layers=self.traced.n_layers[index], batch=number)
        LifecycleCallbacks.sequential_epoch_end(subgraph.submodules(self.model))
        facts = PartFacts(perf_counter() - begun_s, self.n_rounded() - n_rounded)
        tell = partial(self.tell, index, is_resumed=False)
        self.pipeline.store.save(self.stage, index, self.traced.kept[index], facts, tell)
        self.pipeline.finished.append(facts)
        give_memory_back()

    def n_rounded(self) -> int:
        """Return how many layers GPTQ has rounded in this process, for want of an invertible Hessian."""
        from llmcompressor.core import active_session

        modifier = active_session().lifecycle.recipe.modifiers[0]
        return len(modifier._rtn_fallback_module_names) if type(modifier).__name__ == "GPTQModifier" else 0  # noqa: SLF001

    def propagate(self, index: int, cache: Any) -> None:  # noqa: ANN401
        """Replace every batch's inputs by the outputs of the finished layer."""
        from llmcompressor.modifiers.utils.hooks import HooksMixin

        subgraph = self.traced.subgraphs[index]
        with HooksMixin.disable_hooks():
            for number, inputs in enumerate(cache.iter(subgraph.input_names)):
                cache.update(number, subgraph.forward(self.model, **inputs))
                cache.delete(number, subgraph.consumed_names)

    def tell(self, index: int, *, is_resumed: bool) -> None:
        """Report the layers so far; with two modifiers each layer counts twice."""
        n_layers = self.traced.n_layers
        n_before = n_layers[index - 1] if index > 0 else 0
        if n_layers[index] == n_before:
            return
        self.pipeline.report(
            "layer",
            scheme=self.pipeline.scheme,
            n_done=self.stage * n_layers[-1] + n_layers[index],
            n_total=self.n_stages * n_layers[-1],
            is_resumed=is_resumed,
        )


def trace(model: Any, loader: Any, arguments: Any) -> Traced:  # noqa: ANN401
    """Cut the model at its decoder layers."""
    from compressed_tensors.offload import set_onload_device
    from compressed_tensors.utils import match_named_modules
    from llmcompressor.pipelines.sequential.helpers import trace_subgraphs
    from llmcompressor.utils.dev import get_main_device
    from llmcompressor.utils.pytorch.module import infer_sequential_targets

    set_onload_device(model, get_main_device())
    targets = infer_sequential_targets(model, arguments.sequential_targets)
    subgraphs = trace_subgraphs(model, next(iter(loader)), targets, arguments.tracing_ignore, 1)
    decoder_layers = {module for _, module in match_named_modules(model, targets)}
    parts = [subgraph.submodules(model) for subgraph in subgraphs]
    n_layers = [sum(module in decoder_layers for module in part) for part in parts]
    return Traced(
        [*subgraphs], [kept_modules(model, part, decoder_layers) for part in parts], list(accumulate(n_layers))
    )


def kept_modules(model: Any, part: list[Any], decoder_layers: set[Any]) -> "dict[str, torch.nn.Module]":  # noqa: ANN401
    """Return the modules of a part that a modifier may change: whole decoder layers, and quantized ones beside them."""
    from compressed_tensors.quantization.utils import is_module_quantized

    within = {child for module in part if module in decoder_layers for child in module.modules()} - decoder_layers
    members = set(part)
    return {
        name: module
        for name, module in model.named_modules()
        if module in members and module not in within and (module in decoder_layers or is_module_quantized(module))
    }


@contextmanager
def calibrating(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Give the state that calibration passes run in: no gradients, no KV cache, nothing quantized yet."""
    from llmcompressor.core import active_session
    from llmcompressor.utils.helpers import DisableQuantization, calibration_forward_context

    state = active_session().state
    state.loss_masks = None
    state.sequential_prefetch = False
    with calibration_forward_context(model), DisableQuantization(model):
        yield


def give_memory_back() -> None:
    """Return freed memory to the system where the C library can: a layer's matrices leave holes in the heap."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def check_finite(outputs: dict[str, Any], *, n_layers: int, batch: int) -> None:
    """Refuse NaN and infinity: what is calibrated on them is rubbish that still looks like a checkpoint.

    Raises:
        WorkerError: Naming the layer.
    """
    import torch

    for value in outputs.values():
        if isinstance(value, torch.Tensor) and not is_finite(value):
            raise WorkerError(
                f"decoder layer {n_layers} of the model gives NaN or infinity on calibration batch {batch}; "
                "the model overflows in its type (try the bf16 checkpoint) or its weights are broken",
                kind="input",
            )
