"""What people get wrong: one clear line, the right exit code, no traceback, nothing half-written."""

import json
import socket
from pathlib import Path

import pytest

CONFIG = """\
schema_version: 1
profiles: profiles/
policy: policy.json
evaluation: evaluation.jsonl
tiers:
  - {name: big, model: m, scheme: bf16, device: "cpu:0", engine: {kind: mock}, price: {usd_per_hour: 2}}
  - {name: small, model: m, scheme: int8, device: "cpu:0", engine: {kind: mock}, price: {usd_per_hour: 1}}
"""
MINI = Path(__file__).parents[2] / "examples" / "demo" / "models" / "mini"
GOOD_ROW = '{"messages": [{"role": "user", "content": "hi"}], "answer": "hi"}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMTIER_HOME", str(tmp_path / "home"))
    (tmp_path / "llmtier.yaml").write_text(CONFIG)
    (tmp_path / "evaluation.jsonl").write_text(GOOD_ROW)
    return tmp_path


def check(ended, code, *words):
    assert code == ended.code, ended.err
    assert "Traceback" not in ended.err
    assert 1 == len(ended.err.strip().splitlines()), ended.err
    for word in words:
        assert word in ended.err, ended.err


def test_missing_config(llmtier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    check(llmtier("profile"), 2, "llmtier.yaml", "llmtier init")


def test_unknown_key_names_line_and_nearest(llmtier, folder):
    (folder / "llmtier.yaml").write_text(CONFIG.replace("policy:", "polcy:"))

    check(llmtier("profile"), 2, "llmtier.yaml:3", "polcy", "policy")


def test_tier_name_twice(llmtier, folder):
    (folder / "llmtier.yaml").write_text(CONFIG.replace("name: small", "name: big"))

    check(llmtier("profile"), 2, "big")


def test_unknown_scheme_in_config(llmtier, folder):
    (folder / "llmtier.yaml").write_text(CONFIG.replace("int8", "int7"))

    check(llmtier("profile"), 2, "llmtier.yaml:7", "int7", "int8")


def test_unknown_scheme_to_quantize(llmtier, folder):
    check(llmtier("quantize", "m", "--scheme", "int5"), 2, "int5", "int8")


def test_missing_model_to_quantize(llmtier, folder):
    check(llmtier("quantize", "no-such-model", "--scheme", "int8"), 2, "no-such-model", "no such folder")


def test_calibration_set_is_demanded_where_it_matters(llmtier, folder):
    check(llmtier("quantize", str(MINI), "--scheme", "awq"), 2, "calibration")


def test_unknown_tier(llmtier, folder):
    check(llmtier("profile", "--tier", "huge"), 2, "huge", "big, small")


def test_malformed_line_names_file_and_line(llmtier, folder):
    (folder / "evaluation.jsonl").write_text(GOOD_ROW + "{oops\n")

    check(llmtier("profile"), 3, "evaluation.jsonl:2")


def test_log_without_answers_cannot_be_replayed(llmtier, folder):
    (folder / "log.jsonl").write_text('{"prompt": "hi"}\n')

    check(llmtier("replay", "log.jsonl"), 3, "log.jsonl", "answer")


def test_outcomes_are_not_overwritten_unasked(llmtier, folder):
    (folder / "outcomes.parquet").write_bytes(b"precious")

    check(llmtier("replay", "evaluation.jsonl"), 2, "--force")
    assert b"precious" == (folder / "outcomes.parquet").read_bytes()


def test_config_is_not_overwritten_unasked(llmtier, folder):
    check(llmtier("init"), 2, "--force")
    assert CONFIG == (folder / "llmtier.yaml").read_text()


def test_port_in_use(llmtier, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        check(llmtier("serve", "--port", port), 4, str(port), "in use")


def test_shared_device_without_joint_profile(llmtier, folder):
    text = CONFIG.replace("engine: {kind: mock}", "engine: {kind: vllm}")
    (folder / "llmtier.yaml").write_text(text)
    write_lone_profiles(folder)

    check(llmtier("serve", "--port", 0), 2, "big", "small", "cpu:0", "--together")


def write_lone_profiles(folder):
    from llmtier.core.profile import LoadPoint, TierProfile
    from llmtier.core.provenance import Provenance
    from llmtier.core.tier import EngineIdentity
    from llmtier.engine.hardware import detect_hardware
    from llmtier.store.profiles import write_profile

    hardware = detect_hardware()
    provenance = Provenance(llmtier_version="0", command=(), created_at="2026-01-01T00:00:00Z", hardware=hardware)
    point = LoadPoint(
        concurrency=1, n_ok=1, n_failed=0, duration_s=1.0, ttft_p50_s=None, ttft_p95_s=None, tpot_p50_s=None,
        tpot_p95_s=None, itl_p50_s=None, itl_p95_s=None, e2el_p50_s=None, e2el_p95_s=None,
        mean_input_tokens=None, mean_output_tokens=None,
    )  # fmt: skip
    for tier in ("big", "small"):
        profile = TierProfile(
            tier=tier, checkpoint_digest="d", engine=EngineIdentity(name="vllm"), hardware_fingerprint="f",
            device="cpu:0", co_tenants=(), context_tokens=None, points=(point,), accuracy=(), cost=None,
        )  # fmt: skip
        write_profile(folder / "profiles", hardware, profile, requests=[], items=[], provenance=provenance)


def test_old_schema_of_a_profile(llmtier, folder):
    write_lone_profiles(folder)
    [manifest] = folder.glob("profiles/*/big/manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 0}))

    ended = llmtier("serve", "--port", 0)

    assert 3 == ended.code
    assert "schema 0" in ended.err


def test_errors_are_one_json_line_under_json(llmtier, folder):
    ended = llmtier("profile", "--tier", "huge", "--json")
    error = json.loads(ended.err)

    assert ("", 2, "UsageError") == (ended.out, error["exit_code"], error["error"])


def test_explain_without_policy(llmtier, folder):
    check(llmtier("explain", "hello"), 2, "fit-thresholds")


def test_demo_outside_a_clone(llmtier, folder):
    check(llmtier("demo"), 3, "clone")


def test_unknown_environment(llmtier, folder):
    check(llmtier("env", "install", "engine-tpu"), 2, "engine-cpu")


def test_engine_that_dies_while_loading(llmtier, folder):
    fake = folder / "python"
    fake.write_text("#!/bin/sh\necho 'RuntimeError: the weights are broken' >&2\nkill -SEGV $$\n")
    fake.chmod(0o755)
    text = CONFIG.replace("engine: {kind: mock}", f"engine: {{kind: vllm, python: {fake}}}").replace('"cpu:0"', "cpu")
    (folder / "llmtier.yaml").write_text(text)

    ended = llmtier("profile", "--tier", "big")

    assert 4 == ended.code
    assert "Traceback" not in ended.err
    assert "the weights are broken" in ended.err
    assert "SIGSEGV" in ended.err or "139" in ended.err, ended.err
    assert not (folder / "profiles").exists()


def test_outcomes_are_parquet_and_that_is_said_first(llmtier, folder):
    check(llmtier("replay", "evaluation.jsonl", "-o", "out.jsonl"), 2, ".parquet")


def test_default_tier_that_is_not_served(llmtier, folder):
    (folder / "llmtier.yaml").write_text(CONFIG + "gateway: {default_tier: big}\n")

    ended = llmtier("serve", "--port", 0, "--tier", "small", "--force")

    assert 2 == ended.code
    assert "default_tier big is not served" in ended.err
