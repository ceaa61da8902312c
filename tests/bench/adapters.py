"""Peak memory and pairs per second of `--lora 8` beside full fine-tuning: the same pairs and steps, in one run.

    python tests/bench/adapters.py PAIRS.json

GPT-2 124M with random weights; the two take turns. Pairs per second are the median of the steps, without the reference
pass, which both have.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
WAYS = {"full": [], "lora 8": ["--lora", "8"]}


def main(pairs: str) -> None:
    found = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2):
            for name, flags in WAYS.items():
                out = Path(folder) / f"{name} {turn}"
                command = [
                    sys.executable,
                    ROOT / "dpo/train.py",
                    "--pairs",
                    pairs,
                    "--init",
                    "random:gpt2",
                    "--out",
                    out,
                ]
                command += ["--steps", "6", "--batch", "32", "--held-out", "0.02", "--eval-every", "0", *flags]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
                steps = [line["pairs_per_second"] for line in lines if line["split"] == "train"]
                peak = float(re.search(r"peak memory ([\d.]+) GiB", done.stdout)[1])
                memory = re.search(r"^memory +(.*)", done.stdout, re.M)[1]
                found[name].append((median(steps), peak))
                print(f"{name:8}{median(steps):6.2f} pairs/s, peak {peak:.2f} GiB; {memory}", flush=True)
    full, lora = ([median(values) for values in zip(*found[name])] for name in WAYS)
    print(f"lora / full: {lora[0] / full[0]:.2f} x pairs/s, {lora[1] / full[1]:.2f} x peak memory")


if __name__ == "__main__":
    main(sys.argv[1])
