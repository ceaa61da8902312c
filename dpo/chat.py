"""Ask a model, or two side by side: each line is an instruction, put into the template that the pairs have.

    python dpo/chat.py runs/NAME
    python dpo/chat.py runs/NAME --compare data/tiny

Every question stands alone: a model tuned on single instructions has learned to answer one.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.turns import instruction_prompt
from dpo.start import open_model
from gpt.command import UserError, argument, flag, run
from gpt.generate import AnswerFlags, answer_pieces, ready
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

INPUT = " | "  # between an instruction and its input, as in: Write it in the plural. | mouse


@dataclass(frozen=True)
class Flags(AnswerFlags):
    """Ask a model, a line an instruction: "Spell out both numbers. | 6 and 10" (what follows | is the input).

    python dpo/chat.py runs/NAME --compare data/tiny
    """

    model: str = argument("run folder, model folder, random:SIZE or name on the Hugging Face Hub")
    compare: str = flag("", "a second model, which answers too")
    raw: bool = flag(False, "the line is the whole prompt: no template")


class Speaker(NamedTuple):
    name: str
    model: GPT
    tokenizer: Tokenizer


def main(flags: Flags) -> None:
    sampling = flags.sampling
    speakers = []
    for name in filter(None, (flags.model, flags.compare)):
        model, tokenizer, _ = open_model(name)
        speakers.append(Speaker(name, ready(model, flags), tokenizer))
    width = max(len(speaker.name) for speaker in speakers)
    for line in questions():
        instruction, _, given = f"{line} ".partition(INPUT)
        prompt = line if flags.raw else instruction_prompt(instruction.strip(), given.strip())
        for speaker in speakers:
            if flags.compare:
                print(f"{speaker.name:{width}}  ", end="", flush=True)
            ids = speaker.tokenizer.encode(prompt)
            for piece in answer_pieces(speaker.model, speaker.tokenizer, ids, flags, sampling):
                print(piece, end="", flush=True)
            print(flush=True)


def questions() -> Iterator[str]:
    """Lines of standard input that are not blank, asked for where a person types them; Ctrl+D ends them."""
    person = sys.stdin.isatty()
    if person:
        with suppress(ImportError):  # Windows
            import readline  # noqa: F401  gives input() its line editing and history
        print("Type an instruction, and after | its input if it has one. Ctrl+D ends.", file=sys.stderr)
    while True:
        try:
            line = input("> " if person else "")
        except EOFError:
            if person:
                print()
            return
        except UnicodeDecodeError:
            raise UserError("standard input is no UTF-8 text") from None
        if line.strip():
            yield line


if __name__ == "__main__":
    run(main, Flags)
