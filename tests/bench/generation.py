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
from pathlib import Path
from random import Random
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from transformers import GPT2LMHeadModel
from transformers.utils import logging

from data.rules import TINY
from gpt.generate import generate
from gpt.model import GPT
from gpt.tokenizer import Tokenizer
from gpt.weights import random_gpt, save_gpt

NEW = 64


def main() -> None:
    logging.set_verbosity_error()
    ours = random_gpt("gpt2", 50257, seed=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_gpt(folder, ours, Tokenizer.load(TINY))
        theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        for batch, rounds in ((1, 5), (32, 3)):
            compare(ours, theirs, batch, rounds)


def compare(ours: GPT, theirs, batch: int, rounds: int) -> None:
    """Print tokens per second of both, and the ratio."""
    rng = Random(batch)
    prompts = [[rng.randrange(50257) for _ in range(rng.randint(16, 64))] for _ in range(batch)]
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
        "dtype": str(next(ours.parameters()).dtype).removeprefix("torch."),
        "batch": batch,
        "tokens/s": round(batch * NEW / ours_s, 1),
        "transformers tokens/s": round(batch * NEW / theirs_s, 1),
        "ratio": round(theirs_s / ours_s, 2),
        "same ids": sum(a == b for a, b in zip(answers["ours"], answers["theirs"])) / batch,
        "spread": [round(max(t) / min(t), 2) for t in times.values()],
    }
    if batch == 1:
        found["of the floor"] = round(floor * NEW / ours_s, 2)
    print(json.dumps(found), flush=True)


@torch.no_grad()
def one_pass(model: GPT) -> None:
    """Every matrix of the model times one vector, and nothing else."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module(torch.ones(1, module.in_features, dtype=module.weight.dtype))


if __name__ == "__main__":
    main()
