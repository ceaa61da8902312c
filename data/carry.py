"""Rows from file to file as they are: each parsed row, all its fields in their order, as one line of JSONL.

A number stays the number that it was; what may change is how it is written (1.10 becomes 1.1), as is the white space. A file
is read once or twice, row by row; what is kept of a row meanwhile is a few numbers.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.formats import OneFormat
from data.pairs import Pair, pair_of
from data.ratings import NoPair
from data.reading import Row, stream_rows
from gpt.command import UserError
from gpt.files import whole
from gpt.untrusted import shown

LISTED = 5  # rows in a report


def are_one(name: str | Path, other: str | Path) -> bool:
    """Whether two names are of one file, which is there."""
    return os.path.exists(name) and os.path.exists(other) and os.path.samefile(name, other)


def check_files(out: str | Path, *sources: str) -> None:
    """Raises UserError where the file to write is one of those that are read, and for one that can be read once only."""
    for source in sources:
        if os.path.exists(source) and not os.path.isfile(source) and not os.path.isdir(source):
            raise UserError(f"{source} is no regular file, and is read more than once; save it to one")
        if are_one(out, source):
            raise UserError(f"--out {out} is {source}, which is read; name another file")


def rows(path: str | Path, doing: str = "") -> Iterator[Row]:
    """The rows of a file, with a progress bar that says what one is `doing`, if anything.

    Raises UserError for what cannot be read, and for a row that is no JSON object.
    """
    path = Path(path)
    size = path.stat().st_size if path.is_file() else None
    with tqdm(total=size, desc=doing, unit="B", unit_scale=True, leave=False, delay=1, disable=not doing) as bar:
        for row in stream_rows(path):
            if not isinstance(row.value, dict):
                raise UserError(f"{path}, row {row.number}: a row is a JSON object, found {shown(row.value)}")
            yield row
            bar.update(row.start + row.size - bar.n)


def pairs(path: str | Path, doing: str = "") -> Iterator[tuple[Row, Pair]]:
    """The rows of a file, each with the pair that it holds. Raises UserError, naming row and field, where one holds none."""
    format = OneFormat()
    for row in rows(path, doing):
        where = f"{path}, row {row.number}"
        try:
            pair = pair_of(row.value, row.number, where, format)
        except NoPair as none:
            raise UserError(f"{where}: {none}; python data/build.py convert leaves such rows out") from None
        yield row, pair


def chosen_rows(path: str | Path, wanted: np.ndarray, doing: str = "") -> Iterator[Row]:
    """Of a file that was read before, the rows that are `wanted` (n,). Raises UserError where there are not n by now."""
    count = 0
    for count, row in enumerate(rows(path, doing), 1):
        if count > len(wanted):
            break
        if wanted[count - 1]:
            yield row
    if count != len(wanted):
        raise UserError(f"{path} changed while it was read; start again")


@contextmanager
def written(out: str | Path) -> Iterator[Callable[[dict, str], object]]:
    """A function that writes a row to the file `out`, which is whole or as it was; to "-" nothing is written.

    Its second argument names the row in the UserError for one that cannot be written.
    """
    if str(out) == "-":
        yield lambda row, where: None
    else:
        with whole(out, binary=True) as file:
            yield lambda row, where: file.write(line_of(row, where))


def line_of(row: dict, where: str) -> bytes:
    """A row as a line of JSONL. `where` names it in the UserError for one that cannot be written."""
    try:
        try:
            return (json.dumps(row, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError:  # half a surrogate pair, in a field that nobody reads, can stand as an escape only
            return (json.dumps(row) + "\n").encode()
    except RecursionError:
        raise UserError(f"{where}: nested too deep to be written") from None


class Tally:
    """How many rows something was found in, and the first few of them: 'rows 3, 7, 9' or 'rows 3, 7, 9, 12, 15, ...'"""

    def __init__(self):
        self.count, self.rows = 0, []

    def add(self, row: int | str) -> None:
        """One more."""
        self.count += 1
        if self.count <= LISTED:
            self.rows.append(row)

    def __str__(self) -> str:
        more = ", ..." if self.count > LISTED else ""
        return f"row{'s' * (self.count > 1)} {', '.join(map(str, self.rows))}{more}"


def number_of(count: int, what: str = "row") -> str:
    """1 -> '1 row', 2000 -> '2,000 rows'"""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def report(lines: Iterable[tuple[str, str]]) -> None:
    """Print what was done: names, and what is to be said of each."""
    print("\n".join(f"{name:16}{text}" for name, text in lines))


def where_to(out: str | Path) -> str:
    """How a report names the file that was written."""
    return "nowhere (--out -)" if str(out) == "-" else f"to {out}"
