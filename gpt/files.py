"""Files and folders that are whole or as they were: written beside, and renamed into place when all is on the disk.

    write step-000120.part/*    fsync each file, and the folder: a file that has no name yet in it is lost
    rename to step-000120       fsync the folder above: so that after a power cut it is there whole, or not at all

A folder that is read again by us is sealed: its last file has the SHA-256 of the others. Where several processes would
write, one holds a lock. And where those lie that can be made again: the cache.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from safetensors import SafetensorError

from gpt.command import Notice, UserError
from gpt.untrusted import read_json

MANIFEST = "manifest.json"
# What network file systems say where they cannot, and the system of folders that may be written but not read
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Unwritable(UserError, OSError):
    """What the system refuses to write. The user can mend it; who writes a cache does without, as after any OSError."""

    @classmethod
    def because(cls, path: Path, error: Exception) -> "Unwritable":
        """Of `path`, for the system's reason."""
        reason = getattr(error, "strerror", None) or str(error)
        made = cls(f"{path} cannot be written: {reason}")
        made.strerror = reason  # so that whoever writes `path` as a part of something names that in its place
        return made


@contextmanager
def whole(path: str | Path, binary: bool = False) -> Iterator[IO]:
    """A file to write, UTF-8 text or bytes, which takes the place of `path` at the end of the block and not before.

    Its folder is made where it is missing. Raises Unwritable, naming the path, where the system refuses.
    """
    path = Path(path)
    if path.is_dir():
        raise Unwritable(f"{path} is a folder; name a file")
    part = path.with_name(path.name + ".part")
    with _named(path, part):
        make_folder(path.parent)
        if part.is_symlink():  # what it names is not ours to write
            part.unlink()
        with open(part, "wb") if binary else open(part, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync(path.parent)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` at the end of the block, when every file of it is on the disk.

    What stood at `path` lies beside it as `.old` for the moment between two renames, and then is gone.
    Raises Unwritable, naming the path, where the system refuses.
    """
    path = Path(os.path.abspath(path))  # a link is replaced, not what it names
    part, old = path.with_name(path.name + ".part"), path.with_name(path.name + ".old")
    _remove(part)
    with _named(path, part):
        make_folder(part)
        yield part
        for file in (*part.rglob("*"), part):
            _sync(file)
        if os.path.lexists(path):
            _remove(old)
            os.replace(path, old)
        try:
            os.replace(part, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.replace(old, path)
            raise
        _sync(path.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    """The folder with all that is in it; of a link the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make it, and those above it, so that they are there after a power cut too. Raises Unwritable."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            _sync(path.parent)
    except OSError as error:
        raise Unwritable.because(folder, error) from None


def seal(folder: Path, names: Iterable[str], **about: str) -> None:
    """Write manifest.json, the last file of a folder: the SHA-256 of the files `names`, and what they are `about`."""
    manifest = about | {name: _sha256(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def is_sealed(folder: Path, names: Iterable[str], **about: str) -> bool:
    """Whether these files are byte for byte what `seal` saw, and about the same."""
    with suppress(OSError, UserError):
        manifest = read_json(folder / MANIFEST, 2**20)
        return manifest == about | {name: _sha256(folder / name) for name in names}
    return False


def sha256(file: BinaryIO) -> str:
    """Of the rest of a file, which is read block by block."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return sha256(file)


def cache_folder(name: str) -> Path:
    """The folder `name` of this project's cache: in $GPT_DPO_CACHE, else $XDG_CACHE_HOME/gpt-dpo, else ~/.cache/gpt-dpo.

    It need not exist. What lies there can be made again, and may be removed at any time.
    Raises OSError where none of these is known.
    """
    if own := os.environ.get("GPT_DPO_CACHE"):
        return Path(own) / name
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt-dpo" / name
    except RuntimeError as error:  # a user without a home
        raise OSError(str(error)) from None


@contextmanager
def locked(path: Path, wait: float = math.inf, shared: bool = False) -> Iterator[IO[bytes]]:
    """Hold the file `path`, which is made where it is missing, for this process alone; the others wait.

    The lock ends with the block, or with the process, however that ends; its children do not have it. Where it is
    shared, several may hold it so, and none alone. Raises OSError where there can be no lock, BlockingIOError where
    others hold it for more than `wait` seconds.
    """
    kind, deadline = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic() + wait
    with open(path, "ab", buffering=0, opener=_no_link) as file:
        while True:
            try:
                fcntl.flock(file, kind if wait == math.inf else kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.1)
        yield file


def _no_link(path: str, flags: int) -> int:
    """Opens a file, and refuses a link: what it names is not ours to write."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextmanager
def held(path: Path, wait: float, what: str, shared: bool = False) -> Iterator[None]:
    """Be the only one to write `what`, as long as the block lasts: the file `path` is the lock, and names who holds it.

    shared: only be sure that nobody writes. Raises UserError, naming the holder, where that takes more than `wait` seconds.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(locked(path, wait, shared))
        except BlockingIOError:
            raise UserError(f"{what}: {_holder(path)} is writing there; wait for it or name another folder") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise Unwritable.because(path, error) from None
            if not shared:
                no_locks = f"{what}: this file system has no locks; see to it that no other run writes there"
                warnings.warn(Notice(no_locks), stacklevel=2)
        else:
            if not shared:
                with suppress(OSError):  # the lock holds on a full disk too
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _holder(path: Path) -> str:
    with suppress(OSError):
        found = re.fullmatch(r"process \d+ on [\w.-]+", path.read_text(errors="replace"))
        return found[0] if found else "another process"
    return "another process"


@contextmanager
def _named(path: Path, part: Path) -> Iterator[None]:
    """What the system refuses is an Unwritable that names `path`, and whatever fails leaves no `part` behind."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        if isinstance(error, (OSError, SafetensorError)):
            raise Unwritable.because(path, error) from None
        raise


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in NO_FOLDER_SYNC):
            raise
