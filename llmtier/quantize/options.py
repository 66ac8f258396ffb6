"""The checks that need the job's options, the architecture's name and the target, but no shapes. Pure."""

from collections.abc import Mapping

from llmtier.core.errors import UsageError
from llmtier.core.tier import QUANTIZABLE_SCHEMES, Scheme
from llmtier.engine.capability import lint_engine_args
from llmtier.quantize.job import SCHEMES_WITH_DATA, Backend, QuantizeJob
from llmtier.quantize.survey import Survey
from llmtier.quantize.target import Grade, Target, Verdict

LATER = (Scheme.NVFP4, Scheme.MXFP4)
"""Schemes that the plan judges and llmtier does not write yet."""

KV_HEAD_MULTIPLE = 32  # vLLM 0.32, v1/attention/backends/cpu_attn.py


def check_options(job: QuantizeJob, survey: Survey, target: Target) -> None:
    """Refuse options that contradict each other, the model or the target.

    Raises:
        UsageError: Naming what would do.
    """
    check_data(job)
    check_backend(job, survey)
    check_smoothing(job, survey)
    check_kv_cache(job, survey, target)
    if job.awq_mappings is not None and Scheme.AWQ not in job.schemes:
        raise UsageError("--awq-mappings is for scheme awq, which is not among the schemes asked for")


def check_target(job: QuantizeJob, target: Target, verdicts: Mapping[Scheme, Verdict]) -> None:
    """Refuse schemes that llmtier does not write, or that the target does not load.

    Raises:
        UsageError: Naming each with its reason, and the schemes that would do.
    """
    refused = []
    for scheme in job.schemes:
        verdict = verdicts.get(scheme)
        if scheme in LATER and verdict is not None:
            refused.append(
                f"{scheme.value}: llmtier does not write it yet; there it is {verdict.grade}: {verdict.reason}"
            )
        elif scheme not in QUANTIZABLE_SCHEMES or verdict is None:
            refused.append(f"{scheme.value}: llmtier does not write it")
        elif verdict.grade is Grade.UNUSABLE:
            refused.append(f"{scheme.value} does not load: {verdict.reason}")
    if not refused:
        return
    usable = [scheme.value for scheme in QUANTIZABLE_SCHEMES if verdicts[scheme].grade is Grade.FAST]
    choice = f"fast there: {', '.join(usable)}" if usable else "no scheme that llmtier writes is fast there"
    raise UsageError(f"target {target.name} ({target.description}): {'; '.join(refused)}; {choice}")


def check_data(job: QuantizeJob) -> None:
    """Refuse a job that lacks the data it needs.

    Raises:
        UsageError: It does.
    """
    if job.calibration is not None:
        return
    needing = [f"scheme {scheme.value}" for scheme in job.schemes if scheme in SCHEMES_WITH_DATA]
    needing += ["SmoothQuant"] if job.smoothing_strength is not None else []
    needing += ["the fp8 KV cache"] if job.has_fp8_kv_cache else []
    if needing:
        raise UsageError(
            f"{needing[0]} needs data of your domain: give --calibration FILE.jsonl, "
            'one {"messages": [...]} or {"text": "..."} a line'
        )


def check_backend(job: QuantizeJob, survey: Survey) -> None:
    """Refuse what AutoAWQ cannot do.

    Raises:
        UsageError: It is asked for another scheme, model or option.
    """
    if job.backend is not Backend.AUTOAWQ:
        return
    if job.schemes != (Scheme.AWQ,):
        raise UsageError("--backend autoawq writes scheme awq only; leave the others to the default backend")
    if job.has_fp8_kv_cache or job.awq_mappings is not None:
        raise UsageError("--backend autoawq has neither an fp8 KV cache nor mappings of one's own")
    kind = survey.architecture.model_type
    if kind not in survey.registry.autoawq_model_types:
        raise UsageError(f"--backend autoawq: AutoAWQ 0.2.9 does not take model type {kind}; use the default backend")


def check_smoothing(job: QuantizeJob, survey: Survey) -> None:
    """Refuse SmoothQuant without int8, or for an architecture it has no mappings for.

    Raises:
        UsageError: Saying which.
    """
    if job.smoothing_strength is None:
        return
    if Scheme.INT8 not in job.schemes:
        raise UsageError("--smoothquant is for scheme int8, which is not among the schemes asked for")
    name = survey.architecture.name
    if name not in survey.registry.smoothquant:
        raise UsageError(
            f"--smoothquant: llm-compressor {survey.registry.version} knows no layer mapping for {name}; "
            "leave it out, int8 then rounds without data"
        )


def check_kv_cache(job: QuantizeJob, survey: Survey, target: Target) -> None:
    """Refuse an fp8 KV cache that the target's attention does not take.

    Raises:
        UsageError: Saying why.
    """
    if not job.has_fp8_kv_cache:
        return
    for finding in lint_engine_args({"kv_cache_dtype": "fp8"}, target.hardware):
        if finding.severity == "error":
            raise UsageError(f"target {target.name}: {finding.message}")
    size = survey.architecture.head_size
    if target.is_cpu and (size is None or size % KV_HEAD_MULTIPLE):
        raise UsageError(
            f"the fp8 KV cache needs attention heads in multiples of {KV_HEAD_MULTIPLE} on CPU, this model's are {size}"
        )
