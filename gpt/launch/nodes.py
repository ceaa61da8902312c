"""What each machine of a launch says of itself, and in what they disagree.

0  vm-1  nodes 2  processes 2  code=1f torch=2.13
1  vm-2  nodes 2  processes 4  code=2e torch=2.13

node 1 (vm-2) was started with N=4, node 0 (vm-1) with N=2; give all the same
node 1 (vm-2) differs from node 0 (vm-1) in code; start the same commit with the same flags on all machines
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gpt.command import UserError
from gpt.launch.knock import plain

TOO_MANY = 10**5  # of nodes, or of processes
SPEAK_UP = 3.0, 15.0  # seconds until a person is told what is waited for; and from then on, every so many


class Refused(UserError):
    """The launch cannot go on; `lines` are the causes, one each."""

    def __init__(self, *lines: str):
        super().__init__("; ".join(lines))
        self.lines = lines


class Waiting:
    """Says what is waited for, now and then, as long as it lasts."""

    def __init__(self, say: Callable[[str], None], deadline: float):
        self.say, self.deadline, self.next = say, deadline, time.monotonic() + SPEAK_UP[0]

    def for_(self, what: str) -> None:
        now = time.monotonic()
        if now > self.next:
            self.say(f"waiting: {what}; {max(self.deadline - now, 0):.0f} s left")
            self.next = now + SPEAK_UP[1]


class Node(NamedTuple):
    """A machine. All but rank and host must be the same on every one."""

    rank: int
    host: str
    nodes: int
    processes: int
    identity: str

    def __str__(self) -> str:
        return f"node {self.rank} ({self.host})"

    def line(self) -> bytes:
        """What `read_node` reads."""
        return json.dumps(self._asdict()).encode() + b"\n"


def read_node(line: bytes) -> Node | None:
    """The node that a line of JSON tells of; None where it is anything else."""
    try:
        node = Node(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    numbers, texts = (node.rank, node.nodes, node.processes), (node.host, node.identity)
    if any(type(each) is not int for each in numbers) or any(type(each) is not str for each in texts):
        return None
    if not (0 <= node.rank < TOO_MANY and 0 < node.nodes < TOO_MANY and 0 < node.processes < TOO_MANY):
        return None
    return node._replace(host=plain(node.host, 64))


def disagreements(nodes: Sequence[Node]) -> list[str]:
    """In what nodes differ from the first, which is node 0, and what they have in common that should differ; a line each."""
    first, lines = nodes[0], []
    holders: dict[int, Node] = {}
    for node in nodes:
        for name, variable in (("nodes", "NNODES"), ("processes", "N")):
            its, other = getattr(node, name), getattr(first, name)
            if its != other:
                lines.append(
                    f"{node} was started with {variable}={its}, {first} with {variable}={other}; give all the same"
                )
        if node.identity != first.identity:
            what = _differing(node.identity, first.identity)
            lines.append(
                f"{node} differs from {first} in {what}; start the same commit with the same flags on all machines"
            )
        if holder := holders.get(node.rank):
            both = f"{holder.host} and {node.host}" if holder.host != node.host else f"two launches on {node.host}"
            lines.append(
                f"{both} were started with NODE_RANK={node.rank}; give each machine a number of its own, from 0"
            )
        holders[node.rank] = node
    return lines


def _differing(identity: str, other: str) -> str:
    """Which words of two identities such as `code=1f torch=2.13` differ, by their names where they have some."""
    its, others = (dict(word.partition("=")[::2] for word in text.split()) for text in (identity, other))
    if not all("=" in word for word in (identity + " " + other).split()):
        return "code, versions or flags"
    return plain(" and ".join(name for name in its | others if its.get(name) != others.get(name)), 200)


def named(ranks: Iterable[int]) -> str:
    """Node numbers in words: `node 2`, `nodes 1, 3-7`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][-1] == rank - 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    words = ", ".join("-".join(map(str, run)) for run in runs)
    return f"node{'s' if '-' in words or ',' in words else ''} {words}"
