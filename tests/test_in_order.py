"""data/in_order.py: the order of the items, whoever is done first; one exception ends all."""

import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.in_order import AHEAD, in_order
from tests.processes import ENVIRONMENT, ROOT


@given(st.lists(st.floats(0, 0.002), max_size=20), st.integers(1, 6))
def test_results_come_in_the_order_of_the_items(pauses, at_once):
    def work(item: tuple[int, float]) -> int:
        time.sleep(item[1])
        return item[0]

    assert list(in_order(work, enumerate(pauses), at_once)) == list(range(len(pauses)))


def test_as_many_work_at_once_as_may_and_no_more():
    together, most, lock, meet = 0, 0, threading.Lock(), threading.Barrier(4)

    def work(item: int) -> int:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        if item < 4:
            meet.wait(10)  # passes only where four are there
        with lock:
            together -= 1
        return item

    assert list(in_order(work, range(50), 4)) == list(range(50)) and most == 4


def test_the_source_is_read_only_so_far_ahead_of_the_item_that_is_waited_for():
    taken, go = [], threading.Event()

    def source():
        for n in range(1000):
            taken.append(n)
            yield n

    results = in_order(lambda n: go.wait(10) if n == 0 else True, source(), 2)
    threading.Timer(0.3, go.set).start()
    assert next(results) is True
    assert len(taken) == 2 * AHEAD
    assert len(list(results)) == 999


def test_an_exception_of_a_later_item_is_raised_while_an_earlier_one_still_waits():
    release, done = threading.Event(), []

    def work(n: int) -> None:
        if n == 0:
            release.wait(10)
        if n == 3:
            raise ValueError("the third")
        done.append(n)

    begun = time.monotonic()
    with pytest.raises(ValueError, match="the third"):
        list(in_order(work, range(10_000), 2))
    assert time.monotonic() - begun < 5
    release.set()
    time.sleep(0.2)
    assert len(done) < 200  # what had not begun is not begun


def test_a_thread_that_waits_does_not_keep_the_process():
    script = (
        "import time\nfrom data.in_order import in_order\n"
        "def work(n):\n    if n: raise KeyboardInterrupt\n    time.sleep(60)\n"
        "list(in_order(work, range(2), 2))"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=ENVIRONMENT, capture_output=True)
    assert b"KeyboardInterrupt" in done.stderr and time.monotonic() - begun < 20


def test_what_others_are_at_when_one_fails_is_finished():
    begun, done = threading.Event(), []

    def work(n: int) -> None:
        if n == 1:
            begun.wait(10)
            raise ValueError("the second")
        begun.set()
        time.sleep(0.3)
        done.append(n)

    with pytest.raises(ValueError, match="the second"):
        list(in_order(work, range(2), 2))
    assert done == [0]
