"""Memory that a step frees is kept for the next step, on Linux.

By default glibc gives every large block back to the system when it is freed, and gets it again, page by page and
zeroed, a moment later: of a training step of GPT-2 124M on two cores that took a fifth (tests/bench/LOG.md). Pages of
2 MiB, where the system allows them, make what is left of it cheaper.

What is kept has a price: a free block that fits nothing asked for later is memory lost. So the few largest blocks,
such as an embedding's gradient, are given back all the same; and of oneDNN's kernels, one for each new number of rows
and most of a megabyte, only the last are kept (by default the last 1,024).
"""

import ctypes
import os
import sys

# Of mallopt(3), from malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """To be called before torch holds its first large tensor; does nothing on other systems."""
    if not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first large block
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")  # oneDNN reads it at its first product
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return
    mallopt(M_MMAP_THRESHOLD, 64 * 2**20)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
