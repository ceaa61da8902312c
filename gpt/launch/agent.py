"""torchrun's agent, called as a function: it starts the processes of this machine, and starts them again when one dies.

    job = Job(...); set_environment(job)
    status = run(job, stuck)    0, or 1 when processes failed

The only place that knows how to call torchrun. Each of its settings here was a failure before.
"""

import hashlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gpt.launch.place import Place
from gpt.note import Note, write

GRACE = 27  # seconds that workers have to save and leave, two more than they wait for each other; Slurm kills after 30
UNASKED = 10  # seconds that ended workers may wait for the agent to ask after them; it does so ten times a second


class Job(NamedTuple):
    """A script to run in `processes` processes on each of place.count machines, of which this is one."""

    script: str
    flags: list[str]
    processes: int
    place: Place
    restarts: int  # how often all may be started again
    wait: int  # seconds that the other machines may take to come back then
    identity: str  # what is the same on all machines, and on no others
    address: str  # this machine's, and the interface that has it
    interface: str
    folder: Path  # for what torchrun and its workers note

    @property
    def size(self) -> int:
        return self.processes * self.place.count


def set_environment(job: Job) -> None:
    """What the agent and its workers inherit. What the user has set stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = {
        "OMP_NUM_THREADS": str(max(1, cores // job.processes)),
        "GLOO_SOCKET_IFNAME": job.interface,  # gloo would look up the host's name, which may resolve to nothing
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # its warnings are about names that cannot be looked up
    }
    if job.place.count > 1:
        chosen["NCCL_SOCKET_IFNAME"] = job.interface
    for name, value in chosen.items():
        os.environ.setdefault(name, value)
    # By this workers know that somebody says how they ended, and with whom they end.
    os.environ["GPT_DPO_LAUNCHER"] = str(os.getpid())
    # A store that outlives an attempt has the addresses of dead processes, and the next attempt calls them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"


def run(job: Job, stuck: Callable[[], None]) -> int:
    """Returns 0, or 1 when processes failed for good. Interrupted, when it is raised, first ends the workers.

    stuck: called in a thread, perhaps more than once, when all workers have ended and this does not return.
    """
    from torch.distributed import run as torchrun  # not above: to import torch takes seconds
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError

    if "LOGLEVEL" not in os.environ:
        _quiet(job)
    if job.place.count > 1:
        threading.Thread(target=_watch, args=(stuck,), name="workers", daemon=True).start()
    try:
        torchrun.run(torchrun.parse_args([*map(str, _words(job)), job.script, *job.flags]))
        return 0
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode < 0 and first.exitcode != -signal.SIGTERM:  # by which torchrun ends the others
            _note_killed(job, rank, first.local_rank, signal.Signals(-first.exitcode).name)
    except RendezvousTimeoutError:
        _say(f"error: not all {job.place.count} machines came back within {job.wait} s; start all again with --resume")
    except RendezvousError as error:
        _say(f"error: lost machine 0, where all meet ({error.__cause__ or error}); start all again with --resume")
    return 1


def _watch(stuck: Callable[[], None]) -> None:
    """See that the agent comes back from machine 0, whose store it asks for news all the time.

    Where the network fell silent it waits as long as the kernel repeats its packets, a quarter of an hour: the limit
    that torch's store has for an answer, it has not for the answer to "then never mind".
    """
    asked = time.monotonic()
    while True:
        time.sleep(1)
        if not _all_ended():
            asked = time.monotonic()
        elif time.monotonic() - asked > UNASKED:
            stuck()


def _all_ended() -> bool:
    """Whether this process has children, all of which have ended, and nobody has asked for their exit codes. (Of Linux
    alone.)"""
    with suppress(OSError):  # one of them went at this moment
        children = [pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
        stats = [Path(f"/proc/{pid}/stat").read_text() for pid in children]
        return bool(stats) and all(stat.rpartition(")")[2].split()[0] == "Z" for stat in stats)
    return False


def _quiet(job: Job) -> None:
    """Of what the agent logs, errors are shown, and that it starts the processes again."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    # which process failed: that is the launcher's last word
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)

    def shown(record: logging.LogRecord) -> bool:
        if "attempts left" in str(record.msg):
            others = f", as soon as all {job.place.count} machines are there (within {job.wait} s)"
            _say("starting all processes again, from the newest checkpoint" + others * (job.place.count > 1))
        return record.levelno >= logging.ERROR

    agent = logging.getLogger("torch.distributed.elastic.agent.server.api")
    agent.setLevel(logging.INFO)
    agent.addFilter(shown)


def _words(job: Job) -> list:
    place, run_id = job.place, hashlib.sha256(job.identity.encode()).hexdigest()[:16]
    words = ["--nnodes", place.count, "--nproc-per-node", job.processes, "--max-restarts", job.restarts]
    words += ["--log-dir", job.folder, "--rdzv-backend", "c10d", "--rdzv-id", run_id]
    words += ["--signals-to-handle", "SIGUSR2"]  # which nobody sends: gpt/launch/interrupts.py hears the others
    if place.count == 1:
        # By a file: a port would be open to the whole network, and the agent unpickles what stands in its store.
        endpoint, settings, name = job.folder / "rendezvous", "store_type=file", job.address
    else:
        endpoint = f"{place.address}:{place.port}"
        settings = f"is_host={str(place.rank == 0).lower()},join_timeout={job.wait}"
        # Machines are numbered in the order of these names; the first is called by its name, and no other.
        name = f"node-{place.rank:06}" if place.rank else job.address
    return [*words, "--rdzv-endpoint", endpoint, "--rdzv-conf", settings, "--local-addr", name]


def _note_killed(job: Job, rank: int, local_rank: int, name: str) -> None:
    """A process that a signal killed leaves no note; this stands in its place."""
    hint = " (out of memory? see dmesg)" if name == "SIGKILL" else ""
    times = f" after {job.restarts} restart{'s' * (job.restarts > 1)}" if job.restarts else ""
    line = f"killed by {name}{times}{hint}; continue with --resume"
    attempt = max(job.folder.glob("*/attempt_*"), key=lambda path: int(path.name.removeprefix("attempt_")))
    note = Note(line, 1, "", True, False, rank, job.size, socket.gethostname(), time.time())
    write(note, attempt / str(local_rank) / "error.json")


def _say(line: str) -> None:
    print(line.replace("\n", " "), file=sys.stderr, flush=True)
