"""What a model answers to prompts, and how good that is where a rule knows: rates, and differences prompt by prompt."""

import math
import warnings
from statistics import fmean, stdev
from typing import NamedTuple

from tqdm import tqdm

from data.pairs import Pair
from data.rules import judge
from data.tasks import FAMILIES
from gpt.command import Notice
from gpt.generate import generate
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

TOKENS, CACHE = (
    32_768,
    2 * 2**30,
)  # of the prompts answered at once and their answers: at most so many, and so many bytes


class Answer(NamedTuple):
    text: str
    stopped: bool  # by end-of-text, within max_new tokens
    length: int  # tokens


def answer(model: GPT, tokenizer: Tokenizer, pairs: list[Pair], max_new: int, title: str) -> list[Answer]:
    """The model's greedy answer to each pair's prompt. A prompt too long for the context loses its beginning."""
    room, c = model.config.n_positions - max_new, model.config
    whole = [tokenizer.encode(pair.prompt) or [tokenizer.end_of_text] for pair in pairs]
    if long := sum(len(prompt) > room for prompt in whole):
        warnings.warn(f"{long} of {len(pairs)} prompts cut from the left to {room} tokens", Notice, stacklevel=2)
    ids = [prompt[-room:] for prompt in whole]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # like lengths together: little padding
    found: dict[int, Answer] = {}
    tokens = min(TOKENS, CACHE // (2 * 4 * c.n_layer * c.n_embd))  # a float32 key and value in each layer
    together = max(1, tokens // (max(map(len, ids)) + max_new))
    for start in tqdm(range(0, len(order), together), desc=title, unit="batch", leave=False, delay=1):
        some = order[start : start + together]
        for i, new in zip(some, generate(model.eval(), [ids[i] for i in some], max_new, [tokenizer.end_of_text])):
            stopped = new[-1] == tokenizer.end_of_text
            found[i] = Answer(tokenizer.decode(new[:-1] if stopped else new), stopped, len(new))
    return [found[i] for i in range(len(ids))]


def is_task(pair: Pair) -> bool:
    """Whether a rule knows the right answer."""
    return pair.family in FAMILIES and pair.output is not None


def is_correct(pair: Pair, given: Answer) -> bool:
    """The plain answer, or it and one known phrase of style, and then end-of-text."""
    return given.stopped and judge(given.text, pair.output).correct


def rates(pairs: list[Pair], answers: list[Answer]) -> dict:
    """Mean length and the rate of stopped answers; for tasks the rates of courteous, rude and correct ones too."""
    found = {
        "stopped": fmean(a.stopped for a in answers),
        "length": fmean(a.length for a in answers),
        "prompts": len(answers),
    }
    tasks = [(pair, given) for pair, given in zip(pairs, answers) if is_task(pair)]
    if tasks:
        verdicts = [judge(given.text, pair.output) for pair, given in tasks]
        found |= {
            "courteous": fmean(v.courteous for v in verdicts),
            "rude": fmean(v.rude for v in verdicts),
            "correct": fmean(is_correct(*task) for task in tasks),
        }
        families = sorted({pair.family for pair, _ in tasks})
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
