"""The traffic log knows clients by a digest of their key, and nothing else does."""

import hashlib
import logging

import aiohttp
import pytest

from llmtier.engine.mock import running_mock
from llmtier.engine.mock_settings import MockSettings
from llmtier.serve.log import TrafficLog
from llmtier.store.traffic import TrafficWriter, read_traffic

pytestmark = pytest.mark.anyio

TOKEN = "sk-made-up-for-this-test"
BODY = {"model": "small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


async def test_a_key_is_logged_as_a_digest_alone(make_state, running_gateway, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    log = TrafficLog(TrafficWriter(tmp_path), on_dropped=pytest.fail)
    given = [{"authorization": f"Bearer {TOKEN}"}, {}, {"authorization": "Basic abc"}]
    async with (
        running_mock(MockSettings(model_name="engine-small")) as engine,
        running_gateway(make_state({"small": engine}, traffic=log)) as url,
        aiohttp.ClientSession(url) as client,
    ):
        for headers in given:
            async with client.post("/v1/chat/completions", json=BODY, headers=headers) as answer:
                assert 200 == answer.status
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()

    assert [digest[:16], None, None] == [row.key_sha256 for row in read_traffic(tmp_path)]
    assert not any(TOKEN in str(vars(record)) or digest[:16] in str(vars(record)) for record in caplog.records)
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.iterdir())
