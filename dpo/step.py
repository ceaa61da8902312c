"""One step: the policy is asked, a loss is made of what it says, and the gradient is added up.

    rows -> log p per token -> Scores -> loss per pair -> / what the whole step holds -> gradient

The loss of a micro-batch is divided by the pairs (or answer tokens) of the whole step, over all processes, so neither
the micro-batch nor the number of processes changes the gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dpo.examples import Examples
from dpo.losses import Loss, Scores
from dpo.metrics import averages, sums
from dpo.order import micro_batches
from dpo.rows import Batch, answer_sums, batch_of, token_logps
from gpt.model import GPTConfig
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
    model: nn.Module, examples: Examples, reference: Tensor, indices: list[int], plan: Plan, zero: float | None
) -> dict[str, float]:
    """Add the gradient of the step over the pairs `indices` (of all processes) to the parameters; return its metrics.

    zero: where no update was made yet, so that the policy is the reference, the size up to which a log-ratio is
    rounding. Raises RuntimeError where one is larger: then the two are asked in different ways, and every later figure
    would be wrong.
    """
    pairs, tokens = len(indices), int(examples.lengths[indices, 1].sum())
    mine = micro_batches(indices, examples.ids, plan.micro, plan.world)
    found = []
    for number, some in enumerate(mine, 1):
        with accumulate(model, last=number == len(mine)):
            # a process without a pair left asks for one all the same, at weight 0: all must do the same number of passes
            scores, batch = ask(model, examples, reference, some or indices[:1], plan)
            weight = torch.full_like(scores.chosen, float(bool(some)))
            terms = plan.loss(scores)
            weighted = {name: (losses * weight).sum() for name, losses in terms.items()}
            total = plan.loss.total(weighted, pairs, tokens)
            (total * plan.world.size).backward()  # gradients are averaged over processes: times their number
        if zero is not None and scores.log_ratio.abs().max() > zero:
            raise RuntimeError(
                f"before the first update the policy is the reference, but a log-ratio is {scores.log_ratio.abs().max():.3g}"
            )
        found.append(sums(scores, terms, batch, weight, plan.loss))
    return averages(found, plan.loss, plan.world)


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


def fitting(config: GPTConfig, lengths: np.ndarray, device: torch.device) -> int:
    """How many pairs of these lengths (n, 3) a forward pass may take: what fits 2 GiB of activations, and on CPU 2,048
    tokens, since more of them leave the cache and pad each other (1.2M parameters: faster by 26 pairs than by 64)."""
    longest, answers = int(lengths.sum(1).max()) - 1, int(lengths[:, 1:].sum(1).max())
    # floats a row: about 34 C a token in each layer, two (T, T) of each head, two (N, V) for the answers' logits
    layer = longest * (34 * config.n_embd + 2 * config.n_head * longest)
    floats = config.n_layer * layer + 2 * answers * config.vocab_size
    return max(1, min(2 * 2**30 // (4 * floats), 2048 // longest if device.type == "cpu" else len(lengths)))
