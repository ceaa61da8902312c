"""Which pairs, in which step, on which process, in which micro-batch.

The order is a pure function of (seed, step): resuming needs one integer, and the number of processes may change. With
7 pairs, batches of 4 and two processes with micro-batches of 1:

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

import numpy as np

from dpo.rows import Ids
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


def micro_batches(indices: list[int], pairs: Sequence[Ids], micro: int, world: World) -> list[list[int]]:
    """This process's share of a step, cut into micro-batches of at most `micro` pairs of like length.

    Every process gets the same number of them; one that has fewer pairs gets empty ones at the end.
    """
    mine = world.share(sorted(indices, key=lambda i: pairs[i].length))
    most = math.ceil(len(indices) / world.size)  # pairs of process 0
    return [mine[start : start + micro] for start in range(0, most, micro)]
