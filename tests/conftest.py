"""What several tests share: a toy model, a small vocabulary, random pairs of ids, and the folder ../shared."""

import os
import signal
import tempfile
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, settings

from data.pairs import write_rows
from data.rules import preference_rows, sft_rows
from dpo.rows import Ids
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import Tokenizer, train_bpe
from gpt.weights import save_gpt

# The machine that runs the tests may be busy: how long an example takes says nothing.
settings.register_profile("toy", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("toy")

# A shell starts background jobs with Ctrl+C ignored, and whom they start inherits that: tests that send it need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What the tests compute is kept for the length of the tests, and nothing that was kept before is used. Set here, before
# tests/processes.py takes down the variables for the processes that tests start.
CACHE = tempfile.TemporaryDirectory(prefix="gpt-dpo-tests-")
os.environ["GPT_DPO_CACHE"] = CACHE.name

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real rows and GPT-2's vocabulary, which are no part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: it holds real preference rows and GPT-2's vocabulary")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A vocabulary learned from a few of the embedded rows."""
    return train_bpe(
        [f"{r['instruction']} {r['input']} {r['chosen']} {r['rejected']}" for r in preference_rows(60)], 330
    )


@pytest.fixture(scope="session")
def make_gpt():
    """A function that makes a toy GPT, another one for each seed.

    Its weights are far from zero: a model as it is initialized finds every token about as likely as any other, and
    would hide a wrong mask or a wrong place.
    """

    def make(seed: int = 0, double: bool = False, **config) -> GPT:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            model = GPT(GPTConfig(**dict(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4) | config))
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model.double() if double else model

    return make


@pytest.fixture(scope="session")
def random_ids():
    """A function that makes pairs of random ids below `vocabulary`, of random lengths."""

    def make(count: int, seed: int = 0, vocabulary: int = 40) -> list[Ids]:
        rng = Random(seed)
        return [
            Ids(*([rng.randrange(vocabulary) for _ in range(rng.randint(1, 9))] for _ in range(3)))
            for _ in range(count)
        ]

    return make


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A folder with a toy model, 37 pairs to train on or hold out, and rows for SFT."""
    folder = tmp_path_factory.mktemp("toy")
    rows = preference_rows(37)
    tokenizer = train_bpe([f"{r['instruction']} {r['input']} {r['chosen']} {r['rejected']}" for r in rows], 320)
    torch.manual_seed(0)
    save_gpt(
        folder / "model",
        GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=256, n_embd=32, n_layer=2, n_head=2)),
        tokenizer,
    )
    write_rows(folder / "pairs.jsonl", rows)
    write_rows(folder / "sft.jsonl", sft_rows(37))
    return folder


@pytest.fixture
def signals():
    """A run in this process listens to signals in its own way."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
