"""One labelled prompt as one row: scores, tokens, weight, rating and confidences beside the prompt's own columns.

Turns rows into ``LabelledPrompt`` and back, and joins two rows of one prompt. Touches no file.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llmtier.core.prompt import LabelledPrompt, Prompt
from llmtier.store.documents import describe
from llmtier.store.parquet import Column, Row
from llmtier.store.prompt_rows import PROMPT_COLUMNS, to_row
from llmtier.store.prompts import FileRow, parse_prompt

OUTCOME_COLUMNS = (
    *PROMPT_COLUMNS,
    Column("scores", "scores", unit="1"),
    Column("output_tokens_by_tier", "counts", unit="tokens"),
    Column("weight", "float64", unit="prompts", nullable=True),
    Column("rating", "float64", unit="0 to 10", nullable=True),
    Column("confidences", "scores", unit="nat", nullable=True),
)
_EXACT_INTEGER = 1 << 53  # beyond it a float is another number


class _Labels(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    scores: dict[str, float] = Field(default_factory=dict)
    output_tokens_by_tier: dict[str, int] = Field(default_factory=dict)
    confidences: dict[str, float] = Field(default_factory=dict)
    weight: float | None = None
    rating: float | None = None

    @field_validator("scores", "output_tokens_by_tier", "confidences", mode="before")
    @classmethod
    def _drop_absent(cls, value: object) -> object:
        """Accept no map at all, and the nulls of a struct of Parquet."""
        if value is None:
            return {}
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value

    @field_validator("scores")
    @classmethod
    def _in_range(cls, scores: dict[str, float]) -> dict[str, float]:
        check_scores(scores)
        return scores


def check_scores(scores: Mapping[str, float]) -> None:
    """Refuse a score outside [0, 1], NaN included.

    Raises:
        ValueError: Names tier and score.
    """
    for tier, score in scores.items():
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score of {tier} must lie in [0, 1], got {score}")


def to_outcome_row(labelled: LabelledPrompt) -> Row:
    """Return the row of a labelled prompt, every key present.

    Raises:
        ValueError: A score is outside [0, 1], or a confidence is no finite number.
    """
    check_scores(labelled.scores)
    for tier, confidence in labelled.confidences.items():
        if not math.isfinite(confidence):
            raise ValueError(f"confidence of {tier} must be finite, got {confidence}")
    return {
        **to_row(labelled.prompt),
        "scores": list(labelled.scores.items()),
        "output_tokens_by_tier": list(labelled.output_tokens.items()),
        "weight": labelled.weight,
        "rating": labelled.rating,
        "confidences": list(labelled.confidences.items()),
    }


def parse_labelled(row: FileRow, *, default_id: str | None = None) -> LabelledPrompt:
    """Return the labelled prompt of one row; a row without scores has none.

    Raises:
        InputFileError: The row is malformed; says where.
    """
    values = row.values
    labels = _plain_labels(values)
    if labels is None:
        labels = _unusual_labels(row)
    prompt = parse_prompt(row, default_id=default_id)
    scores, tokens, confidences, weight, rating = labels
    try:
        return LabelledPrompt(
            prompt=prompt,
            scores=scores,
            output_tokens=tokens,
            weight=1.0 if weight is None else weight,
            rating=rating,
            confidences=confidences,
        )
    except ValueError as exc:
        raise row.error(str(exc)) from exc


def merge_labelled(first: LabelledPrompt, second: LabelledPrompt) -> LabelledPrompt:
    """Join two rows of one prompt; what the first lacks is taken from the second.

    Raises:
        ValueError: They are different prompts, or differ in a score, a rating or a weight that is stated.
    """
    name = f"id {first.prompt.id!r}"
    if first.prompt.messages != second.prompt.messages:
        raise ValueError(f"{name} is another prompt in an earlier file; make ids unique over the files")
    for tier in first.scores.keys() & second.scores.keys():
        if first.scores[tier] != second.scores[tier]:
            raise ValueError(f"{name} has another score of {tier} in an earlier file; leave one out")
    if None not in (first.rating, second.rating) and first.rating != second.rating:
        raise ValueError(f"{name} has another rating in an earlier file; leave one out")
    if 1.0 not in (first.weight, second.weight) and first.weight != second.weight:
        raise ValueError(f"{name} has another weight in an earlier file; leave one out")
    return replace(
        first,
        prompt=_merge_prompts(first.prompt, second.prompt),
        scores={**first.scores, **second.scores},
        output_tokens={**first.output_tokens, **second.output_tokens},
        weight=second.weight if first.weight == 1.0 else first.weight,
        rating=second.rating if first.rating is None else first.rating,
        confidences={**first.confidences, **second.confidences},
    )


def _merge_prompts(first: Prompt, second: Prompt) -> Prompt:
    has_answer = first.answer is not None
    return replace(
        first,
        domain=second.domain if first.domain is None else first.domain,
        answer=first.answer if has_answer else second.answer,
        scorer=first.scorer if has_answer else second.scorer,
        arrival_s=second.arrival_s if first.arrival_s is None else first.arrival_s,
    )


_LabelValues = tuple[dict[str, float], dict[str, int], dict[str, float], float | None, float | None]
"""Scores, output tokens, confidences, weight, rating."""


def _plain_labels(values: Row) -> _LabelValues | None:
    """Return the labels where all are of the right types and in range; ``None`` leaves them to Pydantic."""
    weight, rating = values.get("weight"), values.get("rating")
    scores = _plain_floats(values.get("scores"))
    tokens = _plain_counts(values.get("output_tokens_by_tier"))
    confidences = _plain_floats(values.get("confidences"))
    if scores is None or tokens is None or confidences is None:
        return None
    if not all(0.0 <= score <= 1.0 for score in scores.values()) or not all(map(math.isfinite, confidences.values())):
        return None
    if not {type(weight), type(rating)} <= {float, type(None)}:
        return None
    return scores, tokens, confidences, weight, rating


def _unusual_labels(row: FileRow) -> _LabelValues:
    try:
        labels = _Labels.model_validate(row.values)
    except ValidationError as exc:
        raise row.error(describe(exc)) from exc
    return labels.scores, labels.output_tokens_by_tier, labels.confidences, labels.weight, labels.rating


def _plain_floats(found: Any) -> dict[str, float] | None:  # noqa: ANN401 - whatever the file held
    pairs = _plain_map(found)
    if pairs is None:
        return None
    numbers: dict[str, float] = {}
    for key, value in pairs.items():
        if type(value) is int and -_EXACT_INTEGER <= value <= _EXACT_INTEGER:
            numbers[key] = float(value)
        elif type(value) is float:
            numbers[key] = value
        elif value is not None:
            return None
    return numbers


def _plain_counts(found: Any) -> dict[str, int] | None:  # noqa: ANN401 - as above
    pairs = _plain_map(found)
    if pairs is None or not all(type(value) is int for value in pairs.values() if value is not None):
        return None
    return {key: value for key, value in pairs.items() if value is not None}


def _plain_map(found: Any) -> dict[str, Any] | None:  # noqa: ANN401 - as above
    if found is None:
        return {}
    return found if type(found) is dict and set(map(type, found)) <= {str} else None
