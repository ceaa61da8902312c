"""Whose loss is not finite: each pair of a step is asked once more, alone.

    the step     17 4 | 9 23        a NaN in pair 9 is one in pair 23 too, which is read in the same row
    asked again  17 | 4 | 9 | 23    not finite: 9

Nothing was updated since (gpt/optim.py), so the policy says what it said then, but for dropout, which is off here.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dpo.examples import Examples
from dpo.forward import ANY
from dpo.moving import Moving
from dpo.order import Limit, micro_batches
from dpo.reference import Reference
from dpo.step import Plan, scores_of
from dpo.whole_step import WholeStep
from gpt.parallel import World, add_up


@torch.no_grad()
def not_finite(
    policy: nn.Module, examples: Examples, reference: Reference | Moving, indices: list[int], plan: Plan
) -> list[int]:
    """Those of the pairs `indices` whose loss, or else whose score, is not finite; the same list on every process.

    All processes call it together, and ask equally often. The policy is put in eval mode.
    """
    policy.eval()
    way = plan.way._replace(limit=Limit(1, ANY), stop=lambda: None)  # a signal waits: what is wrong is to be said first
    plan, world = plan._replace(way=way), way.world
    reference = reference._replace(way=way) if isinstance(reference, Moving) else reference
    mine = [(some, some or indices[:1]) for some in micro_batches(indices, examples, way.limit, world)]
    parts = [(some, scores_of(policy, examples, reference, asked, plan)[0]) for some, asked in mine]

    def by_scores() -> list[list[int]]:
        return [some for some, scores in parts if some and not _finite(scores)]

    def by_loss() -> list[list[int]]:
        whole = None
        if plan.loss.coupled:
            whole = WholeStep(plan.loss, parts, indices, int(examples.lengths[indices, 1].sum()), world)
        terms = [(some, whole.terms_of(some) if whole else plan.loss(scores)) for some, scores in parts if some]
        return [some for some, losses in terms if not _finite(losses.values())]

    # one score that is not finite makes every coupled loss so; alone, a gradient may be where score is and loss is not
    first, second = (by_scores, by_loss) if plan.loss.coupled else (by_loss, by_scores)
    return _marked(first(), indices, world) or _marked(second(), indices, world)


def _finite(values: Iterable[Tensor | None]) -> bool:
    return all(bool(value.isfinite().all()) for value in values if value is not None)


def _marked(mine: list[list[int]], indices: list[int], world: World) -> list[int]:
    """The pairs that any process has in `mine`, in the order of `indices`."""
    own = {i for (i,) in mine}
    marks = torch.tensor([float(i in own) for i in indices], device=world.device)
    return [i for i, mark in zip(indices, add_up(marks, world).tolist()) if mark]
