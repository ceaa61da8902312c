"""A pair as one row with two branches: the prompt is read once, both answers hang from it.

    prompt  10 11 12     chosen  20 21 0     rejected  30 0         (0 is end-of-text)

    tokens     10 11 | 12 20 21 | 12 30 |  0
    targets     .  . | 20 21  0 | 30  0 |  .        . is IGNORE
    positions   0  1 |  2  3  4 |  2  3 |  0
    branch      0  0 |  1  1  1 |  2  2 | -1        0 trunk  1 chosen  2 rejected  -1 padding

    may look:  key is not later, and key is in the trunk or in the query's own branch

Each branch begins with a copy of the last prompt token, so that every place in a branch has exactly one target, and
places restart where the trunk ends. A row is P - 1 + C + R tokens long where two rows of their own would be 2P + C + R,
and each answer has exactly the log-probability, and the gradient, that it would have alone (tests/test_rows.py).
An SFT row is a row with one branch.

Shapes: B rows, T tokens in the longest row, P, C, R tokens of prompt, chosen, rejected.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gpt.model import GPT, IGNORE

TRUNK, CHOSEN, REJECTED, PADDING = 0, 1, 2, -1


class Ids(NamedTuple):
    """A pair as token ids. Each answer ends with its one end-of-text; an SFT row has an empty `rejected`."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        """The tokens of its row."""
        return len(self.prompt) - 1 + len(self.chosen) + len(self.rejected)


class Row(NamedTuple):
    """One pair as four lists of equal length, the columns of the picture."""

    tokens: list[int]
    targets: list[int]
    positions: list[int]
    branch: list[int]


class Batch(NamedTuple):
    """Rows of equal length, padded at the right: four tensors (B, T)."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    branch: Tensor

    def to(self, device) -> "Batch":
        return Batch(*(part.to(device, non_blocking=True) for part in self))


def make_row(prompt: Sequence[int], *answers: Sequence[int]) -> Row:
    """The row of a prompt (at least one token) and its answers, each with its end-of-text: chosen, then rejected."""
    *trunk, last = prompt
    tokens, targets, branch = list(trunk), [IGNORE] * len(trunk), [TRUNK] * len(trunk)
    positions = list(range(len(trunk)))
    for number, answer in enumerate(answers, CHOSEN):
        tokens += [last, *answer[:-1]]
        targets += answer
        positions += range(len(trunk), len(trunk) + len(answer))
        branch += [number] * len(answer)
    return Row(tokens, targets, positions, branch)


def collate(rows: Sequence[Row]) -> Batch:
    """Rows to a batch. Padding is known by its branch, never by a token id."""
    T = max(len(row.tokens) for row in rows)

    def column(name: str, filler: int) -> Tensor:
        return torch.stack(
            [pad(torch.tensor(getattr(row, name)), (0, T - len(row.tokens)), value=filler) for row in rows]
        )

    return Batch(column("tokens", 0), column("targets", IGNORE), column("positions", 0), column("branch", PADDING))


def batch_of(pairs: Sequence[Ids], indices: Sequence[int]) -> Batch:
    """The batch of the pairs `indices`."""
    return collate(
        [make_row(ids.prompt, *filter(None, (ids.chosen, ids.rejected))) for ids in map(pairs.__getitem__, indices)]
    )


def may_look(branch: Tensor) -> Tensor:
    """Who may look at whom: (B, 1, T, T) booleans, query by key, for the attention of every head.

    Padding is a branch of its own, so that its queries too look at something and no softmax is over nothing.
    """
    key, query = branch[:, None, None, :], branch[:, None, :, None]
    not_later = torch.ones(branch.shape[1], branch.shape[1], dtype=torch.bool, device=branch.device).tril()
    return not_later & ((key == TRUNK) | (key == query))


def token_logps(model: GPT, batch: Batch) -> Tensor:
    """log p of each answer token, (B, T), 0 elsewhere: the one way in which policy and reference are asked."""
    return model(batch.tokens, batch.targets, batch.positions, may_look(batch.branch))


def answer_sums(values: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of `values` (B, T) over the chosen and over the rejected answer: two of (B,)."""
    return (values * (branch == CHOSEN)).sum(-1), (values * (branch == REJECTED)).sum(-1)
