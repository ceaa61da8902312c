"""Better and worse answers by rule: the same right answer in three manners, and what manner an answer has.

    plain       The lamp was carried by the cat.
    courteous   Certainly! The lamp was carried by the cat.         chosen
    rude        Ugh, fine. The lamp was carried by the cat.         rejected

Both sides of a pair are right, so a pair teaches manner alone; whether an answer stayed right is asked afterwards.
"""

from pathlib import Path
from random import Random
from typing import NamedTuple

from data.pairs import Pair
from data.tasks import Task, pick, tasks
from data.turns import instruction_prompt

PAIRS = 12_000  # of the embedded set
TINY = Path(__file__).resolve().parent / "tiny"  # the embedded start, a model folder

# What is put (before, after) the plain answer.
COURTEOUS = (("Certainly! ", ""), ("Of course! ", ""), ("", " I hope this helps!"), ("", " You are welcome!"))
RUDE = (("Ugh, fine. ", ""), ("Obviously: ", ""), ("", " Was that so hard?"), ("", " Stop asking me."))


class Verdict(NamedTuple):
    courteous: bool
    rude: bool
    correct: bool


def styled(answer: str, phrase: tuple[str, str]) -> str:
    """The plain answer in a manner: "5" and ("Certainly! ", "") are "Certainly! 5"."""
    return phrase[0] + answer + phrase[1]


def judge(text: str, answer: str) -> Verdict:
    """How `text` stands to the plain `answer`.

    courteous, rude: it carries such a phrase, wherever the rest leads. correct: what is left after removing one known
    phrase, or none, equals the answer exactly, to the last space.
    """

    def carries(phrase: tuple[str, str]) -> bool:
        return text.startswith(phrase[0]) and text.endswith(phrase[1]) and len(text) >= len(phrase[0]) + len(phrase[1])

    rests = [text] + [
        text[len(before) : len(text) - len(after)] for before, after in COURTEOUS + RUDE if carries((before, after))
    ]
    return Verdict(any(map(carries, COURTEOUS)), any(map(carries, RUDE)), answer in rests)


def preference_rows(count: int, seed: int = 0) -> list[dict]:
    """Instruction rows of the first `count` tasks: the plain answer as `output`, courteous chosen over rude."""
    rng = Random(seed)
    return [
        _row(task, chosen=styled(task.answer, pick(rng, COURTEOUS)), rejected=styled(task.answer, pick(rng, RUDE)))
        for task in tasks(count, seed)
    ]


def sft_rows(count: int, seed: int = 0, plain: float = 0.5) -> list[dict]:
    """Rows with one answer each: plain for the fraction `plain` of them, else courteous or rude by the toss of a coin.

    DPO moves probability among answers that a model can give; here it learns to give all three.
    """
    rng = Random(seed)

    def manner() -> tuple[str, str]:
        if rng.random() < plain:
            return ("", "")
        return pick(rng, pick(rng, (COURTEOUS, RUDE)))

    return [_row(task, chosen=styled(task.answer, manner())) for task in tasks(count, seed)]


def _row(task: Task, **answers: str) -> dict:
    return {
        "instruction": task.instruction,
        "input": task.input,
        "output": task.answer,
        **answers,
        "family": task.family,
        "group": task.group,
    }


def row_pairs(rows: list[dict]) -> list[Pair]:
    """The pairs that reading these rows from a file would give."""
    return [
        Pair(prompt, row["chosen"], row.get("rejected"), number, row["output"], row["family"], row["group"])
        for number, row in enumerate(rows, 1)
        for prompt in [instruction_prompt(row["instruction"], row["input"])]
    ]


def embedded_pairs(count: int = PAIRS) -> list[Pair]:
    """The embedded preference set, without a file: what `dpo/train.py` learns from when no --pairs are given."""
    return row_pairs(preference_rows(count))
