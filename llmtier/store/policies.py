"""Policies: ``policy.json`` and the fitted scorer's state beside it.

The sidecar's name holds its digest (``policy.scorer-<12 hex>.json``) and is written first, so at
every instant the policy on disk names a scorer that is there and whole. The sidecar of the
policy that was replaced is removed last.
"""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

from llmtier.core.errors import InputFileError
from llmtier.core.policy import Policy
from llmtier.core.provenance import Provenance
from llmtier.store.atomic import disk_errors, write_bytes, write_json
from llmtier.store.documents import SCHEMA_VERSION, Decoder, read_document
from llmtier.store.parquet import read_file

_ADVICE = "run 'llmtier fit-thresholds' again"


def write_policy(path: Path, policy: Policy, scorer_state: bytes, *, provenance: Provenance) -> Policy:
    """Write policy and scorer; return the policy as written, with the sidecar's name and digest in ``scorer``.

    Raises:
        ValueError: The policy holds NaN.
        DiskError: The file system refused; the older policy still reads.
    """
    sha256 = hashlib.sha256(scorer_state).hexdigest()
    file = f"{path.stem}.scorer-{sha256[:12]}.json"
    written = replace(policy, scorer=replace(policy.scorer, file=file, sha256=sha256))
    old_file = _scorer_file_of(path)
    write_bytes(path.parent / file, scorer_state)
    write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(written), "provenance": asdict(provenance)})
    if old_file is not None and old_file != file and old_file.startswith(f"{path.stem}.scorer-"):
        with disk_errors(path.parent / old_file):
            (path.parent / old_file).unlink(missing_ok=True)
    return written


def read_policy(path: Path) -> Policy:
    """Read a policy.

    Raises:
        InputFileError: It is absent or malformed.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    document = read_document(path, artifact="policy", advice=_ADVICE)
    return Decoder(Policy).decode(document, path=path)


def read_scorer_state(path: Path, policy: Policy) -> bytes:
    """Return the scorer's state that belongs to the policy at ``path``.

    Raises:
        InputFileError: The sidecar is absent, or is not the one the policy was fitted with.
    """
    file = path.parent / policy.scorer.file
    state = read_file(file)
    if hashlib.sha256(state).hexdigest() != policy.scorer.sha256:
        raise InputFileError(f"is not the scorer that {path.name} was fitted with; {_ADVICE}", path=file)
    return state


def _scorer_file_of(path: Path) -> str | None:
    try:
        return read_policy(path).scorer.file
    except InputFileError:  # none yet, or one that cannot be read: it is replaced all the same
        return None
