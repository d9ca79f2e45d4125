"""What a process asks of the libraries beneath it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest


def test_a_terminal_of_no_columns_silences_nothing() -> None:
    """As of a job whose terminal has no size."""
    done = subprocess.run(
        [sys.executable, "-m", "pdae_cli", "encode"],
        env=os.environ | {"COLUMNS": "0"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: no input")


FAULTS = """
import resource
{before}
import torch

def work():
    for _ in range(50):
        a = torch.ones(1 << 20)  # 4 MiB
        b = a + 1
        del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

print(-work() + work())
"""


def page_faults(before: str, **environment: str) -> int:
    """Pages made anew while two maps of 1,024 are allocated and freed fifty times."""
    ran = subprocess.run(
        [sys.executable, "-c", FAULTS.format(before=before)],
        env={"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_stays_for_what_comes_next() -> None:
    keep = "from pdae_cli.cli.process import keep_memory; keep_memory()"
    assert page_faults(keep) < 1024  # less than one round
    told = page_faults(keep, MALLOC_TRIM_THRESHOLD_="65536", MALLOC_MMAP_THRESHOLD_="65536")
    assert told > 50 * 1024  # the user's setting holds
