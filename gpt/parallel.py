"""More than one process: the only file that speaks to the others.

    with join("auto") as world:
        model = replicate(model, world)                     # DDP, or the model itself in one process
        with accumulate(model, last=is_last_micro_batch):   # forward and backward; gradients meet in the last one
            loss.backward()
        add_up(sums, world)                                 # in place, over all processes

One process is not a special case: each of these then does nothing. Gradients are averaged over processes, so a loss
is divided by what the whole step holds and multiplied by `world.size`.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import NamedTuple, TextIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt.device import check_device
from gpt.launched import under_torchrun


class World(NamedTuple):
    """This process (rank) among `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: list) -> list:
        """Every size-th item, from this process's own: together the processes have each item once."""
        return items[self.rank :: self.size]


@contextmanager
def join(device: str, timeout: timedelta = timedelta(minutes=10)) -> Iterator[World]:
    """Meet the other processes that torchrun started; without torchrun be alone. Raises UserError for a missing device."""
    chosen = check_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not under_torchrun():
        yield World(0, 1, chosen)
        return
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1"):
        # gloo would otherwise look for an address of the host name, which a container often cannot resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
        dist.barrier()  # none takes its sockets away while another still reads
    finally:
        gc.collect()  # DDP lies in a cycle; as long as it lives, so do the threads of its process group
        dist.destroy_process_group()


def replicate(model: nn.Module, world: World) -> nn.Module:
    """The same model on every process, its gradients averaged. `model` must be on its device already."""
    if world.size == 1:
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True)  # a GPT has no buffers to keep alike


def accumulate(model: nn.Module, last: bool):
    """Around forward *and* backward of a micro-batch: gradients are exchanged in the last one of a step only."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def add_up(values: Tensor, world: World) -> Tensor:
    """Sum `values` over all processes, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def least(value: int, world: World) -> int:
    """The smallest `value` that a process has, on every process."""
    if world.size == 1:
        return value
    found = torch.tensor(value, device=world.device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def spread(values: Tensor, world: World) -> Tensor:
    """The main process's `values` on every process, in place."""
    if world.size > 1:
        dist.broadcast(values, src=0)
    return values


def agree(text: str, world: World) -> str:
    """The main process's `text` (at most 1,000 bytes of UTF-8), on every process."""
    if world.size == 1:
        return text
    letters = torch.zeros(1000, dtype=torch.uint8, device=world.device)
    encoded = text.encode()
    letters[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
    return bytes(spread(letters, world).tolist()).rstrip(b"\0").decode()


def say(line: str, world: World, file: TextIO | None = None) -> None:
    """Print, once."""
    if world.is_main:
        print(line, file=file, flush=True)
