"""Rows in which an answer is the last turn of a dialogue: lists of messages, and the one long text of Anthropic's HH.

    chosen    [USER, ASSISTANT, USER, ASSISTANT]       what comes before the last message is the prompt,
    rejected  [USER, ASSISTANT, USER, ASSISTANT]       and has to be the same in both

    chosen    "\\n\\nHuman: Hi\\n\\nAssistant: Hello!"     the prompt ends with the last "Assistant:" up to which both are the
    rejected  "\\n\\nHuman: Hi\\n\\nAssistant: What?"      same; the space after it begins the answer, as GPT-2's words do

An answer is one message of an assistant. Messages get the template of data/turns.py; of HH's text no letter changes.
"""

import re

from data.fields import as_text, missing, needed, text
from data.turns import Turn, dialogue_prompt, turns_of
from gpt.command import UserError

HUMAN, ASSISTANT = ("\n\nHuman:", "\r\n\r\nHuman:", "Human:"), re.compile(r"\r?\n\r?\nAssistant:")


def chat(row: dict, where: str, apart: tuple[str, ...] = ("prompt", "messages")) -> tuple[str, str, str | None]:
    """(prompt, chosen, rejected). An answer is a message, alone or after all that came before it; `apart` are the fields
    where that may stand. Raises UserError.

    A prompt that is text is one turn of a user; beside whole dialogues it only repeats a turn of theirs.
    """
    answers = {name: _spoken(row, name, where) for name in ("chosen", "rejected") if row.get(name) is not None}
    if "chosen" not in answers:
        raise missing(row, ("chosen",), where)
    before = {f"'{name}'": turns[:-1] for name, turns in answers.items() if len(turns) > 1}
    outside = next((name for name in apart if isinstance(row.get(name), (list, dict))), None)
    if outside and not (before and outside == "messages"):  # there `messages` is what was chosen, once more
        before = {f"'{outside}'": turns_of(row[outside], outside, where)} | before
    said = text(row, "prompt", where) if "prompt" in apart and outside != "prompt" else None
    if not before and said is None:
        raise missing(row, apart, where)
    before = before or {"'prompt'": [Turn("user", said or "")]}
    (first, turns), *others = before.items()
    for name, other in others:
        if other != turns:
            raise UserError(
                f"{where}: the turns before the answer are not the same in {first} and {name}; an answer is one message, after "
                "all that it answers"
            )
    if said is not None and said.strip() not in [turn.content.strip() for turn in turns]:
        raise UserError(
            f"{where}: field 'prompt' is none of the turns before the answer in {first}; leave out what is wrong"
        )
    prompt = dialogue_prompt(turns, text(row, "system", where) or "", f"field {first}", where)
    return prompt, answers["chosen"][-1].content, answers["rejected"][-1].content if "rejected" in answers else None


def sharegpt(row: dict, where: str) -> tuple[str, str, str | None]:
    """(prompt, chosen, rejected), the prompt in `conversations`. Raises UserError."""
    if not isinstance(row.get("conversations"), list):
        raise missing(row, ("conversations",), where)
    return chat(row, where, ("conversations",))


def _spoken(row: dict, name: str, where: str) -> list[Turn]:
    """The messages of an answer, of which the last is the assistant's. A text is one message."""
    value = row[name]
    if isinstance(value, str):
        return [Turn("assistant", as_text(value, f"field '{name}'", where))]
    turns = turns_of(value, name, where)
    if not turns or turns[-1].role != "assistant":
        found = f"one of the {turns[-1].role}" if turns else "no message"
        raise UserError(f"{where}: field '{name}' must end in a message of the assistant, found {found}")
    return turns


def are_dialogues(chosen: str) -> bool:
    """Whether a text is a dialogue of Human: and Assistant:, after a System: or not."""
    begins = chosen.startswith(HUMAN) or (chosen.lstrip().startswith("System:") and HUMAN[0] in chosen)
    return begins and ASSISTANT.search(chosen) is not None


def hh(row: dict, where: str) -> tuple[str, str, str | None]:
    """(prompt, chosen, rejected), where prompt + chosen is the field `chosen` to the last byte. Raises UserError.

    Where the two part before their last turns, so that more turns follow, these belong to the answers.
    """
    chosen, rejected = needed(row, "chosen", where), text(row, "rejected", where)
    ends = [mark.end() for mark in ASSISTANT.finditer(chosen)]
    if not ends:
        raise UserError(
            f"{where}: field 'chosen' has no turn of the assistant: no empty line with 'Assistant:' after it"
        )
    for end in reversed(ends):
        if rejected is None or rejected.startswith(chosen[:end]):
            return chosen[:end], chosen[end:], None if rejected is None else rejected[end:]
    raise UserError(f"{where}: 'chosen' and 'rejected' part before the assistant's first turn: they answer two prompts")
