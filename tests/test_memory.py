"""gpt/memory.py: what is asked of the C library, in processes of their own, since it holds to the end of one; pinned memory."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from gpt.memory import keep_freed_memory, sent
from tests.processes import ENVIRONMENT, ROOT, call, command

SCRIPT = f"""
import ctypes, os, sys
sys.path.insert(0, {str(ROOT)!r})
from gpt.memory import keep_freed_memory

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        function = super().__getattr__(name)

        def called(*arguments):
            answer = function(*arguments)
            print(name, *arguments, answer)
            return answer

        return called

ctypes.CDLL = Library
keep_freed_memory()
keep_freed_memory()
print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"])
import torch
print(float(torch.ones(2**20).sum()))
"""

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is Linux's")


@LINUX
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_glibc_takes_both_settings_and_torch_computes_after_them():
    found = call("-c", SCRIPT, ONEDNN_PRIMITIVE_CACHE_CAPACITY="7").stdout.splitlines()
    # of malloc.h: M_MMAP_THRESHOLD is -3, M_TRIM_THRESHOLD is -1; 1 says that it was taken
    new = tuple(map(int, platform.libc_ver()[1].split(".")[:2])) >= (2, 35)
    taken = ["-3", str(2**30 if new else 2**25), "1"], ["-1", str(2**31 - 1), "1"]
    assert [words[1:] for words in map(str.split, found[:-2]) if words[-1] == "1"] == [*taken, *taken]
    assert found[-2:] == ["7", str(float(2**20))]  # and the variable that the user set stays


@LINUX
@pytest.mark.parametrize(
    "largest, asked",
    [
        (2**40, [(-3, 2**30), (-1, 2**31 - 1)]),  # glibc 2.35 and later
        (2**25, [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]),  # before
        (2**19, [(-3, 2**30), (-3, 2**25)]),  # before, of 32 bits
    ],
)
def test_a_glibc_that_takes_less_is_asked_for_less_and_one_that_takes_nothing_left_to_itself(
    monkeypatch, largest, asked
):
    found = []

    class Library:
        def __init__(self, name):
            pass

        def mallopt(self, setting, value):
            found.append((setting, value))
            return int(setting != -3 or value <= largest)

    monkeypatch.setattr("ctypes.CDLL", Library)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    keep_freed_memory()
    assert found == asked


@LINUX
def test_on_linux_the_variable_that_onednn_reads_is_set_unless_the_user_did():
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    done = subprocess.run(command("-c", SCRIPT), env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2] == "128"


@LINUX
def test_another_c_library_is_left_alone(monkeypatch):
    class Musl:
        def __init__(self, name):
            assert name is None

    monkeypatch.setattr("ctypes.CDLL", Musl)
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    keep_freed_memory()
    assert os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY") == "128"


@pytest.mark.parametrize("system", ["darwin", "win32", "freebsd14"])
def test_on_other_systems_nothing_is_done(monkeypatch, system):
    def refuse(name):
        raise AssertionError("no library is opened")

    monkeypatch.setattr("ctypes.CDLL", refuse)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    keep_freed_memory()
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ


@pytest.mark.parametrize(
    "device, asked", [("cuda", ["pinned", ("cuda", True)]), ("cpu", [("cpu", False)]), ("mps", [("mps", False)])]
)
def test_what_a_gpu_fetches_is_pinned_and_not_waited_for(device, asked):
    found = []

    class OnCpu:  # in place of a tensor: not every machine has these devices
        def pin_memory(self):
            found.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            found.append((str(device), non_blocking))

    sent(OnCpu(), torch.device(device))
    assert found == asked


def test_what_is_sent_arrives():
    there = torch.arange(5)
    assert sent(there, "cpu") is there
    assert sent(there, "meta").device.type == "meta"
    if torch.cuda.is_available():
        assert sent(there, "cuda").tolist() == there.tolist()
