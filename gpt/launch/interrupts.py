"""Signals that ask a launcher to end: however many come within a moment, they are one.

A Ctrl+C reaches a whole group of processes, and several of them pass it on; Slurm signals every process of a job, and its
srun does so again. Taken singly the second would break off what the first asked for. So:

    0 s       SIGTERM SIGTERM SIGINT    Interrupted is raised in the main thread, once
    5 s       SIGTERM                   all ends at once
    or 29 s   nothing                   likewise, whatever the main thread waits for

A thread counts, since the main one hears of nothing while it waits inside torch.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable

from gpt.ending import STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BY_WORKER = signal.SIGUSR1  # from a worker that stops since another machine was asked to: never a second signal
MOMENT = 2.0  # seconds in which signals are one


class Interrupted(BaseException):
    """The process was asked to end. Like KeyboardInterrupt it is no Exception, which others might catch."""


class Interrupts:
    """From construction on SIGTERM, SIGINT and SIGHUP are heard, unless whoever started this process had one ignored.

    limit: seconds from the first of them to the end of this process. follow: the end of the process that started this
    one counts as a signal too. leave: ends this process at once, called in a thread with the exit code.
    """

    def __init__(self, limit: float, follow: bool, leave: Callable[[int], None]):
        self.limit, self.leave = limit, leave
        self.parent = os.getppid() if follow else None
        self.raised = False
        self.receive, self.send = socket.socketpair()
        self.send.setblocking(False)
        signal.set_wakeup_fd(self.send.fileno(), warn_on_full_buffer=False)  # one byte for each signal, at once
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._raise)
        signal.signal(BY_WORKER, self._raise)
        threading.Thread(target=self._watch, name="interrupts", daemon=True).start()

    def _raise(self, number: int, frame) -> None:
        if not self.raised:
            self.raised = True
            raise Interrupted

    def _watch(self) -> None:
        first = None
        while True:
            patience = None if first is None and self.parent is None else 0.5
            heard = select.select([self.receive], [], [], patience)[0]
            now = time.monotonic()
            if heard and any(number in SIGNALS for number in self.receive.recv(100)):
                first = first or now
                if now - first > MOMENT:
                    self.leave(STOPPED)
            if self.parent is not None and os.getppid() != self.parent:
                self.parent = None
                os.kill(os.getpid(), signal.SIGTERM)
            if first is not None and now - first > self.limit:
                self.leave(STOPPED)
