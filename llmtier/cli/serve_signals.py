"""Where a served policy's scorer gets the signals that it reads beside the text."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmtier.core.errors import PlanError

if TYPE_CHECKING:
    from llmtier.core.policy import Policy
    from llmtier.score.scorer import Scorer
    from llmtier.serve.signals import Embed, SignalPlan
    from llmtier.store.config_model import Config


def plan_signals(config: "Config", routing: "tuple[Policy, Scorer] | None", *, served: Sequence[str]) -> "SignalPlan":
    """Return how the signals are got that the policy's scorer reads.

    Raises:
        PlanError: The scorer reads a signal and the configuration does not say where to get it, or the embedder is
            not the one that the scorer was fitted with.
    """
    from llmtier.score.signals import Signal
    from llmtier.serve.signals import SignalPlan

    if routing is None:
        return SignalPlan()
    policy, scorer = routing
    wanted = config.routing
    if Signal.RATING in scorer.reads and wanted.rater is None:
        raise PlanError(
            f"the policy's scorer {scorer.kind} reads ratings: name the tier that gives them as 'routing.rater'"
        )
    if wanted.rater is not None and wanted.rater not in served:
        raise PlanError(f"routing.rater {wanted.rater} is not served (served: {', '.join(served)})")
    return SignalPlan(
        reads=scorer.reads,
        embed=find_embedder(config, policy) if Signal.EMBEDDING in scorer.reads else None,
        rater=wanted.rater,
        rating_band=math.inf if wanted.rating_band is None else wanted.rating_band,
        rating_timeout_s=wanted.rating_timeout_s,
    )


def find_embedder(config: "Config", policy: "Policy") -> "Embed":
    """Load the embedder that the policy's scorer was fitted with.

    Raises:
        PlanError: None is configured, or it is another one.
    """
    from llmtier.engine.embedder import load_embedder

    folder = config.routing.embedder
    if folder is None:
        raise PlanError(
            f"the policy's scorer {policy.scorer.kind} reads embeddings: give the folder of the embedder it was "
            "fitted with as 'routing.embedder'"
        )
    embedder = load_embedder(folder)
    if embedder.digest != policy.scorer.embedder:
        raise PlanError(
            f"{folder} is not the embedder that the policy was fitted with; "
            "name that one as 'routing.embedder', or run 'llmtier fit-thresholds' with this one"
        )
    return embedder.embed
