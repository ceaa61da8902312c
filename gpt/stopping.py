"""A signal ends a run in all its processes, at the same place of the work."""

import os
import signal
import time

import torch

from gpt.parallel import World, add_up

ASK, MOST = 2.0, 16  # seconds, and calls, after which processes ask each other whether to stop


class Stopped(Exception):
    """A signal ended the run in all processes. The message is one line: where, and how to go on."""


class StopSignal:
    """SIGTERM and SIGINT ask for a stop at the next `check`; a second SIGINT ends the process at once.

    A second SIGTERM does not: torchrun passes on its own to workers that a group signal has reached already, and kills
    after 30 seconds what is still there.
    """

    def __init__(self, world: World):
        self.world, self.came = world, False
        self.every = self.left = 1  # calls of `check` from one question to the next; from now to the next
        self.asked = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        self.came = True
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    def check(self) -> None:
        """Raises Stopped once a process was asked to stop, in all of them at the same call: all must call it equally often.

        A process alone knows at once. Several ask each other about every ASK seconds by the main one's clock, where a
        call comes that often, and at least every MOST calls: not at each, since a GPU has to be waited for.
        """
        if self.came if self.world.size == 1 else self._asked_any():
            if not self.came and "GPT_DPO_LAUNCHER" in os.environ:  # the signal came to another machine: tell this one,
                os.kill(os.getppid(), signal.SIGUSR1)  # whose torchrun would wait five minutes for the other's
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
