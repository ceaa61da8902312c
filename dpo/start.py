"""What a run starts from: a model with its tokenizer."""

from data.rules import TINY
from gpt.tokenizer import Tokenizer
from gpt.weights import Opened, open_folder, random_gpt


def open_model(name: str, seed: int = 0, dropout: float = 0.0) -> Opened:
    """The model and tokenizer of a model folder, run folder, Hub name or `random:SIZE`; an empty name is the embedded start."""
    if name.startswith("random:"):
        size = name.removeprefix("random:")
        tokenizer = Tokenizer.gpt2() if size.startswith("gpt2") else Tokenizer.load(TINY)
        return Opened(random_gpt(size, tokenizer.vocab_size, seed, dropout), tokenizer, name)
    return open_folder(name or TINY, dropout)
