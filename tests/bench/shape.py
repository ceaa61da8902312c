"""Rows per second and memory of the commands that read rows and write rows, at two sizes of file.

    python tests/bench/shape.py                       50,000 and 200,000 rows
    ROWS=1000000 python tests/bench/shape.py          one size

Rows as in tests/bench/reading.py, a third of them repeats, one in a hundred from the 2,000 of the test file. Each command is
a process of its own. Seconds are of a core, so that other work on the machine counts little; from them and from the peak of
memory those of a run on a hundred rows are taken, which are the start of Python with torch.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.pairs import write_rows
from tests.bench.reading import rows

TESTED = 2000  # rows of the test file
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "split": ["split", "FILE", "--out", "OUT"],
    "dedupe": ["dedupe", "FILE", "--out", "OUT.jsonl"],
    "dedupe --near": ["dedupe", "FILE", "--near", "--out", "OUT.jsonl"],
    "decontaminate": ["decontaminate", "FILE", "--against", "TEST", "--out", "OUT.jsonl"],
    "mix": ["mix", "FILE:0.9", "TEST:0.1", "--count", "1000", "--out", "OUT.jsonl"],
    "sample": ["sample", "FILE", "--count", "1000", "--out", "OUT.jsonl"],
}
# the peak that Linux knows of a process, said when it ends
PEAK = """
import atexit, runpy, sys
from pathlib import Path
def peak():
    status = Path("/proc/self/status").read_text()
    print("peak", next(line.split()[1] for line in status.splitlines() if "VmHWM" in line), file=sys.stderr)
atexit.register(peak)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    """Measure each command at each size."""
    sizes = [int(os.environ["ROWS"])] if "ROWS" in os.environ else [50_000, 200_000]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "test.jsonl", rows(TESTED))
        for size in (100, *sizes):
            write_rows(folder / f"{size}.jsonl", composed(size))
        for command in COMMANDS:
            start, least = measured(command, folder, 100)
            for size in sizes:
                seconds, peak = measured(command, folder, size)
                print(
                    f"{command:16}{size:9,} rows, {(folder / f'{size}.jsonl').stat().st_size / 1e6:4.0f} MB: "
                    f"{seconds - start:5.1f} s of a core, {size / (seconds - start):8,.0f} rows/s, "
                    f"{(peak - least) / 1e6:5.1f} MB of memory",
                    flush=True,
                )


def composed(size: int) -> Iterator[dict]:
    """`size` rows, each with a number: new ones, some of the test file, and a third that are the first ones again."""
    again, tested = size // 3, min(size // 100, TESTED)
    new = size - again - tested
    parts = (
        islice(rows(TESTED + new), TESTED, None),
        rows(tested),
        islice(rows(TESTED + again), TESTED, None),
    )
    return (row | {"id": number} for number, row in enumerate(chain(*parts)))


def measured(command: str, folder: Path, size: int) -> tuple[float, int]:
    """(seconds of a core, peak in bytes) of one command, its start included."""
    files = {"FILE": folder / f"{size}.jsonl", "TEST": folder / "test.jsonl", "OUT": folder / "out"}
    words = COMMANDS[command]
    for name, path in files.items():
        words = [word.replace(name, str(path)) for word in words]
    began = os.times()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(ROOT / "data" / "build.py"), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    ended = os.times()
    seconds = ended.children_user + ended.children_system - began.children_user - began.children_system
    return seconds, 1024 * int(done.stderr.split("peak")[-1])


if __name__ == "__main__":
    main()
