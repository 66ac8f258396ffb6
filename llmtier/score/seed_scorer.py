"""A scorer from seed sentences alone: what a user without any outcome gets.

Wraps ``seeds.fit_seeds`` as a scorer of kind ``semantic``, which is stored, loaded and asked as any other. Its numbers
order prompts and promise nothing.
"""

from collections.abc import Sequence

from llmtier.core.errors import UsageError
from llmtier.score.embedding import Embedding, EmbeddingFeatures
from llmtier.score.scorer import FittedScorer
from llmtier.score.seeds import fit_seeds
from llmtier.score.semantic import SEMANTIC
from llmtier.stats.logistic import Platt


def fit_seed_scorer(
    simple: Sequence[Embedding], complex_: Sequence[Embedding], tiers: Sequence[str]
) -> FittedScorer[EmbeddingFeatures]:
    """Make a scorer of seed sentences' embeddings.

    Args:
        simple: Of sentences that any tier can answer.
        complex_: Of sentences for the dearest tier.
        tiers: Names, cheapest first.

    Raises:
        UsageError: No tier is named.
        InputFileError: A list is empty, or embeddings are of several models.
    """
    if not tiers:
        raise UsageError("a scorer needs at least one tier")
    model = fit_seeds(simple, complex_, n_tiers=len(tiers))
    return FittedScorer(recipe=SEMANTIC, model=model, tiers=tuple(tiers), calibration=(Platt(),) * len(tiers))
