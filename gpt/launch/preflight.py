"""What a launch needs of names, ports, interfaces and folders, checked before torchrun, which hangs where one is wrong.

    python gpt/launch/preflight.py --nnodes 2 --node-rank 1 --master-addr vm-1 --verbose

    host name vm-2 -> 10.77.0.2                      on stderr
    MASTER_ADDR vm-1 -> 10.77.0.1
    own address 10.77.0.2, interface eth0
    2 of 2 nodes
    10.77.0.2 eth0 29500                             on stdout, for torchrun: LOCAL_ADDR INTERFACE PORT

It does without torch, and takes a tenth of a second where all is well. What is wrong is said within ten seconds, one line
each on stderr with the fix; exit code 2. Missing machines alone are waited for longer, where --wait says so.
"""

import errno
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpt.command import UserError, flag, run
from gpt.launch.call_in import call_in
from gpt.launch.knock import Kind, knock
from gpt.launch.network import addresses_of, holder, interface_of, interfaces, is_loopback, own_address
from gpt.launch.nodes import Node, Refused
from gpt.launch.roll_call import hold
from gpt.launch.surroundings import little_memory, stale_variables, wrong_folder, wrong_interfaces

SOON = 7.0  # seconds from the start until all is known but whether missing machines will come
ASIDE = 3.0  # seconds for what is not the heart of it
LONGEST = 500  # letters of an identity, which goes through the net in one piece


@dataclass(frozen=True)
class Flags:
    """Say within seconds what would keep torchrun from starting. The last line of stdout is: LOCAL_ADDR INTERFACE PORT."""

    nnodes: int = flag(1, "machines")
    node_rank: int = flag(0, "the number of this one, from 0")
    master_addr: str = flag("", "host name or address of node 0")
    master_port: int = flag(29500, "a free TCP port there")
    processes: int = flag(1, "processes on each machine")
    wait: float = flag(SOON, "seconds that the machines wait for each other")
    identity: str = flag("", "what must be the same on all machines, best as words such as code=1f torch=2.13")
    out: str = flag("", "the output folder")
    verbose: bool = flag(False, "also say what is in order")


class Speech:
    """What is said, all of it on stderr; `note` with --verbose only."""

    def __init__(self, verbose: bool):
        self.verbose = verbose

    def say(self, line: str) -> None:
        print(line.replace("\n", " "), file=sys.stderr, flush=True)

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def note(self, line: str) -> None:
        if self.verbose:
            self.say(line)


def preflight(flags: Flags) -> int:
    """Check all, print the result or what is wrong, and return the exit code."""
    began, speech = time.monotonic(), Speech(flags.verbose)
    faults = [*_wrong_numbers(flags), *stale_variables(flags.nnodes, speech.warn)]
    faults += [*wrong_interfaces(flags.nnodes, speech.warn), *little_memory(flags.processes, speech.warn)]
    if flags.out:
        unfit = list(wrong_folder(Path(flags.out), ASIDE))
        faults += unfit
        speech.note(f"--out {flags.out} can{'not' if unfit else ''} be written")
    if flags.verbose:
        _note_host_name(flags.nnodes, speech)
    address, interface, port = "127.0.0.1", "lo0" if sys.platform == "darwin" else "lo", 0
    if flags.nnodes > 1 and not faults:
        try:
            address, port = _meet(flags, speech, began), flags.master_port
            interface = interface_of(address)
        except Refused as refused:
            faults += refused.lines
        except UserError as error:
            faults.append(str(error))
    for fault in faults:
        speech.say(f"error: {fault}")
    if faults:
        return 2
    print(address, interface, port)
    return 0


def _wrong_numbers(flags: Flags) -> list[str]:
    """The flags by the names that a user of launch.sh knows them by."""
    faults = []
    if flags.nnodes < 1:
        return [f"NNODES is {flags.nnodes}, it must be a number of machines of at least 1"]
    if not 0 <= flags.node_rank < flags.nnodes:
        faults.append(
            f"NODE_RANK is {flags.node_rank}; with NNODES={flags.nnodes} it must be from 0 to {flags.nnodes - 1}"
        )
    if not 1 <= flags.master_port <= 65535:
        faults.append(f"MASTER_PORT is {flags.master_port}, it must be from 1 to 65535")
    if flags.processes < 1:
        faults.append(f"N is {flags.processes}, it must be a number of processes of at least 1")
    if not flags.wait > 0:
        faults.append(f"--wait is {flags.wait}, it must be a number of seconds above 0")
    if len(flags.identity) > LONGEST:
        faults.append(f"--identity has {len(flags.identity)} letters, it may have {LONGEST}; give a hash of it")
    if flags.nnodes > 1 and not flags.master_addr:
        faults.append("MASTER_ADDR is not set; set it to the host name or address of node 0, the same on all machines")
    return faults


def _note_host_name(nodes: int, speech: Speech) -> None:
    """The own host name is needed nowhere, but other tools ask for it."""
    name = socket.gethostname()
    try:
        speech.note(f"host name {name} -> {', '.join(addresses_of(name, ASIDE))}")
    except UserError as error:
        speech.note(f"host name {name} {error}; that does no harm here")


def _meet(flags: Flags, speech: Speech, began: float) -> str:
    """Meet the other machines. The own address, by which they reach this one. Raises UserError, or Refused."""
    addresses = _addresses_of_node_0(flags, began)
    speech.note(f"MASTER_ADDR {flags.master_addr} -> {', '.join(addresses)}")
    own = Node(flags.node_rank, socket.gethostname(), flags.nnodes, flags.processes, flags.identity)
    deadline = began + flags.wait
    if own.rank == 0:
        bound = _bound(flags, addresses, own, began)
        address = bound.getsockname()[0]
        speech.note(f"port {flags.master_port} free")
        nodes = hold(bound, own, deadline, speech.say, speech.note)
        speech.note(f"{own.nodes} of {own.nodes} nodes: {', '.join(map(str, nodes))}")
        return address
    ways = {}
    for address in addresses:
        try:
            ways[address] = own_address(address)
        except OSError as error:
            hindrance = error.strerror
    if not ways:
        raise UserError(
            f"MASTER_ADDR {_with(flags.master_addr, addresses)} cannot be reached from here: {hindrance}; "
            f"see this machine's network, which has {_own_addresses()}"
        )
    address = ways[call_in(list(ways), flags.master_port, own, deadline, speech.say, speech.note)]
    speech.note(f"own address {address}, interface {interface_of(address)}")
    speech.note(f"{own.nodes} of {own.nodes} nodes")
    return address


def _addresses_of_node_0(flags: Flags, began: float) -> list[str]:
    """Those of MASTER_ADDR that other machines can reach. Raises UserError."""
    name = flags.master_addr
    if name.count(":") == 1:
        raise UserError(f"MASTER_ADDR is {name}; give the port as MASTER_PORT, and here the name or address alone")
    mend = f"write 'ADDRESS {name}' into /etc/hosts on every machine, or set MASTER_ADDR to node 0's IPv4 address"
    try:
        found = addresses_of(name, max(began + SOON - time.monotonic(), 0.1))
    except UserError as error:
        raise UserError(f"MASTER_ADDR {name} {error}; {mend}") from None
    reachable = [address for address in found if not is_loopback(address)]
    if not reachable:
        here = f" (this machine has {_own_addresses()})" if flags.node_rank == 0 else ""
        raise UserError(
            f"MASTER_ADDR {name} resolves to {found[0]}, which is each machine itself, and NNODES is {flags.nnodes}; "
            f"set it to an address of node 0 that the others reach{here}"
        )
    return reachable


def _bound(flags: Flags, addresses: list[str], own: Node, began: float) -> socket.socket:
    """A socket on MASTER_ADDR:MASTER_PORT that does not listen yet. Raises UserError, with who has the port."""
    port = flags.master_port
    for address in ("", *addresses):  # torch's store listens on all addresses, so it needs the port on all of them
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((address, port))
            if address:
                return bound
            bound.close()
        except OSError as error:
            bound.close()
            if error.errno == errno.EADDRINUSE:
                raise UserError(_in_use(addresses[0], port, began)) from None
            if error.errno != errno.EADDRNOTAVAIL:
                raise UserError(f"MASTER_PORT {port} cannot be used: {error.strerror}; set one above 1023") from None
    if knock(addresses[0], port, time.monotonic() + ASIDE).kind is Kind.ROLL_CALL:
        # there is a node 0 already: it should know, and say the same
        call_in(addresses, port, own, time.monotonic() + ASIDE, lambda line: None, lambda line: None)
    raise UserError(
        f"MASTER_ADDR {_with(flags.master_addr, addresses)} is no address of this machine, which has {_own_addresses()}; "
        f"start NODE_RANK=0 on the machine that has it, or correct MASTER_ADDR"
    )


def _in_use(address: str, port: int, began: float) -> str:
    who = holder(port)
    answer = knock(address, port, began + SOON)
    if answer.kind is Kind.STORE:
        what, mend = "a torch store", "another run is alive: end it"
    elif answer.kind is Kind.ROLL_CALL:
        what, mend = "a launch that waits as NODE_RANK=0", "give this one its own NODE_RANK, or end the other"
    else:
        what, mend = "no torch store", "end it"
    by = f" by {who}, {what}" if who else f" by {what}"
    return f"MASTER_PORT {port} is in use on this machine{by}; {mend}, or set another MASTER_PORT on all machines"


def _with(name: str, addresses: list[str]) -> str:
    """A name with its first address, or the address alone if that is its name."""
    return name if name == addresses[0] else f"{name} ({addresses[0]})"


def _own_addresses() -> str:
    """Of this machine, with their interfaces, in words."""
    found = [f"{address} ({name})" for name, each in interfaces().items() for address in each.addresses if name != "lo"]
    return ", ".join(found) or "no address but its loopback"


if __name__ == "__main__":
    run(preflight, Flags)
