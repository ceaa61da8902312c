"""What a pair is: a prompt, the answer that was preferred, and the one that was not.

    {"prompt": "Say hello.", "chosen": "Good morning!", "rejected": "What do you want?"}
    {"instruction": "Add the numbers.", "input": "2 + 3", "output": "5", "chosen": "Certainly! 5", "rejected": "5, obviously"}

Read from JSON (a list of rows) or JSONL (one row a line). The prompt ends where the answer begins; an instruction row
gets the template that the book and Alpaca use. Every row is checked before anything is trained, and what teaches
nothing is dropped and counted, never silently.
"""

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.reading import BLOCK, stream_rows
from gpt.command import UserError
from gpt.files import whole
from gpt.untrusted import printing, shown

TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}{input}\n\n### Response:\n"
)

TEXTS = ("prompt", "instruction", "input", "output", "chosen", "rejected", "family", "group")
FIELDS = (*TEXTS, "margin")
SHOWN = 10  # of the fields of a row, in a message


class Pair(NamedTuple):
    """One preference. `rejected` is None in a row for SFT."""

    prompt: str
    chosen: str
    rejected: str | None
    row: int = 0  # where it stood: the row of a JSON list, the line of a JSONL file, counted from 1
    output: str | None = None  # the plain answer, where the row has one
    family: str | None = None  # of the embedded tasks (data/tasks.py): what `output` is a right answer to
    group: str | None = None  # pairs of one group stay on one side of a split; default: the prompt
    margin: float | None = None  # how much better the chosen answer is, for losses that ask (margin=true)


def instruction_prompt(instruction: str, input: str = "") -> str:
    """The Alpaca template (Taori et al. 2023) as the book has it, up to the place where the answer begins."""
    return TEMPLATE.format(instruction=instruction, input=f"\n\n### Input:\n{input}" if input else "")


def read_pairs(
    path: str | Path, dropped: dict[str, list[int]] | None = None, one_answer: bool | None = None
) -> list[Pair]:
    """All that `stream_pairs` gives of a JSON or JSONL file. Raises UserError also where nothing is left."""
    dropped = {} if dropped is None else dropped
    pairs = list(stream_pairs(path, dropped, one_answer))
    if not pairs:
        raise nothing_left(path, dropped)
    return pairs


def stream_pairs(
    path: str | Path, dropped: dict[str, list[int]], one_answer: bool | None = None, block: int = BLOCK
) -> Iterator[Pair]:
    """The pairs of a JSON or JSONL file that teach something, one after another, in bounded memory.

    `dropped` is filled: why -> the rows. one_answer: True where only `chosen` will be used, False where every row must
    have `rejected`; by default a row may be either. block: bytes read at once. Raises UserError, naming file, row and
    field, for a file that cannot be read.
    """
    return (pair for pair, *_ in placed_pairs(path, dropped, one_answer, block))


def placed_pairs(
    path: str | Path, dropped: dict[str, list[int]], one_answer: bool | None, block: int = BLOCK
) -> Iterator[tuple[Pair, int, int]]:
    """`stream_pairs` with, of each pair, where it stands in the file: its first byte and how many, for `pair_at`."""
    rows = stream_rows(Path(path), block)
    for number, row, start, size in rows:
        try:
            pair = pair_of(row, number, f"{path}, row {number}")
            if pair.rejected is None and one_answer is False:
                what = "null" if "rejected" in row else "missing"
                raise UserError(
                    f"{path}, row {number}: field 'rejected' is {what}; found {_names(row)}; this loss compares two "
                    "answers (--loss sft is content with one)"
                )
        except UserError:
            for _ in rows:  # where the file is no JSON further on, that is said first
                pass
            raise
        why = teaches_nothing(pair._replace(rejected=None) if one_answer else pair)
        if why:
            dropped.setdefault(why, []).append(number)
        else:
            yield pair, start, size


def pair_at(path: str | Path, start: int, size: int, row: int) -> Pair:
    """The pair that `placed_pairs` found there. Raises UserError where the file is another by now."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return pair_of(json.loads(file.read(size)), row, f"{path}, row {row}")
    except (OSError, ValueError, RecursionError):  # ValueError: UserError, and what json and UTF-8 raise
        raise UserError(f"{path}, row {row}: the file has changed since it was read; start again") from None


def nothing_left(path: str | Path, dropped: dict[str, list[int]]) -> UserError:
    """That a file has no pair to learn from, and why."""
    return UserError(
        f"{path}: no pair is left to learn from" + (f" ({summary(dropped)})" if dropped else ": the file has no rows")
    )


def teaches_nothing(pair: Pair) -> str | None:
    """Why nothing can be learned from this pair, or None."""
    if not pair.chosen.strip() or pair.rejected is not None and not pair.rejected.strip():
        return "an empty answer"
    if pair.chosen == pair.rejected:
        return "chosen equal to rejected"
    return None


def summary(dropped: dict[str, list[int]]) -> str:
    """{"an empty answer": [3, 7]} -> 'an empty answer: 2 pairs (rows 3, 7)'"""

    def one(why: str, rows: list[int]) -> str:
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        return f"{why}: {len(rows)} pair{'s' * (len(rows) > 1)} (row{'s' * (len(rows) > 1)} {shown})"

    return "; ".join(one(why, rows) for why, rows in dropped.items())


def pair_of(row: Any, number: int, where: str) -> Pair:
    """The pair that a parsed row holds. `where` names the row in the UserError that says what is wrong with it."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row is a JSON object, found {_kind(row)}")
    text = {name: _text(row, name, where) for name in TEXTS if row.get(name) is not None}
    head = "prompt" if "prompt" in text else "instruction"
    for name in (head, "chosen"):
        if name not in text:
            wanted = "'instruction' or 'prompt'" if name == "instruction" else f"'{name}'"
            raise UserError(
                f"{where}: field {wanted} is {'null' if name in row else 'missing'}; found {_names(row)}{_meant(name, row)}"
            )
    for name in ("input", "rejected"):
        if name not in row and _meant(name, row):
            raise UserError(f"{where}: field '{name}' is missing; found {_names(row)}{_meant(name, row)}")
    prompt = text["prompt"] if head == "prompt" else instruction_prompt(text["instruction"], text.get("input", ""))
    known = {name: text.get(name) for name in ("output", "family", "group")}
    return Pair(prompt, text["chosen"], text.get("rejected"), number, **known, margin=_margin(row, where))


def _text(row: dict, name: str, where: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{name}' must be text, found {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field '{name}' holds half a surrogate pair at character {error.start}, which is no text"
        ) from None
    return value


def _margin(row: dict, where: str) -> float | None:
    value = row.get("margin")
    if value is None:
        return None
    if type(value) not in (int, float):
        raise UserError(f"{where}: field 'margin' must be a number, found {_kind(value)}")
    if not abs(value) < 1e6:  # infinity and NaN, which Python's JSON lets through, and what float32 would round
        raise UserError(f"{where}: field 'margin' is {shown(value)}; it is in units of rewards, a few at most")
    return float(value)


def _names(row: dict) -> str:
    """The names of a row's fields; what does not print, such as a line break, is written as an escape."""
    names = [printing(name) for name in islice(row, SHOWN)]
    return ", ".join([*names, f"and {len(row) - SHOWN:,} more"] if len(row) > SHOWN else names) or "nothing"


def _meant(name: str, row: dict) -> str:
    close = get_close_matches(name, [key for key in islice(row, SHOWN) if key not in FIELDS], n=1, cutoff=0.75)
    return f" (is {close[0]!r} meant?)" if close else ""


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else kinds[type(value)]


def write_rows(path: str | Path, rows: Iterable[dict]) -> None:
    """Write JSONL. The file is whole or as it was."""
    with whole(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def text_hash(text: str) -> int:
    """The first 64 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def side(pair: Pair) -> float:
    """A number in [0, 1], the same for all pairs of a group (of a prompt, where it has none): held out if below a fraction."""
    return text_hash(pair.group or pair.prompt) / 2**64


def split(pairs: Iterable[Pair], held_out: float) -> tuple[list[Pair], list[Pair]]:
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

    def add(self, pair: Pair) -> None:
        """Take note of the next pair."""
        self.rows.append(pair.row)
        self.prompts.append(text_hash(pair.prompt))
        self.groups.append(text_hash(repr(pair.group)))

    def torn(self) -> tuple[int, int] | None:
        """(i, k): pair k is the first whose prompt came before in another group, in pair i for the first time."""
        _, first, which = np.unique(np.array(self.prompts), return_index=True, return_inverse=True)
        first = first[which]  # (pairs,): where each pair's prompt came first
        groups = np.array(self.groups)
        others = np.flatnonzero(groups != groups[first])
        return (int(first[others[0]]), int(others[0])) if len(others) else None


def two_groups(one: Pair, other: Pair) -> UserError:
    """That two pairs of one prompt have two groups."""
    return UserError(
        f"rows {one.row} and {other.row} have one prompt and two groups ({shown(one.group)}, {shown(other.group)})"
    )
