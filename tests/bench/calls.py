"""Starting work.py, one process or several, and reading what it leaves behind.

This file and those that use it import nothing heavy: a process inherits the peak of the one that started it
(ru_maxrss outlives exec), and the benchmark must not add to what it measures.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
REAL_PAIRS = SHARED / "data" / "instruction-data-with-preference.json"


class Failed(Exception):
    """A process of the benchmark ended with an error; the last line that it said."""


def pairs_of(given: str) -> str:
    """The file of pairs that was named, else the real rows; "" for the embedded set where these are not here."""
    return given or (str(REAL_PAIRS) if REAL_PAIRS.is_file() else "")


def environment(cache: str | Path) -> dict[str, str]:
    """That of a process which finds GPT-2's vocabulary, and nothing that another computed."""
    found = os.environ | {"GPT_DPO_CACHE": str(cache)}
    if (SHARED / "tiktoken").is_dir():
        found.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
    return found


def call(what: str, processes: int = 1, **flags) -> None:
    """Run a command of work.py to its end. Several processes are started by torchrun, each with its share of the cores."""
    words, threads = [sys.executable], {}
    if processes > 1:
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
        words += "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node".split()
        words += [str(processes)]
    words += [str(ROOT / "tests/bench/work.py"), what]
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    with tempfile.TemporaryDirectory() as cache:  # of each process its own, so that none finds what another computed
        own = environment(cache) | threads
        done = subprocess.run(words, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["it said nothing"]
        raise Failed(next((line for line in lines if line.startswith("error: ")), lines[-1]))


def read(path: Path) -> dict | list:
    return json.loads(path.read_text())


def measured(folder: Path, system: str, out: Path, steps: int, batch: int, lr: float, device: str, processes: int = 1):
    """One system in a process of its own: {"pairs_per_second", "peak_bytes"}; its model lies in `out`.

    The time is that of the reference pass and all steps.
    """
    start, pairs = folder / "start", folder / "pairs.jsonl"
    call("measure", processes, system=system, init=start, pairs=pairs, out=out, steps=steps, batch=batch, lr=lr,
         device=device)  # fmt: skip
    took = read(out / "result.json")
    seconds = took["reference_seconds"] + took["step_seconds"]
    return {"pairs_per_second": took["pairs"] / seconds, "peak_bytes": took["peak_bytes"]} | took
