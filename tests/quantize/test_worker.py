"""The parts of the worker that need none of its libraries; the rest runs in tests/e2e/test_quantize.py."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import UsageError
from llmtier.quantize import worker
from llmtier.quantize.process import WORKER, running_worker


class FakeTokenizer:
    """One token per character, ids from 10; BOS is 1 and is added unless told otherwise."""

    bos_token_id = 1

    def apply_chat_template(self, messages, tokenize):
        return "^" + "".join(message["content"] for message in messages)

    def __call__(self, text, add_special_tokens=True):
        ids = [1 if char == "^" else ord(char) for char in text]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


def test_chat_rows_get_one_bos_from_their_template():
    row = {"messages": [{"role": "user", "content": "ab"}]}

    assert [1, 97, 98] == worker.token_ids(FakeTokenizer(), row, max_tokens=9)


@pytest.mark.parametrize("text", ["ab", "^ab"])
def test_text_rows_get_one_bos_from_the_tokenizer(text):
    assert [1, 97, 98] == worker.token_ids(FakeTokenizer(), {"text": text}, max_tokens=9)


def test_long_rows_are_cut():
    assert [1, 97] == worker.token_ids(FakeTokenizer(), {"text": "abcdef"}, max_tokens=2)


def test_rows_are_drawn_by_seed_in_file_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{index}\u2028"}}\n' for index in range(50)), encoding="utf-8")

    first = worker.read_rows(path, n_samples=20, seed=1)
    again = worker.read_rows(path, n_samples=20, seed=1)
    other = worker.read_rows(path, n_samples=20, seed=2)
    numbers = [int(row["text"][:-1]) for row in first]

    assert first == again
    assert first != other
    assert numbers == sorted(set(numbers))
    assert 20 == len(numbers)
    assert 50 == len(worker.read_rows(path, n_samples=99, seed=1))


@given(samples=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6)), max_tokens=st.integers(6, 20))
def test_batches_hold_every_sample_once_unpadded_and_within_the_limit(samples, max_tokens):
    batches = worker.equal_length_batches(samples, max_tokens=max_tokens)

    assert sorted(samples) == sorted(ids for batch in batches for ids in batch)
    assert all(1 == len({len(ids) for ids in batch}) for batch in batches)
    assert all(sum(map(len, batch)) <= max_tokens for batch in batches)


def test_group_size_other_than_the_preset_is_spelled_out():
    spelled = worker.four_bit_format(is_symmetric=False, group_size=32)["config_groups"]["group_0"]

    assert {"scheme": "W4A16_ASYM", "targets": ["Linear"]} == worker.four_bit_format(is_symmetric=False, group_size=128)
    assert (32, False) == (spelled["weights"]["group_size"], spelled["weights"]["symmetric"])


def test_worker_imports_only_the_standard_library_at_its_top():
    tree = ast.parse(WORKER.read_text(encoding="utf-8"))
    modules = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}

    assert {name.split(".")[0] for name in modules} <= set(sys.stdlib_module_names)
    assert "llmtier" not in {name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}


def test_worker_ends_when_its_parent_is_gone(tmp_path):
    script = tmp_path / "wait.py"
    script.write_text(
        f"import runpy, time\nnames = runpy.run_path({str(WORKER)!r})\nnames['leave_with_parent']()\n"
        "print('up', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        assert b"up\n" == process.stdout.readline()
        process.stdin.close()
        assert 1 == process.wait(timeout=10)


def test_refusal_reaches_the_caller_whatever_a_library_prints(tmp_path):
    # Without torch here: the job is refused before any library is needed.
    script = tmp_path / "refuse.py"
    script.write_text(
        f"import importlib.util, sys\nspec = importlib.util.spec_from_file_location('worker', {str(WORKER)!r})\n"
        "worker = importlib.util.module_from_spec(spec)\nsys.modules['worker'] = worker\nspec.loader.exec_module(worker)\n"
        "def run(job, *, report):\n    print('a library talks')\n    raise worker.WorkerError('no ' + job['word'])\n"
        "worker.run = run\nworker.main()\n"
    )
    job = {"word": "way"}

    with (
        running_worker(job, python=Path(sys.executable), worker=script) as events,
        pytest.raises(UsageError, match="no way"),
    ):
        list(events)


def test_worker_file_is_where_the_stage_looks_for_it():
    assert Path(worker.__file__) == WORKER
