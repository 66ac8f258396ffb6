"""Bring the tiers of a configuration up, whatever runs them: a launched vLLM, a URL, the mock.

Reads a ``TierConfig``; yields where the tier answers and what exactly runs there. Engines on a GPU start one after
another: two that size their KV cache at once mis-measure the free memory (vLLM issues 55827 and 56830).
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from llmtier.core.device import Device, DeviceKind
from llmtier.core.errors import ConfigError, EngineRequestError
from llmtier.core.tier import EngineIdentity
from llmtier.engine.client import EngineClient
from llmtier.engine.launch import EngineSpec, running_engine
from llmtier.engine.mock import running_mock
from llmtier.engine.mock_settings import MockSettings
from llmtier.store.checkpoints import open_checkpoint
from llmtier.store.config_model import EngineKind, TierConfig

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 120.0
"""Longest wait for one answer while profiling or replaying."""

REPLICA_TIMEOUT_S = 10.0
"""Longest wait at the start for one of several engines of a tier: the others can serve meanwhile."""

RESETTABLE = {"VLLM_SERVER_DEV_MODE": "1"}
"""Makes vLLM serve ``/reset_prefix_cache``, among other pages that no service should have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTier:
    """A tier that answers.

    Attributes:
        name: The tier's name.
        base_url: Without ``/v1``; of several engines the first that answered.
        model_name: What the engine calls the model.
        api_key: Sent as bearer token; ``None`` when the engine wants none.
        identity: What exactly runs.
        checkpoint_digest: ``None`` for a tier that is not a local checkpoint.
        context_tokens: Longest prompt plus output; ``None`` when the engine does not tell.
        pid: Leader of the engine's processes; ``None`` when llmtier did not start it.
        urls: Of every engine, in the configuration's order; empty where there is one.
    """

    name: str
    base_url: str
    model_name: str
    api_key: str | None
    identity: EngineIdentity
    checkpoint_digest: str | None
    context_tokens: int | None
    pid: int | None = None
    urls: tuple[str, ...] = ()

    def connect(self) -> EngineClient:
        """Return a client for this tier, to be entered by the caller."""
        return EngineClient(
            self.base_url, model_name=self.model_name, api_key=self.api_key, timeout_s=REQUEST_TIMEOUT_S
        )


@asynccontextmanager
async def running_tiers(
    configs: Sequence[TierConfig], *, pythons: Mapping[str, Path], log_dir: Path, is_resettable: bool = False
) -> AsyncIterator[dict[str, RunningTier]]:
    """Run every tier of ``configs`` until the block is left; if one fails to start, all are stopped.

    Args:
        configs: The tiers.
        pythons: Interpreter with vLLM, by the name of each launched tier.
        log_dir: Folder for the engines' logs.
        is_resettable: Whether launched engines let their prefix cache be reset, as a measurement wants it.

    Raises:
        EngineStartError: An engine died or was not ready in time.
    """
    stop = asyncio.Event()
    gpu_start = asyncio.Lock()
    loop = asyncio.get_running_loop()
    ready: dict[str, asyncio.Future[RunningTier]] = {config.name: loop.create_future() for config in configs}

    async def hold(config: TierConfig) -> None:
        is_gpu = config.device.kind is not DeviceKind.CPU
        start_turn: AbstractAsyncContextManager[object] = gpu_start if is_gpu else nullcontext()
        tier = running_tier(config, python=pythons.get(config.name), log_dir=log_dir, is_resettable=is_resettable)
        async with start_turn:
            running = await tier.__aenter__()
        try:
            ready[config.name].set_result(running)
            await stop.wait()
        finally:
            await tier.__aexit__(None, None, None)

    async with unwrapped(), asyncio.TaskGroup() as group:
        for config in configs:
            group.create_task(hold(config))
        try:
            yield {name: await future for name, future in ready.items()}
        finally:
            stop.set()


@asynccontextmanager
async def unwrapped() -> AsyncIterator[None]:
    """Raise the first error of a task group as itself: callers know our errors, not groups."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__


@asynccontextmanager
async def running_tier(
    config: TierConfig, *, python: Path | None, log_dir: Path, is_resettable: bool = False
) -> AsyncIterator[RunningTier]:
    """Run one tier until the block is left."""
    match config.engine.kind:
        case EngineKind.VLLM:
            async with _launched(config, python=python, log_dir=log_dir, is_resettable=is_resettable) as running:
                yield running
        case EngineKind.OPENAI:
            yield await _remote(config)
        case EngineKind.MOCK:
            settings = MockSettings.from_mapping({"model_name": config.served_name, **(config.engine.mock or {})})
            async with running_mock(settings) as base_url:
                yield _describe(config, base_url=base_url, identity=EngineIdentity(name="mock"), context_tokens=None)
        case never:
            assert_never(never)


@asynccontextmanager
async def _launched(
    config: TierConfig, *, python: Path | None, log_dir: Path, is_resettable: bool
) -> AsyncIterator[RunningTier]:
    if python is None:
        raise ConfigError(f"tier {config.name}: no interpreter with vLLM; run 'llmtier env install engine-cpu'")
    folder = config.checkpoint_path
    digest = None if folder is None else open_checkpoint(folder, config.scheme).digest
    spec = EngineSpec(
        tier=config.name,
        model_path=config.model,
        python=python,
        args=config.engine.args,
        env={**visible_gpus(config.device), **(RESETTABLE if is_resettable else {}), **config.engine.env},
        cores=config.device.cores,
        start_timeout_s=config.engine.start_timeout_s,
    )
    async with running_engine(spec, log_path=log_dir / f"{config.name}.log") as engine:
        yield RunningTier(
            name=config.name,
            base_url=engine.base_url,
            model_name=engine.model_name,
            api_key=None,
            identity=engine.identity,
            checkpoint_digest=digest,
            context_tokens=engine.context_tokens,
            pid=engine.pid,
        )


def visible_gpus(device: Device) -> dict[str, str]:
    """Return the variable that shows an engine its own GPUs only; empty for other devices."""
    if device.kind is not DeviceKind.GPU or device.indices is None:
        return {}
    # NVML and nvidia-smi count by PCI bus, CUDA by speed unless told: the same index must mean the same GPU.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, device.indices))}


async def _remote(config: TierConfig) -> RunningTier:
    """Describe a tier behind one URL or several, of which one must answer.

    Raises:
        EngineRequestError: None does; that of the first.
        ConfigError: They say that they are of different versions, so that one profile cannot describe them.
    """
    urls = config.engine.addresses
    if not urls:
        raise ConfigError(f"tier {config.name}: engine kind openai needs a url")
    if len(urls) == 1:
        return await _ask(config, urls[0])
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(_try_to_ask(config, url)) for url in urls]
    told = [task.result() for task in asking]
    running = [tier for tier in told if isinstance(tier, RunningTier)]
    if not running:
        raise next(failure for failure in told if isinstance(failure, EngineRequestError))
    if len({tier.identity for tier in running}) > 1:
        versions = ", ".join(f"{tier.base_url}: {tier.identity.version or 'untold'}" for tier in running)
        raise ConfigError(f"tier {config.name}: its engines are of different versions ({versions}); make them alike")
    return replace(running[0], urls=urls)


async def _try_to_ask(config: TierConfig, url: str) -> RunningTier | EngineRequestError:
    """Describe what one of several URLs leads to, or say why it cannot be known."""
    try:
        async with asyncio.timeout(REPLICA_TIMEOUT_S):
            return await _ask(config, url)
    except TimeoutError:
        failure = EngineRequestError(f"{url}: no answer within {REPLICA_TIMEOUT_S:g} s")
    except EngineRequestError as error:
        failure = error
    logger.warning("engine does not answer", extra={"tier": config.name, "url": url, "reason": str(failure)})
    return failure


async def _ask(config: TierConfig, url: str) -> RunningTier:
    """Describe what one URL leads to.

    Raises:
        EngineRequestError: It does not answer.
    """
    probe = _describe(config, base_url=url, identity=EngineIdentity(name="openai"), context_tokens=None)
    async with probe.connect() as client:
        await client.list_models()
        version = await client.version()
    return replace(probe, identity=EngineIdentity(name="openai", version=version))


def _describe(
    config: TierConfig, *, base_url: str, identity: EngineIdentity, context_tokens: int | None
) -> RunningTier:
    key_name = config.engine.api_key_env
    if key_name is not None and key_name not in os.environ:
        raise ConfigError(f"tier {config.name}: environment variable {key_name} is not set (engine.api_key_env)")
    return RunningTier(
        name=config.name,
        base_url=base_url.rstrip("/"),
        model_name=config.served_name,
        api_key=None if key_name is None else os.environ[key_name],
        identity=identity,
        checkpoint_digest=None,
        context_tokens=context_tokens,
    )
