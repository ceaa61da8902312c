"""dpo/page/state.py: what a page says of a run that is waited for, goes on, was stopped or is finished."""

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from dpo.page.about import heading
from dpo.page.page import page_of
from dpo.page.reading import Metrics, NotBegun, Run, goes_on, read_run
from dpo.page.serve import stamp_of
from dpo.run_folder import RunFolder
from gpt.files import locked
from tests.pages import Taken, dpo_lines, make_run


def part_of_a_run(folder: Path, lines: int) -> Path:
    return make_run(folder, dpo_lines()[:lines], [], [])


# before there is anything to draw


def test_what_has_not_begun_is_waited_for_by_a_watched_page_alone(tmp_path):
    absent, empty = tmp_path / "<b>absent", tmp_path / "empty"
    empty.mkdir()
    found = Taken(page_of([absent, empty], watched=True))
    assert f"Waiting for {absent}, {empty} to begin." in found.text and not found.of("svg")
    for path in (absent, empty):
        with pytest.raises(NotBegun):
            page_of([path])
    both = Taken(page_of([absent, make_run(tmp_path / "run")], watched=True))
    assert f"Waiting for {absent} to begin." in both.text and both.of("svg")


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_before_the_second_step_no_rounding_is_drawn(tmp_path, lines):
    folder = part_of_a_run(tmp_path / "run", lines)
    with locked(folder / "lock"):
        found = Taken(page_of([folder], watched=True))
    assert "Waiting for the first steps." in found.text and not found.of("svg")
    assert "none of the signs" not in found.text and "dots are held-out pairs" not in found.text
    assert f"{max(lines - 1, 0)} of 60 steps of 8 pairs, going on, with" in found.text


def test_from_the_second_step_on_there_are_curves(tmp_path):
    assert Taken(page_of([part_of_a_run(tmp_path / "run", 3)])).of("svg")


@pytest.mark.parametrize("lines, said", [(20, "Nothing yet: most signs"), (23, "Nothing: none of the signs")])
def test_before_signs_are_looked_for_their_absence_says_nothing(tmp_path, lines, said):
    assert said in Taken(page_of([part_of_a_run(tmp_path / "run", lines)])).text


def test_several_runs_of_which_none_has_curves_yet_are_a_table(tmp_path):
    runs = [part_of_a_run(tmp_path / name, 2) for name in "ab"]
    found = Taken(page_of(runs))
    assert not found.of("svg") and found.of("table") and "Stopped before its first steps." in found.text


def test_a_run_of_one_step_is_finished_and_has_no_curve(tmp_path):
    folder = part_of_a_run(tmp_path / "run", 2)
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"steps": 60', '"steps": 1'))
    found = Taken(page_of([folder]))
    assert "A single step makes no curve." in found.text and "Stopped" not in found.text


# a run that ends before its end


def test_a_run_that_is_written_goes_on_and_one_that_nobody_writes_was_stopped(tmp_path):
    folder = part_of_a_run(tmp_path / "a run", 30)
    with locked(folder / "lock"):
        assert goes_on(RunFolder(folder)) is True
        going = Taken(page_of([folder]))
        before = stamp_of([folder])
    assert goes_on(RunFolder(folder)) is False
    assert stamp_of([folder]) != before  # a watched page is drawn anew, though no file has changed
    stopped = Taken(page_of([folder]))
    assert "28 of 60 steps of 8 pairs, going on, with" in going.text and "Stopped" not in going.text
    assert "28 of 60 steps of 8 pairs, stopped, with" in stopped.text
    anew = (
        f"Stopped after step 28 of 60: the same command with --resume --out '{folder}' begins it anew, there being no"
    )
    assert anew in stopped.text


def test_it_goes_on_from_the_newest_checkpoint(tmp_path):
    folder = part_of_a_run(tmp_path / "run", 30)
    for name in ("step-000009", "step-000020", "step-000025.part", "step-none"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    assert f"with --resume --out {folder} goes on after step 20. Last line" in Taken(page_of([folder])).text


def test_a_lock_that_cannot_be_asked_is_no_verdict(tmp_path):
    folder = part_of_a_run(tmp_path / "run", 30)
    (folder / "lock").mkdir()
    found = Taken(page_of([folder]))
    assert "28 of 60 steps of 8 pairs, not finished yet, with" in found.text and "Stopped" not in found.text


def test_when_the_last_line_was_written_is_told_until_the_run_is_finished(tmp_path):
    folder = part_of_a_run(tmp_path / "run", 30)
    os.utime(folder / "metrics.jsonl", (1_700_000_000, 1_700_000_000))
    found = Taken(page_of([folder]))
    (when,) = found.of("time")
    assert (
        re.fullmatch(r"2023-11-1[45]T\d\d:\d\d:20[+-]\d\d:\d\d", when["datetime"])
        and "Last line of metrics" in found.text
    )
    assert not Taken(page_of([make_run(tmp_path / "whole")])).of("time")


def test_of_several_runs_the_table_says_which_was_stopped(tmp_path):
    runs = [make_run(tmp_path / "whole"), part_of_a_run(tmp_path / "part", 30)]
    assert "28 of 60 stopped" in Taken(page_of(runs)).text


# what a page is headed


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"loss": "dpo + 1.0*sft", "init": ""}, "name dpo + 1.0*sft · data/tiny · 28 of 60 steps"),
        ({"loss": "ipo", "init": f"OWNER/NAME@{'a' * 40}"}, "name ipo · OWNER/NAME · 28 of 60 steps"),
        ({"loss": "sft", "init": "/long/way/to/runs/sft/"}, "name sft · runs/sft · 28 of 60 steps"),
    ],
)
def test_the_heading_says_what_was_run(flags, expected):
    run = Run("name", {"flags": flags, "settings": {"steps": 60}}, Metrics(dpo_lines()[:30]), {}, [], [])
    assert Taken(heading(run)).text == expected


def test_a_run_without_a_record_is_headed_by_its_name(tmp_path):
    folder = make_run(tmp_path / "bare")
    (folder / "run.json").unlink()
    assert Taken(heading(read_run(folder))).text == "bare"
