"""The fields of one row, each checked when it is asked for. What is wrong is one line that names row and field."""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any

from gpt.command import UserError
from gpt.untrusted import printing, shown

TEXTS = ("prompt", "instruction", "input", "output", "chosen", "rejected", "family", "group", "format")
LISTS = ("conversations", "messages", "completions", "responses", "generations", "scores", "ratings", "history")
FIELDS = (*TEXTS, *LISTS, "system", "margin", "score_chosen", "score_rejected")  # all that a row may mean something by
SHOWN = 10  # of the fields of a row, in a message


def text(row: dict, name: str, where: str) -> str | None:
    """The text in this field, None where it is absent or null. Raises UserError for what is no text."""
    value = row.get(name)
    if value is None or type(value) is str and value.isascii():  # most are, and a million rows ask eight times each
        return value
    return as_text(value, f"field '{name}'", where)


def needed(row: dict, name: str, where: str) -> str:
    """The text in this field. Raises UserError also where it is absent or null."""
    value = text(row, name, where)
    if value is None:
        raise missing(row, (name,), where)
    return value


def as_text(value: Any, what: str, where: str) -> str:
    """The value itself, if it is text that can be written as UTF-8. Raises UserError, which calls it `what`."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {what} must be text, found {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {what} holds half a surrogate pair at character {error.start}, which is no text"
        ) from None
    return value


def number_in(row: dict, name: str, where: str) -> float | None:
    """The number in this field, None where it is absent or null. Raises UserError for any other, and for a huge one."""
    value = row.get(name)
    return None if value is None else as_number(value, f"field '{name}'", where)


def as_number(value: Any, what: str, where: str) -> float:
    """The value as a float. Raises UserError, which calls it `what`."""
    if type(value) not in (int, float):
        found = f"the text {shown(value)}" if isinstance(value, str) else kind(value)
        raise UserError(f"{where}: {what} must be a number, found {found}")
    if not abs(value) < 1e6:  # of infinity and NaN, which Python's JSON lets through, and of more float32 makes little
        raise UserError(f"{where}: {what} is {shown(value)}; it must be a number below a million")
    return float(value)


def missing(row: dict, wanted: Sequence[str], where: str) -> UserError:
    """That the row has none of the fields `wanted`, what it has, and which of these may be meant."""
    is_null = any(name in row for name in wanted)
    quoted = " or ".join(f"'{name}'" for name in wanted)
    hint = next(filter(None, (meant(name, row) for name in wanted)), "") or _aside(row, wanted)
    return UserError(f"{where}: field {quoted} is {'null' if is_null else 'missing'}; found {names(row)}{hint}")


def _aside(row: dict, wanted: Sequence[str]) -> str:
    """A hint at what a row has in place of what is missing, "" where nothing is known of it."""
    if "chosen" in wanted and "output" in row:
        return " ('output' is a plain answer; one to learn from stands in 'chosen')"
    some = islice(row.items(), SHOWN)
    inside = next(
        (name for name, value in some if isinstance(value, list) and value and isinstance(value[0], dict)), None
    )
    if row.keys().isdisjoint(FIELDS) and inside is not None:
        return f" (are the rows in {shown(inside)}? that list must be all of the file)"
    return ""


def names(row: dict) -> str:
    """The names of a row's fields; what does not print, such as a line break, is written as an escape."""
    listed = [printing(str(name)) for name in islice(row, SHOWN)]
    return ", ".join([*listed, f"and {len(row) - SHOWN:,} more"] if len(row) > SHOWN else listed) or "nothing"


def meant(name: str, row: dict) -> str:
    """A hint at the field that is nearly called `name`, "" where there is none."""
    others = [key for key in islice(row, SHOWN) if key not in FIELDS]
    close = get_close_matches(name, others, n=1, cutoff=0.75)
    return f" (is {close[0]!r} meant?)" if close else ""


def kind(value: Any) -> str:
    """What JSON calls a value of this type: "a list"."""
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else kinds.get(type(value), f"a value of type {type(value).__name__}")
