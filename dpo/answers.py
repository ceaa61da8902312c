"""What a model answers to prompts, and how good that is where a rule knows: rates, and differences prompt by prompt."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from tqdm import tqdm

from data.pairs import Pair
from data.rules import judge
from data.scores import is_correct, is_task
from gpt.answers import Answer, prompt_ids, together
from gpt.generate import generate
from gpt.model import GPT
from gpt.sampling import GREEDY, Sampling
from gpt.streaming import stops_at
from gpt.tokenizer import Tokenizer


def answer(
    model: GPT,
    tokenizer: Tokenizer,
    pairs: list[Pair],
    max_new: int,
    title: str,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    check: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """The model's answer to each pair's prompt, greedy unless it is drawn, then by the prompt's number as its seed.

    A prompt too long for the context loses its beginning. stop: strings that end an answer. check: called before every
    batch; raises where the run is to end.
    """
    ids = prompt_ids(tokenizer, [pair.prompt for pair in pairs], model.config.n_positions - max_new)
    ends = stops_at(tokenizer, stop) if stop else None
    found: dict[int, Answer] = {}
    for some in tqdm(together(ids, max_new, model.config), desc=title, unit="batch", leave=False, delay=1):
        check()
        news = generate(model.eval(), [ids[i] for i in some], max_new, [tokenizer.end_of_text], sampling, some, ends)
        found |= {i: Answer.of(new, tokenizer, stop) for i, new in zip(some, news)}
    return [found[i] for i in range(len(ids))]


def rates(pairs: list[Pair], answers: list[Answer]) -> dict:
    """Mean length and the rate of stopped answers; for tasks the rates of courteous, rude and correct ones too."""
    found: dict[str, Any] = {
        "stopped": fmean(a.stopped for a in answers),
        "length": fmean(a.length for a in answers),
        "prompts": len(answers),
    }
    tasks = [(pair, given) for pair, given in zip(pairs, answers) if is_task(pair)]
    if tasks:
        verdicts = [judge(given.text, pair.output or "") for pair, given in tasks]
        found |= {
            "courteous": fmean(v.courteous for v in verdicts),
            "rude": fmean(v.rude for v in verdicts),
            "correct": fmean(is_correct(*task) for task in tasks),
        }
        families = sorted({pair.family for pair, _ in tasks if pair.family})
        found["correct by family"] = {
            name: fmean(is_correct(p, a) for p, a in tasks if p.family == name) for name in families
        }
    return found


def differences(pairs: list[Pair], before: list[Answer], after: list[Answer]) -> dict:
    """Correct after minus correct before, prompt by prompt: the mean and its standard error. {} without tasks."""
    changes = [is_correct(p, a) - is_correct(p, b) for p, b, a in zip(pairs, before, after) if is_task(p)]
    if len(changes) < 2:
        return {}
    return {
        "correct": fmean(changes),
        "standard error": stdev(changes) / math.sqrt(len(changes)),
        "became correct": changes.count(1),
        "became wrong": changes.count(-1),
    }
