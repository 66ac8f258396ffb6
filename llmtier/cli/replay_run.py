"""The rounds of a replay: answers, then a judge's verdicts on them, then ratings; and what they add up to.

Writes the outcomes file, and drops the rounds' journals once nothing is missing.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.cli import output
from llmtier.cli.provenance import digest_inputs, make_provenance
from llmtier.cli.replay_ask import Round, ask_round, count_missing, journal_for
from llmtier.cli.replay_plan import Roles
from llmtier.core.prompt import LabelledPrompt, Outcome, Prompt
from llmtier.engine.hardware import detect_hardware
from llmtier.evaluate.grading import Grader, grade_by_agreement, grade_by_reference, grade_by_verdicts
from llmtier.evaluate.method import ScoreBy
from llmtier.evaluate.plan import Plan
from llmtier.evaluate.ratings import RATER, rating_prompts, read_ratings
from llmtier.evaluate.replay import answered_pairs, merge_outcomes
from llmtier.evaluate.verdict import JUDGE, verdict_prompts
from llmtier.score.self_assess import parse_rating
from llmtier.store.outcomes import discard_outcomes_parts, write_outcomes

if TYPE_CHECKING:
    from llmtier.store.config_model import Config, TierConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One replay, decided.

    Attributes:
        config: The configuration.
        roles: Who does what.
        plan: Which prompts are asked.
        log: Where they come from.
        out: The outcomes file.
        concurrency: Requests in flight per tier.
        logprobs: Whether log probabilities are asked for.
    """

    config: "Config"
    roles: Roles
    plan: Plan
    log: Path
    out: Path
    concurrency: int
    logprobs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a judge or a rater said.

    Attributes:
        numbers: In [0, 10] by what was asked; ``None`` where the words were no such number.
        first_unreadable: The first words that were none; ``None`` when all could be read.
    """

    numbers: Mapping[str, float | None]
    first_unreadable: str | None

    @property
    def n_unreadable(self) -> int:
        """Answers that were no number."""
        return sum(number is None for number in self.numbers.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A round and what came of it.

    Attributes:
        round: What was asked of whom.
        outcomes: Everything that was answered, earlier runs included, and what failed.
    """

    round: Round
    outcomes: Sequence[Outcome]

    @property
    def said(self) -> Said:
        """The outcomes as numbers, of a round that asked for some."""
        numbers = read_ratings(self.outcomes)
        junk = (outcome.text for outcome in self.outcomes if outcome.text is not None)
        return Said(numbers=numbers, first_unreadable=next((text for text in junk if parse_rating(text) is None), None))

    @property
    def n_missing(self) -> int:
        """Questions without an answer."""
        return count_missing(self.round, self.round.tiers, answered_pairs(self.outcomes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a replay found.

    Attributes:
        labelled: One row per asked prompt.
        verdicts: What the judge said; ``None`` without a judge.
        ratings: What the rater said, likewise.
        n_missing: Answers, verdicts and ratings that did not come.
        n_without_logprobs: Answers that came without log probabilities though they were asked for.
    """

    labelled: Sequence[LabelledPrompt]
    verdicts: Said | None
    ratings: Said | None
    n_missing: int
    n_without_logprobs: int


def replay_to_file(job: Job) -> Findings:
    """Ask what the journals do not hold yet, write the outcomes, and drop the journals when nothing is missing."""
    inputs = digest_inputs(job.log)
    try:
        rounds = asyncio.run(ask_rounds(job, inputs))
    except KeyboardInterrupt:
        output.say("interrupted; what was answered is kept: run the same again to go on")
        raise
    findings = sum_up(job, rounds)
    provenance = make_provenance(hardware=detect_hardware(), seed=job.plan.seed, inputs=inputs)
    write_outcomes(job.out, findings.labelled, provenance=provenance)
    if findings.n_missing:
        output.say(f"{findings.n_missing} answers are missing; run the same again with --force to ask only for those")
        return findings
    for asked in rounds:
        discard_outcomes_parts(asked.round.journal)
    return findings


async def ask_rounds(job: Job, inputs: Mapping[str, str]) -> list[Asked]:
    """Ask the tiers, then the judge about their answers, then the rater."""
    prompts, roles = job.plan.prompts, job.roles
    asked = [await _ask(_answers_round(job, inputs))]
    if roles.judge is not None:
        questions = verdict_prompts(prompts, asked[0].outcomes)
        asked.append(await _ask(_role_round(job, inputs, roles.judge, questions, role=JUDGE)))
    if roles.rater is not None:
        asked.append(await _ask(_role_round(job, inputs, roles.rater, rating_prompts(prompts), role=RATER)))
    return asked


def sum_up(job: Job, rounds: Sequence[Asked]) -> Findings:
    """Lay the answers side by side, scored and weighted."""
    answers = rounds[0]
    said = {asked.round.role: asked.said for asked in rounds[1:]}
    verdicts, ratings = said.get(JUDGE), said.get(RATER)
    labelled = merge_outcomes(
        job.plan.prompts,
        answers.outcomes,
        grade=choose_grader(job.roles, {} if verdicts is None else verdicts.numbers),
        weights=job.plan.weights,
        ratings={} if ratings is None else ratings.numbers,
    )
    n_plain = sum(outcome.text is not None and outcome.mean_logprob is None for outcome in answers.outcomes)
    return Findings(
        labelled=labelled,
        verdicts=verdicts,
        ratings=ratings,
        n_missing=sum(asked.n_missing for asked in rounds),
        n_without_logprobs=n_plain if job.logprobs else 0,
    )


def choose_grader(roles: Roles, verdicts: Mapping[str, float | None]) -> Grader:
    """Return what scores the answers."""
    if roles.method is ScoreBy.JUDGE:
        return grade_by_verdicts(verdicts)
    if roles.method is ScoreBy.AGREEMENT and roles.reference is not None:
        return grade_by_agreement(roles.reference)
    return grade_by_reference


async def _ask(asking: Round) -> Asked:
    return Asked(round=asking, outcomes=await ask_round(asking))


def _answers_round(job: Job, inputs: Mapping[str, str]) -> Round:
    kind = "answers with logprobs" if job.logprobs else "answers"
    max_tokens = job.config.load.max_tokens
    return Round(
        tiers=job.roles.tiers,
        prompts=job.plan.prompts,
        journal=journal_for(job.out, inputs, job.roles.tiers, max_tokens=max_tokens, kind=kind),
        concurrency=job.concurrency,
        max_tokens=max_tokens,
        is_with_logprobs=job.logprobs,
    )


def _role_round(
    job: Job, inputs: Mapping[str, str], tier: "TierConfig", questions: Sequence[Prompt], *, role: str
) -> Round:
    """Return the round in which one tier judges or rates; each question says how long its answer may be."""
    max_tokens = job.config.load.max_tokens
    return Round(
        tiers=(tier,),
        prompts=questions,
        journal=journal_for(job.out, inputs, (tier,), max_tokens=max_tokens, kind=role),
        concurrency=job.concurrency,
        max_tokens=max_tokens,
        role=role,
        verb="grading by" if role == JUDGE else "rating by",
        noun="verdicts" if role == JUDGE else "ratings",
    )
