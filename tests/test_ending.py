"""gpt/ending.py and gpt/note.py: what ends one process of many, with real processes, in torchrun's own folders."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from gpt.ending import lost_contact
from tests.processes import ENVIRONMENT, ROOT, command

# A process that ends as the word of its rank says.
WORKER = """
import os, signal, sys, time
from dataclasses import dataclass
from gpt.command import UserError, argument, run

@dataclass(frozen=True)
class Flags:
    "End."
    words: list = argument("how each process ends", nargs="+")

def main(flags):
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    word = flags.words[int(os.environ["RANK"])]
    print("began", flush=True)
    if word == "user":
        raise UserError("--beta is 0")
    if word == "bug":
        raise RuntimeError("a bug\\nin two lines")
    if word == "everywhere":
        error = UserError("the pairs differ")
        error.everywhere = True
        raise error
    if word == "lost":
        raise RuntimeError("[/x/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:5: Connection reset by peer. GLHF")
    if word == "killed" or word == "killed once" and attempt == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "waits":
        time.sleep(60)
    return int(word) if word.isdigit() else 0

run(main, Flags)
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("worker") / "worker.py"
    file.write_text(WORKER)
    return file


def ending(folder: Path, status: int) -> tuple[int, list[str]]:
    """As launch.sh asks at its end: (exit code, the lines said)."""
    words = [sys.executable, str(ROOT / "gpt" / "ending.py"), str(folder), str(status)]
    done = subprocess.run(words, cwd=folder.parent, capture_output=True, text=True, timeout=20)
    assert not done.stdout
    return done.returncode, done.stderr.splitlines()


def environment(folder: Path, rank: int, size: int, attempt: int = 0, launcher: bool = True) -> dict[str, str]:
    """What torchrun tells a process, its folder being there."""
    note = folder / "RUN" / f"attempt_{attempt}" / str(rank) / "error.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "TORCHELASTIC_RUN_ID": "RUN",
    }
    told |= {"TORCHELASTIC_RESTART_COUNT": attempt, "TORCHELASTIC_ERROR_FILE": note, "PYTHONPATH": ROOT}
    told |= {"GPT_DPO_LAUNCHER": "launch.sh"} if launcher else {}
    return ENVIRONMENT | {name: str(value) for name, value in told.items()}


def run(
    worker: Path, folder: Path, *words: str, attempt: int = 0, launcher: bool = True
) -> tuple[list[int], list[str]]:
    """Processes as torchrun starts them, none of which ends another: (exit codes, the lines said)."""
    started = [
        subprocess.Popen(
            [sys.executable, str(worker), *words],
            env=environment(folder, rank, len(words), attempt, launcher),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(len(words))
    ]
    said = [process.communicate(timeout=60) for process in started]
    return [process.returncode for process in started], [line for _, errors in said for line in errors.splitlines()]


def notes(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("error.json"))]


# Under launch.sh: processes note, and gpt/ending.py says it


def test_an_error_of_the_users_is_said_once_and_as_a_single_process_says_it(worker, tmp_path):
    assert run(worker, tmp_path, "user", "user", "user") == ([2, 2, 2], [])
    assert ending(tmp_path, 1) == (2, ["error: --beta is 0"])


def test_an_error_that_all_have_together_is_no_failure_to_torchrun(worker, tmp_path):
    assert run(worker, tmp_path, "everywhere", "everywhere") == ([0, 0], [])
    assert ending(tmp_path, 0) == (2, ["error: the pairs differ"])


def test_a_bug_in_one_process_is_said_with_its_traceback_and_its_number_and_what_followed_from_it_is_not(
    worker, tmp_path
):
    assert run(worker, tmp_path, "lost", "bug", "lost") == ([1, 1, 1], [])
    code, lines = ending(tmp_path, 1)
    assert code == 1 and lines[0].startswith("Traceback") and lines[-2] == "in two lines"
    assert lines[-1].startswith("error: process 1 of 3 on ") and lines[-1].endswith(
        ": RuntimeError: a bug in two lines"
    )
    assert sum("lost" in line for line in lines) == 0


def test_a_code_that_a_command_returns_is_kept_and_nothing_is_added(worker, tmp_path):
    assert run(worker, tmp_path, "143", "143") == ([0, 0], [])
    assert ending(tmp_path, 0) == (143, [])


def test_a_process_that_was_killed_is_named_by_those_that_lost_it(worker, tmp_path):
    assert run(worker, tmp_path, "lost", "killed")[0] == [1, -signal.SIGKILL]
    code, (line,) = ending(tmp_path, 1)
    assert code == 1 and "lost contact with another process (Connection reset by peer); process 1 " in line
    assert "out of memory" in line and "--resume" in line


def test_processes_that_were_all_killed_leave_a_line_too(worker, tmp_path):
    assert run(worker, tmp_path, "killed", "killed")[0] == [-signal.SIGKILL] * 2
    code, (line,) = ending(tmp_path, 137)
    assert code == 137 and "without a word" in line and "dmesg" in line and "--resume" in line


def test_a_job_in_which_nothing_went_wrong_ends_with_0_and_says_nothing(worker, tmp_path):
    assert run(worker, tmp_path, "0", "0") == ([0, 0], [])
    assert ending(tmp_path, 0) == (0, []) and not notes(tmp_path)


def test_where_no_process_was_started_torchruns_own_words_are_pointed_at(tmp_path):
    code, (line,) = ending(tmp_path / "none", 1)
    assert code == 1 and "no process was started" in line


def test_where_the_note_cannot_be_written_a_process_speaks_for_itself(worker, tmp_path):
    told = environment(tmp_path, 0, 2) | {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "absent" / "a" / "error.json")}
    words = [sys.executable, str(worker), "everywhere", "everywhere"]
    done = subprocess.run(words, env=told, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "error: the pairs differ\n")


# Under torchrun alone: the first process says it


def test_without_launch_sh_one_process_speaks_for_all(worker, tmp_path):
    assert run(worker, tmp_path, "user", "user", "user", launcher=False) == ([2, 2, 2], ["error: --beta is 0"])


def test_without_launch_sh_the_cause_is_said_though_others_met_its_consequence_first(worker, tmp_path):
    codes, lines = run(worker, tmp_path, "lost", "bug", launcher=False)
    assert codes == [1, 1] and lines[0].startswith("Traceback") and lines[-1].startswith("error: process 1 of 2 on ")
    assert not any("lost" in line for line in lines)


def test_without_launch_sh_a_loss_alone_is_said(worker, tmp_path):
    lines = run(worker, tmp_path, "lost", "killed", launcher=False)[1]
    assert len(lines) == 1 and "lost contact with another process" in lines[0]


# Restarts


def test_a_restart_after_a_cause_ends_at_once_and_says_nothing_anew(worker, tmp_path):
    run(worker, tmp_path, "lost", "bug")
    assert run(worker, tmp_path, "0", "0", attempt=1) == ([0, 0], [])
    first, again = ending(tmp_path, 1), ending(tmp_path, 0)
    assert first == again and first[0] == 1 and "process 1 of 2" in first[1][-1]
    assert run(worker, tmp_path, "0", "0", attempt=2, launcher=False) == ([1, 1], [])  # torchrun alone: the code stays


def test_a_restart_after_a_killed_process_goes_on(worker, tmp_path):
    run(worker, tmp_path, "lost", "killed once")
    assert run(worker, tmp_path, "0", "killed once", attempt=1) == ([0, 0], [])
    assert ending(tmp_path, 0) == (0, [])


def test_a_restart_of_processes_on_several_machines_is_left_to_those_who_can_tell_the_others(worker, tmp_path):
    run(worker, tmp_path, "bug", "bug")
    told = environment(tmp_path, 0, 2, attempt=1) | {"WORLD_SIZE": "4"}
    done = subprocess.run([sys.executable, str(worker), "0", "0"], env=told, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "began\n")
    code = "from gpt.ending import ended_before; print(ended_before())"
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, timeout=60)
    assert done.stdout == "RuntimeError: a bug in two lines\n"


# The notes


GOOD = {
    "message": {"message": "RuntimeError: good", "errorCode": 1, "extraInfo": {"timestamp": "1"}},
    **{"rank": 0, "size": 2, "host": "node", "cause": True, "said": False, "time": 5.0},
}


def put(folder: Path, name: str, content: bytes | dict) -> Path:
    path = folder / "RUN" / name / "error.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        json.dumps(GOOD).encode()[:-9],
        b"[" * 200_000,
        b"\xff\xfe\x00",
        b"null",
        b'{"message": "text"}',
        b" " * 2**20 + json.dumps(GOOD | {"time": 0}).encode(),
        GOOD | {"rank": "x", "time": 0},
        GOOD | {"rank": 1e400, "time": 0},
        GOOD | {"time": {}},
        GOOD | {"message": {"message": "no code", "extraInfo": {}}},
        GOOD | {"message": {"message": "bad", "errorCode": 1, "extraInfo": "text"}, "time": 0},
    ],
)
def test_what_is_no_whole_note_is_passed_over(tmp_path, content):
    put(tmp_path, "attempt_0/1", GOOD)
    put(tmp_path, "attempt_0/0", content)
    put(tmp_path, "no_attempt/2", GOOD | {"time": 0})
    code, (line,) = ending(tmp_path, 1)
    assert code == 1 and line == "error: process 0 of 2 on node: RuntimeError: good"


def test_pipes_links_and_folders_in_the_place_of_notes_are_passed_over_at_once(tmp_path):
    first = put(tmp_path, "attempt_0/0", GOOD)
    for number in range(1, 4):
        (tmp_path / "RUN" / "attempt_0" / str(number)).mkdir()
    os.mkfifo(first.parents[1] / "1" / "error.json")
    (first.parents[1] / "2" / "error.json").symlink_to("/dev/zero")
    (first.parents[1] / "3" / "error.json").mkdir()
    assert ending(tmp_path, 1)[1] == ["error: process 0 of 2 on node: RuntimeError: good"]


def test_letters_that_steer_a_terminal_are_not_passed_on(tmp_path):
    message = {"message": "a\x1b[2Jb\nc\x07", "errorCode": 10**9, "extraInfo": {"py_callstack": "\x1b]0;x\x07\nline\n"}}
    put(tmp_path, "attempt_0/0", GOOD | {"message": message, "host": "h\x1b\n"})
    code, lines = ending(tmp_path, 1)
    assert lines == ["?]0;x?", "line", "error: process 0 of 2 on h?: a?[2Jb c?"] and code == 255


def test_the_last_attempt_with_a_cause_counts_and_in_it_the_earliest(tmp_path):
    for name, time_, line in (("attempt_0/0", 1, "old"), ("attempt_10/0", 8, "late"), ("attempt_10/1", 7, "cause")):
        message = GOOD["message"] | {"message": line}
        put(tmp_path, name, GOOD | {"time": time_, "message": message, "rank": int(name[-1])})
    put(tmp_path, "attempt_11/0", GOOD | {"cause": False})
    put(tmp_path, "attempt_10/2", GOOD | {"cause": False, "time": 1})
    assert ending(tmp_path, 1)[1] == ["error: process 1 of 2 on node: cause"]


def test_a_note_is_bounded_whatever_the_error_says(worker, tmp_path):
    told = environment(tmp_path, 0, 1)
    code = "from gpt.ending import record; print(record('\\x00\\U0001f600\\udc80 ' * 10**6, 1, 'd\\udc80' * 10**6))"
    assert subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True).stdout == "True\n"
    (path,) = tmp_path.rglob("error.json*")
    assert path.stat().st_size < 200_000 and len(ending(tmp_path, 1)[1][-1]) < 2100


def test_what_a_process_notes_first_is_what_ended_it(tmp_path):
    told = environment(tmp_path, 0, 1)
    code = "from gpt.ending import record; record('first', 2); record('second', 1)"
    subprocess.run([sys.executable, "-c", code], env=told, check=True)
    assert ending(tmp_path, 1) == (2, ["error: first"])


def test_torchruns_own_summary_has_the_line_and_takes_the_cause_for_the_cause(worker, tmp_path):
    run(worker, tmp_path, "lost", "user")
    failures = {
        rank: ProcessFailure(rank, 1, 1, str(tmp_path / f"RUN/attempt_0/{rank}/error.json")) for rank in range(2)
    }
    found = ChildFailedError("worker", failures)
    assert found.get_first_failure()[0] == 1
    assert "traceback : --beta is 0" in str(found) and "traceback : lost contact with another process" in str(found)


# The loss of another process

GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    "text, said",
    [
        (
            GLOO + "pair.cc:537] Read error [127.0.0.1]:513: Connection reset by peer. This is",
            "Connection reset by peer",
        ),
        (GLOO + "pair.cc:547] Connection closed by peer [127.0.0.1]:51337", "Connection closed by peer"),
        (GLOO + "unbound_buffer.cc:78] Timed out waiting 4000ms for recv", "Timed out waiting 4000ms"),
        ("Application timeout caused pair closure", "Application timeout caused pair closure"),
        ("a bug", None),
        ("the user's text: Connection reset by peer", None),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", None),
    ],
)
def test_an_exception_of_gloo_that_is_about_another_process_is_told_from_a_bug(text, said):
    assert lost_contact(RuntimeError(text)) == (said and f"lost contact with another process ({said})")
    assert lost_contact(ValueError(text)) is None


LOSES = """
import os, signal, sys
from datetime import timedelta
import torch, torch.distributed as dist
from dataclasses import dataclass
from pathlib import Path
from gpt.command import argument, run

@dataclass(frozen=True)
class Flags:
    "Lose a process of three in the midst of their work."
    how: str = argument("how it is lost")

def main(flags):
    dist.init_process_group("gloo", timeout=timedelta(seconds=5))
    dist.barrier()
    for step in range(1000):
        if step == 3 and dist.get_rank() == 1:
            Path(__file__).with_name("lost").touch()
            if flags.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if flags.how == "hangs":
                signal.pause()
            raise IndexError("row 3")
        dist.all_reduce(torch.zeros(1000))

run(main, Flags)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how, limit", [("bug", 15), ("killed", 15), ("hangs", 25)])
def test_a_process_lost_in_a_collective_ends_all_and_the_cause_is_named(tmp_path, how, limit):
    (tmp_path / "loses.py").write_text(LOSES)
    job = torchrun(tmp_path, 3, 0, tmp_path / "loses.py", how)
    assert job.returncode == 1 and time.time() - (tmp_path / "lost").stat().st_mtime < limit
    code, lines = ending(tmp_path / "logs", 1)
    assert code == 1
    if how == "bug":
        assert lines[0].startswith("Traceback") and "process 1 of 3" in lines[-1] and "IndexError: row 3" in lines[-1]
    else:
        assert len(lines) == 1 and "lost contact with another process (" in lines[0] and "; process 1 " in lines[0]


# Under a real torchrun


def torchrun(folder: Path, processes: int, restarts: int, *words, launcher: bool = True) -> subprocess.CompletedProcess:
    line = command(*words, processes=processes)
    at = line.index("--standalone")
    line[at:at] = ["--log-dir", str(folder / "logs"), "--max-restarts", str(restarts)]
    told = {"PYTHONPATH": str(ROOT)} | ({"GPT_DPO_LAUNCHER": "launch.sh"} if launcher else {})
    return subprocess.run(line, env=ENVIRONMENT | told, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_torchrun_makes_no_restart_for_what_all_met_and_says_nothing_of_it(worker, tmp_path):
    done = torchrun(tmp_path, 2, 3, worker, "everywhere", "everywhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert "".join(done.stdout.split()) == "beganbegan"  # two write at once: a line may come within another
    assert ending(tmp_path / "logs", 0) == (2, ["error: the pairs differ"])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [True, False])
def test_a_bug_is_met_once_though_torchrun_would_restart_and_is_said_once(worker, tmp_path, launcher):
    done = torchrun(tmp_path, 2, 3, worker, "waits", "bug", launcher=launcher)
    assert done.stdout.count("began") == 2
    before_summary = done.stderr.split("torch.distributed.elastic.multiprocessing.errors.ChildFailedError")[0]
    assert before_summary.count("error: process 1 of 2") == (not launcher)
    assert done.returncode == (0 if launcher else 1)
    code, lines = ending(tmp_path / "logs", done.returncode)
    assert code == 1 and "process 1 of 2" in lines[-1] and lines[-1].endswith("RuntimeError: a bug in two lines")


@pytest.mark.slow
def test_a_killed_process_is_restarted(worker, tmp_path):
    done = torchrun(tmp_path, 2, 1, worker, "0", "killed once")
    assert done.returncode == 0 and ending(tmp_path / "logs", 0) == (0, [])


# Without a launcher

ALONE = """
import os, time
from gpt.ending import end_with_launcher
end_with_launcher()
os.write(1, f"{os.getpid()}\\n".encode())
time.sleep(60)
"""

# One that is still importing torch when its launcher dies
LATE = """
import os, time
os.write(1, f"{os.getpid()}\\n".encode())
time.sleep(2)
from gpt.ending import end_with_launcher
end_with_launcher()
time.sleep(60)
"""

BLOCKED = """
import os, sys, time
from gpt.ending import end_with_launcher
end_with_launcher()
import torch, torch.distributed as dist
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=int(sys.argv[2]), world_size=2)
dist.barrier()
os.write(1, f"{os.getpid()}\\n".encode())
if sys.argv[2] == "0":
    try:
        dist.all_reduce(torch.zeros(1))  # which the other never joins
    except RuntimeError:  # the other's end was the first
        pass
time.sleep(60)
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "script, limit",
    [(ALONE, 2), (LATE, 4), pytest.param(BLOCKED, 2, marks=pytest.mark.slow)],
    ids=["", "late", "blocked"],
)
def test_a_process_ends_a_second_after_its_launcher_whatever_it_does_meanwhile(tmp_path, script, limit):
    if not Path("/proc/self/stat").exists():
        pytest.skip("there is no /proc")
    (tmp_path / "script.py").write_text(script)
    line = f"for rank in 0 1; do {sys.executable} {tmp_path}/script.py {tmp_path}/store $rank & done; wait"
    line = f"export GPT_DPO_LAUNCHER=$$; {line}" if script == LATE else line
    told = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "TORCHELASTIC_RUN_ID": "RUN"}
    launcher = subprocess.Popen(["bash", "-c", line], env=told, stdout=subprocess.PIPE, text=True)
    processes = [int(launcher.stdout.readline()) for _ in range(2)]
    if script != LATE:
        time.sleep(1)
    assert all(map(is_alive, processes))
    launcher.kill()
    begun = time.monotonic()
    while any(map(is_alive, processes)):
        assert time.monotonic() - begun < limit
        time.sleep(0.05)
