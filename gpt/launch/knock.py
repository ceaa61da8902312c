"""Who is behind an address and a port: nobody, a roll call, a torch store, or a stranger.

A roll call speaks first, with its greeting. A torch store waits for a number that only its clients know, and then gives
back the bytes that follow "ping", in the byte order of the machine:

    we send       00 | ce f7 85 3c | 0d | 6b 6e 6f 6b         VALIDATE, torch's number; PING, four bytes of ours
    it answers    6b 6e 6f 6b

At most 4,096 bytes are read of anyone.
"""

import socket
import struct
import time
from collections.abc import Callable
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

GREETING = b"gpt-dpo roll call 1\n"
MOST = 4096  # bytes
VALIDATE, STORE_NUMBER, PING = 0, 0x3C85F7CE, 13
ECHO = b"knok"  # any four bytes
STEP = 2.0  # seconds for one step, of which there are at most four
KNOWN_TORCH = (2, 13)  # the newest version whose store is known to answer so


class Kind(Enum):
    """Who is there; the value says it in words."""

    REFUSED = "refuses the connection"
    UNREACHABLE = "cannot be reached"
    SILENT = "does not answer"
    CLOSED = "accepts the connection and closes it"
    MUTE = "accepts the connection and says nothing"
    STRANGER = "says"
    NO_STORE = "answers a torch client with"
    STORE = "is a torch store"
    ROLL_CALL = "is a roll call"


class Answer(NamedTuple):
    """Who is there, what was said, and for a roll call the open connection."""

    kind: Kind
    says: str = ""
    connection: socket.socket | None = None

    def __str__(self) -> str:
        return f"{self.kind.value} {self.says}".strip()


def knock(address: str, port: int, until: float) -> Answer:
    """Who is there, known at the moment `until` of the monotonic clock at the latest, and within four STEPs."""
    try:
        connection = socket.create_connection((address, port), _step(until))
    except TimeoutError:
        return Answer(Kind.SILENT)
    except ConnectionRefusedError:
        return Answer(Kind.REFUSED)
    except OSError as error:
        return Answer(Kind.UNREACHABLE, f"({error.strerror or error})")
    said = hear(connection, time.monotonic() + _step(until), lambda heard: b"\n" in heard)
    if said == GREETING:
        return Answer(Kind.ROLL_CALL, connection=connection)
    connection.close()
    if said is None:
        return _knock_as_client_of_store(address, port, until)
    return Answer(Kind.STRANGER, quote(said)) if said else Answer(Kind.CLOSED)


def _step(until: float) -> float:
    return max(min(STEP, until - time.monotonic()), 0.05)


def _knock_as_client_of_store(address: str, port: int, until: float) -> Answer:
    """Whether the one that said nothing is a torch store."""
    try:
        with socket.create_connection((address, port), _step(until)) as connection:
            connection.sendall(struct.pack("=BIB", VALIDATE, STORE_NUMBER, PING) + ECHO)
            said = hear(connection, time.monotonic() + _step(until), lambda heard: len(heard) >= len(ECHO))
    except OSError:
        return Answer(Kind.MUTE)
    if said == ECHO:
        return Answer(Kind.STORE)
    if said == GREETING:  # a roll call after all, on a machine with much to do
        return Answer(Kind.CLOSED)
    return Answer(Kind.NO_STORE, quote(said)) if said else Answer(Kind.MUTE)


def hear(connection: socket.socket, until: float, enough: Callable[[bytes], bool] = bool) -> bytes | None:
    """What the other side says until it is `enough`, or MOST bytes, or the moment `until` of the monotonic clock has come.

    Empty if it closes the connection without a word, None if it says nothing.
    """
    heard = b""
    while len(heard) < MOST and not enough(heard):
        connection.settimeout(max(until - time.monotonic(), 0.001))
        try:
            more = connection.recv(MOST - len(heard))
        except TimeoutError:
            return heard or None
        except OSError:  # it was reset
            return heard
        if not more:
            return heard
        heard += more
    return heard


def plain(text: str, most: int) -> str:
    """Others' text, fit for a terminal and for one line: at most so many letters, and none that moves the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])


def quote(said: bytes) -> str:
    """The beginning of what a stranger said."""
    return repr(plain(said.decode(errors="replace").strip(), 40))


def is_newer_torch() -> bool:
    """Whether the installed torch is newer than any whose store is known here, so that it may go by other rules."""
    try:
        numbers = version("torch").split(".")[:2]
        return tuple(map(int, numbers)) > KNOWN_TORCH
    except (PackageNotFoundError, ValueError):
        return False
