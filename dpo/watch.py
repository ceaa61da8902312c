"""What the last steps gave, kept on the device until somebody looks.

A GPU computes while the processor prepares its next step. To read a number makes the two wait for each other, so the
numbers of several steps are read together.
"""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from dpo.examples import Examples
from dpo.losses import Loss
from dpo.metrics import Totals
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

    def __init__(self, loss: Loss, examples: Examples):
        self.loss, self.examples = loss, examples
        self.waiting: list[Done] = []
        self.restart()

    def restart(self) -> None:
        """Time that goes by before is not counted."""
        self.began = time.perf_counter()

    def lines(self) -> Iterator[dict]:
        """The metrics of each waiting step.

        Raises UserError at a step whose loss or gradient is not finite, naming its rows. From that step on nothing was
        updated (gpt/optim.py).
        """
        read = [(done, done.totals.averages(self.loss), float(done.norm)) for done in self.waiting]
        speed = sum(len(done.indices) for done in self.waiting) / (time.perf_counter() - self.began)
        self.waiting = []
        for done, line, norm in read:
            if not math.isfinite(line["loss"] + norm):
                rows = ", ".join(map(str, self.examples.rows[done.indices]))
                raise UserError(
                    f"step {done.step}: the loss is {line['loss']}, the gradient's norm {norm}; nothing was updated. Try a lower "
                    f"--lr or --precision fp32. The step's pairs are rows {rows}"
                )
            line |= {"grad_norm": norm, "learning_rate": done.rate, "pairs_per_second": speed}
            yield {"step": done.step, "split": "train", **line}
