"""``llmtier profile`` as a user has it: what it prints, how it ends, what it leaves behind."""

import io
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest
from rich.console import Console

from llmtier.cli.profile_view import LiveView
from llmtier.profile import selftest
from llmtier.profile.events import PointStarted
from llmtier.profile.load import LoadProgress
from llmtier.profile.selftest import SelfTest

PROMPTS = [
    {"id": f"p{n}", "messages": [{"role": "user", "content": f"word {n}"}], "answer": f"word {n}"} for n in range(4)
]
LOAD = {
    "requests_per_point": 12, "warmup_requests": 2, "concurrency": [1, 2], "max_tokens": 4, "max_input_tokens": 32,
}  # fmt: skip
QUICK = ("profile", "--no-latency-model")


def tier(name, device="cpu:0", **mock):
    return {
        "name": name, "model": "m", "scheme": "bf16", "device": device, "price": {"usd_per_hour": 2.0},
        "engine": {"kind": "mock", "mock": {"alpha_s": 0.001, **mock}},
    }  # fmt: skip


def configure(folder, *tiers, load=None, **more):
    """Write ``llmtier.yaml``, which JSON is too."""
    document = {
        "schema_version": 1, "profiles": "profiles/", "evaluation": "evaluation.jsonl",
        "load": LOAD | (load or {}), "tiers": list(tiers), **more,
    }  # fmt: skip
    known = {key: value for key, value in document.items() if value is not None}
    (folder / "llmtier.yaml").write_text(json.dumps(known))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMTIER_HOME", str(tmp_path / "home"))
    configure(tmp_path, tier("big"))
    (tmp_path / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return tmp_path


def manifest_of(folder, name="big"):
    [path] = folder.glob(f"profiles/*/{name}/manifest.json")
    return json.loads(path.read_text())


def kept_points(folder):
    return [path for path in folder.glob("profiles/.points/**/*") if path.is_file()]


def test_a_run_ends_with_a_table_of_its_points(llmtier, folder):
    ended = llmtier(*QUICK)

    assert 0 == ended.code, ended.err
    rows = [line for line in ended.out.splitlines() if "big" in line]
    assert ["closed:1", "closed:2"] == [next(w for w in row.split() if w.startswith("closed")) for row in rows]
    assert "wrote" in ended.err
    assert "wrote" not in ended.out
    assert [] == kept_points(folder)


def test_json_is_one_document_and_nothing_else_on_standard_output(llmtier, folder):
    configure(folder, tier("big", output_tokens=2))  # the mock echoes: a question of two words is its answer

    ended = llmtier(*QUICK, "--json", "--seed", "7", "--requests", "9")

    document = json.loads(ended.out)
    [found] = document["tiers"]
    assert (1, "big") == (document["schema_version"], found["tier"])
    assert [("closed:1", 1, 7), ("closed:2", 2, 7)] == [
        (point["shape"], point["concurrency"], point["seed"]) for point in found["points"]
    ]
    assert [11, 11] == [point["n_sent"] for point in found["points"]]
    assert 1.0 == found["accuracy"][0]["accuracy"]


def test_the_manifest_holds_judgement_self_test_seeds_and_the_engines_side(llmtier, folder, monkeypatch):
    tested = SelfTest(
        n_streams=1, chunks_per_s=2.0, client_cpu_s_per_chunk=3.0, ttft_error_p50_s=4.0, ttft_error_p95_s=5.0,
        itl_error_mean_s=6.0, rate_rps=7.0, schedule_delay_p50_s=8.0, schedule_delay_p99_s=9.0,
    )  # fmt: skip

    async def fake():
        return tested

    monkeypatch.setattr(selftest, "run_self_test", fake)
    configure(folder, tier("big"), load={"concurrency": [1]})

    ended = llmtier("profile", "--self-test", "--seed", "3", "--json")

    assert 0 == ended.code, ended.err
    [found] = json.loads(ended.out)["tiers"]
    load = manifest_of(folder)["load"]
    assert asdict(tested) == load["self_test"]
    assert "client self-test: 2 chunks/s" in ended.err
    assert {"ttft_s", "tpot_s", "e2el_s"} == set(load["settings"]["judgement"])
    assert load["settings"]["no_latency_model"] is None
    assert {3, 103, 104, 1103, 1104} == set(load["seeds"])
    assert len(found["points"]) == len(load["engine_side"])
    assert all(facts["device"] is not None for facts in load["engine_side"])
    assert found["latency"]["step"]["alpha_s"] > 0
    assert "latency model, ttft on" in ended.err


def test_no_self_test_no_model_and_no_neighbours_are_said_so(llmtier, folder):
    assert 0 == llmtier(*QUICK).code

    load = manifest_of(folder)["load"]
    assert load["self_test"] is None
    assert {} == load["settings"]["judgement"]
    assert {} == load["co_tenant_shares"]


def test_shapes_lengths_and_precision_are_recorded_as_asked(llmtier, folder):
    ended = llmtier(
        *QUICK, "--shape", "constant:200", "--shape", "poisson:50..100/2", "--input-tokens", "8-16",
        "--output-tokens", "3", "--precision", "0.9", "--json",
    )  # fmt: skip

    assert 0 == ended.code, ended.err
    [found] = json.loads(ended.out)["tiers"]
    settings = manifest_of(folder)["load"]["settings"]
    assert ["constant:200", "poisson:50", "poisson:100"] == [point["shape"] for point in found["points"]]
    assert ["constant:200", "poisson:50", "poisson:100"] == settings["shapes"]
    assert ("8-16", "3", 0.9) == (settings["input_tokens"], settings["output_tokens"], settings["precision"])
    assert all(3 == point["mean_output_tokens"] for point in found["points"])
    assert all(8 <= point["mean_input_tokens"] <= 16 for point in found["points"])


def test_a_trace_is_replayed_with_its_own_lengths(llmtier, folder):
    rows = [f"{0.02 * number},{10 + number},2" for number in range(6)]
    (folder / "day.csv").write_text("arrival_s,input_tokens,output_tokens\n" + "\n".join(rows) + "\n")

    ended = llmtier(*QUICK, "--shape", "trace:day.csv*0.5", "--json")

    assert 0 == ended.code, ended.err
    [point] = json.loads(ended.out)["tiers"][0]["points"]
    assert (6, 2.0) == (point["n_sent"], point["mean_output_tokens"])
    assert point["shape"].startswith("trace:")


BAD_WORDS = {
    "junk shape": (("--shape", "zigzag:3"), 2, "zigzag"),
    "no rate": (("--shape", "poisson:"), 2, "poisson"),
    "rate of zero": (("--shape", "constant:0"), 2, "rate"),
    "rate that is no number": (("--shape", "constant:nan"), 2, "constant"),
    "loop of none": (("--shape", "closed:0"), 2, "closed"),
    "same shape twice": (("--shape", "poisson:5", "--shape", "poisson:5.0"), 2, "poisson:5"),
    "more workers than requests": (("--shape", "closed:64"), None, "64"),
    "input without output": (("--input-tokens", "64"), 2, "--output-tokens"),
    "output without input": (("--output-tokens", "64"), 2, "--input-tokens"),
    "lengths that fall": (("--input-tokens", "64-32", "--output-tokens", "4"), 2, "64-32"),
    "no length": (("--input-tokens", "long", "--output-tokens", "4"), 2, "long"),
    "precision of nothing": (("--precision", "0"), 2, "precision"),
    "precision of everything": (("--precision", "1"), 2, "precision"),
    "no request": (("--requests", "0"), 2, "requests"),
    "limit of zero": (("--slo-ttft-ms", "0"), 2, "slo-ttft-ms"),
    "missing trace": (("--shape", "trace:none.csv"), 3, "none.csv"),
    "missing set": (("--evaluation", "none.jsonl"), None, "none.jsonl"),
    "unknown tier": (("--tier", "huge"), 2, "huge"),
}


@pytest.mark.parametrize(("words", "code", "named"), BAD_WORDS.values(), ids=BAD_WORDS)
def test_what_is_asked_wrongly_is_one_line_and_measures_nothing(llmtier, folder, words, code, named):
    ended = llmtier("profile", *words)

    assert ended.code in ((2, 3) if code is None else (code,)), ended.err
    assert named in ended.err
    assert "Traceback" not in ended.err
    assert "starting" not in ended.err
    assert "" == ended.out
    assert not (folder / "profiles").exists()
    message = [line for line in ended.err.splitlines() if line.strip()]
    assert 1 == len(message) or message[0].startswith("Usage:"), ended.err


def test_two_traces_in_one_run_are_refused(llmtier, folder):
    for name in ("one", "two"):
        (folder / f"{name}.csv").write_text("arrival_s,input_tokens,output_tokens\n0,4,2\n")

    ended = llmtier("profile", "--shape", "trace:one.csv", "--shape", "trace:two.csv")

    assert 2 == ended.code
    assert "one trace per run" in ended.err


def test_no_evaluation_set_is_wrong_usage(llmtier, folder):
    configure(folder, tier("big"), evaluation=None)

    ended = llmtier("profile")

    assert 2 == ended.code
    assert "--evaluation" in ended.err


def test_an_empty_evaluation_set_is_a_bad_file(llmtier, folder):
    (folder / "evaluation.jsonl").write_text("")

    assert 3 == llmtier("profile").code


def test_a_bad_shape_in_the_configuration_is_named(llmtier, folder):
    configure(folder, tier("big"), load={"shapes": ["zigzag:3"]})

    ended = llmtier("profile")

    assert 2 == ended.code
    assert "zigzag" in ended.err


def test_an_engine_that_refuses_everything_ends_with_four(llmtier, folder):
    configure(folder, tier("big", faults=[{"kind": "refuse"}]))

    ended = llmtier(*QUICK)

    assert 4 == ended.code
    assert "503" in ended.err
    assert "Traceback" not in ended.err
    assert "" == ended.out
    assert not list(folder.glob("profiles/*/big"))


def test_failed_requests_make_the_point_invalid_and_the_profile_priceless(llmtier, folder):
    configure(folder, tier("big", faults=[{"kind": "error", "probability": 0.4}]))

    ended = llmtier(*QUICK, "--requests", "30", "--json")

    assert 0 == ended.code, ended.err
    [found] = json.loads(ended.out)["tiers"]
    assert found["cost"] is None
    assert all(point["n_failed"] > 0 and point["invalid"] for point in found["points"])
    assert "INVALID" in ended.err
    assert "no cost" in ended.err


def test_a_profile_is_written_over_only_when_it_is_whole(llmtier, folder):
    """The engine of the second run dies: the profile of the first stays."""
    assert 0 == llmtier(*QUICK).code
    before = manifest_of(folder)
    configure(folder, tier("big", faults=[{"kind": "refuse"}]))

    assert 4 == llmtier(*QUICK).code
    assert before == manifest_of(folder)


def test_resume_skips_what_is_profiled(llmtier, folder):
    assert 0 == llmtier(*QUICK).code

    again = llmtier(*QUICK, "--resume", "--json")

    assert ["big: profiled already"] == again.err.splitlines()
    assert ["big"] == [found["tier"] for found in json.loads(again.out)["tiers"]]


@pytest.fixture
def interrupted(folder):
    """Return the folder of a run that Ctrl-C ended in its second point."""
    configure(folder, tier("big"), load={"shapes": ["closed:1", "constant:2"]})
    process = subprocess.Popen(
        [sys.executable, "-m", "llmtier", *QUICK], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        said = next(line for line in process.stderr if "report: closed:1" in line)
    finally:
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=15)
    assert "found measured" not in said
    assert (130, "") == (process.returncode, out), rest
    assert "Traceback" not in rest
    return folder


def test_after_ctrl_c_the_finished_point_is_found_by_the_same_run_only(llmtier, interrupted):
    points = interrupted / "profiles" / ".points"
    shutil.copytree(points, interrupted / "kept")
    assert not list(interrupted.glob("profiles/*/big/manifest.json"))
    assert 1 == len(kept_points(interrupted))

    other = llmtier(*QUICK, "--shape", "closed:1", "--seed", "1")
    assert 0 == other.code, other.err
    assert "found measured" not in other.err
    assert 1 == len(kept_points(interrupted))  # it is not the other run's to let go

    # What is asked for now, the interrupted run had measured.
    same = llmtier(*QUICK, "--shape", "closed:1")
    assert 0 == same.code, same.err
    assert "found measured: closed:1" in same.err
    assert [] == kept_points(interrupted)

    shutil.copytree(interrupted / "kept", points, dirs_exist_ok=True)
    fresh = llmtier(*QUICK, "--shape", "closed:1", "--fresh")
    assert 0 == fresh.code, fresh.err
    assert "found measured" not in fresh.err
    assert [] == kept_points(interrupted)


def test_tiers_together_are_co_tenants_that_share_time_and_price(llmtier, folder):
    configure(folder, tier("big", alpha_s=0.002), tier("small"), load={"concurrency": [1]})

    ended = llmtier("profile", "--together", "--json")

    assert 0 == ended.code, ended.err
    found = {each["tier"]: each for each in json.loads(ended.out)["tiers"]}
    assert {"big": ["small"], "small": ["big"]} == {name: each["co_tenants"] for name, each in found.items()}
    shares = {name: manifest_of(folder, name)["load"]["co_tenant_shares"][name] for name in found}
    assert all(0 < share < 1 for share in shares.values())
    assert pytest.approx(1.0) == sum(shares.values())
    assert {"big": ["small"], "small": ["big"]} == {
        name: [tenant for tenant, _ in each["latency"]["co_tenants"]] for name, each in found.items()
    }
    for name, each in found.items():
        assert each["cost"] is None or pytest.approx(2.0 * shares[name]) == each["cost"]["usd_per_hour"]


def drawn(view):
    console = Console(file=io.StringIO(), width=120)
    console.print(view.render())
    return console.file.getvalue()


def test_the_live_view_shows_the_point_its_percentiles_and_what_is_left(capsys):
    progress = LoadProgress(n_planned=40, n_sent=30, n_done=20, n_failed=2)
    progress.first_byte_s.extend([0.010] * 19 + [0.050])
    progress.e2el_s.extend([0.1, 0.2, 0.3])
    view = LiveView(progress)

    view(PointStarted(tier="big", shape="poisson:2.5", purpose="held out", n_requests=40, n_left=3))
    text = drawn(view)

    for word in ("big", "held out", "poisson:2.5", "30/40", "20", "2", "10.0", "200.0", "3"):
        assert word in text, text
    assert "" == capsys.readouterr().err  # a begin is shown, not told


def test_the_live_view_of_a_load_that_has_not_begun(capsys):
    text = drawn(LiveView(LoadProgress()))

    assert "0/0" in text
    assert "-" in text
    assert "nan" not in text.lower()
