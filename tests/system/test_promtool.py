"""Prometheus' own linter accepts the gateway's metrics page."""

import os
import shutil
import subprocess
import urllib.request

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def find_promtool():
    """Return promtool, installing Debian's package where that is allowed."""
    if shutil.which("promtool") is None and shutil.which("apt-get") is not None and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "prometheus"],
        ):
            subprocess.run(command, capture_output=True, env=environment, check=False)
    return shutil.which("promtool")


def test_metrics_page_passes_the_linter(gateway_url):
    promtool = find_promtool()
    if promtool is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    with urllib.request.urlopen(f"{gateway_url}/metrics", timeout=10) as response:
        page = response.read()
    result = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)

    assert 0 == result.returncode, result.stdout.decode() + result.stderr.decode()
