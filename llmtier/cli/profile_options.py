"""The options of ``llmtier profile``: their names, ranges and what help says of them."""

from pathlib import Path
from typing import Annotated

import typer

Tiers = Annotated[list[str] | None, typer.Option(help="Only this tier; may be given again.")]
Evaluation = Annotated[
    Path | None, typer.Option(help="Evaluation set or traffic log; default: 'evaluation' of the configuration.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        help="Load shape, such as closed:8, poisson:2.5, gamma:2,0.5, constant:1, ramp:1-8, trace:FILE*0.5 or "
        "poisson:1..8/4; may be given again. Default: closed loops of load.concurrency."
    ),
]
Requests = Annotated[int | None, typer.Option(help="Counted requests per load point.", min=1)]
InputTokens = Annotated[
    str | None, typer.Option(help="Send synthetic prompts of this length: 128, 64-512 or lognormal:200,0.6.")
]
OutputTokens = Annotated[str | None, typer.Option(help="Length of their answers, likewise.")]
SharedPrefixes = Annotated[
    str | None, typer.Option(help="Let synthetic prompts begin with one of N texts of T tokens: N,T such as 4,128.")
]
Turns = Annotated[int, typer.Option(help="Hold synthetic conversations of so many turns, in closed loops.", min=1)]
Precision = Annotated[
    float | None,
    typer.Option(help="Repeat points until the mean E2EL is known to this share, such as 0.05.", min=0.001, max=0.99),
]
SloTtft = Annotated[
    float | None, typer.Option(help="Search the highest rate whose 95th percentile TTFT is below this.", min=0.001)
]
SloTpot = Annotated[float | None, typer.Option(help="Likewise for TPOT.", min=0.001)]
SloE2el = Annotated[float | None, typer.Option(help="Likewise for E2EL.", min=0.001)]
LatencyModel = Annotated[
    bool | None, typer.Option("--latency-model/--no-latency-model", help="Fit a latency model; default: fit one.")
]
Together = Annotated[
    bool, typer.Option("--together", help="Load all these tiers at once, as co-tenants that will be served together.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Skip tiers whose present checkpoint is profiled already.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Throw away the finished points of an interrupted run.")]
SelfTestFirst = Annotated[
    bool, typer.Option("--self-test", help="First measure what this client can resolve, against the mock engine.")
]
