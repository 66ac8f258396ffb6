"""``llmtier replay``: ask every tier the prompts of a log and write their outcomes.

Reads a log and ``llmtier.yaml``, profiles where a budget is in dollars; writes an outcomes file. Journals beside it
keep every answer, verdict and rating as it comes, so an interrupted replay goes on where it stopped; they are removed
at the end.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.cli import output
from llmtier.cli import replay_options as options
from llmtier.cli.options import DEFAULT_CONFIG, ConfigOption, ForceOption, JsonOption, SeedOption
from llmtier.cli.replay_plan import Budget, choose_roles, make_plan, plan_document, read_prices, show_plan
from llmtier.core.errors import InputFileError, UsageError
from llmtier.evaluate.method import ScoreBy

if TYPE_CHECKING:
    from llmtier.core.prompt import Prompt


def replay(
    log: options.Log,
    config: ConfigOption = DEFAULT_CONFIG,
    out: options.Out = Path("outcomes.parquet"),
    tier: options.Tiers = None,
    method: options.Method = ScoreBy.REFERENCE,
    reference: options.Reference = None,
    judge: options.Judge = None,
    rate: options.Rate = None,
    max_requests: options.MaxRequests = None,
    budget_usd: options.Budget = None,
    hardware: options.Hardware = None,
    seed: SeedOption = 0,
    concurrency: options.Concurrency = 16,
    logprobs: options.Logprobs = True,
    dry_run: options.DryRun = False,
    force: ForceOption = False,
    is_json: JsonOption = False,
) -> None:
    """Ask every tier the prompts of a log.

    Example: llmtier replay traffic/ --score-by agreement --reference big --max-requests 2000 -o outcomes.parquet
    """
    from llmtier.cli.replay_report import report
    from llmtier.cli.replay_run import Job, replay_to_file
    from llmtier.store.config import load_config
    from llmtier.store.prompts import read_prompts

    check_output(out, is_free=dry_run or force)
    loaded = load_config(config)
    roles = choose_roles(loaded, tier or [], method=method, reference=reference, judge=judge, rater=rate)
    prompts = choose_prompts(read_prompts(log), method, log=log)
    budget = Budget(max_requests=max_requests, usd=budget_usd, hardware=hardware)
    plan = make_plan(loaded, roles, prompts, log=log, budget=budget, seed=seed)
    prices = read_prices(loaded, hardware)
    if dry_run:
        show_plan(plan, roles, prices, is_json=is_json)
        return
    job = Job(config=loaded, roles=roles, plan=plan, log=log, out=out, concurrency=concurrency, logprobs=logprobs)
    findings = replay_to_file(job)
    report(findings, roles, plan_document(plan, roles, prices), out=out, is_json=is_json)


def check_output(out: Path, *, is_free: bool) -> None:
    """Refuse an outcomes file that cannot be written or would be overwritten.

    Raises:
        UsageError: Says what to do.
    """
    if out.suffix != ".parquet":
        raise UsageError(f"{out}: outcomes are written as Parquet; let the name end in .parquet")
    if out.exists() and not is_free:
        raise UsageError(f"{out} exists; choose another --output, or --force to overwrite it")


def choose_prompts(prompts: "Sequence[Prompt]", method: ScoreBy, *, log: Path) -> "Sequence[Prompt]":
    """Return the prompts whose answers can be scored; with reference answers those that have one.

    Raises:
        InputFileError: Nothing could be scored, or a reference answer cannot be compared.
    """
    from llmtier.evaluate.answers import check_reference

    if method is not ScoreBy.REFERENCE:
        return prompts
    labelled = [prompt for prompt in prompts if prompt.answer is not None]
    if not labelled:
        raise InputFileError(
            "no row has an 'answer' to score against; add 'answer' and 'scorer' to the rows, or take "
            "--score-by agreement or --score-by judge, which need none",
            path=log,
        )
    for prompt in labelled:
        check_reference(prompt, path=log)
    if len(labelled) < len(prompts):
        output.say(f"{len(labelled)} of {len(prompts)} rows have an answer to score against; only those are asked")
    return labelled
