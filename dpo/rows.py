"""Pairs as a tree of tokens: what their texts have in common is read once.

The two texts of a pair, prompt and answer, begin with the same prompt:

    prompt  10 11 12     chosen  20 21 0     rejected  30 0         (0 is end-of-text)

    tokens     10 11 12 | 20 21 | 30           the last token of a text is asked for, but never read
    positions   0  1  2 |  3  4 |  3
    asked             2    3  4 |                of place 2 comes 20, of 3 comes 21, of 4 comes 0: chosen
                      2            5             of place 2 comes 30, of 5 comes 0: rejected
    may look:  key is not later, and in the query's own piece or one above it (gpt/attention.py)

That is P + (C - 1) + (R - 1) tokens where two rows of their own would be 2P + C + R - 2, and each answer has exactly the
log-probability, and the gradient, that it would have alone (tests/test_rows.py). A row for SFT is one text.

A batch is one row, the tree of all its texts. Pairs with one prompt share it, and all share the template that their
prompts begin with. A second pair, prompt 10 13, chosen 40 0, rejected 40 41 0:

    tokens     10 | 11 12 | 20 21 | 30 | 13 40 | 41
    piece       0 |   1   |   2   |  3 |   4   |  5
    parent   none |   0   |   1   |  1 |   0   |  4

There is no padding, since there is one row, but where a GPU wants lengths of a few kinds only.

Shapes: B pairs, T tokens in a batch, S of them asked for, N places asked, P, C, R tokens of prompt, chosen, rejected.
"""

import os.path
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gpt.attention import Tree
from gpt.head import Targets
from gpt.memory import sent


class Ids(NamedTuple):
    """A pair as token ids. Each answer ends with its one end-of-text; an SFT row has an empty `rejected`."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        """The places of its row: of the prompt all but the last, and one for each answer token."""
        return len(self.prompt) - 1 + len(self.chosen) + len(self.rejected)


class Batch(NamedTuple):
    """The tree of the texts of B pairs. What a device needs comes first."""

    tokens: Tensor  # (1, T)
    positions: Tensor  # (1, T)
    targets: Targets  # (S,) answer tokens: chosen, then rejected, pair after pair
    answer: Tensor  # (S,): whose token it is, 2 x pair, + 1 for a rejected answer
    lengths: Tensor  # (B,): places of each pair's own row, see Ids.length
    tree: Tree
    pairs: int  # B
    padding: int  # tokens that belong to nobody

    def to(self, device) -> "Batch":
        moved = partial(sent, device=device)
        return self._replace(
            tokens=moved(self.tokens),
            positions=moved(self.positions),
            targets=Targets(*map(moved, self.targets)),
            answer=moved(self.answer),
            lengths=moved(self.lengths),
        )


def grow(texts: Sequence[list[int]]) -> tuple[list[int], list[int], list[list[int]], Tree]:
    """The tree of these texts: its tokens and their positions, for each text the place of each of its tokens, the pieces."""
    tokens: list[int] = []
    positions: list[int] = []
    places: list[list[int]] = [[] for _ in texts]
    sizes: list[int] = []
    parents: list[int] = []
    waiting = [(list(range(len(texts))), 0, -1)]  # texts that are alike before a depth, and the piece they hang from
    while waiting:
        group, depth, parent = waiting.pop()
        common = os.path.commonprefix([texts[i][depth:] for i in group])
        for i in group:
            places[i] += range(len(tokens), len(tokens) + len(common))
        piece = len(sizes)
        sizes.append(len(common))
        parents.append(parent)
        tokens += common
        positions += range(depth, depth + len(common))
        depth += len(common)
        parting: dict[int, list[int]] = {}
        for i in group:
            if len(texts[i]) > depth:
                parting.setdefault(texts[i][depth], []).append(i)
        waiting += [(some, depth, piece) for some in reversed(parting.values())]
    return tokens, positions, places, Tree(tuple(sizes), tuple(parents))


def collate(pairs: Sequence[Ids], multiple: int = 1) -> Batch:
    """The batch of these pairs, its length a multiple of `multiple`: padding hangs from the root and is never asked."""
    answers = [(2 * number + side, ids.prompt, answer) for number, ids in enumerate(pairs)
               for side, answer in enumerate((ids.chosen, ids.rejected)) if answer]  # fmt: skip
    tokens, positions, places, tree = grow([prompt + answer[:-1] for _, prompt, answer in answers])
    padding = -len(tokens) % multiple
    if padding:
        tree = Tree((*tree.sizes, padding), (*tree.parents, 0))
    asked = [place for (_, prompt, _), line in zip(answers, places) for place in line[len(prompt) - 1 :]]
    places_asked, of = torch.tensor(asked).unique(return_inverse=True)
    targets = Targets(places_asked, of, torch.tensor([token for _, _, answer in answers for token in answer]))
    owner = torch.tensor([number for number, _, answer in answers for _ in answer])
    row = torch.tensor([tokens + [0] * padding, positions + [0] * padding])[:, None]  # (2, 1, T)
    lengths = torch.tensor([ids.length for ids in pairs])
    return Batch(row[0], row[1], targets, owner, lengths, tree, len(pairs), padding)


def answer_sums(values: Tensor, batch: Batch) -> Tensor:
    """Sums of `values` (S,) over each answer: (2, B), chosen and rejected. A row without a rejected answer has 0 there."""
    answers = torch.arange(2 * batch.pairs, device=values.device)
    own = batch.answer == answers[:, None]  # (2 B, S)
    sums = torch.where(own, values, 0).sum(-1)  # in an order that does not vary, as that of index_add does on a GPU
    return sums.view(batch.pairs, 2).T


def shared_length(batch: Batch, lengths: Tensor) -> Tensor:
    """Which of the answer tokens, (S,), are among the first n of their answer, n being the shorter answer's length.

    lengths: (2, B), chosen and rejected.
    """
    each = lengths.T.flatten()  # (2 B,) in the order in which answers follow each other
    index = torch.arange(len(batch.answer), device=lengths.device) - (each.cumsum(0) - each)[batch.answer]
    return index < lengths.amin(0)[batch.answer // 2]
