"""Reading ``llmtier.yaml``: environment variables, validation, and where each error lies.

Every error is a line that names file, line and key, and the nearest valid key where one was
mistyped. What the file may say is in ``config_model``; nothing is written here.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from llmtier.core.errors import ConfigError
from llmtier.store.config_errors import duplicate_names, faulty_rules, find_problems, to_error, unknown_default
from llmtier.store.config_model import Config
from llmtier.store.config_tree import parse_tree


def load_config(path: Path, *, environ: Mapping[str, str] | None = None) -> Config:
    """Read a configuration.

    Args:
        path: The file; relative paths in it start from its folder.
        environ: Where ``${NAME}`` is looked up; ``None`` means this process's environment.

    Raises:
        ConfigError: The file is absent, not YAML, or says something that cannot be meant.
    """
    root, document = parse_tree(_read(path), path=path, environ=os.environ if environ is None else environ)
    try:
        config = Config.model_validate(document, context={"folder": path.absolute().parent})
    except ValidationError as exc:
        raise to_error(find_problems(exc, root), path=path) from exc
    problems = [*duplicate_names(config, root), *unknown_default(config, root), *faulty_rules(config, root)]
    if problems:
        raise to_error(problems, path=path)
    return config


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as exc:
        raise ConfigError("no such file; run 'llmtier init' to write one", path=path) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"expected UTF-8: {exc.reason} at byte {exc.start + 1}", path=path) from exc
    except OSError as exc:
        raise ConfigError(f"cannot be read: {exc.strerror or exc}", path=path) from exc
