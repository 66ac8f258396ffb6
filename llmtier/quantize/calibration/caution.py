"""What a build says aloud about a set that is whole but less than it could be. Pure: a manifest in, sentences out."""

from collections.abc import Iterator, Sequence

from llmtier.quantize.calibration.inspection import describe_findings, describe_system_prompt
from llmtier.store.calibration_manifest import CalibrationManifest, TokenMethod
from llmtier.store.calibration_recipe import RecipeFile

SMALL_ROWS = 128  # what GPTQ is given at least in its authors' and the tools' own examples
SMALL_TOKENS = 16_384


def find_warnings(manifest: CalibrationManifest, file: RecipeFile, *, is_short: Sequence[bool]) -> tuple[str, ...]:
    """Return what people should know of a set.

    Args:
        manifest: Of the set.
        file: Its recipe.
        is_short: By domain, whether it gave all it had and that was too little.
    """
    return (
        *_of_sources(manifest),
        *_of_sizes(manifest, file, is_short),
        *_of_tokens(manifest),
        *describe_system_prompt(file.system_prompt),
        *describe_findings(manifest.findings),
    )


def small_set(n_rows: int, n_tokens: int) -> list[str]:
    """Return a warning when a set is smaller than calibration is known to need."""
    if n_rows >= SMALL_ROWS and n_tokens >= SMALL_TOKENS:
        return []
    size = f"{n_rows} rows, {n_tokens} tokens"
    return [f"the set is small ({size}): awq can do with it, gptq wants {SMALL_ROWS} rows and {SMALL_TOKENS} tokens"]


def _of_sources(manifest: CalibrationManifest) -> Iterator[str]:
    for source in manifest.sources:
        if not source.is_pinned:
            advice = f'write revision = "{source.revision}" into the recipe to build the same set again'
            yield f"{source.label}: its revision floats; {advice}"
        if source.n_without_text:
            yield f"{source.label}: {source.n_without_text} of {source.n_rows} rows hold no text and were left out"
    n_uncompared = manifest.counts.n_uncompared
    if n_uncompared:
        yield f"{n_uncompared} rows are much alike (one template?) and not all were compared: near duplicates may remain"


def _of_sizes(manifest: CalibrationManifest, file: RecipeFile, is_short: Sequence[bool]) -> Iterator[str]:
    split, budget = manifest.calibration, file.recipe.token_budget
    for (domain, share), lacks in zip(manifest.shares.items(), is_short, strict=True):
        if lacks:
            got = split.tokens_by_domain[domain]
            achieved = f"{got / split.n_tokens:.0%} of the set in place of {share:.0%}"
            yield f"{domain}: only {got} of {round(share * budget)} tokens ({achieved}); no row is repeated"
    yield from small_set(split.n_rows, split.n_tokens)
    if manifest.heldout is not None and not manifest.heldout.n_rows:
        yield "too few documents for a held-out split: its file is empty"


def _of_tokens(manifest: CalibrationManifest) -> Iterator[str]:
    if manifest.tokens.method is TokenMethod.ESTIMATE:
        yield "tokens are estimated as a quarter of the bytes; name a 'model' in the recipe to count them"
    if manifest.tokens.is_plain_text:
        yield f"{manifest.tokens.model} has no chat template: messages were counted as plain text"
    n_cut = manifest.calibration.n_cut
    if n_cut:
        limit = manifest.recipe.get("sequence_tokens", 2048)
        yield f"{n_cut} rows are longer than {limit} tokens, which is all that counts of them; the quantizer cuts them"
