"""What --help shows of a command, which is made of the dataclass of its flags (gpt/command.py).

    usage, the docstring, its examples, then the flags by group: words without a flag, what matters first, the others

What matters first is what must be given and what the examples show: so there is one place to say it.
"""

import shutil
from argparse import RawDescriptionHelpFormatter
from dataclasses import MISSING, Field
from inspect import cleandoc
from textwrap import fill, wrap

WORDS = "arguments"  # the group of words without a flag
FIRST = "what matters first"  # of the few flags that a newcomer needs: those that must be given, or are in an example
OWN = "flags"  # of a command's flags that are in no other
ORDER = {WORDS: 0, FIRST: 1, OWN: 2}  # of the groups; others follow as they come

# What flags of these names take, in every command that says nothing else
BY_NAME = {
    **dict.fromkeys(("init", "policy", "reference", "compare", "model", "judge"), "MODEL"),
    **dict.fromkeys(("pairs", "replies", "text", "out", "page", "picture", "json"), "FILE"),
    **{"address": "URL", "loss": "LOSS", "losses": "LOSSES", "criterion": "NAME", "against": "FILE"},
}
EXAMPLES = ("python ", "torchrun ", "./launch.sh ")  # how a line of a docstring begins that is one


class Formatter(RawDescriptionHelpFormatter):
    """As wide as the terminal, with a little more room for the flags than argparse leaves."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(" ".join(text.split()), width, break_on_hyphens=False)  # --held-out stays in one piece


def description(cls: type) -> str:
    """The docstring: what it says, to the width of the terminal, and its examples, which stay on lines of their own."""
    lines = cleandoc(cls.__doc__ or "").splitlines()
    text = "\n".join(line for line in lines if not line.startswith(EXAMPLES)).split("\n\n")
    width = shutil.get_terminal_size().columns - 2
    said = [fill(" ".join(part.split()), width, break_on_hyphens=False) for part in text if part.strip()]
    shown = ["\n  ".join([f"example{'s' * (len(found) > 1)}:", *found])] if (found := examples(cls)) else []
    return "\n\n".join(said + shown)


def examples(cls: type) -> list[str]:
    """The command lines in the docstring of a command's flags."""
    return [line for line in cleandoc(cls.__doc__ or "").splitlines() if line.startswith(EXAMPLES)]


def title(f: Field, cls: type) -> str:
    """The group that a flag is shown in."""
    in_example = any(f"--{f.name.replace('_', '-')}" in line.split() for line in examples(cls))
    first = "positional" not in f.metadata and (in_example or f.default is MISSING)
    return FIRST if first else f.metadata["group"]


def shown_default(value: object) -> str:
    """A default as one would type it; nothing where there is none, or the help says what it means."""
    if value in (MISSING, None, "", ()) or value is False:
        return ""
    return f" (default: {value:g})" if isinstance(value, float) else f" (default: {value})"


def takes(f: Field) -> str | None:
    """What a flag takes, in a word: by its name, else by its type; None where its choices are shown."""
    if f.metadata["how"]["choices"] and f.type is not list:
        return None
    if f.type is list and f.metadata["how"]["choices"]:
        return "{" + ",".join(f.metadata["how"]["choices"]) + "}"
    return BY_NAME.get(f.name) or ("N" if f.type is int else "X" if f.type is float else "TEXT")
