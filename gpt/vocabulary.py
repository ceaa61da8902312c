"""The files of a byte-level BPE vocabulary, as Hugging Face writes them: vocab.json and merges.txt, or tokenizer.json.

    vocab.json      {"!": 0, ... "Ġthe": 262, ... "<|endoftext|>": 50256}       token: id
    merges.txt      #version: 0.2 / Ġ t / Ġ a / h e / ...                 one pair a line, in learned order
    tokenizer.json  both of them, and every step from text to ids by name; only GPT-2's steps can be taken here

Tokens are bytes, and not all bytes print, so the files write each byte as a letter: a space is Ġ.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt.command import UserError
from gpt.files import whole
from gpt.untrusted import read_json, read_text, shown

END_OF_TEXT = "<|endoftext|>"
BYTES = 2**25  # the most that is read of a file; that of GPT-2 with all its steps has 1.3 million
TOKENS = 2**20  # the most in a vocabulary
LONGEST = 256  # bytes of a token; to check how one was merged takes time by the square of them


def _byte_letters() -> dict[int, str]:
    """The letter by which vocab.json and merges.txt write each byte: itself if it prints, else one from 256 up."""
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in prints]
    return {b: chr(b) for b in prints} | {b: chr(256 + i) for i, b in enumerate(others)}


_LETTERS = _byte_letters()
_BYTES = {letter: b for b, letter in _LETTERS.items()}


def _check_there(file: Path) -> None:
    if not file.exists():
        raise UserError(f"{file} is missing; a vocabulary is vocab.json and merges.txt, or tokenizer.json")


def read_vocabulary(file: Path) -> dict[bytes, int]:
    """Token to id, end-of-text among them. Raises UserError, naming the file and what is wrong in it."""
    return _checked_ids(_read_json(file), file)


def read_merges(file: Path) -> list[tuple[bytes, bytes]]:
    """The pairs in learned order. Raises UserError, naming file and line."""
    _check_there(file)
    text = read_text(file, BYTES)
    return [
        _merge(line.rstrip("\r").split(" "), f"{file}, line {number}")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not (number == 1 and line.startswith("#version"))
    ]


def read_tokenizer_json(file: Path) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
    """Token to id, and the pairs in learned order. Raises UserError, naming the step, where it is not as in GPT-2."""
    found = _read_json(file)
    for place, value, right in _steps(found):
        if not right:
            raise UserError(
                f"{file}: {place} is {json.dumps(value)[:200]}; only byte-level BPE with GPT-2's split can be read"
            )
    model = found["model"]
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise UserError(f"{file}: model.vocab must be an object and model.merges a list")
    added = _added_tokens(found.get("added_tokens") or [], file)
    # an added token may stand in the vocabulary too, there written as it is, not by the letters of its bytes
    ids = {token: i for token, i in model["vocab"].items() if token not in added}
    ids |= {_written(token.encode()): i for token, i in added.items()}
    merges = [
        _merge(pair.split(" ") if isinstance(pair, str) else pair, f"{file}, merge {number}")
        for number, pair in enumerate(model["merges"], 1)
    ]
    return _checked_ids(ids, file), merges


def _added_tokens(added: Any, file: Path) -> dict[str, int]:
    try:
        for token in added:
            token["content"].encode()
            if not token.get("special", True):
                raise UserError(
                    f"{file}: added_tokens has {shown(token['content'])}, which is no special token: it would be cut out of "
                    "ordinary text, which GPT-2 encodes by merges alone"
                )
        return {token["content"]: token["id"] for token in added}
    except (TypeError, KeyError, AttributeError, UnicodeEncodeError):
        raise UserError(f"{file}: added_tokens must be a list of objects with content (text) and id") from None


def _steps(found: dict) -> Iterator[tuple[str, Any, bool]]:
    """(place, what stands there, whether that is GPT-2's) for each step from text to ids."""
    model, split, last = (
        found[name] if isinstance(found.get(name), dict) else {}
        for name in ("model", "pre_tokenizer", "post_processor")
    )
    yield "model.type", model.get("type"), bool(model) and model.get("type", "BPE") == "BPE"  # old files do not say it
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        yield f"model.{name}", model.get(name), not model.get(name)
    yield "normalizer", found.get("normalizer"), not found.get("normalizer")
    right = split.get("type") == "ByteLevel" and not split.get("add_prefix_space") and split.get("use_regex", True)
    yield "pre_tokenizer", found.get("pre_tokenizer"), right
    adds = last.get("type") == "TemplateProcessing" and last.get("special_tokens")
    right = not found.get("post_processor") or last.get("type") in LAST_STEPS and not adds
    yield "post_processor", found.get("post_processor"), right


LAST_STEPS = ("ByteLevel", "TemplateProcessing")  # which add no token of their own, the second if it has none to add


def _read_json(file: Path) -> dict:
    _check_there(file)
    found = read_json(file, BYTES)
    if not isinstance(found, dict):
        raise UserError(f"{file} is no JSON object")
    return found


def _checked_ids(found: dict, file: Path) -> dict[bytes, int]:
    """{"Ġthe": 262} to {b" the": 262}."""
    if END_OF_TEXT not in found:
        raise UserError(f"{file}: {END_OF_TEXT} is missing")
    if len(found) > TOKENS:
        raise UserError(f"{file}: {len(found):,} tokens, the most that are read are {TOKENS:,}")
    owner: dict[int, str] = {}
    for token, i in found.items():
        if type(i) is not int or i < 0:
            raise UserError(f"{file}: the id of {shown(token)} is {shown(i)}, it must be a whole number of at least 0")
        if owner.setdefault(i, token) != token:
            raise UserError(f"{file}: {shown(owner[i])} and {shown(token)} have one id, {shown(i)}")
        if len(token) > LONGEST:
            raise UserError(f"{file}: the token {shown(token)} has {len(token):,} bytes, the most is {LONGEST}")
        strange = set(token) - _BYTES.keys()
        if strange:
            raise UserError(
                f"{file}: {min(strange)!r} in {shown(token)} is no letter of a byte-level BPE such as GPT-2's"
            )
    return {bytes(_BYTES[letter] for letter in token): i for token, i in found.items()}


def _merge(pair: Any, where: str) -> tuple[bytes, bytes]:
    whole = isinstance(pair, list) and len(pair) == 2 and all(isinstance(token, str) and token for token in pair)
    if not whole or not set("".join(pair)) <= _BYTES.keys():
        found = " ".join(pair) if isinstance(pair, list) and all(isinstance(token, str) for token in pair) else pair
        raise UserError(f"{where}: a merge is two tokens, found {shown(found)}")
    left, right = (bytes(_BYTES[letter] for letter in token) for token in pair)
    return left, right


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
            merges.append((pieces[0], pieces[1]))
    return merges
