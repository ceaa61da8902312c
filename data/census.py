"""What is counted of pairs as they pass by once: some 80 bytes are kept of each, never its text.

    prompts 8  chosen 8  rejected 8         hashes of the texts, to find what is there twice or the other way round
    near_prompts 8  near 8                  hashes of prompt and of whole pair, as data/normal.py has them
    sides 8  rows 8  groups 8               of the split; where the pair stood; its group
    margins 4  lengths 12                   the field of that name; tokens of prompt, chosen and rejected

A million pairs are 80 MB, and 60 more while they are sorted; their texts would be some hundreds. What is odd about a pair
alone is counted when it passes, with its row; what two pairs have in common is found at the end, by sorting hashes of 64
bits. That two of a million texts share one by chance happens in one of 40 million files.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.characters import CONTROL, INVISIBLE, TURN, is_word, script, special_tokens
from data.features import MOST, Sample, Separability, look, separability
from data.normal import NEARLY, normalized, normalized_prompt
from data.pairs import Pair
from data.questions import request_in
from data.sides import Groups, firsts, text_hash
from data.tally import Tally
from data.turns import instruction_in
from gpt.tokenizer import Tokenizer

KEPT = 100  # rows that are kept of each thing that was noted
NAMES = 200  # different families, or special tokens, that are told apart
NO_MARGIN = float("nan")


class Oddity(NamedTuple):
    """What can be odd about one pair, looked at alone."""

    what: str  # a pair has
    tolerated: float  # the fraction of pairs that is no reason to look
    advice: str


ODDITIES = {
    "one answer": Oddity("one answer alone", 1, ""),
    "empty prompt": Oddity(
        "a prompt that asks nothing", 0, "is the question lost? The answers are learned all the same"
    ),
    "short chosen": Oddity("a chosen answer of one word", 0.05, "is there enough to learn from?"),
    "short rejected": Oddity("a rejected answer of one word", 0.05, "is there enough to learn from?"),
    "prefix": Oddity("an answer that the other one begins with", 0.01, "is the shorter one cut off?"),
    "alike": Oddity(f"answers that are equal but for {NEARLY}", 0, "nothing else is learned from them; is it meant?"),
    "prompt repeated": Oddity(
        "an answer with the whole prompt in it",
        0.01,
        "an answer begins where the prompt ends: take the prompt out of it",
    ),
    "another turn": Oddity(
        "an answer with a turn of a dialogue in it",
        0,
        "cut the answer where the other begins to speak, or remove the name",
    ),
    "other script": Oddity("answers in two scripts", 0, "is one in another language than was asked for?"),
    "control": Oddity("control characters", 0, "remove them, or the model learns to write them"),
    "U+FFFD": Oddity(
        "U+FFFD, the mark of letters that are lost", 0, "read the texts from their source again, in its encoding"
    ),
    "invisible": Oddity("characters of no width", 0, "remove them, or the model learns to write them"),
    "line ends": Oddity("\\r at the end of a line", 0, "write \\n, or the model learns both"),
    "special tokens": Oddity(
        "special tokens",
        0,
        "read as their letters, they end nothing and begin nothing; remove what a template left behind",
    ),
}


class Census:
    """Counts pairs, one after another. With a tokenizer their tokens too: of all, or of a sample of that many."""

    def __init__(self, tokenizer: Tokenizer | None = None, sample: int = 0):
        self.tokenizer, self.sampled = tokenizer, bool(sample)
        self.groups = Groups()
        self.chosen, self.rejected, self.near_prompts, self.near, self.sides = (array("Q") for _ in range(5))
        self.margins, self._lengths = array("f"), array("i")
        self.sample = Sample(sample or MOST)
        self.noted = {name: Tally(KEPT) for name in ODDITIES}
        self.scripts: Counter[str] = Counter()
        self.families: Counter[str] = Counter()
        self.special: Counter[str] = Counter()
        self.plain: Counter[str] = Counter()  # which answer is the row's output

    def add(self, pair: Pair) -> None:
        """Count the next pair."""
        texts = pair.texts
        self.groups.add(pair)
        prompt, chosen = self.groups.prompts[-1], text_hash(pair.chosen)
        rejected = 0 if pair.rejected is None else text_hash(pair.rejected)
        self.chosen.append(chosen)
        self.rejected.append(rejected)
        self.sides.append(text_hash(pair.group) if pair.group else prompt)
        self.margins.append(NO_MARGIN if pair.margin is None else pair.margin)
        nearly = [normalized_prompt(pair.prompt), *map(normalized, texts[1:])]
        self.near_prompts.append(text_hash(nearly[0]))
        self.near.append(text_hash("\0".join(nearly)))
        for name in oddities(pair, alike=nearly[1:2] == nearly[2:]):
            self.noted[name].add(pair.row)
        self.scripts[script("\n".join(texts[1:]))] += 1
        if pair.family:
            count_name(self.families, pair.family)
        for token in {token for text in texts for token in special_tokens(text)}:
            count_name(self.special, token)
        if pair.output is not None:
            self.plain[{pair.chosen: "chosen", pair.rejected: "rejected"}.get(pair.output, "neither")] += 1
        if self.tokenizer and not self.sampled:
            self._lengths.extend(self._tokens(pair))
        if self.sampled or pair.rejected is not None:
            # weights that tell chosen from rejected; the same as in `keys`
            self.sample.offer((prompt + 3 * chosen + 5 * rejected) % 2**64, lambda: self._kept(pair, prompt))

    def _kept(self, pair: Pair, prompt: int) -> tuple:
        """Of a pair of the sample: (what the regression needs, its row and tokens where those of the sample are counted)."""
        seen = None if pair.rejected is None else look(prompt, pair.chosen, pair.rejected)
        return seen, (pair.row, *self._tokens(pair)) if self.tokenizer and self.sampled else None

    def _tokens(self, pair: Pair) -> tuple[int, int, int]:
        """As training counts them: an end-of-text follows each answer, and stands for an empty prompt."""
        assert self.tokenizer
        prompt, chosen, rejected = (0 if t is None else len(self.tokenizer.encode(t)) + 1 for t in pair[:3])
        return max(prompt - 1, 1), chosen, rejected

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def rows(self) -> np.ndarray:
        """(pairs,): the row in the file."""
        return np.asarray(self.groups.rows)

    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows (n,), tokens of prompt, chosen and rejected, 0 for none (n, 3)) of all pairs, or of the sample."""
        if not (self.sampled and self.tokenizer):
            return self.rows[: len(self._lengths) // 3], np.asarray(self._lengths, np.int32).reshape(-1, 3)
        columns = np.array([counted for _, counted in self.sample.items], np.int64).reshape(-1, 4)
        return columns[:, 0], columns[:, 1:]

    def keys(self, swapped: bool = False) -> np.ndarray:
        """(pairs,): one hash for prompt, chosen and rejected together; swapped: for chosen and rejected exchanged."""
        prompts, chosen, rejected = map(np.asarray, (self.groups.prompts, self.chosen, self.rejected))
        return prompts + 5 * chosen + 3 * rejected if swapped else prompts + 3 * chosen + 5 * rejected  # modulo 2^64

    def swapped(self) -> np.ndarray:
        """The rows (i, k) where k has the prompt of i, which came before, its chosen answer rejected and its rejected one
        chosen: (couples, 2), each k once."""
        keys, swaps = self.keys(), self.keys(swapped=True)
        order = np.argsort(keys, kind="stable")
        place = np.searchsorted(keys, swaps, sorter=order).clip(max=len(keys) - 1)
        other = order[place]  # (pairs,): the first pair that may be this one's opposite
        later = np.flatnonzero((keys[other] == swaps) & (other < np.arange(len(keys))))
        return self.rows[np.stack([other[later], later], axis=1)]

    def separability(self) -> Separability | None:
        """How well trivial features tell the answers apart, on the sample."""
        return separability([seen for seen, _ in self.sample.items if seen])


def oddities(pair: Pair, alike: bool) -> Iterator[str]:
    """The names, among ODDITIES, of what is odd about one pair. alike: its answers are nearly equal, as data/normal.py has it."""
    prompt, chosen, rejected = pair[:3]
    answers = (chosen,) if rejected is None else (chosen, rejected)
    whole = "\n".join((prompt, *answers))
    if rejected is None:
        yield "one answer"
    if not request_in(prompt).strip():
        yield "empty prompt"
    if is_word(chosen):
        yield "short chosen"
    if rejected is not None:
        if is_word(rejected):
            yield "short rejected"
        if chosen.startswith(rejected) or rejected.startswith(chosen):
            yield "prefix"
        if alike:
            yield "alike"
        if not whole.isascii() and len({script(chosen), script(rejected)} - {"none"}) == 2:
            yield "other script"
    task = asked(prompt)
    if len(task.split(maxsplit=2)) == 3 and any(task in answer for answer in answers):
        yield "prompt repeated"
    if any(":" in answer and TURN.search(answer) for answer in answers):
        yield "another turn"
    if CONTROL.search(whole):
        yield "control"
    if "\r" in whole:
        yield "line ends"
    if not whole.isascii():
        if "\ufffd" in whole:
            yield "U+FFFD"
        if INVISIBLE.search(whole):
            yield "invisible"
    if special_tokens(whole):
        yield "special tokens"


def asked(prompt: str) -> str:
    """The instruction of a prompt that has the instruction template, else the whole prompt, without space around it."""
    task = instruction_in(prompt)
    return (prompt if task is None else task.split("\n\n### Input:\n")[0]).strip()


def count_name(counter: Counter, name: str) -> None:
    """Count a name that a file gives, of which there may be any number: beyond NAMES they are "others"."""
    counter[name if name in counter or len(counter) < NAMES else "others"] += 1


def on_both_sides(prompts: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The places of prompts that stand on the other side of a split than where they stood first; each prompt once.

    prompts (n,): hashes; held (n,): whether a pair is held out.
    """
    torn = np.flatnonzero(held != held[firsts(prompts)])
    return torn[np.unique(prompts[torn], return_index=True)[1]]
