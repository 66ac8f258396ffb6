"""What a build would do: where the sources lie, whose tokens are counted, and whether there is anything to do.

Reads the sources' digests and the manifest of the set that lies there; writes nothing.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from llmtier.core.errors import InputFileError, UsageError
from llmtier.quantize.calibration.inputs import LocatedSource, TokenizerChoice, locate_sources, locate_tokenizer
from llmtier.store.calibration_manifest import CalibrationManifest, SetPaths, read_calibration_manifest
from llmtier.store.calibration_recipe import RecipeFile
from llmtier.store.digests import file_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """What a build would do.

    Attributes:
        file: The recipe.
        sources: Where its texts lie.
        tokenizer: Whose tokens are counted; ``None`` for estimates.
        paths: What is written.
        manifest: Of the set that lies there; ``None`` when there is none.
        is_current: Whether that set is what this build would make.
    """

    file: RecipeFile
    sources: tuple[LocatedSource, ...]
    tokenizer: TokenizerChoice | None
    paths: SetPaths
    manifest: CalibrationManifest | None
    is_current: bool = False

    @property
    def needs_environment(self) -> bool:
        """Whether the ``quantize`` environment is needed."""
        return self.tokenizer is not None or any(source.is_dataset for source in self.sources)


def plan_build(file: RecipeFile, *, output: Path | None = None, model: str | None = None) -> BuildPlan:
    """Find the sources and tell whether there is anything to do.

    Args:
        file: The recipe.
        output: Folder for the set; ``None`` means beside the recipe.
        model: Whose tokenizer counts, in place of the recipe's.

    Raises:
        InputFileError: A source is absent or cannot be read.
        UsageError: The set would take the place of one of its own sources.
    """
    paths = SetPaths(output or file.path.parent, file.recipe.name)
    plan = BuildPlan(
        file=file,
        sources=locate_sources(file),
        tokenizer=locate_tokenizer(file, model),
        paths=paths,
        manifest=_usable_manifest(paths.manifest),
    )
    _check_sources_stay(plan)
    return replace(plan, is_current=plan.manifest is not None and _is_current(plan, plan.manifest))


def _usable_manifest(path: Path) -> CalibrationManifest | None:
    """Return the manifest that lies there; a broken one, or of another version, vouches for nothing and is as absent."""
    try:
        return read_calibration_manifest(path)
    except InputFileError:
        return None


def _is_current(plan: BuildPlan, manifest: CalibrationManifest) -> bool:
    """Tell whether recipe, sources, tokenizer and files are those of the manifest; asks no hub."""
    tokenizer = (plan.tokenizer.label, plan.tokenizer.sha256) if plan.tokenizer else (None, None)
    files = {plan.paths.folder / split.file: split.sha256 for split in manifest.splits}
    return (
        manifest.recipe_sha256 == plan.file.sha256
        and (manifest.tokens.model, manifest.tokens.tokenizer_sha256) == tokenizer
        and [source.sha256 for source in manifest.sources] == [source.sha256 for source in plan.sources]
        and all(path.exists() and file_sha256(path) == sha256 for path, sha256 in files.items())
    )


def _check_sources_stay(plan: BuildPlan) -> None:
    """Refuse to write over a source, forced or not."""
    written = {path.resolve() for path in (plan.paths.calibration, plan.paths.heldout)}
    for path in (file for source in plan.sources for file in source.files):
        if path.resolve() in written:
            raise UsageError(f"{path} is a source and would be replaced by the set; choose another name or --output")
