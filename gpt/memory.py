"""What a step would wait for memory: for the system to hand it out, for a GPU to fetch it.

Memory that a step frees is kept for the next step, on Linux. By default glibc gives every large block back to the system
when it is freed, and gets it again, page by page and zeroed, a moment later: of a training step of GPT-2 124M on two
cores that took a fifth (tests/bench/LOG.md).

oneDNN keeps too: a kernel for each new number of rows, most of a megabyte, by default the last 1,024 of them. The last
128 are enough for a step.

A GPU fetches by itself what lies in pinned memory, which the system never moves. For any other the processor waits until
the GPU has done all that it was told before.
"""

import ctypes
import os
import sys

import torch
from torch import Tensor

# Of mallopt(3), from malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """To be called before torch holds its first large tensor; does nothing on other systems."""
    if not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")  # oneDNN reads it at its first product
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return
    # before 2.35 glibc takes no more than 32 MiB. Where it takes neither, it is to go on raising both thresholds by
    # itself, which it would not once told of the other
    if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the processor's on the device. A GPU is not waited for."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
