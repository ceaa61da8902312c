"""Rows per second of data/build.py convert, and its memory, for the formats and files that people have.

    python tests/bench/convert.py                     1,000,000 rows, and a tenth of them, of each
    python tests/bench/convert.py --count 100000

The rows are those of tests/bench/reading.py, written as others would write them: with a prompt of 20 words and answers of
10 they are short, so a row costs more than its bytes. Each conversion is a process of its own; "peak" is all its memory
at its largest, which must not grow with the file.
"""

import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.convert import Convert, convert
from data.pairs import write_rows
from gpt.command import check_range, flag, run
from gpt.files import whole
from tests.bench.record import KEEP, Parts, as_called, keep, made_part, where


@dataclass(frozen=True)
class Flags:
    """Measure how fast files are converted, and in how much memory."""

    count: int = flag(1_000_000, "rows of the larger file of each; the smaller one has a tenth")
    record: bool = flag(False, KEEP)


def chat(row: dict) -> dict:
    """As ultrafeedback_binarized has it."""
    asked = {"role": "user", "content": f"{row['instruction']}\n{row['input']}"}
    chosen, rejected = ([asked, {"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected"))
    scores = {"score_chosen": 8.5, "score_rejected": 3.0}
    return {"prompt": asked["content"], "chosen": chosen, "rejected": rejected, "messages": chosen, **scores}


def hh(row: dict) -> dict:
    """As Anthropic's HH has it."""
    before = f"\n\nHuman: {row['instruction']}\n{row['input']}\n\nAssistant: "
    return {name: before + row[name] for name in ("chosen", "rejected")}


def ratings(row: dict) -> dict:
    """As UltraFeedback has it."""
    scored = [{"response": row[name], "overall_score": score} for name, score in (("rejected", 3.0), ("chosen", 8.5))]
    return {"instruction": row["instruction"], "completions": scored}


def parquet(path: Path, made: Iterator[dict]) -> None:
    """Write it in groups of 1,000 rows, which is what datasets does."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    writer = None
    while some := list(islice(made, 1000)):
        table = pyarrow.Table.from_pylist(some)
        writer = writer or ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def packed(path: Path, made: Iterator[dict]) -> None:
    """Write gzip of JSONL."""
    with whole(path, binary=True) as file, gzip.open(file, "wt", compresslevel=1, encoding="utf-8") as lines:
        for row in made:
            lines.write(json.dumps(row) + "\n")


CASES: list[tuple[str, Callable, Callable]] = [
    ("instruction, JSONL", dict, write_rows),
    ("chat, JSONL", chat, write_rows),
    ("chat, gzip", chat, packed),
    ("chat, Parquet", chat, parquet),
    ("hh, JSONL", hh, write_rows),
    ("ratings, JSONL", ratings, write_rows),
]


def main(flags: Flags) -> None:
    """Write each file in two sizes, and convert it."""
    from tests.bench.reading import rows  # which brings torch along: no part of what is measured

    check_range(flags, ("count",), 100)
    found = []
    for name, form, write in CASES:
        for count in (flags.count // 10, flags.count):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "in"
                write(file, map(form, rows(count)))
                words = [sys.executable, __file__, "measure", str(file), str(Path(folder) / "out.jsonl")]
                done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
                line = {"what": name, "rows": count, "bytes": file.stat().st_size}
            found.append(line | json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(found[-1]), flush=True)
    print("\n".join(table(found)))
    if flags.record:
        keep("convert", as_called("python tests/bench/convert.py"), found)


def table(found: list[dict]) -> list[str]:
    """A row for each file."""
    lines = ["| converted | rows | file | of a core | rows/s of a core | memory |", "|---|---|---|---|---|---|"]
    for one in found:
        times = f"{one['cpu']:.1f} s | {one['rows'] / one['cpu']:,.0f} | {one['peak']:,.0f} MB"
        lines.append(f"| {one['what']} | {one['rows']:,} | {one['bytes'] / 1e6:,.0f} MB | {times} |")
    return lines


def parts(made: dict) -> Parts:
    """The table, and where it was measured."""
    return {"convert": made_part([where(made)], table(made["figures"]))}


def measure(file: str, out: str) -> None:
    """Convert, and print one line of figures."""
    began, cpu = time.perf_counter(), time.process_time()
    convert(Convert(files=[file], out=out))
    line = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    status = Path("/proc/self/status").read_text()  # as Linux knows it
    line["peak"] = next(int(one.split()[1]) for one in status.splitlines() if one.startswith("VmHWM")) * 1024 / 1e6
    print(json.dumps(line))


if __name__ == "__main__":
    measure(*sys.argv[2:]) if sys.argv[1:2] == ["measure"] else run(main, Flags)
