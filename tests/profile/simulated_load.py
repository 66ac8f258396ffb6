"""Loads of a simulated engine as a profiler sees them: the truth is known, the clock is virtual."""

from dataclasses import replace

import numpy as np

from llmtier.engine.mock_settings import MockSettings
from llmtier.engine.simulate import simulate
from llmtier.profile.latency_fit import Load
from llmtier.profile.sample import RequestSample
from llmtier.store.profiles import RequestRow

TRUTH = MockSettings(alpha_s=0.02, beta_s_per_token=0.0002, sequence_s=0.001, gamma_s_per_kv_token=2e-6)
SHORT = (16, 64)
LONG = (300, 512)
MIXED = (16, 512)


def make_sample(
    sent_s, content_s=(), *, done_s=None, n_input=10, n_output=None, status="ok", scheduled_s=None, is_warmup=False
):
    """Return one request; ``n_output`` defaults to one token per chunk, ``done_s`` to the last chunk."""
    content = tuple(content_s)
    last_s = content[-1] if content else None
    row = RequestRow(
        tier="t",
        concurrency=None,
        prompt_id="p",
        scheduled_s=sent_s if scheduled_s is None else scheduled_s,
        sent_s=sent_s,
        first_s=content[0] if content else None,
        last_s=last_s,
        done_s=(sent_s if last_s is None else last_s) if done_s is None else done_s,
        n_input_tokens=n_input,
        n_output_tokens=(len(content) or None) if n_output is None else n_output,
        n_chunks=len(content),
        status=status,
    )
    return RequestSample(row=row, content_s=content, is_warmup=is_warmup)


def to_samples(run, *, n_warmup=0):
    """Return what a client beside the engine would have noted."""
    return [
        make_sample(
            request.arrival_s,
            request.token_s,
            n_input=None if request.is_refused else request.n_input_tokens,
            status="HTTP 503" if request.is_refused else "ok",
            is_warmup=number < n_warmup,
        )
        for number, request in enumerate(run.requests())
    ]


def closed(settings, concurrency, lengths, *, n, seed, n_output=(8, 64)):
    """Return the samples of a closed loop."""
    rng = np.random.default_rng(seed)
    inputs, outputs = rng.integers(*lengths, n), rng.integers(*n_output, n)
    starts_s = np.arange(concurrency) * 0.005
    return to_samples(simulate(settings, starts_s, inputs, outputs, rng, concurrency), n_warmup=concurrency)


def poisson(settings, rate_rps, *, n, seed, lengths=MIXED, n_output=(8, 64)):
    """Return the samples of Poisson arrivals."""
    rng = np.random.default_rng(seed)
    arrivals_s = np.cumsum(rng.exponential(1 / rate_rps, n))
    return to_samples(simulate(settings, arrivals_s, rng.integers(*lengths, n), rng.integers(*n_output, n), rng))


def design(settings, *, concurrency=(1, 4, 16), n=40):
    """Return closed loops that vary prompt length, context and concurrency independently."""
    return [
        load(closed(settings, c, lengths, n=max(n, 4 * c), seed=10 * c + index))
        for index, lengths in enumerate((SHORT, LONG))
        for c in concurrency
    ]


def load(samples, **co_tenants):
    """Return a load as the fit takes it."""
    return Load(samples=samples, co_tenants=co_tenants)


def moved(sample, at):
    """Return the sample with every instant mapped by ``at``."""
    row = sample.row
    changed = replace(
        row,
        scheduled_s=at(row.scheduled_s),
        sent_s=at(row.sent_s),
        first_s=None if row.first_s is None else at(row.first_s),
        last_s=None if row.last_s is None else at(row.last_s),
        done_s=at(row.done_s),
    )
    return replace(sample, row=changed, content_s=tuple(at(value) for value in sample.content_s))


def chunked(sample, size):
    """Return the sample as an engine streams it that sends ``size`` tokens per chunk: the last chunk may hold fewer."""
    content = sample.content_s
    ends = [min(start + size, len(content)) - 1 for start in range(0, len(content), size)]
    kept = tuple(content[end] for end in ends)
    row = replace(sample.row, first_s=kept[0], n_chunks=len(kept))
    return replace(sample, content_s=kept, row=row)
