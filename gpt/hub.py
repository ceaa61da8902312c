"""Models by name from the Hugging Face Hub, through huggingface_hub and its cache.

    fetch("gpt2")                the newest, or without a network what the cache has
    fetch("gpt2@REVISION")       pinned: a branch, a tag, or a commit in all its 40 digits

Only what gpt/weights.py reads is fetched, and never a pickle. Of several processes on a machine one fetches while the
others wait; the cache is every tool's own (HF_HOME, HF_HUB_CACHE), so nothing is fetched twice.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt.command import UserError, pip_install
from gpt.untrusted import read_text

FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
)

# The names under which GPT-2 was first published still work; the cache may know either.
_FULL = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
OTHER_NAME = _FULL | {full: name for name, full in _FULL.items()}


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form NAME or OWNER/NAME, with or without @REVISION."""
    form = r"\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?"
    return re.fullmatch(form, name, re.ASCII) is not None and ".." not in name  # which would lead out of the cache


def fetch(name: str) -> Path:
    """The folder of a Hub model; its last part is the commit.

    Raises UserError where it cannot be had: a name or revision that does not exist, no access, or no network and
    nothing in the cache.
    """
    repository, _, revision = name.partition("@")
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError:
        raise UserError(
            f"{name} is no folder here; to fetch a model of that name from the Hugging Face Hub: "
            f"{pip_install('huggingface_hub')}"
        ) from None
    cache, errors = Path(constants.HF_HUB_CACHE), []
    with _alone(cache / ".locks" / f"{repository.replace('/', '--')}.lock") as waited:
        # A commit never changes, and who has waited finds what another process fetched: then the cache comes first.
        cached = waited or re.fullmatch("[0-9a-f]{40}", revision) is not None
        ways = [(repository, True)] * cached + [(repository, False), (OTHER_NAME.get(repository, repository), True)]
        for source, only_cache in ways:
            try:
                found = snapshot_download(
                    source, revision=revision or None, allow_patterns=list(FILES), local_files_only=only_cache
                )
            except Exception as error:  # of the client, of its HTTP library, of the system: they share no narrower base
                errors.append(error)
                continue
            missing = _missing(Path(found))
            if not missing:
                return Path(found)
            errors.append(_Partial(f"{found} has no {missing}"))
    raise UserError(_why(name, revision, cache, errors[-2], constants.HF_HUB_OFFLINE))


class _Partial(Exception):
    """A folder with a part of the model: of the repository, or because a download was cut off."""


def _missing(folder: Path) -> str:
    """What a model folder needs and this one lacks, "" if nothing."""
    index = folder / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if not (folder / weights[0]).exists() and index.exists():
        weights = sorted(set(re.findall(r"model-\d{5}-of-\d{5}\.safetensors", read_text(index, 2**24))))
    vocabulary = [] if (folder / "tokenizer.json").exists() else ["vocab.json", "merges.txt"]
    return ", ".join(name for name in ["config.json", *weights, *vocabulary] if not (folder / name).exists())


@contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """One process of this machine at a time. Yields whether this one had to wait for another."""
    from filelock import FileLock, Timeout  # huggingface_hub's own dependency, and torch's

    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
            waited = False
        except Timeout:
            held.acquire()
            waited = True
    except OSError:  # a cache that may only be read: nothing will be written there
        yield False
        return
    try:
        yield waited
    finally:
        held.release()


def _why(name: str, revision: str, cache: Path, error: Exception, offline: bool) -> str:
    """What the user can do about it, in one line."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, _Partial):
        return (
            f"{name}: {error}; if a download was cut off, connect once; if the model has only a pytorch_model.bin, that is a "
            "pickle, which can run code, and is not fetched: load it with transformers on a machine that you can do without, "
            "and save_pretrained it anew"
        )
    if "GatedRepoError" in kinds:
        return f"{name} on the Hugging Face Hub is gated: ask for access on its page, then log in with: hf auth login"
    if "RepositoryNotFoundError" in kinds:
        return (
            f"{name} is no folder here, and the Hugging Face Hub has no model of that name that you may see "
            "(for a private one: hf auth login)"
        )
    if "RevisionNotFoundError" in kinds:
        return f"{name}: the model has no branch, tag or commit {revision!r}"
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    status = getattr(answer, "status_code", None)
    if status == 401:
        return f"{name}: the Hugging Face Hub does not accept your token; log in anew: hf auth login"
    if status is None and ("LocalEntryNotFoundError" in kinds or isinstance(error, ConnectionError)):
        away = "may not be asked (HF_HUB_OFFLINE)" if offline else "cannot be reached"
        return (
            f"{name} is no folder here, it is not downloaded, or not completely (the Hub's cache is {cache}), and the Hugging "
            f"Face Hub {away}; connect once, copy a cache there (HF_HUB_CACHE names another), or name a model folder"
        )
    said = " ".join(str(error).split())
    return f"{name} cannot be fetched from the Hugging Face Hub: {f'status {status}, ' if status else ''}{said}"
