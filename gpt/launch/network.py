"""What this machine knows of its network, from the standard library alone: names, addresses, interfaces, who holds a port.

    addresses_of("node-1", 5.0)       ["10.77.0.1"]
    own_address("10.77.0.1")          "10.77.0.2", from which this machine reaches it
    interfaces()["eth0"]              Interface(up=True, linked=True, addresses=["10.77.0.2"])
    holder(29500)                     "process 4711 (torchrun)"

Interfaces and holders are read as Linux tells them; elsewhere less is known, and nothing fails.
"""

import fcntl
import os
import socket
import struct
import sys
import threading
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gpt.command import UserError

# ioctl requests and flags of linux/sockios.h and linux/if.h
ALL_ADDRESSES, FLAGS, UP, LINKED = 0x8912, 0x8913, 0x1, 0x40
ENTRY = 40  # bytes of a struct ifreq on a 64-bit machine: a name of 16, then a sockaddr
LISTENS = "0A"  # the state of a listening socket in /proc/net/tcp


class Interface(NamedTuple):
    """A network card, real or not: whether it is switched on, whether its cable has another end, its IPv4 addresses."""

    up: bool
    linked: bool
    addresses: list[str]


def in_time(limit: float, function: Callable, *arguments):
    """What `function` returns or raises. Raises TimeoutError after `limit` seconds, and leaves it to hang."""
    outcome = {}

    def work():
        try:
            outcome["value"] = function(*arguments)
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit)
    if not outcome:
        raise TimeoutError
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def addresses_of(name: str, limit: float) -> list[str]:
    """The IPv4 addresses of a name, or of an address itself. Raises UserError: what is wrong with it, without the fix."""
    try:
        found = in_time(limit, socket.getaddrinfo, name, None, 0, socket.SOCK_STREAM)
    except TimeoutError:
        raise UserError(f"does not resolve: no name server answered within {limit:.0f} s") from None
    except (OSError, UnicodeError) as error:
        raise UserError(f"does not resolve: {getattr(error, 'strerror', None) or error}") from None
    old = sorted({entry[4][0] for entry in found if entry[0] == socket.AF_INET})
    if not old:
        raise UserError(f"resolves to IPv6 only ({found[0][4][0]}), and this launch speaks IPv4")
    return old


def is_loopback(address: str) -> bool:
    """Whether it reaches no other machine."""
    return address.startswith("127.") or address == "localhost"


def own_address(peer: str) -> str:
    """The address from which this machine would speak to `peer`; nothing is sent. Raises OSError where there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))
        return probe.getsockname()[0]


def interfaces() -> dict[str, Interface]:
    """Every interface of this machine by name; none where the system is not Linux."""
    if sys.platform != "linux":
        return {}
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        addresses = _addresses(any_socket)
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has gone meanwhile
                answer = fcntl.ioctl(any_socket, FLAGS, struct.pack("16sH22x", name.encode(), 0))
                flags = struct.unpack_from("H", answer, 16)[0]
                own = [address for label, address in addresses if label == name]
                found[name] = Interface(bool(flags & UP), bool(flags & LINKED), own)
    return found


def _addresses(any_socket: socket.socket) -> list[tuple[str, str]]:
    """The name of the interface and the address, for each IPv4 address of this machine."""
    room = array("B", bytes(ENTRY * 1024))
    place, size = room.buffer_info()
    filled = struct.unpack("iP", fcntl.ioctl(any_socket, ALL_ADDRESSES, struct.pack("iP", size, place)))[0]
    entries = [room[start : start + ENTRY].tobytes() for start in range(0, filled, ENTRY)]
    names = [entry[:16].split(b"\0")[0].decode().split(":")[0] for entry in entries]  # eth0:1 is eth0's second
    return [(name, socket.inet_ntoa(entry[20:24])) for name, entry in zip(names, entries)]


def interface_of(address: str) -> str:
    """The name of the interface that has this address, `-` where that is not known."""
    return next((name for name, each in interfaces().items() if address in each.addresses), "-")


def holder(port: int) -> str:
    """Who has this TCP port of this machine, in words; empty where that cannot be known."""
    rows = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            rows += [line.split() for line in Path(table).read_text().splitlines()[1:]]
    having = [row for row in rows if int(row[1].rpartition(":")[2], 16) == port and row[9] != "0"]
    for row in sorted(having, key=lambda row: row[3] != LISTENS):
        if process := _process_with(f"socket:[{row[9]}]"):
            return f"process {process}"
        return f"a process of user {row[7]}"
    return ""


def _process_with(file: str) -> str:
    """The id and the name of the process that has opened `file`, which /proc may not tell of other users' processes."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(descriptor) == file for descriptor in (process / "fd").iterdir()):
                return f"{process.name} ({(process / 'comm').read_text().strip()})"
    return ""
