"""Jobs that are tortured: started as users start them, watched from outside, killed with all that is below them.

job = Job(words, log, environment)      a process, or a launcher and its workers
workers(job.pid)                        {0: 4711, 1: 4712}: torchrun's, by rank
kill_all(job)                           SIGKILL to each of them, as when a machine is reset
"""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path


class Failed(Exception):
    """What was promised did not hold. The message says what happened."""


def need(held: bool, otherwise: str) -> None:
    """Raises Failed with the text where something does not hold."""
    if not held:
        raise Failed(otherwise)


class Job:
    """A command in a session of its own. What it and its workers say goes into the file `log`."""

    def __init__(self, words: list, log: Path, environment: dict[str, str]):
        self.log = log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                list(map(str, words)),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def poll(self) -> int | None:
        """The exit code, below 0 for the signal that ended it, or None while it lives."""
        return self.process.poll()

    def signal(self, number: int) -> None:
        """To the process alone, as `kill PID` sends it."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """The exit code once it has ended. Raises Failed where it has not after so many seconds."""
        until(lambda: self.poll() is not None, seconds, f"the job has not ended after {seconds:g} s")
        return self.poll()

    def said(self) -> str:
        """What it has printed so far; a line that was drawn over counts as a line."""
        return self.log.read_bytes().decode(errors="replace").replace("\r", "\n")

    def refused(self, *words: str) -> None:
        """Wait for its end. Raises Failed where that is not exit code 2 and one line, with these words in it."""
        code, said = self.wait(60), self.said()
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        need("Traceback" not in said, f"exit code {code} and a traceback: {said.strip().splitlines()[-1]}")
        need(code == 2 and len(lines) == 1, f"exit code {code} and {len(lines)} lines of error: {lines}")
        need(all(word in lines[0] for word in words), f"{words} do not stand in {lines[0]!r}")


def until(holds: Callable[[], object], seconds: float, otherwise: str, every: float = 0.001) -> float:
    """Wait until something holds. Returns the seconds; raises Failed after so many."""
    began = time.monotonic()
    while not holds():
        need(time.monotonic() - began < seconds, otherwise)
        time.sleep(every)
    return time.monotonic() - began


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def family(pid: int) -> list[int]:
    """This process and all below it."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def stopped_family(pid: int) -> Iterator[int]:
    """This process and all below it, each stopped before its children are asked for: so none is born unseen."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        yield pid
        for child in children(pid):
            yield from stopped_family(child)


def alive(pid: int) -> bool:
    """Whether a process runs: one that ended, and that nobody has asked for its exit code, does not."""
    try:
        return not re.search(r"^State:\s+[ZX]", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return False


def kill_all(job: Job) -> None:
    """SIGKILL to the job and everything below it, in any order. Returns when none of them is left."""
    doomed = list(stopped_family(job.pid)) if job.poll() is None else []
    random.shuffle(doomed)
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    job.wait(10)
    until(lambda: not any(map(alive, doomed)), 10, "processes that were sent SIGKILL are alive after 10 s")


def workers(pid: int) -> dict[int, int]:
    """The process id of every worker of torchrun below `pid`, by rank."""
    found = {}
    for child in children(pid):
        with suppress(OSError):
            rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_bytes())
            if rank:
                found[int(rank[1])] = child
        found |= workers(child)
    return found
