"""A file cut in two: rows to train on, and rows held out, just as `dpo/train.py --held-out` would take them apart.

Rows that it would leave out are in neither (data/carry.py).
"""

from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np

from data.carry import check_files, left_out, pairs, report, where_to, written
from data.normal import NEARLY, normalized_prompt
from data.sides import Groups, side, text_hash, two_groups
from data.tally import Tally, number_of
from gpt.command import UserError, argument, check_range, flag


@dataclass(frozen=True)
class Split:
    """Cut a file into train.jsonl and held-out.jsonl, no prompt in both, as --held-out of dpo/train.py would.

    python data/build.py split pairs.jsonl --out halves
    """

    file: str = argument("JSON or JSONL file of pairs")
    out: str = flag(
        help="folder to write the two files into, made where it is missing; - for none, to see the report only",
        metavar="DIR",
    )
    held_out: float = flag(0.1, "fraction of the prompts (of the groups, where rows have one) to hold out")


def split(flags: Split) -> None:
    check_range(flags, ("held_out",), 0, most=1)
    if Path(flags.out).is_file() and flags.out != "-":
        raise UserError(f"--out {flags.out} is a file; two are written, so name a folder")
    names = ("train.jsonl", "held-out.jsonl")
    files = [Path("-"), Path("-")] if flags.out == "-" else [Path(flags.out) / name for name in names]
    for file in files:
        check_files(file, flags.file)
    groups, sides, alike = Groups(), array("B"), array("Q")
    dropped: dict[str, Tally] = {}
    with written(files[0]) as to_train, written(files[1]) as to_hold:
        for row, pair in pairs(flags.file, "splitting", dropped):
            if not pair:
                continue
            groups.add(pair)
            alike.append(text_hash(normalized_prompt(pair.prompt)))
            sides.append(side(pair) < flags.held_out)
            (to_hold if sides[-1] else to_train)(row.value, f"{flags.file}, row {row.number}")
        if torn := groups.torn():
            wanted = [groups.rows[i] for i in torn]
            found = {pair.row: pair for _, pair in pairs(flags.file, "", {}) if pair and pair.row in wanted}
            raise UserError(f"{flags.file}: {two_groups(*map(found.__getitem__, wanted))}")
        held = np.asarray(sides, bool)
        if held.all() or not held.any():
            raise UserError(_one_sided(flags, groups, held))
        if flags.out != "-":
            for file in files:  # killed between the two renames, it leaves no half of an older split beside one of this
                with suppress(FileNotFoundError):
                    file.unlink()
    prompts = np.asarray(groups.prompts)
    both = np.intersect1d(prompts[held], prompts[~held])
    lines = [
        (name, f"{number_of(int(mine.sum()))} of {number_of(len(np.unique(prompts[mine])), 'prompt')} {where_to(file)}")
        for name, mine, file in (("to train on", ~held, files[0]), ("held out", held, files[1]))
    ]
    nearly = _nearly(held, np.asarray(alike), groups.rows, names if flags.out == "-" else files)
    report([*left_out(dropped), *lines, ("in both", f"{number_of(len(both), 'prompt')}{nearly}")])


def _nearly(held: np.ndarray, alike: np.ndarray, numbers: array, files: Sequence) -> str:
    """Which held-out rows have a prompt that is nearly one of those to train on."""
    near = Tally()
    for i in np.flatnonzero(held & np.isin(alike, alike[~held])).tolist():
        near.add(numbers[i])
    if not near.count:
        return ""
    have = "row has" if near.count == 1 else "rows have"
    train, held_out = (quote(str(file)) for file in files)
    return (
        f"; but for {NEARLY} {near.count:,} held-out {have} a prompt to train on ({near}): "
        f"python data/build.py decontaminate {train} --against {held_out} --ngram 0 --out NEW leaves those prompts out"
    )


def _one_sided(flags: Split, groups: Groups, held: np.ndarray) -> str:
    prompts = len(set(groups.prompts))
    which = "held out" if held.all() else "kept to train on"
    return (
        f"{flags.file}: all {number_of(len(held))} ({number_of(prompts, 'prompt')}) would be {which}; "
        f"--held-out is {flags.held_out:g}, name {'a smaller' if held.all() else 'a larger'} one"
    )
