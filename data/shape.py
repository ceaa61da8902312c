"""Files of pairs into and out of shape: the commands of data/build.py that read rows and write rows.

    split            train.jsonl and held-out.jsonl, no prompt in both        data/split.py
    dedupe           without repeats                                          data/dedupe.py
    decontaminate    without what other files are to test                     data/decontaminate.py
    sample, mix      so many rows of one file, or of several                  data/mix.py

Each reads its files as streams, whatever their size, writes the rows as they are (data/carry.py), and says what it did.
"""

from collections.abc import Callable

from data.decontaminate import Decontaminate, decontaminate
from data.dedupe import Dedupe, dedupe
from data.mix import Mix, Sample, mix, sample
from data.split import Split, split

SHAPE: dict[str, tuple[Callable, type]] = {
    "split": (split, Split),
    "dedupe": (dedupe, Dedupe),
    "decontaminate": (decontaminate, Decontaminate),
    "mix": (mix, Mix),
    "sample": (sample, Sample),
}
