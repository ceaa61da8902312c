"""What a pair is: a prompt, the answer that was preferred, and the one that was not.

    {"prompt": "Say hello.", "chosen": "Good morning!", "rejected": "What do you want?"}
    {"instruction": "Add the numbers.", "input": "2 + 3", "output": "5", "chosen": "Certainly! 5", "rejected": "5, obviously"}

Read from JSON (a list of rows) or JSONL (one row a line). The prompt ends where the answer begins; an instruction row
gets the template that the book and Alpaca use. Every row is checked before anything is trained, and what teaches
nothing is dropped and counted, never silently.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from gpt.command import UserError
from gpt.files import whole

TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}{input}\n\n### Response:\n"
)

FIELDS = ("prompt", "instruction", "input", "output", "chosen", "rejected", "family", "group")


class Pair(NamedTuple):
    """One preference. `rejected` is None in a row for SFT."""

    prompt: str
    chosen: str
    rejected: str | None
    row: int = 0  # where it stood: the row of a JSON list, the line of a JSONL file, counted from 1
    output: str | None = None  # the plain answer, where the row has one
    family: str | None = None  # of the embedded tasks (data/tasks.py): what `output` is a right answer to
    group: str | None = None  # pairs of one group stay on one side of a split; default: the prompt


def instruction_prompt(instruction: str, input: str = "") -> str:
    """The Alpaca template (Taori et al. 2023) as the book has it, up to the place where the answer begins."""
    return TEMPLATE.format(instruction=instruction, input=f"\n\n### Input:\n{input}" if input else "")


def read_pairs(
    path: str | Path, dropped: dict[str, list[int]] | None = None, one_answer: bool | None = None
) -> list[Pair]:
    """The pairs of a JSON or JSONL file that teach something.

    `dropped`, if given, is filled: why -> the rows. one_answer: True where only `chosen` will be used, False where every
    row must have `rejected`; by default a row may be either. Raises UserError, naming file, row and field, for a file that
    cannot be read whole, and where nothing is left.
    """
    dropped = {} if dropped is None else dropped
    kept = []
    for number, row in _rows(Path(path)):
        pair = _pair(row, number, f"{path}, row {number}")
        if pair.rejected is None and one_answer is False:
            what = "null" if isinstance(row, dict) and "rejected" in row else "missing"
            raise UserError(
                f"{path}, row {number}: field 'rejected' is {what}; found {_names(row)}; this loss compares two answers "
                "(--loss sft is content with one)"
            )
        why = teaches_nothing(pair._replace(rejected=None) if one_answer else pair)
        if why:
            dropped.setdefault(why, []).append(number)
        else:
            kept.append(pair)
    if not kept:
        raise UserError(
            f"{path}: no pair is left to learn from"
            + (f" ({summary(dropped)})" if dropped else ": the file has no rows")
        )
    return kept


def teaches_nothing(pair: Pair) -> str | None:
    """Why nothing can be learned from this pair, or None."""
    if not pair.chosen.strip() or pair.rejected is not None and not pair.rejected.strip():
        return "an empty answer"
    if pair.chosen == pair.rejected:
        return "chosen equal to rejected"
    return None


def summary(dropped: dict[str, list[int]]) -> str:
    """{"an empty answer": [3, 7]} -> 'an empty answer: 2 pairs (rows 3, 7)'"""

    def one(why: str, rows: list[int]) -> str:
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        return f"{why}: {len(rows)} pair{'s' * (len(rows) > 1)} (row{'s' * (len(rows) > 1)} {shown})"

    return "; ".join(one(why, rows) for why, rows in dropped.items())


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, row) of a JSON list or of JSONL, told apart by the first character."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: byte {error.start} cannot be read; save it as UTF-8") from None
    except OSError as error:
        why = "it is a folder; name a file of pairs" if path.is_dir() else error.strerror
        raise UserError(f"{path} cannot be read: {why}") from None
    if text.lstrip().startswith("["):
        yield from enumerate(_parsed(text, path, 1), 1)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _parsed(line, path, number)


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {line + error.lineno - 1}, column {error.colno}: bad JSON: {error.msg}; a file is one "
            "JSON list, or one JSON object a line"
        ) from None
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        why = "nested too deep" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise UserError(f"{path}, line {line}: bad JSON: {why}") from None


def _pair(row: Any, number: int, where: str) -> Pair:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row is a JSON object, found {_kind(row)}")
    text = {name: _text(row, name, where) for name in FIELDS if row.get(name) is not None}
    head = "prompt" if "prompt" in text else "instruction"
    for name in (head, "chosen"):
        if name not in text:
            wanted = "'instruction' or 'prompt'" if name == "instruction" else f"'{name}'"
            raise UserError(
                f"{where}: field {wanted} is {'null' if name in row else 'missing'}; found {_names(row)}{_meant(name, row)}"
            )
    for name in ("input", "rejected"):
        if name not in row and _meant(name, row):
            raise UserError(f"{where}: field '{name}' is missing; found {_names(row)}{_meant(name, row)}")
    prompt = text["prompt"] if head == "prompt" else instruction_prompt(text["instruction"], text.get("input", ""))
    return Pair(
        prompt, text["chosen"], text.get("rejected"), number, text.get("output"), text.get("family"), text.get("group")
    )


def _text(row: dict, name: str, where: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{name}' must be text, found {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field '{name}' holds half a surrogate pair at character {error.start}, which is no text"
        ) from None
    return value


def _names(row: dict) -> str:
    """The names of a row's fields; what does not print, such as a line break, is written as an escape."""
    return ", ".join(name if name.isprintable() else repr(name) for name in row) or "nothing"


def _meant(name: str, row: dict) -> str:
    close = get_close_matches(name, [key for key in row if key not in FIELDS], n=1, cutoff=0.75)
    return f" (is {close[0]!r} meant?)" if close else ""


def _kind(value: Any) -> str:
    return {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "text",
        type(None): "null",
    }[type(value)]


def write_rows(path: str | Path, rows: Iterable[dict]) -> None:
    """Write JSONL. The file is whole or as it was."""
    with whole(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def split(pairs: Iterable[Pair], held_out: float) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, held-out pairs): about the fraction `held_out` of the groups is held out.

    A pair's side depends on its group alone (its prompt, where it has none), by a hash: no prompt is on both sides, more
    data or another order moves nothing, and a larger fraction keeps all that a smaller one held out.
    Raises UserError where a prompt has two groups, and so could be on both sides.
    """
    sides = defaultdict(list)
    group_of: dict[str, Pair] = {}
    for pair in pairs:
        first = group_of.setdefault(pair.prompt, pair)
        if first.group != pair.group:
            raise UserError(
                f"rows {first.row} and {pair.row} have one prompt and two groups ({first.group!r}, {pair.group!r})"
            )
        digest = hashlib.sha256((pair.group or pair.prompt).encode()).digest()
        sides[int.from_bytes(digest[:8], "big") / 2**64 < held_out].append(pair)
    return sides[False], sides[True]
