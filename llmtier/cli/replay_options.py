"""The options of ``llmtier replay``: their names, ranges and what help says of them."""

from pathlib import Path
from typing import Annotated

import typer

from llmtier.evaluate.method import ScoreBy

Log = Annotated[Path, typer.Argument(help="Prompts, JSONL or Parquet; or a traffic log, a file or its folder.")]
Out = Annotated[Path, typer.Option("--output", "-o", help="Outcomes file, a .parquet.")]
Tiers = Annotated[list[str] | None, typer.Option(help="Only this tier; may be given again.")]
Concurrency = Annotated[int, typer.Option(help="Requests in flight per tier.", min=1)]
Method = Annotated[
    ScoreBy,
    typer.Option("--score-by", help="Hold answers against the rows' own, against --reference's, or ask --judge."),
]
Reference = Annotated[
    str | None, typer.Option(help="With --score-by agreement: the tier whose answers count as right.")
]
Judge = Annotated[str | None, typer.Option(help="With --score-by judge: the tier that grades the answers.")]
Rate = Annotated[str | None, typer.Option(help="Let this tier rate each prompt's complexity too, from 0 to 10.")]
Logprobs = Annotated[
    bool, typer.Option("--logprobs/--no-logprobs", help="Ask for log probabilities, which a cascade needs.")
]
MaxRequests = Annotated[
    int | None, typer.Option(help="Ask a weighted sample: at most so many requests over all tiers.", min=1)
]
Budget = Annotated[
    float | None, typer.Option("--budget-usd", help="Likewise, for so many dollars at the profiles' prices.", min=0)
]
Hardware = Annotated[
    str | None, typer.Option(help="Hardware folder of the profiles whose prices count; default: this machine's.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print who would be asked, and ask nobody.")]
