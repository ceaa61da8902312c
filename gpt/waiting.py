"""What is being waited for, said after a second: for work that is one call of a library and has no steps to count.

    with waiting("writing step-000120"):        writing step-000120 00:07
        save_file(tensors, path)                and gone again when it is done

Where there are steps, a bar of tqdm says more.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from gpt.launched import process_rank


@contextmanager
def waiting(what: str, delay: float = 1.0) -> Iterator[None]:
    """Show `what` and the seconds that go by, from `delay` seconds on, in the first process alone. A decorator too."""
    if process_rank():
        yield
        return
    over, began = threading.Event(), time.time()

    def show() -> None:
        if over.wait(delay):
            return
        with tqdm(desc=what, bar_format="{desc} {elapsed}", leave=False) as bar:
            bar.start_t = began
            bar.refresh()
            while not over.wait(1.0):
                bar.refresh()

    thread = threading.Thread(target=show, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
