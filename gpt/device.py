"""The device of a process, and how much of its memory was used."""

import os
import resource
import sys

import torch

from gpt.command import UserError
from gpt.launched import process_count, processes_here, under_torchrun


def check_device(name: str) -> torch.device:
    """The device of this process. Raises UserError where there is none, for this process or one beside it."""
    local_rank = int(os.environ["LOCAL_RANK"]) if under_torchrun() else 0
    beside = processes_here() if under_torchrun() else process_count()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
        if beside > torch.cuda.device_count():
            raise UserError(
                f"--device cuda: {beside} processes, but {torch.cuda.device_count()} devices; "
                "start one process per device (--nproc_per_node)"
            )
        return torch.device("cuda", local_rank)
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch sees no Apple GPU here; use --device cpu")
    return torch.device(name)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a CUDA device, else the most that this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
