"""dpo/loss_sheet.py: all losses are on the sheet, its curves are their values, and the one that is committed is today's."""

import re
import sys
from math import exp, log, log1p
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("matplotlib")

from dpo import loss_sheet
from dpo.loss_curves import at_margin, curve, reach
from dpo.loss_panels import sheet
from dpo.losses import LOSSES
from dpo.losses.family import COUPLED, own_keywords
from gpt.command import UserError
from tests.processes import ROOT, call

SVG = "{http://www.w3.org/2000/svg}"


def sp(x: float) -> float:
    """-log sigmoid(-x)"""
    return log1p(exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def odds(mean: float) -> float:
    return mean - log(1 - exp(mean))


# A margin of 10: the chosen answer is at -15 for -20, 5 more than at the start, the rejected one at -25; 10 tokens each.
# Of a step that is coupled, four others are at rest, their answers 40, 20, -20 and -40 apart
AT_10 = {
    "dpo": sp(-0.1 * 10),
    "dpo_norm": sp(-5 * (0.5 + 0.5)),
    "cdpo": 0.9 * sp(-1) + 0.1 * sp(1),
    "robust": (0.9 * sp(-1) - 0.1 * sp(1)) / 0.8,
    "ipo": (0.5 + 0.5 - 5) ** 2,
    "hinge": 1 - 0.05 * 10,
    "exo": sigmoid(1) * log(sigmoid(1) / 0.999) + sigmoid(-1) * log(sigmoid(-1) / 0.001),
    "discopop": sigmoid(-0.5 / 0.05) * sp(-0.5) + sigmoid(0.5 / 0.05) * exp(-0.5),
    "nca": sp(-0.05) + 0.5 * sp(0.05) + 0.5 * sp(-0.05),
    "bco": sp(-0.05) + sp(-0.05),
    "sppo": (5 - 500) ** 2 + (-5 + 500) ** 2,
    "apo_zero": 1 - sigmoid(0.5) + sigmoid(-0.5),
    "apo_down": sigmoid(0.5) + 1 - sigmoid(1),
    "dpop": sp(-0.3 * 10),  # the chosen answer has not fallen
    "aot": sp(-0.1 * (10 - 0)),  # its rank is the third, and the reference's third margin is 0
    "aot_unpaired": sp(-0.1 * (5 - 0)),  # the best chosen answer against the best rejected one
    "kto": (sigmoid(0.1 * (0 - 5)) + sigmoid(0.1 * (-5 - 1))) / 2,  # the mean gains of five pairs are 1 and -1
    "sft": 15,
    "simpo": sp(-(2 * (-1.5 + 2.5) - 0.5)),
    "orpo": 1.5 + 0.1 * sp(-(odds(-1.5) - odds(-2.5))),
    "cpo": sp(-0.1 * 10) + 1.5,
}


@pytest.fixture(scope="module")
def panels() -> dict[str, list[tuple[list[float], list[float]]]]:
    """The curves of each panel, as they stand in the figure; in a panel of pulls the rejected answer's come first."""
    return {
        axes.get_gid(): [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines[: 2 - one]]
        for axes in sheet().axes
        for one in [axes.get_gid().endswith("-loss")]
    }


def test_the_sheet_has_one_panel_for_each_loss(panels):
    assert list(panels) == [f"{name}-{what}" for name in LOSSES for what in ("loss", "pulls")]


@pytest.mark.parametrize("name", LOSSES)
def test_a_curve_is_the_loss_by_hand_at_a_margin_of_10(name):
    loss, chosen, rejected = curve(name, torch.tensor([10.0]))
    assert loss.item() == pytest.approx(AT_10[name], rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_drawn_is_the_curve_and_reaches_over_the_start(name, panels):
    ((x, y),) = panels[f"{name}-loss"]
    (at, of_rejected), (_, of_chosen) = panels[f"{name}-pulls"]
    assert x == at and (x[0], x[-1]) == pytest.approx(reach(name)) and x[0] < 0 < x[-1]
    some = slice(None, None, 20)
    for values, expected in zip((y, of_chosen, of_rejected), curve(name, torch.tensor(x, dtype=torch.float64)[some])):
        assert values[some] == expected.tolist()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"kto"}))
def test_a_pull_is_minus_the_slope_of_the_loss_when_one_answer_moves(name):
    step, margin = 1e-4, 0.3 * reach(name)[1]
    _, *pulls = curve(name, torch.tensor([margin]))
    scores, moved = at_margin(margin, name), torch.zeros(5 if name in COUPLED else 1, dtype=torch.float64)
    moved[0] = step
    for answer, pull in zip(("chosen", "rejected"), pulls):
        by = [scores._replace(**{answer: getattr(scores, answer) + sign * moved}) for sign in (1, -1)]
        up, down = (float(LOSSES[name](one).sum()) for one in by)
        assert -(up - down) / (2 * step) == pytest.approx(float(pull), rel=1e-4, abs=1e-9)


def test_no_gradient_passes_what_stands_for_the_divergence_in_kto():
    _, chosen, rejected = curve("kto", torch.tensor([10.0]))
    of_chosen, of_rejected = 0.1 * (0 - 5), 0.1 * (-5 - 1)
    assert float(chosen) == pytest.approx(0.1 / 2 * sigmoid(of_chosen) * sigmoid(-of_chosen))
    assert float(rejected) == pytest.approx(-0.1 / 2 * sigmoid(of_rejected) * sigmoid(-of_rejected))


def texts(file: Path) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.parse(file).iter(f"{SVG}text")]


def test_the_picture_in_the_readme_is_the_one_that_the_command_draws_and_small(tmp_path):
    committed, drawn = ROOT / "docs/losses.svg", tmp_path / "losses.svg"
    call(ROOT / "dpo/loss_sheet.py", "--out", drawn)
    assert committed.stat().st_size < 150_000
    assert "(docs/losses.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert texts(committed) == texts(drawn)
    # the curves, to a rounded hundredth of a point: letters and numbers of ids follow from what is drawn alone
    old, new = (re.findall(r"[ML] ([\d.]+) ([\d.]+)", file.read_text(encoding="utf-8")) for file in (committed, drawn))
    assert len(old) == len(new) > 1000
    assert all(abs(float(a) - float(b)) < 0.05 for one, other in zip(old, new) for a, b in zip(one, other))


@pytest.mark.parametrize("name", LOSSES)
def test_the_picture_names_each_loss_with_its_keywords(name):
    found = texts(ROOT / "docs/losses.svg")
    values = ", ".join(f"{value:g}" for value in own_keywords(name).values())
    assert not values or re.sub(r"\w+ ", "", found[found.index(name) + 1]) == values


@pytest.mark.parametrize("ending, begins", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("SVG", b"<?xml")])
def test_the_ending_of_the_file_says_what_kind_it_is(ending, begins, tmp_path, capsys):
    file = tmp_path / f"new/losses.{ending}"
    loss_sheet.main(loss_sheet.Flags(out=str(file)))
    assert file.read_bytes().startswith(begins) and str(file) in capsys.readouterr().out


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="must end in .svg, .pdf or .png"):
        loss_sheet.main(loss_sheet.Flags(out=str(tmp_path / "losses.jpeg")))


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "dpo.loss_panels")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        loss_sheet.main(loss_sheet.Flags(out=str(tmp_path / "losses.svg")))
    assert not list(tmp_path.iterdir())
