"""The mock engine's metrics page, under vLLM's own names (tests/golden holds a recorded page)."""

from collections.abc import Iterator

from llmtier.engine.mock_engine import MockEngine

_FINISH_REASONS = ("stop", "length", "abort", "error")


def render_metrics(engine: MockEngine, *, model_name: str, kv_capacity_tokens: int) -> bytes:
    """Return the page in the Prometheus text format."""
    lines = _lines(engine, model_name=model_name, kv_capacity_tokens=kv_capacity_tokens)
    return "".join(f"{line}\n" for line in lines).encode()


def _lines(engine: MockEngine, *, model_name: str, kv_capacity_tokens: int) -> Iterator[str]:
    label = f'engine="0",model_name="{model_name}"'
    counters = engine.counters
    n_iteration_tokens = counters.n_prompt_tokens + counters.n_generation_tokens
    samples: tuple[tuple[str, str, float], ...] = (
        ("num_requests_running", "gauge", engine.n_running),
        ("num_requests_waiting", "gauge", engine.n_waiting),
        ("kv_cache_usage_perc", "gauge", min(engine.n_kv_tokens / kv_capacity_tokens, 1.0)),
        ("num_preemptions_total", "counter", 0),
        ("prompt_tokens_total", "counter", counters.n_prompt_tokens),
        ("generation_tokens_total", "counter", counters.n_generation_tokens),
    )
    for name, kind, value in samples:
        yield f"# TYPE vllm:{name} {kind}"
        yield f"vllm:{name}{{{label}}} {float(value)}"
    yield "# TYPE vllm:iteration_tokens_total histogram"
    yield f'vllm:iteration_tokens_total_bucket{{{label},le="+Inf"}} {float(counters.n_steps)}'
    yield f"vllm:iteration_tokens_total_count{{{label}}} {float(counters.n_steps)}"
    yield f"vllm:iteration_tokens_total_sum{{{label}}} {float(n_iteration_tokens)}"
    yield "# TYPE vllm:request_success_total counter"
    for reason in _FINISH_REASONS:
        count = float(counters.finished[reason])
        yield f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{model_name}"}} {count}'
