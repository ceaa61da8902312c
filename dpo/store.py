"""Pairs as token ids in a folder: tokenized once, and mapped into memory by every process.

    tokens    10 11 12 20 21 0 30 0 | 7 8 40 0 41 0       prompt, chosen and rejected of the first pair, of the second
    lengths   3 3 2 | 2 2 2                               tokens of the three parts
    rows      1 | 3                                       the row in the file; row 2 was dropped
    places    0 85 | 172 61                               its first byte there and how many: texts stay in the file
    sides     0.71 | 0.05                                 in [0, 1], by a hash: below --held-out a pair is held out
    margins   NaN | 0.5                                   the field of that name; NaN where a row has none

A store lies in the cache (gpt/files.py), named by the hash of all that it depends on. The first process that needs it
makes it while the others wait; a later run finds it. It is whole or absent, and sealed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from data.pairs import Pair, nothing_left, pair_at, placed_pairs, stream_pairs
from data.reading import opened
from data.sides import Groups, side, two_groups
from data.turns import TEMPLATE
from dpo.rows import Ids
from gpt.command import UserError
from gpt.files import cache_folder, is_sealed, locked, seal, sha256, whole_folder
from gpt.launched import process_rank
from gpt.tokenizer import SPLIT, Tokenizer
from gpt.vocabulary import END_OF_TEXT
from gpt.waiting import waiting

FORMAT = 4  # raised when the columns change, or what reading and encoding make of a file
CHUNK = 1000  # pairs that are tokenized and written at once
KEPT = 8  # stores in the cache; of more, those go that were not used for longest
# The type of tokens is the vocabulary's
KINDS = {
    "lengths": "<i4",
    "rows": "<i8",
    "places": "<i8",
    "sides": "<f8",
    "margins": "<f4",
}


class Store:
    """N pairs as the columns above. pair: a function from a pair's number to its texts."""

    def __init__(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        rows: np.ndarray,
        sides: np.ndarray,
        margins: np.ndarray,
        pair: Callable[[int], Pair],
    ):
        self.tokens, self.lengths = tokens, lengths.reshape(-1, 3)  # (all tokens,), (N, 3)
        self.rows, self.sides, self.margins, self.pair = rows, sides, margins, pair  # (N,) each
        each = self.lengths.sum(1)  # (N,) tokens
        self.ends = each.cumsum()  # (N,): where each pair's tokens end
        self.starts = self.ends - each

    def tokens_of(self, i: int) -> np.ndarray:
        """The tokens of pair i: prompt, chosen, rejected."""
        return self.tokens[self.starts[i] : self.ends[i]]

    def ids(self, i: int) -> Ids:
        """The same in its three parts."""
        tokens, (prompt, chosen, _) = self.tokens_of(i).tolist(), self.lengths[i].tolist()
        return Ids(tokens[:prompt], tokens[prompt : prompt + chosen], tokens[prompt + chosen :])


def encode(
    pairs: Sequence[Pair], tokenizer: Tokenizer, max_length: int, one_answer: bool | None, counted: dict[str, list[int]]
) -> list[tuple[Pair, Ids]]:
    """Pairs with their ids, prompt and answers encoded apart, so that the prompt ends exactly where the answers begin.

    max_length bounds prompt and longer answer together. A longer prompt loses its beginning, the same for both answers;
    where the answers alone leave no room for one token of prompt the pair is left out. `counted` notes both, by row,
    and where end-of-text stands in a text, which it does not end.
    one_answer: leave the rejected answer away. An empty prompt becomes one end-of-text.
    """
    kept, end = [], tokenizer.end_of_text
    for pair in pairs:
        prompt = tokenizer.encode(pair.prompt) or [end]
        chosen = [*tokenizer.encode(pair.chosen), end]
        rejected = [] if one_answer or pair.rejected is None else [*tokenizer.encode(pair.rejected), end]
        room = max_length - max(len(chosen), len(rejected))
        if room < 1:
            counted.setdefault(f"left out, an answer of {max_length} tokens or more", []).append(pair.row)
            continue
        if any(END_OF_TEXT in text for text in (pair.prompt, pair.chosen, pair.rejected or "")):
            counted.setdefault(f"{END_OF_TEXT} in the text, read as its letters", []).append(pair.row)
        if room < len(prompt):
            counted.setdefault(f"prompt cut from the left to fit {max_length} tokens", []).append(pair.row)
        kept.append((pair, Ids(prompt[-room:], chosen, rejected)))
    return kept


def columns(encoded: Sequence[tuple[Pair, Ids]], kind: str) -> dict[str, np.ndarray]:
    """The columns of these pairs but for their places. kind: the type of a token."""
    return {
        "tokens": np.fromiter(chain.from_iterable(part for _, ids in encoded for part in ids), kind),
        "lengths": np.array([[len(part) for part in ids] for _, ids in encoded], KINDS["lengths"]),
        "rows": np.array([pair.row for pair, _ in encoded], KINDS["rows"]),
        "sides": np.array([side(pair) for pair, _ in encoded], KINDS["sides"]),
        "margins": np.array([pair.margin for pair, _ in encoded], KINDS["margins"]),  # None is NaN
    }


def stored(
    path: str, tokenizer: Tokenizer, max_length: int, one_answer: bool | None
) -> tuple[Store, dict[str, list[int]]]:
    """(the pairs of the file `path`, what was dropped or cut, by reason -> rows), from the cache or made now.

    Where the cache cannot be written the store is made in a temporary folder, which goes as soon as it is mapped.
    Raises UserError for a file that cannot be used, that changes meanwhile, that has nothing to learn from, or one prompt
    in two groups.
    """
    kind = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    key = _key(path, tokenizer, max_length, one_answer)
    make = partial(_make, path, tokenizer, max_length, one_answer, kind, key)
    find = partial(_find, path, kind, key)
    with suppress(OSError):
        folder = cache_folder("pairs") / key
        if found := find(folder):
            return found
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"lock-{key[0]}")):  # sixteen of them, so that none need be cleared away
            if found := find(folder):  # made while this process waited
                return found
            with whole_folder(folder) as part:
                make(part, quiet=False)
            _clear(folder.parent)
            if found := find(folder):
                return found
    with TemporaryDirectory() as above:
        with whole_folder(Path(above) / key) as part:
            make(part, quiet=process_rank() > 0)
        found = find(Path(above) / key)
        assert found  # it was written a moment ago
        return found


@waiting("hashing the pairs")
def _key(path: str, tokenizer: Tokenizer, max_length: int, one_answer: bool | None) -> str:
    """SHA-256 of what a store depends on."""
    with opened(Path(path)) as file:
        if not S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{path} is no regular file, and pairs are read more than once; save them to one")
        content = sha256(file)
    vocabulary = (sorted(tokenizer.ids.items()), list(tokenizer.merges), tokenizer.end_of_text, SPLIT)
    return hashlib.sha256(repr((FORMAT, content, TEMPLATE, vocabulary, max_length, one_answer)).encode()).hexdigest()


def _make(
    path: str,
    tokenizer: Tokenizer,
    max_length: int,
    one_answer: bool | None,
    kind: str,
    key: str,
    folder: Path,
    quiet: bool,
) -> None:
    """Read, check and tokenize the file `path`, and write the columns into `folder`, sealed."""
    kinds, groups = KINDS | {"tokens": kind}, Groups()
    dropped: dict[str, list[int]] = {}
    noted: dict[str, list[int]] = {}
    pairs = placed_pairs(path, dropped, one_answer)
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in kinds}
        size = os.path.getsize(path)
        bar = stack.enter_context(
            tqdm(total=size, desc="tokenize", unit="B", unit_scale=True, leave=False, delay=1, disable=quiet)
        )
        while some := list(islice(pairs, CHUNK)):
            for pair, _, _ in some:
                groups.add(pair)
            place = {pair.row: (start, size) for pair, start, size in some}
            encoded = encode([pair for pair, _, _ in some], tokenizer, max_length, one_answer, noted)
            places = np.array([place[pair.row] for pair, _ in encoded], KINDS["places"])
            for name, column in (columns(encoded, kind) | {"places": places}).items():
                column.tofile(files[name])
            bar.set_postfix(pairs=f"{len(groups.rows):,}", refresh=False)
            bar.update(sum(some[-1][1:]) - bar.n)
    if not groups.rows:
        raise nothing_left(path, dropped)
    if torn := groups.torn():
        wanted = [groups.rows[i] for i in torn]
        found = {pair.row: pair for pair in stream_pairs(path, {}, one_answer) if pair.row in wanted}
        raise two_groups(*map(found.__getitem__, wanted))
    (folder / "counted").write_text(json.dumps(dropped | noted), encoding="utf-8")
    if _key(path, tokenizer, max_length, one_answer) != key:  # or the new content would stand under the old one's name
        raise UserError(f"{path} changed while it was read; start again")
    seal(folder, (*kinds, "counted"), key=key)


@waiting("checking the tokens that are kept")
def _find(path: str, kind: str, key: str, folder: Path) -> tuple[Store, dict[str, list[int]]] | None:
    """What `_make` wrote into `folder`, mapped, or None where it is not there, cut, damaged, or of another key."""
    kinds = KINDS | {"tokens": kind}
    if not is_sealed(folder, (*kinds, "counted"), key=key):
        return None
    with suppress(OSError):  # another user's
        os.utime(folder)  # used now
    try:
        column = {name: _mapped(folder / name, kinds[name]) for name in kinds}
        counted = json.loads((folder / "counted").read_text(encoding="utf-8"))
    except OSError:  # removed meanwhile
        return None
    places = column.pop("places").reshape(-1, 2)
    rows = column["rows"]
    return Store(**column, pair=lambda i: pair_at(path, int(places[i, 0]), int(places[i, 1]), int(rows[i]))), counted


def _mapped(path: Path, kind: str) -> np.ndarray:
    """A file as numbers, mapped."""
    return np.asarray(np.memmap(path, kind, mode="r")) if path.stat().st_size else np.empty(0, kind)


def _clear(cache: Path) -> None:
    """Remove all but the newest folders. A process that has one mapped keeps what it mapped."""
    with suppress(OSError):
        folders = [path for path in cache.iterdir() if path.is_dir()]
        for path in sorted(folders, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)
