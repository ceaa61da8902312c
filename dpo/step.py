"""One step: the policy is asked, a loss is made of what it says, and the gradient is added up.

    rows -> log p per token -> Scores -> loss per pair -> / what the whole step holds -> gradient

The loss of a micro-batch is divided by the pairs (or answer tokens) of the whole step, over all processes, so neither
the micro-batch nor the number of processes changes the gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpo.losses import Loss, Scores
from dpo.metrics import averages, sums
from dpo.order import micro_batches
from dpo.rows import Batch, answer_sums, batch_of, token_logps
from dpo.start import Examples
from gpt.parallel import World, accumulate


class Plan(NamedTuple):
    """How the policy is asked, in training and in evaluation alike."""

    loss: Loss
    micro: int  # pairs per forward pass of this process
    autocast: Callable  # () -> the context of a forward pass
    world: World


def ask(model: nn.Module, examples: Examples, reference: Tensor, rows: list[int], plan: Plan) -> tuple[Scores, Batch]:
    """What the model says of the pairs `rows`, beside what the reference said: reference (all pairs, 2), on the CPU."""
    batch = batch_of(examples.ids, rows).to(plan.world.device)
    with plan.autocast():
        logp = token_logps(model, batch)  # (B, T)
    said = reference[rows].to(logp.device)  # (B, 2)
    return Scores(
        *answer_sums(logp, batch.branch), said[:, 0], said[:, 1], *answer_sums(torch.ones_like(logp), batch.branch)
    ), batch


def add_gradients(
    model: nn.Module, examples: Examples, reference: Tensor, indices: list[int], plan: Plan, expect_zero: bool
) -> dict[str, float]:
    """Add the gradient of the step over the pairs `indices` (of all processes) to the parameters; return its metrics.

    expect_zero: no update was made yet, so the policy is the reference and every log-ratio is 0 to rounding. Raises
    RuntimeError where it is not: then the two are asked in different ways, and every later figure would be wrong.
    """
    pairs, tokens = len(indices), sum(len(examples.ids[i].chosen) for i in indices)
    mine = micro_batches(indices, examples.ids, plan.micro, plan.world)
    found = []
    for number, some in enumerate(mine, 1):
        with accumulate(model, last=number == len(mine)):
            # a process without a pair left asks for one all the same, at weight 0: all must do the same number of passes
            scores, batch = ask(model, examples, reference, some or indices[:1], plan)
            weight = torch.full_like(scores.chosen, float(bool(some)))
            terms = plan.loss(scores)
            weighted = {name: (losses * weight).sum() for name, losses in terms.items()}
            (
                plan.loss.total(weighted, pairs, tokens) * plan.world.size
            ).backward()  # gradients are averaged: times size
        if expect_zero and scores.log_ratio.abs().max() > ZERO:
            raise RuntimeError(
                f"before the first update the policy is the reference, but a log-ratio is {scores.log_ratio.abs().max():.3g}"
            )
        found.append(sums(scores, terms, batch, weight, plan.loss))
    return averages(found, plan.loss, plan.world)


ZERO = 0.25  # a summed log-ratio before the first update: float32 rounding gives 1e-4 at most, bfloat16's 0.02 a sum


@torch.no_grad()
def held_out_metrics(policy: nn.Module, examples: Examples, reference: Tensor, plan: Plan) -> dict[str, float]:
    """The metrics of all `examples`, each pair once over all processes. The policy is put in eval mode."""
    policy.eval()
    found = []
    for some in micro_batches(list(range(len(examples.ids))), examples.ids, 2 * plan.micro, plan.world):
        scores, batch = ask(policy, examples, reference, some or [0], plan)
        found.append(
            sums(scores, plan.loss(scores), batch, torch.full_like(scores.chosen, float(bool(some))), plan.loss)
        )
    return averages(found, plan.loss, plan.world)
