"""The build of a calibration set: sources to spools, duplicates out, two splits, files and manifest.

Reads the recipe's sources; writes ``<name>.jsonl``, ``<name>.heldout.jsonl`` and, last, ``<name>.manifest.json``. Texts
lie on disk, a few hundred bytes of numbers per document in memory. Finished sources survive an interruption. Applies no
chat template: the quantizer does, whose model it belongs to.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from llmtier.core.errors import InputFileError
from llmtier.core.provenance import Provenance
from llmtier.quantize.calibration.caution import find_warnings
from llmtier.quantize.calibration.choice import Split, Wanted, make_splits
from llmtier.quantize.calibration.duplicates import Duplicates
from llmtier.quantize.calibration.gather import Gatherer, find_duplicates
from llmtier.quantize.calibration.inspection import inspect_chosen
from llmtier.quantize.calibration.outputs import check_replaceable, describe_split, split_bytes, write_set
from llmtier.quantize.calibration.planning import BuildPlan
from llmtier.quantize.calibration.spool import Documents
from llmtier.quantize.calibration.steps import BuildStep, OnStep, Phase
from llmtier.quantize.calibration.tokens import TokenCounter
from llmtier.quantize.calibration.workfolder import forget_others, locked_work, work_folder
from llmtier.store.calibration_manifest import (
    CalibrationManifest,
    DocumentCounts,
    SourceFacts,
    SplitFacts,
    TokenCounting,
    TokenMethod,
    write_calibration_manifest,
)

LIBRARIES = ("numpy", "rensa")

ProvenanceOf = Callable[[Mapping[str, str]], Provenance]
"""Makes the provenance of this run from sha256 by input name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What the work has come to, before anything is written."""

    documents: Documents
    duplicates: Duplicates
    n_kept: int
    calibration: Split
    heldout: Split
    counter: TokenCounter | None
    revisions: tuple[str | None, ...]


def build(
    plan: BuildPlan,
    *,
    python: Callable[[], Path],
    provenance_of: ProvenanceOf,
    on_step: OnStep = lambda _step: None,
    force: bool = False,
    n_processes: int = 1,
) -> CalibrationManifest:
    """Build the set, or return its manifest when it is what the build would make.

    Args:
        plan: From ``plan_build``.
        python: Gives the interpreter of the ``quantize`` environment; called only when it is needed.
        provenance_of: Describes this run.
        on_step: Called as the work goes on.
        force: Build even so, and replace files that were changed by hand.
        n_processes: How many read and scan large sources.

    Raises:
        InputFileError: A source is malformed, or leaves no document to calibrate on.
        UsageError: A file would be overwritten that this command did not write, or another build is under way.
        MachineError: The hub, the disk or a worker failed.
    """
    if plan.is_current and plan.manifest is not None and not force:
        return plan.manifest
    check_replaceable(plan.paths, plan.manifest, work_folder(plan.paths), force=force)
    started_s = time.perf_counter()
    with locked_work(plan.paths) as work:
        forget_others(work, {key for source in plan.sources for key in (source.spool_key, source.fetch_key)})
        gatherer = Gatherer(work=work, python=python, on_step=on_step, n_processes=n_processes)
        made = _make(plan, gatherer)
        manifest = _write(plan, made, work=work, provenance_of=provenance_of)
        seconds = round(time.perf_counter() - started_s, 3)
        manifest = replace(manifest, seconds=seconds, peak_memory_bytes=gatherer.peak_memory_bytes)
        write_calibration_manifest(plan.paths.manifest, manifest)
    return manifest


def _make(plan: BuildPlan, gatherer: Gatherer) -> _Made:
    recipe, on_step = plan.file.recipe, gatherer.on_step
    documents = gatherer.gather(recipe, plan.sources)
    duplicates = find_duplicates(documents, similarity=recipe.near_duplicate_similarity, on_step=on_step)
    is_kept = duplicates.is_kept
    if recipe.drop_findings:
        is_kept &= ~documents.records["has_finding"]
    counter = None
    if plan.tokenizer is not None:
        counter = TokenCounter(plan.tokenizer.model, gatherer.python(), gatherer.work, partial(_tell_counted, on_step))
    count = None if counter is None else partial(counter.count, documents)
    calibration, heldout = make_splits(documents, np.flatnonzero(is_kept), _wanted(plan), count=count)
    if not len(calibration.indices):
        raise InputFileError(
            "leaves no document to calibrate on; see its sources and 'min_tokens'", path=plan.file.path
        )
    return _Made(
        documents=documents,
        duplicates=duplicates,
        n_kept=int(is_kept.sum()),
        calibration=calibration,
        heldout=heldout,
        counter=counter,
        revisions=tuple(gatherer.revisions),
    )


def _write(plan: BuildPlan, made: _Made, *, work: Path, provenance_of: ProvenanceOf) -> CalibrationManifest:
    """Write the files and return the manifest, which is yet to be written."""
    calibration, heldout = (split_bytes(made.documents, split) for split in (made.calibration, made.heldout))
    has_heldout = plan.file.recipe.heldout_share > 0
    manifest = CalibrationManifest(
        name=plan.file.recipe.name,
        provenance=provenance_of({source.source.label: source.sha256 for source in plan.sources if source.sha256}),
        recipe_sha256=plan.file.sha256,
        recipe=plan.file.content,
        sources=_source_facts(plan, made),
        counts=_counts(made),
        shares=plan.file.recipe.share_by_domain,
        tokens=_counting(plan, made.counter),
        calibration=_split_facts(plan, made, made.calibration, plan.paths.calibration, calibration),
        heldout=_split_facts(plan, made, made.heldout, plan.paths.heldout, heldout) if has_heldout else None,
        findings=inspect_chosen(
            made.documents,
            np.concatenate([made.calibration.indices, made.heldout.indices]),
            system_prompt=plan.file.system_prompt,
        ),
        versions={name: version(name) for name in LIBRARIES},
    )
    manifest = replace(manifest, warnings=find_warnings(manifest, plan.file, is_short=made.calibration.is_short))
    write_set(plan.paths, work, calibration=calibration, heldout=heldout if has_heldout else None)
    return manifest


def _wanted(plan: BuildPlan) -> Wanted:
    recipe = plan.file.recipe
    return Wanted(
        budget_tokens=recipe.token_budget,
        heldout_budget_tokens=recipe.heldout_token_budget or recipe.token_budget,
        heldout_share=recipe.heldout_share,
        shares=tuple(recipe.share_by_domain[domain] for domain in recipe.domains),
        sequence_tokens=recipe.sequence_tokens,
        seed=recipe.seed,
    )


def _split_facts(plan: BuildPlan, made: _Made, split: Split, path: Path, data: bytes) -> SplitFacts:
    recipe = plan.file.recipe
    return describe_split(
        made.documents,
        split,
        path=path,
        data=data,
        domains=recipe.domains,
        sequence_tokens=recipe.sequence_tokens,
    )


def _source_facts(plan: BuildPlan, made: _Made) -> tuple[SourceFacts, ...]:
    return tuple(
        SourceFacts(
            label=source.source.label,
            domain=source.shape.domain,
            sha256=source.sha256,
            revision=revision,
            is_pinned=source.is_pinned,
            n_rows=spool.facts.n_rows,
            n_without_text=spool.facts.n_without_text,
            n_too_short=spool.facts.n_too_short,
        )
        for source, spool, revision in zip(plan.sources, made.documents.spools, made.revisions, strict=True)
    )


def _counts(made: _Made) -> DocumentCounts:
    facts = [spool.facts for spool in made.documents.spools]
    return DocumentCounts(
        n_rows=sum(fact.n_rows for fact in facts),
        n_without_text=sum(fact.n_without_text for fact in facts),
        n_too_short=sum(fact.n_too_short for fact in facts),
        n_exact_duplicates=made.duplicates.n_exact,
        n_near_duplicates=made.duplicates.n_near,
        n_uncompared=made.duplicates.n_uncompared,
        n_dropped_for_findings=int(made.duplicates.is_kept.sum()) - made.n_kept,
        n_kept=made.n_kept,
    )


def _counting(plan: BuildPlan, counter: TokenCounter | None) -> TokenCounting:
    if plan.tokenizer is None or counter is None:
        return TokenCounting(method=TokenMethod.ESTIMATE)
    return TokenCounting(
        method=TokenMethod.EXACT,
        model=plan.tokenizer.label,
        tokenizer_sha256=plan.tokenizer.sha256,
        is_plain_text=counter.is_plain_text,
    )


def _tell_counted(on_step: OnStep, n_done: int, n_total: int) -> None:
    on_step(BuildStep(phase=Phase.COUNT, label="tokens", n_done=n_done, n_total=n_total))
