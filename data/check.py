"""The report on a file of pairs that one wants before spending GPU hours: `python data/build.py check FILE`.

    duplicates      3 whole pairs, 1 more but for case, white space and punctuation
                  ! rows 40, 51, 77, 90: what was there before counts twice; keep one of each

One line a question. What asks for a decision is marked with "!", with the rows; a good file gives a calm report. The file
is read once, in bounded memory (data/census.py).
"""

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from tqdm import tqdm

from data.carry import check_apart
from data.census import Census
from data.findings import Line, findings
from data.pairs import Pair, nothing_left, stream_pairs
from data.rules import TINY
from gpt.command import UserError, argument, check_range, flag, pip_install
from gpt.config_json import read_config
from gpt.files import whole
from gpt.tokenizer import Tokenizer

KINDS = (".png", ".svg", ".pdf")
WIDTH = 120  # of a line of text


@dataclass(frozen=True)
class Check:
    """Look into a file of pairs: what is dropped, repeated, contradicted, too long, too easy or odd.

    python data/build.py check pairs.jsonl --model gpt2 --picture lengths.svg
    """

    file: str = argument("file of pairs")
    model: str = flag("", "model folder whose vocabulary counts the tokens; empty: the embedded one; gpt2: GPT-2's")
    held_out: float = flag(0.1, "fraction of the prompts to hold out")
    max_length: int = flag(None, "tokens of prompt and longer answer that fit; unset: the model's context, else 1024")
    sample: int = flag(
        0, "count the tokens of so many pairs only, and look whether those can be told apart: quicker; 0: of all"
    )
    json: str = flag("", "also write all figures to this JSON file")
    picture: str = flag("", "also draw the lengths; the file's ending says what kind: png, svg or pdf")


def check(flags: Check) -> None:
    check_range(flags, ("held_out",), 0, most=1)
    check_range(flags, ("max_length",), 1)
    check_range(flags, ("sample",), 0)
    for name in ("json", "picture"):
        if path := getattr(flags, name):
            check_apart(path, flags.file, flag=f"--{name}")
    if flags.json and flags.picture:
        check_apart(flags.picture, flags.json, flag="--picture", used="--json writes")
    draw = _drawing(flags.picture)
    tokenizer = Tokenizer.gpt2() if flags.model == "gpt2" else Tokenizer.load(flags.model or TINY)
    folders = (Path(flags.model or TINY), Path(flags.model or TINY) / "model")
    config = next((folder / "config.json" for folder in folders if (folder / "config.json").is_file()), None)
    max_length = flags.max_length or (read_config(config).n_positions if config else 1024)
    dropped: dict[str, list[int]] = {}
    with ExitStack() as stack:  # a file that cannot be written is known before the work
        figures = stack.enter_context(whole(flags.json)) if flags.json else None
        picture = stack.enter_context(whole(flags.picture, binary=True)) if draw else None
        census = counted(stream_pairs(flags.file, dropped), tokenizer, flags.sample)
        if not len(census):
            raise nothing_left(flags.file, dropped)
        lines = findings(census, dropped, flags.held_out, max_length)
        if figures:
            json.dump({line.name: line.figures | {"marks": line.marks} for line in lines}, figures, indent=2)
        if draw and picture:
            picture.write(draw(census.measured()[1], max_length, Path(flags.picture).suffix[1:].lower()))
    print(as_text(lines))


def _drawing(path: str) -> Callable[..., bytes] | None:
    """The function that draws, where a picture is asked for. Raises UserError where it cannot be had."""
    if not path:
        return None
    if Path(path).suffix.lower() not in KINDS:
        raise UserError(f"--picture {path} must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    try:
        from data.length_sheet import drawn
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise UserError(f"--picture: matplotlib, which draws, is not installed; {pip_install('matplotlib')}") from None
    return drawn


def counted(pairs: Iterable[Pair], tokenizer: Tokenizer | None, sample: int = 0) -> Census:
    """The census of these pairs, which are read once, with progress."""
    census = Census(tokenizer, sample)
    for pair in tqdm(pairs, desc="check", unit=" pairs", leave=False, delay=1):
        census.add(pair)
    return census


def report(
    pairs: Iterable[Pair], dropped: dict[str, list[int]], tokenizer: Tokenizer | None, held_out: float, max_length: int
) -> str:
    """The report on pairs, as text. dropped: why -> the rows that were left out when they were read. Lengths are in
    tokens, each answer's end-of-text among them; without a tokenizer they are left out."""
    return as_text(findings(counted(pairs, tokenizer), dropped, held_out, max_length))


def as_text(lines: list[Line]) -> str:
    """The lines as they are printed: a name in 16 columns, what is said of it, and below that what is marked."""
    marked = sum(bool(line.marks) for line in lines)
    last = f"{marked} of {len(lines)} lines are marked with !" if marked else "nothing stands out"
    return "\n".join(
        fill(
            text,
            WIDTH,
            initial_indent=f"{head:16}",
            subsequent_indent=" " * 16,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in [*lines, Line("in all", last, {})]
        for head, text in [(line.name, line.text), *((f"{'!':>15} ", mark) for mark in line.marks)]
    )
