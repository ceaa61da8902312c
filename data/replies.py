"""Replies of an LLM, each kept on disk as it comes: what was asked once is not asked again.

    {"asked": "9f86d081...", "of": "llama3.1 at http://localhost:11434/v1", "text": "Good morning!", "finish": "stop"}

`asked` is the SHA-256 of the question, of the model's name and of the address. A build that was interrupted, however, finds
the replies that came before and goes on; one that is given again asks nothing. The file only grows, and one process at a
time writes.

Two servers may well have two models of one name (llama.cpp takes any), and whose reply it is decides what a pair is worth. So
another address is another model, also another port: a server that was started anew is asked at the port that it had, or asked
again. A warning says so where a file has replies of the model at another address alone.
"""

import hashlib
import json
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from data.endpoint import BODY, Question, Reply
from data.llm import LLM
from gpt.command import Notice, UserError
from gpt.files import NO_LOCKS, Unwritable, locked, make_folder
from gpt.untrusted import shown

TURNS = 4096  # locks, of which each question has one by its hash
LINE = 2 * BODY  # bytes that no line reaches
BEGINNING = b'{"asked"'  # of every line


class Replies:
    """What a model replies, asked of it or known from before. Many threads may ask."""

    def __init__(self, llm: LLM, file: BinaryIO):
        """file: without a buffer, where lines are appended and read."""
        self.llm, self.file = llm, file
        self.asked, self.known = 0, 0  # questions that the model replied to, and that the file did
        self._of = f"{llm.model} at {llm.endpoint.address}"
        self._end = 0  # bytes of the file
        self._places: dict[bytes, tuple[int, int]] = {}  # by the hash of the question: first byte and bytes of its line
        self._turns, self._writing = [threading.Lock() for _ in range(TURNS)], threading.Lock()

    def ask(self, question: Question) -> Reply:
        """The reply. Raises Failed where this question gets none, UserError where no question would."""
        key = key_of(self.llm.endpoint.address, self.llm.model, question)
        with self._turns[int.from_bytes(key[:2], "big") % TURNS]:  # who asks the same meanwhile waits, and then reads
            if key in self._places:
                start, size = self._places[key]
                record = json.loads(os.pread(self.file.fileno(), size, start))
                with self._writing:
                    self.known += 1
                return Reply(record["text"], record["finish"])
            reply = self.llm.reply(question)
            self._append(key, reply)
            return reply

    def _append(self, key: bytes, reply: Reply) -> None:
        record = {"asked": key.hex(), "of": self._of, **reply._asdict()}
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with self._writing:
            written = 0
            try:
                while written < len(line):  # of a long line a system may take a part
                    written += os.write(self.file.fileno(), line[written:])
            except OSError as error:
                with suppress(OSError):
                    self.file.truncate(self._end)
                raise Unwritable(f"the replies cannot be kept: {error.strerror}") from None
            self._places[key] = (self._end, len(line))
            self._end += len(line)
            self.asked += 1

    def load(self, path: Path) -> None:
        """Take note of what the file holds already. A last line that was cut off is removed, other damage is told.

        Raises UserError where it is no file of replies.
        """
        damaged, of = 0, set()
        with open(path, "rb") as file:
            while line := file.readline(LINE):
                if found := _record(line):
                    self._places[found[0]] = (self._end, len(line))
                    of.add(found[1])
                elif not self._places and line[:8] != BEGINNING[: len(line)]:
                    raise UserError(f"{path} holds something else than replies; name another file with --replies")
                elif line.endswith(b"\n") or len(line) == LINE:
                    damaged += 1
                else:  # the process was killed while it wrote
                    break
                self._end += len(line)
        if damaged:
            warnings.warn(
                Notice(f"{path}: lines that cannot be read: {damaged}; what they held is asked again"), stacklevel=2
            )
        self.llm.has_answered |= self._of in of
        elsewhere = sorted(one for one in of if one.startswith(f"{self.llm.model} at "))
        if elsewhere and self._of not in of:
            told = f"{path}: the replies there are of {shown(elsewhere[0])}, not of {self._of}; all is asked anew"
            warnings.warn(Notice(told), stacklevel=2)
        self.file.truncate(self._end)


def key_of(address: str, model: str, question: Question) -> bytes:
    """SHA-256 of all that the reply depends on, 32 bytes."""
    return hashlib.sha256(json.dumps([address, model, *question], ensure_ascii=False).encode()).digest()


@contextmanager
def kept_replies(llm: LLM, path: Path | None) -> Iterator[Replies]:
    """The replies of a model, kept in the file `path`; without one as long as the block lasts.

    Raises UserError where another process holds the file, or where it is no file of replies, Unwritable where the
    system refuses.
    """
    with ExitStack() as stack:
        if path is None:
            replies = Replies(llm, stack.enter_context(tempfile.TemporaryFile(buffering=0)))
            yield from _until_over(replies)
            return
        make_folder(path.parent)
        try:
            stack.enter_context(locked(path, 0.0))
        except BlockingIOError:
            raise UserError(f"{path}: another process is writing there; wait for it, or name another file") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise Unwritable.because(path, error) from None
            no_locks = f"{path}: this file system has no locks; see to it that no other process writes there"
            warnings.warn(Notice(no_locks), stacklevel=2)
        try:
            replies = Replies(llm, stack.enter_context(open(path, "a+b", buffering=0)))
            replies.load(path)
        except OSError as error:
            raise Unwritable.because(path, error) from None
        yield from _until_over(replies)


def _until_over(replies: Replies) -> Iterator[Replies]:
    replies.llm.is_over = False
    try:
        yield replies
    finally:
        replies.llm.is_over = True
        with suppress(OSError):
            os.fsync(replies.file.fileno())


def _record(line: bytes) -> tuple[bytes, str] | None:
    """The hash of the question that a line answers, and who does; None for anything else."""
    with suppress(ValueError, RecursionError, LookupError, TypeError):
        found = json.loads(line)
        key, of, text, finish = bytes.fromhex(found["asked"]), found.get("of", ""), found["text"], found["finish"]
        texts = isinstance(of, str) and isinstance(text, str | None) and isinstance(finish, str)
        if len(key) == 32 and texts and line.endswith(b"\n"):
            return key, of
    return None
