"""What a pair is: a prompt, the answer that was preferred, and the one that was not.

    {"prompt": "Say hello.", "chosen": "Good morning!", "rejected": "What do you want?"}
    {"instruction": "Add the numbers.", "input": "2 + 3", "output": "5", "chosen": "Certainly! 5", "rejected": "5, obviously"}

Read from JSON (a list of rows) or JSONL (one row a line), in any of the formats of data/formats.py. The prompt ends where
the answer begins; an instruction row gets the template that the book and Alpaca use. Every row is checked before anything
is trained, and what teaches nothing is dropped and counted, never silently.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.fields import FIELDS, names, text
from data.formats import OneFormat
from data.ratings import NoPair
from data.reading import BLOCK, Row, stream_rows
from data.sides import split
from data.tally import Tally, summary
from data.turns import instruction_prompt
from gpt.command import UserError
from gpt.files import whole

__all__ = [  # some of it from further down, where nobody need look for it
    "FIELDS",
    "Pair",
    "checked",
    "instruction_prompt",
    "nothing_left",
    "pair_at",
    "pair_of",
    "placed_pairs",
    "read_pairs",
    "split",
    "stream_pairs",
    "summary",
    "teaches_nothing",
    "write_rows",
]


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

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompt and its answers, one or two."""
        return (self.prompt, self.chosen) if self.rejected is None else (self.prompt, self.chosen, self.rejected)


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
    try:
        for row, pair, why in checked(rows, str(path), one_answer, OneFormat()):
            if why:
                dropped.setdefault(why, []).append(row.number)
            elif pair:
                yield pair, row.start, row.size
    except UserError:
        for _ in rows:  # where the file is no JSON further on, that is said first
            pass
        raise


def checked(
    rows: Iterable[Row], name: str, one_answer: bool | None, format: OneFormat
) -> Iterator[tuple[Row, Pair | None, str | None]]:
    """(row, its pair, None), or (row, None, why nothing can be learned from it). name: whose rows they are.

    Raises UserError, naming row and field, as `stream_pairs` does.
    """
    for row in rows:
        where = f"{name}, row {row.number}"
        try:
            pair = pair_of(row.value, row.number, where, format)
        except NoPair as none:
            yield row, None, str(none)
            continue
        if pair.rejected is None and one_answer is False:
            what = "null" if "rejected" in row.value else "missing"
            raise UserError(
                f"{where}: field 'rejected' is {what}; found {names(row.value)}; this loss compares two "
                "answers (--loss sft is content with one)"
            )
        why = teaches_nothing(pair._replace(rejected=None) if one_answer else pair)
        yield row, None if why else pair, why


def pair_at(path: str | Path, start: int, size: int, row: int) -> Pair:
    """The pair that `placed_pairs` found there. Raises UserError where the file is another by now."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return pair_of(json.loads(file.read(size)), row, f"{path}, row {row}")
    except (OSError, ValueError, RecursionError, NoPair):  # ValueError: UserError, and what json and UTF-8 raise
        raise UserError(f"{path}, row {row}: the file has changed since it was read; start again") from None


def nothing_left(path: str | Path, dropped: Mapping[str, Tally | Sequence[int]]) -> UserError:
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


def pair_of(row: Any, number: int, where: str, format: OneFormat | None = None) -> Pair:
    """The pair that a parsed row holds. format: of the rows it is one of. `where` names it in a UserError.

    Raises UserError for a row that cannot be read, NoPair for one that is in order, but has no answers to compare.
    """
    prompt, chosen, rejected, margin = (format or OneFormat()).answers(row, number, where)
    output, family, group = text(row, "output", where), text(row, "family", where), text(row, "group", where)
    return Pair(prompt, chosen, rejected, number, output, family, group, margin)


def write_rows(path: str | Path, rows: Iterable[dict]) -> None:
    """Write JSONL. The file is whole or as it was."""
    with whole(path, binary=True) as file:
        for number, row in enumerate(rows, 1):
            file.write(line_of(row, f"row {number} of {path}"))


def line_of(row: dict, where: str) -> bytes:
    """A row as a line of JSONL. `where` names it in the UserError for one that cannot be written."""
    try:
        try:
            return (json.dumps(row, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError:  # half a surrogate pair, in a field that nobody reads, can stand as an escape only
            return (json.dumps(row) + "\n").encode()
    except RecursionError:
        raise UserError(f"{where}: nested too deep to be written") from None
