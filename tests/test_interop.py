"""docs/interop.md: every block of it that says `run` is run as it stands, and prints what stands below it."""

import json
import math
import re
import runpy
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dpo import train
from dpo.losses import LOSSES, Scores, parse_loss
from gpt.command import parse
from gpt.optim import adamw, update
from gpt.weights import load_gpt
from tests.processes import ROOT, call

PAGE = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(python|sh) run ?([^\n]*)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
OTHERS = {"datasets", "lightning_fabric", "pandas", "peft", "transformers", "trl"}  # that a reader may be without


class Block(NamedTuple):
    """A block of the page: a file of Python, or one line of a shell."""

    language: str
    name: str  # of the file, where the page gives it one
    text: str
    printed: str  # what the page says that it prints

    @property
    def asks_for(self) -> set[str]:
        return OTHERS & set(re.findall(r"^(?:from|import) (\w+)", self.text, re.MULTILINE))


SECTIONS = {
    section.partition("\n")[0]: [Block(*found) for found in FENCED.findall(section)]
    for section in PAGE.split("\n## ")[1:]
}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder like the repository's root, where the working folder is."""
    for room in ("gpt", "data", "dpo"):
        (tmp_path / room).symlink_to(ROOT / room)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(block: Block, root: Path) -> str:
    """What the block prints when it is run: in this process, since most of the time goes into importing torch."""
    if block.language == "sh":
        program, script, *words = shlex.split(block.text)
        assert (program, script) == ("python", "dpo/train.py")
        with redirect_stdout(StringIO()) as said:
            assert train.main(parse(train.Flags, words)) == 0
        return said.getvalue()
    path = root / (block.name or "block.py")
    path.write_text(block.text, encoding="utf-8")
    if "trl" in block.asks_for:  # which sets up the process that it is in
        return call(path, cwd=root, PYTHONPATH=str(root), HF_HUB_OFFLINE="1").stdout
    with redirect_stdout(StringIO()) as said:
        runpy.run_path(str(path), run_name="__main__")
    return said.getvalue()


def same(found: str, expected: str) -> bool:
    """Whether two texts are alike, but for one unit of the last digit that a number with a point is shown with."""
    numbers = list(zip(NUMBER.findall(found), NUMBER.findall(expected)))
    return NUMBER.split(found) == NUMBER.split(expected) and all(close(*two) for two in numbers)


def close(found: str, expected: str) -> bool:
    digits = len(expected.partition(".")[2])
    if not digits or digits != len(found.partition(".")[2]):
        return found == expected
    return abs(float(found) - float(expected)) < 1.5 * 10.0**-digits


def test_a_number_may_differ_in_its_last_digit_and_nothing_else_may():
    assert same("step 3  loss 0.6931\n", "step 3  loss 0.6932\n") and same("none\n", "none\n")
    for other in (
        "step 4  loss 0.6931\n",
        "step 3  loss 0.6933\n",
        "step 3  loss 0.693\n",
        "step 3  lost 0.6931\n",
        "step 3",
    ):
        assert not same(other, "step 3  loss 0.6931\n")


def test_every_section_runs_something_and_every_block_of_python_prints_something():
    assert len(SECTIONS) == PAGE.count("\n## ") == PAGE.count("](#") and all(SECTIONS.values())
    blocks = [block for section in SECTIONS.values() for block in section]
    assert len(blocks) == PAGE.count("\n```python") + PAGE.count("\n```sh run")
    assert all(block.printed for block in blocks if block.language == "python")


def timed(title: str):
    """The section as a parameter; one that imports TRL takes its time."""
    slow = any("trl" in block.asks_for for block in SECTIONS[title])
    return pytest.param(title, marks=pytest.mark.slow) if slow else title


@pytest.mark.parametrize("title", map(timed, SECTIONS))
def test_what_a_section_runs_prints_what_the_page_says(title, root, signals):
    for block in SECTIONS[title]:
        for package in sorted(block.asks_for):
            pytest.importorskip(package, reason=f"{package} is absent: docs/interop.md uses it")
        found = printed(block, root)
        assert block.language == "sh" or same(found, block.printed), f"{title}: put this below the block\n{found}"


def test_every_loss_is_content_with_six_numbers_a_pair_and_three_modifiers_with_one_more():
    numbers = [-torch.rand(4) for _ in range(4)] + [torch.arange(1.0, 5.0), torch.arange(2.0, 6.0)]
    for spec in [*LOSSES, "dpo(divergence=js)"]:
        (losses,) = parse_loss(spec)(Scores(*numbers)).values()
        assert losses.shape == (4,) and losses.isfinite().all()
    for modifier, fields in (("ld_alpha=0.5", "heads"), ("wpo=true", "weight"), ("margin=true", "margin")):
        loss = parse_loss(f"dpo({modifier})")
        with pytest.raises(TypeError):
            loss(Scores(*numbers))
        more = {fields: torch.stack(numbers[:4]) if fields == "heads" else torch.ones(4)}
        assert loss(Scores(*numbers, **more))["dpo"].isfinite().all()


def test_fabric_wraps_an_optimizer_so_that_update_would_not_clip(make_gpt):
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)

    def moved(wrapped: bool) -> float:
        model = make_gpt()
        before = model.lm_head.weight.detach().clone()
        optimizer = adamw(model, 0.0)
        (ours, theirs) = (fabric.setup(model), optimizer) if not wrapped else fabric.setup(model, optimizer)
        fabric.backward(1e4 * ours(torch.arange(8)[None]).square().mean())
        # AdamW hardly sees the length of a gradient, unless it comes near its epsilon of 1e-8
        update(theirs, 0.1, 1e-9, torch.tensor(True))
        return (model.lm_head.weight - before).abs().max().item()

    assert moved(wrapped=False) < 0.02 and moved(wrapped=True) > 0.09


@pytest.mark.slow
def test_two_processes_of_fabric_or_torchrun_give_the_losses_of_our_command(root):
    """The commands stand on the page, below the block that is saved as fabric_dpo.py."""
    pytest.importorskip("lightning_fabric")
    (block,) = SECTIONS["Our step under Lightning Fabric"]
    (root / block.name).write_text(block.text, encoding="utf-8")
    (commands,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    found = []
    for line in commands.splitlines():
        first, *words = shlex.split(line)
        if first == "torchrun":
            assert words.pop(0) == "--nproc_per_node=2"
            found.append(call(*words, processes=2, cwd=root, PYTHONPATH=str(root)).stdout)
        else:
            assert (first, words.pop(0)) == ("N=2", "python")
            found.append(call(*words, cwd=root, PYTHONPATH=str(root), N="2").stdout)
    *fabrics, _ = [re.findall(r"loss (\S+)  grad_norm (\S+)", said) for said in found]
    (metrics,) = root.glob("runs/*/metrics.jsonl")
    ours = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(ours) == 10 and not math.isclose(ours[0]["loss"], ours[-1]["loss"], abs_tol=1e-2)
    for lines in fabrics:
        assert [float(loss) for loss, _ in lines] == pytest.approx([line["loss"] for line in ours], abs=1e-5)
        assert [float(norm) for _, norm in lines] == pytest.approx([line["grad_norm"] for line in ours], abs=1e-4)
    saved, trained = (load_gpt(path).state_dict() for path in (root / "runs/fabric/model", metrics.parent))
    for name, value in saved.items():
        torch.testing.assert_close(value, trained[name], rtol=0, atol=1e-5)
