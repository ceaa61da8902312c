"""Files and folders that are whole or as they were: written beside, and renamed into place when all is written.

A folder that is read again by us is sealed: its last file has the SHA-256 of the others. And where those lie that can
be made again: the cache.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from safetensors import SafetensorError

from gpt.command import UserError

MANIFEST = "manifest.json"


class Unwritable(UserError, OSError):
    """What the system refuses to write. The user can mend it; who writes a cache does without, as after any OSError."""


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
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") if binary else open(part, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` at the end of the block, when every file of it is on the disk.

    What stood at `path` lies beside it as `.old` for the moment between two renames, and then is gone.
    Raises Unwritable, naming the path, where the system refuses.
    """
    path = Path(path).resolve()
    part, old = path.with_name(path.name + ".part"), path.with_name(path.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    with _named(path, part):
        part.mkdir(parents=True)
        yield part
        for file in part.iterdir():
            _sync(file)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def seal(folder: Path, names: Iterable[str], **about: str) -> None:
    """Write manifest.json, the last file of a folder: the SHA-256 of the files `names`, and what they are `about`."""
    manifest = about | {name: _sha256(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def is_sealed(folder: Path, names: Iterable[str], **about: str) -> bool:
    """Whether these files are byte for byte what `seal` saw, and about the same."""
    with suppress(OSError, ValueError):
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
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
def locked(path: Path) -> Iterator[None]:
    """Hold the file `path`, which is made where it is missing, for this process alone; the others wait.

    The lock ends with the block, or with the process, however that ends. Raises OSError where there can be none.
    """
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _named(path: Path, part: Path) -> Iterator[None]:
    """What the system refuses is an Unwritable that names `path`, and whatever fails leaves no `part` behind."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        if isinstance(error, (OSError, SafetensorError)):
            raise Unwritable(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
