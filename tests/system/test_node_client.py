"""The official ``openai`` client for Node talks to the gateway, streaming and not."""

import json
import shutil
import subprocess

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const ask = { model: "auto", messages: [{ role: "user", content: "hello" }], max_tokens: 8 };
const { data, response } = await client.chat.completions.create(ask).withResponse();
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true }))
  streamed += chunk.choices[0]?.delta?.content ?? "";
let refused = null;
try { await client.chat.completions.create({ ...ask, model: "nobody" }); } catch (error) { refused = error.status; }
console.log(JSON.stringify({ text: data.choices[0].message.content, tier: response.headers.get("x-llmtier-tier"), streamed, refused }));
"""


def test_node_client_asks_and_streams(gateway_url, tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("needs node and npm: apt-get install nodejs npm")
    install = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "openai@4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    if install.returncode != 0:
        pytest.skip(f"npm could not install openai: {install.stderr[-200:]}")
    (tmp_path / "ask.mjs").write_text(SCRIPT)
    result = subprocess.run(
        ["node", "ask.mjs", gateway_url], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert 0 == result.returncode, result.stderr
    text = "four tokens of text"
    assert {"text": text, "tier": "mock@bf16", "streamed": text, "refused": 404} == json.loads(result.stdout)
