"""What a run starts from: a model with its tokenizer, and pairs as token ids."""

import hashlib
from typing import NamedTuple

from data.pairs import Pair, read_pairs, split
from data.rules import TINY, embedded_pairs
from dpo.rows import Ids, encode
from gpt.command import UserError
from gpt.tokenizer import Tokenizer
from gpt.weights import Opened, open_folder, random_gpt

EMBEDDED = "the embedded set"


def open_model(name: str, seed: int = 0, dropout: float = 0.0) -> Opened:
    """The model and tokenizer of a model folder, run folder, Hub name or `random:SIZE`; an empty name is the embedded start."""
    if name.startswith("random:"):
        size = name.removeprefix("random:")
        tokenizer = Tokenizer.gpt2() if size.startswith("gpt2") else Tokenizer.load(TINY)
        return Opened(random_gpt(size, tokenizer.vocab_size, seed, dropout), tokenizer, name)
    return open_folder(name or TINY, dropout)


class Examples(NamedTuple):
    """Pairs and, beside them, their ids."""

    pairs: list[Pair]
    ids: list[Ids]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every id, in order: what the training depends on."""
        return hashlib.sha256(repr(self.ids).encode()).hexdigest()


def open_examples(
    path: str,
    tokenizer: Tokenizer,
    max_length: int,
    held_out: float,
    one_answer: bool | None,
    counted: dict[str, list[int]],
    may_be_empty: bool = False,
) -> tuple[Examples, Examples]:
    """(training, held-out) examples of a pairs file; an empty path is the embedded set.

    one_answer: the loss is content with `chosen` (None: with whatever a row has). `counted` is filled with what was
    dropped or cut, by reason.
    Raises UserError for a file that cannot be used, and unless may_be_empty where nothing is left to train on.
    """
    pairs = read_pairs(path, counted, one_answer) if path else embedded_pairs()
    sides = []
    for side in split(pairs, held_out):
        encoded = encode(side, tokenizer, max_length, one_answer, counted)
        sides.append(Examples([pair for pair, _ in encoded], [ids for _, ids in encoded]))
    if not sides[0].ids and not may_be_empty:
        raise UserError(
            f"{path or EMBEDDED}: no pair is left to train on after holding out {held_out:g} and fitting "
            f"{max_length} tokens (--held-out, --max-length)"
        )
    return sides[0], sides[1]
