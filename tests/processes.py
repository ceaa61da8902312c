"""Starting the project's scripts as a user does: in processes of their own, alone or under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

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
