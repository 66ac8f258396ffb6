"""A vLLM server for one tier: started, awaited, identified, and always stopped.

Reads a model folder through the engine; writes the engine's log. What the command
line is stands in vllm_command.py, what happens to processes in process.py.
"""

import asyncio
import logging
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llmtier.core.errors import EngineRequestError, EngineStartError, PortInUseError
from llmtier.core.tier import EngineIdentity
from llmtier.engine.capability import explain_exit
from llmtier.engine.client import EngineClient
from llmtier.engine.process import EngineProcess, running_process
from llmtier.engine.vllm_command import is_cpu_build, speed_environment, speed_flags, vllm_command, vllm_environment

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_N_CAUSE_LINES = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What to start.

    Attributes:
        tier: The tier's name; what requests will call the model.
        model_path: Folder or hub id.
        python: Interpreter that has vLLM.
        port: On the loopback address; 0 for any free one.
        args: vLLM's own arguments by name, such as ``max_model_len``.
        env: Variables over the inherited ones.
        cores: Cores to pin the engine to; ``None`` for all.
        start_timeout_s: Longest wait until it answers.
        stop_grace_s: Between SIGTERM and SIGKILL.
    """

    tier: str
    model_path: str
    python: Path
    port: int = 0
    args: Mapping[str, object] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] | None = None
    start_timeout_s: float = 300.0
    stop_grace_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """An engine that answers.

    Attributes:
        base_url: Without ``/v1``.
        pid: Leader of the group of its processes.
        identity: What exactly runs.
        model_name: What requests call the model.
        context_tokens: Longest prompt plus output; ``None`` when the engine does not tell.
        process: Tells when it dies.
    """

    base_url: str
    pid: int
    identity: EngineIdentity
    model_name: str
    context_tokens: int | None
    process: EngineProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Everything about a start that is settled before it."""

    port: int
    command: tuple[str, ...]
    environment: Mapping[str, str]
    flags: tuple[str, ...]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def running_engine(spec: EngineSpec, *, log_path: Path) -> AsyncIterator[RunningEngine]:
    """Run an engine while the context lasts; enters when it has answered a first token, leaves no process behind.

    Args:
        spec: What to start.
        log_path: The engine's output is appended to it.

    Raises:
        ConfigError: ``spec.args`` names an argument that llmtier sets.
        PortInUseError: Somebody listens on ``spec.port``.
        EngineStartError: It died while loading or at its first answer, or was not ready in time; holds its last lines.
        DiskError: The log cannot be written.
    """
    plan = _plan(spec)
    began_s = time.perf_counter()
    async with running_process(
        plan.command,
        environment=plan.environment,
        cores=spec.cores,
        log_path=log_path,
        stop_grace_s=spec.stop_grace_s,
    ) as process:
        async with EngineClient(plan.base_url, model_name=spec.tier) as client:
            await _wait_until_ready(client, process, spec)
            engine = await _describe(client, process, spec, plan)
            await _ask_one_token(client, process, spec)
        ready_s = round(time.perf_counter() - began_s, 3)
        logger.info("engine ready", extra={"tier": spec.tier, "url": engine.base_url, "seconds": ready_s})
        yield engine


def _plan(spec: EngineSpec) -> _Plan:
    if shutil.which(spec.python) is None:
        raise EngineStartError(
            f"tier {spec.tier}: no interpreter at {spec.python}; run 'llmtier env install engine-cpu' or set engine.python"
        )
    if Path(spec.model_path).is_absolute() and not Path(spec.model_path).is_dir():
        raise EngineStartError(
            f"tier {spec.tier}: no model folder at {spec.model_path}; correct 'model' in llmtier.yaml"
        )
    is_cpu = is_cpu_build(spec.python)
    port = _claim_port(spec)
    environment = vllm_environment(
        inherited=os.environ,
        given=spec.env,
        python=spec.python,
        model=spec.model_path,
        cores=spec.cores,
        is_cpu=is_cpu,
    )
    command = vllm_command(
        python=spec.python,
        model=spec.model_path,
        served_name=spec.tier,
        port=port,
        args=spec.args,
        is_cpu=is_cpu,
    )
    return _Plan(port=port, command=command, environment=environment, flags=speed_flags(spec.args, is_cpu=is_cpu))


def _claim_port(spec: EngineSpec) -> int:
    """Return a port that nobody listens on now."""
    try:
        with socket.create_server(("127.0.0.1", spec.port)) as probe:
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise PortInUseError(
            f"tier {spec.tier}: port {spec.port} is taken ({error.strerror}); free it or use port 0 for any free one"
        ) from error


async def _wait_until_ready(client: EngineClient, process: EngineProcess, spec: EngineSpec) -> None:
    exit_ = asyncio.create_task(process.wait())
    try:
        async with asyncio.timeout(spec.start_timeout_s):
            while not await client.health():
                await asyncio.wait({exit_}, timeout=_POLL_S)
                if exit_.done():
                    raise await asyncio.to_thread(_death, process, spec, exit_.result())
    except TimeoutError as error:
        lines = await asyncio.to_thread(process.last_lines)
        raise EngineStartError(
            f"tier {spec.tier}: not ready within {spec.start_timeout_s:g} s; raise engine.start_timeout_s, "
            f"or see {process.log_path}, which ends:",
            last_lines=lines,
        ) from error
    finally:
        exit_.cancel()


def _death(process: EngineProcess, spec: EngineSpec, returncode: int) -> EngineStartError:
    how = f"was killed by signal {-returncode}" if returncode < 0 else f"ended with exit code {returncode}"
    # vLLM's server prints a traceback of its own after the core's: the cause stands further up, among
    # INFO lines that repeat the whole configuration and so hold many a telling word.
    lines = [line for line in process.last_lines(_N_CAUSE_LINES) if "INFO" not in line]
    cause = explain_exit(returncode, lines)
    return EngineStartError(
        f"tier {spec.tier}: the engine {how} while it started{f': {cause}' if cause else ''}; "
        f"see {process.log_path}, which ends:",
        last_lines=process.last_lines(),
    )


async def _ask_one_token(client: EngineClient, process: EngineProcess, spec: EngineSpec) -> None:
    """Ask for one token: kernels that the machine lacks show only then, while ``/health`` is green.

    vLLM 0.32 on CPU loads a model of head size 16, says it is healthy, and dies at the first request.
    """
    try:
        await client.stream_completion("1", max_tokens=1)
    except EngineRequestError as error:
        lines = await asyncio.to_thread(process.last_lines)
        raise EngineStartError(
            f"tier {spec.tier}: the engine loaded, but its first answer failed ({error}); see {process.log_path}, "
            "which ends:",
            last_lines=lines,
        ) from error


async def _describe(client: EngineClient, process: EngineProcess, spec: EngineSpec, plan: _Plan) -> RunningEngine:
    try:
        models = {model.name: model for model in await client.list_models()}
        version = await client.version()
    except EngineRequestError as error:
        raise EngineStartError(f"tier {spec.tier}: the engine is up but does not describe itself: {error}") from error
    if spec.tier not in models:
        raise EngineStartError(
            f"tier {spec.tier}: another server answers on port {plan.port}, serving {sorted(models)}; try again"
        )
    identity = EngineIdentity(
        name="vllm",
        version=version,
        flags=plan.flags,
        environment=speed_environment(plan.environment, cores=spec.cores),
    )
    return RunningEngine(
        base_url=plan.base_url,
        pid=process.pid,
        identity=identity,
        model_name=spec.tier,
        context_tokens=models[spec.tier].context_tokens,
        process=process,
    )
