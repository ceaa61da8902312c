"""A signal ends a run in all its processes, at the same place of the work.

    first signal                        the step is given up at its next micro-batch, the last finished one is saved
    another one, a second or more on    this process ends at once, whatever it is waiting for
    no stop after 20 seconds            so does one of several: another one does not answer, and torchrun kills after 25
                  3, if another failed  and sends the signal for that: inside CUDA nothing else tells that it is gone

One request may come twice within that second: Slurm signals every process of a job, and torchrun passes its own on.
"""

import errno
import os
import select
import signal
import sys
import threading
import time
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TextIO

import torch

from gpt.ending import STOPPED, another_failed, close
from gpt.parallel import World, add_up

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # asked by a scheduler, by Ctrl+C, by a terminal that closed
ASK, MOST = 2.0, 16  # seconds, and calls, after which processes ask each other whether to stop
SAME, PATIENCE, FAILED = 1.0, 20.0, 3.0  # seconds: signals are one request; it is met; so where another failed


class Stopped(Exception):
    """A signal ended the run in all processes. The message is one line: where, and how to go on."""


class StopSignal:
    """From now on a signal asks for a stop at the next `check`, and another one ends this process at once."""

    def __init__(self, world: World):
        self.world, self.came, self.stopped = world, False, False
        self.every = self.left = 1  # calls of `check` from one question to the next; from now to the next
        self.asked = time.monotonic()
        sys.stdout, sys.stderr = _lasting(sys.stdout, sys.__stdout__), _lasting(sys.stderr, sys.__stderr__)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._note)
        # Python calls a handler between two steps of the main thread, which may wait for another process for minutes;
        # so a thread hears the signals too, through a pipe that is never closed
        hears, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(hears,), name="signals", daemon=True).start()

    def _note(self, number: int, frame) -> None:
        self.came = True

    def check(self) -> None:
        """Raises Stopped once a process was asked to stop, in all of them at the same call: all must call it equally often.

        A process alone knows at once. Several ask each other about every ASK seconds by the main one's clock, where a
        call comes that often, and at least every MOST calls: not at each, since a GPU has to be waited for.
        """
        if self.came if self.world.size == 1 else self._asked_any():
            if not self.came and "GPT_DPO_LAUNCHER" in os.environ:  # the signal came to another machine: tell this one,
                os.kill(os.getppid(), signal.SIGUSR1)  # whose torchrun would wait five minutes for the other's
            self.stopped = True
            raise Stopped("stopped by a signal")

    def _asked_any(self) -> bool:
        self.left -= 1
        if self.left:
            return False
        now = time.monotonic()
        mine = [float(self.came), now - self.asked if self.world.is_main else 0.0]
        came, seconds = add_up(torch.tensor(mine, device=self.world.device), self.world).tolist()
        self.every = self.left = max(1, min(MOST, int(self.every * ASK / max(seconds, 1e-3))))
        self.asked = now
        return came > 0

    def _listen(self, hears: int) -> None:
        first = None
        while True:
            heard = select.select([hears], [], [], first and 0.5)[0] and os.read(hears, 1)
            now = time.monotonic()
            if heard and signal.getsignal(heard[0]) == self._note:
                first = first or now
                if now - first >= SAME:
                    _end_at_once("ended at once by a second signal; continue with --resume", cause=True)
            waited = now - first if first and self.world.size > 1 and not self.stopped else 0.0
            if waited >= PATIENCE or waited >= FAILED and another_failed():
                _end_at_once("stopped by a signal while another process did not answer", cause=False)


class _Lasting(FileIO):
    """Standard output or error, which outlives its reader: what is said to a closed terminal, or to a `tee` that Ctrl+C
    has ended too, is lost, and no error before the last step is saved."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            return len(data)


def _lasting(stream: TextIO, original: TextIO | None) -> TextIO:
    if stream is not original or not isinstance(stream, TextIOWrapper):  # somebody's own, such as a test's
        return stream
    stream.flush()
    raw = _Lasting(stream.fileno(), "w", closefd=False)
    inner = raw if stream.write_through else BufferedWriter(raw)
    lines, through = stream.line_buffering, stream.write_through
    return TextIOWrapper(inner, stream.encoding, stream.errors, line_buffering=lines, write_through=through)


def _end_at_once(why: str, cause: bool) -> None:
    """cause: False where it was perhaps torchrun that signalled, since another process had died: a restart may help."""
    try:
        close(why, STOPPED, cause=cause)
    finally:
        os._exit(STOPPED)
