"""What ended a process of many, as a file that torchrun, launch.sh and the next attempt read.

    DIR/RUN_xyz/attempt_0/1/error.json

    {"rank": 1, "size": 2, "host": "node7", "cause": true, "said": false, "time": 1754000000.25,
     "message": {"message": "RuntimeError: a bug", "errorCode": 1,
                 "extraInfo": {"timestamp": "1754000000", "py_callstack": "Traceback ..."}}}

torchrun makes the folders, one for each attempt and process of a machine, and reads `message` for its summary.
"""

import json
import os
import re
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

STOPPED = 143  # the exit code of a run that a signal stopped
LINE, DETAILS, FILE = 2_000, 20_000, 2**19  # the most letters of a line and of a traceback, the most bytes of a file


class Note(NamedTuple):
    """What ended a process: one line, its exit code, and where."""

    line: str
    code: int
    details: str  # the traceback of a bug, else ""
    cause: bool  # False: the process merely lost another one
    said: bool  # whether the line was printed already
    rank: int
    size: int
    host: str
    time: float
    attempt: int = 0
    local_rank: int = 0


def note_of_this_process(line: str, code: int, details: str, cause: bool, said: bool) -> Note:
    """What ends this process, now."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return Note(_one_line(line), code, details[-DETAILS:], cause, said, rank, size, socket.gethostname(), time.time())


def write(note: Note, path: Path) -> None:
    """Write it whole or not at all. Raises OSError."""
    # torchrun takes the earliest whole second for the root cause: what another's end brought about comes after it
    extra = {"timestamp": str(int(note.time) + (0 if note.cause else 2))}
    if note.details:  # which torchrun would show in place of the line
        extra["py_callstack"] = note.details
    found = {name: getattr(note, name) for name in ("rank", "size", "host", "cause", "said", "time")}
    found["message"] = {"message": note.line, "errorCode": note.code, "extraInfo": extra}
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps(found))
    os.replace(part, path)


def read_notes(folder: Path) -> dict[Path, Note]:
    """All notes below a folder. What is no note, or not whole, is passed over: anything may lie there."""
    return {path: note for path in sorted(folder.rglob("error.json")) if (note := _read(path))}


def first_cause(notes: dict[Path, Note]) -> tuple[Path, Note] | None:
    """What ended all of them: the earliest cause of the last attempt that has one.

    Without a cause the earliest loss, one that was met while stopping before others.
    """
    return min(notes.items(), key=lambda found: _order(found[1]), default=None)


def attempt_of(path: Path) -> int:
    """The number of the attempt to which a note belongs. Raises ValueError where the path is not of torchrun's kind."""
    found = re.fullmatch(r"attempt_(\d{1,9})", path.parent.parent.name)
    if not found:
        raise ValueError(f"{path} belongs to no attempt")
    return int(found[1])


def _order(note: Note) -> tuple:
    return not note.cause, -note.attempt, note.code != STOPPED, note.time


def _read(path: Path) -> Note | None:
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)  # a pipe would let us wait for ever
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            found = json.loads(file.read(FILE))
        message = found["message"]
        return Note(
            _one_line(str(message["message"])),
            min(max(int(message["errorCode"]), 1), 255),
            _visible(str(message["extraInfo"].get("py_callstack", ""))[-DETAILS:]),
            found["cause"] is True,
            found["said"] is True,
            int(found["rank"]),
            int(found["size"]),
            _one_line(str(found["host"])),
            float(found["time"]),
            attempt_of(path),
            int(path.parent.name),
        )
    return None


def _one_line(text: str) -> str:
    return _visible(" ".join(text[:LINE].split()))


def _visible(text: str) -> str:
    """Without the letters that steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
