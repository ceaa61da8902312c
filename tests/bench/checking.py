"""Rows per second and memory of `data/build.py check`, on files of two sizes or more.

    python tests/bench/checking.py                     50,000 and 200,000 rows, GPT-2's vocabulary, all tokens counted
    CHECK_COUNTS=100000,1000000 python tests/bench/checking.py

The rows are those of tests/bench/reading.py. Each check is a process of its own, in which `peak` is all that it ever had at
once (VmHWM); what grows from one size to the next is what a row costs. The second check of each
file counts the tokens of 5,000 pairs only (--sample).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.check import counted
from data.findings import findings
from data.pairs import stream_pairs, write_rows
from gpt.tokenizer import Tokenizer
from tests.bench.reading import memory, rows

COUNTS = [int(count) for count in os.environ.get("CHECK_COUNTS", "50000,200000").split(",")]
SAMPLES = (0, 5000)


def main() -> None:
    """Write files of each size, and check each in processes of its own."""
    found = {}
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pairs.jsonl"
            write_rows(file, rows(count))
            for sample in SAMPLES:
                words = [sys.executable, __file__, str(file), str(sample)]
                line = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
                found[sample, count] = line
                print(
                    f"{count:9,} rows, {file.stat().st_size / 1e6:5,.0f} MB, tokens of {sample or count:9,}: "
                    f"{line['seconds']:6.1f} s ({line['cpu']:.1f} s of a core), {count / line['cpu']:8,.0f} rows/s of a core; "
                    f"peak {line['peak']:,.0f} MB",
                    flush=True,
                )
    for sample in SAMPLES:
        for one, other in pairwise(COUNTS):
            more = found[sample, other]["peak"] - found[sample, one]["peak"]
            print(f"--sample {sample}: {1e6 * more / (other - one):,.0f} bytes a row from {one:,} to {other:,} rows")


def measure(file: str, sample: int) -> None:
    """Check the file as the command does, and print one line of figures."""
    tokenizer, dropped = Tokenizer.gpt2(), {}
    began, cpu = time.perf_counter(), time.process_time()
    lines = findings(counted(stream_pairs(file, dropped), tokenizer, sample), dropped, 0.1, 1024)
    line = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "peak": memory("VmHWM")}
    assert lines[0].figures["count"]
    print(json.dumps(line))


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 2 else main()
