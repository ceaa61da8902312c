"""Starting the project's scripts as a user does: in processes of their own, alone or under torchrun."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]

# Variables of a torchrun that this test run itself may be part of say nothing about the processes that tests start.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")} | {
    "OMP_NUM_THREADS": "1"
}


def command(*arguments, processes: int = 0) -> list[str]:
    """The words of a command line: this Python, and between it and `arguments` torchrun if there are `processes`."""
    launcher = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node".split()
    return [sys.executable, *([*launcher, str(processes)] if processes else []), *map(str, arguments)]


def call(
    *arguments, processes: int = 0, code: int | None = 0, cwd: Path | None = None, limit: int = 120, **environment: str
) -> subprocess.CompletedProcess:
    """Run it to its end and hold it to its exit code (None: any), showing what it said where that differs."""
    words, environment = command(*arguments, processes=processes), ENVIRONMENT | environment
    done = subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True, timeout=limit)
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def gang(script: Path, *arguments, size: int, only: Sequence[int] | None = None, limit: int = 120, **environment: str):
    """`size` processes (or of them `only` some) as torchrun would start them, but quicker: (exit code, stdout, stderr) of
    each, by rank."""
    # a store as torchrun's agent keeps one: its port is surely free
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    fixed = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    fixed |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    started = {
        rank: subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env=ENVIRONMENT
            | fixed
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)}
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (range(size) if only is None else only)
    }
    found = {rank: process.communicate(timeout=limit) for rank, process in started.items()}
    return {rank: (started[rank].returncode, *said) for rank, said in found.items()}
