"""Tokens per second of gpt/generate.py beside `transformers` generate: same weights, prompts, dtype, length, in one run.

    python tests/bench/generation.py

GPT-2 124M with random weights, greedy, no end of text, so that both must make every token. The time includes reading
the prompts. Rounds alternate; the ratio is of the medians. With nn.Linear a token at batch 1 cannot cost less than one bare
pass over the weights, which is timed too: "of the floor" is above 1 where we are faster than that.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from torch import nn
from transformers import GPT2LMHeadModel
from transformers.utils import logging

from data.rules import TINY
from gpt.command import UserError, flag, run
from gpt.generate import generate
from gpt.model import GPT
from gpt.tokenizer import Tokenizer
from gpt.weights import random_gpt, save_gpt
from tests.bench.record import KEEP, Parts, as_called, keep, made_part, where

NEW, LENGTHS = 64, (16, 64)  # tokens: of an answer; of the shortest and the longest prompt
# name: (type, prompts at once, rounds)
CASES = {
    f"{name}, batch {batch}": (dtype, batch, rounds)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    for batch, rounds in ((1, 5), (32, 3))
}


@dataclass(frozen=True)
class Flags:
    """Measure tokens per second of sampling beside transformers."""

    cases: list = flag((), f"which; none: all of {', '.join(map(repr, CASES))}")
    record: bool = flag(False, KEEP)


def main(flags: Flags) -> None:
    if unknown := set(flags.cases) - set(CASES):
        raise UserError(f"--cases: there is no {min(unknown)!r}; there are {', '.join(CASES)}")
    logging.set_verbosity_error()
    ours = random_gpt("gpt2", 50257, seed=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_gpt(folder, ours, Tokenizer.load(TINY))
        theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    found = {}
    for name, (dtype, batch, rounds) in CASES.items():
        if not flags.cases or name in flags.cases:
            found[name] = compare(ours.to(dtype), theirs.to(dtype), batch, rounds)
            print(name, json.dumps(found[name]), flush=True)
    print("\n".join(table(found)))
    if flags.record:
        figures = {"cases": found, "threads": torch.get_num_threads(), "transformers": transformers.__version__}
        keep("generation", as_called("python tests/bench/generation.py"), figures)


def compare(ours: GPT, theirs, batch: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of both, and the ratio."""
    rng = Random(batch)
    prompts = [[rng.randrange(50257) for _ in range(rng.randint(*LENGTHS))] for _ in range(batch)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def theirs_once():
        with torch.no_grad():
            return theirs.generate(
                ids, attention_mask=attention, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0
            )[:, width:].tolist()

    ways = {"ours": lambda: generate(ours, prompts, NEW), "theirs": theirs_once, "pass": lambda: one_pass(ours)}
    times = {name: [] for name in ways}
    answers = {name: way() for name, way in ways.items()}  # warm
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    ours_s, theirs_s, floor = (median(times[name]) for name in ways)
    found = {
        "tokens/s": round(batch * NEW / ours_s, 1),
        "transformers tokens/s": round(batch * NEW / theirs_s, 1),
        "ratio": round(theirs_s / ours_s, 2),
        "same ids": sum(a == b for a, b in zip(answers["ours"], answers["theirs"])),
        "prompts": batch,
        "spread": [round(max(t) / min(t), 2) for t in times.values()],
    }
    if batch == 1:
        found["of the floor"] = round(floor * NEW / ours_s, 2)
    return found


@torch.no_grad()
def one_pass(model: GPT) -> None:
    """Every matrix of the model times one vector, and nothing else."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module(torch.ones(1, module.in_features, dtype=module.weight.dtype))


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each case, and what a bare pass over the weights says of batch 1."""
    lines = ["| | ours | transformers | ratio | same ids |", "|---|---|---|---|---|"]
    for name, one in found.items():
        same = "all" if one["same ids"] == one["prompts"] else f"{one['same ids']} of {one['prompts']} rows"
        speeds = f"{one['tokens/s']:.1f} | {one['transformers tokens/s']:.1f} | {one['ratio']:.2f}"
        lines.append(f"| {name} | {speeds} | {same} |")
    for name, one in found.items():
        if "of the floor" in one:
            lines.append(f"| {name}, beside a bare pass over the weights | | | {one['of the floor']:.2f} | |")
    return lines


def parts(made: dict) -> Parts:
    """The table, and where it was measured."""
    found = made["figures"]
    about = f"transformers {found['transformers']}; {found['threads']} threads on {where(made)}"
    return {"generation": made_part([about], table(found["cases"]))}


if __name__ == "__main__":
    run(main, Flags)
