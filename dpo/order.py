"""Which pairs, in which step, on which process, in which micro-batch.

The order is a pure function of (seed, step): resuming needs one integer, and the number of processes may change. With
7 pairs, batches of 4 and two processes with micro-batches of one pair:

    epoch 0     3 0 6 1 | 5 2 4           shuffled by (seed, epoch); the last batch is not full and trains too
    step 1      3 0 6 1                   sorted by length, say 6 1 3 0
    process 0   [6] [3]                   every second pair: both get short and long ones; sorted by prompt then
    process 1   [1] [0]
    step 2      5 2 4
    process 0   [5] [4]
    process 1   [2] [.]                   the same number of micro-batches everywhere; an empty one counts for nothing
"""

import math
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dpo.examples import Examples
from gpt.parallel import World

WINDOW = 4096  # pairs whose prompts are compared at once: of a million, not all are brought into memory


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


def micro_batches(
    indices: Sequence[int], examples: Examples, limit: Limit, world: World, without: Container[int] = ()
) -> list[list[int]]:
    """This process's share of a step, cut into micro-batches within `limit`; in each, prompts that begin alike.

    Every process gets the same number of them; one that has fewer gets empty ones at the end.
    without: pairs that are left out after all is cut, so that the others stay together as they are.
    """
    cuts = [cut(indices, examples, limit, world._replace(rank=rank)) for rank in range(world.size)]
    cuts = [[left for some in one if (left := [i for i in some if i not in without])] for one in cuts]
    mine, most = cuts[world.rank], max(map(len, cuts))
    return mine + [[]] * (most - len(mine))


def cut(indices: Sequence[int], examples: Examples, limit: Limit, world: World) -> list[list[int]]:
    """What `micro_batches` gives this process, with nothing left out and no empty ones."""
    lengths = dict(zip(indices, examples.row_lengths[list(indices)].tolist()))
    mine = world.share(sorted(indices, key=lengths.__getitem__))
    alike: list[int] = []
    for start in range(0, len(mine), WINDOW):
        alike += sorted(mine[start : start + WINDOW], key=lambda i: examples.ids[i].prompt)
    found: list[list[int]] = []
    room = 0
    for i in alike:
        room -= lengths[i]
        if not found or len(found[-1]) == limit.pairs or room < 0:
            found.append([])
            room = limit.tokens - lengths[i]
        found[-1].append(i)
    return found
