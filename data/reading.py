"""The rows of a JSON or JSONL file one after another, each with the bytes where it stands.

    [{"prompt": ...}, {"prompt": ...}]      a JSON list: element by element
    {"prompt": ...}                         JSONL: line by line
    {"prompt": ...}

A block of the file and the row that is being read, which may have ROW bytes, are all that is in memory, however long the
file is.
"""

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, NamedTuple

from data.first_bytes import foreign, no_json, packing, unpacking
from gpt.command import UserError

BLOCK = 2**20  # bytes read at once
ROW = 2**24  # the most bytes of a row; of a million words it has fewer, and of empty objects it fills 50 times that
SPACE = re.compile(r"[ \t\n\r]*")  # what JSON takes for white space
NEAR = 16  # no error that a cut makes in valid JSON stands further from the cut: at most "\uD83D\uDE00 or -Infinity


class Row(NamedTuple):
    """One row, and the bytes of the file that it was parsed from."""

    number: int  # the row of a JSON list, the line of a JSONL file, counted from 1
    value: Any
    start: int  # its first byte in the file
    size: int  # bytes


def stream_rows(path: Path, block: int = BLOCK) -> Iterator[Row]:
    """The rows of a JSON list or of JSONL, told apart by the first character; blank lines of JSONL are counted, not given.

    UTF-8, with a byte order mark or without. Raises UserError, naming file, line and column, for what cannot be read, also
    for what data/sources.py could: a row must be found again at its bytes.
    """
    with opened(path) as file:
        if packed := packing(file):
            raise UserError(f"{path} is {packed}; unpack it first: {unpacking(path)}")
        yield from rows_in(path, file, block)


def rows_in(path: Path, file: BinaryIO, block: int = BLOCK) -> Iterator[Row]:
    """The rows of a file that is open, as `stream_rows` gives them. `path` is its name."""
    head, start, is_list = _head(path, file, block)
    if is_list:
        yield from _elements(_Window(path, file, head, start, block))
    else:
        yield from _lines(path, file, head, start, block)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """The file, to be read. Raises UserError, naming it, where the system refuses."""
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        hint = (
            f"; fetch it first: python data/build.py convert {quote(str(path))} --out pairs.jsonl"
            if is_hub(path)
            else ""
        )
        raise UserError(f"{path} does not exist{hint}") from None
    except OSError as error:
        why = "it is a folder; name a file of pairs" if path.is_dir() else error.strerror
        raise UserError(f"{path} cannot be read: {why}") from None


def is_hub(name: str | Path) -> bool:
    """Whether this names a dataset of the Hugging Face Hub, as data/sources.py has it."""
    return str(name).startswith("hub:")


def _head(path: Path, file: BinaryIO, block: int) -> tuple[bytes, int, bool]:
    """(the bytes up to the first character that is no white space, and maybe more; where they begin; is that a "[")."""
    head, text, decoder = b"", "", codecs.getincrementaldecoder("utf-8-sig")("replace")
    while not text and (new := file.read(block)):
        head += new
        text = decoder.decode(new).lstrip()
        if what := foreign(head):
            raise UserError(f"{path} is {what}")
        if not text and len(head) > ROW:
            raise UserError(f"{path} begins with {ROW >> 20} MiB of white space; is it a file of pairs?")
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    return head[start:], start, text.startswith("[")


def _lines(path: Path, file: BinaryIO, head: bytes, start: int, block: int) -> Iterator[Row]:
    """The rows of `head` and the rest of the file, one a line, from byte `start` of the file on."""
    for number, line in enumerate(_cut(file, head, block), 1):
        bare = line.rstrip(b"\r\n")
        if len(bare) > ROW:
            raise _too_long(path, number)
        try:
            text = bare.decode()
        except UnicodeDecodeError as error:
            raise _no_utf8(path, start + error.start) from None
        if text.strip():
            yield Row(number, _parsed(text, path, number), start, len(bare))
        start += len(line)


def _cut(file: BinaryIO, head: bytes, block: int) -> Iterator[bytes]:
    """The lines of `head` and the rest of the file with their ends, which are \\n, \\r\\n or \\r; of one that is longer than
    ROW the beginning, as the last of them."""
    rest, new = b"", head
    while new:
        *lines, rest = (rest + new).splitlines(keepends=True)
        yield from lines
        if len(rest) > ROW + 2:
            break
        new = file.read(min(max(block, len(rest)), ROW + 3))  # as much again: a long line is looked at a few times only
    if rest:
        yield rest


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if line == 1 and text[error.pos :] == text.lstrip():
            raise UserError(f"{path}, line 1: no JSON, it begins with {no_json(text.strip())}") from None
        message = "an object of several lines" if text.strip() == "{" else error.msg
        raise _bad_json(path, line, error.colno, message) from None
    except (RecursionError, ValueError) as error:
        raise _beyond(path, line, error) from None


class _Window:
    """The part of a file's text that is in memory, and where in the file it is being read."""

    def __init__(self, path: Path, file: BinaryIO, head: bytes, start: int, block: int):
        self.path, self.file, self.head, self.block = path, file, head, block
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.at = "", 0  # what stands before text[at] is done with
        self.byte, self.line, self.column = start, 1, 1  # of text[at]
        self.read, self.is_whole = start, False  # bytes read so far; whether these are all

    def grow(self) -> None:
        """Read on, by at least as much as waits already: a row of many blocks is then tried only a few times."""
        new = self.head or self.file.read(max(self.block, len(self.text) - self.at))
        self.head, self.is_whole = b"", not new
        waiting = len(self.decoder.getstate()[0])  # bytes of a character that is not complete
        try:
            text = self.decoder.decode(new, final=self.is_whole)
        except UnicodeDecodeError as error:
            raise _no_utf8(self.path, self.read - waiting + error.start) from None
        self.read += len(new)
        self.text, self.at = self.text[self.at :] + text, 0

    def skip(self, end: int) -> None:
        """Be done with the text before text[end]."""
        done = self.text[self.at : end]
        self.byte += len(done) if done.isascii() else len(done.encode())
        if lines := done.count("\n") + done.count("\r") - done.count("\r\n"):
            self.line, self.column = self.line + lines, len(done) - max(done.rfind("\n"), done.rfind("\r"))
        else:
            self.column += len(done)
        self.at = end

    def next(self) -> str:
        """The next character that is no white space, which is skipped; at the end of the file ""."""
        while (end := _after_space(self.text, self.at)) == len(self.text) and not self.is_whole:
            self.grow()
        self.skip(end)
        return self.text[end : end + 1]

    def value(self, number: int) -> Any:
        """The JSON value that begins here, row `number`, which is skipped."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - NEAR
                if self.is_whole or not cut:
                    self.skip(error.pos)
                    raise self.error(error.msg) from None
            except (RecursionError, ValueError) as error:
                raise _beyond(self.path, self.line, error) from None
            else:
                if self.is_whole or end + 3 <= len(self.text):  # a number may go on: 1, 1.5, 1e+5
                    self.skip(end)
                    return value
            if len(self.text) - self.at > ROW + 2:  # that many may follow a row that is whole
                raise _too_long(self.path, number)
            self.grow()

    def error(self, message: str) -> UserError:
        """That the JSON is bad at this place."""
        return _bad_json(self.path, self.line, self.column, message)


def _elements(window: _Window) -> Iterator[Row]:
    """The elements of the JSON list that is all of a file."""
    if window.next() != "[":  # but after white space that is none to JSON
        raise window.error("Expecting value")
    window.skip(window.at + 1)
    number, mark = 0, window.next()
    while mark != "]":
        number, start = number + 1, window.byte
        value = window.value(number)
        if window.byte - start > ROW:
            raise _too_long(window.path, number)
        yield Row(number, value, start, window.byte - start)
        mark = window.next()
        if mark not in ("]", ","):
            raise window.error("Expecting ',' delimiter")
        if mark == ",":
            window.skip(window.at + 1)
            window.next()
    window.skip(window.at + 1)
    if window.next():
        raise window.error("Extra data")


def _no_utf8(path: Path, byte: int) -> UserError:
    return UserError(f"{path} is no UTF-8 text: byte {byte} cannot be read; save it as UTF-8")


def _bad_json(path: Path, line: int, column: int, message: str) -> UserError:
    return UserError(
        f"{path}, line {line}, column {column}: bad JSON: {message}; a file is one JSON list, or one JSON object a line"
    )


def _too_long(path: Path, number: int) -> UserError:
    return UserError(f"{path}, row {number}: longer than {ROW >> 20} MiB, the most that a row may have")


def _beyond(path: Path, line: int, error: Exception) -> UserError:
    """What is JSON, but not for Python: nested too deep, or (ValueError) a number of thousands of digits."""
    why = "nested too deep" if isinstance(error, RecursionError) else str(error).partition(";")[0]
    return UserError(f"{path}, line {line}: bad JSON: {why}")


def _after_space(text: str, start: int) -> int:
    found = SPACE.match(text, start)
    return found.end() if found else start
