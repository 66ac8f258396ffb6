"""The files of a calibration set: what may be replaced, and the writing of them, the manifest last.

Between the first file and the manifest the set is inconsistent for an instant; a marker in the work folder tells the
next build that this was a build, not a person who edited a file.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import UsageError
from llmtier.quantize.calibration.choice import Split
from llmtier.quantize.calibration.select import strata_of
from llmtier.quantize.calibration.spool import Documents
from llmtier.store.atomic import disk_errors, write_bytes, write_text
from llmtier.store.calibration_manifest import CalibrationManifest, SetPaths, SplitFacts, Stratum
from llmtier.store.digests import file_sha256

MARKER = "writing"


def check_replaceable(paths: SetPaths, manifest: CalibrationManifest | None, work: Path, *, force: bool) -> None:
    """Refuse to overwrite what a build did not write.

    Raises:
        UsageError: A file of the set's name was written or changed by somebody, and ``force`` is not given.
        DiskError: The file system does not take such a name, or lets nobody look.
    """
    with disk_errors(paths.manifest):
        has_marker = (work / MARKER).exists()
        there = [path for path in (paths.calibration, paths.heldout) if path.exists()]
    if force or has_marker:
        return
    written = {split.file: split.sha256 for split in manifest.splits} if manifest else {}
    for path in there:
        if written.get(path.name) != file_sha256(path):
            reason = "was changed since it was built" if path.name in written else "was not made by this command"
            raise UsageError(f"{path} {reason}; pass --force to replace it, or choose another name or --output")


def split_bytes(documents: Documents, split: Split) -> bytes:
    """Return a split's file."""
    return b"".join(documents.lines(split.indices))


def describe_split(
    documents: Documents, split: Split, *, path: Path, data: bytes, domains: Sequence[str], sequence_tokens: int
) -> SplitFacts:
    """Return what the manifest says of a split."""
    counted = np.minimum(split.tokens, sequence_tokens)
    of_domain = documents.domain[split.indices]
    n_rows = np.bincount(of_domain, minlength=len(domains))
    n_tokens = np.bincount(of_domain, weights=counted, minlength=len(domains))
    return SplitFacts(
        file=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        n_rows=len(split.indices),
        n_tokens=int(counted.sum()),
        n_cut=int((split.tokens > sequence_tokens).sum()),
        rows_by_domain={domain: int(n) for domain, n in zip(domains, n_rows, strict=True)},
        tokens_by_domain={domain: int(n) for domain, n in zip(domains, n_tokens, strict=True)},
        strata=describe_strata(split.tokens),
    )


def describe_strata(tokens: NDArray[np.int64]) -> tuple[Stratum, ...]:
    """Return the quartiles of some lengths, shortest first."""
    labels = strata_of(tokens)
    groups = [tokens[labels == label] for label in range(int(labels.max()) + 1 if len(labels) else 0)]
    return tuple(Stratum(min_tokens=int(g.min()), max_tokens=int(g.max()), n_rows=len(g)) for g in groups)


def write_set(paths: SetPaths, work: Path, *, calibration: bytes, heldout: bytes | None) -> None:
    """Write the files, or remove the held-out one where the recipe wants none; the manifest is yet to come.

    Raises:
        DiskError: The file system refused.
    """
    write_text(work / MARKER, "")
    write_bytes(paths.calibration, calibration)
    if heldout is None:
        with disk_errors(paths.heldout):
            paths.heldout.unlink(missing_ok=True)
    else:
        write_bytes(paths.heldout, heldout)
