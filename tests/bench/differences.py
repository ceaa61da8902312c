"""What can be measured of the seed's functions beside ours in a few seconds, on the first 32 pairs of the embedded set.

The policy has been trained for a few steps, so that its gains are not 0; the reference is its start. Both ways see the
same pairs; the seed's are padded rows, one for each answer (dpo/plain.py), ours one tree (dpo/rows.py).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dpo.examples import Examples
from dpo.forward import Way, fitting
from dpo.losses import Scores, parse_loss
from dpo.losses.pairwise import dpo, dpo_norm
from dpo.plain import compute_dpo_loss, compute_dpo_loss_batch
from dpo.reference import reference_logps
from dpo.rows import collate
from dpo.start import open_model
from dpo.step import Plan, add_gradients, held_out_metrics
from gpt.model import GPT
from gpt.tokenizer import Tokenizer
from gpt.weights import fingerprint
from tests.bench.systems import BETA, collated, loss_of_batch, summed
from tests.bench.teaching import ONE, Case, cut, first_embedded, taught

PAIRS, STEPS = 32, 5
GAINS = (4.0, -6.0)  # of a chosen and a rejected answer, in nats, for the tables on paper


class Ground(NamedTuple):
    """A policy that has moved, its start, and some pairs."""

    policy: GPT
    reference: GPT
    tokenizer: Tokenizer
    pairs: Examples


def ground(steps: int = STEPS) -> Ground:
    """What everything here is measured on."""
    reference, tokenizer, _ = open_model("")
    pairs = first_embedded(PAIRS, tokenizer, reference.config.n_positions)
    *_, (_, policy) = taught(Case("dpo"), pairs, steps, PAIRS)
    return Ground(policy.eval(), reference.eval(), tokenizer, pairs)


def start_table() -> list[str]:
    """The first loss and its gradient, for betas of all sizes."""
    policy, tokenizer, _ = open_model("")
    pairs = first_embedded(PAIRS, tokenizer, policy.config.n_positions)
    rows = [["", "loss", "d loss / d log π(chosen)", "d loss / d log π(rejected)", "norm over all weights"]]
    for beta in (0.01, 0.1, 1.0, 10.0):
        spec = f"dpo(beta={beta:g})"
        loss, gradient = through_the_tree(policy, policy, pairs, spec)
        sides = [torch.zeros(1, requires_grad=True) for _ in range(2)]
        zero = torch.zeros(1)
        pulls = torch.autograd.grad(dpo(Scores(*sides, zero, zero, zero, zero), beta).sum(), sides)
        rows.append(
            [f"`{spec}`", f"{loss:.4f}", *(f"{float(pull):+.4f}" for pull in pulls), f"{float(gradient.norm()):.3f}"]
        )
    return markdown(rows)


def scale_table() -> list[str]:
    """A loss of means beside one of sums whose beta is divided by the tokens of both answers."""
    rows = [["tokens of both answers", "`dpo_norm(beta=0.1)`", "`dpo`, beta 0.1 / tokens", "`dpo(beta=0.1)`"]]
    for tokens in (5, 10, 20, 100):
        s = scores(tokens, tokens)
        losses = (dpo_norm(s, 0.1), dpo(s, 0.1 / tokens), dpo(s, 0.1))
        rows.append([str(tokens), *(f"{float(loss):.4f}" for loss in losses)])
    return markdown(rows)


def scores(chosen_len: int, rejected_len: int) -> Scores:
    """A pair with the gains GAINS."""
    return Scores(*(torch.tensor([float(n)]) for n in (*GAINS, 0, 0, chosen_len, rejected_len)))


def seed_table() -> list[str]:
    """Each difference between the seed's functions and the trainer, and what it amounts to."""
    return markdown([["", "the seed", "here", "how far apart"], *seed_rows(ground())])


def seed_rows(at: Ground) -> Iterator[list[str]]:
    """The rows of that table. Gradients are compared as vectors: the length of their difference by that of ours."""
    padded = {name: padded_batch(at, name) for name in ("ours", "end", "header", "seed")}
    mean = {name: gradient_of(at.policy, mean_loss(at, batch)) for name, batch in padded.items()}
    total = {name: gradient_of(at.policy, sum_loss(at, batch)) for name, batch in padded.items()}
    loss, gradient = through_the_tree(at.policy, at.reference, at.pairs, f"dpo(beta={BETA})")

    yield ["log-probabilities", "means: loss " + four(mean["ours"][0]), "sums: loss " + four(total["ours"][0]),
           f"gradient {float(total['ours'][1].norm() / mean['ours'][1].norm()):.1f} times as long"]  # fmt: skip
    for name, what in (("end", "end-of-text"), ("header", "last line of the template")):
        scored = ("not scored", "scored") if name == "end" else ("scored", "not scored")
        for kind, found in (("means", mean), ("sums", total)):
            yield [f"{what}, with {kind}", *scored, f"gradient {apart(found[name][1], found['ours'][1])}"]
    four_passes = 4 * padded["ours"]["chosen"].numel()
    batch = collate(at.pairs.ids)
    yield ["tokens that a model reads", f"{four_passes:,} in 4 passes", f"{2 * batch.tokens.numel():,} in 2 passes",
           f"{four_passes / (2 * batch.tokens.numel()):.1f} times as many"]  # fmt: skip
    yield ["the same sums on both ways", "loss " + four(total["ours"][0]), "loss " + four(loss),
           f"gradient {apart(total['ours'][1], gradient)}"]  # fmt: skip
    gains, metrics = plain_gains(at, padded["ours"]), tree_metrics(at)
    for side in ("chosen", "rejected"):
        reward = metrics[f"rewards/{side}"]
        yield [
            f"reward, {side}",
            f"{gains[side]:+.4f}, without beta",
            f"{reward:+.4f}",
            f"{gains[side] / reward:.1f} times as large",
        ]


def padded_batch(at: Ground, name: str) -> dict[str, Tensor]:
    """The pairs as the book's batch, their answers cut in this way."""
    return collated(list(cut(at.pairs, name, at.tokenizer).ids), at.tokenizer.end_of_text, torch.device("cpu"))


def mean_loss(at: Ground, batch: dict[str, Tensor]) -> Tensor:
    """The seed's own."""
    return compute_dpo_loss_batch(batch, at.policy, at.reference, BETA)[0]


def sum_loss(at: Ground, batch: dict[str, Tensor]) -> Tensor:
    """The same on sums."""
    return loss_of_batch(batch, at.policy, at.reference)


def gradient_of(policy: GPT, loss: Tensor) -> tuple[float, Tensor]:
    """(the loss, its gradient over all weights as one vector)"""
    parts = torch.autograd.grad(loss, list(policy.parameters()))
    return loss.item(), torch.cat([part.flatten() for part in parts])


def through_the_tree(policy: GPT, reference: GPT, pairs: Examples, spec: str) -> tuple[float, Tensor]:
    """The same as the trainer has it."""
    plan = Plan(parse_loss(spec), Way(fitting(policy.config, ONE), "fp32", ONE))
    said = reference_logps(reference, pairs, range(len(pairs.ids)), plan.way, fingerprint(reference))
    policy.zero_grad(set_to_none=True)
    totals, _ = add_gradients(policy, pairs, said, list(range(len(pairs.ids))), plan)
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
    policy.zero_grad(set_to_none=True)
    return totals.averages(plan.loss)["loss"], gradient


@torch.no_grad()
def plain_gains(at: Ground, batch: dict[str, Tensor]) -> dict[str, float]:
    """What compute_dpo_loss gives as rewards, of sums."""
    four = [summed(model, batch, side) for model in (at.policy, at.reference) for side in ("chosen", "rejected")]
    _, chosen, rejected = compute_dpo_loss(*four, BETA)
    return {"chosen": chosen.item(), "rejected": rejected.item()}


def tree_metrics(at: Ground) -> dict[str, float]:
    """What the trainer writes of these pairs."""
    plan = Plan(parse_loss(f"dpo(beta={BETA})"), Way(fitting(at.policy.config, ONE), "fp32", ONE))
    said = reference_logps(at.reference, at.pairs, range(PAIRS), plan.way, fingerprint(at.reference))
    return held_out_metrics(at.policy, at.pairs, said, plan)


def apart(one: Tensor, other: Tensor) -> str:
    """How far a gradient is from another, by the length of that one."""
    share = float((one - other).norm() / other.norm())
    return "the same to 1e-4" if share < 1e-4 else f"{share:.3f} apart"


def four(value: float) -> str:
    return f"{value:.4f}"


def markdown(rows: list[list[str]]) -> list[str]:
    """A table, its first row the heading."""
    head, *rest = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rest)]
