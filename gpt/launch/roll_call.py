"""The machines of a launch meet on the port that torchrun is about to use, and go on together or say who is missing.

Node 0 listens on its address alone, for as long as the roll call lasts; the others come in any order:

    node 0                                                     node 1
    gpt-dpo roll call 1                                  -->
                                                         <--   {"rank": 1, "host": "vm-2", "nodes": 3, ...}
    {"verdict": "wait", "lines": ["node 2 is missing"]}  -->   each second, until all are there
    {"verdict": "go", "lines": []}                       -->   closes the connection: node 0 knows that it has heard
    or {"verdict": "stop", "lines": ["node 1 (vm-2) differs from ..."]}

Whoever reaches the port can take part: there is no secret, as torchrun has none. What is no such line is no node. It is
JSON, 4,096 bytes of it are read at most, and only a few connections are kept beside those of the nodes.
"""

import json
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from gpt.launch.knock import GREETING, MOST, quote
from gpt.launch.nodes import Node, Refused, Waiting, disagreements, named, read_node

STRANGERS = 16  # connections kept beside those of the nodes
SETTLE = 1.0  # seconds from the first disagreement to the verdict, in which others come and are told too
LEAVE = 3.0  # seconds that a node has to hear the verdict


class Guest:
    """A connection to node 0: a stranger until it has said which node it is."""

    def __init__(self, connection: socket.socket, address: str):
        self.connection, self.address, self.heard = connection, address, b""
        self.node: Node | None = None
        connection.setblocking(False)

    def tell(self, line: bytes) -> None:
        with suppress(OSError):  # one that does not take it will not leave in time either
            self.connection.send(line)

    def listen(self) -> bool:
        """Take in what it says. Whether it may stay."""
        try:
            said = self.connection.recv(MOST)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.heard += said
        if not said or self.node or len(self.heard) > MOST:
            return False
        if b"\n" in self.heard:
            self.node = read_node(self.heard)
        return bool(self.node) or b"\n" not in self.heard


class Host:
    """Node 0's side of the connections. `note` is told of strangers."""

    def __init__(self, bound: socket.socket, own: Node, note: Callable[[str], None]):
        self.bound, self.own, self.note = bound, own, note
        self.guests: list[Guest] = []
        self.left: dict[int, Node] = {}  # by rank
        self.selector = selectors.DefaultSelector()

    def __enter__(self) -> "Host":
        self.bound.listen(self.own.nodes + STRANGERS)
        self.bound.setblocking(False)
        self.selector.register(self.bound, selectors.EVENT_READ)
        return self

    def __exit__(self, *error) -> None:
        for guest in self.guests:
            guest.connection.close()
        self.bound.close()
        self.selector.close()

    def attend(self, seconds: float) -> None:
        """Wait for at most `seconds` for someone to come, speak or leave, and attend to all who do."""
        for key, _ in self.selector.select(seconds):
            if key.data is None:
                self._welcome()
            elif key.data not in self.guests:  # whom another of these events has thrown out
                continue
            elif not key.data.listen():
                self._dismiss(key.data)
            elif key.data.node:
                self.left.pop(key.data.node.rank, None)

    def _welcome(self) -> None:
        with suppress(OSError):
            guest = Guest(*self.bound.accept())
            strangers = [each for each in self.guests if not each.node]
            if len(strangers) >= self.own.nodes + STRANGERS:  # a node is one, too, until it has spoken
                self._dismiss(strangers[0])
            self.guests.append(guest)
            self.selector.register(guest.connection, selectors.EVENT_READ, guest)
            guest.tell(GREETING)

    def _dismiss(self, guest: Guest) -> None:
        self.selector.unregister(guest.connection)
        self.guests.remove(guest)
        guest.connection.close()
        if guest.node:
            self.left[guest.node.rank] = guest.node
        else:
            self.note(f"{guest.address[0]} is no node: it said {quote(guest.heard)}")

    def nodes(self) -> list[Node]:
        return [self.own, *(guest.node for guest in self.guests if guest.node)]

    def missing(self) -> str:
        """Who is, in words; empty when all are there."""
        absent = set(range(self.own.nodes)) - {node.rank for node in self.nodes()}
        gone = [f"{node} came and left again" for rank, node in sorted(self.left.items()) if rank in absent]
        never = absent - set(self.left)
        verb = "is" if len(never) == 1 else "are"
        return "; ".join(gone + ([f"{named(never)} {verb} missing"] if never else []))

    def tell_all(self, verdict: str, *lines: str) -> None:
        line = json.dumps({"verdict": verdict, "lines": lines}).encode() + b"\n"
        for guest in self.guests:
            if guest.node:
                guest.tell(line)

    def see_off(self) -> list[Node]:
        """Wait for the nodes to leave; who has not after LEAVE seconds."""
        until = time.monotonic() + LEAVE
        while len(self.nodes()) > 1 and time.monotonic() < until:
            self.attend(0.1)
        return self.nodes()[1:]


def hold(bound: socket.socket, own: Node, deadline: float, say: Callable, note: Callable) -> list[Node]:
    """Node 0's part, on a bound socket, which is closed at the end: all nodes, when all are there and agree.

    `say` is for what a person should know while it lasts, `note` for what only the curious do.
    Raises Refused where nodes disagree, or do not come until the moment `deadline` of the monotonic clock.
    """
    began, told, waiting = time.monotonic(), 0.0, Waiting(say, deadline)
    disagreed: float | None = None  # since when
    with Host(bound, own, note) as host:
        while True:
            host.attend(0.2)
            now, nodes, missing = time.monotonic(), host.nodes(), host.missing()
            lines = disagreements(nodes)
            disagreed = (disagreed or now) if lines else None
            if not lines and not missing:
                break
            if now > deadline or (disagreed and now >= disagreed + SETTLE):
                came = f"{len(nodes)} of {own.nodes} nodes came within {now - began:.0f} s"
                at = "{}:{}".format(*bound.getsockname())
                lines = lines or [
                    f"{missing} ({came}); start it there with the same command, and see that it reaches {at}"
                ]
                host.tell_all("stop", *lines)
                host.see_off()
                raise Refused(*lines)
            if now > told + 1:
                host.tell_all("wait", missing)
                told = now
            waiting.for_(missing)
        host.tell_all("go")
        if deaf := host.see_off():
            raise Refused(*(f"{node} was there and does not answer any more; see its network" for node in deaf))
    return sorted(nodes)
