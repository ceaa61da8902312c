"""gpt/launch/agent.py, the part that is not torchrun: whether its agent still looks after the processes that it started."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT, ROOT

WATCHED = """
import os, subprocess, sys, threading, time
from gpt.launch import agent

agent.UNASKED, how = 1, sys.argv[1]
threading.Thread(target=agent._watch, args=(lambda: (os.write(1, b"stuck"), os._exit(0)),), daemon=True).start()
jobs = [subprocess.Popen(words) for words in (["true"], ["sleep", "9"])[: 1 + (how == "one lives")]]
for _ in range(50):
    time.sleep(0.1)
    if how == "asked":
        jobs[0].poll()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
@pytest.mark.parametrize("how, said", [("all ended", "stuck"), ("one lives", ""), ("asked", "")])
def test_ended_workers_that_nobody_asks_after_are_noticed(how, said):
    environment, began = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, how], env=environment, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.stderr) == (said, "")
    assert not said or time.monotonic() - began < 5
