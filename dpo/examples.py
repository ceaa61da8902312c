"""Pairs to learn from: token ids, and what is known of each pair, as views of one store (dpo/store.py)."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from data.pairs import Pair
from data.rules import embedded_pairs
from dpo.losses import Loss
from dpo.rows import Ids
from dpo.store import CHUNK, Store, columns, encode, stored
from gpt.command import UserError
from gpt.tokenizer import Tokenizer
from gpt.waiting import waiting

EMBEDDED = "the embedded set"


class Lazy(Sequence):
    """The items `get(i)` for each i of `index`, made when they are asked for."""

    def __init__(self, index: np.ndarray, get: Callable):
        self.places, self.get = index, get

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i):
        return Lazy(self.places[i], self.get) if isinstance(i, slice) else self.get(int(self.places[i]))


class Examples:
    """The pairs `index` of a store, n of them.

    ids[i]: token ids. lengths (n, 3): tokens of prompt, chosen and rejected, each answer with its end-of-text, 0 for a
    rejected one that is absent. row_lengths (n,): tokens of each pair's row. rows (n,): the row in the file. margins
    (n,): float32, NaN where a row has none. pairs[i]: the texts, read from the file again.
    """

    def __init__(self, store: Store, index: np.ndarray):
        self.store, self.index = store, index
        self.lengths, self.rows, self.margins = store.lengths[index], store.rows[index], store.margins[index]
        self.row_lengths = self.lengths.sum(1) - 1
        self.ids: Sequence[Ids] = Lazy(index, store.ids)
        self.pairs: Sequence[Pair] = Lazy(index, store.pair)

    @cached_property
    @waiting("hashing the tokens")
    def fingerprint(self) -> str:
        """SHA-256 of all lengths and tokens, in order: what the training depends on."""
        digest = hashlib.sha256(self.lengths.astype("<i4").tobytes())
        for start in range(0, len(self.index), CHUNK):
            tokens = [self.store.tokens_of(i) for i in self.index[start : start + CHUNK].tolist()]
            digest.update(np.concatenate(tokens).astype("<u4").tobytes())
        return digest.hexdigest()


def check_margins(loss: Loss, examples: Examples, path: str) -> None:
    """Raises UserError where the loss asks for margins and a row has none."""
    if loss.needs("margin") and len(missing := examples.rows[np.isnan(examples.margins)]):
        raise UserError(
            f"{path or EMBEDDED}, row {missing[0]}: field 'margin' is missing; the loss {loss} wants a number in every row"
        )


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
    if path:
        store, found = stored(path, tokenizer, max_length, one_answer)
    else:
        found = {}
        encoded = encode(embedded_pairs(), tokenizer, max_length, one_answer, found)
        store = in_memory([pair for pair, _ in encoded], [ids for _, ids in encoded]).store
    for why, rows in found.items():
        counted.setdefault(why, []).extend(rows)
    aside = store.sides < held_out
    training, apart = (Examples(store, np.flatnonzero(wanted)) for wanted in (~aside, aside))
    if not training.ids and not may_be_empty:
        raise UserError(
            f"{path or EMBEDDED}: no pair is left to train on after holding out {held_out:g} and fitting "
            f"{max_length} tokens (--held-out, --max-length)"
        )
    return training, apart


def in_memory(pairs: Sequence[Pair], ids: Sequence[Ids]) -> Examples:
    """Pairs that come from no file, with their ids."""
    store = Store(**columns(list(zip(pairs, ids)), "<u4"), pair=pairs.__getitem__)
    return Examples(store, np.arange(len(pairs)))
