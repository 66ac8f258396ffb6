"""How vLLM is called: command line, environment, and the identity they give a profile.

Pure but for one look at which build an interpreter holds. The defaults are those
that vLLM 0.32 needs on a CPU: ``--gpu-memory-utilization`` means the share of a
NUMA node's memory there, and the KV cache's size is a variable.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llmtier.core.errors import ConfigError

_MODULE = "vllm.entrypoints.openai.api_server"

# Set by llmtier itself; a configuration that names them would be silently overruled.
_OWN_ARGUMENTS = frozenset({"host", "model", "port", "served_model_name", "uds"})

# No part of an identity: where files lie, what is logged, secrets.
_IRRELEVANT_ARGUMENTS = frozenset(
    {
        "api_key",
        "disable_access_log_for_endpoints",
        "disable_log_requests",
        "disable_log_stats",
        "disable_uvicorn_access_log",
        "download_dir",
        "enable_log_requests",
        "log_config_file",
        "max_log_len",
        "uvicorn_log_level",
    }
)

# Variables that choose kernels, threads or their placement.
_KERNEL_PREFIXES = (
    "ATEN_CPU_CAPABILITY",
    "CUDA_LAUNCH_BLOCKING",
    "DNNL_",
    "GOMP_",
    "KMP_",
    "LD_PRELOAD",
    "MKL_",
    "NCCL_",
    "OMP_",
    "ONEDNN_",
    "PYTORCH_",
    "TORCH",
    "VLLM_ATTENTION_",
    "VLLM_CPU_",
    "VLLM_DISABLE_",
    "VLLM_ENABLE_",
    "VLLM_MARLIN_",
    "VLLM_USE_",
    "VLLM_V1_",
)

# Belong to the interpreter that runs llmtier, not to the engine's.
_LEFT_BEHIND = frozenset(
    {"PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "VLLM_SERVER_DEV_MODE", "__PYVENV_LAUNCHER__"}
)


def is_cpu_build(python: Path) -> bool:
    """Return whether the interpreter's vLLM is built for CPUs, by its package's name or version."""
    packages = python.parent.parent.glob("lib/python*/site-packages/vllm*.dist-info")
    return any("cpu" in package.name for package in packages)


def vllm_command(
    *, python: Path, model: str, served_name: str, port: int, args: Mapping[str, object], is_cpu: bool
) -> tuple[str, ...]:
    """Return the command line of vLLM's OpenAI server on the loopback address.

    Args:
        python: Interpreter that has vLLM.
        model: Folder or hub id.
        served_name: What requests will call the model.
        port: To listen on.
        args: vLLM's arguments by name, with underscores: ``True`` gives ``--name``, ``False``
            ``--no-name``, ``None`` nothing, a list its values, a mapping JSON.
        is_cpu: Adds what the CPU build needs and ``args`` lacks.

    Raises:
        ConfigError: ``args`` names what llmtier sets itself.
    """
    for name in args:
        if name.replace("-", "_") in _OWN_ARGUMENTS:
            raise ConfigError(f"tier {served_name}: engine.args.{name} is set by llmtier; leave it out")
    own = ("--model", model, "--served-model-name", served_name, "--host", "127.0.0.1", "--port", str(port))
    options = [word for name, value in _complete(args, is_cpu=is_cpu).items() for word in _option(name, value)]
    return (str(python), "-m", _MODULE, *own, *options)


def vllm_environment(
    *,
    inherited: Mapping[str, str],
    given: Mapping[str, str],
    python: Path,
    model: str,
    cores: Sequence[int] | None,
    is_cpu: bool,
) -> dict[str, str]:
    """Return all variables of the engine: needed ones, then inherited ones over them, then ``given`` over all.

    Args:
        inherited: This process's own.
        given: The tier's.
        python: Its folder comes first in PATH, for the tools in the engine's environment.
        model: A folder keeps the engine off the network.
        cores: Cores for the OpenMP threads; ``None`` leaves them to vLLM.
        is_cpu: Adds the size of the KV cache, 1 GiB.
    """
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120", "PYTHONUNBUFFERED": "1"}
    if is_cpu:
        defaults["VLLM_CPU_KVCACHE_SPACE"] = "1"
    if Path(model).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    kept = {name: value for name, value in inherited.items() if name not in _LEFT_BEHIND}
    kept["PATH"] = os.pathsep.join(part for part in (str(python.parent), inherited.get("PATH", "")) if part)
    bound = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))} if cores and is_cpu else {}
    return defaults | kept | bound | dict(given)


def speed_flags(args: Mapping[str, object], *, is_cpu: bool) -> tuple[str, ...]:
    """Return the arguments that change speed or answers, as words, sorted by name."""
    complete = {name.replace("-", "_"): value for name, value in _complete(args, is_cpu=is_cpu).items()}
    options = (_option(name, value) for name, value in sorted(complete.items()) if name not in _IRRELEVANT_ARGUMENTS)
    return tuple(" ".join(words) for option in options if (words := list(option)))


def speed_environment(environment: Mapping[str, str], *, cores: Sequence[int] | None) -> tuple[str, ...]:
    """Return ``NAME=value`` of the variables that choose kernels and threads, and the cores, sorted."""
    chosen = [f"{name}={value}" for name, value in environment.items() if name.startswith(_KERNEL_PREFIXES)]
    pinned = [f"cores={','.join(map(str, cores))}"] if cores else []
    return tuple(sorted(chosen + pinned))


def _complete(args: Mapping[str, object], *, is_cpu: bool) -> dict[str, object]:
    given = {name.replace("-", "_"): value for name, value in args.items()}
    return {"gpu_memory_utilization": 0.3, **given} if is_cpu else given


def _option(name: str, value: object) -> Iterator[str]:
    dashed = name.replace("_", "-")
    match value:
        case None:
            return
        case True:
            yield f"--{dashed}"
        case False:
            yield f"--no-{dashed}"
        case list() | tuple():
            yield f"--{dashed}"
            yield from map(str, value)
        case Mapping():
            yield f"--{dashed}"
            yield json.dumps(dict(value))
        case _:
            yield f"--{dashed}"
            yield str(value)
