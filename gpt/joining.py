"""How processes find each other, make sure that they do the same thing, and part.

    with join("auto", timeout=600) as world:        # all are there, by name; a sum over all of them was right
        must_agree({"lr": 1e-4, ...}, world)        # the same flags, data and versions everywhere
        ...

torchrun has started them and says where they meet: at a store, which keeps short texts for all. Each process writes its
name there, so that a missing one can be named, before the first collective, which would only wait. When a process fails it
writes its last words there. So the others can tell whether all have met the same error, as with a loss that is not
finite, or which of them is gone.
"""

import gc
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from gpt.command import UserError
from gpt.device import check_device
from gpt.ending import EndedBefore, LostContact, end_with_launcher, ended_before, lost_contact
from gpt.launched import attempt_folder, process_count, process_rank, processes_here, under_torchrun
from gpt.parallel import World, add_up, agree

LAST_WORDS = 3.0  # seconds in which the others may say that they end too


@contextmanager
def join(device: str, timeout: float = 600) -> Iterator[World]:
    """Meet the other processes that torchrun started; without torchrun be alone.

    timeout: seconds that a process waits for another, here and in every exchange later.
    Raises UserError for a missing device or process, EndedBefore where going on makes no sense. An exception that ends
    the block in every process alike gets the attribute `everywhere`; one that comes from the loss of another process is
    a LostContact.
    """
    chosen = check_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not under_torchrun():
        yield World(0, 1, chosen)
        return
    end_with_launcher()
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1"):
        # gloo would otherwise look for an address of the host name, which a container often cannot resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    store, world = _meet(chosen, timeout)
    try:
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout),
        )
        _check_sum(world)
        if int(add_up(torch.tensor(int(ended_before() is not None), device=chosen), world)):
            raise EndedBefore
        yield world
        dist.barrier()  # none takes its sockets away while another still reads
    except Exception as error:
        lost = lost_contact(error)
        others = _last_words(store, world, f"{type(error).__name__}: {error}", alike=not lost)
        vars(error)["everywhere"] = not lost and not others
        if lost:
            raise LostContact(lost.replace("another process", _named(others, world))) from error
        raise
    finally:
        gc.collect()  # DDP lies in a cycle; as long as it lives, so do the threads of its process group
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(device: torch.device, timeout: float) -> tuple[dist.Store, World]:
    """The store, when all have come to it. Raises UserError that names those who have not."""
    where, wait = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", timedelta(seconds=timeout)
    rank, size = process_rank(), process_count()
    if processes_here() == size and (folder := attempt_folder()):
        # A file does on one machine, and opens no port to the network. Nor does it outlive a restart, as torchrun's own
        # store does, which then gives the addresses of the dead. (On several machines ./launch.sh has torchrun take a
        # new one each time.)
        where, store = str(folder), dist.FileStore(str(folder / "store"), size)
    else:
        try:
            store, _, _ = next(dist.rendezvous("env://", timeout=wait))
        except (dist.DistError, RuntimeError, OSError) as error:
            raise UserError(
                f"no process answers at {where}, where torchrun wants all to meet: {_short(error)}"
            ) from None
    store.set(f"here {rank}", socket.gethostname())
    with suppress(dist.DistError, RuntimeError):
        store.wait([f"here {other}" for other in range(size)], wait)
        return store, World(rank, size, device)
    missing = [other for other in range(size) if not store.check([f"here {other}"])]
    raise UserError(
        f"{_named(missing, World(rank, size, device))} did not come to {where} within {timeout:g} s; "
        "look at that machine's output, or give it longer with --timeout"
    )


def _check_sum(world: World) -> None:
    """Raises UserError where the first exchange does not give what it must."""
    found = add_up(torch.full((world.size,), world.rank + 1.0, device=world.device), world).tolist()
    right = world.size * (world.size + 1) / 2
    if found != [right] * world.size:
        raise UserError(
            f"the processes add up 1 to {world.size} and get {found[0]:g}, not {right:g}: the network between them "
            "changes numbers; try another interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
        )


def must_agree(values: dict[str, object], world: World) -> None:
    """Raises UserError, in every process, where one has other `values`, or other versions, than process 0; names both."""
    mine = {name: str(value) for name, value in values.items()}
    mine |= {"torch's version": torch.__version__, "Python's version": platform.python_version()}
    lines = [f"{name}\t{value}".replace("\n", " ") for name, value in mine.items()]
    for rank in range(1, world.size):
        theirs = agree("\n".join([socket.gethostname(), *lines]), world, rank).splitlines()
        first = agree("\n".join(lines), world).splitlines()
        host, theirs = theirs[0], dict(line.split("\t", 1) for line in theirs[1:])
        first = dict(line.split("\t", 1) for line in first)
        differ = [
            f"{name} ({theirs.get(name, 'none')}, not {first.get(name, 'none')})"
            for name in first | theirs
            if first.get(name) != theirs.get(name)
        ]
        if differ:
            raise UserError(f"process {rank} on {host} differs from process 0 in {', '.join(differ)}; start all alike")


def _last_words(store: dist.Store, world: World, line: str, alike: bool) -> list[int]:
    """Write `line`, and wait a moment for the others'. Returns who wrote none or, where they must be `alike`, another."""
    said = {world.rank: line}

    def exchange() -> None:
        with suppress(dist.DistError, RuntimeError):  # the store went with the process that kept it
            store.set(f"ended {world.rank}", line)
            while len(said) < world.size:
                for rank in range(world.size):
                    if rank not in said and store.check([f"ended {rank}"]):
                        said[rank] = store.get(f"ended {rank}").decode()
                time.sleep(0.05)

    # in a thread: where the network is silent the store is too, and does not say how long
    asking = threading.Thread(target=exchange, daemon=True)
    asking.start()
    asking.join(LAST_WORDS)
    return [rank for rank in range(world.size) if rank not in said or alike and said[rank] != line]


def _named(ranks: list[int], world: World) -> str:
    if not ranks:
        return f"one of {world.size} processes"
    return f"process{'es' * (len(ranks) > 1)} {', '.join(map(str, ranks))} of {world.size}"


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
