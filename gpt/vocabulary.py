"""The two files of a byte-level BPE vocabulary, as Hugging Face writes them: vocab.json and merges.txt.

    vocab.json      {"!": 0, ... "Ġthe": 262, ... "<|endoftext|>": 50256}       token: id
    merges.txt      #version: 0.2 / Ġ t / Ġ a / h e / ...                 one pair a line, in learned order

Tokens are bytes, and not all bytes print, so the files write each byte as a letter: a space is Ġ.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from gpt.command import UserError
from gpt.files import whole

END_OF_TEXT = "<|endoftext|>"


def _byte_letters() -> dict[int, str]:
    """The letter by which vocab.json and merges.txt write each byte: itself if it prints, else one from 256 up."""
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in prints]
    return {b: chr(b) for b in prints} | {b: chr(256 + i) for i, b in enumerate(others)}


_LETTERS = _byte_letters()
_BYTES = {letter: b for b, letter in _LETTERS.items()}


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file} is missing; a model folder with a vocabulary has vocab.json and merges.txt") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 text: {error}") from None


def read_vocabulary(file: Path) -> dict[bytes, int]:
    """Token to id, end-of-text among them. Raises UserError, naming the file and what is wrong in it."""
    try:
        found = json.loads(_read_text(file))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} is no JSON object of tokens and ids")
    if END_OF_TEXT not in found:
        raise UserError(f"{file}: {END_OF_TEXT} is missing")
    owner: dict[int, str] = {}
    for token, i in found.items():
        if type(i) is not int or i < 0:
            raise UserError(f"{file}: the id of {token!r} is {i!r}, it must be a whole number of at least 0")
        if owner.setdefault(i, token) != token:
            raise UserError(f"{file}: {owner[i]!r} and {token!r} have one id, {i}")
        strange = set(token) - _BYTES.keys()
        if strange:
            raise UserError(f"{file}: {min(strange)!r} in {token!r} is no letter of a byte-level BPE such as GPT-2's")
    return {bytes(_BYTES[letter] for letter in token): i for token, i in found.items()}


def read_merges(file: Path) -> list[tuple[bytes, bytes]]:
    """The pairs in learned order. Raises UserError, naming file and line."""
    merges = []
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if not line.strip() or number == 1 and line.startswith("#version"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(pair) or not set("".join(pair)) <= _BYTES.keys():
            raise UserError(f"{file}, line {number}: a merge is two tokens and one space, found {line!r}")
        left, right = (bytes(_BYTES[letter] for letter in token) for token in pair)
        merges.append((left, right))
    return merges


def write_vocabulary(file: Path, ids: dict[bytes, int]) -> None:
    """Write vocab.json, by id."""
    in_order = {_written(token): i for token, i in sorted(ids.items(), key=lambda item: item[1])}
    with whole(file) as out:
        json.dump(in_order, out, ensure_ascii=False)


def write_merges(file: Path, merges: Iterable[tuple[bytes, bytes]]) -> None:
    """Write merges.txt."""
    with whole(file) as out:
        out.write("#version: 0.2\n")
        out.writelines(f"{_written(left)} {_written(right)}\n" for left, right in merges)


def _written(token: bytes) -> str:
    return "".join(_LETTERS[b] for b in token)


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges behind tiktoken's ranks: the last two pieces of each token when only earlier merges are used."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        pieces = [bytes([b]) for b in token]
        while len(pieces) > 2:
            best = min(range(len(pieces) - 1), key=lambda i: ranks.get(pieces[i] + pieces[i + 1], rank))
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
        if len(pieces) == 2:
            merges.append(tuple(pieces))
    return merges
