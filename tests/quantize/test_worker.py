"""The parts of the workers that need none of their libraries; the rest runs in tests/e2e/."""

import ast
import errno
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, MachineError, UsageError
from llmtier.quantize.process import BOOTSTRAP, running_worker, waiting_worker, worker_command
from llmtier.quantize.worker import layers, oneshot, recipe, tokens
from llmtier.quantize.worker.finite import is_finite
from llmtier.quantize.worker.report import JOB_FOLLOWS, WorkerError

WORKERS = BOOTSTRAP.parent


class FakeTokenizer:
    """One token per character, ids from 10; BOS is 1 and is added unless told otherwise."""

    bos_token_id: int | None = 1
    chat_template: str | None = "a template"

    def apply_chat_template(self, messages, tokenize):
        return "^" + "".join(message["content"] for message in messages)

    def __call__(self, text, add_special_tokens=True):
        ids = [1 if char == "^" else ord(char) for char in text]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


def test_chat_rows_get_one_bos_from_their_template():
    row = {"messages": [{"role": "user", "content": "ab"}]}

    assert [1, 97, 98] == tokens.token_ids(FakeTokenizer(), row)


@pytest.mark.parametrize("text", ["ab", "^ab"])
def test_text_rows_get_one_bos_from_the_tokenizer(text):
    assert [1, 97, 98] == tokens.token_ids(FakeTokenizer(), {"text": text})


def test_messages_without_a_template_are_plain_text_with_the_tokenizers_bos():
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = None
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}

    assert [1, 97, 10, 98] == tokens.token_ids(tokenizer, row)


def test_a_tokenizer_without_bos_keeps_what_begins_twice_alike():
    tokenizer = FakeTokenizer()
    tokenizer.bos_token_id = None

    assert [97, 97] == tokens.token_ids(tokenizer, {"messages": [{"role": "user", "content": "aa"}]})[1:]


def test_rows_are_drawn_by_seed_in_file_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{index}\u2028"}}\n' for index in range(50)), encoding="utf-8")

    first = tokens.read_rows(path, n_samples=20, seed=1)
    again = tokens.read_rows(path, n_samples=20, seed=1)
    other = tokens.read_rows(path, n_samples=20, seed=2)
    numbers = [int(row["text"][:-1]) for row in first]

    assert first == again
    assert first != other
    assert numbers == sorted(set(numbers))
    assert 20 == len(numbers)
    assert 50 == len(tokens.read_rows(path, n_samples=99, seed=1))


@given(samples=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6)), max_tokens=st.integers(6, 20))
def test_batches_hold_every_sample_once_unpadded_and_within_the_limit(samples, max_tokens):
    batches = tokens.equal_length_batches(samples, max_tokens=max_tokens)

    assert sorted(samples) == sorted(ids for batch in batches for ids in batch)
    assert all(1 == len({len(ids) for ids in batch}) for batch in batches)
    assert all(sum(map(len, batch)) <= max_tokens for batch in batches)


def test_group_size_other_than_the_preset_is_spelled_out():
    spelled = recipe.four_bit_format({"group_size": 32}, is_symmetric=False)["config_groups"]["group_0"]
    preset = recipe.four_bit_format({"group_size": 128}, is_symmetric=False)

    assert {"scheme": "W4A16_ASYM", "targets": ["Linear"]} == preset
    assert (32, False) == (spelled["weights"]["group_size"], spelled["weights"]["symmetric"])


@pytest.mark.parametrize("path", sorted(WORKERS.glob("*.py")), ids=lambda path: path.stem)
def test_workers_need_no_library_at_import_and_nothing_of_llmtier_but_core(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    runtime = [node for node in tree.body if not isinstance(node, ast.If)]
    modules = {alias.name for node in runtime if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in runtime if isinstance(node, ast.ImportFrom)}
    ours = {name for name in modules if name.split(".")[0] == "llmtier"}
    anywhere = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    reached = {node.module for node in anywhere if (node.module or "").startswith("llmtier")}

    assert {name.split(".")[0] for name in modules - ours} <= set(sys.stdlib_module_names)
    assert all(name.startswith(("llmtier.core", "llmtier.quantize.worker")) for name in ours | reached)


def test_bootstrap_shows_a_worker_its_package_and_nothing_beside_it(tmp_path):
    probe = "import sys; from llmtier.core import tier; import importlib.util as u; print(u.find_spec('pydantic'), tier.Scheme.AWQ)"
    names = f"import runpy; runpy.run_path({str(BOOTSTRAP)!r})['enter_package'](__import__('pathlib').Path({str(BOOTSTRAP.parents[2])!r}))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{names}\n{probe}"], capture_output=True, text=True, check=True
    )

    assert "None awq\n" == done.stdout


def worker_script(folder: Path, body: str) -> tuple[str, ...]:
    """A worker whose ``run(job, report)`` has this body, started as the real ones are but for the bootstrap."""
    script = folder / "script.py"
    script.write_text(
        f"import runpy, time\nfrom pathlib import Path\n"
        f"runpy.run_path({str(BOOTSTRAP)!r})['enter_package'](Path({str(BOOTSTRAP.parents[2])!r}))\n"
        f"from llmtier.quantize.worker.report import WorkerError, run_worker\n"
        f"def run(job, report):\n    {body}\nrun_worker(run)\n"
    )
    return (str(script),)


def test_worker_ends_when_its_parent_is_gone(tmp_path):
    script = worker_script(tmp_path, "report('up'); time.sleep(60)")
    process = subprocess.Popen([sys.executable, *script, "{}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        assert b'{"event": "up"}\n' == process.stdout.readline()
        process.stdin.close()
        assert 1 == process.wait(timeout=10)


def test_waiting_worker_ends_when_its_parent_is_gone(tmp_path):
    script = worker_script(tmp_path, "report('up')")
    process = subprocess.Popen([sys.executable, *script, JOB_FOLLOWS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        process.stdin.close()
        assert 1 == process.wait(timeout=10)
        assert b"" == process.stdout.read()


@pytest.mark.parametrize("n_characters", [1, 300_000])
def test_waiting_worker_gets_its_job_whole(tmp_path, n_characters):
    script = worker_script(tmp_path, "report('got', word=job['word'])")

    with (
        waiting_worker(python=Path(sys.executable), worker=script) as worker,
        worker.working_on({"word": "\u00fc\n" * n_characters}) as events,
    ):
        assert [{"event": "got", "word": "\u00fc\n" * n_characters}] == list(events)


def test_waiting_worker_that_is_gone_before_its_job_says_why(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no such library')")

    with waiting_worker(python=Path(sys.executable), worker=(str(script),)) as worker:
        worker.process.wait(timeout=10)
        with worker.working_on({}) as events, pytest.raises(MachineError, match="no such library"):
            list(events)


def test_libraries_are_loaded_before_the_job_is_known(tmp_path):
    loaded = tmp_path / "loaded"
    os.mkfifo(loaded)
    [script] = worker_script(tmp_path, "report('got')")
    text = Path(script).read_text()
    Path(script).write_text(
        text.replace("run_worker(run)", f"run_worker(run, lambda: Path({str(loaded)!r}).write_text('x'))")
    )

    with waiting_worker(python=Path(sys.executable), worker=(script,)) as worker:
        assert "x" == loaded.read_text()
        with worker.working_on({}) as events:
            assert [{"event": "got"}] == list(events)


class Numbers:
    """What ``is_finite`` needs of a tensor."""

    def __init__(self, values, dtype):
        self.array = np.array(values, dtype)

    def is_floating_point(self):
        return np.issubdtype(self.array.dtype, np.floating)

    def sum(self):
        with np.errstate(all="ignore"):
            return self.array.sum()


@given(
    values=st.lists(st.floats(width=16) | st.sampled_from([65504.0, -65504.0, math.nan, math.inf]), max_size=8),
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_a_tensor_is_finite_when_each_element_is(values, dtype):
    fake = SimpleNamespace(isfinite=lambda of: np.isfinite(of.array if isinstance(of, Numbers) else of))
    with mock.patch.dict(sys.modules, {"torch": fake}):
        assert all(map(math.isfinite, values)) == is_finite(Numbers(values, dtype))


def test_ticks_of_this_process_are_not_those_of_others(tmp_path):
    path = tmp_path / "stat"
    path.write_text("cpu  1000000 0 0 5000 0 0 0 0 0 0\n")
    ours = sum(map(oneshot.process_ticks, (os.getpid(), os.getppid())))

    others, total = oneshot.read_cpu_ticks(path) or (0, 0)

    assert 1_000_000 - others >= ours
    assert 1_005_000 == total
    assert oneshot.read_cpu_ticks(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("kind", "error"), [("usage", UsageError), ("input", InputFileError), ("machine", MachineError)]
)
def test_refusal_reaches_the_caller_as_its_kind_whatever_a_library_prints(tmp_path, kind, error):
    script = worker_script(tmp_path, f"print('a library talks'); raise WorkerError('no ' + job['word'], kind={kind!r})")

    with (
        running_worker({"word": "way"}, python=Path(sys.executable), worker=script) as events,
        pytest.raises(error, match="no way"),
    ):
        list(events)


def test_named_workers_exist():
    assert (WORKERS / "oneshot.py").is_file()
    assert (str(BOOTSTRAP), "llmtier.quantize.worker.oneshot") == worker_command("oneshot")


def test_store_of_another_run_is_emptied_and_gaps_do_not_count(tmp_path):
    store = layers.open_store(tmp_path / "work", {"inputs": "a"})
    for part in (0, 1, 3):
        store.path(0, part).touch()

    assert 2 == layers.open_store(tmp_path / "work", {"inputs": "a"}).n_done(0)
    assert 0 == layers.open_store(tmp_path / "work", {"inputs": "b"}).n_done(0)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_broken_run_file_is_another_run(tmp_path, text):
    store = layers.open_store(tmp_path, {"inputs": "a"})
    store.path(0, 0).touch()
    (tmp_path / "run.json").write_text(text)

    assert 0 == layers.open_store(tmp_path, {"inputs": "a"}).n_done(0)


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk", "disk is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "machine", r"--samples \(now 8\)"),
        (MemoryError(), "machine", r"--max-seq-tokens \(now 16\)"),
    ],
)
def test_what_ran_out_is_said_with_what_to_do(error, kind, advice):
    with (
        pytest.raises(WorkerError, match=advice) as refused,
        oneshot.machine_errors({"n_samples": 8, "max_seq_tokens": 16}),
    ):
        raise error

    assert kind == refused.value.kind


def test_any_other_error_is_not_taken_for_a_machines():
    with pytest.raises(RuntimeError, match="shapes"), oneshot.machine_errors({"n_samples": 8, "max_seq_tokens": 16}):
        raise RuntimeError("shapes differ")
