"""A reference that follows the policy (TR-DPO: Gorbatovski et al. 2024, arXiv 2404.09656).

    every n steps    reference <- mix * policy + (1 - mix) * reference        weight by weight

The paper's hard update is a mix of 1 every some hundred steps, its soft one a mix of 0.5 or 0.6. DPO holds the policy near where
it began; this holds it near where it was a while ago, so it may go further before it is over-optimized. With each move
log-ratios go back towards 0: rewards are measured against the reference of the moment, and do not add up over moves.

Such a reference cannot be asked beforehand (dpo/reference.py). It is a second model in memory and a forward pass more in
every step.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpo.examples import Examples
from dpo.forward import Way, ask
from gpt.model import GPT
from gpt.parallel import parameters_at_rest


class Moving(NamedTuple):
    """What the reference of the moment says of `examples`. Stands in for dpo.reference.Reference."""

    model: nn.Module
    examples: Examples
    way: Way
    every: int
    mix: float
    computed: int = 0  # pairs that were asked beforehand
    seconds: float = 0.0
    digest: str = ""  # there are no numbers to compare

    @property
    def described(self) -> str:
        """For the person who waits."""
        return f"reference moves {self.mix:g} of the way to the policy every {self.every} steps"

    @torch.no_grad()
    def of(self, rows: Sequence[int]) -> Tensor:
        """log pi_ref of every answer token of the pairs `rows`, (S,), in the order in which a batch has them."""
        return ask(self.model, self.examples.ids, rows, self.way).logps

    @torch.no_grad()
    def follow(self, policy: nn.Module, step: int) -> None:
        """Move, where `step` is one to move after."""
        if step % self.every == 0:
            pairs = zip(parameters_at_rest(self.model).values(), parameters_at_rest(policy).values(), strict=True)
            for own, other in pairs:
                own.lerp_(other, self.mix)


def frozen_copy(model: GPT) -> GPT:
    """A copy in eval mode that does not train."""
    return copy.deepcopy(model).eval().requires_grad_(False)
