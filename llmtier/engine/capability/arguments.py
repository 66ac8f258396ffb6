"""What is wrong or unwise in a tier's vLLM arguments, before minutes go into a start.

Pure: one rule per function over the arguments and the machine. Says nothing of arguments that it
does not know: vLLM checks those itself.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from llmtier.core.hardware import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong ("error": vLLM will refuse or crash) or unwise ("warning") in an engine's arguments."""

    severity: Literal["error", "warning"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the rules below look at.

    Attributes:
        args: vLLM's arguments, names with underscores and without dashes before them.
        hardware: The machine.
        env: The engine's environment variables; ``None`` when unknown.
    """

    args: Mapping[str, object]
    hardware: Hardware
    env: Mapping[str, str] | None

    def is_on(self, name: str) -> bool:
        """Return whether a flag is given as true."""
        return str(self.args.get(name, "")).lower() == "true"

    def number(self, name: str) -> float | None:
        """Return a numeric argument; ``None`` when absent or no number."""
        try:
            return float(str(self.args[name]))
        except (KeyError, ValueError):
            return None

    @property
    def is_cpu(self) -> bool:
        """Whether the engine will run on the CPU."""
        return not self.hardware.gpus


def lint_engine_args(
    args: Mapping[str, object], hardware: Hardware, *, env: Mapping[str, str] | None = None
) -> list[Finding]:
    """Return what is wrong or unwise in a tier's vLLM arguments, errors first.

    Args:
        args: Argument name, dashes or underscores, to value.
        hardware: The machine; without a GPU the arguments are judged as the CPU engine's.
        env: The engine's environment variables; ``None`` leaves out the rules about them.
    """
    plan = Plan(
        args={key.lstrip("-").replace("-", "_"): value for key, value in args.items()}, hardware=hardware, env=env
    )
    findings = [finding for rule in RULES for finding in rule(plan)]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def lint_batch(plan: Plan) -> Iterator[Finding]:
    """Check the token budget of a step against the longest prompt and the number of sequences."""
    budget = plan.number("max_num_batched_tokens")
    if budget is None:
        return
    length, n_sequences = plan.number("max_model_len"), plan.number("max_num_seqs")
    is_whole = (
        plan.is_on("no_enable_chunked_prefill") or str(plan.args.get("enable_chunked_prefill")).lower() == "false"
    )
    if is_whole and length is not None and budget < length:
        yield error(
            f"max_num_batched_tokens {budget:.0f} must be >= max_model_len {length:.0f} without chunked prefill"
        )
    if n_sequences is not None and budget < n_sequences:
        yield error(f"max_num_batched_tokens {budget:.0f} must be >= max_num_seqs {n_sequences:.0f}")


def lint_quantization(plan: Plan) -> Iterator[Finding]:
    """Check that no plain kernel is forced."""
    forced = plan.args.get("quantization")
    if forced in ("awq", "gptq"):
        yield warning(f"quantization: {forced} may force the plain kernel, 5 times slower; leave it out, vLLM chooses")


def lint_memory(plan: Plan) -> Iterator[Finding]:
    """Check how much memory the engine takes."""
    share = plan.number("gpu_memory_utilization")
    if share is not None and not 0 < share <= 1:
        yield error(f"gpu_memory_utilization must lie in (0, 1], got {share}")
    elif share is not None and share > (0.9 if plan.is_cpu else 0.95):
        of = "the RAM of one NUMA node on the CPU engine" if plan.is_cpu else "the GPU's memory"
        yield warning(f"gpu_memory_utilization {share} is the share of {of}; little is left for anything else")


def lint_cpu_cache(plan: Plan) -> Iterator[Finding]:
    """Check that a CPU engine's KV cache is bounded."""
    if not plan.is_cpu or plan.env is None or plan.env.get("VLLM_CPU_KVCACHE_SPACE"):
        return
    if "kv_cache_memory_bytes" in plan.args:
        return
    yield warning(
        "VLLM_CPU_KVCACHE_SPACE is not set in engine.env: llmtier starts the engine with 1 GiB of KV cache; "
        "set it to whole GiB for long prompts or many requests at once"
    )


def lint_cache_dtype(plan: Plan) -> Iterator[Finding]:
    """Check that the machine can keep the KV cache in 8 bits."""
    if not str(plan.args.get("kv_cache_dtype", "")).startswith("fp8"):
        return
    if plan.is_cpu:
        if not {"avx512f", "amx_tile"} & set(plan.hardware.cpu_flags):
            yield error("kv_cache_dtype fp8 needs a CPU with AVX512 or AMX")
    elif min(gpu.compute_capability for gpu in plan.hardware.gpus) < (8, 9):
        yield warning("kv_cache_dtype fp8 is native from compute capability 8.9 on; here it may be refused or slow")


def lint_trust(plan: Plan) -> Iterator[Finding]:
    """Point out that a checkpoint's own code would run."""
    if plan.is_on("trust_remote_code"):
        yield warning("trust_remote_code runs Python code out of the checkpoint; keep it only for a source you trust")


def lint_eager(plan: Plan) -> Iterator[Finding]:
    """Point out lost speed."""
    if plan.is_on("enforce_eager") and not plan.is_cpu:
        yield warning("enforce_eager turns CUDA graphs off: starts sooner, decodes slower; leave it out when profiling")


def lint_parallel(plan: Plan) -> Iterator[Finding]:
    """Check that there are as many devices as the engine will ask for."""
    n_ranks = (plan.number("tensor_parallel_size") or 1) * (plan.number("pipeline_parallel_size") or 1)
    n_gpus = len(plan.hardware.gpus)
    if n_gpus and n_ranks > n_gpus:
        yield error(f"tensor_parallel_size x pipeline_parallel_size is {n_ranks:.0f}, this machine has {n_gpus} GPU(s)")
    if not n_gpus and n_ranks > 1:
        yield warning("tensor_parallel_size on CPU pays only with one rank per NUMA node")


RULES: tuple[Callable[[Plan], Iterator[Finding]], ...] = (
    lint_batch,
    lint_quantization,
    lint_memory,
    lint_cpu_cache,
    lint_cache_dtype,
    lint_trust,
    lint_eager,
    lint_parallel,
)


def error(message: str) -> Finding:
    """Return a finding that stops the engine."""
    return Finding(severity="error", message=message)


def warning(message: str) -> Finding:
    """Return a finding that is only unwise."""
    return Finding(severity="warning", message=message)
