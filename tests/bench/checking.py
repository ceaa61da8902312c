"""Rows per second and memory of `data/build.py check`, on files of two sizes or more.

    python tests/bench/checking.py                     100,000 and 1,000,000 rows, GPT-2's vocabulary, all tokens counted
    python tests/bench/checking.py --counts 50000 200000

The rows are those of tests/bench/reading.py. Each check is a process of its own, in which `peak` is all that it ever had at
once (VmHWM); what grows from one size to the next is what a row costs. The second check of each
file counts the tokens of 5,000 pairs only (--sample).
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.check import counted
from data.findings import findings
from data.pairs import stream_pairs, write_rows
from gpt.command import UserError, flag, run
from gpt.tokenizer import Tokenizer
from tests.bench.reading import memory, rows
from tests.bench.record import KEEP, Parts, as_called, keep, made_part, where

SAMPLES = (0, 5000)


@dataclass(frozen=True)
class Flags:
    """Measure how fast files are checked, and in how much memory."""

    counts: list = flag(("100000", "1000000"), "rows of each file")
    record: bool = flag(False, KEEP)


def main(flags: Flags) -> None:
    """Write files of each size, and check each in processes of its own."""
    found = []
    if wrong := [count for count in flags.counts if not count.isdecimal()]:
        raise UserError(f"--counts: {wrong[0]!r} is no number of rows")
    for count in map(int, flags.counts):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pairs.jsonl"
            write_rows(file, rows(count))
            for sample in SAMPLES:
                words = [sys.executable, __file__, "measure", str(file), str(sample)]
                line = {"rows": count, "bytes": file.stat().st_size, "sample": sample}
                line |= json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
                found.append(line)
                print(json.dumps(line), flush=True)
    print("\n".join(table(found)))
    if flags.record:
        keep("checking", as_called("python tests/bench/checking.py"), found)


def table(found: list[dict]) -> list[str]:
    """A row for each check, with what a row more costs in memory."""
    head = ["checked", "rows", "file", "of a core", "rows/s of a core", "memory", "a row more"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for sample in SAMPLES:
        own = [one for one in found if one["sample"] == sample]
        what = f"tokens of {sample:,} pairs (`--sample {sample}`)" if sample else "all tokens"
        for before, one in pairwise([None, *own]):
            more = (
                f"{1e6 * (one['peak'] - before['peak']) / (one['rows'] - before['rows']):,.0f} bytes" if before else ""
            )
            times = f"{one['cpu']:.1f} s | {one['rows'] / one['cpu']:,.0f} | {one['peak']:,.0f} MB | {more}"
            lines.append(f"| {what} | {one['rows']:,} | {one['bytes'] / 1e6:,.0f} MB | {times} |")
    return lines


def parts(made: dict) -> Parts:
    """The table, and where it was measured."""
    return {"checking": made_part([where(made)], table(made["figures"]))}


def measure(file: str, sample: int) -> None:
    """Check the file as the command does, and print one line of figures."""
    tokenizer, dropped = Tokenizer.gpt2(), {}
    began, cpu = time.perf_counter(), time.process_time()
    lines = findings(counted(stream_pairs(file, dropped), tokenizer, sample), dropped, 0.1, 1024)
    line = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "peak": memory("VmHWM")}
    assert lines[0].figures["count"]
    print(json.dumps(line))


if __name__ == "__main__":
    measure(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["measure"] else run(main, Flags)
