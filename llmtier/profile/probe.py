"""Find out how an engine wants to be asked: chat or raw text, exact lengths or not, tokens per word.

Sends a handful of tiny requests before any load; writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmtier.core.errors import EngineRequestError, InputFileError
from llmtier.engine.exchange import Answer, decode_exchange
from llmtier.engine.load_client import LoadClient
from llmtier.profile.synthetic import PROBE_WORDS, WordBudget, fit_word_budget, probe_item
from llmtier.profile.workload import RequestStyle, WorkItem, encode

_EXACT_TOKENS = 3
_SHORT_PROBES = (1, 4, 8, 12)
_LEAST_PROBES = 2
_BAD_REQUEST = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineManners:
    """How requests of asked lengths are put to an engine.

    Attributes:
        style: Endpoint, and whether answers can be given an exact length.
        budget: Tokens per word.
    """

    style: RequestStyle
    budget: WordBudget


async def probe_engine(client: LoadClient, model_name: str, *, seed: int) -> EngineManners:
    """Ask an engine a few short questions and return how it wants to be asked.

    Raises:
        EngineRequestError: It answers neither chat nor raw completions.
        InputFileError: It reports no usage, or none that grows with the prompt: no length can be asked for.
    """
    style = await _find_style(client, model_name, seed=seed)
    probes = await _count(client, model_name, PROBE_WORDS, seed=seed, style=style)
    if len(probes) < len(PROBE_WORDS):  # its context is too short for them, as that of a tiny model
        probes = await _count(client, model_name, _SHORT_PROBES, seed=seed, style=style)
    if len(probes) < _LEAST_PROBES:
        raise EngineRequestError(f"the engine refuses a prompt of {_SHORT_PROBES[len(probes)]} words")
    try:
        return EngineManners(style=style, budget=fit_word_budget(probes))
    except ValueError as exc:
        raise InputFileError(str(exc)) from exc


async def _count(
    client: LoadClient, model_name: str, lengths: Sequence[int], *, seed: int, style: RequestStyle
) -> list[tuple[int, int]]:
    """Return (words sent, tokens counted) of each probe, up to the first that the engine refuses as a bad request.

    Raises:
        EngineRequestError: A probe failed otherwise.
        InputFileError: The engine reports no usage.
    """
    counted: list[tuple[int, int]] = []
    for n_words in lengths:
        answer = await _ask(client, model_name, probe_item(n_words, seed=seed, style=style))
        if answer.status == _BAD_REQUEST:
            break
        if answer.failure is not None:
            raise EngineRequestError(f"a probe of {n_words} words failed: {answer.failure}", status=answer.status)
        if answer.completion.n_input_tokens is None:
            raise InputFileError("the engine reports no usage, so prompts of asked lengths cannot be made for it")
        counted.append((n_words, answer.completion.n_input_tokens))
    return counted


async def _find_style(client: LoadClient, model_name: str, *, seed: int) -> RequestStyle:
    failures = []
    for is_chat in (True, False):
        plain = RequestStyle(is_chat=is_chat)
        answer = await _ask(client, model_name, probe_item(PROBE_WORDS[0], seed=seed, style=plain))
        if answer.failure is None:
            return RequestStyle(is_chat=is_chat, accepts_ignore_eos=await _takes_exact(client, model_name, is_chat))
        failures.append(answer.failure)
    raise EngineRequestError(f"the engine answers neither chat nor raw completions: {'; '.join(failures)}")


async def _takes_exact(client: LoadClient, model_name: str, is_chat: bool) -> bool:
    """Tell whether ``ignore_eos`` and ``min_tokens`` are understood, by the length of what comes back."""
    style = RequestStyle(is_chat=is_chat, accepts_ignore_eos=True)
    base = probe_item(PROBE_WORDS[0], seed=0, style=style)
    text = {key: base.fields[key] for key in ("messages", "prompt") if key in base.fields}
    exact = {"max_tokens": _EXACT_TOKENS, "temperature": 0.0, "ignore_eos": True, "min_tokens": _EXACT_TOKENS}
    item = WorkItem(id="probe-exact", path=base.path, fields={**text, **exact}, prompt_id="probe-exact")
    answer = await _ask(client, model_name, item)
    return answer.failure is None and answer.completion.timing.n_output_tokens == _EXACT_TOKENS


async def _ask(client: LoadClient, model_name: str, item: WorkItem) -> Answer:
    return decode_exchange(await client.send(encode(item, model_name), path=item.path))
