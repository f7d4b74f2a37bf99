"""What a process does before it trains: seen from outside, in a process of its own."""

import ctypes
import os
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
if sys.argv[1] == "ready":
    from clients.process import get_ready
    get_ready()

for turn in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for n in range(1, 29):
        torch.ones(n * 250_000)  # up to 28 MB: each is larger than those before it
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads())
"""


def faults(*args: str, **environment: str) -> tuple[int, int]:
    """Returns how many pages a second turn was given anew, and with how many threads."""
    command, own = [sys.executable, "-c", STEPS, *args], {**os.environ, **environment}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=own)
    pages, threads = map(int, ran.stdout.split())
    return pages, threads


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="NOT GLIBC")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    given_back, _ = faults("as it is")
    kept, threads = faults("ready")
    assert kept < given_back / 5
    assert threads == 1
    as_the_user_says, _ = faults("ready", MALLOC_TRIM_THRESHOLD_="0")
    assert as_the_user_says > kept * 5
