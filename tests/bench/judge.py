"""The one judge of what every system trained: float32, plain, nothing shared with what is measured.

Held-out pairs, two padded forward passes of each model, the paper's loss on sums with beta 0.1 (dpo/plain.py), and the
start as the reference. Of the start itself it is ln 2 = 0.6931. It runs in a process of its own, so that its memory is
nobody's.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dpo.examples import open_examples
from dpo.rows import Ids
from gpt.command import flag
from gpt.config_json import read_config
from gpt.device import check_device
from gpt.model import GPT
from gpt.tokenizer import Tokenizer
from gpt.weights import load_gpt
from tests.bench.systems import BETA, collated, summed

TOGETHER = 4  # pairs of like length in one forward pass


@dataclass(frozen=True)
class Judge:
    """The held-out loss of models, written to --out as a list; the start's own comes first."""

    init: str = flag(help="model folder that all started from")
    held_out: str = flag(help="JSONL file of pairs")
    models: list = flag(help="model folders or run folders")
    out: str = flag(help="JSON file to write")
    device: str = flag("auto", "cpu, cuda or auto")


def judge(flags: Judge) -> None:
    device, tokenizer = check_device(flags.device), Tokenizer.load(flags.init)
    context = read_config(Path(flags.init, "config.json")).n_positions
    pairs = sorted(open_examples(flags.held_out, tokenizer, context, 0.0, False, {})[0].ids, key=lambda ids: ids.length)
    reference = margins(load_gpt(flags.init).to(device), pairs, tokenizer.end_of_text)
    found = [held_out_loss(reference, reference)]
    for model in flags.models:
        found.append(held_out_loss(margins(load_gpt(model).to(device), pairs, tokenizer.end_of_text), reference))
    Path(flags.out).write_text(json.dumps(found))


@torch.no_grad()
def margins(model: GPT, pairs: list[Ids], filler: int) -> Tensor:
    """log p(chosen) - log p(rejected) of each pair, (pairs,)."""
    device, found = next(model.parameters()).device, []
    for start in range(0, len(pairs), TOGETHER):
        batch = collated(pairs[start : start + TOGETHER], filler, device)
        found.append(summed(model, batch, "chosen") - summed(model, batch, "rejected"))
    return torch.cat(found)


def held_out_loss(policy: Tensor, reference: Tensor) -> float:
    """The mean DPO loss of these margins."""
    return float(-F.logsigmoid(BETA * (policy - reference)).mean())
