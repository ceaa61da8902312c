"""What a launch finds on its machine before it speaks to another: variables, interfaces, the output folder, memory.

Each check yields what is wrong, a line each with the fix, and calls `warn` for what only may be.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from gpt.launch.knock import plain
from gpt.launch.network import Interface, in_time, interfaces, is_loopback

MASTER = "MASTER_ADDR", "MASTER_PORT"
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
GPUS = Path("/dev/nvidiactl")  # exists where there is a CUDA device
SHARED_MEMORY, LITTLE = Path("/dev/shm"), 256 * 2**20


def stale_variables(nodes: int, warn: Callable[[str], None]) -> Iterator[str]:
    """What a launcher sets for its processes, found before the launch. It is wrong where it tells of another launch.

    torchrun sets its own for the processes that it starts, so most of it is only confusing. But whoever has
    TORCHELASTIC_RUN_ID takes itself for such a process, and a Kubernetes job whose machines have WORLD_SIZE in place of
    NNODES would train the same model on each.
    """
    names = LAUNCHED if nodes > 1 else LAUNCHED + MASTER
    found = {name: os.environ[name] for name in names if name in os.environ}
    shown = ", ".join(f"{name}={plain(value, 40)}" for name, value in found.items())
    unset = f"unset {' '.join(found)}"
    master = found.get("MASTER_ADDR", "localhost")
    if "TORCHELASTIC_RUN_ID" in found:
        yield f"{shown}: this shell takes itself for a process that torchrun has started; {unset}"
    elif found.get("WORLD_SIZE", "1") != "1" and not is_loopback(master):
        several = "NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT"
        yield f"{shown} tell of a job on several machines, and NNODES does not; set {several} for one, or {unset}"
    elif found:
        warn(f"{shown}: left over from another launch, and not used in this one; {unset}")


def wrong_interfaces(nodes: int, warn: Callable[[str], None]) -> Iterator[str]:
    """Interfaces that gloo or nccl are told to use and cannot. Of nccl's rules for them only plain names are read."""
    known = interfaces()
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        value, is_gloo = os.environ.get(variable, ""), variable.startswith("GLOO")
        if not value or not known or (value.startswith("^") and not is_gloo):
            continue
        for name in value.split(","):
            chosen = {each: known[each] for each in known if each == name or (not is_gloo and _nccl_means(name, each))}
            fault = _fault_of(name, chosen, known, nodes)
            if fault and (is_gloo or GPUS.exists()):
                yield f"{variable}={plain(value, 60)}: {fault}, or unset {variable}"
            elif fault:
                warn(f"{variable}={plain(value, 60)}: {fault}, or unset {variable}")
            elif nodes > 1 and set(chosen) <= {"lo", "docker0"}:
                warn(f"{variable}={name} reaches no other machine, and this launch has {nodes}; unset {variable}")


def _nccl_means(name: str, interface: str) -> bool:
    """nccl takes a name for the beginning of one, unless there is a `=` before it."""
    return interface == name[1:] if name.startswith("=") else interface.startswith(name)


def _fault_of(name: str, chosen: dict[str, Interface], known: dict[str, Interface], nodes: int) -> str:
    """What keeps all of the chosen interfaces from use, and the fix; empty where one can be used."""
    if not chosen:
        return f"there is no interface {plain(name, 20)!r}; take one of {', '.join(sorted(known))}"
    if not any(each.up for each in chosen.values()):
        return f"interface {name} is down; ip link set {name} up"
    if not any(each.addresses for each in chosen.values()):
        return f"interface {name} has no IPv4 address; take another"
    if nodes > 1 and not any(each.linked for each in chosen.values()):
        return f"interface {name} is without a link; see its cable, or its other end"
    return ""


def wrong_folder(out: Path, limit: float) -> Iterator[str]:
    """What keeps a run from being written to the folder `out`, which need not exist. Nothing is left behind."""
    try:
        in_time(limit, _try_out, out)
    except TimeoutError:
        yield f"--out {out}: its file system does not answer within {limit:.0f} s; name a folder on another one"
    except OSError as error:
        yield f"--out {out}: {error.filename or out}: {error.strerror}; name a folder that can be written, renamed and locked"


def _try_out(out: Path) -> None:
    """Make a file, lock it and rename it, as a run does. Raises OSError."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if there == out.absolute() and _is_as_good(there.parent, there):
        there = there.parent  # another machine that looks into a new, empty run folder should find nothing
    with TemporaryDirectory(prefix=".preflight-", dir=there) as folder:
        first, second = Path(folder, "first"), Path(folder, "second")
        with open(first, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OSError(error.errno, f"files cannot be locked ({error.strerror})", str(there)) from None
            file.write("as a run would")
        os.replace(first, second)


def _is_as_good(parent: Path, folder: Path) -> bool:
    """Whether what can be done in `parent` can be done in `folder`."""
    return parent.stat().st_dev == folder.stat().st_dev and all(os.access(each, os.W_OK) for each in (parent, folder))


def little_memory(processes: int, warn: Callable[[str], None]) -> Iterator[str]:
    """nccl's processes on one machine speak through shared memory, of which a container has 64 MB unless told otherwise."""
    if processes > 1 and GPUS.exists() and SHARED_MEMORY.exists():
        room = os.statvfs(SHARED_MEMORY)
        if room.f_bsize * room.f_blocks < LITTLE:
            warn(
                f"{SHARED_MEMORY} has {room.f_bsize * room.f_blocks >> 20} MB, nccl may need more; docker run --shm-size=1g"
            )
    yield from ()
