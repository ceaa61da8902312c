"""What came of one try, and of all tries of a row: a line of the table that ./launch.sh torture prints."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.torture.jobs import Failed

Found = dict[str, int | float]  # whole numbers are added up over the tries of a row, others are worth their largest


class Outcome(NamedTuple):
    """One try."""

    what: str  # the row of the table that it belongs to
    held: bool
    seconds: float
    found: Found = {}
    said: str = ""  # where it did not hold: what happened, and where the files are


class Try(NamedTuple):
    """A function of a new folder, and of what else it needs. Returns what it found; raises Failed where nothing held."""

    what: str
    attempt: Callable[..., Found | None]
    given: tuple = ()


def outcome(one: Try, folder: Path) -> Outcome:
    """Try it, in `folder`, which is removed where all held."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    try:
        found = one.attempt(folder, *one.given) or {}
    except Failed as error:
        return Outcome(one.what, False, time.monotonic() - began, said=f"{error} ({folder})")
    seconds = time.monotonic() - began
    shutil.rmtree(folder)
    return Outcome(one.what, True, seconds, found)


def outcomes(tries: Iterable[Try], folder: Path, at_once: int = 1) -> Iterator[Outcome]:
    """What came of each, as they end; the folders of those that did not hold stay below `folder`."""
    with ThreadPoolExecutor(at_once) as pool:
        pending = [pool.submit(outcome, one, folder / f"{number:03d}") for number, one in enumerate(tries)]
        try:
            for done in as_completed(pending):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


class Row(NamedTuple):
    """All tries of one kind."""

    what: str
    tries: int
    held: int
    median: float  # seconds
    most: float
    found: Found


def rows(all_of_them: list[Outcome]) -> list[Row]:
    """One row for each kind, in the order in which they came first."""
    made = []
    for what in dict.fromkeys(one.what for one in all_of_them):
        same = [one for one in all_of_them if one.what == what]
        found: Found = {}
        for name in dict.fromkeys(name for one in same for name in one.found):
            values = [one.found[name] for one in same if name in one.found]
            found[name] = sum(values) if all(isinstance(value, int) for value in values) else max(values)
        seconds = [one.seconds for one in same]
        made.append(Row(what, len(same), sum(one.held for one in same), median(seconds), max(seconds), found))
    return made


def table(found: list[Row]) -> list[str]:
    """The table in Markdown."""
    cells = [["", "tries", "held", "seconds: median, most", "found"], ["---", "---:", "---:", "---:", "---"]]
    for row in found:
        figures = ", ".join(
            f"{name} {_figure(name, value)}" for name, value in sorted(row.found.items(), key=_order) if value
        )
        cells.append([row.what, f"{row.tries}", f"{row.held}", f"{row.median:.1f}, {row.most:.1f}", figures])
    return [f"| {' | '.join(row)} |" for row in cells]


def _figure(name: str, value: int | float) -> str:
    if name.startswith("seconds"):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2g}"


def _order(item: tuple[str, int | float]) -> tuple[bool, int]:
    """Counts before sizes, and the largest of them first."""
    return isinstance(item[1], float), -item[1] if isinstance(item[1], int) else 0
