"""So many rows of a file, or of several in given proportions, drawn by lot: the same ones on every machine.

Rows are taken whatever they are, pairs or not, and none is left out, also one of which training makes no pair: what is asked
for is a number of rows. Only files in different formats (data/formats.py) are not mixed: no reader takes such a file.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from random import Random
from shlex import quote
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.carry import are_one, check_files, chosen_rows, report, rows, where_to, written
from data.formats import fitting, signed
from data.reading import Row
from data.tally import number_of
from gpt.command import UserError, argument, check_range, flag


@dataclass(frozen=True)
class Sample:
    """Write some rows of a file, pairs or not, each as likely as any other, in the order of the file.

    python data/build.py sample pairs.jsonl --count 1000 --out some.jsonl
    """

    file: str = argument("JSON or JSONL file")
    out: str = flag(help="JSONL file to write; - for none, to see the report only")
    count: int = flag(help="rows; of one seed, more rows are the same ones and more")
    seed: int = flag(0, "which rows; the same seed gives the same ones on every machine")


@dataclass(frozen=True)
class Mix:
    """Write rows of several files of one format in given proportions, in random order.

    python data/build.py mix helpful.jsonl:0.7 harmless.jsonl:0.3 --out mixed.jsonl

    No row is written twice, unless --count asks for more than there are.
    """

    sources: list = argument("FILE:WEIGHT ..., such as helpful.jsonl:0.7 harmless.jsonl:0.3", nargs="+")
    out: str = flag(help="JSONL file to write; - for none, to see the report only")
    count: int = flag(None, "rows in all; unset: as many as there are without a row twice")
    seed: int = flag(0, "which rows in which order; the same seed gives the same ones on every machine")
    source_field: str = flag("", "a field to add to each row, with the name of the file it is from")


class Source(NamedTuple):
    """A file to mix in."""

    path: str
    share: Fraction  # of the rows to write
    rows: int  # that it has


def sample(flags: Sample) -> None:
    check_range(flags, ("count",), 1)
    check_files(flags.out, flags.file)
    total, _ = _count(flags.file)
    wanted = drawn(total, min(flags.count, total), Random(flags.seed))
    with written(flags.out) as write:
        for row in chosen_rows(flags.file, wanted > 0, "writing"):
            write(row.value, f"{flags.file}, row {row.number}")
    few = f", fewer than the {flags.count:,} asked for" if total < flags.count else ""
    lines = ("read", f"{number_of(total)} from {flags.file}{few}")
    report([lines, ("written", f"{number_of(int(wanted.sum()))} {where_to(flags.out)}")])


def mix(flags: Mix) -> None:
    check_range(flags, ("count",), 1)
    named = weighed(flags.sources)
    check_files(flags.out, *named)
    for one, other in combinations(named, 2):
        if are_one(one, other):
            raise UserError(f"{other} is {one}; name each file once")
    counted = {path: _count(path) for path in named}
    _check_formats({path: kinds for path, (_, kinds) in counted.items()})
    sources = [Source(path, share, counted[path][0]) for path, share in named.items()]
    total = flags.count or min(math.floor(source.rows / source.share) for source in sources)
    shares = apportioned(total, [source.share for source in sources])
    rng = Random(flags.seed)
    times = [drawn(source.rows, share, rng) for source, share in zip(sources, shares)]
    streams = [_repeated(source.path, often) for source, often in zip(sources, times)]
    with written(flags.out) as write:
        order = tqdm(_order(shares, rng), total=total, desc="writing", unit="row", leave=False, delay=1)
        for which in order:
            path, row = sources[which].path, next(streams[which])
            where = f"{path}, row {row.number}"
            if flags.source_field and flags.source_field in row.value:
                raise UserError(f"{where}: field {flags.source_field!r} is there already; --source-field another one")
            write(row.value | ({flags.source_field: path} if flags.source_field else {}), where)
        for stream in streams:  # to its end, where it says if the file has other rows by now
            next(stream, None)
    lines = [
        ("from", f"{source.path}: {float(source.share):.2%} wanted, {share / total:.2%} found: {_taken(source, often)}")
        for source, share, often in zip(sources, shares, times)
    ]
    report([*lines, ("written", f"{number_of(total)} {where_to(flags.out)}")])


def weighed(words: list[str]) -> dict[str, Fraction]:
    """["a.jsonl:3", "b.jsonl:1"] -> {"a.jsonl": 3/4, "b.jsonl": 1/4}. Raises UserError for what is no file with a weight."""
    weights = {}
    for word in words:
        path, colon, text = word.rpartition(":")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not colon or not path or not 0 < weight < math.inf:
            raise UserError(f"{word!r} is no FILE:WEIGHT with a weight above 0, such as pairs.jsonl:0.7")
        if path in weights:
            raise UserError(f"{path} is named twice; name each file once")
        weights[path] = Fraction(repr(weight))  # 0.7 as it is written, not the nearest float
    return {path: weight / sum(weights.values()) for path, weight in weights.items()}


def apportioned(total: int, shares: list[Fraction]) -> list[int]:
    """`total` in whole parts, each less than one from its share: rounded down, what is left to the largest remainders
    (Hamilton's method)."""
    parts = [math.floor(total * share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: parts[i] - total * shares[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def drawn(total: int, count: int, rng: Random) -> np.ndarray:
    """How often each of `total` rows is taken, (total,), so that it is `count` times in all: all equally often, but for some
    drawn by lot that are taken once more.

    A lot is Random.random(), which Python keeps the same between versions and machines. The smallest lots are taken: of
    one seed, a larger sample holds the smaller one.
    """
    often, more = divmod(count, total)
    lots = np.fromiter((rng.random() for _ in range(total)), float, total)
    times = np.full(total, often)
    times[np.argsort(lots, kind="stable")[:more]] += 1
    return times


def _order(counts: list[int], rng: Random) -> Iterator[int]:
    """[2, 1] -> 0, 1, 0 or another order, all as likely: which source the next row is from."""
    left = list(counts)
    for remaining in range(sum(counts), 0, -1):
        place, which = int(rng.random() * remaining), 0
        while place >= left[which]:
            place, which = place - left[which], which + 1
        left[which] -= 1
        yield which


def _repeated(path: str, times: np.ndarray) -> Iterator[Row]:
    """The rows of a file as often as `times` says: in one reading after another, those that are wanted still."""
    for reading in range(int(times.max())):
        yield from chosen_rows(path, times > reading)


def _count(path: str) -> tuple[int, dict[tuple[str, ...], int]]:
    """(how many rows a file has, where each kind of row came first: the formats that it could have -> row).

    Raises UserError where there are no rows.
    """
    count = 0
    kinds: dict[tuple[str, ...], int] = {}
    for row in rows(path, "reading"):
        count += 1
        formats = fitting(row.value) or fitting({"chosen": "", **row.value})  # prompts alone are of a format too
        kinds.setdefault(tuple(formats), row.number)
    if not count:
        raise UserError(f"{path} has no rows")
    return count, kinds


def _check_formats(found: dict[str, dict[tuple[str, ...], int]]) -> None:
    """Raises UserError where rows have different formats, for no reader would take the mixture."""
    firsts: dict[tuple[str, ...], tuple[str, int]] = {}  # kind -> (file, row)
    for path, kinds in found.items():
        for kind, row in kinds.items():
            firsts.setdefault(kind, (path, row))
    if len(firsts) < 2:
        return
    both = list(firsts.items())[:2]
    told = ", and ".join(
        f"{path}, row {row} is {' or '.join(map(signed, kind)) or 'no pair of any format'}"
        for kind, (path, row) in both
    )
    (_, (one, _)), (_, (other, _)) = both
    packed = next((path for kind, (path, _) in both if kind not in ((), ("prompt",))), "")
    if one == other or not packed:
        out = "put each kind of row in a file of its own"
    else:
        out = f"make pairs first, python data/build.py convert {quote(packed)} --out NEW, and mix NEW in its place"
    raise UserError(f"{told}; no reader takes a file of both: {out}")


def _taken(source: Source, times: np.ndarray) -> str:
    """What a report says of the rows of one source."""
    low, high, count = int(times.min()), int(times.max()), int(times.sum())
    if high <= 1:
        return f"{count:,} of its {number_of(source.rows)}"
    each = f"{low}" if low == high else f"{low} or {high}"
    return f"{number_of(count)}, each of its {source.rows:,} {each} times"
