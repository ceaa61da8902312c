"""Can the chosen answers be told from the rejected ones by what does not matter? A reward model of some fifty weights.

A reward model gives each answer a number, and is trained to give the chosen one the larger:

    loss = -log sigmoid(reward(chosen) - reward(rejected))        Bradley and Terry 1952; DPO's loss is the same formula

Here reward(answer) = w . features(answer), and the features are trivial: length, commas, capitals, the first word. Then
only the difference x = features(chosen) - features(rejected) matters, the loss is -log sigmoid(w . x), and w is found in a
few steps of Newton's method. There is no intercept: who swaps the answers must get the opposite.

    chosen "Certainly! 5"   rejected "5"     x = {characters +1.87, exclamation marks +0.69, begins with 'Certainly!' +1, ...}

The weights are learned from one half of the prompts and asked about the other. What these few weights get right, a large
model can get right for the same wrong reasons.
"""

import heapq
import re
from collections import Counter
from collections.abc import Callable
from math import log1p
from typing import NamedTuple

import numpy as np

from data.confidence import wilson
from gpt.untrusted import shown

MOST = 20_000  # pairs that are looked at: enough to know an accuracy to one in a hundred
FEWEST = 40  # pairs in each half; with fewer nothing can be said
WORDS = 20  # first words, and last words, that are features
FEW = 10  # answers that must have a word before it is one
LETTERS = 20  # of such a word

REFUSAL = re.compile(
    r"\b(?:I(?:'m| am)? (?:cannot|can't|won't|will not|unable to|not able to|sorry)|I apologi[sz]e|as an AI)\b",
    re.IGNORECASE,
)
ITEM = re.compile(r"^[ \t]*(?:[-*•#]+|\d+[.)])\s", re.MULTILINE)  # of a list, or a heading

FEATURES: dict[str, Callable[[str], float]] = {
    "characters": lambda text: log1p(len(text)),
    "words": lambda text: log1p(len(text.split())),
    "line breaks": lambda text: log1p(text.count("\n")),
    "list items": lambda text: log1p(len(ITEM.findall(text))),
    "full stops": lambda text: log1p(text.count(".")),
    "commas": lambda text: log1p(text.count(",")),
    "exclamation marks": lambda text: log1p(text.count("!")),
    "question marks": lambda text: log1p(text.count("?")),
    "capitals": lambda text: log1p(sum(map(str.isupper, text))),
    "digits": lambda text: log1p(sum(map(str.isdigit, text))),
    "a capital first": lambda text: text.lstrip()[:1].isupper(),
    "a full stop last": lambda text: text.rstrip()[-1:] == ".",
    "a refusal": lambda text: bool(REFUSAL.search(text.replace("’", "'"))),
}


class Look(NamedTuple):
    """What is kept of one pair."""

    prompt: int  # its hash
    difference: np.ndarray  # (FEATURES,): chosen less rejected
    chosen: tuple[str, str]  # first and last word
    rejected: tuple[str, str]


class Separability(NamedTuple):
    """How well trivial features tell the answers of held-out pairs apart."""

    pairs: int  # held out
    accuracy: float  # a tie is half
    interval: tuple[float, float]
    strongest: list[tuple[str, float]]  # the two features with most weight, with the better side; accuracy alone


class Sample:
    """The `most` items of smallest key out of any number of them. Keys are hashes, so this is a fair sample, and the same
    whatever the order; an item is made only when it is let in."""

    def __init__(self, most: int):
        self.most, self.seen = most, 0
        self.heap: list[tuple[int, int, object]] = []  # (-key, -which, item): the largest key on top

    def offer(self, key: int, make: Callable[[], object]) -> None:
        """Let the next item in if its key is among the smallest."""
        self.seen += 1
        if len(self.heap) < self.most:
            heapq.heappush(self.heap, (-key, -self.seen, make()))
        elif -key > self.heap[0][0]:
            heapq.heapreplace(self.heap, (-key, -self.seen, make()))

    @property
    def items(self) -> list:
        """What was let in and stayed, by key."""
        return [item for _, _, item in sorted(self.heap, key=lambda entry: entry[:2], reverse=True)]


def look(prompt: int, chosen: str, rejected: str) -> Look:
    """What the regression needs of a pair; prompt is a hash."""
    difference = np.array([feature(chosen) - feature(rejected) for feature in FEATURES.values()], np.float32)
    return Look(prompt, difference, _ends(chosen), _ends(rejected))


def _ends(text: str) -> tuple[str, str]:
    words = text.split()  # not empty: such answers are dropped
    return words[0][:LETTERS], words[-1][-LETTERS:]


def separability(looks: list[Look]) -> Separability | None:
    """Learn the weights from the pairs of one half of the prompts, by their hash, and ask them about the other half.

    None where a half has fewer than FEWEST pairs.
    """
    halves = [[one for one in looks if one.prompt % 2 == half] for half in (0, 1)]
    if min(map(len, halves)) < FEWEST:
        return None
    words = [_frequent(halves[0], place) for place in (0, 1)]  # first words, last words
    x, asked = (_matrix(half, words) for half in halves)  # (pairs of the half, columns)
    scale = np.sqrt((x**2).mean(0))
    scale[scale == 0] = 1  # a feature that never differs; it says nothing, and gets the weight 0
    weights = fit(x / scale)
    parts = asked / scale * weights  # (pairs, columns): what each column adds to w . x
    named = _named(weights, words)  # all first words are one feature of several columns, all last words another
    alone = {name: parts[:, columns].sum(1) for name, columns in named.items()}
    strongest = sorted((name for name in alone if alone[name].any()), key=lambda name: -(alone[name] ** 2).mean())
    right = _right(parts.sum(1))
    return Separability(
        len(asked),
        right / len(asked),
        wilson(right / len(asked), len(asked)),
        [(name, _right(alone[name]) / len(asked)) for name in strongest[:2]],
    )


def _named(weights: np.ndarray, words: list[list[str]]) -> dict[str, slice]:
    """What each feature is called, with which side of it is better, and its columns."""
    named = {
        f"{name} ({'more' if weights[i] > 0 else 'less'} is better)": slice(i, i + 1) for i, name in enumerate(FEATURES)
    }
    start = len(FEATURES)
    for which, some in zip(("first", "last"), words):
        columns = slice(start, start + len(some))
        if some:
            worst, *_, best = [some[i] for i in np.argsort(weights[columns], kind="stable")] * 2
            named[f"the {which} word ({shown(best)} is good, {shown(worst)} bad)"] = columns
        start += len(some)
    return named


def _frequent(looks: list[Look], place: int) -> list[str]:
    """The words most often found there, in at least one answer of 100, and in FEW."""
    found = Counter(ends[place] for one in looks for ends in (one.chosen, one.rejected))
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [word for word, count in ordered[:WORDS] if count >= max(FEW, len(looks) / 50)]


def _matrix(looks: list[Look], words: list[list[str]]) -> np.ndarray:
    """x (pairs, features): the differences, and of each frequent word whether chosen has it less whether rejected has it."""
    has = [
        [(one.chosen[place] == word) - (one.rejected[place] == word) for place in (0, 1) for word in words[place]]
        for one in looks
    ]
    return np.hstack([np.array([one.difference for one in looks], float), np.array(has, float).reshape(len(looks), -1)])


def fit(x: np.ndarray, ridge: float = 1.0, steps: int = 100) -> np.ndarray:
    """The weights w (F,) at which sum(-log sigmoid(x w)) + ridge / 2 · |w|² is least; x (N, F).

    The ridge keeps w finite where the pairs can be told apart without error. Newton's method: the loss is taken for the
    parabola that it looks like at w, and w moves to where that is least; half as far, as long as the loss does not fall.
    """

    def loss(w: np.ndarray) -> float:
        return np.logaddexp(0, -x @ w).sum() + ridge / 2 * w @ w

    w = np.zeros(x.shape[1])
    for _ in range(steps):
        wrong = 1 / (1 + np.exp(np.clip(x @ w, -500, 500)))  # (N,): the probability of the rejected answer
        slope = ridge * w - wrong @ x
        curvature = ridge * np.eye(len(w)) + (x * (wrong * (1 - wrong))[:, None]).T @ x
        step = np.linalg.solve(curvature, slope)
        if slope @ step < 1e-9:  # twice what the parabola has left to gain
            break
        while loss(w - step) > loss(w) and abs(step).max() > 1e-9:
            step /= 2
        w = w - step
    return w


def _right(margins: np.ndarray) -> float:
    """How many margins are above 0, a tie counting one half."""
    return float((margins > 0).sum() + (margins == 0).sum() / 2)
