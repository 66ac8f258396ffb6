"""Ask tiers in rounds, each with a journal that keeps every answer as it comes.

Starts engines, writes journals beside the outcomes file; an interrupted round goes on with what its
journal lacks. A journal belongs to what was asked of whom, not to the sample or to how answers are scored:
a larger budget or another judge asks nobody twice.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.cli import output

if TYPE_CHECKING:
    from llmtier.core.errors import EngineRequestError
    from llmtier.core.prompt import Outcome, Prompt
    from llmtier.engine.tier import RunningTier
    from llmtier.evaluate.ask import ChatClient
    from llmtier.evaluate.logprobs import FieldsClient
    from llmtier.store.config_model import TierConfig

JOURNAL_EVERY = 64
"""Answers between two writes of the journal: what a kill can lose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What is asked of whom.

    Attributes:
        tiers: Who is asked.
        prompts: What each of them is asked.
        journal: Where answers are kept; see ``journal_for``.
        concurrency: Requests in flight per tier.
        max_tokens: Longest answer, for prompts that name none.
        is_with_logprobs: Whether log probabilities are asked for.
        role: Stands as ``tier`` in the outcomes of a single tier that judges or rates; ``None`` for its name.
        verb: For progress, such as ``asking``; likewise ``noun``, what comes of it.
    """

    tiers: "Sequence[TierConfig]"
    prompts: "Sequence[Prompt]"
    journal: Path
    concurrency: int
    max_tokens: int
    is_with_logprobs: bool = False
    role: str | None = None
    verb: str = "asking"
    noun: str = "answers"

    def label(self, tier: str) -> str:
        """Return what outcomes of ``tier`` carry."""
        return self.role or tier


def journal_for(
    out: Path, inputs: Mapping[str, str], tiers: "Sequence[TierConfig]", *, max_tokens: int, kind: str
) -> Path:
    """Return the path whose journal belongs to this log, these tiers and this kind of question, and to no others.

    Args:
        out: The outcomes file, beside which it lies.
        inputs: Name and digest of the log.
        tiers: Who is asked.
        max_tokens: Longest answer.
        kind: What is asked, such as ``answers``.
    """
    from llmtier.store.digests import checkpoint_digest

    identity = [json.dumps([dict(inputs), max_tokens, kind], sort_keys=True)]
    for tier in tiers:
        folder = tier.checkpoint_path
        digest = tier.model if folder is None else checkpoint_digest(folder)
        identity.append(json.dumps([tier.name, digest, tier.engine.model_dump(mode="json")], sort_keys=True))
    return out.with_name(f"{out.name}.{hashlib.sha256(''.join(identity).encode()).hexdigest()[:12]}")


async def ask_round(asking: Round) -> "list[Outcome]":
    """Ask what the journal does not hold yet, in waves of tiers that share no device; return all outcomes."""
    from llmtier.cli.engines import LOG_DIR, find_interpreters, make_waves
    from llmtier.engine.hardware import detect_hardware
    from llmtier.engine.tier import running_tiers
    from llmtier.evaluate.replay import answered_pairs

    outcomes = read_earlier(asking)
    done = answered_pairs(outcomes)
    waiting = [tier for tier in asking.tiers if count_missing(asking, [tier], done)]
    pythons = find_interpreters(waiting, detect_hardware())
    for wave in make_waves(waiting):
        names = ", ".join(tier.name for tier in wave)
        output.say(f"starting {names}")
        async with running_tiers(wave, pythons=pythons, log_dir=LOG_DIR) as running:
            with output.progress(f"{asking.verb} {names}", count_missing(asking, wave, done)) as line:
                outcomes += await ask_wave(asking, running, done=done, line=line)
    return outcomes


def read_earlier(asking: Round) -> "list[Outcome]":
    """Return what an interrupted run left of these questions; other prompts of its sample are left aside."""
    from llmtier.store.outcomes import read_outcomes_parts

    wanted = {prompt.id for prompt in asking.prompts}
    earlier = [outcome for outcome in read_outcomes_parts(asking.journal) if outcome.prompt_id in wanted]
    if earlier:
        output.say(f"going on after {len(earlier)} {asking.noun} of an interrupted replay")
    return earlier


def count_missing(asking: Round, tiers: "Sequence[TierConfig]", done: frozenset[tuple[str, str]]) -> int:
    """Return how many answers of these tiers are not in yet."""
    return sum((prompt.id, asking.label(tier.name)) not in done for tier in tiers for prompt in asking.prompts)


async def ask_wave(
    asking: Round,
    running: "dict[str, RunningTier]",
    *,
    done: frozenset[tuple[str, str]],
    line: output.ProgressLine,
) -> "list[Outcome]":
    """Ask every running tier what is missing, journalling each answer."""
    from contextlib import AsyncExitStack

    from llmtier.evaluate.replay import replay_prompts
    from llmtier.store.outcomes import append_outcomes_part

    pending: list[Outcome] = []

    def keep(outcome: "Outcome") -> None:
        pending.append(outcome)
        line.advance()
        if len(pending) >= JOURNAL_EVERY:
            append_outcomes_part(asking.journal, pending)
            pending.clear()

    async with AsyncExitStack() as stack:
        clients: dict[str, ChatClient] = {}
        for name, tier in running.items():
            client = await stack.enter_async_context(tier.connect())
            clients[asking.label(name)] = with_logprobs(client, name) if asking.is_with_logprobs else client
        try:
            return await replay_prompts(
                clients, asking.prompts, concurrency=asking.concurrency, max_tokens=asking.max_tokens, done=done,
                on_outcome=keep,
            )  # fmt: skip
        finally:
            if pending:
                append_outcomes_part(asking.journal, pending)


def with_logprobs(client: "FieldsClient", tier: str) -> "ChatClient":
    """Return ``client`` asking for log probabilities, and telling people when the engine refuses them."""
    from llmtier.evaluate.logprobs import LogprobsClient

    def tell(error: "EngineRequestError") -> None:
        output.say(f"{tier} gives no log probabilities, asking without: {error}")

    return LogprobsClient(client, on_refusal=tell)
