"""gpt/memory.py: what is asked of the C library, in processes of their own, since it holds to the end of one."""

import os
import sys

import pytest

from gpt.memory import keep_freed_memory
from tests.processes import ROOT, call

SCRIPT = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import resource, torch
from gpt.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
print(os.environ.get("THP_MEM_ALLOC_ENABLE"))
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)  # 64 MiB, 16,384 pages of 4 KiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")


def pages(how: str, **environment: str) -> tuple[str, int]:
    """The variable that torch reads, and the pages that 20 large tensors, one after another, took from the system."""
    variable, count = call("-c", SCRIPT, how, **environment).stdout.split()
    return variable, int(count)


@LINUX
def test_on_linux_a_large_block_is_given_out_again_without_asking_the_system():
    without, kept = pages("do not", THP_MEM_ALLOC_ENABLE="0"), pages("keep", THP_MEM_ALLOC_ENABLE="0")
    assert without[1] > 20 * 2**24 * 4 / 2**21  # at least a page of 2 MiB each
    if os.confstr("CS_GNU_LIBC_VERSION"):
        assert kept[1] < without[1] / 10


@LINUX
def test_on_linux_the_variable_is_set_unless_the_user_did():
    assert pages("keep")[0] == os.environ.get("THP_MEM_ALLOC_ENABLE", "1")
    assert pages("keep", THP_MEM_ALLOC_ENABLE="0")[0] == "0"


@LINUX
def test_another_c_library_is_left_alone(monkeypatch):
    class Musl:
        def __init__(self, name):
            assert name is None

    monkeypatch.setattr("ctypes.CDLL", Musl)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    keep_freed_memory()
    assert os.environ.pop("THP_MEM_ALLOC_ENABLE") == "1"


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_on_other_systems_nothing_is_done(monkeypatch, platform):
    def refuse(name):
        raise AssertionError("no library is opened")

    monkeypatch.setattr("ctypes.CDLL", refuse)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    keep_freed_memory()
    assert "THP_MEM_ALLOC_ENABLE" not in os.environ
