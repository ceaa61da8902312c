"""./launch.sh torture with few repetitions: the same functions, in seconds."""

import json
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from tests.processes import ROOT, call
from tests.torture import faults
from tests.torture.ground import PLAIN, Ground, checkpoints, same_bits
from tests.torture.jobs import Failed, Job, alive, family, kill_all, until
from tests.torture.kills import every_operation, kills, stage_of_save
from tests.torture.outcome import Outcome, Try, outcomes, rows, table
from tests.torture.restarts import restarts
from tests.torture.run import parts
from tests.torture.stops import stops
from tests.torture.trajectories import SHARD, changes, same_bits_after_kills, trajectories
from tests.torture.two_machines import two_machines

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk and make network namespaces")


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Ground:
    return Ground(tmp_path_factory.mktemp("torture"), seed=1)


def all_held(found: Iterable[Outcome], tries: int) -> dict[str, int | float]:
    """What so many tries found, all of which must have held."""
    found = list(found)
    assert not [one.said for one in found if not one.held]
    assert len(found) == tries
    return {name: value for row in rows(found) for name, value in row.found.items()}


# one process


def test_runs_killed_during_a_save_and_at_random_moments_resume_to_the_same_bits(ground):
    assert all_held(kills(ground, 2, 0), 2)["kills"] >= 1


def test_a_run_killed_before_an_operation_on_a_file_resumes_to_the_same_bits(ground):
    assert all_held(every_operation(ground, 4), 4)["kills"] == 4


def test_a_stopped_run_leaves_with_a_known_code_and_resumes_to_the_same_bits(ground):
    all_held(stops(ground, 2, 0), 2)


@pytest.mark.parametrize("damage, file", [(faults.flip, "model.safetensors"), (faults.truncate, "manifest.json")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(ground, tmp_path, damage, file):
    how = partial(damage, file=file, random=ground.random(file))
    one = Try("", faults.damaged, (ground, faults.halfway(ground, tmp_path / "halfway"), how))
    all_held(outcomes([one], tmp_path / "damaged"), 1)


@ROOT_ONLY
def test_a_full_disk_is_one_line_and_the_run_resumes_when_there_is_room(ground, tmp_path):
    one = Try("", faults.full_disk, (ground, PLAIN, 100_000, "checkpoints", ground.random("disk")))
    all_held(outcomes([one], tmp_path / "full"), 1)


@pytest.mark.slow
def test_no_damage_to_files_folders_and_disks_costs_more_than_the_newest_checkpoint(ground):
    found = list(faults.faults(ground, 1))
    assert len(found) >= 14 and not [one.said for one in found if not one.held]


# several processes


@pytest.mark.slow
def test_two_processes_killed_during_a_save_resume_to_the_same_bits(ground):
    assert all_held(kills(ground, 0, 1), 1)["during a save"] >= 1


@pytest.mark.slow
def test_a_worker_killed_twice_is_restarted_and_the_run_ends_with_the_same_bits(ground):
    assert all_held(restarts(ground, 2), 2)["kills"] == 2


@pytest.mark.slow
def test_two_processes_stopped_by_a_signal_resume_and_workers_end_with_their_launcher(ground):
    assert all_held(stops(ground, 0, 1), 2)["workers"] == 2


@pytest.mark.slow
def test_processes_micro_batches_and_wrappers_change_nothing_but_rounding(ground):
    found = all_held(trajectories(ground, [(3, (), 1), (2, SHARD, 3)]), 2)
    assert found["loss"] < 1e-5 and found["weights"] < 1e-2


@pytest.mark.slow
def test_a_run_may_go_on_with_another_number_of_processes(ground):
    assert all_held(changes(ground, [((2, ()), (3, SHARD))]), 1)["loss"] < 1e-5


@pytest.mark.slow
def test_with_dropout_a_killed_run_of_many_processes_resumes_to_the_same_bits(ground):
    assert all_held(same_bits_after_kills(ground, [(3, (), 0), (2, SHARD, 0)]), 2)["kills"] == 2


@pytest.mark.slow
@ROOT_ONLY
def test_two_machines_compute_what_one_process_does_and_a_lost_network_is_named_and_resumed_from(ground):
    all_held(two_machines(ground, 2), 3)


# the instruments


def test_two_runs_that_differ_in_one_bit_of_a_moment_are_told_apart(ground, tmp_path):
    run = faults.copy(ground.undisturbed(PLAIN), tmp_path)
    same_bits(run, ground.undisturbed(PLAIN))
    faults.flip(checkpoints(run)[-1], "optimizer.safetensors", ground.random("bit"))
    with pytest.raises(Failed, match="optimizer.safetensors differ"):
        same_bits(run, ground.undisturbed(PLAIN))


@pytest.mark.parametrize(
    "made, stage",
    [
        (["step-000002.part"], "files half written"),
        (["step-000002.part/manifest.json"], "before the rename"),
        (["step-000002.old", "step-000002"], "in place of another"),
        (["step-000002", "step-000004", "step-000006"], "old one not yet gone"),
        (["step-000004", "step-000006"], ""),
    ],
)
def test_what_a_kill_leaves_behind_says_which_moment_of_a_save_it_met(tmp_path, made, stage):
    for name in made:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert stage_of_save(tmp_path) == stage


def test_a_job_is_killed_with_all_that_is_below_it(tmp_path):
    nested = f"{sys.executable} -c 'import time; time.sleep(60)' & sleep 60 & wait"
    job = Job(["bash", "-c", f"bash -c {json.dumps(nested)} & wait"], tmp_path / "log", dict(os.environ))
    until(lambda: len(family(job.pid)) == 4, 10, "it has not begun")
    below = family(job.pid)
    kill_all(job)
    assert job.poll() == -9 and not any(map(alive, below))


def test_a_try_that_does_not_hold_says_so_and_its_folder_stays(tmp_path):
    def fails(folder: Path) -> None:
        (folder / "evidence").touch()
        raise Failed("it broke")

    held, broke = sorted(
        outcomes([Try("a", lambda folder: {"n": 1}), Try("a", fails)], tmp_path / "tries"), reverse=True
    )
    assert held.held and not (tmp_path / "tries/000").exists()
    assert not broke.held and broke.said == f"it broke ({tmp_path / 'tries/001'})"
    assert (tmp_path / "tries/001/evidence").exists()


def test_the_table_adds_up_counts_and_shows_the_largest_of_sizes():
    found = [Outcome("a", True, 1.0, {"kills": 2, "loss": 1e-6}), Outcome("a", False, 3.0), Outcome("b", True, 2.0)]
    found.append(Outcome("a", True, 2.0, {"kills": 1000, "loss": 3e-7}))
    assert table(rows(found)) == [
        "|  | tries | held | seconds: median, most | found |",
        "| --- | ---: | ---: | ---: | --- |",
        "| a | 3 | 2 | 2.0, 3.0 | kills 1,002, loss 1e-06 |",
        "| b | 1 | 1 | 2.0, 2.0 |  |",
    ]


@pytest.mark.slow
def test_the_command_writes_its_figures_and_prints_a_table(tmp_path):
    flags = ["--parts", "operations", "--operations", 2, "--out", tmp_path / "torture.json"]
    said = call(ROOT / "tests/torture/run.py", *flags).stdout
    report = json.loads((tmp_path / "torture.json").read_text())
    assert [(row["tries"], row["held"]) for row in report["rows"]] == [(2, 2)] and report["failures"] == []
    assert "\n| killed before an operation on a file, resumed | 2 | 2 | " in said
    machine = {"cores": 2, "processor": "a P", "torch": "2"}
    shown = parts({"figures": report, "machine": machine, "day": "today"})["torture"]
    assert shown[1].startswith("2 tries, 2 held, in ") and shown[-1] in said


def test_a_part_that_is_not_there_is_refused_in_one_line():
    done = call(ROOT / "tests/torture/run.py", "--parts", "kills; floods", code=2)
    assert done.stderr.startswith("error: --parts: there is no 'floods'; there are kills, ")
    assert done.stderr.count("\n") == 1
