"""What a process does before it trains: seen from outside, in a process of its own."""

import ctypes
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from clients.process import get_ready

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4_000_000)  # 16 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
get_ready()
faults()
print(given_back, faults(), torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="NOT GLIBC")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    ran = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    given_back, kept, threads = map(int, ran.stdout.split())
    assert kept < given_back / 10
    assert threads == 1
