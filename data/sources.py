"""The rows of whatever holds them, one after another, in bounded memory.

pairs.json, pairs.jsonl                 data/reading.py; gzip of either, whatever its name is
train-00000-of-00002.parquet            Parquet, through pyarrow, a thousand rows at once
data/                                   a folder: each Parquet file in it, by name
hub:OWNER/NAME                          a dataset of the Hugging Face Hub, through datasets, as it comes; its split "train"
hub:OWNER/NAME/CONFIG[test]             another configuration, another split
"""

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NamedTuple, cast

from data.first_bytes import packing
from data.reading import Row, is_hub, opened, rows_in
from gpt.command import UserError, pip_install
from gpt.untrusted import printing

SAFE = {"pyarrow": "14.0.1", "datasets": "4"}  # as setup.cfg asks for; those before run code that a file brings along
BATCH = 1000  # rows of Parquet in memory at once
HUB = re.compile(r"hub:(?P<name>\w[\w.-]*/\w[\w.-]*)(/(?P<config>\w[\w.-]*))?(\[(?P<split>\w[\w.-]*)\])?", re.ASCII)


class Source(NamedTuple):
    """One file or dataset. How much of `total` is done after a row is in bytes of the file, or in rows; None: not known."""

    name: str
    rows: Iterator[Row]
    unit: str  # "B" or "row"
    total: int | None
    done: Callable[[Row], int]


def sources(name: str) -> Iterator[Source]:
    """The files of a folder, or the one file or dataset; each is closed when the next is asked for.

    Raises UserError, here and while rows are read, for what is absent, damaged, or needs a package that is not there.
    """
    if is_hub(name):
        yield Source(name, _of_hub(name), "row", None, _number)
        return
    files = files_of(name)
    if not files:
        raise UserError(f"{name} is a folder without a .parquet file in it; name the file of pairs")
    for path in files:
        with ExitStack() as stack:
            yield _opened(path, stack)


def files_of(name: str) -> list[Path]:
    """The files that are read of this name: of a folder the Parquet files in it. A dataset of the Hub has none here."""
    return sorted(Path(name).glob("*.parquet")) if os.path.isdir(name) else [] if is_hub(name) else [Path(name)]


def _number(row: Row) -> int:
    return row.number


def _opened(path: Path, stack: ExitStack) -> Source:
    file = stack.enter_context(opened(path))
    packed = packing(file)
    if packed == "Parquet":
        return _parquet(path, file, stack)
    size = path.stat().st_size or None  # a pipe has none
    if packed == "gzip":
        inside = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=file)))
        rows = _unpacked(path, rows_in(path, inside))
        return Source(str(path), rows, "B", size, lambda row: file.tell())
    return Source(str(path), rows_in(path, file), "B", size, lambda row: row.start + row.size)


def _unpacked(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = "it ends too early" if isinstance(error, EOFError) else "it is damaged"
        raise UserError(f"{path} is gzip that cannot be read to its end: {why}; fetch it again") from None


def _parquet(path: Path, file: BufferedReader, stack: ExitStack) -> Source:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path} is Parquet; to read that: {_install('pyarrow')}") from None
    _check_version(pyarrow, str(path))

    def rows() -> Iterator[Row]:
        number = 0
        try:
            for group in range(table.num_row_groups):  # one after another: a reader of all keeps what it has read
                for batch in table.iter_batches(BATCH, row_groups=[group]):
                    for value in batch.to_pylist():
                        number += 1
                        yield Row(number, value, 0, 0)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _damaged(path, error) from None

    try:
        table = stack.enter_context(ParquetFile(file, buffer_size=2**20))  # pages as they come, not a column at once
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    return Source(str(path), rows(), "row", table.metadata.num_rows, _number)


def _install(package: str) -> str:
    return pip_install(f"'{package}>={SAFE[package]}'")


def _check_version(package: ModuleType, name: str) -> None:
    """Raises UserError, naming what is to be read, where a package is so old that a file makes it run what it likes."""
    least = SAFE[package.__name__]
    found, needed = ([int(number) for number in re.findall(r"\d+", text)[:3]] for text in (package.__version__, least))
    if found < needed:
        raise UserError(
            f"{name} is not read with {package.__name__} {package.__version__}, which may run code that it brings along: "
            f"{_install(package.__name__)}"
        )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is Parquet that cannot be read: {printing(' '.join(str(error).split()), 200)}")


def _of_hub(name: str) -> Iterator[Row]:
    asked = HUB.fullmatch(name)
    if not asked:
        raise UserError(
            f"{printing(name)} is no dataset's name; hub:OWNER/NAME, or hub:OWNER/NAME/CONFIG[SPLIT], is one"
        )
    try:
        import datasets
        import pyarrow
        from huggingface_hub.utils import logging
    except ImportError:
        raise UserError(f"{name} is a dataset of the Hugging Face Hub; to read those: {_install('datasets')}") from None
    for package in (datasets, pyarrow):
        _check_version(package, name)
    datasets.logging.set_verbosity_error()  # what stops them is said below, in one line
    logging.set_verbosity_error()
    try:
        splits = datasets.load_dataset(asked["name"], asked["config"], streaming=True)
        split = asked["split"] or "train"
        if split not in splits:
            told = f"has no split {split}" if asked["split"] else "has no split train, which is read if none is named"
            base = name.partition("[")[0]
            raise UserError(
                f"{name} {told}; there are {', '.join(splits)}: name one, as in '{base}[{next(iter(splits))}]'"
            )
        for number, value in enumerate(splits[split], 1):
            yield Row(number, value, 0, 0)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # of the client, its HTTP library, the formats that it reads: they share no narrower base
        said = printing(" ".join(str(error).split()), 300)
        raise UserError(f"{name} cannot be read from the Hugging Face Hub: {said}") from None
