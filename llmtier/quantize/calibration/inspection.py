"""Secrets and personal data in the files that are written: how many rows, and where the first of them come from.

The rows of the sources were scanned as they were read; here the few that were chosen are scanned again, to say where.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from llmtier.quantize.calibration.document import unprompted_text
from llmtier.quantize.calibration.scan import scan
from llmtier.quantize.calibration.spool import Documents, decode_line
from llmtier.store.calibration_manifest import FindingFacts

N_PLACES = 3


def inspect_chosen(
    documents: Documents, indices: Iterable[int], *, system_prompt: str | None
) -> tuple[FindingFacts, ...]:
    """Return what the chosen documents hold, by kind, the most frequent first."""
    chosen = [index for index in map(int, indices) if documents.records["has_finding"][index]]
    n_rows: Counter[str] = Counter()
    places: defaultdict[str, list[str]] = defaultdict(list)
    for index, line in zip(chosen, documents.lines(chosen), strict=True):
        found = scan(unprompted_text(decode_line(line), system_prompt))
        for kind, masked in {finding.kind.value: finding.masked for finding in reversed(found)}.items():
            n_rows[kind] += 1
            if len(places[kind]) < N_PLACES:
                places[kind].append(f"{documents.place(index)} {masked}")
    of_sources = sum((Counter(spool.facts.rows_by_finding) for spool in documents.spools), Counter())
    return tuple(
        FindingFacts(kind=kind, n_rows=n_rows[kind], n_source_rows=n, places=tuple(places[kind]))
        for kind, n in sorted(of_sources.items(), key=lambda item: (-n_rows[item[0]], item[0]))
    )


def describe_findings(findings: Iterable[FindingFacts]) -> tuple[str, ...]:
    """Return a warning for each kind that stands in the written files."""
    return tuple(
        f"{finding.n_rows} rows hold what looks like {phrase(finding.kind)} ({'; '.join(finding.places)}): "
        "look at them, or set 'drop_findings = true'"
        for finding in findings
        if finding.n_rows
    )


def describe_system_prompt(system_prompt: str | None) -> tuple[str, ...]:
    """Return a warning for each kind that the recipe's own system prompt holds."""
    found: Mapping[str, str] = {finding.kind.value: finding.masked for finding in scan(system_prompt or "")}
    return tuple(f"the system prompt holds what looks like {phrase(kind)} ({masked})" for kind, masked in found.items())


def phrase(kind: str) -> str:
    """Return a kind as people say it."""
    return kind.replace("_", " ")
