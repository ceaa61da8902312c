"""gpt/stopping.py with real signals, to processes alone and under torchrun: when they stop, what is saved, who is left."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gpt.parallel import World
from gpt.stopping import Stopped, StopSignal
from tests.processes import ENVIRONMENT, ROOT, call, command

SIGNALLED = """
import json, os, signal, sys, time
from gpt.joining import join
from gpt.stopping import Stopped, StopSignal

seconds, when = float(sys.argv[2]), int(sys.argv[3])
with join("cpu") as world:
    stop, calls = StopSignal(world), 0
    try:
        while calls < 5000:
            calls += 1
            time.sleep(seconds)
            if calls == when and world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            stop.check()
    except Stopped:
        with open(sys.argv[1] + f"/{world.rank}.json", "w") as file:
            json.dump(calls, file)
"""


@pytest.mark.parametrize("seconds, when, late", [(0.001, 100, 16), pytest.param(0.3, 18, 7, marks=pytest.mark.slow)])
def test_a_signal_to_one_process_stops_all_at_the_same_call_some_seconds_later_at_most(tmp_path, seconds, when, late):
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    call(tmp_path / "signalled.py", tmp_path, seconds, when, processes=2, PYTHONPATH=str(ROOT))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second and when <= first <= when + late


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_a_process_alone_stops_it_at_the_next_call(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        stop = StopSignal(World(0, 1, torch.device("cpu")))
        stop.check()
        for _ in range(2):  # one request: torchrun passes its own on to a worker that a scheduler has reached already
            os.kill(os.getpid(), number)
        with pytest.raises(Stopped):
            stop.check()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(-1)


# A run: steps of four micro-batches, and what was done last is saved

STEPS = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from gpt.command import argument, flag, run
import ctypes, os, torch
from gpt.joining import join
from gpt.parallel import add_up, say
from gpt.stopping import Stopped, StopSignal

@dataclass(frozen=True)
class Flags:
    "Steps."
    folder: str = argument("where to write")
    save: float = flag(0.0, "seconds that saving takes")
    block: bool = flag(False, "whether process 0 waits for another that never answers")
    lose: bool = flag(False, "whether process 1 fails while process 0 is inside a library, which hears of nothing")

def main(flags):
    folder = Path(flags.folder)
    with join("cpu") as world:
        (folder / f"process-{world.rank}").write_text(str(os.getpid()))
        stop, done = StopSignal(world), 0
        try:
            while done < 5000:
                for _ in range(4):
                    stop.check()
                    time.sleep(0.02)
                    print(".", end="", file=sys.stderr, flush=True)
                    if flags.block and world.is_main and done == 5:
                        add_up(torch.zeros(1), world)
                    if flags.lose and done == 9:
                        if world.is_main:
                            mutex, libc = (ctypes.c_byte * 64)(), ctypes.CDLL(None)
                            libc.pthread_mutex_lock(mutex), libc.pthread_mutex_lock(mutex)
                        raise RuntimeError("a bug")
                done += 1
                (folder / f"done-{world.rank}").write_text(str(done))
        except Stopped:
            if world.is_main:
                time.sleep(flags.save)
                (folder / "saved").write_text(str(done))
            say(f"stopped after step {done}", world)
            return 143

run(main, Flags)
"""


TOLD = {"PYTHONPATH": str(ROOT)}


class Run:
    """A run of real processes, alone (0) or under torchrun, that has made its first steps.

    start: from the words of its command line to what was started, where that is more than the command.
    """

    def __init__(self, folder: Path, processes: int, *flags: str, start=None):
        self.folder, self.count = folder, max(1, processes)
        (folder / "steps.py").write_text(STEPS)
        words = command(folder / "steps.py", folder, *flags, processes=processes)
        if processes:
            words[3:3] = ["--log-dir", str(folder / "logs")]
        self.job = (start or self.begin)(words)
        last, begun = folder / f"done-{self.count - 1}", time.monotonic()
        while not last.exists() or int(last.read_text() or 0) < 8:
            assert time.monotonic() - begun < 90
            time.sleep(0.05)
        self.processes = [int((folder / f"process-{rank}").read_text()) for rank in range(self.count)]

    def begin(self, words: list[str]) -> subprocess.Popen:
        with open(self.folder / "output", "wb") as output:
            told = ENVIRONMENT | TOLD
            return subprocess.Popen(words, env=told, start_new_session=True, stdout=output, stderr=output)

    def seconds_to_the_end(self) -> float:
        begun = time.monotonic()
        while any(map(is_alive, self.processes)):
            assert time.monotonic() - begun < 60
            time.sleep(0.02)
        return time.monotonic() - begun

    def saved(self) -> int | None:
        path = self.folder / "saved"
        return int(path.read_text()) if path.exists() else None

    def done(self) -> int:
        (done,) = {int((self.folder / f"done-{rank}").read_text()) for rank in range(self.count)}
        return done

    def ending(self) -> tuple[int, str]:
        """The exit code and the last words, as launch.sh asks for them."""
        words = [sys.executable, str(ROOT / "gpt/ending.py"), str(self.folder / "logs"), str(self.job.wait(60))]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
        return done.returncode, done.stderr


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")


@needs_proc
def test_a_process_alone_saves_its_last_finished_step(tmp_path):
    run = Run(tmp_path, 0)
    run.job.send_signal(signal.SIGTERM)
    assert run.job.wait(20) == 143 and run.saved() == run.done()


@needs_proc
def test_a_process_alone_ends_at_once_at_the_second_signal_and_not_at_one_that_came_twice(tmp_path):
    run = Run(tmp_path, 0, "--save", "20")
    run.job.send_signal(signal.SIGTERM)
    run.job.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert run.job.poll() is None
    run.job.send_signal(signal.SIGTERM)
    assert run.job.wait(2) == 143 and run.saved() is None
    assert (tmp_path / "output").read_text().endswith("ended at once by a second signal; continue with --resume\n")


@needs_proc
@pytest.mark.slow
def test_nohup_is_heeded(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = Run(tmp_path, 0)
    finally:
        signal.signal(signal.SIGHUP, before)
    run.job.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert run.job.poll() is None
    run.job.send_signal(signal.SIGTERM)
    assert run.job.wait(20) == 143


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    "whom, number",
    [
        ("a worker", signal.SIGTERM),
        ("the agent", signal.SIGTERM),
        ("the agent", signal.SIGINT),
        ("the agent", signal.SIGHUP),
        ("its group", signal.SIGINT),  # Ctrl+C
        ("all", signal.SIGTERM),  # Slurm
    ],
)
def test_every_process_stops_and_the_last_finished_step_is_saved(tmp_path, whom, number):
    run = Run(tmp_path, 2, "--save", "2")
    if whom == "its group":
        os.killpg(run.job.pid, number)
    else:
        agent, workers = [run.job.pid], run.processes
        for process in {"a worker": workers[1:], "the agent": agent, "all": agent + workers}[whom]:
            os.kill(process, number)
    assert run.seconds_to_the_end() < 20
    assert run.saved() == run.done()
    assert run.ending() == (143, "")


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--save", "20"), ("--block",)])
def test_at_the_agents_second_signal_every_process_ends_at_once_whatever_it_waits_for(tmp_path, flags):
    run = Run(tmp_path, 2, *flags)
    run.job.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert all(map(is_alive, run.processes))
    run.job.send_signal(signal.SIGINT)
    assert run.seconds_to_the_end() < 2 and run.saved() is None
    assert run.ending() == (143, "ended at once by a second signal; continue with --resume\n")


@needs_proc
@pytest.mark.slow
def test_who_waits_for_a_process_that_never_answers_ends_by_itself_before_it_is_killed(tmp_path):
    run = Run(tmp_path, 2, "--block")
    run.job.send_signal(signal.SIGTERM)
    assert run.seconds_to_the_end() < 25
    assert run.ending() == (143, "stopped by a signal while another process did not answer; continue with --resume\n")


@needs_proc
@pytest.mark.slow
def test_who_waits_inside_a_library_for_a_process_that_failed_ends_soon_after_torchruns_signal(tmp_path):
    run = Run(tmp_path, 2, "--lose")
    assert run.seconds_to_the_end() < 12
    code, said = run.ending()
    assert code == 1 and "process 1 of 2" in said and said.endswith("RuntimeError: a bug\n")


# What is said, and where nobody reads any more

SAYS = """
import sys, torch
from gpt.parallel import World
from gpt.stopping import StopSignal
StopSignal(World(0, 1, torch.device("cpu")))
for word in ("bar", "\\n", "caf\u00e9"):
    sys.stderr.write(word)
print("line")
print("said", flush=True)
sys.stderr.write("end")
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_said_keeps_its_order_and_its_letters(tmp_path, unbuffered):
    told = ENVIRONMENT | TOLD | {"PYTHONUNBUFFERED": unbuffered, "PYTHONIOENCODING": "latin-1:replace"}
    done = subprocess.run([sys.executable, "-c", SAYS], env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = done.stdout.replace(b"line\nsaid\n", b"|")
    assert out in ((b"bar\ncaf\xe9|end",) if unbuffered else (b"bar\ncaf\xe9|end", b"bar\n|caf\xe9end"))


@needs_proc
@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_terminal_that_closes_stops_a_run_which_saves_all_the_same(tmp_path, processes):
    terminals = []

    def start(words: list[str]) -> int:
        shell, terminal = pty.fork()
        if shell == 0:
            os.execve("/bin/bash", ["bash", "-c", f"{' '.join(words)}; true"], ENVIRONMENT | TOLD)
        terminals.append(terminal)
        return shell

    run = Run(tmp_path, processes, start=start)
    os.close(terminals[0])
    assert run.seconds_to_the_end() < 20 and run.saved() == run.done()
    os.waitpid(run.job, 0)


@needs_proc
@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_that_ends_the_reader_of_a_pipe_too_saves_all_the_same(tmp_path, processes):
    def start(words: list[str]) -> subprocess.Popen:
        line = f"{' '.join(words)} 2>&1 | (trap - INT; exec cat >{tmp_path}/log)"
        return subprocess.Popen(["bash", "-c", line], env=ENVIRONMENT | TOLD, start_new_session=True)

    run = Run(tmp_path, processes, start=start)
    os.killpg(run.job.pid, signal.SIGINT)
    assert run.seconds_to_the_end() < 20 and run.saved() == run.done()
    run.job.wait(30)
