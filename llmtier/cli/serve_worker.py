"""A worker of ``llmtier serve`` in a process of its own: reads the same files as the control process, starts no engine."""

import sys
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmtier.serve.board import Board
    from llmtier.serve.control import WorkerSeat
    from llmtier.serve.pool import ServedTier
    from llmtier.serve.state import AppState
    from llmtier.serve.worker import Line


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOrders:
    """What every worker of a gateway is told; picklable.

    Attributes:
        config: The configuration's file.
        host: Address that is listened on.
        served: The tiers, whose engines run already.
        default_tier: Where ``auto`` goes without a policy.
        is_verbose: Whether the log tells of each request.
    """

    config: Path
    host: str
    served: "tuple[ServedTier, ...]"
    default_tier: str | None
    is_verbose: bool


def run_worker(orders: WorkerOrders, seat: "WorkerSeat", number: int, connection: Connection) -> None:
    """Serve until the control process says otherwise."""
    from llmtier.cli import logs
    from llmtier.serve.run import run_in_loop
    from llmtier.serve.worker import work

    logs.configure(is_verbose=orders.is_verbose)
    try:
        run_in_loop(work(seat, number, connection, make_state=partial(_make_state, orders)))
    except KeyboardInterrupt:  # before the loop could take the signal
        sys.exit(130)


def _make_state(orders: WorkerOrders, board: "Board", number: int, line: "Line") -> "AppState":
    from dataclasses import replace

    from llmtier.cli.serve_signals import plan_signals
    from llmtier.cli.serve_state import load_routing, make_state, renew_state
    from llmtier.serve.rules import make_rules
    from llmtier.store.config import load_config

    config = load_config(orders.config)
    routing = load_routing(config)
    names = [tier.name for tier in orders.served]
    policy = None if routing is None else routing[0]
    state = make_state(
        config,
        orders.served,
        routing,
        rules=make_rules(config.routing.to_rules(), served=names, policy=policy),
        signals=plan_signals(config, routing, served=names),
        default_tier=orders.default_tier,
        board=board,
        worker=number,
    )
    return replace(state, watch=None, page=line.page, reload=partial(renew_state, orders.config, orders.host))
