"""What the last steps gave, kept on the device until somebody looks.

A GPU computes while the processor prepares its next step. To read a number makes the two wait for each other, so the
numbers of several steps are read together. Where one is not finite, the run ends with the names of the pairs it is of.
"""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from data.tally import rows_listed
from dpo.examples import EMBEDDED, Examples
from dpo.metrics import Totals
from dpo.moving import Moving
from dpo.reference import Reference
from dpo.step import Plan
from dpo.suspects import not_finite
from gpt.command import UserError


class Done(NamedTuple):
    """A step whose numbers nobody has read yet."""

    step: int
    indices: list[int]  # its pairs
    totals: Totals
    norm: Tensor  # of the gradient, before clipping
    rate: float


class Watch:
    """Collects steps; `lines` reads them."""

    def __init__(
        self, policy: nn.Module, examples: Examples, reference: Reference | Moving, plan: Plan, path: str = ""
    ):
        self.policy, self.examples, self.reference, self.plan = policy, examples, reference, plan
        self.path = path or EMBEDDED  # where the rows of `examples` stand
        self.waiting: list[Done] = []
        self.restart()

    def restart(self) -> None:
        """Time that goes by before is not counted."""
        self.began = time.perf_counter()

    def lines(self) -> Iterator[dict]:
        """The metrics of each waiting step. All processes read them together.

        Raises UserError at a step whose loss or gradient is not finite, the same on every process, naming the pairs by
        their rows. From that step on nothing was updated (gpt/optim.py).
        """
        read = [(done, done.totals.averages(self.plan.loss), float(done.norm)) for done in self.waiting]
        speed = sum(len(done.indices) for done in self.waiting) / (time.perf_counter() - self.began)
        self.waiting = []
        for done, line, norm in read:
            if not math.isfinite(line["loss"] + norm):
                raise UserError(
                    f"step {done.step}: the loss is {line['loss']}, the gradient's norm {norm}; nothing was updated. "
                    + self._where(done.indices)
                )
            line |= {"grad_norm": norm, "learning_rate": done.rate, "pairs_per_second": speed}
            yield {"step": done.step, "split": "train", **line}

    def _where(self, indices: list[int]) -> str:
        """Which pairs of a step are not finite, and what to do."""
        found = not_finite(self.policy, self.examples, self.reference, indices, self.plan)
        rows = f"{self.path}, {rows_listed(self.examples.rows[found or indices].tolist())}"
        if found and len(found) < len(indices):
            return f"It comes from {len(found)} of the step's {len(indices)} pairs: {rows}; look there"
        what = "is not finite" if found else "alone is finite"
        return f"Try a lower --lr or --precision fp32. The loss of each of its pairs {what}: {rows}"
