"""Several machines on one: network namespaces with a cable each to a switch, which is a namespace too.

    with machines(2) as (a, b):                         # 10.77.0.1 and 10.77.0.2, host names node-1 and node-2
        job = a.start("python", "serve.py")             # a Popen; what it starts is in the machine too
        b.call("ping", "-c1", a.address)                # to its end
        b.cut()                                         # what b sends and is sent is lost without a word
        b.mend()

A machine has its own interfaces (lo and eth0), host name, and mounts: `write` puts another /etc/hosts before its
processes' eyes alone. Its processes' ids are those of the real machine, so that signals reach them. At the end of the block
every process in it is killed, and nothing is left: neither name nor file nor interface.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT, ROOT


@cache
def _hindrance() -> str:
    """Why there can be no namespaces here; empty if there can."""
    missing = [name for name in ("unshare", "nsenter", "ip", "hostname") if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        return f"namespaces need {', '.join(missing) or 'root'}"
    trial = "ip link add left type veth peer name right && ip link add middle type bridge && mount -t tmpfs none /mnt"
    done = subprocess.run(["unshare", "--net", "--uts", "--mount", "sh", "-c", trial], capture_output=True, text=True)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


class Machine:
    """A namespace of network, host name and mounts, kept alive by a `cat` whose end this process holds."""

    def __init__(self, name: str, address: str = ""):
        self.name, self.address = name, address
        number = address.rpartition(".")[2] or "0"
        self.port, self.card = f"port{number}", f"02:00:00:00:00:{int(number):02x}"  # at the switch; of its eth0
        self._files = Path(tempfile.mkdtemp(prefix="machine-"))
        self._anchor = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        while Path(f"/proc/{self._anchor.pid}/comm").read_text().strip() != "cat":  # unshare has not come to it yet
            time.sleep(0.005)
        self.call("hostname", name)
        self.call("ip", "link", "set", "lo", "up")

    def connect(self, switch: "Machine") -> None:
        """Lay a cable from eth0 to a port of the switch."""
        self.switch = switch
        eth0 = ["peer", "name", "eth0", "address", self.card, "netns", str(self._anchor.pid)]
        switch.call("ip", "link", "add", self.port, "type", "veth", *eth0)
        switch.call("ip", "link", "set", self.port, "master", "switch", "up")
        self.call("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.call("ip", "link", "set", "eth0", "up")

    def words(self, *arguments) -> list[str]:
        """The words of a command line that runs `arguments` inside; nsenter becomes the command, its id and all."""
        return ["nsenter", "-t", str(self._anchor.pid), "--net", "--uts", "--mount", "--", *map(str, arguments)]

    def start(self, *arguments, cwd: Path = ROOT, **how) -> subprocess.Popen:
        """Start it inside, in a process group of its own unless `how` (for Popen) says otherwise."""
        how = {"env": ENVIRONMENT, "text": True, "start_new_session": True} | how
        return subprocess.Popen(self.words("env", "-C", cwd, *arguments), **how)

    def call(self, *arguments, code: int | None = 0, cwd: Path = ROOT, limit: int = 120, **environment: str):
        """Run it inside to its end, and hold it to its exit code (None: any), as tests.processes.call does."""
        done = subprocess.run(
            self.words("env", "-C", cwd, *arguments),
            env=ENVIRONMENT | environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )
        assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def write(self, path: str, text: str) -> None:
        """A file such as /etc/hosts as this machine's processes alone see it. `path` must exist outside."""
        own = self._files / path.strip("/").replace("/", "_")
        mounted = own.exists()
        own.write_text(text)
        own.chmod(0o644)
        if not mounted:
            self.call("mount", "--bind", own, path)

    def unplug(self) -> None:
        """Pull the cable: the kernels of both ends know that eth0 is without a link."""
        self.switch.call("ip", "link", "set", self.port, "down")

    def plug(self) -> None:
        self.switch.call("ip", "link", "set", self.port, "up")

    def cut(self) -> None:
        """Lose all packets at the switch. No one is told: links stay up, connections stay open and silent."""
        self.switch.call("ip", "link", "set", self.port, "nomaster")

    def mend(self) -> None:
        self.switch.call("ip", "link", "set", self.port, "master", "switch")

    def processes(self) -> list[int]:
        """The ids of the processes inside, besides the one that keeps the machine alive."""
        space, found = self._space(), [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        return [pid for pid in found if pid != self._anchor.pid and _space(pid) == space]

    def power_off(self) -> None:
        """Kill every process inside, and the machine with them."""
        while inside := self.processes():
            for pid in inside:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self._anchor.kill()
        self._anchor.communicate()
        shutil.rmtree(self._files, ignore_errors=True)

    def _space(self) -> str:
        return _space(self._anchor.pid)


def _space(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:  # it has ended, or is a zombie
        return ""


@contextmanager
def machines(count: int = 2) -> Iterator[list[Machine]]:
    """`count` machines on one switch; number i has the host name node-i, and 10.77.0.i on its eth0. They know each other's names.

    Skips the test where the system allows no namespaces.
    """
    if hindrance := _hindrance():
        pytest.skip(hindrance)
    with ExitStack() as stack:
        switch = Machine("switch")
        stack.callback(switch.power_off)
        switch.call("ip", "link", "add", "switch", "type", "bridge")
        switch.call("ip", "link", "set", "switch", "up")
        found = []
        for i in range(1, count + 1):
            found.append(Machine(f"node-{i}", f"10.77.0.{i}"))
            stack.callback(found[-1].power_off)
            found[-1].connect(switch)
        names = "".join(f"{machine.address} {machine.name}\n" for machine in found)
        for machine in found:
            machine.write("/etc/hosts", "127.0.0.1 localhost\n" + names)
            for other in found:  # were they to ask for each other's card, a cut would be found by that
                if other is not machine:
                    known = [other.address, "lladdr", other.card, "dev", "eth0", "nud", "permanent"]
                    machine.call("ip", "neigh", "replace", *known)
        yield found
