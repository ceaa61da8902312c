"""Which pairs are held out: a hash of their group decides, so that no prompt is on both sides.

group     "sum: 9 + 1" -> SHA-256 -> 0.0380...      below --held-out: held out, whatever else is in the file
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from gpt.command import UserError
from gpt.untrusted import shown

if TYPE_CHECKING:
    from data.pairs import Pair


def text_hash(text: str) -> int:
    """The first 64 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def firsts(keys: np.ndarray) -> np.ndarray:
    """Where each key came first, (n,): [7, 8, 7] -> [0, 1, 0]"""
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    return first[which]


def side(pair: "Pair") -> float:
    """A number in [0, 1], the same for all pairs of a group (of a prompt, where it has none): held out if below a fraction."""
    return text_hash(pair.group or pair.prompt) / 2**64


def split(pairs: Iterable["Pair"], held_out: float) -> tuple[list["Pair"], list["Pair"]]:
    """(training pairs, held-out pairs): about the fraction `held_out` of the groups is held out.

    A pair's side depends on its group alone (its prompt, where it has none), by a hash: no prompt is on both sides, more
    data or another order moves nothing, and a larger fraction keeps all that a smaller one held out.
    Raises UserError where a prompt has two groups, and so could be on both sides.
    """
    pairs, groups, sides = list(pairs), Groups(), defaultdict(list)
    for pair in pairs:
        groups.add(pair)
        sides[side(pair) < held_out].append(pair)
    if torn := groups.torn():
        raise two_groups(*map(pairs.__getitem__, torn))
    return sides[False], sides[True]


class Groups:
    """Whether a prompt has two groups, and so could be on both sides of a split: asked of hashes, 24 bytes a pair."""

    def __init__(self):
        self.rows, self.prompts, self.groups = array("Q"), array("Q"), array("Q")

    def add(self, pair: "Pair") -> None:
        """Take note of the next pair."""
        self.rows.append(pair.row)
        self.prompts.append(text_hash(pair.prompt))
        self.groups.append(text_hash(repr(pair.group)))

    def torn(self) -> tuple[int, int] | None:
        """(i, k): pair k is the first whose prompt came before in another group, in pair i for the first time."""
        first = firsts(np.array(self.prompts))  # (pairs,): where each pair's prompt came first
        groups = np.array(self.groups)
        others = np.flatnonzero(groups != groups[first])
        return (int(first[others[0]]), int(others[0])) if len(others) else None


def two_groups(one: "Pair", other: "Pair") -> UserError:
    """That two pairs of one prompt have two groups."""
    return UserError(
        f"rows {one.row} and {other.row} have one prompt and two groups ({shown(one.group)}, {shown(other.group)}), "
        "and could be on both sides of a split; give a prompt one group"
    )
