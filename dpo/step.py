"""One step: the policy is asked, a loss is made of what it says, and the gradient is added up.

    rows -> log p per token -> Scores -> loss per pair -> / what the whole step holds -> gradient

The loss of a micro-batch is divided by the pairs (or answer tokens) of the whole step, over all processes, so neither
the micro-batch nor the number of processes changes the gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpo.examples import Examples
from dpo.forward import Way, ask
from dpo.losses import Loss, Scores
from dpo.metrics import Totals, sums
from dpo.moving import Moving
from dpo.order import micro_batches
from dpo.reference import Reference
from dpo.rows import Batch, answer_sums, shared_length
from dpo.whole_step import WholeStep
from gpt.parallel import accumulate


class Plan(NamedTuple):
    """What is asked of the pairs, and how."""

    loss: Loss
    way: Way


def scores_of(
    model: Callable[..., Any], examples: Examples, reference: Reference | Moving, rows: Sequence[int], plan: Plan
) -> tuple[Scores, Batch]:
    """What the model says of the pairs `rows`, beside what the reference said."""
    logps, squares, batch = ask(model, examples.ids, rows, plan.way, squares=plan.loss.needs("wpo"))
    said = reference.of(rows).to(logps.device, non_blocking=True)  # (S,)
    lengths = answer_sums(torch.ones_like(logps), batch)  # (2, B)
    sums = torch.cat([answer_sums(logps, batch), answer_sums(said, batch)])  # (4, B)
    scores = Scores(*sums, *lengths)
    if plan.loss.needs("ld_alpha"):
        common = shared_length(batch, lengths)
        heads = [answer_sums(torch.where(common, values, 0), batch) for values in (logps, said)]
        scores = scores._replace(heads=torch.cat(heads))
    if squares is not None:
        likely = answer_sums((logps - squares).detach(), batch) / lengths
        scores = scores._replace(weight=likely.sum(0).exp().clamp(max=1))
    if plan.loss.needs("margin"):
        margin = torch.from_numpy(examples.margins[list(rows)])
        scores = scores._replace(margin=margin.to(logps.device, non_blocking=True))
    return scores, batch


def add_gradients(
    model: nn.Module,
    examples: Examples,
    reference: Reference | Moving,
    indices: list[int],
    plan: Plan,
    accumulate: Callable = accumulate,
    backward: Callable[[Tensor], object] = Tensor.backward,
) -> tuple[Totals, Tensor]:
    """Add the gradient of the step over the pairs `indices` (of all processes) to the parameters.

    accumulate, backward: where another library than gpt/parallel.py has set the model up, its own ways to do these two
    things (docs/interop.md has Lightning Fabric's). It must average gradients over processes.

    Returns the step's totals over all processes, and the largest log-ratio of this process; both stay on the device, which
    nothing here waits for.
    """
    world, loss = plan.way.world, plan.loss
    pairs, tokens = len(indices), int(examples.lengths[indices, 1].sum())
    # a process without a pair left asks for one all the same, at weight 0: all must do the same number of passes
    mine = [(some, some or indices[:1]) for some in micro_batches(indices, examples, plan.way.limit, world)]
    whole = None
    if loss.coupled:
        devices = [world.device] if world.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):  # dropout draws the same again below
            parts = [(some, scores_of(model, examples, reference, asked, plan)[0]) for some, asked in mine]
        whole = WholeStep(loss, parts, indices, tokens, world)
    found, largest = [], torch.zeros((), device=world.device)
    for number, (some, asked) in enumerate(mine, 1):
        with accumulate(model, last=number == len(mine)):
            scores, batch = scores_of(model, examples, reference, asked, plan)
            weight = torch.full_like(scores.chosen, float(bool(some)))
            if whole:
                terms, total = whole.terms_of(asked), whole.share_of(asked, scores, weight)
            else:
                terms = loss(scores)
                total = loss.total({name: (one * weight).sum() for name, one in terms.items()}, pairs, tokens)
            backward(total * world.size)  # gradients are averaged over processes: times their number
        found.append(sums(scores, terms, batch, weight, loss))
        largest = torch.maximum(largest, scores.log_ratio.detach().abs().max())
    return Totals.of(found, world), largest


@torch.no_grad()
def held_out_metrics(
    policy: nn.Module, examples: Examples, reference: Reference | Moving, plan: Plan
) -> dict[str, float]:
    """The metrics of all `examples`, each pair once over all processes. The policy is put in eval mode.

    A loss that couples pairs sees all of them at once.
    """
    policy.eval()
    world, loss, every = plan.way.world, plan.loss, range(len(examples.ids))
    batches = micro_batches(every, examples, plan.way.limit, world)
    mine = tqdm(batches, desc="held out", unit="batch", leave=False, delay=1, disable=not world.is_main)
    parts = [(some, *scores_of(policy, examples, reference, some or [0], plan)) for some in mine]
    whole = None
    if loss.coupled:
        tokens = int(examples.lengths[:, 1].sum())
        whole = WholeStep(loss, [(some, scores) for some, scores, _ in parts], every, tokens, world)
    found = []
    for some, scores, batch in parts:
        terms = whole.terms_of(some or [0]) if whole else loss(scores)
        found.append(sums(scores, terms, batch, torch.full_like(scores.chosen, float(bool(some))), loss))
    return Totals.of(found, world).averages(loss)


def check_unmoved(log_ratio: float, numbers: str) -> None:
    """Raises RuntimeError where a log-ratio is more than rounding though the policy is the reference still: then the two
    are asked in different ways, and every later figure would be wrong."""
    if not log_ratio <= {"fp32": 0.01, "bf16": 0.25}[numbers]:
        raise RuntimeError(f"before the first update the policy is the reference, but a log-ratio is {log_ratio:.3g}")
