"""Lengths as a picture: how long prompts and answers are, and by how much the chosen answer is longer than the rejected one."""

from io import BytesIO

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, GREY, FAINT, PAPER = "#1f2328", "#636c76", "#d5d9de", "#fdfdfb"  # as on the sheet of losses
COLORS = {"prompt": "#636c76", "chosen": "#0b66c2", "rejected": "#d1480a"}
BARS = 40
OUTER = 0.005  # the fraction of the pairs at either end whose difference is drawn at the edge
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "lengths", "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"]}


def drawn(lengths: np.ndarray, max_length: int, kind: str) -> bytes:
    """The picture as a file of that kind (png, svg, pdf). lengths (pairs, 3): tokens of prompt, chosen and rejected, 0 for
    a rejected answer that is not there; max_length: tokens that fit."""
    content = BytesIO()
    with rc_context(STYLE):
        sheet(lengths, max_length).savefig(content, format=kind, dpi=160, metadata={"svg": {"Date": None}}.get(kind))
    return content.getvalue()


def sheet(lengths: np.ndarray, max_length: int) -> Figure:
    """Both histograms, one beside the other; where no pair has two answers the first alone."""
    two = lengths[lengths[:, 2] > 0]
    figure = Figure(figsize=(10 if len(two) else 5.4, 3.8), facecolor=PAPER, layout="constrained")
    left, *right = figure.subplots(1, 2 if len(two) else 1, squeeze=False)[0]
    _lengths(left, lengths, max_length)
    if right:
        _differences(right[0], two[:, 1] - two[:, 2])
    for axes in (left, *right):
        axes.set_facecolor("none")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        axes.tick_params(length=0, labelsize=8, labelcolor=GREY)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda count, place: f"{count:,.0f}"))
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def edges_of(lengths: np.ndarray) -> np.ndarray:
    """Where the bars of whole numbers from 1 to the longest begin and end: each is wider than the one before by a constant
    factor, but none holds less than one number."""
    high = max(2, int(lengths.max()))
    return np.unique(np.rint(np.geomspace(1, high + 1, BARS))) - 0.5


def _lengths(axes: Axes, lengths: np.ndarray, max_length: int) -> None:
    """Three outlines over a scale of doublings, with a line at what fits."""
    edges = edges_of(lengths)
    for name, side in zip(COLORS, lengths.T):
        if (side := side[side > 0]).size:
            counts, _ = np.histogram(side, edges)
            # a wider bar is lower for as many: its height is pairs for each doubling, so that areas can be compared
            heights = counts / np.log2(edges[1:] / edges[:-1])
            axes.stairs(heights, edges, color=COLORS[name], linewidth=1.5, label=f"{name}, median {np.median(side):g}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, place: f"{tokens:,.0f}" if tokens >= 1 else ""))
    axes.set_xlim(edges[0], max(edges[-1], 1.15 * max_length) if lengths.max() > max_length / 8 else edges[-1] * 1.15)
    axes.axvline(max_length, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_ylabel("pairs, for each doubling", size=8.5, color=GREY)
    axes.set_title("How long are they?", size=11, color=INK, loc="left", weight="bold")
    axes.set_xlabel(f"tokens; prompt and longer answer together may have {max_length:,}", size=8.5, color=GREY)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def _differences(axes: Axes, more: np.ndarray) -> None:
    """more (pairs,): by how many tokens chosen is longer than rejected."""
    reach = max(3, int(np.ceil(np.quantile(abs(more), 1 - 2 * OUTER))))
    width = 2 * reach // BARS | 1  # tokens, odd, so that 0 is the middle of a bar
    half = (reach // width + 1) * width
    edges = np.arange(-half - width / 2, half + width, width)
    counts, _ = np.histogram(more.clip(edges[0], edges[-1]), edges)
    middles = (edges[1:] + edges[:-1]) / 2
    colors = [COLORS["chosen"] if m > 0 else COLORS["rejected"] if m < 0 else GREY for m in middles]
    axes.bar(middles, counts, width=0.9 * width, color=colors)
    axes.set_xlim(edges[0], edges[-1])
    beyond = int((abs(more) > edges[-1]).sum())
    tail = f"; {beyond:,} further out, drawn at the edges" if beyond else ""
    axes.set_ylabel("pairs", size=8.5, color=GREY)
    axes.set_title("Which answer is longer?", size=11, color=INK, loc="left", weight="bold")
    axes.set_xlabel(f"tokens of chosen less tokens of rejected{tail}", size=8.5, color=GREY)
    for place, align, name, count in (
        (0.02, "left", "rejected", (more < 0).sum()),
        (0.98, "right", "chosen", (more > 0).sum()),
    ):
        axes.text(
            place, 0.95, f"{name} longer\n{100 * count / len(more):.1f} %", color=COLORS[name], size=9,
            ha=align, va="top", transform=axes.transAxes,
        )  # fmt: skip
