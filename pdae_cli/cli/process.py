"""What this process asks of the libraries beneath it, before they are loaded."""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST_OF_OLD = 1 << 25  # bytes, of an older glibc, which refuses more
KEPT = 1 << 30  # bytes: blocks as large as this go back to the system when they are freed


def settle() -> None:
    """Set how threads wait, what becomes of freed memory, and what Pillow and huggingface_hub may
    say, each unless the user's environment does."""
    if not os.environ.get("COLUMNS", "1").strip("0"):
        del os.environ["COLUMNS"]  # a width without room for a character, in which rich is silent
    # Before torch is loaded: threads of GNU OpenMP wait for work by spinning, which takes the cores
    # from everybody else. This many turns of it lose nothing: docs/performance.md.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"
    keep_memory()
    # Before Pillow is: what is decoded in blocks as large as this goes back to the system, smaller
    # ones stay with the thread that decoded them.
    os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")
    # Of what it tries again, which our message says once it has failed.
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
    # Of oddities in pictures that still decode. Here, because reading threads share the filters.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def keep_memory() -> None:
    """Let the C library keep what is freed for what comes next. It would give feature maps back to
    the system after each layer and have their pages made anew for the next: up to a fifth of the
    time of a large batch (docs/performance.md). Of glibc alone, and not where the user says."""
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):  # another C library, or system
        mallopt = ctypes.CDLL(None).mallopt
        # The second of them alone would fix the first at 128 KiB.
        if mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, MOST_OF_OLD):
            mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
