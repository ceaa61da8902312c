"""gpt/joining.py with real processes: who is missing, who differs, and whether all have met the same end."""

import json
import re
import time
from pathlib import Path

import pytest

from tests.processes import gang

HEAD = """
import json, os, signal, sys, time
import torch
from gpt.command import UserError
from gpt.joining import join, must_agree
from gpt.parallel import add_up, agree, on_main
rank = int(os.environ["RANK"])

def told(error):
    found = {"type": type(error).__name__, "said": str(error), "everywhere": getattr(error, "everywhere", None)}
    open(sys.argv[1] + f"/{rank}.json", "w").write(json.dumps(found))
    os._exit(0)  # as gpt/command.py leaves
"""


def run(folder: Path, body: str, size: int = 2, only=None) -> list[dict]:
    """What each process of the script told of its end."""
    (folder / "script.py").write_text(HEAD + body)
    done = gang(folder / "script.py", folder, size=size, only=only)
    for rank, (_, _, errors) in done.items():
        assert (folder / f"{rank}.json").exists() or "killed" in body, errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in done if (folder / f"{rank}.json").exists()]


def test_texts_of_any_length_and_failures_of_the_main_process_reach_all(tmp_path):
    body = """
try:
    with join("cpu", 30) as world:
        must_agree({"lr": 0.1, "text": "a\\tb"}, world)
        long = agree(f"\\u00e9{rank}" * 4000, world, source=1)
        nothing = agree("", world)
        said = on_main(lambda: f"from {rank}", world)
        again = on_main(lambda: None, world)
        assert (long, nothing, said, again) == ("\\u00e91" * 4000, "", "from 0", "")
        def fail():
            raise UserError(f"the disk of {rank} is full")
        on_main(fail, world)
except Exception as error:
    told(error)
"""
    for found in run(tmp_path, body):
        assert found == {"type": "UserError", "said": "the disk of 0 is full", "everywhere": True}


def test_a_process_that_differs_is_named_with_what_differs_in_every_process(tmp_path):
    body = """
try:
    with join("cpu", 30) as world:
        must_agree({"lr": 0.1 + (rank == 2), "seed": 3}, world)
except Exception as error:
    told(error)
"""
    for found in run(tmp_path, body, size=3):
        assert found["type"] == "UserError" and found["everywhere"]
        assert re.fullmatch(
            r"process 2 on \S+ differs from process 0 in lr \(1\.1, not 0\.1\); start all alike", found["said"]
        )


def test_a_process_that_does_not_come_is_named_when_the_time_is_over(tmp_path):
    body = """
try:
    with join("cpu", 2) as world:
        pass
except Exception as error:
    told(error)
"""
    began = time.monotonic()
    (first, third) = run(tmp_path, body, size=4, only=[0, 2])
    assert time.monotonic() - began < 30
    for found in (first, third):
        assert found["said"].startswith("processes 1, 3 of 4 did not come to 127.0.0.1:") and "2 s" in found["said"]


@pytest.mark.slow
def test_a_process_killed_in_the_midst_is_named_by_those_that_waited_for_it(tmp_path):
    body = """
try:
    with join("cpu", 30) as world:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)  # killed
        for _ in range(1000):
            add_up(torch.ones(10), world)
except Exception as error:
    told(error)
"""
    found = run(tmp_path, body, size=3)
    assert len(found) == 2
    for one in found:
        assert one["type"] == "LostContact" and not one["everywhere"]
        assert one["said"].startswith("lost contact with process 1 of 3 ("), one


@pytest.mark.slow
def test_an_error_of_one_process_alone_is_not_everywhere(tmp_path):
    body = """
try:
    with join("cpu", 30) as world:
        if rank == 1:
            raise ZeroDivisionError("a bug")
        for _ in range(1000):
            add_up(torch.ones(10), world)
            time.sleep(0.01)
except Exception as error:
    told(error)
"""
    other, found = run(tmp_path, body)
    assert found == {"type": "ZeroDivisionError", "said": "a bug", "everywhere": False}
    assert other["type"] == "LostContact"


@pytest.mark.slow
def test_a_process_that_never_answers_ends_the_wait_after_the_timeout_and_is_named(tmp_path):
    body = """
try:
    with join("cpu", 3) as world:
        if rank == 1:
            time.sleep(15)  # killed by nobody: it hangs
            os._exit(0)
        add_up(torch.ones(10), world)
except Exception as error:
    told(error)
"""
    began = time.monotonic()
    (found,) = run(tmp_path, body)
    assert found["type"] == "LostContact" and found["said"].startswith("lost contact with process 1 of 2 ("), found
    assert time.monotonic() - began < 40
