"""Where a run is: waited for, going on, stopped, finished; and what the page says of it.

A run holds the lock of its folder as long as it goes on, so that one that was stopped or killed is told from one that computes.
"""

import shlex
from datetime import datetime

from dpo.page.markup import Html, joined, tag
from dpo.page.reading import Run

DRAWN = 2  # steps from which on there is a curve: before the first update all that is seen is rounding


def has_curves(run: Run) -> bool:
    """Whether training went far enough for a curve."""
    return run.steps[0] >= DRAWN


def is_finished(run: Run) -> bool:
    """Whether all planned steps are done."""
    done, planned = run.steps
    return done >= max(planned, 1)


def word(run: Run) -> str:
    """How far a run is that is not finished, in a word or two; "" for one that is, or where that is not known."""
    return "" if is_finished(run) or run.goes_on is None else "going on" if run.goes_on else "stopped"


def state(run: Run) -> Html | None:
    """Of a run that is not finished: whether it goes on, how it would, and when it wrote last; None for a finished one."""
    if is_finished(run):
        return None
    done, planned = run.steps
    wrote = joined("Last line of metrics: ", moment(run.written), ".") if run.metrics.lines else None
    if run.goes_on is not False:
        return tag("p", wrote, class_="hint", id="state") if wrote else None
    where = f"after step {done:,} of {planned:,}" if planned else f"after step {done:,}"
    again = tag("code", f"--resume --out {shlex.quote(run.path)}")
    left = f" goes on after step {run.saved:,}. " if run.saved else " begins it anew, there being no checkpoint yet. "
    return tag("p", tag("b", f"Stopped {where}"), ": the same command with ", again, left, wrote, id="state")


def moment(written: float) -> Html:
    """A time as a clock shows it, which the page's script reads too."""
    when = datetime.fromtimestamp(written).astimezone()
    return tag("time", f"{when:%Y-%m-%d %H:%M:%S %Z}", datetime=when.isoformat(timespec="seconds"))


def waits(run: Run) -> str:
    """What stands in place of the curves of a run that has none yet."""
    if is_finished(run):
        return "A single step makes no curve."
    return "Stopped before its first steps." if run.goes_on is False else "Waiting for the first steps."


def to_begin(paths: list[str]) -> Html:
    """Of run folders in which nothing has been written yet."""
    names = joined(*(joined(", " * bool(number), tag("code", path)) for number, path in enumerate(paths)))
    how = " A run asks its reference first; this page shows it from its first line of metrics on."
    return tag("p", tag("b", "Waiting for ", names, " to begin."), how, class_="lead")
