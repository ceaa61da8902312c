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
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import NamedTuple, TextIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt.command import UserError

ASK, MOST = 2.0, 16  # seconds, and calls, after which processes ask each other whether to stop


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
    if not _under_torchrun():
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


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def process_rank() -> int:
    """This process's number, known before it has met the others."""
    return int(os.environ["RANK"]) if _under_torchrun() else 0


def process_count() -> int:
    """How many processes torchrun started, or, as launch.sh says beforehand, is about to start."""
    return int(os.environ["WORLD_SIZE"] if _under_torchrun() else os.environ.get("PLANNED_PROCESSES", 1))


def processes_here() -> int:
    """How many of them share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if _under_torchrun() else 1


def check_device(name: str) -> torch.device:
    """The device of this process. Raises UserError where there is none, for this process or one beside it."""
    local_rank = int(os.environ["LOCAL_RANK"]) if _under_torchrun() else 0
    beside = processes_here() if _under_torchrun() else process_count()
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


class Stopped(Exception):
    """A signal ended the run in all processes. The message is one line: where, and how to go on."""


class StopSignal:
    """SIGTERM and SIGINT ask for a stop at the next `check`; a second SIGINT ends the process at once.

    A second SIGTERM does not: torchrun passes on its own to workers that a group signal has reached already, and kills
    after 30 seconds what is still there.
    """

    def __init__(self, world: World):
        self.world, self.came = world, False
        self.every = self.left = 1  # calls of `check` from one question to the next; from now to the next
        self.asked = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        self.came = True
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    def check(self) -> None:
        """Raises Stopped once a process was asked to stop, in all of them at the same call: all must call it equally often.

        A process alone knows at once. Several ask each other about every ASK seconds by the main one's clock, where a
        call comes that often, and at least every MOST calls: not at each, since a GPU has to be waited for.
        """
        if self.came if self.world.size == 1 else self._asked_any():
            raise Stopped("stopped by a signal")

    def _asked_any(self) -> bool:
        self.left -= 1
        if self.left:
            return False
        now = time.monotonic()
        mine = [float(self.came), now - self.asked if self.world.is_main else 0.0]
        came, seconds = add_up(torch.tensor(mine, device=self.world.device), self.world).tolist()
        self.every = self.left = max(1, min(MOST, int(self.every * ASK / max(seconds, 1e-3))))
        self.asked = now
        return came > 0


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a CUDA device, else the most that this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
