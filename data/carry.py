"""Rows from file to file as they are: each parsed row, all its fields in their order, as one line of JSONL.

A number stays the number that Python reads: 1.10 becomes 1.1, and of more digits than a float64 has the rest is lost. The white
space may change. A file is read row by row, twice where only its end tells what stays; what is kept of a row meanwhile is a
few numbers.

There are two kinds of commands. `sample` and `mix` read rows, whatever they are, and keep them all. `split`, `dedupe` and
`decontaminate` read pairs, and what `check` and the training of preferences leave out (an empty answer, two equal answers,
scores that are all the same), they leave out too and name its rows. So all of them count the same pairs, and of what they
write nothing is left out again; a row without a pair has no answers to be compared, and no side of a split.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.formats import OneFormat
from data.pairs import Pair, checked, line_of, nothing_left
from data.reading import Row, stream_rows
from data.tally import Tally, summary
from gpt.command import UserError
from gpt.files import whole
from gpt.untrusted import shown


def are_one(name: str | Path, other: str | Path) -> bool:
    """Whether two names are of one file, which need not be there yet."""
    if os.path.exists(name) and os.path.exists(other):
        return os.path.samefile(name, other)
    return os.path.realpath(name) == os.path.realpath(other)


def check_apart(out: str | Path, *others: str | Path, flag: str = "--out", used: str = "is read") -> None:
    """Raises UserError where the file to write, which `flag` names, is another one that `used` is said of."""
    for other in others:
        if str(out) != "-" and are_one(out, other):
            raise UserError(f"{flag} {out} is {other}, which {used}; name another file")


def check_files(out: str | Path, *sources: str | Path) -> None:
    """Raises UserError where the file to write is one of those that are read, and for one that can be read once only."""
    for source in sources:
        if os.path.exists(source) and not os.path.isfile(source) and not os.path.isdir(source):
            raise UserError(f"{source} is no regular file, and is read more than once; save it to one")
    check_apart(out, *sources)


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


def pairs(path: str | Path, doing: str, dropped: dict[str, Tally]) -> Iterator[tuple[Row, Pair | None]]:
    """The rows of a file, each with the pair that it holds; None where nothing can be learned from it, which goes into
    `dropped`: why -> the rows.

    Raises UserError, naming row and field, for what cannot be read, and at the end where no pair was left.
    """
    left = 0
    for row, pair, why in checked(rows(path, doing), str(path), None, OneFormat()):
        if why:
            dropped.setdefault(why, Tally()).add(row.number)
        left += not why
        yield row, pair
    if not left:
        raise nothing_left(path, dropped)


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


def report(lines: Iterable[tuple[str, str]]) -> None:
    """Print what was done: names, and what is to be said of each."""
    print("\n".join(f"{name:16}{text}" for name, text in lines))


def left_out(dropped: dict[str, Tally]) -> list[tuple[str, str]]:
    """The line of a report on the rows that were no pairs, if there were any."""
    return [("dropped", f"{summary(dropped)}; training leaves them out as well")] if dropped else []


def where_to(out: str | Path) -> str:
    """How a report names the file that was written."""
    return "nowhere (--out -)" if str(out) == "-" else f"to {out}"
