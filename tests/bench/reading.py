"""Pairs per second from a file to an epoch that is planned: reading, checking, tokenizing, splitting, ordering.

    python tests/bench/reading.py                     1,000,000 pairs, GPT-2's vocabulary
    PAIRS_COUNT=100000 python tests/bench/reading.py

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
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from data.pairs import write_rows
from data.rules import COURTEOUS, RUDE, styled
from data.tasks import pick, tasks
from dpo.examples import open_examples
from dpo.order import steps_in_epochs, steps_of
from gpt.tokenizer import Tokenizer

COUNT = int(os.environ.get("PAIRS_COUNT", 1_000_000))


def main() -> None:
    """Write the rows, and open them in four ways."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        write_rows(file, rows(COUNT))
        print(f"{COUNT:,} pairs, {file.stat().st_size / 1e6:,.0f} MB; {os.cpu_count()} cores")
        for processes in (1, 2):
            for which in ("first", "second"):
                environment = os.environ | {"GPT_DPO_CACHE": str(Path(folder) / f"cache-{processes}")}
                for line in started(file, processes, environment):
                    print(
                        f"{which:7}opening, {processes} process{'es' * (processes > 1)}: {line['seconds']:6.1f} s "
                        f"({line['cpu']:.1f} s of a core), "
                        f"{COUNT / line['seconds']:9,.0f} pairs/s; then fingerprint {line['fingerprint']:.1f} s, "
                        f"plan {line['plan']:.1f} s; memory own {line['own']:,.0f} MB, peak {line['peak']:,.0f} MB"
                    )


def started(file: Path, processes: int, environment: dict[str, str]) -> list[dict]:
    """What each process says of its opening."""
    launcher = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node".split()
    words = [sys.executable, *([*launcher, str(processes)] if processes > 1 else []), __file__, str(file)]
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
    began, cpu = time.perf_counter(), time.process_time()
    training, held_out = open_examples(file, tokenizer, 1024, 0.1, False, {})
    opened, cpu = time.perf_counter(), time.process_time() - cpu
    pairs, batch = len(training.ids), 64
    met = sum(len(indices) for _, indices in steps_of(1, steps_in_epochs(pairs, batch, 1), pairs, batch, 0))
    assert met == pairs and pairs + len(held_out.ids) == COUNT
    planned = time.perf_counter()
    assert training.fingerprint != held_out.fingerprint
    line = {
        "seconds": opened - began,
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
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
