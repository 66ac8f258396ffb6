"""llmtier.yaml: what it may say, and where its errors are."""

from pathlib import Path

import pytest

from llmtier.core.device import parse_device
from llmtier.core.errors import ConfigError, UsageError
from llmtier.core.requirement import Requirement
from llmtier.core.tier import Scheme
from llmtier.store.config import load_config
from llmtier.store.config_model import EngineKind

MINIMAL = "tiers:\n  - {model: ./mini, scheme: bf16}\n"

FULL = """\
schema_version: 1
profiles: measured/
policy: policy.json
evaluation: data/evaluation.jsonl
tiers:
  - name: mini@bf16
    model: models/mini
    scheme: bf16
    device: cpu:1
    engine:
      kind: vllm
      url: null
      python: /opt/vllm/bin/python
      args: {max_model_len: 512, enforce_eager: true}
      env: {VLLM_CPU_KVCACHE_SPACE: 1, HF_HOME: "~/hf"}
      start_timeout_s: 30
    price: {usd_per_hour: 0.05}
  - model: meta-llama/Llama-3.1-8B
    scheme: awq
    engine: {kind: openai, url: "http://${HOST}:8000", api_key_env: KEY, model_name: llama}
  - {name: toy, model: toy, scheme: bf16, engine: {kind: mock, mock: {alpha_s: 0.01}}}
slo: {ttft_s: 0.5, tpot_s: null, e2el_s: 2}
slo_classes: {chat: {ttft_s: 0.4}, async: {e2el_s: 2, accuracy: 0.9, max_usd: 0.01}}
load: {concurrency: [1, 2], requests_per_point: 8, warmup_requests: 0, max_tokens: 4}
gateway:
  {host: 0.0.0.0, port: 0, log_dir: log, log_text: true, default_tier: toy, request_timeout_s: 5, workers: auto,
   admin_port: 0, keys_file: secret/keys.json, caps: {n: 2, max_tokens: 64}, allow_fields: [priority], sticky_s: 60, resume: ids,
   log_rotate_s: 60, log_keep_bytes: 1000000}
"""


@pytest.fixture
def load(tmp_path):
    def load_text(text, **environ):
        path = tmp_path / "llmtier.yaml"
        path.write_text(text)
        return load_config(path, environ=environ)

    return load_text


@pytest.fixture
def refusal(load):
    def message(text, **environ):
        with pytest.raises(ConfigError) as caught:
            load(text, **environ)
        return str(caught.value).replace(str(caught.value.path), "llmtier.yaml")

    return message


def test_everything_that_may_be_said_is_read(load, tmp_path):
    (tmp_path / "models").mkdir()
    config = load(FULL, HOST="box")
    mini, llama, toy = config.tiers

    assert (tmp_path / "measured", tmp_path / "policy.json") == (config.profiles, config.policy)
    assert tmp_path / "data" / "evaluation.jsonl" == config.evaluation
    assert (tmp_path / "models" / "mini", Scheme.BF16) == (mini.model_path, mini.scheme)
    assert (parse_device("cpu:1"), 0.05) == (mini.device, mini.price.usd_per_hour)
    assert (Path("/opt/vllm/bin/python"), 30.0) == (mini.engine.python, mini.engine.start_timeout_s)
    assert {"max_model_len": 512, "enforce_eager": True} == mini.engine.args
    assert {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HOME": "~/hf"} == mini.engine.env
    assert ("Llama-3.1-8B@awq", None, "llama") == (llama.name, llama.model_path, llama.served_name)
    assert (EngineKind.OPENAI, "http://box:8000") == (llama.engine.kind, llama.engine.url)
    assert ({"alpha_s": 0.01}, "toy") == (toy.engine.mock, toy.served_name)
    assert Requirement(ttft_s=0.5, e2el_s=2.0) == config.slo.to_requirement()
    assert {
        "chat": Requirement(ttft_s=0.4),
        "async": Requirement(e2el_s=2.0, accuracy=0.9, usd=0.01),
    } == config.to_classes()
    assert (tmp_path / "secret" / "keys.json", ("priority",)) == (config.gateway.keys_file, config.gateway.allow_fields)
    assert (2, 64, 128) == (config.gateway.caps.n, config.gateway.caps.max_tokens, config.gateway.caps.tools)
    assert ((1, 2), 8) == (config.load.concurrency, config.load.requests_per_point)
    assert (tmp_path / "log", "toy") == (config.gateway.log_dir, config.gateway.default_tier)


def test_minimal_file_takes_the_defaults(load, tmp_path):
    config = load(MINIMAL)
    (tier,) = config.tiers

    assert ("mini@bf16", str(tmp_path / "mini"), None) == (tier.name, tier.model, tier.price)
    assert ("auto", EngineKind.VLLM) == (tier.device.label, tier.engine.kind)
    assert (tmp_path / "profiles", None) == (config.profiles, config.policy)
    assert ((1, 4, 16), 8000) == (config.load.concurrency, config.gateway.port)


def test_paths_start_from_the_files_folder_not_from_here(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "llmtier.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)

    config = load_config(Path("project/llmtier.yaml"))

    assert tmp_path / "project" / "mini" == config.tiers[0].model_path
    assert tmp_path / "project" / "profiles" == config.profiles


def test_anchors_and_merges_work(load):
    text = """\
tiers:
  - &base {model: ./a, scheme: bf16, engine: {args: {max_model_len: 64}}}
  - {<<: *base, model: ./b}
"""
    first, second = load(text).tiers

    assert ("a@bf16", "b@bf16") == (first.name, second.name)
    assert first.engine == second.engine


def test_tier_is_found_by_name(load):
    config = load(MINIMAL)

    assert config.tiers[0] is config.tier("mini@bf16")
    with pytest.raises(UsageError, match="no tier 'x' in the configuration; there are mini@bf16"):
        config.tier("x")


def test_absent_file_says_what_to_run(tmp_path):
    with pytest.raises(ConfigError, match=r"llmtier\.yaml: no such file; run 'llmtier init' to write one"):
        load_config(tmp_path / "llmtier.yaml")


def test_folder_and_foreign_bytes_are_refused(tmp_path):
    (tmp_path / "latin").write_bytes(b"tiers: \xe9")

    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="expected UTF-8"):
        load_config(tmp_path / "latin")


TIER = "tiers:\n- model: m\n  scheme: bf16\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiers:\n- model: m\n  shceme: bf16\n", "3: unknown key 'shceme' in tiers[0]; nearest valid key: 'scheme'"),
        (TIER + "gatway: {}\n", "4: unknown key 'gatway'; nearest valid key: 'gateway'"),
        (TIER + "  engine:\n    agrs: {}\n", "5: unknown key 'agrs' in tiers[0].engine; nearest valid key: 'args'"),
        (
            TIER + "  price: {zzz: 1, usd_per_hour: 1}",
            "4: unknown key 'zzz' in tiers[0].price; valid keys: usd_per_hour",
        ),
        (TIER + "slo: {1: 2}\n", "4: key 1 in slo is no text; put it in quotes"),
        ("profiles: x\n", "1: missing key 'tiers'"),
        ("tiers: []\n", "1: tiers: list should have at least 1 item"),
        ("tiers:\n\n- scheme: bf16\n", "3: missing key 'model' in tiers[0]"),
        ("tiers:\n- model: m\n  scheme: awqq\n", "3: tiers[0].scheme: expected 'bf16', 'fp16', "),
        ("tiers:\n- model: m\n  scheme: awqq\n", "got awqq; nearest valid value: 'awq'"),
        ("tiers:\n- model: m\n  scheme: 4bit\n", "'gguf', got 4bit\n"),
        (TIER + "  device: cpu:0,1\n", "4: tiers[0].device: device must be 'auto', 'cpu', "),
        (TIER + "  device: 0\n", "4: tiers[0].device: device must be 'auto'"),
        (TIER + "  name: .a\n", "4: tiers[0].name: tier name '.a' must be 1 to 100 of letters"),
        (TIER + "  name: 12\n", "4: tiers[0].name: expected a valid string, got 12; put it in quotes"),
        ("tiers:\n- model: a b\n  scheme: bf16\n", "2: tiers[0].name: tier name 'a b@bf16' must be"),
        (TIER + "- {model: x/m, scheme: bf16}\n", "4: tier name 'm@bf16' stands twice, first on line 2; give one"),
        (TIER + "  scheme: fp8\n", "4: key 'scheme' stands twice, first on line 3; remove one"),
        (TIER + "  engine: {kind: openai}\n", "4: tiers[0].engine: 'url' belongs to kind 'openai'"),
        (TIER + "  engine: {url: 'http://x'}\n", "4: tiers[0].engine: 'url' belongs to kind 'openai'"),
        (TIER + "  engine: {urls: ['http://x']}\n", "4: tiers[0].engine: 'url' belongs to kind 'openai'"),
        (
            TIER + "  engine: {kind: openai, url: 'http://x', urls: ['http://y']}\n",
            "4: tiers[0].engine: give 'url' or 'urls', not both",
        ),
        (
            TIER + "  engine: {kind: openai, urls: ['http://x', 'http://x/v1']}\n",
            "4: tiers[0].engine: 'urls' names one engine twice",
        ),
        (TIER + "  engine: {kind: openai, urls: [x]}\n", "4: tiers[0].engine.urls[0]: "),
        (TIER + "  engine: {mock: {}}\n", "4: tiers[0].engine: 'mock' belongs to kind 'mock'"),
        (TIER + "  engine: {kind: openai, url: x}\n", "4: tiers[0].engine.url: "),
        (TIER + "  engine: {args: {a: 2026-01-01}}\n", "4: tiers[0].engine.args.a: "),
        (TIER + "  engine: fast\n", "4: tiers[0].engine: "),
        (TIER + "  engine: {env: {1: x}}\n", "4: key 1 in tiers[0].engine.env is no text; put it in quotes"),
        (TIER + "  engine: {env: 3}\n", "4: tiers[0].engine.env: "),
        (TIER + "  engine: {env: {A: true}}\n", "4: tiers[0].engine.env.A: expected a valid string, got true; put"),
        (
            TIER + "  price: {usd_per_hour: -1}\n",
            "4: tiers[0].price.usd_per_hour: expected greater than or equal to 0, got -1",
        ),
        (
            TIER + "  price: {usd_per_hour: .nan}\n",
            "4: tiers[0].price.usd_per_hour: expected a finite number, got .nan",
        ),
        (TIER + "load: {concurrency: [4, 1]}\n", "4: load.concurrency: load points must ascend"),
        (TIER + "load:\n  concurrency: [1, 0]\n", "5: load.concurrency[1]: expected greater than or equal to 1, got 0"),
        (
            TIER + "slo_classes: {chat: {ttft: 1}}\n",
            "4: unknown key 'ttft' in slo_classes.chat; nearest valid key: 'ttft_s'",
        ),
        (TIER + "slo_classes: {'a b': {ttft_s: 1}}\n", "4: key a b in slo_classes must match ^["),
        (TIER + "slo_classes: {chat: {}}\n", "4: slo_classes.chat: needs at least one limit: ttft_s, tpot_s, e2el_s"),
        (TIER + "gateway: {caps: {m: 1}}\n", "4: unknown key 'm' in gateway.caps; "),
        (TIER + "gateway: {allow_fields: [prioriti]}\n", "nearest valid value: 'priority'"),
        (TIER + "gateway: {workers: 0}\n", "4: gateway.workers: expected a number from 1 to 256, or auto"),
        (TIER + "gateway: {port: 70000}\n", "4: gateway.port: expected less than or equal to 65535, got 70000"),
        (
            TIER + "gateway: {default_tier: m@bf15}\n",
            "4: gateway.default_tier: no tier 'm@bf15'; nearest valid name: 'm@bf16'",
        ),
        (
            TIER + "gateway: {safe_tier: m@bf15}\n",
            "4: gateway.safe_tier: no tier 'm@bf15'; nearest valid name: 'm@bf16'",
        ),
        (TIER + "policy: ~nobody-of-that-name/p\n", "4: policy: the home folder of ~nobody-of-that-name/p is unknown"),
        (TIER + "schema_version: 2\n", "4: schema 2, this llmtier reads 1; run 'llmtier init'"),
        ("tiers: ${TIERS}\n", "1: environment variable TIERS is not set; export it"),
        (TIER + "policy: a${NO-NAME}b\n", "4: expected ${NAME}, got '${NO-NAME}'"),
        (TIER + "policy: a${HALF\n", "4: expected ${NAME}, got '${HALF'"),
        ("tiers: [\n", "2: not YAML: "),
        ("tiers: \x07\n", "not YAML: "),
        ("tiers: 2026-13-40\n", "not YAML: month must be in 1..12"),
        ("a: 1\n---\nb: 2\n", "2: not YAML: but found another document"),
        ("tiers: &x [*x]\n", "1: tiers[0]: "),
        ("", "llmtier.yaml: expected a mapping with the key 'tiers'"),
        ("- a\n", "llmtier.yaml: expected a mapping with the key 'tiers'"),
    ],
)
def test_error_names_line_and_key(refusal, text, expected):
    assert expected in f"{refusal(text)}\n"


def test_every_error_is_told_at_once_in_the_order_of_the_file(refusal):
    lines = refusal("tiers:\n- model: m\n  shceme: bf16\nprofile: x\n").splitlines()

    assert ["llmtier.yaml:2: missing key 'scheme' in tiers[0]"] == lines[:1]
    assert ["llmtier.yaml:3: unknown", "llmtier.yaml:4: unknown"] == [line[:23] for line in lines[1:]]


def test_value_of_a_variable_is_not_shown_in_errors(refusal):
    message = refusal(TIER + "gateway: {port: '${SECRET}'}\n", SECRET="s3cret")

    assert "s3cret" not in message
    assert "got '${SECRET}'" in message


def test_variable_may_be_part_of_any_value(load):
    config = load("tiers:\n- {model: '/m/${NAME}-${SIZE}', scheme: '${SCHEME}'}\n", NAME="a", SIZE="8b", SCHEME="awq")

    assert ("/m/a-8b", "a-8b@awq") == (config.tiers[0].model, config.tiers[0].name)


def test_process_environment_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMTIER_TEST_NAME", "tiny")
    (tmp_path / "a.yaml").write_text("tiers: [{model: x, scheme: bf16, name: '${LLMTIER_TEST_NAME}'}]")

    assert "tiny" == load_config(tmp_path / "a.yaml").tiers[0].name


def test_url_of_a_tier_may_end_in_its_version(tmp_path):
    path = tmp_path / "llmtier.yaml"
    path.write_text("tiers: [{model: m, scheme: bf16, engine: {kind: openai, url: 'http://host:1/v1/'}}]")

    assert "http://host:1" == load_config(path).tiers[0].engine.url


@pytest.mark.parametrize(("said", "read"), [("off", "off"), ("'off'", "off"), ("text", "text"), ("ids", "ids")])
def test_resume_is_a_word_or_yaml_s_off(load, said, read):
    assert read == load(f"tiers: [{{model: m, scheme: bf16}}]\ngateway: {{resume: {said}}}").gateway.resume


@pytest.mark.parametrize("said", ["on", "true", "exact"])
def test_resume_is_no_other_word(refusal, said):
    assert "resume" in refusal(f"tiers: [{{model: m, scheme: bf16}}]\ngateway: {{resume: {said}}}")
