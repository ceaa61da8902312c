"""The systems that are measured, each as one function that runs in a process of its own.

    ours        dpo/train.py, through its own main
    seed fp32   the book's loop over the functions of dpo/plain.py, policy and live reference, as written
    seed bf16   the same under torch.autocast
    trl ...     tests/bench/peer.py

All do the same: the paper's DPO loss on summed log-probabilities with beta 0.1, the same weights to start from, the
same ids, the same pairs in the same order (dpo/order.py), the same rate in each step, AdamW with betas 0.9 and 0.95 and
weight decay 0.01, no clipping. Models are opened and texts are made ids before the clock starts.

The seed's `compute_logprobs` takes the mean over an answer. Times the answer's length that is the sum, so the loop here
differs from the book's in B multiplications a forward pass, and optimizes what the others do.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dpo import train
from dpo.examples import Examples, open_examples
from dpo.order import pairs_of_step
from dpo.plain import compute_dpo_loss, compute_logprobs
from dpo.rows import Ids
from gpt.command import flag
from gpt.config_json import read_config
from gpt.device import check_device, peak_memory
from gpt.launched import process_rank
from gpt.model import GPT
from gpt.optim import learning_rate
from gpt.tokenizer import Tokenizer
from gpt.weights import load_gpt, save_gpt

SEED, BETA, BETAS, WEIGHT_DECAY = 0, 0.1, (0.9, 0.95), 0.01
PRECISIONS = {"seed fp32": None, "seed bf16": torch.bfloat16}


@dataclass(frozen=True)
class Work:
    """Measure one system in this process; --out/result.json and --out/model are what comes of it."""

    system: str = flag(help="which: ours, seed fp32, seed bf16, trl bf16 or trl bf16 precomputed")
    init: str = flag(help="model folder to start from")
    pairs: str = flag(help="JSONL file of pairs, all to train on")
    out: str = flag(help="folder, absent or empty")
    steps: int = flag(help="optimizer steps")
    batch: int = flag(help="pairs a step")
    lr: float = flag(help="rate at the start; half a cosine down to 0")
    device: str = flag("auto", "cpu, cuda or auto")


class Took(NamedTuple):
    """What was measured."""

    pairs: int
    reference_seconds: float  # 0 where the reference is asked within the steps
    step_seconds: float
    peak_bytes: int  # of this process, its libraries included; on CUDA what was allocated there


def measure(work: Work) -> None:
    """Run the system and write what it took beside the model that came out.

    `cores`: how many it had on average, from opening the model to saving it. Fewer than there are threads, less the little
    that is done in one, means that something else had them, and that the seconds say little.
    """
    began = time.perf_counter()
    if work.system == "ours":
        took = ours(work)
    elif work.system in PRECISIONS:
        took = seed(work, PRECISIONS[work.system])
    else:
        from tests.bench import peer

        took = peer.trl(work, precomputed=work.system.endswith("precomputed"))
    if took:
        cores = time.process_time() / (time.perf_counter() - began)
        Path(work.out, "result.json").write_text(json.dumps(took._asdict() | {"cores": cores}))


def ours(work: Work) -> Took | None:
    """dpo/train.py with the flags that make its work the others'. Under torchrun None but in process 0.

    Seconds are its own: of the pass in run.json, of each step in metrics.jsonl. The peak is the whole run's, its last
    checkpoint and the saved model included.
    """
    flags = train.Flags(
        pairs=work.pairs, init=work.init, out=work.out, loss="dpo", beta=BETA, steps=work.steps, batch=work.batch,
        lr=work.lr, warmup=0.0, weight_decay=WEIGHT_DECAY, grad_clip=0.0, held_out=0.0, eval_every=0, seed=SEED,
        device=work.device,
    )  # fmt: skip
    train.main(flags)
    if process_rank() > 0:
        return None
    lines = [json.loads(line) for line in Path(work.out, "metrics.jsonl").read_text().splitlines()]
    seconds = sum(line["pairs"] / line["pairs_per_second"] for line in lines)
    reference = json.loads(Path(work.out, "run.json").read_text())["reference"]
    peak = peak_memory(check_device(work.device))
    return Took(sum(line["pairs"] for line in lines), reference["seconds"], seconds, peak)


def seed(work: Work, precision: torch.dtype | None) -> Took:
    """The book's loop: four padded forward passes a batch, AdamW as torch makes it."""
    device, examples, tokenizer = check_device(work.device), opened(work), Tokenizer.load(work.init)
    policy, reference = load_gpt(work.init).to(device), load_gpt(work.init).to(device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=work.lr, betas=BETAS, weight_decay=WEIGHT_DECAY)
    policy.train()
    began = time.perf_counter()
    for step in range(1, work.steps + 1):
        batch = collated([examples.ids[i] for i in step_pairs(work, examples, step)], tokenizer.end_of_text, device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, work.steps, work.lr, warmup=0.0)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            loss = loss_of_batch(batch, policy, reference)
        loss.backward()
        optimizer.step()
        loss.item()  # the book adds it up
    took = Took(work.steps * work.batch, 0.0, time.perf_counter() - began, peak_memory(device))
    save_gpt(Path(work.out, "model"), policy, tokenizer)
    return took


def opened(work: Work) -> Examples:
    """The pairs as the ids that dpo/train.py makes of them."""
    context = read_config(Path(work.init, "config.json")).n_positions
    return open_examples(work.pairs, Tokenizer.load(work.init), context, 0.0, False, {})[0]


def step_pairs(work: Work, examples: Examples, step: int) -> list[int]:
    """Indices of the pairs of a step, the same ones for every system."""
    return pairs_of_step(step, len(examples.ids), work.batch, SEED)


def collated(pairs: list[Ids], filler: int, device: torch.device) -> dict[str, Tensor]:
    """The book's batch: both sides padded to the longest sequence of either, masks that are True at the answers."""
    longest = max(len(ids.prompt) + max(len(ids.chosen), len(ids.rejected)) for ids in pairs)
    batch = {}
    for side in ("chosen", "rejected"):
        answers = [getattr(ids, side) for ids in pairs]
        rows = [ids.prompt + answer for ids, answer in zip(pairs, answers)]
        masks = [[False] * len(ids.prompt) + [True] * len(answer) for ids, answer in zip(pairs, answers)]
        batch[side] = torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=device)
        batch[side + "_mask"] = torch.tensor([m + [False] * (longest - len(m)) for m in masks], device=device)
    return batch


def loss_of_batch(batch: dict[str, Tensor], policy: GPT, reference: GPT) -> Tensor:
    """compute_dpo_loss_batch of dpo/plain.py on sums in place of means."""
    policy_chosen, policy_rejected = summed(policy, batch, "chosen"), summed(policy, batch, "rejected")
    with torch.no_grad():
        reference_chosen, reference_rejected = summed(reference, batch, "chosen"), summed(reference, batch, "rejected")
    return compute_dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, BETA)[0]


def summed(model: Callable, batch: dict[str, Tensor], side: str) -> Tensor:
    """log p of each answer, (B,)."""
    mask = batch[side + "_mask"]
    return compute_logprobs(model(batch[side]), batch[side], mask) * mask[:, 1:].sum(-1)
