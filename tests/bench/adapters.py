"""Peak memory and pairs per second of `--lora 8` beside full fine-tuning: the same pairs and steps, in one run.

    python tests/bench/adapters.py

GPT-2 124M with random weights; the two take turns. Pairs per second are the median of the steps, without the reference
pass, which both have.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpt.command import check_range, flag, run
from tests.bench.calls import ROOT, pairs_of
from tests.bench.record import KEEP, Parts, as_called, keep, made_part, where

WAYS = {"full": [], "`--lora 8`": ["--lora", "8"]}


@dataclass(frozen=True)
class Flags:
    """Measure adapters beside full fine-tuning."""

    pairs: str = flag("", "file of pairs; empty: the real rows where ../shared has them, else the embedded set")
    size: str = flag("gpt2", "of the model, with random weights")
    steps: int = flag(6, "steps of a run")
    batch: int = flag(32, "pairs a step")
    turns: int = flag(2, "runs of each")
    record: bool = flag(False, KEEP)


def main(flags: Flags) -> None:
    check_range(flags, ("steps", "batch", "turns"), 1)
    found: dict[str, list[dict]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(flags.turns):
            for name, more in WAYS.items():
                found[name].append(measured(flags, more, Path(folder, f"{turn} {name}")))
                print(name, json.dumps(found[name][-1]), flush=True)
    print("\n".join(table(found)))
    if flags.record:
        keep("adapters", as_called("python tests/bench/adapters.py"), {"settings": vars(flags), "ways": found})


def measured(flags: Flags, more: list[str], out: Path) -> dict:
    """One run of dpo/train.py: {"speed": pairs a second, "peak": GiB, "trains": what it says of its parameters}"""
    pairs = pairs_of(flags.pairs)
    words = {"pairs": pairs, "init": f"random:{flags.size}", "out": out, "steps": flags.steps, "batch": flags.batch}
    words |= {"held-out": 0.02, "eval-every": 0}
    command = [sys.executable, ROOT / "dpo/train.py", *more]
    command += [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["pairs_per_second"] for line in lines if line["split"] == "train"]
    peak = float(re.search(r"peak memory ([\d.]+) GiB", done.stdout)[1])
    *_, trains = re.findall(r"^(?:model|lora) .*?([\d,]+) parameters", done.stdout, re.MULTILINE)
    return {"speed": median(speeds), "peak": peak, "trains": trains}


def table(found: dict[str, list[dict]]) -> list[str]:
    """The two ways and their ratios."""
    lines = ["| | pairs/s | peak memory | trains |", "|---|---|---|---|"]
    for name, runs in found.items():
        speeds, peaks = ([f"{run[what]:.2f}" for run in runs] for what in ("speed", "peak"))
        lines.append(f"| {name} | {', '.join(speeds)} | {', '.join(peaks)} GiB | {runs[0]['trains']} parameters |")
    full, lora = ([fmean(run[what] for run in runs) for what in ("speed", "peak")] for runs in found.values())
    return [*lines, f"| ratio of the means | {lora[0] / full[0]:.2f} | {lora[1] / full[1]:.2f} | |"]


def parts(made: dict) -> Parts:
    """The table, and where it was measured."""
    settings = made["figures"]["settings"]
    about = f"random:{settings['size']}, {settings['steps']} steps of {settings['batch']} pairs; {where(made)}"
    return {"adapters": made_part([about], table(made["figures"]["ways"]))}


if __name__ == "__main__":
    run(main, Flags)
