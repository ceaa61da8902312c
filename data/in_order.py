"""Work that mostly waits, done by several threads at once, its results in the order of the items."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 64  # items for each thread that are taken from the source while an earlier one is still waited for
LAST = 3.0  # seconds that the others get to finish what they are at, after one has failed


def in_order(work: Callable[[T], R], items: Iterable[T], at_once: int) -> Iterator[R]:
    """work(item) for each item, in the items' order, by `at_once` threads; memory for AHEAD items a thread.

    An exception of one ends all, within LAST seconds. The threads do not outlive the process: where it ends, by Ctrl+C for
    instance, what is being waited for is given up.
    """
    todo: SimpleQueue[tuple[int, T] | None] = SimpleQueue()
    done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()
    error: BaseException | None = None

    def labour() -> None:
        while (job := todo.get()) is not None:
            try:
                done.put((job[0], work(job[1]), None))
            except BaseException as error:
                done.put((job[0], None, error))
                return  # it ends all

    threads = [threading.Thread(target=labour, daemon=True) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    source, finished, taken, given = iter(enumerate(items)), {}, 0, 0
    try:
        while True:
            while taken - given < AHEAD * at_once and (job := next(source, None)):
                todo.put(job)
                taken += 1
            if given == taken:
                return
            number, result, error = done.get()
            if error:
                raise error
            finished[number] = result
            while given in finished:
                yield finished.pop(given)
                given += 1
    finally:
        while True:
            try:
                todo.get_nowait()
            except Empty:
                break
        for _ in range(at_once):
            todo.put(None)
        end = time.monotonic() + LAST
        for thread in threads if error else ():  # a reply that is on its way was paid for
            thread.join(max(0.0, end - time.monotonic()))
