"""A tier behind several URLs at the start: one must answer, and those that do must be alike."""

import logging

import pytest

from llmtier.core.errors import ConfigError, EngineRequestError
from llmtier.engine.mock import running_mock
from llmtier.engine.mock_settings import MockSettings
from llmtier.engine.tier import running_tier
from llmtier.store.config_model import TierConfig

pytestmark = pytest.mark.anyio

NOBODY = "http://127.0.0.1:1"


def tier_of(*urls):
    return TierConfig(model="m", scheme="awq", engine={"kind": "openai", "urls": urls})


async def test_one_of_several_engines_is_enough(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    async with (
        running_mock(MockSettings()) as url,
        running_tier(tier_of(NOBODY, f"{url}/v1"), python=None, log_dir=tmp_path) as running,
    ):
        assert (url, (NOBODY, url)) == (running.base_url, running.urls)

    assert [NOBODY] == [each.url for each in caplog.records if each.message == "engine does not answer"]


async def test_none_of_several_is_an_error(tmp_path):
    with pytest.raises(EngineRequestError, match=NOBODY):
        async with running_tier(tier_of(NOBODY, "http://127.0.0.1:2"), python=None, log_dir=tmp_path):
            pass


async def test_engines_of_different_versions_are_no_replicas(tmp_path, monkeypatch):
    versions = iter(["1", "2"])

    async def version(_):
        return next(versions)

    monkeypatch.setattr("llmtier.engine.client.EngineClient.version", version)
    async with running_mock(MockSettings()) as one, running_mock(MockSettings()) as two:
        with pytest.raises(ConfigError, match="different versions"):
            async with running_tier(tier_of(one, two), python=None, log_dir=tmp_path):
                pass
