"""How cost grows: with the model, the prompt, the batch and the number of processes. `./launch.sh bench growth`.

    python tests/bench/growth.py --pairs FILE --scans size,prompt

Each line is a process of its own, or two under torchrun with half of the cores each. Pairs/s count the reference pass, as
in tests/bench/table.py; of two processes the peak is the first one's. The seed's loop under bf16 stands beside ours, but
with two processes, which it knows nothing of. Prompts are lengthened by other pairs' texts, as far as the context goes.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpt.command import UserError, check_range, flag, run
from tests.bench.calls import Failed, call, measured, pairs_of, read
from tests.bench.record import KEEP, Parts, as_called, keep, made_part, where

# What each scan changes; the rest is --size, --batch, the prompts as they are, and one process.
SCANS = {
    "size": ("tiny", "gpt2", "gpt2-medium"),
    "prompt": (64, 256, 768),
    "batch": (4, 8, 16, 32),
    "processes": (1, 2),
}


@dataclass(frozen=True)
class Flags:
    """Measure how pairs/s and memory go with the size, the prompt, the batch and the number of processes."""

    scans: str = flag(",".join(SCANS), "which, with commas between")
    systems: str = flag("ours,seed bf16", "ours, seed fp32, seed bf16 or several, with commas between")
    size: str = flag("gpt2", "of the model where the size is not what changes")
    batch: int = flag(8, "pairs a step where the batch is not what changes")
    steps: int = flag(3, "steps of a run")
    pairs: str = flag("", "file of pairs; empty: the real rows where ../shared has them, else the embedded set")
    device: str = flag("auto", "auto is cuda where there is one, else cpu", choices=("auto", "cpu", "cuda"))
    out: str = flag("growth.json", "where the figures go, as a list of objects")
    record: bool = flag(False, KEEP)


def main(flags: Flags) -> None:
    check_range(flags, ("batch", "steps"), 1)
    scans = [name.strip() for name in flags.scans.split(",")]
    if unknown := [name for name in scans if name not in SCANS]:
        raise UserError(f"--scans: there is no {unknown[0]!r}; there are {', '.join(SCANS)}")
    print(
        "| what | value | system | pairs/s | ms a pair | peak a process | tokens of a row |\n|---|---|---|---|---|---|---|"
    )
    found = []
    for scan in scans:
        for value in SCANS[scan]:
            with tempfile.TemporaryDirectory() as folder:
                found += lines_of(flags, scan, value, Path(folder))
    Path(flags.out).write_text(json.dumps(found, indent=2) + "\n")
    if flags.record:
        keep(
            "growth",
            as_called("./launch.sh bench growth"),
            {"size": flags.size, "batch": flags.batch, "steps": flags.steps, "lines": found},
        )


def lines_of(flags: Flags, scan: str, value: str | int, folder: Path) -> list[dict]:
    """Measure each system at one value of one scan, and print its lines."""
    setting = {"size": flags.size, "batch": flags.batch, "prompt": 0, "processes": 1} | {scan: value}
    processes, found = setting.pop("processes"), []
    pairs = pairs_of(flags.pairs)
    try:
        call("prepare", out=folder, pairs=pairs, steps=flags.steps, device=flags.device, **setting)
    except Failed as why:
        raise UserError(str(why).removeprefix("error: ")) from None
    lengths = read(folder / "facts.json")["lengths"]
    row = lengths["prompt"] - 1 + lengths["chosen"] + lengths["rejected"]
    for system in (name.strip() for name in flags.systems.split(",")):
        if system != "ours" and processes > 1:
            continue
        out = folder / "out"
        try:
            took = measured(folder, system, out, flags.steps, setting["batch"], 1e-5, flags.device, processes)
        except Failed as why:
            print(f"| {scan} | {value} | {system} | not measured: {why} | | | |", flush=True)
            continue
        finally:
            rmtree(out, ignore_errors=True)
        speed, peak = took["pairs_per_second"], took["peak_bytes"]
        figures = f"{speed:.2f} | {1000 / speed:.0f} | {peak / 2**30:.2f} GiB | {row:.0f}"
        print(f"| {scan} | {value} | {system} | {figures} |", flush=True)
        found.append({scan: value, "system": system, "pairs_per_second": speed, "peak_bytes": peak, "row_tokens": row})
    return found


def parts(made: dict) -> Parts:
    """A table with a line for each value of each scan, the systems beside each other."""
    found = made["figures"]["lines"]
    systems = list(dict.fromkeys(line["system"] for line in found))
    rows = ["| what changes | tokens of a row | " + " | ".join(systems) + " |", "|---|---|" + "---|" * len(systems)]
    for scan, value in dict.fromkeys((scan, line[scan]) for line in found for scan in SCANS if scan in line):
        own = {line["system"]: line for line in found if line.get(scan) == value}
        figures = (
            f"{own[name]['pairs_per_second']:.2f}, {own[name]['peak_bytes'] / 2**30:.2f} GiB" if name in own else ""
            for name in systems
        )
        rows.append(f"| {said(scan, value)} | {next(iter(own.values()))['row_tokens']:.0f} | {' | '.join(figures)} |")
    return {"growth": made_part([f"{made['figures']['steps']} steps of each; {where(made)}"], rows)}


def said(scan: str, value: int | str) -> str:
    """A value of a scan in words."""
    words = {"size": f"model {value}", "prompt": f"prompts of {value} tokens", "batch": f"batch of {value}"}
    return words.get(scan, f"{value} process{'es' * (value != 1)}")


if __name__ == "__main__":
    run(main, Flags)
