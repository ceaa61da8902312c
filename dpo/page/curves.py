"""Curves as matplotlib draws them: training as a line through its own noise, which is faint points, held-out pairs as dots.

One run has a colour for each metric of a chart; of several each has its own, and a second metric is thin. With more runs than
colours, a second round of them is dashed and a third one dotted.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dpo.page.charts import Chart, Line
from dpo.page.digits import tick
from dpo.page.inline import COLORS, RUNS, inline_svg
from dpo.page.markup import Html
from dpo.page.reading import Metrics

WIDTH, HEIGHT = 340, 208  # of a chart, in points: one is about a pixel of a narrow page
LEFT, RIGHT, TOP, BOTTOM = 46, 7, 22, 31  # around its curves: room for the numbers of its axes, and what they count
POINTS = 300  # of a curve; of more steps, some neighbours are one point, their mean
FEW = 20  # points up to which a curve is drawn through each of them
ROUNDS = ("-", (0, (4, 1.5)), (0, (1, 1.5)))  # of colours: solid, dashed, dotted
BARS = 32
STEPS = [1, 2, 5, 10]  # between two numbers of an axis, times a power of ten


def chart(shown: Chart, metrics: Sequence[Metrics]) -> Html:
    """The chart with the curves of these runs."""
    figure, axes = _empty("step", shown.unit)
    alone = len(metrics) == 1
    for number, one in enumerate(metrics):
        for line in shown.lines:
            color = COLORS[line.color if alone else f"run-{number % RUNS}"]
            _curves(axes, one, line, color, None if alone else number // RUNS)
    if shown.level is not None:
        axes.axhline(shown.level, color=COLORS["grey"], linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate(
            shown.note, (1, shown.level), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            ha="right", size=9, color=COLORS["grey"],
        )  # fmt: skip
    low, high = axes.get_ylim()
    if high - low < shown.least:
        axes.set_ylim((low + high - shown.least) / 2, (low + high + shown.least) / 2)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS, integer=True))
    return inline_svg(figure, shown.name, f"{shown.title} over the steps")


def margins(values: Sequence[float]) -> Html:
    """How many pairs have which margin, as bars; those below 0 are ranked wrong."""
    figure, axes = _empty("nats × beta", "pairs")
    low, high = min(*values, 0.0), max(*values, 0.0)
    width = (high - low) / BARS or 1.0
    first = np.floor(low / width)  # 0 is between two bars
    edges = width * np.arange(first, np.ceil(high / width) + 1)
    counts, edges = np.histogram(values, edges)
    colors = [COLORS["chosen" if left + width / 2 > 0 else "rejected"] for left in edges[:-1]]
    axes.bar(edges[:-1], counts, width=0.88 * width, align="edge", color=colors)
    axes.axvline(0, color=COLORS["grey"], linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: tick(value)))
    return inline_svg(figure, "spread", "Margins of the pairs, as bars")


def _empty(across: str, up: str) -> tuple[Figure, Axes]:
    """A chart without curves, and what its axes count."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    figure.patch.set_visible(False)
    frame = (LEFT / WIDTH, BOTTOM / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT)
    axes = figure.add_axes(frame, facecolor="none")
    axes.set_xlabel(across, size=9.5, color=COLORS["grey"], labelpad=3)
    # above the axis, not along it: it is read without turning the head, and takes no width
    axes.text(0, 1 - 10 / HEIGHT, up, transform=figure.transFigure, size=9.5, color=COLORS["grey"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(COLORS["faint"])
    axes.tick_params(length=0, pad=4, labelsize=9.5, labelcolor=COLORS["grey"])
    axes.grid(axis="y", color=COLORS["faint"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: tick(value)))
    axes.margins(x=0.02, y=0.08)
    return figure, axes


def _curves(axes: Axes, metrics: Metrics, line: Line, color: str, of_several: int | None) -> None:
    """of_several: the round of colours of one of several runs; None for a run alone."""
    steps, values = thinned(*metrics.curve(line.metric))
    if is_smoothed(line, metrics):
        if of_several is None:  # the noise of several would hide them all
            _points(axes, steps, values, color)
        values = smoothed(values)
    width = 0.8 if line.thin and of_several is not None else 1.6
    axes.plot(steps, values, color=color, linewidth=width, linestyle=ROUNDS[of_several or 0], solid_capstyle="round")
    steps, values = thinned(*metrics.curve(line.metric, "held-out"))
    axes.plot(steps, values, "o", color=color, markersize=4.5)


def _points(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str) -> None:
    """Each step as a faint point. They are one line of pieces without length, a tenth of the bytes of as many markers."""
    gap = np.full(len(steps), np.nan)
    x, y = (np.stack([column, column, gap], 1).ravel() for column in (steps, values))
    (line,) = axes.plot(x, y, color=color, linewidth=2.6, alpha=0.4, solid_capstyle="round")
    line.get_path().should_simplify = False  # which leaves out what has no length


def is_smoothed(line: Line, metrics: Metrics) -> bool:
    """Whether the line is a mean over some steps: of so many steps that it says more than each of them."""
    return line.noisy and len(metrics.curve(line.metric)[0]) > FEW


def thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points, each the mean of as many neighbours."""
    cuts = np.unique(np.linspace(0, len(steps), POINTS + 1).astype(int))
    x, y = (np.array([np.mean(column[a:b]) for a, b in pairwise(cuts)]) for column in (steps, values))
    return x, y


def smoothed(values: np.ndarray) -> np.ndarray:
    """Each the mean of its neighbours on both sides, at the ends of those that there are; about as many as the root of all,
    so that a short run too has a line and no tangle."""
    window = np.ones(2 * round(len(values) ** 0.5 / 2) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
