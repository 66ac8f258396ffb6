"""Fixtures that every test may use."""

import pytest
from hypothesis import settings

settings.register_profile("llmtier", deadline=None)  # a busy machine is no failure: a timing is never asserted
settings.load_profile("llmtier")


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio only: uvicorn and aiohttp know no other."""
    return "asyncio"
