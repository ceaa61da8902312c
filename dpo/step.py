"""One step: the policy is asked, a loss is made of what it says, and the gradient is added up.

    rows -> log p per token -> Scores -> loss per pair -> / what the whole step holds -> gradient

The loss of a micro-batch is divided by the pairs (or answer tokens) of the whole step, over all processes, so neither
the micro-batch nor the number of processes changes the gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpo.examples import Examples
from dpo.forward import Way, ask
from dpo.losses import Loss, Scores
from dpo.metrics import Totals, sums
from dpo.order import micro_batches
from dpo.reference import Reference
from dpo.rows import Batch, answer_sums
from gpt.parallel import accumulate


class Plan(NamedTuple):
    """What is asked of the pairs, and how."""

    loss: Loss
    way: Way


def scores_of(
    model: nn.Module, examples: Examples, reference: Reference, rows: Sequence[int], plan: Plan
) -> tuple[Scores, Batch]:
    """What the model says of the pairs `rows`, beside what the reference said."""
    logps, batch = ask(model, examples.ids, rows, plan.way)  # (S,)
    said = reference.of(rows).to(logps.device, non_blocking=True)  # (S,)
    sums_of = (answer_sums(values, batch) for values in (logps, said, torch.ones_like(logps)))
    return Scores(*(side for both in sums_of for side in both)), batch


def add_gradients(
    model: nn.Module, examples: Examples, reference: Reference, indices: list[int], plan: Plan
) -> tuple[Totals, Tensor]:
    """Add the gradient of the step over the pairs `indices` (of all processes) to the parameters.

    Returns the step's totals over all processes, and the largest log-ratio of this process; both stay on the device, which
    nothing here waits for.
    """
    world = plan.way.world
    pairs, tokens = len(indices), int(examples.lengths[indices, 1].sum())
    mine = micro_batches(indices, examples, plan.way.limit, world)
    found, largest = [], torch.zeros((), device=world.device)
    for number, some in enumerate(mine, 1):
        with accumulate(model, last=number == len(mine)):
            # a process without a pair left asks for one all the same, at weight 0: all must do the same number of passes
            scores, batch = scores_of(model, examples, reference, some or indices[:1], plan)
            weight = torch.full_like(scores.chosen, float(bool(some)))
            terms = plan.loss(scores)
            weighted = {name: (losses * weight).sum() for name, losses in terms.items()}
            total = plan.loss.total(weighted, pairs, tokens)
            (total * world.size).backward()  # gradients are averaged over processes: times their number
        found.append(sums(scores, terms, batch, weight, plan.loss))
        largest = torch.maximum(largest, scores.log_ratio.detach().abs().max())
    return Totals.of(found, world), largest


@torch.no_grad()
def held_out_metrics(policy: nn.Module, examples: Examples, reference: Reference, plan: Plan) -> dict[str, float]:
    """The metrics of all `examples`, each pair once over all processes. The policy is put in eval mode."""
    policy.eval()
    found = []
    for some in micro_batches(range(len(examples.ids)), examples, plan.way.limit, plan.way.world):
        scores, batch = scores_of(policy, examples, reference, some or [0], plan)
        weight = torch.full_like(scores.chosen, float(bool(some)))
        found.append(sums(scores, plan.loss(scores), batch, weight, plan.loss))
    return Totals.of(found, plan.way.world).averages(plan.loss)
