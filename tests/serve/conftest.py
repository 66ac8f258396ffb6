"""Parts of gateways: profiles with known figures, scripted engines, and a gateway on a free port."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from llmtier.core.decision import Fallback
from llmtier.core.interval import Interval
from llmtier.core.latency_model import DomainBox, LatencyModel, Metric, ResidualBucket, StepModel
from llmtier.core.policy import Goal, GoalKind, Judgement, Policy, PolicyTier, ScorerRef
from llmtier.core.profile import AccuracyEstimate, Cost, LoadPoint, TierProfile
from llmtier.core.tier import EngineIdentity
from llmtier.score.signals import NO_SIGNALS
from llmtier.serve.metrics import Metrics
from llmtier.serve.pool import ServedTier, TierPool
from llmtier.serve.relay import Deadlines
from llmtier.serve.run import serve_forever
from llmtier.serve.state import AppState
from llmtier.serve.watch import WatchPlan

UNIT = Interval(low=0.0, high=1.0)


@pytest.fixture(autouse=True)
def brisk_servers(monkeypatch):
    """Let uvicorn look for its end each 5 ms in place of each 100 ms: a test stops up to four servers."""

    async def sleep(delay_s):
        await asyncio.sleep(delay_s / 20)

    monkeypatch.setattr("uvicorn.server.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))


@pytest.fixture
def make_profile():
    """Return a maker of profiles with one load point."""

    def make(tier, *, usd=1.0, accuracy=0.9, ttft_s=0.1, tpot_s=0.01, co_tenants=(), context_tokens=None):
        point = LoadPoint(
            concurrency=1,
            n_ok=10,
            n_failed=0,
            duration_s=1.0,
            ttft_p50_s=ttft_s,
            ttft_p95_s=ttft_s,
            tpot_p50_s=tpot_s,
            tpot_p95_s=tpot_s,
            itl_p50_s=None,
            itl_p95_s=None,
            e2el_p50_s=None,
            e2el_p95_s=None if ttft_s is None else ttft_s + 10 * tpot_s,
            mean_input_tokens=10.0,
            mean_output_tokens=11.0,
        )
        return TierProfile(
            tier=tier,
            checkpoint_digest="d" * 64,
            engine=EngineIdentity(name="mock", version="mock-1"),
            hardware_fingerprint="0" * 12,
            device="cpu:0",
            co_tenants=co_tenants,
            context_tokens=context_tokens,
            points=(point,),
            accuracy=(AccuracyEstimate(domain="all", n=10, n_failed=0, accuracy=accuracy, interval=UNIT),),
            cost=Cost(usd_per_hour=1.0, usd_per_request=usd, usd_per_output_token=usd / 10, concurrency=1),
        )

    return make


@pytest.fixture
def make_model():
    """Return a maker of latency models whose predictions are exact."""

    def make(**changes):
        residuals = [
            ResidualBucket(metric=metric, max_in_flight=None, n=100, quantiles=((0.95, 0.0),)) for metric in Metric
        ]
        facts = {
            "step": StepModel(
                alpha_s=0.01,
                prefill_s_per_token=1e-4,
                attention_s_per_token2=0.0,
                sequence_s=1e-3,
                kv_s_per_token=1e-6,
            ),
            "frontend_s": 0.001,
            "frontend_s_per_token": 0.0,
            "wait_share": 0.5,
            "mean_input_tokens": 100.0,
            "mean_output_tokens": 20.0,
            "domain": DomainBox(input_tokens=(1, 4096), output_tokens=(1, 1024), n_in_flight=(0, 64)),
            "residuals": tuple(residuals),
            "n_fit": 1000,
        }
        return LatencyModel(**{**facts, **changes})

    return make


@pytest.fixture
def make_policy():
    """Return a maker of policies over the named tiers, the last being the reference."""

    def make(*names, max_gap=0.1, fallback=Fallback.MOST_ACCURATE):
        tiers = [
            PolicyTier(name=name, checkpoint_digest="d" * 64, usd_per_request=1.0, accuracy=0.5, share=0.5)
            for name in names
        ]
        judgement = Judgement(
            n_fit=1,
            n_judge=1,
            accuracy=0.5,
            accuracy_interval=UNIT,
            loss=0.0,
            loss_interval=UNIT,
            usd_per_request=1.0,
            reference_usd_per_request=1.0,
            method="none",
        )
        return Policy(
            tiers=tuple(tiers),
            reference=names[-1],
            scorer=ScorerRef(kind="learned", file="policy.scorer.json", sha256="0" * 64),
            max_accuracy_gap=max_gap,
            goal=Goal(kind=GoalKind.MAX_ACCURACY_LOSS, value=0.01),
            fallback=fallback,
            judgement=judgement,
            inputs={},
        )

    return make


class WordScorer:
    """Believes that ``small`` fails whenever the prompt says "hard"."""

    def probabilities(self, prompt, signals=NO_SIGNALS):
        return {"small": 0.2 if "hard" in prompt.last_user_text else 0.9, "large": 0.95}


@pytest.fixture
def word_scorer():
    return WordScorer()


@pytest.fixture
def make_state(make_profile):
    """Return a maker of the state of a gateway over ``{tier: base URL}``, ``small`` being ten times cheaper.

    A tier with several engines has a list of URLs.
    """

    def make(urls, **changes):
        prices = {"small": 0.1, "large": 1.0}
        accuracies = {"small": 0.6, "large": 0.95}
        tiers = [
            ServedTier(
                name=name,
                base_url=url,
                more_urls=tuple(more),
                model_name=f"engine-{name}",
                profile=make_profile(name, usd=prices.get(name, 5.0), accuracy=accuracies.get(name, 0.7)),
            )
            for name, (url, *more) in ((name, [url] if isinstance(url, str) else url) for name, url in urls.items())
        ]
        pool = changes.pop("pool", None) or TierPool(tiers)
        changes.setdefault("watch", WatchPlan(health_interval_s=0.05, metrics_interval_s=60))
        changes.setdefault("deadlines", Deadlines(connect_s=0.3, first_byte_s=0.3, total_s=1.0))
        return AppState(pool=pool, metrics=Metrics(pool), **changes)

    return make


@pytest.fixture
def running_gateway():
    """Return a context manager that serves a state on a free port and lends its URL."""

    @asynccontextmanager
    async def run(state):
        stop = asyncio.Event()
        url = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            group.create_task(
                serve_forever(state, host="127.0.0.1", port=0, grace_s=1, on_ready=url.set_result, stop=stop)
            )
            try:
                yield await url
            finally:
                stop.set()

    return run


class ScriptedEngine:
    """An ASGI engine that sends given pieces and remembers what it was asked.

    Attributes:
        pieces: Body pieces, each a write of its own.
        hangs_after: Number of pieces after which it waits for the client to leave; ``None`` never.
        is_cut: Leave without the end of the body.
        requests: (path, headers, body) of each generation request.
        gone: Set when a client left early.
    """

    def __init__(
        self, pieces=(b"{}",), *, status=200, content_type=b"text/event-stream", hangs_after=None, is_cut=False
    ):
        self.pieces = list(pieces)
        self.status = status
        self.content_type = content_type
        self.hangs_after = hangs_after
        self.is_cut = is_cut
        self.is_healthy = True
        self.requests = []
        self.gone = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["path"] == "/health":
            await self._start(send, 200 if self.is_healthy else 503, b"text/plain")
            await send({"type": "http.response.body", "body": b""})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.requests.append((scope["path"], dict(scope["headers"]), body))
        await self._answer(receive, send)

    async def _answer(self, receive, send):
        if self.hangs_after != 0:
            await self._start(send, self.status, self.content_type)
        for number, piece in enumerate([*self.pieces, b""]):
            if number == self.hangs_after:
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.gone.set()
                return
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(0)
        if not self.is_cut:
            await send({"type": "http.response.body", "body": b""})

    async def _start(self, send, status, content_type):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})


@pytest.fixture
def eventually():
    """Return a function that waits until a condition holds which another server brings about."""

    async def wait(condition, *, within_s=5.0):
        async with asyncio.timeout(within_s):
            while not await condition():  # noqa: ASYNC110  # what is asked lies behind a socket
                await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def scripted_engine():
    """Return the class of scripted engines."""
    return ScriptedEngine
