"""Where work is kept that took long, such as replies of an LLM: beside the file that is made of it, in one of its own.

pairs.jsonl     pairs.replies.jsonl     pairs.answers.jsonl
pairs.v1        pairs.v1.replies        pairs.v1.answers
"""

from pathlib import Path

from gpt.command import UserError


def check_out(out: str) -> Path:
    """The file to write. Raises UserError where it is none: nothing could be kept beside it."""
    if out == "-":
        raise UserError("--out - would keep nothing of work that takes long; name a file")
    if not Path(out).name or Path(out).is_dir():
        raise UserError(f"--out {out} is a folder; name a file")
    return Path(out)


def beside(path: Path, what: str) -> Path:
    """The file that keeps `what` of the file `path`, and of no other."""
    ending = ".jsonl" if path.suffix == ".jsonl" else ""
    return path.with_name(f"{path.name.removesuffix(ending)}.{what}{ending}")
