"""Work that mostly waits, done by several threads at once, its results in the order of the items."""

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")

AHEAD = 64  # items for each thread that are taken from the source while an earlier one is still waited for


def in_order(work: Callable[[T], R], items: Iterable[T], at_once: int) -> Iterator[R]:
    """work(item) for each item, in the items' order, by `at_once` threads; memory for AHEAD items a thread.

    An exception of one ends all, at once. The threads do not outlive the process: where it ends, by Ctrl+C for instance,
    what is being waited for is given up.
    """
    todo, done = SimpleQueue(), SimpleQueue()

    def labour() -> None:
        while (job := todo.get()) is not None:
            try:
                done.put((job[0], work(job[1]), None))
            except BaseException as error:
                done.put((job[0], None, error))

    for _ in range(at_once):
        threading.Thread(target=labour, daemon=True).start()
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
