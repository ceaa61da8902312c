"""A row with a prompt and answers to it, in any format: what an LLM is asked about, and the row that its choice makes.

    {"messages": [USER], "answers": [ONE, OTHER]}           any list of answers, of which some are to be preferred
    {"instruction": .., "completions": [{"response": ..}]}  a row of ratings, whose scores do not count here
    {"conversations": [HUMAN], "chosen": .., "rejected": ..}    the answers of a pair, in any format of data/formats.py
    {"messages": [USER, ASSISTANT]}                         a dialogue, whose last turn is the answer

The row that is made keeps its fields but for what was said of other answers: scores and margins. Where they would be read as
another pair, or in another format, its prompt comes as text, as from convert.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from data.fields import as_text, missing
from data.formats import BOTH_SCORES, FORMATS, OneFormat
from data.pairs import Pair, pair_of
from data.ratings import ANSWER, ANSWERS, SCORES, NoPair, are_ratings, ratings
from data.turns import ROLES
from gpt.command import UserError
from gpt.untrusted import shown

FEWEST = {"rewrite": 1, "judge": 2, "rank": 2}  # answers of a row, by what is done with them
MOST = {"rewrite": 1, "judge": 2, "rank": 1000}
STALE = frozenset({"margin", *SCORES, *(name for names in BOTH_SCORES for name in names)})  # said of other answers
# Fields that say what the prompt is, or the answers, in some format
READ = frozenset().union(*(format.fields for format in FORMATS.values())) - {"output", "family", "group"}


class Candidates(NamedTuple):
    """A row to be asked about."""

    number: int  # of the row in its file
    row: dict
    prompt: str  # as a model reads it
    answers: list[str]


def candidates(row: Any, number: int, where: str, way: str, names: Iterable[str] = ()) -> Candidates:
    """A parsed row, with the answers that `way` needs, one of FEWEST. names: of the fields that hold them, where they are told.

    Raises UserError, naming row and field, where there are not as many.
    """
    pair = asked_in(row, number, where)
    if absent := [name for name in names if row.get(name) is None]:
        raise missing(row, absent[:1], where)
    fields, found = _told(row, names) if names else _found(row, pair, way, where)
    quoted = ", ".join(map(shown, fields))
    found = [as_text(answer, f"an answer in {quoted}", where) for answer in found]
    fewest, most = FEWEST[way], MOST[way]
    if not fewest <= len(found) <= most:
        needs = f"{fewest}" if fewest == most else f"at least {fewest}"
        raise UserError(
            f"{where}: --way {way} needs {needs} answer{'s' * (most > 1)}, the row has {len(found)}"
            + (f" in {quoted}" if fields else f"; its fields are {shown(list(row))}")
            + "; --answers says which fields hold them"
        )
    return Candidates(number, row, pair.prompt, found)


def asked_in(row: Any, number: int, where: str) -> Pair:
    """The prompt of a row in any format, with answers or without: a pair whose `chosen` is "" where the row has none.

    Raises UserError, naming row and field, where there is no prompt.
    """
    if not isinstance(row, dict):
        return pair_of(row, number, where)
    row = {name: value for name, value in row.items() if value is not None and name not in STALE | {*ANSWERS}}
    apart = [name for name in ("prompt", "instruction", "conversations", "messages") if name in row]
    if not apart and "chosen" not in row:
        raise missing(row, ("instruction", "prompt"), where)
    for name in ("messages", "conversations"):
        if apart == [name] and "chosen" not in row and _is_answered(row[name]):
            rest = {key: value for key, value in row.items() if key != name}
            return pair_of({"chosen": row[name], **rest}, number, where, OneFormat("chat"))
    is_chat = apart == ["messages"] and not isinstance(row.get("chosen"), (list, dict))
    return pair_of({"chosen": "", **row}, number, where, OneFormat("chat" if is_chat else ""))


def asks_alone(row: Any) -> bool:
    """Whether a row asks something and has no answers: a prompt can be read of it, and no pair."""
    try:
        pair_of(row, 0, "")
    except NoPair:
        return False
    except UserError:
        with suppress(UserError):
            return asked_in(row, 0, "")[1:3] == ("", None)
    return False


def row_with(row: dict, prompt: str, new: dict) -> dict | None:
    """A row with the answers (and margin) `new`, and its other fields as far as it is still read as just that pair; None
    where no row would be."""
    kept = {name: value for name, value in row.items() if name not in STALE | {"chosen", "rejected"}}
    if are_ratings(kept | new):
        kept = {name: value for name, value in kept.items() if name not in ANSWERS}
    apart = {name: value for name, value in kept.items() if name not in READ}
    plain = apart | {"prompt": prompt} | new
    for found in (kept | new, plain, plain | {"format": "prompt"}):  # the last where an answer quotes a dialogue
        with suppress(UserError, NoPair):
            pair = pair_of(found, 0, "")
            if pair[:3] == (prompt, new["chosen"], new["rejected"]) and pair.margin == new.get("margin"):
                return found
    return None


def _told(row: dict, names: Iterable[str]) -> tuple[list[str], list]:
    """The fields `names`, and the answers that they hold, each one or a list."""
    return [*names], [one for name in names for one in (row[name] if isinstance(row[name], list) else [row[name]])]


def _found(row: dict, pair: Pair, way: str, where: str) -> tuple[list[str], list]:
    """The fields where answers are looked for, and the answers there. pair: what `asked_in` gave."""
    has = [name for name in ("answers", "output", "answer", "chosen", "rejected") if row.get(name) is not None]
    rated = [name for name in ANSWERS if isinstance(row.get(name), list)][:1] if are_ratings(row) else []
    if way == "rewrite":
        if own := [name for name in has if name in ("output", "answer")][:1]:
            return own, [row[own[0]]]
        if rated and "chosen" not in has:
            with suppress(NoPair, UserError):  # no scores, or none that differ
                return rated, [ratings(row, where)[1]]
            return rated, _texts(row[rated[0]])[:1]
        return (["chosen"], [pair.chosen]) if "chosen" in has else ([], [pair.chosen] if pair.chosen else [])
    if "answers" in has:
        return _told(row, ["answers"])
    if rated and "chosen" not in has:
        return rated, _texts(row[rated[0]])
    both = [name for name in has if name in ("chosen", "rejected")]
    return both, [getattr(pair, name) for name in both]


def _texts(answers: list) -> list:
    """Of answers in a list, or in objects in a list."""
    return [next((a[name] for name in ANSWER if name in a), None) if isinstance(a, dict) else a for a in answers]


def _is_answered(turns: Any) -> bool:
    """Whether these are messages, of which the last is the assistant's."""
    last = turns[-1] if isinstance(turns, list) and turns else None
    return isinstance(last, dict) and ROLES.get(str(last.get("role", last.get("from")))) == "assistant"
