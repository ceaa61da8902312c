"""Pairs per second from a file to an epoch that is planned: reading, checking, tokenizing, splitting, ordering.

    python tests/bench/reading.py                     1,000,000 pairs, GPT-2's vocabulary
    python tests/bench/reading.py --count 100000

Instruction rows as people have them (a prompt of about 45 tokens in its template, answers of about 15), composed of the
embedded tasks. Each opening is in processes of its own: the first makes the store, the second finds it; then two
processes of torchrun at once, again without a store and with it. "own" is the memory that is a process's alone; "peak"
counts also what is mapped of the store, which processes share and the system takes back when it needs it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.pairs import write_rows
from data.rules import COURTEOUS, RUDE, styled
from data.tasks import pick, tasks
from dpo.examples import open_examples
from dpo.order import steps_in_epochs, steps_of
from gpt.command import check_range, flag, run
from gpt.tokenizer import Tokenizer
from tests.bench.record import KEEP, Parts, as_called, keep, made_part, where


@dataclass(frozen=True)
class Flags:
    """Measure how fast a file of pairs is opened, for the first time and again, by one process and by two."""

    count: int = flag(1_000_000, "pairs in the file")
    record: bool = flag(False, KEEP)


def main(flags: Flags) -> None:
    check_range(flags, ("count",), 100)
    openings = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        write_rows(file, rows(flags.count))
        size = file.stat().st_size
        for processes in (1, 2):
            for which in ("first", "again"):
                environment = os.environ | {"GPT_DPO_CACHE": str(Path(folder) / f"cache-{processes}")}
                for line in started(file, processes, environment):
                    assert line["pairs"] == flags.count
                    openings.append({"which": which, "processes": processes} | line)
                    print(json.dumps(openings[-1]), flush=True)
    figures = {"count": flags.count, "bytes": size, "openings": openings}
    print("\n".join(table(figures)))
    if flags.record:
        keep("reading", as_called("python tests/bench/reading.py"), figures)


def table(figures: dict) -> list[str]:
    """A row for each process of each opening."""
    lines = ["| opened | of a core | pairs/s of a core | own memory | at its peak |", "|---|---|---|---|---|"]
    for one in figures["openings"]:
        same = (one["which"], one["processes"])
        how = f"{same[0]}, {same[1]} process{'es' * (same[1] > 1)}"
        # of two processes one makes the store, and the other waits for it
        most = max(other["cpu"] for other in figures["openings"] if (other["which"], other["processes"]) == same)
        speed = f"{figures['count'] / one['cpu']:,.0f}" if one["which"] == "first" and one["cpu"] == most else ""
        lines.append(f"| {how} | {one['cpu']:.1f} s | {speed} | {one['own']:,.0f} MB | {one['peak']:,.0f} MB |")
    return lines


def parts(made: dict) -> Parts:
    """The table, and of what."""
    found = made["figures"]
    about = f"{found['count']:,} pairs, {found['bytes'] / 1e6:,.0f} MB; {where(made)}"
    return {"reading": made_part([about], table(found))}


def started(file: Path, processes: int, environment: dict[str, str]) -> list[dict]:
    """What each process says of its opening."""
    launcher = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node".split()
    words = [sys.executable, *([*launcher, str(processes)] if processes > 1 else []), __file__, "measure", str(file)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows(count: int) -> Iterator[dict]:
    """`count` instruction rows: two sentences of the embedded tasks each, in an order that makes prompts differ."""
    rng, known = Random(0), tasks(4000)
    for number in range(count):
        one, other = pick(rng, known), pick(rng, known)
        answer = f"{one.answer} Then: {other.answer}"
        yield {
            "instruction": f"{one.instruction} Then do the same for text {number}. {other.instruction}",
            "input": f"{one.input}\n{other.input}",
            "output": answer,
            "chosen": styled(answer, pick(rng, COURTEOUS)),
            "rejected": styled(answer, pick(rng, RUDE)),
        }


def measure(file: str) -> None:
    """Open the file as dpo/job.py does, and print one line of figures."""
    tokenizer = Tokenizer.gpt2()
    cpu = time.process_time()
    training, held_out = open_examples(file, tokenizer, 1024, 0.1, False, {})
    opened, cpu = time.perf_counter(), time.process_time() - cpu
    pairs, batch = len(training.ids), 64
    met = sum(len(indices) for _, indices in steps_of(1, steps_in_epochs(pairs, batch, 1), pairs, batch, 0))
    assert met == pairs
    planned = time.perf_counter()
    assert training.fingerprint != held_out.fingerprint
    line = {
        "pairs": pairs + len(held_out.ids),
        "cpu": cpu,
        "plan": planned - opened,
        "fingerprint": time.perf_counter() - planned,
    }
    line |= {"own": memory("RssAnon"), "peak": memory("VmHWM")}
    os.write(1, f"{json.dumps(line)}\n".encode())  # in one piece: two processes write


def memory(name: str) -> float:
    """Megabytes, as Linux knows them of this process."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) * 1024 / 1e6


if __name__ == "__main__":
    measure(sys.argv[2]) if sys.argv[1:2] == ["measure"] else run(main, Flags)
