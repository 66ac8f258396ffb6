"""Profiles: what was measured of a tier, one folder ``<root>/<hardware>/<tier>/`` each.

Writes and reads ``requests.parquet`` (one row per request), ``points.parquet`` (one per load
point), ``accuracy.parquet`` (one per item), ``profile.parquet`` (the router's summary) and
``manifest.json`` (identity, written last). A folder without a manifest is no profile.
Computes nothing: ``profile`` summarizes, ``route`` predicts.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llmtier.core.errors import InputFileError
from llmtier.core.hardware import Hardware
from llmtier.core.profile import Cost, TierProfile
from llmtier.core.provenance import Provenance
from llmtier.core.tier import EngineIdentity
from llmtier.store.atomic import staged_directory, write_bytes, write_json
from llmtier.store.documents import SCHEMA_VERSION, Decoder, read_document
from llmtier.store.names import check_tier_name
from llmtier.store.parquet import Column, Row, decode_rows, encode_rows, read_file, read_rows
from llmtier.store.profile_rows import POINT_COLUMNS, PROFILE_COLUMNS, from_summary_rows, to_summary_rows

MANIFEST_NAME = "manifest.json"
_ADVICE = "run 'llmtier profile' again"

REQUEST_COLUMNS = (
    Column("tier", "string"),
    Column("concurrency", "int64", unit="requests"),
    Column("prompt_id", "string"),
    Column("scheduled_s", "float64", unit="s"),
    Column("sent_s", "float64", unit="s"),
    Column("first_s", "float64", unit="s", nullable=True),
    Column("last_s", "float64", unit="s", nullable=True),
    Column("done_s", "float64", unit="s"),
    Column("n_input_tokens", "int64", unit="tokens", nullable=True),
    Column("n_output_tokens", "int64", unit="tokens", nullable=True),
    Column("status", "string"),
)

ACCURACY_COLUMNS = (
    Column("prompt_id", "string"),
    Column("domain", "string", nullable=True),
    Column("scorer", "string"),
    Column("expected", "string", nullable=True),
    Column("text", "string", nullable=True),
    Column("score", "float64", unit="1"),
    Column("error", "string", nullable=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """One request of a load; instants are seconds on one monotonic clock.

    Attributes:
        tier: The tier that answered.
        concurrency: The load point it belongs to.
        prompt_id: ``Prompt.id``.
        scheduled_s: When the load shape wanted it sent.
        sent_s: When it was sent.
        first_s: First content chunk; ``None`` when none came; likewise ``last_s``.
        done_s: End of the response or of the attempt.
        n_input_tokens: As the engine reports; likewise ``n_output_tokens``.
        status: ``ok``, or why it failed.
    """

    tier: str
    concurrency: int
    prompt_id: str
    scheduled_s: float
    sent_s: float
    first_s: float | None
    last_s: float | None
    done_s: float
    n_input_tokens: int | None
    n_output_tokens: int | None
    status: str = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyItem:
    """One evaluation prompt as one tier answered it.

    Attributes:
        prompt_id: ``Prompt.id``.
        domain: The prompt's label; ``None`` when absent.
        scorer: How the answer was compared.
        expected: The reference answer.
        text: The answer; ``None`` when the request failed.
        score: In [0, 1]; 0 when the request failed.
        error: Why the request failed; ``None`` when it did not.
    """

    prompt_id: str
    domain: str | None
    scorer: str
    expected: str | None
    text: str | None
    score: float
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileManifest:
    """What a profile is of: everything of ``TierProfile`` that is not a table.

    Attributes:
        files: sha256 of each table by file name.
        provenance: The run that measured it.
    """

    tier: str
    checkpoint_digest: str | None
    engine: EngineIdentity
    hardware_fingerprint: str
    device: str
    co_tenants: tuple[str, ...]
    context_tokens: int | None
    cost: Cost | None
    files: dict[str, str]
    provenance: Provenance


def write_profile(
    root: Path,
    hardware: Hardware,
    profile: TierProfile,
    *,
    requests: Sequence[RequestRow],
    items: Sequence[AccuracyItem],
    provenance: Provenance,
) -> Path:
    """Write a profile in the place of an older one of the same tier and hardware; return its folder.

    Raises:
        ValueError: Load points do not ascend, a domain stands twice, or a value is NaN.
        DiskError: The file system refused; the older profile is as it was.
    """
    check_tier_name(profile.tier)
    tables = {
        "requests.parquet": encode_rows([asdict(row) for row in requests], REQUEST_COLUMNS, artifact="requests"),
        "points.parquet": encode_rows([asdict(point) for point in profile.points], POINT_COLUMNS, artifact="points"),
        "accuracy.parquet": encode_rows([asdict(item) for item in items], ACCURACY_COLUMNS, artifact="accuracy"),
        "profile.parquet": encode_rows(to_summary_rows(profile), PROFILE_COLUMNS, artifact="profile"),
    }
    target = root / hardware.slug / profile.tier
    with staged_directory(target, force=True) as staging:
        for name, data in tables.items():
            write_bytes(staging / name, data)
        write_json(staging / MANIFEST_NAME, _manifest_document(profile, tables, provenance))
    return target


def read_profile(directory: Path) -> TierProfile:
    """Read what the router needs of one profile.

    Raises:
        InputFileError: It is absent, malformed, or its table is not the one the manifest names.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    manifest = read_profile_manifest(directory)
    path = directory / "profile.parquet"
    data = read_file(path)
    if hashlib.sha256(data).hexdigest() != manifest.files.get(path.name):
        raise InputFileError(f"is not the table that {MANIFEST_NAME} names; {_ADVICE}", path=path)
    rows = decode_rows(data, PROFILE_COLUMNS, path=path, artifact="profile", advice=_ADVICE)
    points, accuracy = from_summary_rows(rows, path=path)
    return TierProfile(
        tier=manifest.tier,
        checkpoint_digest=manifest.checkpoint_digest,
        engine=manifest.engine,
        hardware_fingerprint=manifest.hardware_fingerprint,
        device=manifest.device,
        co_tenants=manifest.co_tenants,
        context_tokens=manifest.context_tokens,
        points=points,
        accuracy=accuracy,
        cost=manifest.cost,
    )


def read_profile_manifest(directory: Path) -> ProfileManifest:
    """Read the identity and provenance of one profile.

    Raises:
        InputFileError: It is absent or malformed.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    path = directory / MANIFEST_NAME
    document = read_document(path, artifact="profile manifest", advice=_ADVICE)
    return Decoder(ProfileManifest).decode(document, path=path)


def find_profiles(root: Path, hardware_slug: str | None = None) -> dict[str, Path]:
    """Return the folder of each profiled tier.

    Args:
        root: The folder that ``llmtier profile`` writes to.
        hardware_slug: Machine to look at; ``None`` takes the only one there is of each tier.

    Raises:
        InputFileError: There is no profile, or a tier was profiled on several machines and none is named.
    """
    pattern = f"{hardware_slug or '*'}/*/{MANIFEST_NAME}"
    found: dict[str, Path] = {}
    for manifest in sorted(root.glob(pattern)):
        folder = manifest.parent
        if folder.name.startswith("."):  # being written, or left by a power cut
            continue
        if folder.name in found:
            others = f"{found[folder.name].parent.name} and {folder.parent.name}"
            raise InputFileError(f"tier {folder.name} was profiled on {others}; name the hardware", path=root)
        found[folder.name] = folder
    if not found:
        where = f" for {hardware_slug}" if hardware_slug else ""
        raise InputFileError(f"holds no profile{where}; run 'llmtier profile'", path=root)
    return found


def read_profiles(root: Path, hardware_slug: str | None = None) -> dict[str, TierProfile]:
    """Read every profile under ``root`` by tier name; arguments and errors as ``find_profiles`` and ``read_profile``."""
    profiles = [read_profile(folder) for folder in find_profiles(root, hardware_slug).values()]
    return {profile.tier: profile for profile in profiles}


def read_requests(directory: Path) -> list[RequestRow]:
    """Read every request of one profile.

    Raises:
        InputFileError: The table is absent or malformed.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    path = directory / "requests.parquet"
    rows = read_rows(path, REQUEST_COLUMNS, artifact="requests", advice=_ADVICE)
    return [RequestRow(**row) for row in rows]


def read_items(directory: Path) -> list[AccuracyItem]:
    """Read every evaluated item of one profile; errors as ``read_requests``."""
    path = directory / "accuracy.parquet"
    rows = read_rows(path, ACCURACY_COLUMNS, artifact="accuracy", advice=_ADVICE)
    return [AccuracyItem(**row) for row in rows]


def _manifest_document(profile: TierProfile, tables: dict[str, bytes], provenance: Provenance) -> Row:
    identity = {key: value for key, value in asdict(profile).items() if key not in {"points", "accuracy"}}
    files = {name: hashlib.sha256(data).hexdigest() for name, data in tables.items()}
    return {"schema_version": SCHEMA_VERSION, **identity, "files": files, "provenance": asdict(provenance)}
