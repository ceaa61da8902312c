"""Which pairs, in which step, on which process, in which micro-batch.

The order is a pure function of (seed, step): resuming needs one integer, and the number of processes may change. With
7 pairs, batches of 4 and two processes with micro-batches of one pair:

    epoch 0     3 0 6 1 | 5 2 4           shuffled by (seed, epoch); the last batch is not full and trains too
    step 1      3 0 6 1                   sorted by length, say 6 1 3 0
    process 0   [6] [3]                   every second pair: both get short and long ones
    process 1   [1] [0]
    step 2      5 2 4
    process 0   [5] [4]
    process 1   [2] [.]                   the same number of micro-batches everywhere; an empty one counts for nothing
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpt.parallel import World


def steps_in_epochs(pairs: int, batch: int, epochs: int) -> int:
    """The updates of `epochs` passes; the last of each pass may have fewer pairs."""
    return epochs * math.ceil(pairs / batch)


def pairs_of_step(step: int, pairs: int, batch: int, seed: int) -> list[int]:
    """Indices of the pairs of update `step`, counted from 1: each pair once an epoch."""
    ((_, indices),) = steps_of(step, step, pairs, batch, seed)
    return indices


def steps_of(first: int, last: int, pairs: int, batch: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """(step, its pairs) for the updates `first` to `last`, both included. An epoch is shuffled once, as it begins."""
    for step in range(first, last + 1):
        epoch, place = divmod(step - 1, math.ceil(pairs / batch))
        if place == 0 or step == first:
            order = np.random.default_rng((seed, epoch)).permutation(pairs)
        yield step, order[place * batch : (place + 1) * batch].tolist()


def pairs_met(steps: int, pairs: int, batch: int, seed: int) -> list[int]:
    """Indices of all pairs that the first `steps` updates use, in order."""
    if steps >= math.ceil(pairs / batch):
        return list(range(pairs))
    return sorted(np.random.default_rng((seed, 0)).permutation(pairs)[: steps * batch].tolist())


class Limit(NamedTuple):
    """What one forward pass may take: so many pairs, and so many tokens of rows (one pair whatever its length)."""

    pairs: int
    tokens: int


def micro_batches(indices: Sequence[int], row_lengths: np.ndarray, limit: Limit, world: World) -> list[list[int]]:
    """This process's share of a step, sorted by length and cut into micro-batches within `limit`.

    row_lengths: (pairs,) tokens of each pair's row. Every process gets the same number of micro-batches; one that has fewer
    gets empty ones at the end.
    """
    lengths = dict(zip(indices, row_lengths[list(indices)].tolist()))
    ordered = sorted(indices, key=lengths.__getitem__)
    shares = [_cut(ordered[rank :: world.size], lengths, limit) for rank in range(world.size)]
    mine, most = shares[world.rank], max(map(len, shares))
    return mine + [[]] * (most - len(mine))


def _cut(indices: list[int], lengths: dict[int, int], limit: Limit) -> list[list[int]]:
    cut: list[list[int]] = []
    room = 0
    for i in indices:
        room -= lengths[i]
        if not cut or len(cut[-1]) == limit.pairs or room < 0:
            cut.append([])
            room = limit.tokens - lengths[i]
        cut[-1].append(i)
    return cut
