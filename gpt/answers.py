"""Answers to any number of prompts: what an answer is, and which prompts are answered together.

for some in together(prompts, max_new, model.config):                   numbers of prompts, of like length
    news = generate(model, [prompts[i] for i in some], max_new, ...)    found |= {i: Answer.of(new, tokenizer), ...}
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from gpt.command import Notice
from gpt.model import GPTConfig
from gpt.streaming import text_pieces
from gpt.tokenizer import Tokenizer

# Of the prompts answered at once and their answers: at most so many tokens, and so many bytes of keys and values
TOKENS, CACHE = 32_768, 2 * 2**30


class Answer(NamedTuple):
    text: str
    stopped: bool  # by end-of-text, or by a string that ends answers, within max_new tokens
    length: int  # tokens, end-of-text among them

    @classmethod
    def of(cls, new: list[int], tokenizer: Tokenizer, stop: Sequence[str] = ()) -> "Answer":
        """What `generate` gave as text, up to the first of the strings `stop`."""
        ended = new[-1] == tokenizer.end_of_text
        ids = new[:-1] if ended else new
        text = "".join(text_pieces(ids, tokenizer, stop))
        return cls(text, ended or bool(stop) and len(text) < len(tokenizer.decode(ids)), len(new))


def prompt_ids(tokenizer: Tokenizer, prompts: Sequence[str], room: int) -> list[list[int]]:
    """The ids of each prompt, an empty one being one end-of-text. One of more than `room` loses its beginning, and a warning
    counts these."""
    ids = [tokenizer.encode(prompt) or [tokenizer.end_of_text] for prompt in prompts]
    if long := sum(len(one) > room for one in ids):
        warnings.warn(f"{long} of {len(ids)} prompts cut from the left to {room} tokens", Notice, stacklevel=3)
    return [one[-room:] for one in ids]


def together(prompts: Sequence[list[int]], max_new: int, config: GPTConfig, each: int = 1) -> list[list[int]]:
    """The numbers of the prompts in batches, like lengths together: then little is padding. each: answers to a prompt.

    It depends on the prompts and the model's size alone, so that a run that goes on has the batches it had before.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    tokens = min(TOKENS, CACHE // (2 * 4 * config.n_layer * config.n_embd))  # a float32 key and value in each layer
    count = max(1, tokens // (each * (max(map(len, prompts), default=0) + max_new)))
    return [order[start : start + count] for start in range(0, len(order), count)]
