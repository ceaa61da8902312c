"""gpt/files.py: seals, where the cache lies, and a lock that ends with its holder.

Writing whole is held in tests/test_run_folder.py.
"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.command import UserError
from gpt.files import cache_folder, is_sealed, locked, seal, whole, whole_folder
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
