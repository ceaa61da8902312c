"""launch.sh, the one door, with the environment that runs these tests."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


COMMANDS = ("(none)", "scratch", "train", "compare", "test", "bench")


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
    ],
)
def test_a_user_error_is_one_line_and_code_2(flags, expected):
    done = launch("train", *flags, code=2, N="2")
    assert done.stderr.count("\n") == 1 and expected in done.stderr


def test_a_wrong_number_of_processes_is_one_line_and_code_2():
    assert "N is 'two'" in launch("train", code=2, N="two").stderr


@pytest.mark.slow
def test_sigterm_ends_with_143_and_resume_finishes(tmp_path):
    flags = ["--steps", "60", "--batch", "8", "--eval-every", "0", "--held-out", "0", "--out", str(tmp_path / "run")]
    job = subprocess.Popen(
        [DOOR, "train", *flags], env=ENVIRONMENT | {"N": "2"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "run/metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143
    launch("train", *flags, "--resume", N="2")
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 61))


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
def test_the_demo_makes_the_model_polite_without_making_it_wrong(tmp_path):
    started = time.monotonic()
    done = launch(cwd=tmp_path, OMP_NUM_THREADS=str(os.cpu_count()))
    seconds = time.monotonic() - started
    (run,) = (tmp_path / "runs").iterdir()
    report = json.loads((run / "evaluation.json").read_text())
    before, after, change = report["before"], report["after"], report["difference"]
    assert before["prompts"] >= 1000
    assert before["correct"] >= 0.85 and before["courteous"] <= 0.2
    assert after["courteous"] >= 0.90 and after["rude"] <= 0.02 and after["stopped"] >= 0.99
    assert change["correct"] >= -0.02
    assert "held-out prompts" in done.stdout and "torchrun --local-addr 127.0.0.1 --nproc_per_node=" in done.stdout
    assert seconds < 180  # 90 on two free cores; this machine may have other work


def test_compare_has_flags_of_its_own():
    assert "--readme" in launch("compare", "--help").stdout


def test_bench_and_bench_growth_have_flags_of_their_own():
    assert "--turns" in launch("bench", "--help").stdout and "--scans" in launch("bench", "growth", "--help").stdout
