"""What large bodies leave behind."""

import subprocess
import sys

import pytest

PROGRAM = """
import psutil, sys
from llmtier.serve.memory import return_large_blocks
if sys.argv[1] == "yes":
    assert return_large_blocks()
kept, own = [], psutil.Process()
before = own.memory_info().rss
for _ in range(20):
    bodies = [bytearray(b"x") * 3_000_000 for _ in range(8)]
    kept += [bytearray(60_000) for _ in range(4)]  # small ones that outlive them
    bodies.clear()
print(own.memory_info().rss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_memory_of_large_bodies_goes_back_to_the_kernel():
    grown = {}
    for asked in ("yes", "no"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, asked], capture_output=True, text=True, check=True)
        grown[asked] = int(done.stdout)

    assert grown["yes"] < 8_000_000
    assert grown["yes"] <= grown["no"] + 1_000_000
