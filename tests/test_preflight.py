"""Preflight names what would keep torchrun from starting: with real sockets, and on machines that are namespaces.

Every network failure here is named in less than ten seconds of this process's clock, the start of Python included.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.launch.call_in import call_in
from gpt.launch.knock import GREETING
from gpt.launch.network import interfaces
from gpt.launch.nodes import Node, Refused, disagreements, named, read_node
from gpt.launch.roll_call import STRANGERS as OTHERS
from gpt.launch.roll_call import Host, hold
from tests.namespaces import machines
from tests.processes import ENVIRONMENT, ROOT

SCRIPT = str(ROOT / "gpt/launch/preflight.py")
TOO_LONG = 10.0  # seconds
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
CLEAN = {name: value for name, value in ENVIRONMENT.items() if name not in LAUNCHED and "SOCKET_IFNAME" not in name}


class Run:
    """A preflight that has been started, alone or on a machine."""

    def __init__(self, *flags, machine=None, environment=None, **how):
        words = [sys.executable, SCRIPT, *map(str, flags)]
        how |= {"env": CLEAN | (environment or {}), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.began = time.monotonic()
        self.job = machine.start(*words, **how) if machine else subprocess.Popen(words, **how)

    def end(self, code: int, within: float = TOO_LONG) -> "Run":
        """Hold it to its code and its time, and to what always holds of its output."""
        self.out, self.err = self.job.communicate(timeout=60)
        self.seconds = time.monotonic() - self.began
        print(f"{self.seconds:.1f} s: {self.err.strip()}")
        assert self.job.returncode == code, self.out + self.err
        assert self.seconds < within, self.err
        assert "Traceback" not in self.err
        self.errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert bool(self.errors) == (code == 2) and (code == 0 or not self.out)
        return self

    @property
    def error(self) -> str:
        (error,) = self.errors
        return error


def node(rank, *flags, machine=None, nodes=2, master="10.77.0.1", environment=None) -> Run:
    flags = ["--nnodes", nodes, "--node-rank", rank, "--master-addr", master, *flags]
    return Run(*flags, machine=machine, environment=environment)


@pytest.fixture(scope="module")
def pair():
    with machines(2) as found:
        yield found


def serve(machine, code: str, address: str = "10.77.0.1", port: int = 29500) -> subprocess.Popen:
    """A service on `machine`: `code` has each connection as `c`. Listening when this returns."""
    lines = [
        "import socket, threading, time",
        f"listener = socket.create_server(({address!r}, {port}))",
        "print('listening', flush=True)",
        "def attend(c):",
        *[f"    {line}" for line in code.splitlines()],
        "while True: threading.Thread(target=attend, args=(listener.accept()[0],), daemon=True).start()",
    ]
    return _ready(machine.start(sys.executable, "-c", "\n".join(lines), stdout=subprocess.PIPE))


def store(machine, libuv: bool) -> subprocess.Popen:
    """A real torch store on `machine`, as torchrun would have it."""
    code = (
        "import torch.distributed as dist, time\n"
        f"store = dist.TCPStore('10.77.0.1', 29500, None, True, wait_for_workers=False, use_libuv={libuv})\n"
        "print('listening', flush=True)\ntime.sleep(600)"
    )
    return _ready(machine.start(sys.executable, "-c", code, stdout=subprocess.PIPE))


def _ready(service: subprocess.Popen) -> subprocess.Popen:
    assert service.stdout.readline() == "listening\n"
    return service


@contextmanager
def ended(job: subprocess.Popen):
    try:
        yield job
    finally:
        job.kill()
        job.communicate()


# ---- one machine ----


def test_one_machine_needs_loopback_alone_and_no_torch():
    done = Run().end(code=0)
    assert done.out.split() == ["127.0.0.1", "lo0" if sys.platform == "darwin" else "lo", "0"] and not done.err
    code = "import sys, gpt.launch.preflight; print([name for name in ('torch', 'numpy', 'safetensors') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_verbose_says_what_is_in_order(tmp_path):
    said = Run("--verbose", "--out", tmp_path / "run").end(code=0).err
    assert f"host name {socket.gethostname()} " in said and f"--out {tmp_path}/run can be written" in said


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--nnodes", 0], "NNODES is 0"),
        (["--node-rank", 1], "with NNODES=1 it must be from 0 to 0"),
        (["--nnodes", 2, "--master-addr", "10.0.0.1", "--node-rank", 2], "with NNODES=2 it must be from 0 to 1"),
        (["--nnodes", 2, "--master-addr", "10.0.0.1", "--node-rank", -1], "NODE_RANK is -1"),
        (["--master-port", 65536], "MASTER_PORT is 65536"),
        (["--processes", 0], "N is 0"),
        (["--wait", "nan"], "--wait is nan"),
        (["--identity", "x" * 501], "--identity has 501 letters"),
        (["--nnodes", 2], "MASTER_ADDR is not set"),
        (["--nnodes", 2, "--master-addr", "vm-1:29500"], "give the port as MASTER_PORT"),
    ],
)
def test_a_wrong_number_is_one_line_by_the_name_that_a_user_knows(flags, expected):
    assert expected in Run(*flags).end(code=2, within=5).error


def test_every_cause_has_a_line_of_its_own(tmp_path):
    (tmp_path / "file").write_text("")
    done = Run("--node-rank", 3, "--processes", 0, "--out", tmp_path / "file", environment={"TORCHELASTIC_RUN_ID": "x"})
    assert len(done.end(code=2).errors) == 4


# ---- what is found on the machine ----


@pytest.mark.parametrize(
    "found, unset",
    [
        ({"RANK": "0"}, "unset RANK"),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, "unset RANK WORLD_SIZE LOCAL_RANK"),
        ({"MASTER_ADDR": "vm-1", "MASTER_PORT": "1"}, "unset MASTER_ADDR MASTER_PORT"),
    ],
)
def test_what_is_left_over_from_another_launch_is_a_warning_with_the_command_that_removes_it(found, unset):
    (line,) = Run(environment=found).end(code=0).err.splitlines()
    assert line.startswith("warning: ") and line.endswith(unset)


def test_variables_that_would_start_another_launch_than_meant_are_an_error():
    inside = Run(environment={"TORCHELASTIC_RUN_ID": "none", "RANK": "0"}).end(code=2)
    assert "takes itself for a process that torchrun has started" in inside.error
    kubernetes = {"WORLD_SIZE": "4", "RANK": "1", "MASTER_ADDR": "job-0", "MASTER_PORT": "23456"}
    assert "tell of a job on several machines" in Run(environment=kubernetes).end(code=2).error


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path, pair):
    (tmp_path / "file").write_text("")
    assert "file: Not a directory" in Run("--out", tmp_path / "file").end(code=2).error
    assert "Not a directory" in Run("--out", tmp_path / "file/run").end(code=2).error
    pair[0].call("mount", "-t", "tmpfs", "-o", "ro", "none", "/mnt")
    assert "/mnt" in (error := Run("--out", "/mnt/run", machine=pair[0]).end(code=2).error)
    assert "Read-only file system" in error
    pair[0].call("umount", "/mnt")


def test_another_user_s_folder_is_named(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("to become another user needs root")
    folder = Path("/var") if Path("/var").is_dir() else tmp_path
    code = "from gpt.launch.surroundings import wrong_folder; from pathlib import Path; "
    code += f"print(*wrong_folder(Path('{folder}/run'), 3))"
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip("another user cannot read this Python")
    assert "Permission denied" in done.stdout and done.stdout.count("\n") == 1


def test_the_folder_is_left_as_it_was(tmp_path):
    (tmp_path / "there").mkdir()
    Run("--out", tmp_path / "there").end(code=0)
    Run("--out", tmp_path / "new/run").end(code=0)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["there"]


def test_interfaces_are_read_as_the_ip_command_reads_them(pair):
    code = "import json; from gpt.launch.network import interfaces; print(json.dumps(interfaces()))"
    pair[0].call("ip", "addr", "add", "10.78.0.1/16", "dev", "eth0", "label", "eth0:1")
    ours = json.loads(pair[0].call(sys.executable, "-c", code).stdout)
    theirs = json.loads(pair[0].call("ip", "-j", "addr").stdout)
    assert ours == {
        each["ifname"]: [
            "UP" in each["flags"],
            "LOWER_UP" in each["flags"],
            [address["local"] for address in each["addr_info"] if address["family"] == "inet"],
        ]
        for each in theirs
    }
    assert ours["eth0"][2] == ["10.77.0.1", "10.78.0.1"]
    pair[0].call("ip", "addr", "del", "10.78.0.1/16", "dev", "eth0")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("eth7", "there is no interface 'eth7'; take one of bare, eth0, lo, off"),
        ("off", "interface off is down; ip link set off up"),
        ("bare", "interface bare has no IPv4 address"),
        ("eth0,eth7", "there is no interface 'eth7'"),
    ],
)
def test_an_interface_that_gloo_cannot_use_is_named(pair, name, expected):
    for each in ("off", "bare"):
        pair[0].call("ip", "link", "add", each, "type", "bridge", code=None)
    pair[0].call("ip", "link", "set", "bare", "up")
    for flags in ([], ["--nnodes", 2, "--master-addr", "10.77.0.1"]):
        done = Run(*flags, machine=pair[0], environment={"GLOO_SOCKET_IFNAME": name}).end(code=2)
        assert f"GLOO_SOCKET_IFNAME={name}: {expected}" in done.error and "unset GLOO_SOCKET_IFNAME" in done.error
    for each in ("off", "bare"):
        pair[0].call("ip", "link", "del", each)


def test_an_interface_without_a_link_is_named_where_there_are_several_machines(pair):
    pair[0].unplug()
    environment = {"GLOO_SOCKET_IFNAME": "eth0"}
    assert "eth0 is without a link" in node(0, machine=pair[0], environment=environment).end(code=2).error
    assert Run(machine=pair[0], environment=environment).end(code=0).err == ""
    pair[0].plug()


def test_an_interface_for_nccl_may_be_the_beginning_of_a_name_or_an_exclusion(pair):
    for value, line in (
        ("eth", ""),
        ("=eth0", ""),
        ("^docker", ""),
        ("ib", "no interface 'ib'"),
        ("=eth", "no interface '=eth'"),
    ):
        said = Run(machine=pair[0], environment={"NCCL_SOCKET_IFNAME": value}).end(code=0).err
        assert line in said and bool(line) == bool(said)


def test_loopback_as_interface_of_several_machines_is_a_warning(pair):
    done = node(1, "--wait", 0.1, machine=pair[1], environment={"GLOO_SOCKET_IFNAME": "lo"}).end(code=2)
    assert "warning: GLOO_SOCKET_IFNAME=lo reaches no other machine" in done.err


# ---- names ----


def test_a_name_that_does_not_resolve_is_named(pair):
    error = node(1, machine=pair[1], master="no-such-host").end(code=2).error
    assert "MASTER_ADDR no-such-host does not resolve: " in error and "/etc/hosts" in error


def test_a_name_that_resolves_to_ipv6_only_is_named(pair):
    pair[1].write("/etc/hosts", "fd00::1 six\n10.77.0.1 node-1\n10.77.0.2 node-2\n")
    assert "MASTER_ADDR six resolves to IPv6 only (fd00::1)" in node(1, machine=pair[1], master="six").end(code=2).error


@pytest.mark.parametrize("master", ["127.0.0.1", "localhost", "debian"])
def test_a_master_on_loopback_is_named_with_addresses_that_would_do(pair, master):
    pair[0].write("/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 debian\n10.77.0.1 node-1\n10.77.0.2 node-2\n")
    error = node(0, machine=pair[0], master=master).end(code=2).error
    assert f"MASTER_ADDR {master} resolves to 127.0." in error and "10.77.0.1 (eth0)" in error


@pytest.mark.slow
def test_a_name_server_that_does_not_answer_is_named(pair):
    pair[1].write("/etc/resolv.conf", "nameserver 10.77.0.1\n")
    pair[1].write("/etc/nsswitch.conf", "hosts: files dns\n")
    pair[0].cut()
    error = node(1, machine=pair[1], master="far.example").end(code=2).error
    pair[0].mend()
    assert "MASTER_ADDR far.example does not resolve: no name server answered within" in error


def test_an_own_host_name_that_does_not_resolve_does_no_harm(pair):
    pair[1].write("/etc/resolv.conf", "")
    pair[1].call("hostname", "nowhere.invalid")
    first, second = node(0, "--verbose", machine=pair[0]), node(1, "--verbose", machine=pair[1])
    assert second.end(code=0).out == "10.77.0.2 eth0 29500\n" and first.end(code=0).out == "10.77.0.1 eth0 29500\n"
    assert "host name nowhere.invalid does not resolve" in second.err
    pair[1].call("hostname", "node-2")


# ---- the port of node 0 ----


@pytest.mark.slow
def test_a_port_in_use_is_named_with_who_has_it(pair):
    with ended(serve(pair[0], "time.sleep(600)")) as service:
        error = node(0, machine=pair[0]).end(code=2).error
    assert f"MASTER_PORT 29500 is in use on this machine by process {service.pid} (python" in error
    assert "no torch store" in error


def test_a_port_that_another_address_of_node_0_has_is_in_use_too(pair):
    with ended(serve(pair[0], "time.sleep(600)", address="127.0.0.1")) as service:
        assert f"in use on this machine by process {service.pid}" in node(0, machine=pair[0]).end(code=2).error


@pytest.mark.slow
@pytest.mark.parametrize("libuv", [True, False])
def test_a_torch_store_is_known_on_node_0_as_a_run_that_is_alive_and_on_others_as_one_to_join(pair, libuv):
    with ended(store(pair[0], libuv)) as service:
        error = node(0, machine=pair[0]).end(code=2).error
        assert f"by process {service.pid} (python" in error and "a torch store; another run is alive: end it" in error
        joined = node(1, machine=pair[1]).end(code=0)
        assert joined.out == "10.77.0.2 eth0 29500\n" and "is a torch store: joining" in joined.err


def test_a_second_launch_of_node_0_on_its_machine_is_named(pair):
    first = node(0, machine=pair[0])
    _until_listening(pair[0])
    assert "a launch that waits as NODE_RANK=0" in node(0, machine=pair[0]).end(code=2).error
    second = node(1, machine=pair[1])
    assert first.end(code=0) and second.end(code=0)


def test_a_second_node_0_on_another_machine_is_named_on_both(pair):
    first = node(0, machine=pair[0])
    _until_listening(pair[0])
    second = node(0, machine=pair[1]).end(code=2)
    assert second.error == first.end(code=2).error
    assert "node-1 and node-2 were started with NODE_RANK=0" in first.error


def test_a_master_address_of_another_machine_is_named(pair):
    error = node(0, machine=pair[1], master="node-1").end(code=2).error
    assert "MASTER_ADDR node-1 (10.77.0.1) is no address of this machine, which has 10.77.0.2 (eth0)" in error


def test_a_port_that_needs_root_is_named():
    if os.geteuid() != 0:
        pytest.skip("to become another user needs root")
    address = [each for face in interfaces().values() for each in face.addresses if not each.startswith("127.")]
    if not address:
        pytest.skip("this machine has no address but its loopback")
    words = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, SCRIPT]
    words += ["--nnodes", "2", "--master-addr", address[0], "--master-port", "80"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode == 126 or "Permission denied" not in done.stderr:
        pytest.skip("another user cannot read this Python, or needs no root for port 80")
    assert "MASTER_PORT 80 cannot be used: Permission denied; set one above 1023" in done.stderr


def test_the_roll_call_listens_on_the_master_address_alone(pair):
    first = node(0, machine=pair[0])
    assert _until_listening(pair[0]) == ["10.77.0.1:29500"]
    node(1, machine=pair[1]).end(code=0)
    first.end(code=0)


def _until_listening(machine) -> list[str]:
    """The addresses at which `machine` listens, once it does."""
    while not (lines := machine.call("ss", "-Hltn").stdout.splitlines()):
        time.sleep(0.02)
    return [line.split()[3] for line in lines]


# ---- the other machines ----


@pytest.mark.parametrize("late", [0, 1])
def test_the_machines_meet_whichever_comes_first(pair, late):
    early = node(1 - late, "--verbose", machine=pair[1 - late])
    time.sleep(1)
    late_one = node(late, "--verbose", machine=pair[late]).end(code=0)
    early.end(code=0)
    assert late_one.out == f"10.77.0.{late + 1} eth0 29500\n" and "2 of 2 nodes" in early.err


def test_three_nodes_meet_two_of_them_on_one_machine(pair):
    runs = [node(rank, machine=pair[min(rank, 1)], nodes=3) for rank in (2, 1, 0)]
    assert [run.end(code=0).out.split()[0] for run in runs] == ["10.77.0.2", "10.77.0.2", "10.77.0.1"]


@pytest.mark.slow
def test_missing_nodes_are_named_by_number_on_all_that_came(pair):
    runs = [node(rank, "--wait", 4, machine=pair[rank], nodes=5) for rank in (0, 1)]
    for run in runs:
        assert "nodes 2-4 are missing" in run.end(code=2).error
    assert "2 of 5 nodes came within 4 s" in runs[0].error


@pytest.mark.slow
def test_a_node_that_came_and_left_is_named_so(pair):
    first = node(0, "--wait", 4, machine=pair[0], nodes=3)
    second = node(1, "--verbose", machine=pair[1], nodes=3)
    _until_waiting(second)
    second.job.kill()
    second.job.communicate()
    assert "node 1 (node-2) came and left again; node 2 is missing" in first.end(code=2).error


def _until_waiting(run: Run) -> None:
    """Until node 0 has counted it in; it must have been started with --verbose."""
    while "node 0 says wait" not in (line := run.job.stderr.readline()):
        assert line, "it has ended"


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--processes", 4], "node 1 (node-2) was started with N=4, node 0 (node-1) with N=1"),
        (["--identity", "code=2 torch=2.13"], "node 1 (node-2) differs from node 0 (node-1) in code;"),
        (["--identity", "f00"], "node 1 (node-2) differs from node 0 (node-1) in code, versions or flags"),
        (["--nnodes", 3], "node 1 (node-2) was started with NNODES=3, node 0 (node-1) with NNODES=2"),
    ],
)
def test_machines_that_differ_are_told_in_what_both_of_them(pair, flags, expected):
    runs = [
        node(0, "--identity", "code=1 torch=2.13", machine=pair[0]),
        node(1, "--identity", "code=1 torch=2.13", *flags, machine=pair[1]),
    ]
    for run in runs:
        assert any(expected in error for error in run.end(code=2).errors)
    assert runs[0].errors == runs[1].errors


@pytest.mark.slow
def test_with_wait_a_later_machine_is_waited_for_and_that_is_said(pair):
    first = node(1, "--wait", 30, machine=pair[1])
    assert "waiting: 10.77.0.1:29500 refuses the connection" in first.job.stderr.readline()
    second = node(0, machine=pair[0])
    first.end(code=0)
    second.end(code=0)


@pytest.mark.slow
def test_a_machine_that_was_started_anew_is_one_node(pair):
    first = node(0, "--verbose", machine=pair[0], nodes=3)
    for _ in range(2):
        gone = node(1, "--verbose", machine=pair[1], nodes=3)
        _until_waiting(gone)
        gone.job.kill()
        gone.job.communicate()
    rest = [node(rank, machine=pair[1], nodes=3) for rank in (1, 2)]
    for run in (first, *rest):
        run.end(code=0)


@pytest.mark.slow
def test_a_machine_that_refuses_is_named_after_the_wait(pair):
    error = node(1, machine=pair[1]).end(code=2).error
    assert "10.77.0.1:29500 refuses the connection" in error and "start node 0 there with NODE_RANK=0" in error


def test_a_network_without_a_way_there_is_named(pair):
    error = node(1, machine=pair[1], master="10.99.0.1").end(code=2, within=2).error
    assert (
        "MASTER_ADDR 10.99.0.1 cannot be reached from here: Network is unreachable" in error
        and "10.77.0.2 (eth0)" in error
    )


@pytest.mark.slow
def test_a_machine_that_is_not_there_is_named(pair):
    error = node(1, "--wait", 60, machine=pair[1], master="10.77.0.99").end(code=2).error
    assert "10.77.0.99:29500 cannot be reached (No route to host)" in error


@pytest.mark.slow
@pytest.mark.parametrize("cut, mend", [("cut", "mend"), ("unplug", "plug")])
def test_a_silent_machine_is_named(pair, cut, mend):
    getattr(pair[0], cut)()
    error = node(1, "--wait", 60, machine=pair[1]).end(code=2).error
    getattr(pair[0], mend)()
    assert "10.77.0.1:29500 does not answer" in error and "firewall" in error


@pytest.mark.slow
def test_a_blackhole_is_named(pair):
    pair[0].call("ip", "route", "add", "blackhole", "10.77.0.2/32")  # node 0 hears, and its answers are lost
    error = node(1, "--wait", 60, machine=pair[1]).end(code=2).error
    pair[0].call("ip", "route", "del", "blackhole", "10.77.0.2/32")
    assert "10.77.0.1:29500 does not answer" in error


@pytest.mark.slow
def test_a_link_that_is_cut_during_the_roll_call_is_named_on_both_sides(pair):
    first = node(0, "--wait", 5, machine=pair[0], nodes=3)
    second = node(1, "--wait", 60, "--verbose", machine=pair[1], nodes=3)
    _until_waiting(second)
    pair[1].cut()
    cut = time.monotonic()
    assert "node 2 is missing" in first.end(code=2).error
    assert "node 0 at 10.77.0.1 took the call and fell silent" in second.end(code=2, within=60).error
    assert time.monotonic() - cut < TOO_LONG
    pair[1].mend()


@pytest.mark.slow
def test_a_node_that_went_silent_is_named_when_all_the_others_are_there(pair):
    first = node(0, machine=pair[0], nodes=3)
    second = node(1, "--verbose", machine=pair[1], nodes=3)
    _until_waiting(second)
    pair[1].cut()
    cut = time.monotonic()
    third = node(2, machine=pair[0], nodes=3)
    assert "node 1 (node-2) was there and does not answer any more" in first.end(code=2).error
    second.end(code=2, within=20)
    third.end(code=0)
    assert time.monotonic() - cut < TOO_LONG
    pair[1].mend()


@pytest.mark.slow
def test_torchrun_takes_over_the_port_at_once_where_no_host_name_resolves(pair, tmp_path):
    (tmp_path / "add.py").write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "number = torch.tensor(2 ** dist.get_rank())\n"
        "dist.all_reduce(number)\n"
        "print('sum', int(number))\n"
        "dist.destroy_process_group()\n"
    )
    runs = []
    for rank, machine in enumerate(pair):
        machine.write("/etc/resolv.conf", "")
        machine.call("hostname", f"nowhere-{rank}.invalid")
        launch = (
            f"set -e; found=$({sys.executable} gpt/launch/preflight.py --nnodes 2 --node-rank {rank} --master-addr 10.77.0.1)\n"
            f"set -- $found; export GLOO_SOCKET_IFNAME=$2; exec {sys.executable} -m torch.distributed.run --nnodes 2 "
            f"--nproc-per-node 2 --node-rank {rank} --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:$3 --rdzv-id run "
            f"--rdzv-conf is_host={1 - rank} --local-addr $1 {tmp_path}/add.py"
        )
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": CLEAN}
        runs.append(machine.start("bash", "-c", launch, **pipes))
    said = [run.communicate(timeout=100)[0] for run in runs]
    for rank, machine in enumerate(pair):
        machine.call("hostname", f"node-{rank + 1}")
    assert [run.returncode for run in runs] == [0, 0], said
    assert [text.count("sum 15") for text in said] == [2, 2], said


# ---- strangers ----

STRANGERS = {
    "mute": ("time.sleep(600)", "accepts the connection and says nothing"),
    "banner": ("c.sendall(b'SSH-2.0-OpenSSH_9.6\\r\\n'); time.sleep(600)", "says 'SSH-2.0-OpenSSH_9.6'"),
    "http": ("c.recv(99); c.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n'); c.close()", "'HTTP/1.1 400 Bad Request"),
    "endless": ("while True: c.sendall(b'x' * 65536)", "says 'xxxx"),
    "endless when asked": ("c.recv(99)\nwhile True: c.sendall(bytes(65536))", "answers a torch client with '????"),
    "dribble": ("while True: c.sendall(b'.'); time.sleep(0.5)", "says '..."),
    "terminal": ("c.sendall(b'\\x1b[2J\\x1b]0;owned\\x07\\n'); time.sleep(600)", "says '?[2J?]0;owned?'"),
    "false friend": ("c.sendall(b'gpt-dpo roll call 1\\n'); time.sleep(600)", "took the call and fell silent"),
    "babbler": (
        "c.sendall(b'gpt-dpo roll call 1\\n'); c.recv(9); c.sendall(b'{}\\n')",
        "does not keep to the roll call",
    ),
    "closer": ("c.sendall(b'gpt-dpo roll call 1\\n'); c.close()", "it hung up each time"),
    "echo": ("while True: c.sendall(c.recv(99))", "answers a torch client with"),
}


@pytest.mark.slow
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_at_the_port_is_named(pair, stranger):
    code, expected = STRANGERS[stranger]
    with ended(serve(pair[0], code)):
        error = node(1, "--wait", 60, machine=pair[1]).end(code=2).error
    assert expected in error and error.isprintable()


@pytest.mark.slow
def test_a_service_that_closes_every_connection_is_named_after_the_wait(pair):
    with ended(serve(pair[0], "c.close()")):
        assert "accepts the connection and closes it" in node(1, machine=pair[1]).end(code=2).error


@pytest.mark.slow
def test_what_may_be_the_store_of_a_newer_torch_is_a_doubt(pair, tmp_path):
    (tmp_path / "torch-99.0.dist-info").mkdir()
    (tmp_path / "torch-99.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    with ended(serve(pair[0], "time.sleep(600)")):
        done = node(1, machine=pair[1], environment={"PYTHONPATH": str(tmp_path)}).end(code=0)
    assert "warning: 10.77.0.1:29500 accepts" in done.err and "may be the store of a torch newer" in done.err


def test_a_crowd_of_strangers_keeps_no_node_out(pair):
    first = node(0, machine=pair[0])
    _until_listening(pair[0])
    crowd = (
        "import socket, time\n"
        "crowd = [socket.create_connection(('10.77.0.1', 29500)) for _ in range(60)]\n"
        "print('listening', flush=True)\ntime.sleep(600)"
    )
    with ended(_ready(pair[1].start(sys.executable, "-c", crowd, stdout=subprocess.PIPE))):
        node(1, machine=pair[1]).end(code=0)
        first.end(code=0)


# ---- in this process: whatever bytes come ----

OWN = Node(0, "here", 2, 1, "code=1")


def _bound() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


def test_a_stranger_who_speaks_as_it_is_thrown_out_ends_nothing():
    notes: list[str] = []
    with Host(bound := _bound(), OWN, notes.append) as host, ExitStack() as stack:
        crowd = []

        def come() -> None:
            crowd.append(stack.enter_context(socket.create_connection(bound.getsockname())))

        while len(host.guests) < OWN.nodes + OTHERS:
            come()
            host.attend(5)
        come()  # one too many
        crowd[0].sendall(b"GET / HTTP/1.1\r\n\r\n")  # both before anyone is attended to
        host.attend(5)
        assert len(host.guests) == OWN.nodes + OTHERS and len(notes) == 1


def test_disagreements_are_told_by_node_and_host():
    other = Node(1, "there", 2, 1, "code=1")
    assert disagreements([OWN, other]) == []
    assert disagreements([OWN, other, other._replace(host="elsewhere")]) == [
        "there and elsewhere were started with NODE_RANK=1; give each machine a number of its own, from 0"
    ]
    assert disagreements([OWN, other._replace(processes=3)]) == [
        "node 1 (there) was started with N=3, node 0 (here) with N=1; give all the same"
    ]


def test_numbers_of_nodes_in_words():
    assert named([2]) == "node 2" and named([5, 1, 2, 3]) == "nodes 1-3, 5" and named([4, 7]) == "nodes 4, 7"


def test_a_node_is_read_as_it_was_written_and_nothing_else_is_a_node():
    assert read_node(OWN.line()) == OWN
    for line in (
        b"[]",
        b"{}",
        b"null",
        b"[" * 4000,
        b"1" * 4000,
        b'{"rank": NaN}',
        OWN.line().replace(b"1,", b"true,"),
    ):
        assert read_node(line) is None
    assert read_node(OWN._replace(host="\x1b[2J" + "x" * 100).line()).host == "?[2J" + "x" * 60
    assert read_node(OWN._replace(rank=10**6).line()) is None


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=6000) | st.text().map(str.encode) | st.just(OWN.line()[:-9]), max_size=3))
def test_whatever_a_stranger_says_it_is_no_node(said):
    """Node 0 is whole after it, and goes on with the node that comes next."""
    bound, met = _bound(), []
    bound.listen()  # before the thread comes to it
    keeper = threading.Thread(
        target=lambda: met.extend(hold(bound, OWN, time.monotonic() + 20, print, lambda line: None))
    )
    keeper.start()
    place = bound.getsockname()
    for words in said:
        with socket.create_connection(place) as stranger:
            try:
                stranger.sendall(words)
            except OSError:  # it has been shown out
                pass
    call_in([place[0]], place[1], OWN._replace(rank=1), time.monotonic() + 20, print, lambda line: None)
    keeper.join()
    assert met == [OWN, OWN._replace(rank=1)]


@settings(max_examples=30)
@given(
    st.binary(max_size=5000)
    | st.just(GREETING).flatmap(lambda first: st.binary(max_size=5000).map(lambda rest: first + rest)),
    st.booleans(),
)
def test_whatever_a_stranger_answers_is_one_line(answer, closes):
    """A stranger that happens to say what a store or node 0 would say is taken for one; these bytes do not."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []

    def attend():
        while True:
            try:
                connection, _ = listener.accept()
                connection.sendall(answer)
            except OSError:
                return
            kept.append(connection)
            if closes:
                connection.close()

    threading.Thread(target=attend, daemon=True).start()
    lines = []
    with pytest.raises(Refused) as refused:
        call_in(
            [*listener.getsockname()[:1]],
            listener.getsockname()[1],
            OWN,
            time.monotonic() + 0.2,
            lines.append,
            lines.append,
        )
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    (line,) = refused.value.lines
    assert line.isprintable() and len(line) < 600
    for connection in kept:
        connection.close()
