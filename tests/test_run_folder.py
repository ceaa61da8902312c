"""dpo/run_folder.py: what may be written where, files that are whole or as they were, metrics cut to a step."""

import json
import math
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dpo.run_folder import RunFolder, figure
from gpt.command import UserError
from tests.processes import ENVIRONMENT, ROOT


def refused(folder: RunFolder, resume: bool) -> str:
    with pytest.raises(UserError) as caught:
        folder.check_free(resume)
    assert len(str(caught.value).splitlines()) == 1 and str(folder.path) in str(caught.value)
    return str(caught.value)


# Where a run may go


def test_a_disk_without_room_for_three_checkpoints_and_the_model_is_refused_with_what_is_free_and_needed(tmp_path):
    folder = RunFolder(tmp_path / "below" / "run")
    free = shutil.disk_usage(tmp_path).free
    folder.check_room(free // 8, free // 8)
    with pytest.raises(UserError, match="GiB are free there, but checkpoints and the model need") as caught:
        folder.check_room(free // 2, 0)
    assert "\n" not in str(caught.value) and str(folder.path) in str(caught.value)
    for step in (2, 4, 6):  # two of the three are there already
        (folder.checkpoints / f"step-{step:06d}").mkdir(parents=True)
    folder.check_room(free // 2, 0)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_is_absent_or_empty_is_free(tmp_path, resume):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "absent", tmp_path / "absent" / "below"):
        RunFolder(path).check_free(resume)
    assert not (tmp_path / "absent").exists()  # asking makes nothing


def test_a_relative_path_is_free_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunFolder("runs/new").check_free(False)


def test_another_run_is_refused_unless_it_is_resumed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("run.json", {})
    assert "--resume" in refused(folder, False)
    folder.check_free(True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_things_is_refused(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert ("no run.json" if resume else "not empty") in refused(RunFolder(tmp_path), resume)


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_is_refused(tmp_path, resume):
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(RunFolder(tmp_path / "file"), resume)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_below_a_file_is_refused_before_anything_is_computed(tmp_path, resume):
    (tmp_path / "file").write_text("")
    refused(RunFolder(tmp_path / "file" / "run"), resume)


# One writer

HOLDS = """
import sys, time
from dpo.run_folder import RunFolder
with RunFolder(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def writer(path, seconds: float) -> subprocess.Popen:
    words = [sys.executable, "-c", HOLDS, str(path), str(seconds)]
    process = subprocess.Popen(words, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_with_nothing_but_a_lock_that_nobody_holds_is_free(tmp_path):
    folder = RunFolder(tmp_path / "new" / "run")
    with folder.held():
        pass
    folder.check_free(False)
    (folder.path / "thesis.tex").write_text("years of work")
    assert "not empty" in refused(folder, False) and "no run.json" in refused(folder, True)


def test_a_folder_that_somebody_writes_to_is_refused_at_once_and_the_writer_named(tmp_path):
    first = writer(tmp_path, 60)
    begun = time.monotonic()
    assert f"process {first.pid} on " in refused(RunFolder(tmp_path), False)
    with pytest.raises(UserError, match=f"--out {tmp_path}: process {first.pid} on "), RunFolder(tmp_path).held(0.2):
        pass
    assert time.monotonic() - begun < 2
    first.kill()
    first.wait(60)
    with RunFolder(tmp_path).held(0):
        RunFolder(tmp_path).write_json("run.json", {})
    RunFolder(tmp_path).check_free(True)


def test_a_run_that_is_resumed_waits_for_the_last_moments_of_what_was_killed(tmp_path):
    RunFolder(tmp_path).write_json("run.json", {})
    first = writer(tmp_path, 1.5)
    RunFolder(tmp_path).check_free(True)
    with RunFolder(tmp_path).held(0):
        pass
    assert first.wait(60) == 0


def test_a_full_disk_is_one_line_where_a_line_is_logged(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full, which is a disk without room")
    folder = RunFolder(tmp_path)
    folder.metrics.symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"{folder.metrics} cannot be written: No space left on device"):
        folder.log({"step": 1, "split": "train"})


# JSON files


def test_json_that_was_written_is_read_back(tmp_path):
    folder, value = RunFolder(tmp_path / "new" / "run"), {"a": [1, 2.5, None], "ä": "日本\n"}
    folder.write_json("run.json", value)
    assert folder.read_json("run.json") == value
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]


def test_a_value_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("run.json", {"good": 1})
    with pytest.raises(TypeError):
        folder.write_json("run.json", {"bad": {1, 2}})
    assert folder.read_json("run.json") == {"good": 1}


def test_a_reader_never_sees_half_a_file(tmp_path):
    folder = RunFolder(tmp_path)
    values = [{"rows": [n] * 4_000} for n in range(2)]
    folder.write_json("run.json", values[0])
    done = threading.Event()

    def write():
        for n in range(100):
            folder.write_json("run.json", values[n % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not done.is_set():
        assert folder.read_json("run.json") in values
        seen += 1
    writer.join()
    assert seen


@pytest.mark.parametrize("content", [None, "", '{"half', b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="run.json") as caught:
        RunFolder(tmp_path).read_json("run.json")
    assert len(str(caught.value).splitlines()) == 1


# metrics.jsonl


def logged(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run of six steps with evaluations at 0, 3 and 6."""
    folder = RunFolder(tmp_path)
    folder.log({"step": 0, "split": "held-out", "loss": 0.5})
    for step in range(1, 7):
        folder.log({"step": step, "split": "train", "loss": 1 / step})
        if step % 3 == 0:
            folder.log({"step": step, "split": "held-out", "loss": 1 / step})
    return folder


def test_lines_are_appended_one_a_record_in_order(run):
    assert [(line["step"], line["split"]) for line in logged(run)] == [
        (0, "held-out"),
        (1, "train"),
        (2, "train"),
        (3, "train"),
        (3, "held-out"),
        (4, "train"),
        (5, "train"),
        (6, "train"),
        (6, "held-out"),
    ]


@pytest.mark.parametrize("step", range(-1, 8))
def test_cutting_keeps_the_lines_up_to_the_step_untouched_and_forgets_the_later_ones(run, step):
    before = run.metrics.read_text().splitlines()
    run.cut_metrics(step)
    assert run.metrics.read_text().splitlines() == [line for line in before if json.loads(line)["step"] <= step]
    assert [path.name for path in run.path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("written", range(1, 45))
def test_a_last_line_cut_off_anywhere_is_forgotten_and_logging_goes_on_cleanly(run, written):
    line = json.dumps({"step": 7, "split": "train", "loss": 0.25})
    with open(run.metrics, "a") as file:
        file.write(line[:written])
    run.cut_metrics(6)
    run.log({"step": 7, "split": "train", "loss": 1.0})
    assert [line["step"] for line in logged(run)] == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7]


def test_a_step_that_was_cut_and_logged_again_stands_once(run):
    run.cut_metrics(4)
    for step in (5, 6):
        run.log({"step": step, "split": "train", "loss": 2.0})
    assert [line["step"] for line in logged(run) if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_change_in_short_has_no_rounding_and_no_sign_of_zero(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.held_out_change() == ""
    for step, (loss, margin) in enumerate([(1.0, -1e-9), (0.5, 2.2960001)]):
        folder.log({"step": step, "split": "held-out", "loss": loss, "rewards/margins": margin})
    assert folder.held_out_change() == "loss 1 to 0.5, margin 0 to 2.296"
    assert figure(-0.00123456, 3) == "-0.00123"


def test_cutting_a_run_that_logged_nothing_leaves_no_lines(tmp_path):
    RunFolder(tmp_path).cut_metrics(-1)
    assert not (tmp_path / "metrics.jsonl").exists() or logged(RunFolder(tmp_path)) == []


@pytest.mark.parametrize("value", [0.6931471805599453, 123456.789, 1.2345678e-6, 5e-7, 3.21e-9, 0.0])
def test_what_is_logged_keeps_its_digits_however_small_it_is(tmp_path, value):
    # learning rates of 1e-6 and their rise and fall are far below 1
    folder = RunFolder(tmp_path)
    folder.log({"step": 1, "learning_rate": value})
    assert math.isclose(logged(folder)[0]["learning_rate"], value, rel_tol=1e-5)


def test_a_byte_that_is_no_text_costs_its_line_alone(run):
    kept = run.metrics.read_bytes()
    run.metrics.write_bytes(kept + b'{"step": 9, "split": "tr\xffain"}\xff\n')
    run.cut_metrics(10**6)
    assert run.metrics.read_bytes() == kept
