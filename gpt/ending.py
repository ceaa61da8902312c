"""How one process of many ends: each notes what ended it, and one line for all of them is the last of the output.

    process 0 notes     lost contact with another process       a consequence
    process 1 notes     RuntimeError: a bug                     the cause

    python gpt/ending.py DIR STATUS         error: process 1 of 2 on HOST: RuntimeError: a bug

So launch.sh asks at its end, DIR being torchrun's --log-dir and STATUS its exit code: torchrun itself says it in 44
lines, and always ends with 1. Without launch.sh the first process that comes to its end says it. Nothing but the
standard library is imported: ending has to work, and at once, where nothing else does.
"""

import os
import re
import shutil
import sys
import threading
import time
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from traceback import format_exception

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt.launched import under_torchrun
from gpt.note import STOPPED, Note, attempt_of, first_cause, note_of_this_process, read_notes, write

LAUNCHER = "GPT_DPO_LAUNCHER"  # set by launch.sh for the processes that it starts: its process number
ASKED_FOR = (STOPPED, 130)  # the exit codes of a stop by a signal and by Ctrl+C, which are no errors
LOST = re.compile(  # what gloo, torch's store and nccl say when another process, or the network between, is gone
    r"Connection (?:closed|reset) by peer|Connection was likely closed|Connection refused|closed by remote peer|Broken pipe"
    r"|No route to host|Network is unreachable|connectFullMesh failed|Timed out waiting \d+ms|wait timeout after \d+ms"
    r"|Application timeout caused pair closure|client socket has (?:failed|timed out)|waiting for clients"
    r"|NCCL communicator was aborted|Watchdog caught collective operation timeout|remote process exit(?:ed|ing prematurely)"
)


class LostContact(Exception):
    """Another process is gone, or silent. The message is one line, which names it where that is known."""


class EndedBefore(Exception):
    """torchrun has started the processes again after an error, on one machine at least, that would only come again."""


# In a process that ends


def close(
    line: str, code: int, details: str = "", cause: bool = True, said: bool = False, everywhere: bool = False
) -> int:
    """Note what ends this process, and say it: once for all processes of a machine, and not here if launch.sh does.

    everywhere: all processes end alike. Under launch.sh that is no failure to torchrun, which would start them again.
    Returns the exit code to leave with.
    """
    noted = record(line, code, details, cause, said)
    if not cause:
        time.sleep(1)  # the one that caused it speaks first: at the end of any process torchrun ends the rest
    if noted and _launch_sh_tells():
        if not everywhere:
            time.sleep(0.5)  # for the others, who may meet the same error and note it
        return 0 if everywhere else code
    if not said and _speaks():
        note = note_of_this_process(line, code, details, cause, said)
        _say(note, named=note.size > 1 and bool(details or not cause))
    return code


def close_unforeseen(error: Exception) -> int:
    """The same for an exception that is nothing a user can mend: a bug, with its traceback, or the loss of another process."""
    if lost := lost_contact(error):
        return close(lost, 1, cause=False)
    line = f"{type(error).__name__}: {error}"
    return close(line, 1, "".join(format_exception(error)), everywhere=is_everywhere(error))


def is_everywhere(error: Exception) -> bool:
    """Whether all processes meet the same error, as gpt.joining.join marks it."""
    return getattr(error, "everywhere", False)


def record(line: str, code: int, details: str = "", cause: bool = True, said: bool = False) -> bool:
    """Note what ends this process where torchrun and launch.sh look for it. Returns whether it stands there.

    What a process notes first is what ended it. Without torchrun there is nobody to note it for.
    """
    path = _own()
    if path and not path.exists():
        with suppress(OSError):
            write(note_of_this_process(line, code, details, cause, said), path)
    return bool(path and path.exists())


def ended_before() -> str | None:
    """The line of the cause that ended an earlier attempt of this launch on this machine; None where a restart may help."""
    found = _cause_before()
    return found[1].line if found else None


def another_failed() -> bool:
    """Whether another process of this attempt, on this machine, has noted what ended it."""
    own = _own()
    notes = read_notes(own.parent.parent) if own else {}
    return any(note.cause and note.code != STOPPED for path, note in notes.items() if path != own)


def end_again(told: bool = False) -> int | None:
    """On a restart after an attempt that no restart can mend: what ended it is noted anew, and not said again.

    Returns the exit code to leave with at once, else None: also where processes on other machines have to be told, and
    these have not been `told` yet.
    """
    found = _cause_before()
    if not told and (not found or os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE")):
        return None
    if not found:
        return close("another machine's processes ended with an error, which is said there", 2, everywhere=True)
    if own := _own():
        with suppress(OSError):
            shutil.copyfile(found[0], own)
    return 0 if _launch_sh_tells() else found[1].code


def lost_contact(error: BaseException) -> str | None:
    """What to say of an exception that is merely the loss of another process; None for any other exception."""
    if isinstance(error, LostContact):
        return str(error)
    kinds, text = [cls.__name__ for cls in type(error).__mro__], str(error)
    found = LOST.search(text) if "RuntimeError" in kinds else None
    if found and ("DistError" in kinds or "/gloo/" in text or "pair closure" in text):
        return f"lost contact with another process ({found[0]})"
    return None


def end_with_launcher(every: float = 0.5) -> None:
    """Under torchrun: end this process soon after the one that started it, whatever it waits for meanwhile.

    launch.sh says which one that is. torchrun does not: so it must still be there when this is called.
    """
    running = any(thread.name == end_with_launcher.__name__ for thread in threading.enumerate())
    if running or not under_torchrun():
        return
    told = os.environ.get(LAUNCHER, "")
    launcher = int(told) if told.isdecimal() else os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, name=end_with_launcher.__name__, daemon=True).start()


def _own() -> Path | None:
    """Where this process notes what ended it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(path) if path else None


def _launch_sh_tells() -> bool:
    return LAUNCHER in os.environ


def _cause_before() -> tuple[Path, Note] | None:
    """The note of the cause that ended an earlier attempt, and what it says."""
    own = _own()
    if not own or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    with suppress(ValueError):  # a launcher that has folders of another kind
        now = attempt_of(own)
        notes = read_notes(own.parent.parent.parent)
        return first_cause({path: note for path, note in notes.items() if note.cause and note.attempt < now})
    return None


def _speaks() -> bool:
    """Whether this process is the one to say what ended it: the first of a machine. The others leave it time to speak."""
    own = _own()
    if not own:
        return True
    try:
        (own.parent.parent / "said").touch(exist_ok=False)
        return True
    except FileExistsError:
        time.sleep(0.5)
        return False
    except OSError:
        return True


def _say(note: Note, named: bool, more: str = "") -> None:
    who = f"process {note.rank} of {note.size} on {note.host}: " if named else ""
    details = note.details.rstrip("\n") + "\n" if note.details else ""
    error = "" if note.code in ASKED_FOR else "error: "
    print(f"{details}{error}{who}{note.line}{more}", file=sys.stderr, flush=True)


# When all have ended


def main(folder: Path, status: int) -> int:
    """Say what ended the processes that wrote notes below `folder`. Returns the exit code of them all.

    status: what torchrun ended with. After a 0 a lost contact was made good by a restart.
    """
    notes = read_notes(folder)
    first = first_cause(notes)
    if status == 0 and not (first and first[1].cause):
        return 0
    if not first:
        print(_wordless(folder, status), file=sys.stderr, flush=True)
        return min(max(status, 1), 255)
    path, note = first
    beside = [other for other in notes.values() if (other.attempt, other.cause) == (note.attempt, note.cause)]
    alone = len({other.rank for other in beside}) == 1 or len({other.line for other in beside}) > 1
    if not note.said:
        _say(note, alone and note.size > 1, "" if note.cause else _silent(path, note))
    return note.code


def _wordless(folder: Path, status: int) -> str:
    if not any(folder.glob("*/attempt_*/*")):
        return f"error: no process was started; what torchrun (exit code {status}) says of it stands above"
    return (
        f"error: the processes ended without a word; what torchrun (exit code {status}) says of it stands above. "
        "Killed by signal 9 they were most often out of memory: see dmesg. Continue with --resume"
    )


def _silent(path: Path, note: Note) -> str:
    """Which processes of the attempt left no note, though others lost contact with them."""
    first = note.rank - note.local_rank  # torchrun numbers the processes of a machine on from there
    folders = [folder for folder in path.parent.parent.iterdir() if folder.name.isdecimal()]
    ranks = sorted(first + int(folder.name) for folder in folders if not (folder / path.name).exists())
    if not ranks:
        elsewhere = "; the network failed, or another machine" if len(folders) < note.size else ""
        return f"{elsewhere}; continue with --resume"
    which = f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    return f"; {which} hung or died without a word (out of memory? see dmesg); continue with --resume"


if __name__ == "__main__":
    parser = ArgumentParser(description="Say what ended the processes of a launch, and leave with their code.")
    parser.add_argument("folder", type=Path, help="torchrun's --log-dir")
    parser.add_argument("status", type=int, help="torchrun's exit code")
    given = parser.parse_args()
    sys.exit(main(given.folder, given.status))
