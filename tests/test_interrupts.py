"""gpt/launch/interrupts.py: real processes and real signals. What a second one ends, one alone lets come to its end."""

import os
import signal
import subprocess
import sys
import time

from tests.processes import ENVIRONMENT, ROOT

PROGRAM = """
import ctypes, os, signal, sys, time
from gpt.launch.interrupts import Interrupted, Interrupts
how, limit = sys.argv[1], float(sys.argv[2])
Interrupts(limit, follow=how == "follow", leave=lambda code: (os.write(1, b"at once\\n"), os._exit(code)))
try:
    print("ready", flush=True)
    if how == "deaf":  # inside a library, which no signal brings back
        mutex, libc = (ctypes.c_byte * 64)(), ctypes.CDLL(None)
        libc.pthread_mutex_lock(mutex), libc.pthread_mutex_lock(mutex)
    time.sleep(60)
except Interrupted:
    print("interrupted", flush=True)
    time.sleep(float(sys.argv[3]))
    print("saved", flush=True)
"""


def start(how: str, limit: float = 30, saving: float = 0.5, **options) -> subprocess.Popen:
    words = [sys.executable, "-c", PROGRAM, how, str(limit), str(saving)]
    job = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, **options)
    assert job.stdout.readline() == "ready\n"
    return job


def end(job: subprocess.Popen) -> tuple[int, list[str]]:
    said = job.communicate(timeout=20)[0].split("\n")[:-1]
    return job.returncode, said


def test_a_wave_of_signals_is_one():
    job = start("hears")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
        job.send_signal(number)
        time.sleep(0.05)
    assert end(job) == (0, ["interrupted", "saved"])


def test_a_second_signal_ends_at_once():
    job = start("hears", saving=60)
    job.send_signal(signal.SIGINT)
    time.sleep(2.2)
    job.send_signal(signal.SIGINT)
    sent = time.monotonic()
    assert end(job) == (143, ["interrupted", "at once"])
    assert time.monotonic() - sent < 1


def test_what_takes_longer_than_the_limit_ends_too():
    job = start("hears", limit=1, saving=60)
    job.send_signal(signal.SIGTERM)
    assert end(job) == (143, ["interrupted", "at once"])


def test_the_limit_holds_where_the_main_thread_hears_nothing():
    job = start("deaf", limit=1)
    time.sleep(1)  # until it is inside
    job.send_signal(signal.SIGTERM)
    assert end(job) == (143, ["at once"])


def test_a_worker_that_stops_is_no_second_signal():
    job = start("hears", saving=3)
    job.send_signal(signal.SIGTERM)
    time.sleep(2.2)
    job.send_signal(signal.SIGUSR1)
    assert end(job) == (0, ["interrupted", "saved"])


def test_what_nohup_ignores_stays_ignored():
    job = start("hears", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    job.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert end(job) == (0, ["interrupted", "saved"])


def test_the_end_of_the_process_that_started_it_counts_where_it_follows():
    shell = subprocess.Popen(
        ["bash", "-c", '"$@"; exit $?', "-", sys.executable, "-c", PROGRAM, "follow", "30", "0"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdout.readline() == "ready\n"
    os.kill(shell.pid, signal.SIGKILL)
    assert shell.communicate(timeout=5)[0] == "interrupted\nsaved\n"
