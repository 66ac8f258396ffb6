"""Profiles: what was measured of a tier, one folder ``<root>/<hardware>/<tier>/`` each.

Writes and reads ``requests.parquet`` (one row per request), ``points.parquet`` (one per load
point), ``accuracy.parquet`` (one per item), ``profile.parquet`` (the router's summary),
``latency_model.json`` where a model was fitted, and ``manifest.json`` (identity and how the load
was made, written last). A folder without a manifest is no profile.
Computes nothing: ``profile`` summarizes and fits, ``route`` predicts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmtier.core.errors import InputFileError
from llmtier.core.hardware import Hardware
from llmtier.core.latency_model import LatencyModel
from llmtier.core.profile import Cost, TierProfile
from llmtier.core.provenance import Provenance
from llmtier.core.tier import EngineIdentity
from llmtier.store.atomic import staged_directory, write_bytes, write_json
from llmtier.store.digests import file_sha256
from llmtier.store.documents import SCHEMA_VERSION, Decoder, read_document
from llmtier.store.latency_models import LATENCY_MODEL_NAME, decode_latency_model, encode_latency_model
from llmtier.store.names import check_tier_name
from llmtier.store.parquet import Column, Row, decode_rows, encode_rows, read_file, read_rows
from llmtier.store.profile_rows import (
    POINT_COLUMNS,
    PROFILE_COLUMNS,
    from_summary_rows,
    shape_or_closed,
    to_summary_rows,
)

MANIFEST_NAME = "manifest.json"
_ADVICE = "run 'llmtier profile' again"

REQUEST_COLUMNS = (
    Column("tier", "string"),
    Column("concurrency", "int64", unit="requests", nullable=True),
    Column("prompt_id", "string"),
    Column("scheduled_s", "float64", unit="s"),
    Column("sent_s", "float64", unit="s"),
    Column("first_s", "float64", unit="s", nullable=True),
    Column("last_s", "float64", unit="s", nullable=True),
    Column("done_s", "float64", unit="s"),
    Column("n_input_tokens", "int64", unit="tokens", nullable=True),
    Column("n_output_tokens", "int64", unit="tokens", nullable=True),
    Column("status", "string"),
    Column("shape", "string", nullable=True),
    Column("n_chunks", "int64", unit="chunks", nullable=True),
    Column("is_counted", "bool", nullable=True),
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
        concurrency: Of the closed loop it belongs to; ``None`` for any other shape.
        prompt_id: ``Prompt.id``.
        scheduled_s: When the load shape wanted it sent.
        sent_s: When it was sent.
        first_s: First content chunk; ``None`` when none came; likewise ``last_s``.
        done_s: End of the response or of the attempt.
        n_input_tokens: As the engine reports; likewise ``n_output_tokens``.
        status: ``ok``, or why it failed.
        shape: ``LoadPoint.shape`` of the load point it belongs to.
        n_chunks: Content chunks that came.
        is_counted: Whether it lies in the point's steady window.
    """

    tier: str
    concurrency: int | None
    prompt_id: str
    scheduled_s: float
    sent_s: float
    first_s: float | None
    last_s: float | None
    done_s: float
    n_input_tokens: int | None
    n_output_tokens: int | None
    status: str = "ok"
    shape: str = ""
    n_chunks: int | None = None
    is_counted: bool | None = None


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
class LoadRecord:
    """How the load of a profile was made and what was seen beside the answers, as plain data.

    Attributes:
        settings: What the load was told: shapes, lengths, limits, precision.
        seeds: Of arrivals and prompts, every one that was used.
        self_test: What the client can do on this machine, measured against the mock engine; ``None`` when untested.
        engine_side: One per load point, in their order: the engine's counters and the device's use; ``None``
            where nothing was read. Empty when nobody looked.
        co_tenant_shares: What each co-tenant had of the machine meanwhile, by tier.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    self_test: Mapping[str, Any] | None = None
    engine_side: tuple[Mapping[str, Any] | None, ...] = ()
    co_tenant_shares: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileManifest:
    """What a profile is of: everything of ``TierProfile`` that lies in no other file.

    Attributes:
        files: sha256 of each other file by name.
        provenance: The run that measured it.
        load: How the load was made; empty in profiles of older versions.
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
    goodput_rps: float | None = None
    max_in_flight: int | None = None
    load: LoadRecord = field(default_factory=LoadRecord)


def write_profile(  # noqa: PLR0913  # what a profile consists of
    root: Path,
    hardware: Hardware,
    profile: TierProfile,
    *,
    requests: Sequence[RequestRow],
    items: Sequence[AccuracyItem],
    provenance: Provenance,
    load: LoadRecord | None = None,
) -> Path:
    """Write a profile in the place of an older one of the same tier and hardware; return its folder.

    Raises:
        ValueError: Load points are out of order or not as many as ``load`` tells of, a domain stands twice,
            or a value is NaN.
        DiskError: The file system refused; the older profile is as it was.
    """
    check_tier_name(profile.tier)
    load = load if load is not None else LoadRecord()
    if len(load.engine_side) not in {0, len(profile.points)}:
        raise ValueError(f"{len(load.engine_side)} records of the engine's side for {len(profile.points)} load points")
    files = _encode_files(profile, requests, items)
    target = root / hardware.slug / profile.tier
    with staged_directory(target, force=True) as staging:
        for name, data in files.items():
            write_bytes(staging / name, data)
        write_json(staging / MANIFEST_NAME, _manifest_document(profile, files, provenance, load))
    return target


def read_profile(directory: Path) -> TierProfile:
    """Read what the router needs of one profile.

    Raises:
        InputFileError: It is absent, malformed, or a file is not the one the manifest names.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    manifest = read_profile_manifest(directory)
    path = directory / "profile.parquet"
    data = _read_named(path, manifest)
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
        latency=_read_latency_model(directory, manifest),
        goodput_rps=manifest.goodput_rps,
        max_in_flight=manifest.max_in_flight,
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


def digest_profiles(root: Path, hardware_slug: str | None = None) -> dict[str, str]:
    """Return the sha256 of each profile's manifest, which holds the digests of the rest; errors as ``find_profiles``."""
    return {tier: file_sha256(folder / MANIFEST_NAME) for tier, folder in find_profiles(root, hardware_slug).items()}


def read_requests(directory: Path) -> list[RequestRow]:
    """Read every request of one profile.

    Raises:
        InputFileError: The table is absent or malformed.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    path = directory / "requests.parquet"
    rows = read_rows(path, REQUEST_COLUMNS, artifact="requests", advice=_ADVICE)
    return [to_request(row) for row in rows]


def to_request(row: Row) -> RequestRow:
    """Return the request of a row that has every column of ``REQUEST_COLUMNS``."""
    return RequestRow(**{**row, "shape": shape_or_closed(row["shape"], row["concurrency"])})


def read_items(directory: Path) -> list[AccuracyItem]:
    """Read every evaluated item of one profile; errors as ``read_requests``."""
    path = directory / "accuracy.parquet"
    rows = read_rows(path, ACCURACY_COLUMNS, artifact="accuracy", advice=_ADVICE)
    return [AccuracyItem(**row) for row in rows]


def _encode_files(
    profile: TierProfile, requests: Sequence[RequestRow], items: Sequence[AccuracyItem]
) -> dict[str, bytes]:
    files = {
        "requests.parquet": encode_rows([asdict(row) for row in requests], REQUEST_COLUMNS, artifact="requests"),
        "points.parquet": encode_rows([asdict(point) for point in profile.points], POINT_COLUMNS, artifact="points"),
        "accuracy.parquet": encode_rows([asdict(item) for item in items], ACCURACY_COLUMNS, artifact="accuracy"),
        "profile.parquet": encode_rows(to_summary_rows(profile), PROFILE_COLUMNS, artifact="profile"),
    }
    if profile.latency is not None:
        files[LATENCY_MODEL_NAME] = encode_latency_model(profile.latency)
    return files


def _read_latency_model(directory: Path, manifest: ProfileManifest) -> LatencyModel | None:
    if LATENCY_MODEL_NAME not in manifest.files:
        return None
    path = directory / LATENCY_MODEL_NAME
    return decode_latency_model(_read_named(path, manifest), path=path)


def _read_named(path: Path, manifest: ProfileManifest) -> bytes:
    data = read_file(path)
    if hashlib.sha256(data).hexdigest() != manifest.files.get(path.name):
        raise InputFileError(f"is not the file that {MANIFEST_NAME} names; {_ADVICE}", path=path)
    return data


def _manifest_document(
    profile: TierProfile, files: Mapping[str, bytes], provenance: Provenance, load: LoadRecord
) -> Row:
    identity = {key: value for key, value in asdict(profile).items() if key not in {"points", "accuracy", "latency"}}
    return {
        "schema_version": SCHEMA_VERSION,
        **identity,
        "load": asdict(load),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "provenance": asdict(provenance),
    }
