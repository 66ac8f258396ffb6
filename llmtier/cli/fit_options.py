"""The options of ``llmtier fit-thresholds``."""

from pathlib import Path
from typing import Annotated

import typer

from llmtier.core.decision import Fallback, Objective

OutcomesArgument = Annotated[
    list[Path], typer.Argument(help="Outcomes of 'llmtier replay', or a log: Parquet, JSONL, CSV.")
]
ProfilesOption = Annotated[Path, typer.Option(help="Folder that 'llmtier profile' wrote.")]
CostsOption = Annotated[
    str | None, typer.Option(help="Dollars of a request on each tier in place of profiles: small=1,large=10.")
]
OutOption = Annotated[Path, typer.Option("--output", "-o", help="Policy file.")]
MaxAccuracyLossOption = Annotated[
    float | None, typer.Option(help="Mean score that may be lost against the reference; default 0.01.")
]
MinAccuracyOption = Annotated[float | None, typer.Option(help="Mean score to keep up.")]
BudgetUsdPer1kOption = Annotated[float | None, typer.Option(help="Dollars that 1,000 requests may cost.")]
TargetSharesOption = Annotated[
    str | None, typer.Option(help="Share of the traffic for each tier: small=0.7,large=0.3; promises nothing.")
]
ObjectiveOption = Annotated[
    Objective, typer.Option(help="What the policy takes of the tiers that meet a need; utility has no threshold.")
]
WeightsOption = Annotated[
    str | None, typer.Option(help="Of the utility: accuracy=1,latency_s=0.05,usd_per_1k=0.02; absent ones are 0.")
]
ReferenceOption = Annotated[
    str | None, typer.Option(help="Tier whose accuracy is to be kept; default: the most accurate.")
]
TiersOption = Annotated[str | None, typer.Option(help="Only these tiers, separated by commas.")]
ScorerOption = Annotated[
    str | None, typer.Option(help="learned, learned+semantic, semantic, entropy, self_assess or hybrid.")
]
EmbedderOption = Annotated[
    Path | None, typer.Option(help="Folder of 'llmtier embedder export', for the semantic scorers.")
]
SimpleOption = Annotated[
    Path | None, typer.Option(help="Text file of simple requests, one a line: a semantic scorer without labels.")
]
ComplexOption = Annotated[Path | None, typer.Option("--complex", help="Text file of complex requests, likewise.")]
ConfidenceOption = Annotated[float, typer.Option(help="Confidence of the guarantee and of intervals.")]
PerDomainOption = Annotated[bool, typer.Option("--per-domain", help="A threshold and a promise for each domain.")]
TtftMsOption = Annotated[float | None, typer.Option(help="Leave out tiers slower than this to the first token.", min=0)]
E2elMsOption = Annotated[float | None, typer.Option(help="Leave out tiers slower than this to the last token.", min=0)]
ColumnOption = Annotated[
    list[str] | None, typer.Option(help="ours=theirs, such as prompt=question or score:small=small_ok.")
]
MaxRowsOption = Annotated[int, typer.Option(help="Rows kept of larger files, a seeded sample.", min=20)]
FallbackOption = Annotated[Fallback, typer.Option(help="Where a request goes that no tier can meet.")]
HardwareOption = Annotated[str | None, typer.Option(help="Hardware folder of the profiles; default: this machine's.")]
RetriesFromOption = Annotated[
    Path | None, typer.Option(help="Log with keys: each tier is charged what is asked again after it.")
]
RetryWindowOption = Annotated[float, typer.Option(help="Seconds within which asking again counts.", min=0)]
