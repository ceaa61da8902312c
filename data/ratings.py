"""Rows with several scored answers: the best of them is chosen, the worst is rejected, and the margin is what lies between.

    {"instruction": "Add.", "completions": [{"response": "5", "overall_score": 9}, {"response": "4", "overall_score": 2}]}
    {"prompt": "2 + 3 =", "responses": ["5", "4", "6"], "scores": [9, 2, 2]}

As in UltraFeedback (Cui et al. 2023, arXiv 2310.01377), whose rows are the first, and in what distilabel writes
(`generations`, `ratings`). Of equal scores the answer that comes first counts. An answer without a score is passed over.
"""

from typing import Any

from data.fields import as_number, as_text, kind, missing, text
from data.turns import dialogue_prompt, instruction_of, turns_of
from gpt.command import UserError

ANSWERS, SCORES = ("completions", "responses", "generations"), ("scores", "ratings")  # lists in a row
ANSWER, SCORE = ("response", "text", "content"), ("overall_score", "score", "rating")  # fields of an answer


class NoPair(Exception):
    """A row that is in order, but of which no pair can be made; the message is why."""


def are_ratings(row: dict) -> bool:
    """Whether a row has a list of answers with scores, and beside `chosen` not just any list of that name."""
    for name in ANSWERS:
        answers = row.get(name)
        if isinstance(answers, list):
            scored = bool(answers) and isinstance(answers[0], dict) and any(score in answers[0] for score in SCORE)
            return scored or row.get("chosen") is None or any(isinstance(row.get(score), list) for score in SCORES)
    return False


def ratings(row: dict, where: str) -> tuple[str, str, str, float]:
    """(prompt, best answer, worst answer, difference of their scores).

    Raises UserError for what cannot be read, NoPair where fewer than two answers have a score or all have the same.
    """
    name = next((name for name in ANSWERS if isinstance(row.get(name), list)), None)
    if name is None:
        raise missing(row, ANSWERS, where)
    beside = next((score for score in SCORES if isinstance(row.get(score), list)), None)
    if beside and len(row[beside]) != len(row[name]):
        raise UserError(
            f"{where}: fields '{name}' and '{beside}' must be of one length, found {len(row[name])} and {len(row[beside])}"
        )
    scored = []
    for place, answer in enumerate(row[name]):
        what = f"field '{name}', answer {place + 1},"
        score = row[beside][place] if beside else _of(answer, SCORE, what, where)
        if score is not None:
            said = answer if isinstance(answer, str) else _of(answer, ANSWER, what, where)
            scored.append((as_number(score, f"{what} the score", where), as_text(said, what, where)))
    prompt = _asked(row, where)
    if len(scored) < 2:
        raise NoPair("fewer than two answers with a score")
    (best, chosen), (worst, rejected) = max(scored, key=_score), min(scored, key=_score)
    if best == worst:
        raise NoPair("all answers have one score")
    return prompt, chosen, rejected, best - worst


def _score(scored: tuple[float, str]) -> float:
    return scored[0]


def _of(answer: Any, fields: tuple[str, ...], what: str, where: str) -> Any:
    """The first of these fields that an answer has, which may be null. Raises UserError where it has none."""
    if not isinstance(answer, dict):
        raise UserError(f"{where}: {what} must be an object with {' or '.join(fields)}, found {kind(answer)}")
    name = next((name for name in fields if name in answer), None)
    if name is None:
        raise UserError(f"{where}: {what} has none of the fields {', '.join(fields)}")
    return answer[name]


def _asked(row: dict, where: str) -> str:
    """The prompt: text as it is, messages, or an instruction."""
    if isinstance(row.get("prompt"), (list, dict)):
        turns = turns_of(row["prompt"], "prompt", where)
        return dialogue_prompt(turns, text(row, "system", where) or "", "field 'prompt'", where)
    prompt = text(row, "prompt", where)
    if prompt is not None and row.get("instruction") is not None:
        raise UserError(f"{where}: fields 'prompt' and 'instruction' are both there; leave one out")
    return instruction_of(row, where) if prompt is None else prompt
