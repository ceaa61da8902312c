"""launch.sh, the one door, with the environment that runs these tests."""

import json
import os
import platform
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
import torch

from tests.bench import record

ROOT = Path(__file__).resolve().parents[1]
DOOR = str(ROOT / "launch.sh")
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def launch(*words, cwd=None, code=0, timeout=300, **environment) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [DOOR, *map(str, words)],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def small(out: Path) -> list[str]:
    return ["--steps", "2", "--batch", "8", "--eval-every", "0", "--out", str(out)]


COMMANDS = ("(none)", "scratch", "train", "check", "compare", "online", "test", "torture", "bench")


def test_help_names_every_command_and_an_unknown_one_is_refused():
    assert all(f"\n  {word}" in launch("--help").stdout for word in COMMANDS)
    assert launch("tarin", code=2).stderr.count("\n") == 1


def test_train_help_lists_the_flags_once():
    assert launch("train", "--help").stdout.count("--grad-clip") == 1


def test_train_with_two_processes_works_from_any_folder(tmp_path):
    launch("train", *small(tmp_path / "run"), cwd=tmp_path, N="2")
    assert json.loads((tmp_path / "run/run.json").read_text())["processes"] == 2
    assert (tmp_path / "run/model/model.safetensors").exists()


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--beta", "0"], "beta is 0"),
        (["--pairs", "no.json"], "no.json does not exist"),
        (["--stepz", "3"], "did you mean --steps?"),
        (["--out"], "--out: expected one argument"),
    ],
)
def test_a_user_error_is_one_line_and_code_2(flags, expected):
    done = launch("train", *flags, code=2, N="2")
    assert done.stderr.count("\n") == 1 and expected in done.stderr


@pytest.mark.parametrize(
    "variables, named",
    [
        ({"N": "two"}, "N is 'two'"),
        ({"N": "0"}, "N is '0'"),
        ({"RESTARTS": "-1"}, "RESTARTS is '-1'"),
        ({"NNODES": "2"}, "NODE_RANK, this machine's number"),
    ],
)
def test_a_wrong_variable_is_one_line_and_code_2(variables, named):
    done = launch("train", code=2, **variables)
    assert done.stderr.count("\n") == 1 and named in done.stderr and not done.stdout


def test_a_copy_of_the_script_alone_says_what_it_misses(tmp_path):
    copy = shutil.copy(DOOR, tmp_path)
    done = subprocess.run(["bash", copy, "check"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "launch.sh finds no gpt/launch/launcher.py" in done.stderr


def test_check_shows_each_process_and_ends_with_ok():
    done = launch("check", N="2")
    lines = done.stdout.splitlines()
    assert [line[:14] for line in lines[:2]] == ["process 0 of 2", "process 1 of 2"]
    assert all(f"cpu, torch {torch.__version__}, Python {platform.python_version()}" in line for line in lines[:2])
    assert lines[-1].startswith("ok       2 processes in ")


def test_check_looks_at_the_flags_of_train():
    done = launch("check", "--batch", "1", N="2", code=2)
    assert "--batch is 1" in done.stderr.splitlines()[-1]


def children(pid: int) -> list[int]:
    """Of a process, oldest first. Skips the test where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("children are looked up in /proc")
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            after_name = path.read_text().rpartition(")")[2].split()
            if int(after_name[1]) == pid:
                found.append(int(path.parent.name))
    return sorted(found)


def until(true, seconds: float) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def long_run(out: Path, *more) -> list[str]:
    flags = ["--steps", "60", "--batch", "8", "--eval-every", "0", "--held-out", "0", "--out", str(out)]
    return ["train", *flags, *map(str, more)]


def start(*words, **environment) -> subprocess.Popen:
    """In a process group of its own, as a shell starts it."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen([DOOR, *words], env=ENVIRONMENT | {"N": "2"} | environment, **how)


def lines_of(metrics: Path) -> list[dict]:
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def under_way(job: subprocess.Popen, out: Path, steps: int = 3) -> None:
    """Wait until it has done some steps."""
    until(lambda: len(lines_of(out / "metrics.jsonl")) >= steps or job.poll() is not None, seconds=120)
    assert job.poll() is None, job.stdout.read()


def finish(out: Path) -> None:
    """Continue a stopped run: every step must then stand in it, once."""
    launch(*long_run(out, "--resume"), N="2")
    assert [line["step"] for line in lines_of(out / "metrics.jsonl")] == list(range(1, 61))


@pytest.mark.slow
def test_sigterm_ends_with_143_and_resume_finishes(tmp_path):
    job = start(*long_run(tmp_path / "run"))
    under_way(job, tmp_path / "run")
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=40)[0]
    assert job.returncode == 143, said
    assert "; continue with the same command with --resume --out " in said.rstrip().splitlines()[-1]
    finish(tmp_path / "run")


@pytest.mark.slow
def test_signals_to_every_process_that_arrive_together_are_one(tmp_path):
    # as Slurm sends them: to launch.sh, which is torchrun too, and to each worker; its srun once more to all of them
    job = start(*long_run(tmp_path / "run"))
    under_way(job, tmp_path / "run")
    for _ in range(2):
        for pid in [*children(job.pid), job.pid]:
            os.kill(pid, signal.SIGTERM)
    said = job.communicate(timeout=40)[0]
    assert (
        job.returncode == 143
        and "; continue with the same command with --resume --out " in said.rstrip().splitlines()[-1]
    ), said
    finish(tmp_path / "run")


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_stops_with_143(tmp_path):
    words, environment = [DOOR, *long_run(tmp_path / "run")], ENVIRONMENT | {"N": "2"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(DOOR, words, environment)
    said = []
    reader = Thread(target=lambda: said.extend(iter(lambda: read_terminal(terminal), b"")))
    reader.start()
    until(lambda: len(lines_of(tmp_path / "run/metrics.jsonl")) >= 3, seconds=120)
    os.write(terminal, b"\x03")  # the terminal sends SIGINT to all of the foreground group
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
    reader.join()
    assert b"; continue with the same command with --resume --out " in b"".join(said).rstrip().splitlines()[-1]
    finish(tmp_path / "run")


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 2**16)
    except OSError:  # nobody has it open any more
        return b""


STUBBORN = """
import os, signal, sys, time
from pathlib import Path
from gpt.ending import end_with_launcher
end_with_launcher()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[1], os.environ["RANK"]).touch()
time.sleep(600)
"""


@pytest.fixture
def stubborn(tmp_path):
    """Two workers that do not stop when they are asked to, under their launcher."""
    (tmp_path / "here").mkdir()
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    words = [sys.executable, ROOT / "gpt/launch/launcher.py", tmp_path / "stubborn.py", tmp_path / "here"]
    environment = ENVIRONMENT | {"N": "2", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(list(map(str, words)), env=environment, start_new_session=True) as job:
        until(lambda: len(list((tmp_path / "here").iterdir())) == 2, seconds=60)
        yield job, children(job.pid)
        job.kill()


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_the_second_signal_ends_at_once_and_leaves_nothing(stubborn, tmp_path):
    job, workers = stubborn
    job.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    assert job.poll() is None and len(workers) == 2
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=2) == 143
    until(lambda: gone(workers), seconds=5)
    assert not list(tmp_path.glob("gpt-dpo-launch-*"))


@pytest.mark.slow
def test_a_reader_of_the_output_who_left_changes_no_exit_code(tmp_path):
    job = start(*long_run(tmp_path / "run"))  # as with ./launch.sh train 2>&1 | tee log, where Ctrl+C ends the tee too
    under_way(job, tmp_path / "run")
    job.stdout.close()
    job.send_signal(signal.SIGINT)
    assert job.wait(timeout=40) == 143
    finish(tmp_path / "run")


@pytest.mark.slow
def test_one_signal_ends_all_within_30_seconds_whatever_workers_do(stubborn):
    job, workers = stubborn
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 143
    until(lambda: gone(workers), seconds=5)


@pytest.mark.slow
def test_workers_end_soon_after_a_killed_launch_sh(stubborn):
    job, workers = stubborn
    job.kill()
    until(lambda: gone(workers), seconds=5)


@pytest.mark.slow
def test_a_worker_killed_twice_is_started_again_and_the_run_ends_with_equal_bits(tmp_path):
    launch(*long_run(tmp_path / "whole"), N="2")
    job = start(*long_run(tmp_path / "killed", "--save-every", "10"), RESTARTS="2")
    for steps in (14, 33):
        under_way(job, tmp_path / "killed", steps)
        os.kill(children(job.pid)[-1], signal.SIGKILL)
        until(lambda: len(lines_of(tmp_path / "killed/metrics.jsonl")) < steps or job.poll() is not None, seconds=60)  # noqa: B023
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    assert (killed / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    losses = [[(line["step"], line["loss"]) for line in lines_of(run / "metrics.jsonl")] for run in (whole, killed)]
    assert losses[0] == losses[1] and len(losses[0]) == 60


@pytest.mark.slow
def test_a_worker_killed_too_often_is_named_in_the_last_line(tmp_path):
    job = start(*long_run(tmp_path / "run"), RESTARTS="0")
    under_way(job, tmp_path / "run")
    victim = children(job.pid)[1]
    rank = dict(item.split("=", 1) for item in Path(f"/proc/{victim}/environ").read_text().split("\0")[:-1])["RANK"]
    os.kill(victim, signal.SIGKILL)
    said = job.communicate(timeout=40)[0]
    assert job.returncode == 1
    assert (
        f"process {rank} of 2" in said.rstrip().splitlines()[-1]
        and "killed by SIGKILL" in said.rstrip().splitlines()[-1]
    ), said


@pytest.mark.slow
def test_torchrun_opens_no_port_on_one_machine(stubborn):
    job, _ = stubborn
    sockets = {os.readlink(path) for path in Path(f"/proc/{job.pid}/fd").iterdir() if path.is_symlink()}
    table = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    assert not [row for row in table if f"socket:[{row[9]}]" in sockets]


@pytest.mark.slow
def test_debug_shows_the_logs_of_torch():
    said = launch("check", "--debug", N="1")
    assert "torch/distributed/elastic" in said.stderr and "max_restarts" in said.stderr


@pytest.mark.slow
def test_training_starts_where_the_host_name_resolves_to_nothing(tmp_path):
    # a namespace of its own, with loopback only and a name that no file and no server knows
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("a network namespace needs root, unshare and ip")
    inside = f"ip link set lo up && hostname nowhere.invalid && exec {DOOR} train {' '.join(small(tmp_path / 'run'))}"
    done = subprocess.run(
        ["unshare", "--net", "--uts", "bash", "-c", inside],
        env=ENVIRONMENT | {"N": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model/model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.alone
def test_the_demo_makes_the_model_polite_without_making_it_wrong(tmp_path):
    started = time.monotonic()
    done = launch(cwd=tmp_path, timeout=900, OMP_NUM_THREADS=str(os.cpu_count()))
    seconds = time.monotonic() - started
    (run,) = (tmp_path / "runs").iterdir()
    report = json.loads((run / "evaluation.json").read_text())
    before, after, change = report["before"], report["after"], report["difference"]
    assert before["prompts"] >= 1000
    assert before["correct"] >= 0.85 and before["courteous"] <= 0.2
    assert after["courteous"] >= 0.90 and after["rude"] <= 0.02 and after["stopped"] >= 0.99
    assert change["correct"] >= -0.02
    assert done.stdout.splitlines()[-1] == f"report   runs/{run.name}/report.html" and (run / "report.html").exists()
    assert "held-out prompts" in done.stdout and "torchrun --local-addr 127.0.0.1 --nproc_per_node=" in done.stdout
    shown = record.read("demo")["figures"]
    assert seconds < 4 * shown["seconds"]  # which were of two free cores
    shown, now = measures(shown["printed"]), measures(done.stdout)
    assert shown.keys() == now.keys() and len(now) > 20
    for name, figures in shown.items():
        assert now[name] == pytest.approx(figures, rel=0.1, abs=0.03), f"{name}: README.md shows another demo"


def measures(printed: str) -> dict[str, list[float]]:
    """The figures of held-out pairs and prompts that the demo prints, by the names of their lines."""
    lines = re.findall(r"^(held out(?= )|[a-z]+(?=  ))(.*\d)$", printed, re.MULTILINE)
    return {name: [float(number) for number in re.findall(r"-?\d+\.\d+", rest)] for name, rest in lines}


def test_compare_has_flags_of_its_own():
    assert "--losses" in launch("compare", "--help").stdout


def test_online_has_flags_of_its_own_and_makes_no_start_where_one_is_named():
    assert "--rounds" in launch("online", "--help").stdout
    done = launch("online", "--init", "no/model", "--rounds", "0", code=2)
    assert done.stderr.count("\n") == 1 and "--rounds is 0" in done.stderr


@pytest.mark.parametrize("words", [("online", "--score", "none"), ("online", "--round", "3"), ("scratch", "--bogus")])
def test_wrong_flags_are_said_before_minutes_of_training(words, tmp_path):
    done = launch(*words, cwd=tmp_path, code=2)
    assert done.stderr.count("\n") == 1 and not done.stdout and not list(tmp_path.iterdir())


def test_help_of_scratch_trains_nothing(tmp_path):
    assert "--loss" in launch("scratch", "--help", cwd=tmp_path).stdout and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_round_of_its_own_answers_makes_a_spoiled_start_right_again(tmp_path):
    done = launch("online", "--rounds", 1, cwd=tmp_path, timeout=900)
    (folder,) = (tmp_path / "runs").iterdir()
    start, after = (
        json.loads((folder / "rounds" / name).read_text()) for name in ("start.json", "round-01/round.json")
    )
    assert start["prompts"] >= 1000 and start["score"] == start["correct"] < 0.7
    assert after["score"] >= start["score"] + 0.10  # by 0.3 where it was measured
    assert "in all" in done.stdout and (folder / "rounds/model/model.safetensors").exists()
    shown, now = map(rounds, ("\n".join(record.parts_of("online")["online"]), done.stdout))
    for name in ("start", "1"):
        assert now[name] == pytest.approx(shown[name], rel=0.1, abs=0.1), "docs/pairs.md shows other rounds"


def rounds(printed: str) -> dict[str, list[float]]:
    """Of the start and of each round what its line says, but of the minutes."""
    lines = (line.split() for line in printed.splitlines())
    return {line[0]: [float(n) for n in line[1:7] if "." in n] for line in lines if line and line[0] in ("start", "1")}


def test_bench_and_bench_growth_have_flags_of_their_own():
    assert "--turns" in launch("bench", "--help").stdout and "--scans" in launch("bench", "growth", "--help").stdout
