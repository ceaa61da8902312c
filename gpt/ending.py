"""How one process of many ends: each notes what ended it, and one line for all of them is the last of the output.

    DIR/RUN_xyz/attempt_0/0/error.json      lost contact with another process      a consequence
    DIR/RUN_xyz/attempt_0/1/error.json      RuntimeError: a bug                    the cause

    python gpt/ending.py DIR STATUS         error: process 1 of 2 on HOST: RuntimeError: a bug

DIR is torchrun's --log-dir, STATUS its exit code. The files are torchrun's own kind, so that its summary shows the line
too. Nothing but the standard library is imported: launch.sh asks here last, and a process that ends must not wait.
"""

import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LINE, DETAILS, FILE = 2_000, 20_000, 200_000  # the most characters of a line and of a traceback, and bytes of a file
SILENT = (130, 143)  # a stop that was asked for is no error
LAUNCHER_GONE = 1
LOST = (  # what gloo, nccl and torch's store say when another process, or the network between, is gone
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection was likely closed",
    "Connection refused",
    "Broken pipe",
    "No route to host",
    "Network is unreachable",
    "Timed out waiting",
    "Socket Timeout",
    "connectFullMesh failed",
    "failed to connect to any network address",
    "failed to recv, got 0 bytes",
    "Watchdog caught collective operation timeout",
    "NCCL communicator was aborted",
    "remote process exited",
    "remote process exiting prematurely",
)
SPEAKERS = ("gloo", "nccl", "TCPStore", "c10d")  # a plain RuntimeError must name one of them to be about the others


class End(NamedTuple):
    """What ended a process: one line, its exit code, and where."""

    line: str
    code: int
    details: str = ""  # the traceback of a bug
    cause: bool = True  # False: it merely lost another process
    said: bool = False  # whether the line was printed already
    rank: int = 0
    size: int = 1
    host: str = ""
    time: float = 0.0
    attempt: int = 0


def record(line: str, code: int, details: str = "", cause: bool = True, said: bool = False) -> bool:
    """Note what ends this process where torchrun and launch.sh look for it. Returns whether it stands there.

    The first that a process notes is what ended it. Without torchrun there is nobody to note it for.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return False
    if os.path.exists(path):
        return True
    now = time.time()
    # torchrun calls the earliest whole second the root cause: what another's end brought about comes after it
    extra = {"timestamp": str(int(now) + (0 if cause else 2))} | (
        {"py_callstack": details[-DETAILS:]} if details else {}
    )
    about = {"rank": _number("RANK", 0), "size": _number("WORLD_SIZE", 1), "host": socket.gethostname()}
    noted = about | {"cause": cause, "said": said, "time": now}
    noted["message"] = {"message": _one_line(line), "errorCode": code, "extraInfo": extra}
    part = f"{path}.{os.getpid()}"
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump(noted, file)
        os.replace(part, path)
    except OSError:
        return False
    return True


def ended_before() -> str | None:
    """The line of what ended an earlier attempt of this launch, on this machine; None where a restart may help."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path or not _number("TORCHELASTIC_RESTART_COUNT", 0):
        return None
    own = Path(path).parent.parent
    causes = [end for end in _ends(own.parent) if end.cause and end.attempt < _attempt(own.name)]
    return the_cause(causes).line if causes else None


def lost_contact(error: BaseException) -> str | None:
    """What to say of an exception that is merely the loss of another process; None for any other."""
    names, text = {cls.__name__ for cls in type(error).__mro__}, str(error)
    if "RuntimeError" not in names or not ("DistError" in names or any(name in text for name in SPEAKERS)):
        return None
    found = next((words for words in LOST if words in text), None)
    return f"lost contact with another process ({found})" if found else None


def end_with_launcher(every: float = 0.5) -> None:
    """End this process soon after the one that started it, even while it waits for others that will never answer."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(every)
        os._exit(LAUNCHER_GONE)

    threading.Thread(target=watch, name="end_with_launcher", daemon=True).start()


def the_cause(ends: Iterable[End]) -> End:
    """Of several: the earliest cause of the last attempt that has one, else the earliest end of the last attempt."""
    return min(ends, key=lambda end: (not end.cause, -end.attempt, end.time))


def _ends(folder: Path) -> list[End]:
    return [end for path in sorted(folder.rglob("error.json")) if (end := _read(path))]


def _read(path: Path) -> End | None:
    """None for what is no record: other programs may write there too."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > FILE:
                return None
            found = json.loads(file.read(FILE))
        message, extra = found["message"], found["message"]["extraInfo"]
        return End(
            line=_one_line(str(message["message"])),
            code=min(max(int(message["errorCode"]), 1), 255),
            details=_visible(str(extra.get("py_callstack", ""))[-DETAILS:]),
            cause=found["cause"] is True,
            said=found["said"] is True,
            rank=int(found["rank"]),
            size=int(found["size"]),
            host=_one_line(str(found["host"])),
            time=float(found["time"]),
            attempt=_attempt(path.parent.parent.name),
        )
    return None


def _attempt(name: str) -> int:
    number = name.removeprefix("attempt_")
    return int(number) if number.isdecimal() and len(number) < 10 else 0


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _one_line(text: str) -> str:
    return _visible(" ".join(text[:LINE].split()))


def _visible(text: str) -> str:
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def main(folder: str, status: int) -> int:
    """Print the one line for all processes. Returns the exit code of the job."""
    ends = _ends(Path(folder))
    if not ends:
        return status
    end = the_cause(ends)
    print(f"error: process {end.rank} of {end.size} on {end.host}: {end.line}", file=sys.stderr)
    return end.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
