"""A score of one's own: a function in a file of Python, named on the command line.

    def short(prompt: str, answer: str) -> float:           # rhymes.py
        return -len(answer)

    python data/build.py onpolicy ... --score "rhymes.py:short + 5*rules:correct"

The prompt is what was asked, without a template around it. More is better; NaN says that it is not known. The file is run as
a program of the user's is: nobody but the user names it, no file of pairs and no run folder does (dpo/online.py sees to
that).
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING

from data.failures import Failures
from data.pairs import Pair
from data.questions import request_in
from gpt.answers import Answer
from gpt.command import UserError
from gpt.untrusted import printing

if TYPE_CHECKING:
    from data.scores import Score

OWN = re.compile(r"(.+\.py):(.*)", re.DOTALL)  # how a score of one's own is named


def own_score(name: str) -> "Score":
    """The score that "FILE.py:FUNCTION" names. Raises UserError where there is none, and later where it raises, with the row."""
    function = _function(name)

    def score(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]], failures: Failures) -> list[list[float]]:
        return [[_number(function, pair, given, name) for given in some] for pair, some in zip(pairs, answers)]

    return score


def _function(name: str) -> Callable[[str, str], float]:
    path, _, wanted = name.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"--score {name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"own_score_{Path(path).stem}", path)
    assert spec and spec.loader  # as every file has whose name ends so
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"--score {name}: the file cannot be run: {_said(error, path)}") from error
    found = vars(module).get(wanted)
    if not callable(found):
        own = [one for one, value in vars(module).items() if getattr(value, "__module__", "") == spec.name]
        there = ", ".join(one for one in own if callable(vars(module)[one]))
        raise UserError(f"--score {name}: {path} has no function {wanted!r}; it has {there or 'none'}")
    return found


def _number(function: Callable[[str, str], float], pair: Pair, given: Answer, name: str) -> float:
    try:
        found = function(request_in(pair.prompt), given.text)
        if not isinstance(found, str):  # float("5") is a number, and yet a mistake
            return float(found)
        error = TypeError(f"it returned the text {found!r}, not a number")
    except Exception as raised:
        error = raised
    raise UserError(
        f"row {pair.row}: --score {name}: {_said(error, name.rpartition(':')[0])}; it is given a prompt and an answer, both "
        "text, and returns a number"
    ) from error


def _said(error: Exception, path: str) -> str:
    """'ZeroDivisionError: division by zero (line 7)', the line being of that file."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if Path(frame.filename) == Path(path).absolute()]
    where = f" (line {lines[-1]})" if lines else ""
    return printing(f"{type(error).__name__}: {error}", 200) + where
