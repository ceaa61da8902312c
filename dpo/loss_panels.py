"""The family of losses on one sheet: of each the loss over the margin, and below it the pulls at both answers.

Places are in points, 72 an inch, counted from the upper left corner, as one lays out a page.
"""

import inspect
import sys
import textwrap
from math import floor, log10

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dpo.loss_curves import RESTING, START, TOKENS, curve, reach
from dpo.losses.family import LOSSES, described, own_keywords

INK, GREY, FAINT, PAPER = "#1f2328", "#636c76", "#d5d9de", "#fdfdfb"
CHOSEN, REJECTED = "#0b66c2", "#d1480a"
COLUMNS, WIDTH, EDGE, GUTTER = 4, 720, 36, 30  # the numbers of an axis stand in the gutter
HEAD, HEADING, FOOT, LINE = 100, 42, 32, 9.4  # heights: of the page's head, a group's heading, below a panel, of a line
TITLE, LOSS, GAP, PULL = (
    15.5,
    62,
    6,
    42,
)  # heights in a panel: of its name, behind the formula of the loss, a gap, the pulls
LETTERS, POINTS = 37, 181  # in a line of a formula; of a curve
SIGNS = {"sigmoid": "σ", "2 beta": "2β", "beta": "β", "pi_ref": "π_ref", "pi(": "π(", " * ": "·", "^2": "²"}
MINUS, TIED = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
HOW = (
    "Across: the margin, log_ratio in nats, split half and half: since the start the chosen answer has gained margin / 2, "
    "the rejected one lost as much.",
    "A pull is minus the derivative of the step's loss with respect to log π of that answer: what a step of training does to it.",
)
NOTES = (
    f"Both answers have {TOKENS} tokens and log π {START:g} at the start, which only losses of means or of likelihoods can see. "
    "Without a reference the margin is log π(y_w) - log π(y_l).",
    f"Losses that look at the whole step see {len(RESTING)} pairs more, at rest, whose chosen and rejected answers are "
    f"{', '.join(f'{gap:g}' for gap in RESTING)} nats apart in policy and reference.",
    "aot holds each pair to the one of its rank, so its loss jumps where the pair overtakes another.",
)


def sheet() -> Figure:
    """The whole family, in the order and the groups of its table."""
    groups: dict[str, list[str]] = {}
    for name, loss in LOSSES.items():
        heading = (inspect.getdoc(sys.modules[loss.__module__]) or "").splitlines()[0]
        groups.setdefault(heading, []).append(name)
    rows = [
        (heading, names[i : i + COLUMNS]) for heading, names in groups.items() for i in range(0, len(names), COLUMNS)
    ]
    above = [TITLE + LINE * max(len(formula(name)) for name in names) for _, names in rows]  # of the curves
    page = Page(
        HEAD + HEADING * len(groups) + sum(above) + len(rows) * (LOSS + GAP + PULL + FOOT) + LINE * len(NOTES) + 14
    )
    _head(page)
    width = (WIDTH - 2 * EDGE - (COLUMNS - 1) * GUTTER) / COLUMNS
    y, last = HEAD, ""
    for (heading, names), text_height in zip(rows, above):
        if heading != last:
            title, _, rest = heading.partition(": ")
            page.line(EDGE, WIDTH - EDGE, y, FAINT, 0.7)
            page.text(EDGE, y + 15, title, size=10.5, weight="bold")
            page.text(EDGE, y + 26, rest, size=7.8, color=GREY)
            y, last = y + HEADING, heading
        for column, name in enumerate(names):
            _panel(page, name, EDGE + column * (width + GUTTER), y, width, text_height)
        y += text_height + LOSS + GAP + PULL + FOOT
    for number, line in enumerate(NOTES):
        page.text(EDGE, y + number * LINE, line.replace(" -", f" {MINUS}"), size=7.2, color=GREY)
    return page.figure


def formula(name: str) -> list[str]:
    """The formula of a loss in a few signs, as the lines of its panel."""
    text, _ = described(LOSSES[name])
    for word, sign in SIGNS.items():
        text = text.replace(word, sign)
    for joint in (" / ", " = ", "log "):  # not a place to break a line at
        text = text.replace(joint, joint.replace(" ", TIED))
    return textwrap.wrap(text.replace("-", MINUS), LETTERS)


class Page:
    """A figure whose places are counted in points from its upper left corner."""

    def __init__(self, height: float):
        self.height = height
        self.figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor=PAPER)

    def text(self, x: float, y: float, text: str, **how) -> None:
        self.figure.text(x / WIDTH, 1 - y / self.height, text, **({"color": INK} | how))

    def line(self, left: float, right: float, y: float, color: str, width: float) -> None:
        ends = [left / WIDTH, right / WIDTH], [1 - y / self.height] * 2
        self.figure.add_artist(Line2D(*ends, color=color, linewidth=width))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        return self.figure.add_axes(
            (x / WIDTH, 1 - (y + height) / self.height, width / WIDTH, height / self.height), facecolor="none"
        )


def _head(page: Page) -> None:
    page.text(EDGE, 32, "Every preference loss, at its own defaults", size=14, weight="bold")
    keys = (
        (INK, "loss of a pair; the dot is the start"),
        (CHOSEN, "pull at the chosen answer"),
        (REJECTED, "pull at the rejected answer: above 0 it becomes likelier, below 0 less likely"),
    )
    for (color, meaning), x in zip(keys, (0, 172, 304)):
        page.line(EDGE + x, EDGE + x + 14, 51, color, 2)
        page.text(EDGE + x + 18, 53.5, meaning, size=7.5)
    for number, line in enumerate(HOW):
        page.text(EDGE, 69 + number * LINE, line, size=7.5, color=GREY)


def _panel(page: Page, name: str, x: float, y: float, width: float, text_height: float) -> None:
    """One loss: name and defaults, formula, the loss, the pulls. The place is that of its upper left corner."""
    own = {SHORT.get(key, key): value for key, value in own_keywords(name).items()}
    page.text(x, y + 4, name, size=10, weight="bold")
    page.text(
        x + width, y + 4, ", ".join(f"{key} {value:g}" for key, value in own.items()), size=7.2, color=GREY, ha="right"
    )
    for number, line in enumerate(formula(name)):
        page.text(x, y + TITLE + number * LINE, line, size=7.4, color=GREY)
    y += text_height
    margins = torch.linspace(*reach(name), POINTS, dtype=torch.float64)
    loss, chosen, rejected = curve(name, margins)
    (start,) = curve(name, torch.zeros(1))[0].tolist()

    upper = page.axes(x, y, width, LOSS)
    upper.set_gid(f"{name}-loss")
    upper.plot(margins, loss, color=INK, linewidth=1.6)
    upper.plot([0], [start], "o", color=INK, markersize=3.6)
    upper.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    upper.tick_params(labelbottom=False)
    lower = page.axes(x, y + LOSS + GAP, width, PULL)
    lower.set_gid(f"{name}-pulls")
    for values, color in ((rejected, REJECTED), (chosen, CHOSEN)):
        lower.plot(margins, values, color=color, linewidth=1.4)
    most = float(torch.cat([chosen, rejected]).abs().max())
    lower.set(ylim=(-1.1 * most, 1.1 * most), yticks=[-_round_below(1.02 * most), 0, _round_below(1.02 * most)])
    for axes in (upper, lower):
        axes.set_xlim(float(margins[0]), float(margins[-1]))
        axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        axes.spines[:].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], prune="both"))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.yaxis.set_major_formatter(FuncFormatter(_short))
        axes.tick_params(length=0, pad=2, labelsize=7, labelcolor=GREY)


SHORT = {"beta": "β", "label_smoothing": "e"}  # as in the formulas


def _round_below(value: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... and 0.5, 0.2, 0.1, ... that is not above the value."""
    power = 10 ** floor(log10(value))
    return max(step * power for step in (1, 2, 5) if step * power <= value * (1 + 1e-9))


def _short(value: float, place: int) -> str:
    """10000 as 10k, with the sign that a formula has."""
    value, unit = (value / 1e6, "M") if abs(value) >= 1e6 else (value / 1e3, "k") if abs(value) >= 1e4 else (value, "")
    return f"{value:g}{unit}".replace("-", MINUS)
