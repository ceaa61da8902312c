"""data/length_sheet.py: what stands in the figure is the histogram of the lengths."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from data.length_sheet import drawn, edges_of, sheet


@pytest.fixture
def lengths() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(1, 300, (500, 3))


def test_edges_hold_every_whole_number_once():
    for high in (1, 2, 3, 7, 100, 5000, 10**6):
        edges = edges_of(np.array([[1, high, 1]]))
        assert edges[0] == 0.5 and edges[-1] >= high + 0.5 and (np.diff(edges) >= 1).all()
        assert (edges % 1 == 0.5).all()


def test_the_outlines_hold_all_pairs(lengths):
    axes, _ = sheet(lengths, 1024).axes
    for outline, side in zip(axes.patches, lengths.T):
        heights, edges, _ = outline.get_data()
        counts = heights * np.log2(edges[1:] / edges[:-1])
        expected = [((side > low) & (side < high)).sum() for low, high in zip(edges[:-1], edges[1:])]
        assert counts == pytest.approx(expected) and sum(expected) == 500
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"{name}, median {np.median(side):g}" for name, side in zip(("prompt", "chosen", "rejected"), lengths.T)
    ]
    assert axes.lines[0].get_xdata()[0] == 1024


@pytest.mark.parametrize("scale", [1, 2, 10])
def test_the_bars_count_differences_and_what_is_far_out_stands_at_the_edges(lengths, scale):
    lengths = lengths // 30 * scale + 1
    lengths[0] = (5, 10**6, 1)
    more = lengths[:, 1] - lengths[:, 2]
    _, axes = sheet(lengths, 1024).axes
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
    assert sum(height for _, height in bars) == 500
    width = bars[1][0] - bars[0][0]
    for middle, height in bars[1:-1]:
        assert height == (abs(more - middle) < width / 2).sum()
    assert min(abs(middle) for middle, _ in bars) == pytest.approx(0)  # ties are in the middle of a bar
    assert bars[-1][1] == (more > bars[-1][0] - width / 2).sum() and "1 further out" in axes.get_xlabel()
    said = " ".join(text.get_text() for text in axes.texts)
    assert f"{100 * (more > 0).mean():.1f} %" in said and f"{100 * (more < 0).mean():.1f} %" in said


def test_rows_with_one_answer_have_the_first_picture_alone(lengths):
    lengths[:, 2] = 0
    assert len(sheet(lengths, 64).axes) == 1


@pytest.mark.parametrize("shape", [[[1, 2, 0]], [[1, 2, 2]], [[9, 10**6, 1], [1, 1, 1]]])
@pytest.mark.parametrize("kind, begins", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_any_lengths_can_be_drawn_as_any_kind(shape, kind, begins):
    assert drawn(np.array(shape), 64, kind).startswith(begins)
