"""Files that somebody else may have written: how much of them is read, and what an error repeats of them.

    read_json(file, 2**20)        {"n_layer": 12, ...}, or one line: too large, no UTF-8, no JSON, nested too deep
    shown("a\\nb")                 'a\\nb', of long ones the beginning; printing("a\\nb") does without the quotes

A model from the Hub is a few JSON files beside its weights. A gigabyte of them would fill the memory, 100,000 brackets end
in a traceback, and a name with an escape sequence in it writes where it likes on a terminal.
"""

import json
from pathlib import Path
from typing import Any

from gpt.command import UserError

DEPTH = 64  # levels of lists and objects in each other; a tokenizer.json has seven
LETTERS = 100  # of a value that stands in a message


def read_text(file: Path, most: int) -> str:
    """A file as text. Raises UserError, naming it, for more than `most` bytes, for what is no UTF-8, and for what cannot
    be read."""
    try:
        if file.exists() and not file.is_file():  # one that never ends, or that waits for somebody to write
            raise UserError(f"{file} is no regular file")
        with open(file, "rb") as opened:
            content = opened.read(most + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if len(content) > most:
        raise UserError(f"{file} is larger than {most / 2**20:g} MiB, the most that is read of such a file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} cannot be read as UTF-8 text: byte {error.start} is none") from None


def read_json(file: Path, most: int) -> Any:
    """What a JSON file of at most `most` bytes and DEPTH levels holds. Raises UserError, naming it, for any other."""
    text = read_text(file, most)
    try:
        found = json.loads(text)
    except RecursionError:
        raise UserError(f"{file} is no JSON that can be read: nested too deep") from None
    except ValueError as error:  # also a number of more digits than Python converts
        raise UserError(f"{file} is no JSON: {str(error).partition(';')[0]}") from None
    level, depth = [found], 0
    while level := [value for value in level if isinstance(value, (dict, list))]:
        depth += 1
        if depth > DEPTH:
            raise UserError(f"{file} is no JSON that can be read: nested too deep (more than {DEPTH} levels)")
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    return found


def shown(value: Any) -> str:
    """A value as an error message repeats it: as Python writes it, and no longer than LETTERS."""
    if isinstance(value, (str, list)):
        value, is_cut = value[:LETTERS], len(value) > LETTERS  # before all of it is written out
    else:
        is_cut = False
    text = repr(value)
    return text[:LETTERS] + "..." if is_cut or len(text) > LETTERS else text


def printing(text: str, most: int = LETTERS) -> str:
    """A name or a sentence as an error message repeats it: what does not print as an escape, and no longer than `most`."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return text if len(text) <= most else text[:most] + "..."
