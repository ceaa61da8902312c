"""The loss of a whole step where pairs depend on each other (aot, kto), as a sum that micro-batches add up one by one.

    1  every micro-batch of every process is scored without gradient, and the scores are gathered: (B,) of the whole step
    2  loss(scores), and d loss / d score of each answer: its pull
    3  every micro-batch is scored again, and gives (pull * score).sum(), whose gradient is the loss's

So neither the micro-batch nor the number of processes changes anything. The price is a second forward pass.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from dpo.losses import Loss, Scores
from gpt.parallel import World, add_up

OF_THE_POLICY = ("chosen", "rejected", "heads")  # the scores that have a gradient


class WholeStep:
    """What the loss says of the pairs `indices` together, of which this process scored `parts`: (pairs, their scores)."""

    def __init__(
        self, loss: Loss, parts: Sequence[tuple[list[int], Scores]], indices: Sequence[int], tokens: float, world: World
    ):
        self.place = {i: k for k, i in enumerate(indices)}
        scores = self._gathered([(some, one) for some, one in parts], world)
        names = [name for name in OF_THE_POLICY if getattr(scores, name) is not None]
        scores = scores._replace(**{name: getattr(scores, name).requires_grad_() for name in names})
        with torch.enable_grad():
            terms = loss(scores)
            total = loss.total({name: values.sum() for name, values in terms.items()}, len(indices), tokens)
            pulls = torch.autograd.grad(total, [getattr(scores, name) for name in names], allow_unused=True)
        self.terms = {name: values.detach() for name, values in terms.items()}  # (B,) each
        self.pulls = {name: pull for name, pull in zip(names, pulls) if pull is not None}

    def terms_of(self, some: Sequence[int]) -> dict[str, Tensor]:
        """The losses of these pairs, by the names of the terms."""
        return {name: values[self._places(some)] for name, values in self.terms.items()}

    def share_of(self, some: Sequence[int], scores: Scores, weight: Tensor) -> Tensor:
        """What these pairs add to the loss, as far as its gradient goes."""
        at = self._places(some)
        parts = [(pull[..., at] * getattr(scores, name) * weight).sum() for name, pull in self.pulls.items()]
        return reduce(add, parts)

    def _places(self, some: Sequence[int]) -> list[int]:
        return [self.place[i] for i in some]

    def _gathered(self, parts: Sequence[tuple[list[int], Scores]], world: World) -> Scores:
        """The scores of all pairs, in the order of the step, of every process."""
        fields: list[Any] = []  # as Scores has them, some of which may be absent
        for values in zip(*(scores for _, scores in parts)):
            if values[0] is None:
                fields.append(None)
                continue
            field = values[0].new_zeros(*values[0].shape[:-1], len(self.place))
            for (some, _), value in zip(parts, values):
                if some:  # an empty one holds a pair that counts for nothing
                    field[..., self._places(some)] = value
            fields.append(add_up(field, world))
        return Scores(*fields)
