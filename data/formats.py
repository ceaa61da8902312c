"""One parsed row, in any format people have, to a prompt and its answers.

    instruction  {"instruction": "Add.", "input": "2 + 3", "chosen": "5", "rejected": "6"}     Alpaca's, and the book's
    prompt       {"prompt": "2 + 3 =", "chosen": " 5", "rejected": " 6"}                       taken as it is
    chat         {"prompt": [ASK], "chosen": [ANSWER], "rejected": [ANSWER]}                   ASK is {"role": .., "content": ..}
                 {"chosen": [ASK, ANSWER], "rejected": [ASK, ANSWER]}                          the prompt inside both
    sharegpt     {"conversations": [ASK], "chosen": ANSWER, "rejected": ANSWER}                ASK is {"from": .., "value": ..}
    hh           {"chosen": "\\n\\nHuman: ..\\n\\nAssistant: ..", "rejected": ..}                  whole dialogues, Anthropic's
    ratings      {"instruction": .., "completions": [{"response": .., "overall_score": 7}]}    best against worst: UltraFeedback

What a row means is found from its content, and the first row of a file decides for all: a file in two formats is more
likely a mistake than a wish. A row that could be two of them is refused, unless it says in a field `format` which it is, or
the user does. Scores of both answers, where a row has them, give its margin.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from data.dialogues import are_dialogues, chat, hh, sharegpt
from data.fields import LISTS, kind, meant, missing, needed, number_in, text
from data.ratings import ANSWERS, SCORES, are_ratings, ratings
from data.turns import are_messages, instruction_of
from gpt.command import UserError

BOTH_SCORES = (  # of chosen and rejected: the names in ultrafeedback_binarized, then how other data sets put it
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)


class Answers(NamedTuple):
    prompt: str
    chosen: str
    rejected: str | None
    margin: float | None = None


class Format(NamedTuple):
    sign: str  # what gives it away
    read: Callable[[dict, str], tuple]  # a row, and where it stands, to the values of Answers
    fields: frozenset[str]  # what is looked at


class OneFormat:
    """The one format that the rows of a file have. name: it is known already; else the first row decides."""

    def __init__(self, name: str = ""):
        self.name, self.row, self.is_given = name, 0, bool(name)

    def answers(self, row: Any, number: int, where: str) -> Answers:
        """The prompt and answers of the next row, in order `number`.

        Raises UserError, which says `where`, for a row that cannot be read or is in another format, NoPair for one that
        has no two answers of different scores.
        """
        if not isinstance(row, dict):
            raise UserError(f"{where}: a row is a JSON object, found {kind(row)}")
        if not self.is_given:
            self._hold_to(row, number, where)
        prompt, chosen, rejected, *scored = FORMATS[self.name].read(row, where)
        return Answers(prompt, chosen, rejected, _margin(row, where, *scored))

    def _hold_to(self, row: dict, number: int, where: str) -> None:
        """Raises UserError where the row is not in the format of those before, or could be in two."""
        found = fitting(row)
        if not self.name and len(found) == 1:
            self.name, self.row = found[0], number
        if found == [self.name]:
            return
        if not found:  # then its reader knows best what is wrong with it
            plain = PLAIN[row.get("prompt") is None]
            FORMATS[plain if self.name in ("", *PLAIN) else self.name].read(row, where)
            raise UserError(f"{where} is not {signed(self.name)}, as row {self.row} is; take it out")
        could = " or ".join(map(signed, found))
        beside = f", and row {self.row} is {signed(self.name)}" if self.name else ""
        if not self.name or self.name in found:
            raise UserError(
                f"{where} could be {could}{beside}; say which is meant: "
                f"python data/build.py convert FILE --out NEW --format {self.name or found[0]}"
            )
        raise UserError(
            f"{where} {'could be' if len(found) > 1 else 'is'} {could}{beside}; a file has one format: "
            "put each in a file of its own, and then: python data/build.py convert ONE OTHER --out NEW"
        )


def fitting(row: dict) -> list[str]:
    """The formats that a row could have; where it says itself which of them it is, that one.

    Text of Human: and Assistant: beside a prompt is an answer that quotes a dialogue, unless it has the prompt in it: then
    it may be the whole dialogue, and the prompt its beginning once more.
    """
    chosen, prompt, found = row.get("chosen"), row.get("prompt"), []
    if not row.keys().isdisjoint(LISTS) or not isinstance(chosen, str) or isinstance(prompt, (list, dict)):
        if isinstance(row.get("conversations"), list):
            found.append("sharegpt")
        elif are_messages(chosen) or chosen is not None and are_messages(prompt):
            found.append("chat")
        if are_ratings(row):
            found.append("ratings")
    if isinstance(chosen, str):
        if prompt is not None and not are_messages(prompt):
            found.append("prompt")
        if row.get("instruction") is not None:
            found.append("instruction")
        if are_dialogues(chosen) and _may_repeat(row, chosen):
            found.append("hh")
    return [row["format"]] if row.get("format") in found else found


def _may_repeat(row: dict, dialogue: str) -> bool:
    """Whether what is asked in a row may stand once more in a dialogue, or nothing is asked beside it: no more than an
    empty `prompt`, as some data sets have. An empty instruction or message is asked all the same."""
    asked = [_last_text(row.get(name)) for name in ("prompt", "instruction", "conversations")]
    asked = [text.strip() for text in asked if isinstance(text, str)]
    return not asked or row.get("prompt") == "" or any(text and text in dialogue for text in asked)


def _last_text(value: Any) -> Any:
    """The text of the last message, where this is a list of them."""
    last = value[-1] if isinstance(value, list) and value else value
    return last.get("content", last.get("value")) if isinstance(last, dict) else last


def signed(name: str) -> str:
    """A format as a message names it."""
    return f"'{name}' ({FORMATS[name].sign})"


def _margin(row: dict, where: str, scored: float | None = None) -> float | None:
    """How much better chosen is: as the row says, else the difference of its two scores, else what the reader found.

    Raises UserError for scores that are swapped.
    """
    for names in BOTH_SCORES:
        if names[0] in row:
            chosen, rejected = (number_in(row, name, where) for name in names)
            if chosen is not None and rejected is not None:
                if chosen < rejected:
                    found = f"'{names[0]}' is {chosen:g} and '{names[1]}' {rejected:g}"
                    raise UserError(f"{where}: {found}; are chosen and rejected swapped?")
                scored = chosen - rejected
    if scored is not None and not scored < 1e6:  # what a margin may be
        raise UserError(f"{where}: the scores of the answers are {scored:g} apart; a margin is less than a million")
    said = number_in(row, "margin", where)
    return scored if said is None else said


def _misspelt(row: dict, where: str, *optional: str) -> None:
    """Raises UserError where one of these is absent and another is nearly called so."""
    for name in optional:
        if name not in row and meant(name, row):
            raise missing(row, (name,), where)


def _prompt(row: dict, where: str) -> tuple:
    prompt = text(row, "prompt", where)
    if prompt is None:
        raise missing(row, ("instruction", "prompt"), where)
    chosen, rejected = needed(row, "chosen", where), text(row, "rejected", where)
    if rejected is None:
        _misspelt(row, where, "rejected")
    return prompt, chosen, rejected


def _instruction(row: dict, where: str) -> tuple:
    prompt = instruction_of(row, where)
    chosen, rejected = needed(row, "chosen", where), text(row, "rejected", where)
    _misspelt(row, where, "input", "rejected")
    return prompt, chosen, rejected


def _fields(*names: str) -> frozenset[str]:
    both = (name for names in BOTH_SCORES for name in names)
    return frozenset({*names, *both, "chosen", "rejected", "margin", "output", "family", "group", "format"})


ASKED = ("instruction", "input", "system", "history")
FORMATS = {
    "instruction": Format("'instruction' beside 'chosen'", _instruction, _fields(*ASKED)),
    "prompt": Format("'prompt' and 'chosen' are text", _prompt, _fields("prompt")),
    "chat": Format("messages with role and content", chat, _fields("prompt", "messages", "system")),
    "sharegpt": Format("'conversations' beside 'chosen'", sharegpt, _fields("conversations", "system")),
    "hh": Format("'chosen' is text of Human: and Assistant:", hh, _fields()),
    "ratings": Format("answers with scores", ratings, _fields(*ASKED, "prompt", *ANSWERS, *SCORES)),
}
PLAIN = ("prompt", "instruction")
