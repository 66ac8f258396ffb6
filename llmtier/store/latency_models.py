"""Latency models: ``latency_model.json`` in a profile's folder, the fitted coefficients and residuals.

Turns a ``LatencyModel`` into the document and back without loss. The profile's manifest holds its
digest; ``store.profiles`` puts it there and reads it.
"""

import json
from dataclasses import asdict
from pathlib import Path

from llmtier.core.errors import InputFileError
from llmtier.core.latency_model import LatencyModel
from llmtier.store.documents import SCHEMA_VERSION, Decoder, check_schema_version, parse_json

LATENCY_MODEL_NAME = "latency_model.json"
_ARTIFACT = "latency model"
_ADVICE = "run 'llmtier profile' again"


def encode_latency_model(model: LatencyModel) -> bytes:
    """Return the document as UTF-8.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    document = {"schema_version": SCHEMA_VERSION, **asdict(model)}
    return f"{json.dumps(document, indent=2, allow_nan=False)}\n".encode()


def decode_latency_model(data: bytes, *, path: Path) -> LatencyModel:
    """Return the model of a document; ``path`` goes into messages.

    Raises:
        InputFileError: It is no such document, or a value is absent, of the wrong kind or out of range.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    try:
        document = parse_json(data.decode())
    except ValueError as exc:
        raise InputFileError(f"expected a {_ARTIFACT} as JSON in UTF-8: {exc}; {_ADVICE}", path=path) from exc
    if not isinstance(document, dict):
        raise InputFileError(f"expected a {_ARTIFACT}, a JSON object; {_ADVICE}", path=path)
    check_schema_version(document.get("schema_version"), path=path, artifact=_ARTIFACT, advice=_ADVICE)
    model = Decoder(LatencyModel).decode(document, path=path)
    try:
        encode_latency_model(model)
    except ValueError as exc:  # 1e999 is JSON, and infinite
        raise InputFileError(f"expected finite numbers; {_ADVICE}", path=path) from exc
    return model
