"""A file without its repeats.

Rows of which training makes no pair are left out as well (data/carry.py). A row is known by 64 bits of SHA-256 of what is
compared; with its mirror image, where chosen and rejected have changed places, its prompt and its number that is 33 bytes a
row. Two different rows among n have the same 64 bits with a chance of n² / 2^65: one in 37 million for a million rows.
"""

from array import array
from dataclasses import dataclass

import numpy as np

from data.carry import check_files, chosen_rows, left_out, pairs, report, where_to, written
from data.normal import NEARLY, normalized, normalized_prompt
from data.pairs import Pair
from data.sides import firsts, text_hash
from data.tally import Tally, number_of
from gpt.command import UserError, argument, flag


@dataclass(frozen=True)
class Dedupe:
    """Leave out the rows that repeat one before them; the first of each stays, with all its fields.

    python data/build.py dedupe pairs.jsonl --near --out unique.jsonl
    """

    file: str = argument("JSON or JSONL file of pairs")
    out: str = flag(help="JSONL file to write; - for none, to see the report only")
    near: bool = flag(False, f"equal is also what differs in {NEARLY} alone (data/normal.py)")
    by: str = flag(
        "pair", "what must be equal: prompt, chosen and rejected, or the prompt alone", choices=("pair", "prompt")
    )
    contradictions: str = flag(
        "keep",
        "rows that prefer what another row of their prompt rejects: keep both, or drop both",
        choices=("keep", "drop"),
    )


def dedupe(flags: Dedupe) -> None:
    check_files(flags.out, flags.file)
    numbers, prompts, whole_pairs, mirrored = (array("Q") for _ in range(4))
    are_pairs = array("B")  # of all rows
    dropped: dict[str, Tally] = {}  # why -> rows
    for row, pair in pairs(flags.file, "reading", dropped):
        are_pairs.append(pair is not None)
        if pair:
            numbers.append(row.number)
            for column, key in zip((prompts, whole_pairs, mirrored), keys(pair, flags.near)):
                column.append(key)
    first = firsts(np.asarray(whole_pairs))
    place = np.arange(len(first))
    against = contradictory(np.asarray(whole_pairs), np.asarray(mirrored), first == place)
    out = against[first] & (flags.contradictions == "drop")
    if flags.by == "prompt":  # the first that does not contradict another, where those go
        left = np.flatnonzero(~out)
        first[left] = left[firsts(np.asarray(prompts)[left])]
    kept = (first == place) & ~out
    if not kept.any():
        raise UserError(f"{flags.file}: no row is left, each contradicts another; see --contradictions keep")
    wanted = np.array(are_pairs, bool)
    wanted[wanted] = kept
    with written(flags.out) as write:
        for row in chosen_rows(flags.file, wanted, "writing"):
            write(row.value, f"{flags.file}, row {row.number}")

    repeats, contradictions = Tally(), Tally()
    for i in np.flatnonzero(first != place).tolist():
        repeats.add(f"{numbers[i]} (as {numbers[int(first[i])]})")
    for i in np.flatnonzero(against).tolist():
        contradictions.add(numbers[i])
    what = f"with {'nearly ' * flags.near}the {flags.by} of one before"
    stay = "kept" if flags.by == "pair" else "the first row of a prompt is kept"
    done = f"{stay}; --contradictions drop leaves them out" if flags.contradictions == "keep" else "left out"
    lines = [
        ("read", f"{number_of(len(wanted))} from {flags.file}"),
        *left_out(dropped),
        ("repeats", f"{number_of(repeats.count)} {what}" + (f": {repeats}" if repeats.count else "")),
    ]
    if contradictions.count:
        text = f"{number_of(contradictions.count)} that prefer what another one of their prompt rejects"
        lines.append(("contradictions", f"{text}: {contradictions}; {done}"))
    report([*lines, ("written", f"{number_of(int(kept.sum()))} {where_to(flags.out)}")])


def keys(pair: Pair, near: bool) -> tuple[int, int, int]:
    """64 bits each: of the prompt, of the pair, and of the pair with its answers in each other's place."""
    prompt, chosen, rejected = pair[:3]
    if near:
        prompt, chosen = normalized_prompt(prompt), normalized(chosen)
        rejected = rejected if rejected is None else normalized(rejected)
    compared = (prompt, (prompt, chosen, rejected), (prompt, rejected, chosen))
    of_prompt, of_pair, mirrored = (text_hash(repr(key)) for key in compared)
    return of_prompt, of_pair, mirrored


def contradictory(whole_pairs: np.ndarray, mirrored: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Which of the rows that are kept have their mirror image among them, (n,). A row of two nearly equal answers is its own
    mirror image, and contradicts nobody."""
    return kept & (mirrored != whole_pairs) & np.isin(mirrored, whole_pairs[kept])
