"""What launch.sh becomes when it starts processes: the surroundings are checked before, and the end is said once.

    python gpt/launch/launcher.py --first dpo/train.py dpo/train.py --steps 100

    variables -> the script alone, --dry-run -> preflight -> torchrun's agent, in this process -> one line -> exit code

The agent runs here and not in a process of its own, so that there is one process to signal and to kill: workers end when
their launcher does. One signal, however often it arrives, is passed on as one SIGTERM to each worker.

Exit codes: 0 done, 2 for an error of the user, 143 stopped by a signal, else 1.
"""

import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Container
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpt import ending
from gpt.command import UserError
from gpt.launch.agent import GRACE, Job, run, set_environment
from gpt.launch.interrupts import Interrupted, Interrupts
from gpt.launch.place import number, this_place
from gpt.note import read_notes

ROOT = Path(__file__).resolve().parents[2]
TORCHRUNS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE")
PLACES = {"--init", "--out", "--pairs", "--reference"}
LOGS = {
    "LOGLEVEL": "INFO",
    "NCCL_DEBUG": "INFO",
    "TORCH_CPP_LOG_LEVEL": "INFO",
    "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
    "TORCH_SHOW_CPP_STACKTRACES": "1",
}


def main(asked: Namespace) -> int:
    """Run the script that is `asked` for in many processes. Returns the exit code. Raises UserError."""
    folder = Path(tempfile.mkdtemp(prefix="gpt-dpo-launch-"))

    def leave(status: int) -> None:
        """From a thread, whatever the main one waits for."""
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(status)

    try:
        try:
            Interrupts(GRACE + 2, asked.follow, leave)
            job = prepare(asked, folder)
            set_environment(job)
            status = run(job, stuck=lambda: leave(last_word(folder, 1)))
        except Interrupted:
            status = ending.STOPPED
        return last_word(folder, status)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def last_word(folder: Path, status: int) -> int:
    """Say how it ended. Returns the exit code."""
    notes = read_notes(folder).values()
    with suppress(OSError):  # of a terminal that closed, or a `tee` that the same Ctrl+C ended
        if status != ending.STOPPED or any(note.cause or note.code == ending.STOPPED for note in notes):
            return ending.main(folder, status)
        print("stopped by a signal", file=sys.stderr)
    return status


def prepare(asked: Namespace, folder: Path) -> Job:
    """What to run and how, all of it checked. Raises UserError, and SystemExit where the script's own check ends it."""
    place = this_place(os.environ)
    restarts = number(os.environ, "RESTARTS", 3, 0)
    wait = number(os.environ, "WAIT", 600, 1)
    flags = [flag for flag in asked.flags if flag != "--debug"]
    if flags != asked.flags:
        os.environ |= LOGS
    processes = number(os.environ, "N", 1, 1) if os.environ.get("N") else devices()
    if asked.show:
        words = [os.path.relpath(asked.script, ROOT), *flags]
        print(f"\ntorchrun --local-addr 127.0.0.1 --nproc_per_node={processes} {shlex.join(words)}\n", flush=True)
    who = identity(asked.script, flags)
    words = ["--processes", processes, "--out", given(flags, "--out") or "."]
    if place.count > 1:
        words += ["--nnodes", place.count, "--node-rank", place.rank, "--wait", wait, "--identity", who]
        words += ["--master-addr", place.address, "--master-port", place.port]
    words += ["--verbose"] * (asked.verbose or flags != asked.flags)
    preflight = partial(alone, ROOT / "gpt/launch/preflight.py", *words)
    only_asks = bool({"--help", "-h", "--dry-run"} & set(flags))
    said = preflight() if place.count == 1 and not only_asks else ""
    if asked.first:  # before other machines are met: what is wrong here need not keep them waiting
        os.environ["PLANNED_PROCESSES"] = str(processes)
        # a torchrun that this shell is in, or was, is none of its business
        print(alone(asked.first, "--dry-run", *flags, hidden=TORCHRUNS), end="", flush=True)
        if only_asks:
            sys.exit(0)
    address, interface, _ = (said or preflight()).split()
    return Job(asked.script, flags, processes, place, restarts, max(wait, 60), who, address, interface, folder)


def devices() -> int:
    """How many processes are best: one for each CUDA device, else one."""
    import torch  # takes seconds

    return torch.cuda.device_count() or 1


def alone(script: str | Path, *words, hidden: Container[str] = ()) -> str:
    """What the script prints, run in one process that does not see the variables `hidden`. Raises SystemExit with its code
    where that is not 0, UserError where it was killed."""
    command = [sys.executable, str(script), *map(str, words)]
    seen = {name: value for name, value in os.environ.items() if name not in hidden}
    # in a session of its own, that it hears of a Ctrl+C by this process alone
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=seen) as process:
        try:
            said, _ = process.communicate()
        except Interrupted:
            process.kill()
            raise
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise UserError(f"{os.path.relpath(script, ROOT)} was killed by {name} (out of memory? see dmesg)")
    if process.returncode:
        print(said, end="", flush=True)
        sys.exit(process.returncode)
    return said


def identity(script: str, flags: list[str]) -> str:
    """What must be the same on all machines: the project's source files, versions, the script and its flags.

    But for --resume, with which a machine that was away comes back to the others, and for places, which are each
    machine's own: the processes compare what lies there.
    """
    before = ["", *flags]
    flags = [flag for last, flag in zip(before, flags) if not {last, flag.partition("=")[0]} & PLACES]
    flags = [flag for flag in flags if flag != "--resume"]
    digest = hashlib.sha256()
    for room in ("gpt", "data", "dpo"):
        for path in sorted((ROOT / room).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    asked_for = hashlib.sha256(shlex.join([os.path.relpath(script, ROOT), *flags]).encode())
    versions = f"torch={version('torch')} Python={platform.python_version()}"
    return f"code={digest.hexdigest()[:12]} {versions} flags={asked_for.hexdigest()[:12]}"


def given(flags: list[str], name: str) -> str:
    """The value that follows the flag `name`, "" where it is not there."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value", nargs="?", default="", const="")  # a missing one is for the script to name
    return parser.parse_known_args(flags)[0].value


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--first", help="a script that is run alone before, with --dry-run and the same flags")
    parser.add_argument("--follow", action="store_true", help="stop when the process that started this one is gone")
    parser.add_argument("--show", action="store_true", help="print the command that does the same without launch.sh")
    parser.add_argument("--verbose", action="store_true", help="print what the preflight finds")
    parser.add_argument("script")
    parser.add_argument("flags", nargs=REMAINDER)
    try:
        sys.exit(main(parser.parse_args()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted:  # while the last word was said
        sys.exit(ending.STOPPED)
