"""What a launch needs of names, ports and interfaces, checked before torchrun, which would hang where one of them is wrong."""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt.command import flag, run


@dataclass(frozen=True)
class Flags:
    """Say in seconds what would keep torchrun from starting. The last line of stdout is: LOCAL_ADDR INTERFACE PORT."""

    nnodes: int = flag(1, "machines")
    node_rank: int = flag(0, "this machine's number, from 0")
    master_addr: str = flag("", "host name or address of node 0")
    master_port: int = flag(29500, "the port there")
    processes: int = flag(1, "processes on each machine")
    wait: float = flag(8.0, "seconds to wait for the other machines")
    identity: str = flag("", "a text that must be the same on all machines")
    out: str = flag("", "the output folder")
    verbose: bool = flag(False, "say what was found in order, too")


def preflight(flags: Flags) -> int:
    if flags.nnodes == 1:
        print("127.0.0.1", "lo0" if sys.platform == "darwin" else "lo", 0)
        return 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((flags.master_addr, flags.master_port))
        address = probe.getsockname()[0]
    interface = "-"
    for line in os.popen("ip -o -4 addr").read().splitlines():
        if line.split()[3].split("/")[0] == address:
            interface = line.split()[1]
    print(address, interface, flags.master_port)
    return 0


if __name__ == "__main__":
    run(preflight, Flags)
