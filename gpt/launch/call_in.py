"""A node that is not node 0 finds it, and goes on when node 0 says that all are there (gpt/launch/roll_call.py).

What is at MASTER_ADDR:MASTER_PORT                  then
    nobody yet: the connection is refused           wait for node 0, as long as asked
    no sign of a machine: silence, no way there     say so after PATIENCE seconds
    a roll call                                     take part
    a torch store                                   go on: this node was started again, and joins the others
    anything else                                   say what it is
"""

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle

from gpt.launch.knock import MOST, Answer, Kind, hear, is_newer_torch, knock, plain, quote
from gpt.launch.nodes import Node, Refused, Waiting

PATIENCE = 7.0  # seconds
GRACE = 1.5  # seconds that node 0, if it has begun a little later, has for its verdict


def call_in(addresses: list[str], port: int, own: Node, deadline: float, say: Callable, note: Callable) -> str:
    """Another node's part: that one of `addresses` at which node 0 says that all are there, or a torch store is.

    Raises Refused where it says what is wrong, or is not there at the moment `deadline` of the monotonic clock, or where
    for PATIENCE seconds there is no sign of its machine at all.
    """
    began = sign = time.monotonic()
    waiting, said = Waiting(say, deadline), None
    turns = cycle(addresses)
    while True:
        address = next(turns)
        until = min(deadline, sign + PATIENCE)
        answer = knock(address, port, until)
        called = answer.connection if answer.kind is Kind.ROLL_CALL else None
        verdict = _talk(called, address, own, deadline + GRACE, note) if called else ""
        if verdict == "go":
            return address
        if answer.kind is Kind.STORE:
            say(f"{address}:{port} {answer}: joining the launch that runs there")
            return address
        if answer.kind in (Kind.MUTE, Kind.NO_STORE) and is_newer_torch():
            say(f"warning: {address}:{port} {answer}; it may be the store of a torch newer than this check knows")
            return address
        if verdict == "wait" or answer.kind in (Kind.REFUSED, Kind.CLOSED):
            sign, until = time.monotonic(), deadline
        if answer.kind is not Kind.SILENT or not said or said.kind is not Kind.UNREACHABLE:  # which says more
            said = answer
        if time.monotonic() >= until or answer.kind in (Kind.MUTE, Kind.NO_STORE, Kind.STRANGER):
            raise Refused(_explain(address, port, said, time.monotonic() - began))
        waiting.for_(f"{address}:{port} {answer}")
        time.sleep(0.3)


def _talk(connection: socket.socket, host: str, own: Node, deadline: float, note: Callable[[str], None]) -> str:
    """Answer node 0's call: its last verdict, go or wait, before the connection ended; empty if there was none."""
    verdict, rest, state = "", b"", ""
    with connection, suppress(OSError):
        connection.sendall(own.line())
        while said := hear(connection, min(deadline, time.monotonic() + PATIENCE)):
            *lines, rest = (rest + said).split(b"\n")
            if len(rest) > MOST:
                raise Refused(_babble(host, rest))
            for line in lines:
                verdict, reasons = _read_verdict(line, host)
                note(f"node 0 says {verdict}: {'; '.join(reasons)}")
                if verdict == "go":
                    return verdict
                if verdict == "stop":
                    raise Refused(*reasons)
                state = "; ".join(reasons)
            if time.monotonic() > deadline:
                break
        if said is None or time.monotonic() > deadline:
            silent = time.monotonic() < deadline or not state
            raise Refused(
                f"node 0 at {host} took the call and fell silent; see its output, and the network"
                if silent
                else f"{state} as node 0 at {host} says, and this node waits no longer; start it with the same command"
            )
    return verdict


def _read_verdict(line: bytes, host: str) -> tuple[str, list[str]]:
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        said = json.loads(line)
        verdict, lines = said["verdict"], said["lines"]
        if verdict in ("wait", "go", "stop") and all(isinstance(each, str) for each in lines):
            return verdict, [plain(each, 400) for each in lines[:100]]
    raise Refused(_babble(host, line))


def _babble(host: str, said: bytes) -> str:
    return f"node 0 at {host} does not keep to the roll call, it says {quote(said)}; start the same commit there"


def _explain(address: str, port: int, answer: Answer, seconds: float) -> str:
    fixes = {
        Kind.ROLL_CALL: "it hung up each time; start the same commit on all machines",
        Kind.REFUSED: "start node 0 there with NODE_RANK=0, or correct MASTER_ADDR and MASTER_PORT",
        Kind.CLOSED: "start node 0 there with NODE_RANK=0, and see that nothing else takes its port",
        Kind.SILENT: f"see that node 0's machine is up, and that no firewall drops TCP port {port} between the two",
        Kind.UNREACHABLE: f"see that node 0's machine is up, and which way leads there: ip route get {address}",
    }
    other = "it is neither this launch nor torch's store; set another MASTER_PORT on all machines, or end it (ss -ltnp there)"
    lasting = f", for {seconds:.0f} s" if answer.kind in fixes else ""
    return f"{address}:{port} {answer}{lasting}; {fixes.get(answer.kind, other)}"
