"""Compiles the learned scorer's C while a wheel or an editable installation is built; without a compiler, nothing breaks.

``python hatch_build.py`` compiles it in place, for whoever changes the C. ``LLMTIER_PURE=1`` leaves it out; ``CC`` and
``CFLAGS`` are honoured. The file uses Python's stable API: one wheel a platform serves CPython 3.11 and later.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent
FOLDER = "llmtier/score"
PRODUCT = "_native.abi3.so"
# What the numbers depend on: no contraction into fused multiply-adds, and none of -ffast-math.
FLAGS = ("-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-fast-math")


class CannotCompileError(Exception):
    """There is no compiler, it refused, or this Python takes no such file."""


def compile_native(target: Path, *, extra: tuple[str, ...] = ()) -> None:
    """Compile to ``target``, which is replaced at once or not at all: processes that use the old file keep it.

    Raises:
        CannotCompileError: With the reason.
    """
    reason = find_obstacle()
    if reason:
        raise CannotCompileError(reason)
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    link = ("-bundle", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared",)
    given = shlex.split(os.environ.get("CFLAGS", ""))
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [*compiler, *given, *FLAGS, *link, *extra, f"-I{sysconfig.get_path('include')}"]
        command += [str(ROOT / FOLDER / "_native.c"), "-o", str(made), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except OSError as exc:
            raise CannotCompileError(f"{compiler[0]}: {exc.strerror}") from exc
        except subprocess.CalledProcessError as exc:
            raise CannotCompileError(f"{shlex.join(command)}\n{exc.stderr[-2_000:]}") from exc
        made.replace(target)


def find_obstacle() -> str:
    """Return why nothing is compiled here; empty where it is tried."""
    if os.environ.get("LLMTIER_PURE", "") not in {"", "0"}:
        return "LLMTIER_PURE is set"
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "only CPython with its lock has the stable API"
    return "" if os.name == "posix" else f"not on {os.name}"


def platform_tag() -> str:
    """Return the wheel's tag: the stable API of CPython 3.11, this platform."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return f"cp311-abi3-{platform}"


def get_build_hook():  # noqa: ANN201 - the class is hatchling's, which is here only while it builds
    """Return the hook, as hatchling asks for it."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class NativeHook(BuildHookInterface):
        """Adds the compiled file to the wheel and names the platform, or warns and leaves the wheel pure."""

        def initialize(self, version, build_data):  # noqa: ANN001, ANN202
            """Compile: for an editable installation beside the source, else into a folder of the build's own."""
            is_editable = version == "editable"
            self._folder = tempfile.TemporaryDirectory()
            target = (ROOT / FOLDER if is_editable else Path(self._folder.name)) / PRODUCT
            try:
                compile_native(target)
            except CannotCompileError as exc:
                self.app.display_warning(f"the learned scorer will run in numpy, slower: {exc}")
                return
            build_data["pure_python"] = False
            build_data["tag"] = platform_tag()
            if not is_editable:
                build_data["force_include"][str(target)] = f"{FOLDER}/{PRODUCT}"

        def finalize(self, version, build_data, artifact_path):  # noqa: ANN001, ANN202, ARG002
            """Remove the folder."""
            self._folder.cleanup()

    return NativeHook


if __name__ == "__main__":
    try:
        compile_native(ROOT / FOLDER / PRODUCT)
    except CannotCompileError as error:
        sys.exit(f"not compiled: {error}")
