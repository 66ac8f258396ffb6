"""What every part of ``llmtier.yaml`` is made of: strict frozen models, and paths that start from the file's folder."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo


class ConfigModel(BaseModel):
    """A mapping of the file: frozen, unknown keys refused, no NaN and no infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def find_folder(info: ValidationInfo) -> Path:
    """Return the folder that relative paths start from: the config's own."""
    context: dict[str, Path] = info.context or {}
    return context.get("folder", Path())


def resolve_path(path: Path, info: ValidationInfo) -> Path:
    """Return ``path`` made absolute from the config's folder."""
    return Path(os.path.normpath((find_folder(info) / expand_home(path)).absolute()))  # the same file, shorter to read


def expand_home(path: Path) -> Path:
    """Replace a leading ``~``."""
    try:
        return path.expanduser()
    except RuntimeError as exc:
        raise ValueError(f"the home folder of {path} is unknown; write an absolute path") from exc


ConfigPath = Annotated[Path, AfterValidator(resolve_path)]
"""A path, made absolute from the config's folder."""
