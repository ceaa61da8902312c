"""A pair as one row with two branches: the prompt is read once, both answers hang from it.

    prompt  10 11 12     chosen  20 21 0     rejected  30 0         (0 is end-of-text)

    tokens     10 11 | 12 20 21 | 12 30
    targets     .  . | 20 21  0 | 30  0        . is IGNORE
    positions   0  1 |  2  3  4 |  2  3
    branch      0  0 |  1  1  1 |  2  2        0 trunk  1 chosen  2 rejected

    may look:  key is not later, and key is in the trunk or in the query's own branch

Each branch begins with a copy of the last prompt token, so that every place in a branch has exactly one target, and
places restart where the trunk ends. A row is P - 1 + C + R tokens long where two rows of their own would be 2P + C + R,
and each answer has exactly the log-probability, and the gradient, that it would have alone (tests/test_rows.py).
An SFT row is a row with one branch.

A batch is the rows of several pairs one behind the other, so that there is no padding; and what all prompts begin with,
such as a template, is read once for all of them. A second pair, prompt 10 13, chosen 40 0, rejected 0:

    tokens     10 | 11 | 12 20 21 | 12 30 |  13 40 | 13        the second has no trunk of its own
    targets     . |  . | 20 21  0 | 30  0 |  40  0 |  0
    positions   0 |  1 |  2  3  4 |  2  3 |   1  2 |  1
    answer      . |  . |  0  0  0 |  1  1 |   2  2 |  3        2 x pair, + 1 for rejected; -1 elsewhere

    may look:  the same: key is not later, and in a piece above the query's or in its own (gpt/attention.py)

Shapes: B pairs, T tokens in a batch, S of them in answers, P, C, R tokens of prompt, chosen, rejected.
"""

import os.path
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpt.attention import Tree
from gpt.model import IGNORE

TRUNK, CHOSEN, REJECTED = 0, 1, 2


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
    """The rows of B pairs one behind the other. What a device needs comes first."""

    tokens: Tensor  # (1, T)
    targets: Tensor  # (1, T)
    positions: Tensor  # (1, T)
    places: Tensor  # (S,): where in the row the answers stand
    answer: Tensor  # (S,): whose place it is, 2 x pair, + 1 for a rejected answer
    lengths: Tensor  # (B,): tokens of each pair's own row
    tree: Tree
    pairs: int  # B
    padding: int  # tokens that belong to nobody

    def to(self, device) -> "Batch":
        return Batch(*(part.to(device, non_blocking=True) for part in self[:6]), *self[6:])


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


def collate(rows: Sequence[Row], multiple: int = 1) -> Batch:
    """Rows to a batch, of a length that is a multiple of `multiple`: padding hangs from the root and has no targets."""
    trunks = [[token for token, branch in zip(row.tokens, row.branch) if branch == TRUNK] for row in rows]
    shared = len(os.path.commonprefix(trunks))
    columns = [list(column[:shared]) for column in rows[0][:3]]
    answer, sizes, parents = [-1] * shared, [shared], [-1]
    for number, row in enumerate(rows):
        for column, part in zip(columns, row):
            column += part[shared:]
        own = row.branch[shared:]
        answer += [2 * number + branch - CHOSEN if branch else -1 for branch in own]
        trunk = len(sizes)
        sizes += [own.count(branch) for branch in (TRUNK, CHOSEN, REJECTED)]
        parents += [0, trunk, trunk]
    padding = -len(answer) % multiple
    for column, filler in zip((*columns, answer), (0, IGNORE, 0, -1)):
        column += [filler] * padding
    tokens, targets, positions = torch.tensor(columns)[:, None]  # (1, T) each
    of = torch.tensor(answer)
    places = (of >= 0).nonzero()[:, 0]
    tree = Tree((*sizes, padding), (*parents, 0))
    lengths = torch.tensor([len(row.tokens) for row in rows])
    return Batch(tokens, targets, positions, places, of[places], lengths, tree, len(rows), padding)


def batch_of(pairs: Sequence[Ids], indices: Sequence[int], multiple: int = 1) -> Batch:
    """The batch of the pairs `indices`."""
    rows = [make_row(ids.prompt, *filter(None, (ids.chosen, ids.rejected))) for ids in map(pairs.__getitem__, indices)]
    return collate(rows, multiple)


def answer_sums(values: Tensor, batch: Batch) -> Tensor:
    """Sums of `values` (S,) over each answer: (2, B), chosen and rejected. A row without a rejected answer has 0 there."""
    answers = torch.arange(2 * batch.pairs, device=values.device)
    own = batch.answer == answers[:, None]  # (2 B, S)
    sums = torch.where(own, values, 0).sum(-1)  # in an order that does not vary, as that of index_add does on a GPU
    return sums.view(batch.pairs, 2).T
