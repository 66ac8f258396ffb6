"""An embedding model that runs in this process, through onnxruntime and tokenizers and nothing heavier.

Reads a folder that ``llmtier embedder export`` wrote; turns a text into a unit vector. Pooling and normalisation are
part of the exported model. One thread a call, so that a gateway's other requests keep their processors.

onnxruntime and tokenizers come with ``pip install 'llmtier[semantic]'`` and are imported when an embedder is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError, MachineError
from llmtier.store.embedders import MODEL_NAME, TOKENIZER_NAME, EmbedderManifest, read_embedder_manifest

Embedding = NDArray[np.float32]
Tokens = NDArray[np.int64]

CHARS_PER_TOKEN = 12
"""A text is cut to this many characters for each token that is read; prose has four, deeply indented code eight."""

TAIL_SHARE = 1 / 3
"""Of the tokens of a long text, this share is taken from its end, where the question often stands."""

SLOW_OPTIMIZERS = ["SkipLayerNormFusion"]
"""Fusions of onnxruntime that cost time on a CPU: this one 1 ms of 10 for MiniLM at 96 tokens, same numbers."""

_INSTALL = "pip install 'llmtier[semantic]'"


class Session(Protocol):
    """What runs a model, as onnxruntime's ``InferenceSession`` does."""

    def run(self, output_names: None, input_feed: Mapping[str, Tokens], /) -> list[Embedding]:
        """Return the outputs, each of shape (n_texts, n_dimensions)."""
        ...


class Tokenizer(Protocol):
    """What turns a text into token ids, as tokenizers' ``Tokenizer`` does."""

    def encode(self, sequence: str, /) -> Any:  # noqa: ANN401 - an Encoding: a list of ``ids``
        """Return the encoding of one text."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """A loaded embedding model; calls from several threads do not disturb each other.

    Attributes:
        manifest: What it is.
        session: Runs the model.
        tokenizer: Turns a text of any length into tokens.
    """

    manifest: EmbedderManifest
    session: Session
    tokenizer: Tokenizer

    @property
    def digest(self) -> str:
        """What a scorer that was fitted on its embeddings is bound to."""
        return self.manifest.digest

    def embed(self, text: str) -> Embedding | None:
        """Return the embedding of one text, unit norm, shape (n_dimensions,); ``None`` when it holds no token.

        Raises:
            MachineError: The model gave no such vector.
        """
        max_tokens = self.manifest.max_tokens
        ids = cut_tokens(self.tokenizer.encode(cut_text(text, max_chars=max_tokens * CHARS_PER_TOKEN)).ids, max_tokens)
        if not ids:
            return None
        vector = self.session.run(None, make_feed(ids, self.manifest.inputs))[0][0]
        if vector.shape != (self.manifest.dimensions,) or not np.isfinite(vector).all():
            raise MachineError(
                f"embedder {self.manifest.name}: expected {self.manifest.dimensions} finite numbers, "
                f"got shape {vector.shape}; export the model again"
            )
        return np.asarray(vector, dtype=np.float32)


def load_embedder(directory: Path, *, n_threads: int = 1) -> Embedder:
    """Load an exported model.

    Args:
        directory: What ``llmtier embedder export`` wrote.
        n_threads: Processors that one call may use.

    Raises:
        InputFileError: It is no embedder, was changed, or onnxruntime cannot read it.
        MachineError: onnxruntime or tokenizers is not installed.
    """
    manifest = read_embedder_manifest(directory)
    try:
        import onnxruntime
        import tokenizers
    except ImportError as exc:
        raise MachineError(f"embeddings need onnxruntime and tokenizers ({exc}); run {_INSTALL}") from exc
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; warnings go to standard error by themselves
    try:
        session = onnxruntime.InferenceSession(
            str(directory / MODEL_NAME),
            sess_options=options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=SLOW_OPTIMIZERS,
        )
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / TOKENIZER_NAME))
        tokenizer.no_padding()
        tokenizer.no_truncation()
    except Exception as exc:  # both libraries raise classes of their own and bare Exception
        raise InputFileError(f"cannot be loaded: {exc}; export the model again", path=directory) from exc
    return Embedder(manifest=manifest, session=session, tokenizer=tokenizer)


def cut_text(text: str, *, max_chars: int) -> str:
    """Return a text, or beginning and end of a longer one; half pairs of surrogates replaced, as UTF-8 has none."""
    if len(text) > max_chars:
        text = f"{text[: max_chars - max_chars // 2]}\n{text[-(max_chars // 2) :]}"
    return text.encode("utf-8", errors="replace").decode("utf-8")


def cut_tokens(ids: list[int], max_tokens: int) -> list[int]:
    """Return at most ``max_tokens`` of a text's tokens, from its beginning and its end; the special ones stand there."""
    if len(ids) <= max_tokens:
        return ids
    n_tail = max(1, int(max_tokens * TAIL_SHARE))
    return [*ids[: max_tokens - n_tail], *ids[-n_tail:]]


def make_feed(ids: list[int], inputs: tuple[str, ...]) -> dict[str, Tokens]:
    """Return what the model is given for one text: each input of shape (1, n_tokens).

    Raises:
        InputFileError: The model wants an input that is not known here.
    """
    tokens = np.array([ids], dtype=np.int64)
    known = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise InputFileError(
            f"the embedder wants an input {unknown[0]!r}, which llmtier does not make; export it again"
        )
    return {name: known[name] for name in inputs}
