"""gpt/files.py: seals, where the cache lies, and a lock that ends with its holder.

Writing whole is held in tests/test_run_folder.py.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt.command import UserError
from gpt.files import cache_folder, held, is_sealed, locked, make_folder, seal, whole, whole_folder
from tests.processes import ENVIRONMENT, ROOT


def test_what_the_system_refuses_is_an_error_of_the_users_and_of_the_system(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full, which is a disk without room")
    (tmp_path / "folder").mkdir()
    for writes in (whole(tmp_path / "file"), whole_folder(tmp_path / "folder"), whole(tmp_path / "folder")):
        with pytest.raises(UserError, match=str(tmp_path)) as caught, writes, open("/dev/full", "w") as disk:
            disk.write("no room")
        assert isinstance(caught.value, OSError) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_error_of_the_data_is_no_error_of_the_system(tmp_path):
    with pytest.raises(UserError, match="row 3") as caught, whole_folder(tmp_path / "folder"):
        raise UserError("row 3")
    assert not isinstance(caught.value, OSError) and not list(tmp_path.iterdir())


def test_a_seal_holds_as_long_as_every_file_and_what_they_are_about_stay_as_they_were(tmp_path):
    for name, text in {"a": "one", "b": "", "unsealed": "any"}.items():
        (tmp_path / name).write_text(text)
    assert not is_sealed(tmp_path, "ab", key="k")
    seal(tmp_path, "ab", key="k")
    (tmp_path / "unsealed").write_text("other")
    assert is_sealed(tmp_path, "ab", key="k")
    assert not is_sealed(tmp_path, "ab", key="l") and not is_sealed(tmp_path, "ab") and not is_sealed(tmp_path, "a")
    for change in ("longer", ""):
        (tmp_path / "b").write_text(change)
        assert is_sealed(tmp_path, "ab", key="k") == (not change)
    (tmp_path / "a").unlink()
    assert not is_sealed(tmp_path, "ab", key="k")


def test_the_cache_lies_where_it_was_asked_for_or_where_caches_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("GPT_DPO_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("pairs") == tmp_path / "own" / "pairs"
    monkeypatch.setenv("GPT_DPO_CACHE", "")
    assert cache_folder("pairs") == tmp_path / "xdg" / "gpt-dpo" / "pairs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("pairs") == tmp_path / "home" / ".cache" / "gpt-dpo" / "pairs"
    assert not list(tmp_path.iterdir())  # asking makes nothing


HOLD = """
import sys
from pathlib import Path
from gpt.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kill", [True, False])
def test_a_lock_is_held_by_one_and_ends_with_its_holder(tmp_path, kill):
    words = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first = subprocess.Popen(words, env=ENVIRONMENT, cwd=ROOT, **pipes)
    assert first.stdout.readline() == "held\n"
    second = subprocess.Popen(words, env=ENVIRONMENT, cwd=ROOT, **pipes)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(1)
    first.send_signal(signal.SIGKILL) if kill else first.stdin.close()
    assert second.communicate("", timeout=60)[0] == "held\n"
    first.wait(60)


def test_a_lock_where_nothing_can_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError), locked(Path(tmp_path / "absent" / "lock")):
        pass


# One writer

HOLDS = """
import subprocess, sys, time
from pathlib import Path
from gpt.files import held
with held(Path(sys.argv[1]), 0, "--out run"):
    child = subprocess.Popen(["sleep", "60"])  # which outlives its parent, and has no part in the lock
    print(child.pid, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(lock: Path, seconds: float) -> tuple[subprocess.Popen, int]:
    """A process that holds `lock` so long, and a child that it leaves behind."""
    words = [sys.executable, "-c", HOLDS, str(lock), str(seconds)]
    process = subprocess.Popen(words, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_who_writes_is_named_to_the_second_writer_and_gone_when_it_is_killed(tmp_path):
    first, child = holder(tmp_path / "lock", 60)
    try:
        for shared in (False, True):
            begun = time.monotonic()
            with pytest.raises(UserError) as caught, held(tmp_path / "lock", 0, "--out run", shared):
                pass
            assert time.monotonic() - begun < 1
            expected = (
                rf"--out run: process {first.pid} on [\w.-]+ is writing there; wait for it or name another folder"
            )
            assert re.fullmatch(expected, str(caught.value))
        first.kill()
        with held(tmp_path / "lock", 5, "--out run"):
            assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        first.wait(60)


def test_a_writer_that_ends_soon_is_waited_for(tmp_path):
    first, child = holder(tmp_path / "lock", 1)
    os.kill(child, signal.SIGKILL)
    with held(tmp_path / "lock", 10, "--out run"):
        pass
    assert first.wait(60) == 0


def test_several_may_look_whether_somebody_writes(tmp_path):
    with held(tmp_path / "lock", 0, "a", shared=True), held(tmp_path / "lock", 0, "b", shared=True):
        with pytest.raises(UserError, match="another process is writing"), held(tmp_path / "lock", 0.3, "c"):
            pass
    assert not (tmp_path / "lock").read_bytes()


def test_an_error_of_the_holder_is_passed_on_and_lets_go(tmp_path):
    for error in (BlockingIOError("mine"), OSError(28, "mine")):
        with pytest.raises(OSError, match="mine") as caught, held(tmp_path / "lock", 0, "a"):
            raise error
        assert caught.value is error


def test_where_there_can_be_no_lock_the_path_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=f"{tmp_path}/absent/lock cannot be written"),
        held(tmp_path / "absent/lock", 0, "a"),
    ):
        pass


# Disks


def test_what_is_written_reaches_the_disk_before_it_has_its_name_and_the_name_before_the_block_ends(tmp_path):
    script = f"""
from pathlib import Path
from gpt.files import whole, whole_folder
with whole_folder("{tmp_path}/new/folder") as part:
    (part / "file").write_text("x")
with whole("{tmp_path}/file") as file:
    file.write("x")
"""
    words = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,mkdir"]
    if not shutil.which("strace") or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("strace shows what the system was asked for")
    done = subprocess.run(
        [*words, sys.executable, "-c", script], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=True
    )
    calls = re.findall(rf'(sync|rename|mkdir)\w*\([^<"]*[<"]{tmp_path}([^>"]*)', done.stderr)
    assert calls == [
        ("mkdir", "/new/folder.part"),  # which fails: there is no folder above
        ("mkdir", "/new"),
        ("mkdir", "/new/folder.part"),
        ("sync", "/new"),
        ("sync", ""),
        ("sync", "/new/folder.part/file"),
        ("sync", "/new/folder.part"),
        ("rename", "/new/folder.part"),
        ("sync", "/new"),
        ("mkdir", ""),  # which is there
        ("sync", "/file.part"),
        ("rename", "/file.part"),
        ("sync", ""),
    ]


@pytest.fixture
def disk(tmp_path):
    """A disk of 256 KiB and 64 names with an old file and an old folder on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("to mount a small disk needs root")
    try:
        with whole(folder / "file") as file:
            file.write("old")
        with whole_folder(folder / "folder") as part:
            (part / "file").write_text("old")
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def stands(disk: Path) -> bool:
    """Whether the old content stands, and nothing else."""
    names = {str(path.relative_to(disk)) for path in disk.rglob("*")}
    return names == {"file", "folder", "folder/file"} and all(
        path.read_text() == "old" for path in (disk / "file", disk / "folder" / "file")
    )


def test_a_disk_that_is_full_in_the_midst_of_writing_leaves_the_old_content_and_is_named(disk):
    for path, writing in ((disk / "file", whole), (disk / "folder", whole_folder)):
        with pytest.raises(UserError) as caught, writing(path) as target:
            with target if writing is whole else open(target / "file", "w") as file:
                for _ in range(100):
                    file.write("x" * 10_000)
        assert str(caught.value) == f"{path} cannot be written: No space left on device"
        assert stands(disk)


def test_a_disk_without_room_for_another_name_is_named(disk):
    with pytest.raises(OSError):
        for number in range(100):
            (disk / "folder" / str(number)).mkdir()
    for path in (disk / "new" / "file", disk / "file"):
        with pytest.raises(UserError, match=f"{path.parent}.* cannot be written: No space left"), whole(path):
            pass
    with pytest.raises(UserError, match=f"{disk}/other cannot be written: No space left"):
        make_folder(disk / "other")
    with pytest.raises(UserError, match=f"{disk}/lock cannot be written: No space left"), held(disk / "lock", 0, "a"):
        pass
    assert (disk / "file").read_text() == "old"


def test_a_disk_that_can_only_be_read_leaves_the_old_content_and_is_named(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for path, writing in ((disk / "file", whole), (disk / "folder", whole_folder), (disk / "new", whole_folder)):
        with pytest.raises(UserError, match=f"{path}.* cannot be written: Read-only file system"), writing(path):
            pass
    with pytest.raises(UserError, match="Read-only file system"), held(disk / "lock", 0, "--out run"):
        pass
    assert stands(disk)


def test_a_disk_that_fails_leaves_the_old_content_and_is_named(tmp_path):
    if not Path("/proc/self/mem").exists():
        pytest.skip("there is no /proc/self/mem, which refuses to be written at 0 as a broken disk does")
    with whole(tmp_path / "file") as file:
        file.write("old")
    with pytest.raises(UserError, match=f"{tmp_path}/file cannot be written: Input/output error"):
        with whole(tmp_path / "file"), open("/proc/self/mem", "wb", buffering=0) as broken:
            broken.write(b"new")
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_part_that_cannot_be_written_gives_its_reason_to_the_whole(tmp_path):
    with pytest.raises(UserError) as caught, whole_folder(tmp_path / "folder") as part:
        (part / "below").write_text("")
        with whole(part / "below" / "file"):
            pass
    assert str(caught.value) == f"{tmp_path}/folder cannot be written: File exists"


def test_what_a_power_cut_left_between_two_renames_is_kept_until_the_new_stands(tmp_path):
    (tmp_path / "folder.old").mkdir()
    (tmp_path / "folder.old" / "file").write_text("old")
    with pytest.raises(KeyError), whole_folder(tmp_path / "folder"):
        raise KeyError
    assert (tmp_path / "folder.old" / "file").read_text() == "old"
    with whole_folder(tmp_path / "folder") as part:
        (part / "file").write_text("new")
        assert (tmp_path / "folder.old" / "file").read_text() == "old"
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["folder", "folder/file"]
