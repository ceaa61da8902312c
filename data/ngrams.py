"""Runs of words as hashes: those of a text, where they stand among known ones, and in how many prompts each was met.

    "the night train from Vienna"      with length 3: (the night train), (night train from), (train from Vienna)

Of hashes of 64 bits numpy finds in one call what all the runs of a text have in common with millions of others.
"""

from array import array
from random import Random

import numpy as np

WAITING = 2**20  # runs met that wait to be counted at once, 16 bytes each


class Runs:
    """Hashes of all runs of `length` words in a text; with length 0 there are none."""

    def __init__(self, length: int):
        rng = Random(0)
        self.length = length
        self.weights = np.array([rng.getrandbits(64) | 1 for _ in range(length)], np.uint64)

    def of(self, text: str) -> np.ndarray:
        """(words - length + 1,) uint64, of a normalized text: the words' hashes, each times the weight of its place, summed."""
        words = text.split()
        if not 0 < self.length <= len(words):
            return np.empty(0, np.uint64)
        hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
        return np.correlate(hashes, self.weights, "valid")

    def of_all(self, texts: list[str]) -> np.ndarray:
        """(n,) uint64: of several texts, one after another. No run goes from one text to the next."""
        runs = [some for text in texts if len(some := self.of(text))]
        return np.concatenate(runs) if len(runs) > 1 else runs[0] if runs else np.empty(0, np.uint64)


class Met:
    """In how many prompts each of some runs was met: exactly, as far as `common` + 1.

    What was met waits, twice where it was met twice, until there is enough of it to be sorted. Of a run that is common
    nothing is kept from then on.
    """

    def __init__(self, runs: int, common: int):
        self.common = common
        self.is_common = np.zeros(runs, bool)
        self.runs, self.prompts = np.empty(0, np.int64), np.empty(0, np.uint64)  # each couple once, by runs
        self.met, self.met_in = array("q"), array("Q")  # those that wait

    def add(self, runs: np.ndarray, prompt: int) -> bool:
        """Note that these runs, by their places, stand in a row of this prompt, a hash; and say whether there are any."""
        if len(rare := runs[~self.is_common[runs]]):
            self.met.frombytes(rare.tobytes())
            self.met_in.frombytes(np.full(len(rare), prompt, np.uint64).tobytes())
            if len(self.met) > max(WAITING, len(self.runs)):  # as many as are known: each is sorted a few times only
                self.settle()
        return len(runs) > 0

    def settle(self) -> None:
        """Count what waits."""
        runs = np.concatenate([self.runs, np.array(self.met, np.int64)])
        prompts = np.concatenate([self.prompts, np.array(self.met_in, np.uint64)])
        order = np.lexsort((prompts, runs))
        runs, prompts = runs[order], prompts[order]
        is_first = np.ones(len(runs), bool)
        is_first[1:] = (runs[1:] != runs[:-1]) | (prompts[1:] != prompts[:-1])
        runs, prompts = runs[is_first], prompts[is_first]
        known, counts = np.unique(runs, return_counts=True)
        self.is_common[known[counts > self.common]] = True
        is_rare = ~self.is_common[runs]
        self.runs, self.prompts, self.met, self.met_in = runs[is_rare], prompts[is_rare], array("q"), array("Q")

    def common_runs(self) -> np.ndarray:
        """(runs,): which were met in more than `common` prompts."""
        self.settle()
        return self.is_common

    def telling_runs(self) -> np.ndarray:
        """(runs,): which were met, in no more than `common` prompts."""
        self.settle()
        return np.isin(np.arange(len(self.is_common)), self.runs)


def places(known: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Where each of `hashes` (n,) stands in `known` (m,), which ascends: (n,), -1 where it does not."""
    if not len(known) or not len(hashes):
        return np.full(len(hashes), -1)
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.where(known[at] == hashes, at, -1)
