"""Fixtures that every test may use."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio only: uvicorn and aiohttp know no other."""
    return "asyncio"
