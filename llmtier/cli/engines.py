"""Which interpreter runs which tier, installing environments on the way."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.cli.env import ensure_environment
from llmtier.core.device import DeviceKind
from llmtier.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from llmtier.core.hardware import Hardware
    from llmtier.store.config_model import Config, TierConfig

LOG_DIR = Path("build/engine-logs")
"""Where engines started by a command write what they say."""


def find_interpreters(configs: "Sequence[TierConfig]", hardware: "Hardware") -> dict[str, Path]:
    """Return the interpreter with vLLM of each tier that is to be launched, by tier name.

    Raises:
        ConfigError: A configured interpreter does not exist.
        EnvInstallError: An environment could not be made.
    """
    return {tier.name: find_interpreter(tier, hardware) for tier in configs if tier.engine.kind == "vllm"}


def find_interpreter(tier: "TierConfig", hardware: "Hardware") -> Path:
    """Return the configured interpreter, else that of the isolated environment for the tier's device."""
    from llmtier.engine.environment import EnvironmentName

    if tier.engine.python is not None:
        found = shutil.which(str(tier.engine.python))
        if found is None:
            raise ConfigError(f"tier {tier.name}: engine.python {tier.engine.python} is no interpreter that can run")
        return Path(found)
    is_gpu = tier.device.kind is DeviceKind.GPU or (tier.device.kind is DeviceKind.AUTO and bool(hardware.gpus))
    return ensure_environment(EnvironmentName.ENGINE_CUDA if is_gpu else EnvironmentName.ENGINE_CPU).python


def choose_tiers(config: "Config", names: Sequence[str]) -> "list[TierConfig]":
    """Return the named tiers in the configuration's order; all of them when none is named.

    Raises:
        UsageError: A name is not in the configuration.
    """
    known = [tier.name for tier in config.tiers]
    for name in names:
        if name not in known:
            raise UsageError(f"no tier is called {name!r}; the configuration has: {', '.join(known)}")
    return [tier for tier in config.tiers if not names or tier.name in names]


def make_waves(tiers: "Sequence[TierConfig]") -> "list[list[TierConfig]]":
    """Group tiers so that no two of a group overlap in their device: a group's engines can be up together."""
    waves: list[list[TierConfig]] = []
    for tier in tiers:
        for wave in waves:
            if not any(tier.device.shares_with(other.device) for other in wave):
                wave.append(tier)
                break
        else:
            waves.append([tier])
    return waves
