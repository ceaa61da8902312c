"""A parent that has imported what dpo/train.py imports, and forks for every run: a start costs 0.1 s in place of 3.

It forks before it has computed anything, with a single thread. The child is what `python dpo/train.py FLAGS` is after its
imports: it has its own session, environment, arguments and output, parses its flags, makes and reads every file, and
ends in the same way. A SIGKILL ends it as it ends any other process.

With `die_at` N the child sends itself SIGKILL as it is about to do its N-th operation on a file: to open one for writing,
to make, rename or remove one. So each moment of a save can be asked for by number.
"""

import atexit
import json
import os
import queue
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.torture.jobs import Job

OPERATIONS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


class WarmJob(Job):
    """A run of dpo/train.py in a child of `server`, which is put back into `free` when the run has ended."""

    def __init__(self, free: queue.Queue, words: list, log: Path, environment: dict[str, str], die_at: int = 0):
        self.log = log
        log.touch()
        self.free, self.server, self.code = free, free.get(), None
        asked = {"words": list(map(str, words)), "log": str(log), "environment": environment, "die_at": die_at}
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        self.pid = int(self.server.stdout.readline())

    def poll(self) -> int | None:
        if self.code is None and select.select([self.server.stdout], [], [], 0)[0]:
            self.code = int(self.server.stdout.readline())
            self.free.put(self.server)
        return self.code


def servers(count: int, environment: dict[str, str]) -> queue.Queue:
    """So many warm parents. They end when their input is closed, so with the process that started them."""
    found = queue.Queue()
    for _ in range(count):
        words = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        found.put(subprocess.Popen(words, env=environment, **pipes))
    for server in list(found.queue):
        server.stdout.readline()  # it has imported all
    return found


def serve() -> None:
    """Say when all is imported; then read one run a line from the input, print the child's process id, and when it has ended its
    exit code."""
    import torch._dynamo  # noqa: F401  what the first optimizer step imports

    from dpo.train import Flags, main
    from gpt.command import run

    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if (pid := os.fork()) == 0:
            become(**asked)
            run(main, Flags)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become(words: list[str], log: str, environment: dict[str, str], die_at: int) -> None:
    """In the child: what a shell does before it starts a command."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(ROOT / "dpo/train.py"), *words]
    done = 0

    def count(event: str, given: tuple) -> None:
        nonlocal done
        writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in OPERATIONS:
            done += 1
            if done == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if die_at:
        sys.addaudithook(count)
        atexit.register(lambda: print(f"operations on files: {done}"))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        serve()
