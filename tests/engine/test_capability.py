"""The truth rows of the capability tables, the rules for arguments, and explanations of deaths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.hardware import Gpu, Hardware
from llmtier.core.tier import Scheme
from llmtier.engine.capability import assess, explain_exit, lint_engine_args
from llmtier.engine.hardware import X86_FLAGS

AVX2 = ("avx2",)
ZEN4 = ("avx2", "avx512_bf16", "avx512_vnni", "avx512f")
SAPPHIRE_RAPIDS = (*ZEN4, "amx_bf16", "amx_int8", "amx_tile")
DIAMOND_RAPIDS = (*SAPPHIRE_RAPIDS, "amx_fp8")
CUDA_GENERATIONS = [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]


def cpu(*flags):
    return Hardware(cpu_model="CPU", cpu_flags=tuple(sorted(flags)), n_cores=8, memory_bytes=2**34)


def gpu(*capabilities):
    gpus = tuple(Gpu(name="GPU", compute_capability=one, memory_bytes=2**34) for one in capabilities)
    return Hardware(cpu_model="CPU", cpu_flags=ZEN4, n_cores=8, memory_bytes=2**34, gpus=gpus)


def verdict(scheme, hardware):
    capability = assess(scheme, hardware)
    return "fast" if capability.is_fast else "slow" if capability.loads else "no"


@pytest.mark.parametrize(
    ("scheme", "none", "avx2", "zen4", "sapphire", "diamond"),
    [
        (Scheme.BF16, "no", "slow", "fast", "fast", "fast"),
        (Scheme.FP16, "no", "slow", "slow", "slow", "slow"),
        (Scheme.INT8, "no", "slow", "fast", "fast", "fast"),
        (Scheme.AWQ, "no", "no", "fast", "fast", "fast"),
        (Scheme.GPTQ, "no", "no", "fast", "fast", "fast"),
        (Scheme.FP8, "no", "slow", "slow", "slow", "fast"),
        (Scheme.FP8_BLOCK, "no", "no", "no", "fast", "fast"),
        (Scheme.NVFP4, "no", "no", "no", "no", "no"),
        (Scheme.MXFP4, "no", "no", "no", "no", "no"),
        (Scheme.GGUF, "no", "no", "no", "no", "no"),
    ],
)
def test_x86_table(scheme, none, avx2, zen4, sapphire, diamond):
    machines = [cpu(), cpu(*AVX2), cpu(*ZEN4), cpu(*SAPPHIRE_RAPIDS), cpu(*DIAMOND_RAPIDS)]

    assert [none, avx2, zen4, sapphire, diamond] == [verdict(scheme, machine) for machine in machines]


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (Scheme.BF16, "no no fast fast fast fast fast fast"),
        (Scheme.FP16, "no fast fast fast fast fast fast fast"),
        (Scheme.INT8, "no fast fast fast fast fast no no"),
        (Scheme.AWQ, "no fast fast fast fast fast fast fast"),
        (Scheme.GPTQ, "no fast fast fast fast fast fast fast"),
        (Scheme.FP8, "no slow slow slow fast fast fast fast"),
        (Scheme.FP8_BLOCK, "no slow slow slow fast fast fast fast"),
        (Scheme.NVFP4, "no slow slow slow slow slow fast fast"),
        (Scheme.MXFP4, "no no slow slow slow slow fast fast"),
        (Scheme.GGUF, "no no no no no no no no"),
    ],
)
def test_cuda_table(scheme, expected):
    assert expected.split() == [verdict(scheme, gpu(one)) for one in CUDA_GENERATIONS]


def test_least_capable_gpu_decides():
    assert verdict(Scheme.FP8, gpu((9, 0), (8, 0))) == "slow"


def test_refused_bf16_names_the_need_and_the_way_out():
    note = assess(Scheme.BF16, gpu((7, 5))).note

    assert note == "needs compute capability 8.0, this GPU has 7.5; take fp16"


@pytest.mark.parametrize(
    ("flags", "env", "bits"),
    [(SAPPHIRE_RAPIDS, {}, 8), (SAPPHIRE_RAPIDS, {"VLLM_CPU_INT4_W4A8": "0"}, 16), (ZEN4, {}, 16)],
)
def test_4bit_note_says_how_activations_are_computed(flags, env, bits):
    assert f"activations in {bits} bits" in assess(Scheme.AWQ, cpu(*flags), env=env).note


def test_arm_is_never_promised_what_was_not_tried():
    arm = cpu("asimd", "bf16", "i8mm")

    assert verdict(Scheme.BF16, arm) == "fast"
    assert verdict(Scheme.INT8, arm) == "slow"
    assert verdict(Scheme.NVFP4, arm) == "no"


flag_sets = st.sets(st.sampled_from(X86_FLAGS))


@given(scheme=st.sampled_from(list(Scheme)), flags=flag_sets, more=flag_sets)
def test_more_extensions_never_lose_a_scheme(scheme, flags, more):
    before, after = assess(scheme, cpu(*flags)), assess(scheme, cpu(*flags | more))

    assert before.loads <= after.loads
    assert before.is_fast <= after.is_fast
    assert before.is_fast <= before.loads
    assert before.note


def messages(args, hardware, **options):
    return [f"{one.severity}: {one.message}" for one in lint_engine_args(args, hardware, **options)]


def test_sound_arguments_have_no_findings():
    args = {"max_model_len": 2048, "max-num-batched-tokens": 512, "enforce_eager": True, "unknown_argument": "x"}

    assert messages(args, cpu(*ZEN4), env={"VLLM_CPU_KVCACHE_SPACE": "1"}) == []
    assert messages({"max_model_len": 2048, "tensor_parallel_size": 2}, gpu((8, 9), (8, 9)), env={}) == []


@pytest.mark.parametrize(
    ("args", "hardware", "expected"),
    [
        (
            {"max_num_batched_tokens": 512, "max_model_len": 2048, "enable_chunked_prefill": False},
            cpu(*ZEN4),
            "error: max_num_batched_tokens 512 must be >= max_model_len 2048",
        ),
        (
            {"--max-num-batched-tokens": "512", "--max-model-len": "2048", "no-enable-chunked-prefill": True},
            cpu(*ZEN4),
            "error: max_num_batched_tokens 512 must be >= max_model_len 2048",
        ),
        ({"max_num_batched_tokens": 64, "max_num_seqs": 128}, cpu(*ZEN4), "error: max_num_batched_tokens 64"),
        ({"quantization": "awq"}, gpu((8, 9)), "warning: quantization: awq"),
        ({"gpu_memory_utilization": 0.95}, cpu(*ZEN4), "warning: gpu_memory_utilization 0.95 is the share of the RAM"),
        ({"gpu_memory_utilization": 0.99}, gpu((8, 9)), "warning: gpu_memory_utilization 0.99 is the share of the GPU"),
        ({"gpu_memory_utilization": 30}, gpu((8, 9)), "error: gpu_memory_utilization must lie in (0, 1]"),
        ({"kv_cache_dtype": "fp8"}, cpu(*AVX2), "error: kv_cache_dtype fp8 needs"),
        ({"kv_cache_dtype": "fp8_e4m3"}, gpu((8, 0)), "warning: kv_cache_dtype fp8 is native from"),
        ({"trust_remote_code": True}, cpu(*ZEN4), "warning: trust_remote_code runs"),
        ({"enforce_eager": True}, gpu((8, 9)), "warning: enforce_eager turns CUDA graphs off"),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, gpu((8, 9)), "error: tensor_parallel_size"),
        ({"tensor_parallel_size": 2}, cpu(*ZEN4), "warning: tensor_parallel_size on CPU"),
    ],
)
def test_each_rule_finds_its_case(args, hardware, expected):
    (found,) = messages(args, hardware)

    assert found.startswith(expected)


def test_small_default_cpu_cache_is_mentioned_only_when_the_environment_is_known():
    assert messages({}, cpu(*ZEN4)) == []
    assert messages({"kv_cache_memory_bytes": 2**30}, cpu(*ZEN4), env={}) == []
    assert "1 GiB of KV cache" in messages({}, cpu(*ZEN4), env={})[0]


def test_errors_come_before_warnings():
    found = messages({"quantization": "awq", "tensor_parallel_size": 2}, gpu((8, 9)))

    assert [one.split(":")[0] for one in found] == ["error", "warning"]


@pytest.mark.parametrize(
    ("returncode", "expected"),
    [
        (139, "SIGSEGV"),
        (-11, "SIGSEGV"),
        (137, "SIGKILL"),
        (-9, "SIGKILL"),
        (-4, "SIGILL"),
        (135, "/dev/shm"),
        (143, "SIGTERM"),
    ],
)
def test_signals_are_explained(returncode, expected):
    explanation = explain_exit(returncode, ["INFO all is well"])

    assert explanation is not None
    assert expected in explanation


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("RuntimeError: operator torchvision::nms does not exist", "uninstall torchvision"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "lower max_model_len"),
        ("ValueError: No available memory for the cache blocks. Try increasing", "raise gpu_memory_utilization"),
        (
            "ValueError: Available memory on node 0 (8.0/23.5 GiB) on startup is less than desired CPU memory utilization",
            "VLLM_CPU_KVCACHE_SPACE",
        ),
        ("Free memory on device cuda:0 (3/23 GiB) on startup is less than desired GPU memory utilization", "not free"),
        ("OSError: [Errno 98] Address already in use", "another port"),
        ("ImportError: libnuma.so.1: cannot open shared object file: No such file", "libnuma1"),
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0", "dtype: float16"),
        ("ValueError: Failed to find a kernel that can implement the WNA16 linear layer", "llmtier doctor"),
        ("api_server.py: error: unrecognized arguments: --max-modle-len", "engine.args"),
        ("importlib.metadata.PackageNotFoundError: No package metadata was found for vllm", "python -m vllm"),
        ("OSError: [Errno 28] No space left on device", "full"),
    ],
)
def test_last_lines_are_explained_before_the_exit_status(line, expected):
    explanation = explain_exit(-9, ["INFO loading", line])

    assert explanation is not None
    assert expected in explanation


@pytest.mark.parametrize("returncode", [None, 0, 1, 2, 200, -64])
def test_unknown_death_is_not_explained_away(returncode):
    assert explain_exit(returncode, ["Traceback", "KeyError: 'x'"]) is None
