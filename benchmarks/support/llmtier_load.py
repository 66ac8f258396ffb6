"""llmtier's own load client as a process: puts one load on a URL the way ``llmtier profile`` does.

Sends, decodes and builds every sample; then writes the instants to an ``.npz`` file, for another process to judge.
The file's cost is inside the process's CPU time: a few array conversions.

Example: python benchmarks/support/llmtier_load.py URL --shape closed:48 --requests 480 --max-tokens 100 --out load.npz
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llmtier.core.prompt import Message
from llmtier.engine.load_client import LoadClient
from llmtier.profile.load import LoadPlan, run_load
from llmtier.profile.sample import RequestSample
from llmtier.profile.shape_text import parse_shape
from llmtier.profile.workload import RequestStyle, WorkItem
from llmtier.serve.run import run_in_loop
from support.sse_mock import MODEL, write_tag

FILLER = "a load client that costs little "


def write_items(n: int, *, max_tokens: int) -> Iterator[WorkItem]:
    """Yield requests whose prompts carry their number."""
    style = RequestStyle()
    for number in range(n):
        message = Message(role="user", content=f"{FILLER}{write_tag(number)}")
        fields = style.fields([message], max_tokens=max_tokens, is_exact=False)
        yield WorkItem(id=str(number), path=style.path, fields=fields, prompt_id=str(number))


async def drive(url: str, plan: LoadPlan, *, max_tokens: int) -> Sequence[RequestSample]:
    """Put the load on the engine."""
    async with LoadClient(url) as client:
        result = await run_load(client, plan, write_items(plan.n_requests, max_tokens=max_tokens))
    return result.samples


def save(samples: Sequence[RequestSample], out: Path) -> None:
    """Write the instants: one row per request, the content chunks of all requests end to end."""
    rows = [sample.row for sample in samples]
    np.savez(
        out,
        number=np.array([int(row.prompt_id) for row in rows]),
        is_ok=np.array([sample.is_ok for sample in samples]),
        scheduled_s=np.array([row.scheduled_s for row in rows]),
        sent_s=np.array([row.sent_s for row in rows]),
        done_s=np.array([row.done_s for row in rows]),
        n_chunks=np.array([len(sample.content_s) for sample in samples]),
        content_s=np.concatenate([sample.content_s for sample in samples]),
    )


def main() -> None:
    """Read the arguments, drive, write."""
    parser = argparse.ArgumentParser(description="One load with llmtier's client.")
    parser.add_argument("url")
    parser.add_argument("--shape", required=True, help="such as closed:48 or constant:500")
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    plan = LoadPlan(
        tier="mock",
        model_name=MODEL,
        shape=parse_shape(arguments.shape),
        n_requests=arguments.requests,
        warmup_requests=0,
        seed=0,
    )
    save(run_in_loop(drive(arguments.url, plan, max_tokens=arguments.max_tokens)), arguments.out)


if __name__ == "__main__":
    main()
