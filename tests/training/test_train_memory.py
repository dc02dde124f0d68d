"""Memory kept: a process that frees and asks again for the same large blocks meets no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource
from leukoscope.training.train import keep_freed_memory

def page_faults():
    for _ in range(3):
        b"x" * 2**26
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"x" * 2**26  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = page_faults()
keep_freed_memory()
print(returned, page_faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux, where glibc is")
def test_freed_blocks_are_used_again_without_page_faults() -> None:
    printed = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    returned, kept = map(int, printed.split())
    assert kept < returned / 10
