"""Turn the demo's answers and profiles into its summary and tables. Pure but for printing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer

from llmtier.cli import output
from llmtier.core.hardware import Hardware
from llmtier.core.policy import Policy
from llmtier.core.profile import LoadPoint, TierProfile
from llmtier.route.predict import request_usd
from llmtier.stats.intervals import paired_interval, wilson
from llmtier.stats.quantiles import quantile

MAX_ACCURACY_DROP = 0.02
"""The demo's promise: routed accuracy stays within this of the baseline's."""

SHOWN_CONCURRENCY = 4
"""Load point that the tier table shows: as many requests in flight as the demo keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One held-out question as the gateway answered it.

    Attributes:
        prompt_id: Which question.
        model: The model name that was asked: ``auto`` or a tier.
        tier: Who answered, from the response header; ``None`` when the request failed.
        score: In [0, 1]; a failed request scores 0.
        e2el_s: As the client saw it; ``None`` when it failed.
        n_output_tokens: As ``usage`` reports.
        error: What failed; ``None`` when nothing did.
    """

    prompt_id: str
    model: str
    tier: str | None
    score: float
    e2el_s: float | None
    n_output_tokens: int | None
    error: str | None = None


def build(
    answers: Sequence[Answer],
    profiles: Mapping[str, TierProfile],
    *,
    hardware: Hardware,
    reference: str,
    policy: Policy | None = None,
) -> dict[str, Any]:
    """Return the document of ``summary.json``; every figure in it was measured in this run."""
    routed = [answer for answer in answers if answer.model == "auto"]
    baseline = [answer for answer in answers if answer.model == reference]
    engine = profiles[reference].engine
    return {
        "schema_version": 1,
        "engine": {"name": engine.name, "version": engine.version},
        "hardware": {**asdict(hardware), "slug": hardware.slug, "fingerprint": hardware.fingerprint},
        "tiers": [describe_tier(profile) for _, profile in sorted(profiles.items())],
        "baseline": {"tier": reference, **describe_run(baseline, profiles)},
        "routed": {**describe_run(routed, profiles), "shares": count_shares(routed)},
        "loss": compare(routed, baseline),
        "promise": None if policy is None else check_promise(policy, compare(routed, baseline)),
        "held_out_prompts": len(routed),
    }


def describe_tier(profile: TierProfile) -> dict[str, Any]:
    """Return one tier's row: accuracy on the evaluation set, latency at the shown load point, cost."""
    estimate = profile.accuracy_of(None)
    point = find_point(profile)
    return {
        "id": profile.tier,
        "accuracy": None if estimate is None else estimate.accuracy,
        "accuracy_ci95": None if estimate is None else estimate.interval.as_list(),
        "ttft_p50_s": None if point is None else point.ttft_p50_s,
        "tpot_p50_s": None if point is None else point.tpot_p50_s,
        "concurrency": None if point is None else point.concurrency,
        "usd_per_1k_requests": None if profile.cost is None else 1000 * profile.cost.usd_per_request,
        "n": 0 if estimate is None else estimate.n,
    }


def find_point(profile: TierProfile) -> LoadPoint | None:
    """Return the valid closed loop nearest to the demo's own concurrency."""
    loops = [(point.concurrency, point) for point in profile.closed_points if point.concurrency is not None]
    nearest = min(loops, key=lambda pair: abs(pair[0] - SHOWN_CONCURRENCY), default=None)
    return None if nearest is None else nearest[1]


def describe_run(answers: Sequence[Answer], profiles: Mapping[str, TierProfile]) -> dict[str, Any]:
    """Return accuracy, p95 latency and cost of one way of serving the held-out questions."""
    n_right = sum(answer.score for answer in answers)
    costs = [answer_usd(answer, profiles) for answer in answers]
    known = [cost for cost in costs if cost is not None]
    return {
        "accuracy": n_right / len(answers),
        "accuracy_ci95": wilson(n_right, len(answers)).as_list(),
        "e2el_p50_s": quantile([answer.e2el_s for answer in answers if answer.e2el_s is not None], 0.5),
        "e2el_p95_s": quantile([answer.e2el_s for answer in answers if answer.e2el_s is not None], 0.95),
        "usd_per_1k_requests": 1000 * sum(known) / len(known) if len(known) == len(answers) else None,
        "failed": sum(answer.error is not None for answer in answers),
    }


def answer_usd(answer: Answer, profiles: Mapping[str, TierProfile]) -> float | None:
    """Return what an answer cost: its own output tokens at its tier's measured price; ``None`` when it failed."""
    if answer.tier is None:
        return None
    return request_usd(profiles[answer.tier], answer.n_output_tokens)


def count_shares(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the share of the questions each tier answered; failures stand under ``failed``."""
    counts = Counter(answer.tier or "failed" for answer in answers)
    return {tier: count / len(answers) for tier, count in sorted(counts.items())}


def compare(routed: Sequence[Answer], baseline: Sequence[Answer]) -> dict[str, Any]:
    """Return the mean loss (baseline - routed score), paired by question, with its interval."""
    scores = {answer.prompt_id: answer.score for answer in baseline}
    differences = [scores[answer.prompt_id] - answer.score for answer in routed]
    interval = paired_interval(differences)
    return {"mean": sum(differences) / len(differences), "ci95": interval.as_list(), "n": len(differences)}


def check_promise(policy: Policy, loss: Mapping[str, Any]) -> dict[str, Any]:
    """Return the policy's guarantee beside what fresh questions lost.

    The promise is broken for certain where the whole interval lies above the limit, and kept for certain where it
    lies below; in between the questions are too few to say.
    """
    promised = policy.guarantee
    limit = None if promised is None else promised.max_loss
    low, high = loss["ci95"]
    verdict = "none given"
    if limit is not None:
        verdict = "broken" if low > limit else "kept" if high <= limit else "kept as far as these questions tell"
        verdict = verdict if loss["mean"] <= limit or low > limit else "not seen to hold, nor to be broken"
    return {
        "statement": None if promised is None else promised.statement,
        "max_loss": limit,
        "n_labels": None if promised is None else promised.n_labels,
        "measured_loss": loss["mean"],
        "measured_ci95": loss["ci95"],
        "n": loss["n"],
        "verdict": verdict,
    }


def judge(summary: Mapping[str, Any]) -> str | None:
    """Return why the demo's promise was not kept; ``None`` when it was."""
    routed, baseline = summary["routed"], summary["baseline"]
    if routed["usd_per_1k_requests"] is None or baseline["usd_per_1k_requests"] is None:
        return f"requests failed: {routed['failed']} routed, {baseline['failed']} on the baseline; costs cannot be compared"
    if not routed["usd_per_1k_requests"] < baseline["usd_per_1k_requests"]:
        return "not proven: routing did not cost less than everything on the reference tier"
    if not routed["accuracy"] >= baseline["accuracy"] - MAX_ACCURACY_DROP:
        return f"not proven: routed accuracy fell more than {MAX_ACCURACY_DROP} below the reference tier's"
    return None


def show(summary: Mapping[str, Any]) -> None:
    """Print the two tables."""
    tiers = summary["tiers"]
    output.print_table(
        f"Tiers, profiled with {SHOWN_CONCURRENCY} requests in flight",
        ("tier", "accuracy", "95 % interval", "n", "TTFT p50 ms", "TPOT p50 ms", "$/1k requests"),
        [
            (
                tier["id"], output.percent(tier["accuracy"]), interval_text(tier["accuracy_ci95"]), str(tier["n"]),
                output.milliseconds(tier["ttft_p50_s"]), output.milliseconds(tier["tpot_p50_s"]),
                output.dollars(tier["usd_per_1k_requests"]),
            )
            for tier in tiers
        ],
    )  # fmt: skip
    baseline, routed = summary["baseline"], summary["routed"]
    output.print_table(
        f"{summary['held_out_prompts']} held-out questions through the gateway",
        ("served by", "accuracy", "95 % interval", "E2EL p50 ms", "E2EL p95 ms", "$/1k requests", "failed"),
        [run_row(f"all on {baseline['tier']}", baseline), run_row("routed", routed)],
    )
    shares = ", ".join(f"{tier} {output.percent(share)}" for tier, share in routed["shares"].items())
    loss = summary["loss"]
    typer.echo(f"shares: {shares}")
    typer.echo(
        f"accuracy lost: {loss['mean']:.4f}, 95 % interval {interval_text(loss['ci95'], is_percent=False)}, n {loss['n']}"
    )
    promised = summary.get("promise")
    if promised is not None:
        typer.echo(
            f"promised: {promised['statement'] or 'nothing'}; on {promised['n']} fresh questions: {promised['verdict']}"
        )
    for label, key in (("cost", "usd_per_1k_requests"), ("p95 latency", "e2el_p95_s")):
        typer.echo(f"{label}: {change_text(baseline[key], routed[key])}")


def run_row(label: str, run: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one row of the second table."""
    return (
        label, output.percent(run["accuracy"]), interval_text(run["accuracy_ci95"]),
        output.milliseconds(run["e2el_p50_s"]), output.milliseconds(run["e2el_p95_s"]),
        output.dollars(run["usd_per_1k_requests"]), str(run["failed"]),
    )  # fmt: skip


def interval_text(bounds: Sequence[float] | None, *, is_percent: bool = True) -> str:
    """Render bounds; unknown as a dash."""
    if bounds is None:
        return "-"
    if is_percent:
        return f"{bounds[0] * 100:.1f} to {bounds[1] * 100:.1f} %"
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def change_text(before: float | None, after: float | None) -> str:
    """Render the relative change from ``before`` to ``after``; unknown as a dash."""
    return "-" if not before or after is None else f"{(after / before - 1) * 100:+.1f} %"
