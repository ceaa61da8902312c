"""Dialogues as one text: the template of Alpaca and the book, for any number of turns.

    system      You are terse.            You are terse.
    user        Add 2 and 3.
    assistant   5                         ### Instruction:
    user        And 4?                    Add 2 and 3.

                                          ### Response:
                                          5

                                          ### Instruction:
                                          And 4?

                                          ### Response:
                                                              here the answer begins

Without a system message, or with an empty one, the text begins with Alpaca's own sentence; one turn of a user is then an
instruction without input, to the last letter. Turns stand as they are, empty ones too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from data.fields import as_text, kind, missing, text
from gpt.command import UserError
from gpt.untrusted import shown

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ASKED, ANSWERED = "\n\n### Instruction:\n{}", "\n\n### Response:\n"
TEMPLATE = PREAMBLE + ASKED.format("{instruction}{input}") + ANSWERED

# What people call who speaks: OpenAI's names, then ShareGPT's
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
NAMES = (("role", "content"), ("from", "value"))


class Turn(NamedTuple):
    role: str  # system, user or assistant
    content: str


def instruction_prompt(instruction: str, input: str = "") -> str:
    """The Alpaca template (Taori et al. 2023) as the book has it, up to the place where the answer begins."""
    return TEMPLATE.format(instruction=instruction, input=f"\n\n### Input:\n{input}" if input else "")


def instruction_in(prompt: str) -> str | None:
    """What an instruction's prompt has between the ends of the template: instruction and input. None for other prompts."""
    head, tail = TEMPLATE.split("{instruction}{input}")
    return prompt[len(head) : -len(tail)] if prompt.startswith(head) and prompt.endswith(tail) else None


def instruction_of(row: dict, where: str) -> str:
    """The prompt of a row's instruction and input, after the system message and the history that LLaMA-Factory's rows may
    have. Raises UserError."""
    instruction, given = text(row, "instruction", where), text(row, "input", where) or ""
    if instruction is None:
        raise missing(row, ("instruction", "prompt"), where)
    history = row.get("history") or []
    if not history and not row.get("system"):
        return instruction_prompt(instruction, given)
    turns = []
    for place, said in enumerate(history if isinstance(history, list) else [history], 1):
        what = f"field 'history', round {place},"
        if not isinstance(said, list) or len(said) != 2:
            raise UserError(f"{where}: {what} must be a list of an instruction and its answer, found {kind(said)}")
        turns += [Turn(role, as_text(one, what, where)) for role, one in zip(("user", "assistant"), said)]
    turns.append(Turn("user", f"{instruction}\n\n### Input:\n{given}" if given else instruction))
    return dialogue_prompt(turns, text(row, "system", where) or "", "field 'history'", where)


def dialogue_prompt(turns: Sequence[Turn], system: str, what: str, where: str) -> str:
    """The turns before an answer as one prompt, which ends where the answer begins. system: "" for none of its own.

    Turns of user and assistant alternate and the last is a user's; only the first may be a system message. Raises
    UserError, which calls the turns `what`, for any others.
    """
    turns, start = list(turns), 1
    if turns and turns[0].role == "system":
        start = 2
        own = turns.pop(0).content
        if system.strip() and own.strip() and own != system:
            raise UserError(f"{where}: {what} begins with a system message, and field 'system' has another; keep one")
        system = own if own.strip() else system
    for place, (one, other) in enumerate(zip(turns, turns[1:]), start):
        if one.role == other.role:
            raise UserError(
                f"{where}: {what} has two turns of the {one.role} in a row ({place} and {place + 1}); "
                "join them, or leave one out"
            )
    if misplaced := [turn for turn in turns if turn.role == "system"]:
        raise UserError(f"{where}: {what} has a system message {shown(misplaced[0].content)} that is not the first")
    if not turns or turns[-1].role != "user":
        found = "an assistant's" if turns else "none"
        raise UserError(f"{where}: {what} must end in a turn of the user, to which the answer is given; found {found}")
    text = "".join((ASKED.format("") if turn.role == "user" else ANSWERED) + turn.content for turn in turns)
    return (system if system.strip() else PREAMBLE) + text + ANSWERED


def are_messages(value: Any) -> bool:
    """Whether this looks like a message, or a list of them: an object that says who speaks."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and ("role" in first or "from" in first)


def turns_of(value: Any, name: str, where: str) -> list[Turn]:
    """The turns of a list of messages, or of a single one, in the field `name`.

    A message is {"role": ..., "content": ...} or {"from": ..., "value": ...}. Raises UserError, naming the message.
    """
    turns = []
    for place, message in enumerate(value if isinstance(value, list) else [value], 1):
        what = f"field '{name}', message {place}," if isinstance(value, list) else f"field '{name}'"
        if not isinstance(message, dict):
            raise UserError(f"{where}: {what} must be an object with role and content, found {kind(message)}")
        role_name, content_name = NAMES["role" not in message and "from" in message]
        role, content = message.get(role_name), message.get(content_name)
        if not isinstance(role, str) or role not in ROLES:
            found = shown(role) if isinstance(role, str) else kind(role)
            raise UserError(f"{where}: {what} has the {role_name} {found}; known are {', '.join(ROLES)}")
        turns.append(Turn(ROLES[role], as_text(content, f"{what} '{content_name}'", where)))
    return turns
