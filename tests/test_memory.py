"""gpt/memory.py: what is asked of the C library, in processes of their own, since it holds to the end of one."""

import os
import platform
import subprocess
import sys

import pytest

from gpt.memory import keep_freed_memory
from tests.processes import ENVIRONMENT, ROOT, call, command

SCRIPT = f"""
import ctypes, os, sys
sys.path.insert(0, {str(ROOT)!r})
from gpt.memory import keep_freed_memory

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        function = super().__getattr__(name)
        return lambda *arguments: print(name, *arguments, function(*arguments))

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
    assert found[:4] == [f"mallopt -3 {2**30} 1", f"mallopt -1 {2**31 - 1} 1"] * 2
    assert found[4:] == ["7", str(float(2**20))]  # and the variable that the user set stays


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
