"""CONTRIBUTING.md: its example of a loss is followed to the letter, and works; what it names is there."""

import inspect
import re
import shutil

import pytest

from dpo.losses import LOSSES, parse_loss
from dpo.losses.family import PER_TOKEN
from tests import test_loss_docs
from tests.by_hand import KEYWORDS, random_scores
from tests.processes import ROOT, call

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(NAME,) = re.findall(r"^def (\w+)", CODE)


@pytest.fixture
def added(monkeypatch) -> str:
    """The loss among the others, for the length of a test."""
    known = vars(inspect.getmodule(LOSSES["dpo"])).copy()  # of dpo/losses/pairwise.py, where it says that it goes
    exec(CODE, known)
    monkeypatch.setitem(LOSSES, NAME, known[NAME])
    return NAME


def test_it_is_new_and_four_lines_but_for_what_is_said_of_it():
    assert NAME not in LOSSES and NAME not in PER_TOKEN
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 6 and len(TEXT.splitlines()) <= 80


def test_the_checks_of_the_other_losses_hold_for_it(added, monkeypatch):
    monkeypatch.setitem(KEYWORDS, added, {"beta": 0.3})
    test_loss_docs.test_the_formula_that_is_printed_gives_what_the_function_gives(added)
    test_loss_docs.test_a_docstring_is_a_formula_a_source_and_what_to_know(added)
    test_loss_docs.test_every_keyword_is_in_the_formula_is_explained_and_has_a_range_that_its_default_is_in(
        added, "beta"
    )


def test_the_specs_that_it_names_are_read_and_give_its_values(added):
    specs = [spec.strip('"') for spec in re.findall(r"--loss (\"[^\"]+\"|\w+)", TEXT) if NAME in spec]
    assert len(specs) == 2
    scores = random_scores(3)
    for spec in specs:
        loss = parse_loss(spec)
        beta = loss.terms[0].keywords["beta"]
        assert loss(scores)[NAME].tolist() == pytest.approx(
            (1 - beta * scores.log_ratio).clamp(min=0).square().tolist()
        )


@pytest.mark.slow
def test_in_a_copy_of_the_project_the_two_edits_are_enough_to_train_with_it(tmp_path):
    for room in ("gpt", "data", "dpo"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "dpo/losses/pairwise.py", "a") as file:
        file.write("\n\n" + CODE)
    family = tmp_path / "dpo/losses/family.py"
    text = family.read_text(encoding="utf-8")
    text = text.replace("import cdpo, discopop, dpo,", f"import cdpo, discopop, dpo, {NAME},")
    family.write_text(text.replace("exo, discopop),", f"exo, discopop, {NAME}),"), encoding="utf-8")
    done = call(tmp_path / "dpo/train.py", "--loss", NAME, "--steps", 2, "--batch", 4, "--held-out", 0, cwd=tmp_path)
    assert f"loss     {NAME}(beta=0.1)" in done.stdout and "done     runs/" in done.stdout
    assert f"| {NAME} | `max(0, 1 - beta * log_ratio)^2` |" in call(tmp_path / "dpo/train.py", "--loss", "list").stdout


def test_every_file_that_it_names_is_there():
    named = re.findall(r"\]\(([\w/.]+)\)|`([\w/]+\.(?:py|toml|md|sh))`|(tests/\w+\.py)", TEXT)
    files = {name for names in named for name in names if name} - {"utils.py"}
    assert len(files) > 5 and not [file for file in files if not (ROOT / file).exists()]


def test_one_file_and_one_name_are_tests_that_there_are():
    file, name = re.findall(r"pytest -x (\S+) -k (\w+)", TEXT)[0]
    assert re.search(rf"def test_\w*{name}|\b{name}\b", (ROOT / file).read_text(encoding="utf-8"))
