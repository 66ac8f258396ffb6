"""The clients that people use ask a real gateway: ``openai`` for Python and Node, and LangChain's ``ChatOpenAI``.

The gateway is a process of its own; its two engines are one scripted server in this process, which remembers
each body that reached it.
"""

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

import openai
import pytest
from pydantic import BaseModel

from llmtier.store.keys import ApiKey, digest_key, write_keys
from tests.e2e.scripted_engine import TEXT, VECTOR, Engine

KEY = "sk-llmtier-test"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city; 'model' may name a forecast model.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "model": {"type": "string"}},
            "required": ["city"],
        },
    },
}
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]


class City(BaseModel):
    """What a structured answer looks like."""

    city: str
    n_people: int


@dataclass
class Running:
    """A gateway and what reached its engines, newest last."""

    url: str
    bodies: list[dict[str, object]] = field(default_factory=list)

    def client(self, **options):
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": KEY, "max_retries": 0, **options})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    engine = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    engine.daemon_threads = True
    engine.bodies = []
    thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    write_keys(folder / "keys.json", [ApiKey(name="test", digest=digest_key(KEY))])
    address = {"kind": "openai", "url": f"http://127.0.0.1:{engine.server_port}"}
    tiers = [
        {"name": name, "model": "m", "scheme": "bf16", "engine": {**address, "model_name": f"engine-{name}"}}
        for name in ("small", "large")
    ]
    config = {
        "tiers": tiers,
        "slo_classes": {"chat": {"ttft_s": 5.0}},
        "gateway": {"default_tier": "small", "keys_file": "keys.json"},
    }
    (folder / "llmtier.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "llmtier", "serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        yield Running(find_url(process), engine.bodies)
    finally:
        process.terminate()
        process.communicate(timeout=30)
        engine.shutdown()
        thread.join()
        engine.server_close()


def find_url(process):
    """Return the gateway's URL once it serves."""
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("serving on"):
            return line.split()[-1].removesuffix("/v1")
    pytest.fail(f"the gateway ended: {''.join(told)}")


@pytest.fixture
def client(gateway):
    with gateway.client() as client:
        yield client


def test_chat_is_answered_and_says_by_which_tier(gateway, client):
    answer = client.chat.completions.with_raw_response.create(model="auto", messages=HELLO, temperature=0.5)

    assert "".join(TEXT) == answer.parse().choices[0].message.content
    assert "small" == answer.headers["x-llmtier-tier"]
    assert {"model": "engine-small", "messages": HELLO, "temperature": 0.5} == gateway.bodies[-1]


def test_a_stream_holds_usage_only_where_asked(client):
    def ask(**options):
        chunks = list(client.chat.completions.create(model="auto", messages=HELLO, stream=True, **options))
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        return text, [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]

    assert ("".join(TEXT), []) == ask()
    assert ("".join(TEXT), [4]) == ask(stream_options={"include_usage": True})


@pytest.mark.parametrize("stream", [False, True])
def test_tools_pass_both_ways(gateway, client, stream):
    asked = {"model": "auto", "messages": HELLO, "tools": [WEATHER], "tool_choice": "auto"}
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        call = next(chunk.choices[0].delta.tool_calls[0] for chunk in chunks if chunk.choices[0].delta.tool_calls)
    else:
        call = client.chat.completions.create(**asked).choices[0].message.tool_calls[0]

    assert ("get_weather", {"city": "Paris"}) == (call.function.name, json.loads(call.function.arguments))
    assert [WEATHER] == gateway.bodies[-1]["tools"]


def test_structured_outputs_are_parsed(gateway, client):
    answer = client.chat.completions.parse(model="auto", messages=HELLO, response_format=City)

    assert City(city="Paris", n_people=2) == answer.choices[0].message.parsed
    asked = gateway.bodies[-1]["response_format"]
    assert ("json_schema", "City") == (asked["type"], asked["json_schema"]["name"])


def test_several_answers_and_log_probabilities(client):
    answer = client.chat.completions.create(model="auto", messages=HELLO, n=2, logprobs=True, top_logprobs=2)

    assert [TEXT, TEXT] == [[token.token for token in choice.logprobs.content] for choice in answer.choices]


def test_raw_completions(client):
    assert "".join(TEXT) == client.completions.create(model="large", prompt="hello").choices[0].text


def test_embeddings_of_a_named_tier(gateway, client):
    answer = client.embeddings.create(model="large", input=["a", "b"])

    assert [VECTOR, VECTOR] == [entry.embedding for entry in answer.data]
    assert "engine-large" == gateway.bodies[-1]["model"]
    with pytest.raises(openai.BadRequestError, match="tier"):
        client.embeddings.create(model="auto", input="a")


def test_responses_whole_and_streamed(gateway, client):
    answer = client.responses.create(model="auto", input="hello", instructions="Be brief.")
    with client.responses.stream(model="auto", input="hello") as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        last = stream.get_final_response()

    assert ("".join(TEXT), 4) == (answer.output_text, answer.usage.output_tokens)
    assert (TEXT, "completed", 4) == (pieces, last.status, last.usage.output_tokens)
    assert "engine-small" == gateway.bodies[-1]["model"]


def test_models_are_the_tiers_and_auto(client):
    assert {"auto", "small", "large"} <= {model.id for model in client.models.list()}


def test_needs_in_the_body_go_no_further(gateway, client):
    needs = {"class": "chat", "e2el_ms": 60000, "domain": "support"}
    client.chat.completions.create(model="auto", messages=HELLO, extra_body={"llmtier": needs})

    assert {"model": "engine-small", "messages": HELLO} == gateway.bodies[-1]


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (openai.NotFoundError, {"model": "nobody"}),
        (openai.BadRequestError, {"n": 9}),
        (openai.BadRequestError, {"messages": []}),
        (openai.BadRequestError, {"extra_body": {"llmtier": {"class": "vip"}}}),
        (openai.BadRequestError, {"extra_headers": {"x-llmtier-class": "vip"}}),
        (openai.BadRequestError, {"extra_headers": {"x-llmtier-accuracy": "high"}}),
        (openai.BadRequestError, {"extra_body": {"chat_template": "{{ 1 }}"}}),
    ],
)
def test_errors_are_of_the_clients_own_classes(gateway, client, error, asked):
    n_before = len(gateway.bodies)

    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "auto", "messages": HELLO, **asked})

    assert caught.value.body["code"]
    assert n_before == len(gateway.bodies)


def test_a_wrong_key_is_an_authentication_error(gateway):
    with gateway.client(api_key="sk-wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="auto", messages=HELLO)

    assert "invalid_api_key" == caught.value.code


NODE = """
import OpenAI from "openai";
const [base, key, ask] = [process.argv[2] + "/v1", process.argv[3], JSON.parse(process.argv[4])];
const client = new OpenAI({ baseURL: base, apiKey: key, maxRetries: 0 });
const streamed = async (more) => {
  let text = "", usage = null;
  for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, ...more })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage?.completion_tokens ?? usage;
  }
  return [text, usage];
};
const named = async (call) => { try { await call(); return null; } catch (error) { return error.constructor.name; } };
const { data, response } = await client.chat.completions.create(ask).withResponse();
const tools = await client.chat.completions.create({ ...ask, tools: JSON.parse(process.argv[5]) });
const format = { type: "json_schema", json_schema: { name: "City", schema: { type: "object" } } };
const schema = await client.chat.completions.create({ ...ask, response_format: format });
const many = await client.chat.completions.create({ ...ask, n: 2, logprobs: true });
const vectors = await client.embeddings.create({ model: "large", input: "a" });
const whole = await client.responses.create({ model: "auto", input: "hello" });
let pieces = "";
for await (const event of await client.responses.create({ model: "auto", input: "hello", stream: true }))
  if (event.type === "response.output_text.delta") pieces += event.delta;
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const stranger = new OpenAI({ baseURL: base, apiKey: "sk-wrong", maxRetries: 0 });
console.log(JSON.stringify({
  chat: data.choices[0].message.content,
  tier: response.headers.get("x-llmtier-tier"),
  stream: await streamed({}),
  usage: await streamed({ stream_options: { include_usage: true } }),
  tool: tools.choices[0].message.tool_calls[0].function.name,
  city: JSON.parse(schema.choices[0].message.content).city,
  many: many.choices.map((choice) => choice.logprobs.content.length),
  vector: vectors.data[0].embedding,
  responses: [whole.output_text, pieces],
  models: models.sort(),
  errors: [
    await named(() => stranger.chat.completions.create(ask)),
    await named(() => client.chat.completions.create({ ...ask, n: 9 })),
    await named(() => client.chat.completions.create({ ...ask, model: "nobody" })),
  ],
}));
"""


@pytest.mark.system
@pytest.mark.timeout(300)
def test_node_client(gateway, tmp_path):
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm: apt-get install nodejs npm")
    run(["npm", "install", "--no-audit", "--no-fund", "openai@6"], cwd=tmp_path)
    (tmp_path / "ask.mjs").write_text(NODE)
    ask = {"model": "auto", "messages": HELLO}
    told = run(["node", "ask.mjs", gateway.url, KEY, json.dumps(ask), json.dumps([WEATHER])], cwd=tmp_path)

    text = "".join(TEXT)
    assert {
        "chat": text,
        "tier": "small",
        "stream": [text, None],
        "usage": [text, 4],
        "tool": "get_weather",
        "city": "Paris",
        "many": [4, 4],
        "vector": VECTOR,
        "responses": [text, text],
        "models": ["auto", "large", "small"],
        "errors": ["AuthenticationError", "BadRequestError", "NotFoundError"],
    } == told


LANGCHAIN = """
import json, sys
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

class City(BaseModel):
    city: str
    n_people: int

def get_weather(city: str) -> str:
    "Weather of a city."
    return "rain"

place = {"base_url": sys.argv[1] + "/v1", "api_key": sys.argv[2], "max_retries": 0}
model = ChatOpenAI(model="auto", **place)
whole = model.invoke("hello")
chunks = list(ChatOpenAI(model="auto", stream_usage=True, **place).stream("hello"))
called = model.bind_tools([get_weather]).invoke("weather in Paris?")
city = model.with_structured_output(City).invoke("a city")
needs = ChatOpenAI(model="auto", extra_body={"llmtier": {"class": "chat"}}, **place).invoke("hello")
two = ChatOpenAI(model="auto", n=2, logprobs=True, **place).generate([[HumanMessage("hello")]])
responses = ChatOpenAI(model="auto", use_responses_api=True, **place).invoke("hello")
vectors = OpenAIEmbeddings(model="large", check_embedding_ctx_length=False, **place)
def named(**changes):
    try:
        ChatOpenAI(**{"model": "auto", **place, **changes}).invoke("hello")
    except Exception as error:
        return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("openai"))
print(json.dumps({
    "chat": whole.content,
    "usage": whole.usage_metadata["output_tokens"],
    "stream": "".join(chunk.content for chunk in chunks),
    "stream_usage": sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks),
    "tool": [call["name"] for call in called.tool_calls],
    "city": city.city,
    "needs": needs.content,
    "two": len(two.generations[0]),
    "responses": responses.text if isinstance(responses.text, str) else responses.text(),
    "vector": vectors.embed_query("a"),
    "errors": [named(api_key="sk-wrong"), named(n=9), named(model="nobody")],
}))
"""


@pytest.mark.system
@pytest.mark.timeout(600)
def test_langchain(gateway, tmp_path):
    run([sys.executable, "-m", "venv", "venv"], cwd=tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "langchain-openai>=1"], cwd=tmp_path)
    told = run([python, "-c", LANGCHAIN, gateway.url, KEY], cwd=tmp_path)

    text = "".join(TEXT)
    assert {
        "chat": text,
        "usage": 4,
        "stream": text,
        "stream_usage": 4,
        "tool": ["get_weather"],
        "city": "Paris",
        "needs": text,
        "two": 2,
        "responses": text,
        "vector": VECTOR,
        "errors": ["AuthenticationError", "BadRequestError", "NotFoundError"],
    } == told


def run(command, *, cwd):
    """Run a command to its end; return the JSON document it printed, if it did."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert 0 == result.returncode, result.stderr[-3000:]
    return json.loads(result.stdout) if result.stdout.startswith("{") else None
