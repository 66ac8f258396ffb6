"""Which options a finished checkpoint depends on, and whether it was made with those that are asked for now.

Pure. The plan compares options alone; ``run.quantize`` also compares the digests of model, data and result.
"""

from collections.abc import Iterator, Mapping

from llmtier.core.tier import Scheme
from llmtier.quantize.job import AwqMapping, PlannedScheme, QuantizeJob


def options_of(planned: PlannedScheme, job: QuantizeJob) -> dict[str, object]:
    """Return the options that shape the result of a scheme; others changing it does not matter."""
    options: dict[str, object] = {
        "scheme": planned.scheme.value,
        "preset": planned.preset,
        "backend": planned.backend.value,
        "ignored": list(planned.ignore),
        "smoothing_strength": planned.smoothing_strength,
        "has_fp8_kv_cache": planned.has_fp8_kv_cache,
    }
    if planned.needs_data:
        options |= {"group_size": planned.group_size, "seed": job.seed}
        options |= {"n_samples": job.n_samples, "max_seq_tokens": job.max_seq_tokens}
    rules = planned.awq_mappings
    if planned.scheme is Scheme.AWQ:
        options["awq_mappings"] = None if rules is None else [mapping_document(rule) for rule in rules]
    return options


def mapping_document(rule: AwqMapping) -> dict[str, object]:
    """Return a mapping as JSON gives it back."""
    return {"smooth": rule.smooth, "balance": list(rule.balance)}


def differing_options(
    recipe: Mapping[str, object], planned: PlannedScheme, job: QuantizeJob
) -> Iterator[tuple[str, object]]:
    """Yield the options, with what is asked for, in which a finished checkpoint's recipe says something else."""
    return ((name, wanted) for name, wanted in options_of(planned, job).items() if recipe.get(name) != wanted)
