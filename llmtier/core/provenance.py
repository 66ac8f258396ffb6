"""Where an artifact came from; every manifest carries one of these."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmtier.core.hardware import Hardware
from llmtier.core.tier import EngineIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How an artifact was made.

    Attributes:
        llmtier_version: Version that wrote it.
        command: The command line, program name first.
        created_at: UTC instant, ISO 8601.
        seed: Seed of every random choice; ``None`` when none was made.
        hardware: Machine it was made on.
        engine: What ran the model; ``None`` when nothing did.
        inputs: sha256 of each file that was read, by name.
    """

    llmtier_version: str
    command: tuple[str, ...]
    created_at: str
    hardware: Hardware
    seed: int | None = None
    engine: EngineIdentity | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
