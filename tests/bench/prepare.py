"""What all systems start from, written once: a folder of random weights, a file of pairs, one of held-out pairs.

OUT/start/          model folder
OUT/pairs.jsonl     prompt, chosen, rejected: what the steps train on, none held out of it
OUT/held-out.jsonl
OUT/facts.json      what these are and what the steps need
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import torch

from data.pairs import Pair, read_pairs, split, write_rows
from data.rules import embedded_pairs
from dpo.examples import open_examples
from dpo.order import pairs_of_step
from dpo.start import open_model
from gpt import precision
from gpt.command import UserError, flag
from gpt.config_json import read_config
from gpt.device import check_device
from gpt.tokenizer import Tokenizer
from gpt.weights import save_gpt
from tests.bench.needed import FORMULA, matmul_rate, needed_flops
from tests.bench.record import processor
from tests.bench.systems import SEED

HELD_OUT = 0.1  # the fraction of the prompts, by hash, that the held-out pairs are taken from

STEPS = {"cpu": 20, "cuda": 100, "mps": 10}  # enough for a steady rate, few enough for the slowest system


@dataclass(frozen=True)
class Prepare:
    """Write what all systems start from."""

    out: str = flag(help="folder")
    size: str = flag(help="tiny, gpt2, gpt2-medium ...")
    pairs: str = flag("", "file of pairs; empty: the embedded set")
    held_out: int = flag(0, "how many pairs to hold out")
    device: str = flag("auto", "cpu, cuda or auto")
    steps: int = flag(0, f"steps of a run; 0: {STEPS['cpu']}, on CUDA {STEPS['cuda']}")
    batch: int = flag(8, "pairs a step")
    prompt: int = flag(0, "tokens that each prompt is lengthened or cut to; 0: as they are")


def prepare(flags: Prepare) -> None:
    out, steps = Path(flags.out), flags.steps or STEPS[check_device(flags.device).type]
    model, tokenizer, _ = open_model(f"random:{flags.size}", SEED)
    save_gpt(out / "start", model, tokenizer)
    config = model.config
    training, held_out = split(read_pairs(flags.pairs, {}, False) if flags.pairs else embedded_pairs(), HELD_OUT)
    if flags.prompt:
        training = list(lengthened(training[: steps * flags.batch], flags.prompt, tokenizer))
    for name, pairs in (("pairs", training), ("held-out", held_out[: flags.held_out])):
        write_rows(out / f"{name}.jsonl", (asdict_row(pair) for pair in pairs))
    ids = open_examples(str(out / "pairs.jsonl"), tokenizer, config.n_positions, 0.0, False, {})[0].ids
    if steps * flags.batch > len(ids):
        raise UserError(
            f"{steps} steps of {flags.batch} pairs are more than one pass over the {len(ids)} pairs there are"
        )
    met = [ids[i] for step in range(1, steps + 1) for i in pairs_of_step(step, len(ids), flags.batch, SEED)]
    lengths = {name: sum(len(getattr(i, name)) for i in met) / len(met) for name in ("prompt", "chosen", "rejected")}
    facts = {
        "steps": steps,
        "batch": flags.batch,
        "parameters": model.parameter_count,
        "config": asdict(config),
        "pairs": len(met),
        "held_out": min(flags.held_out, len(held_out)),
        "formula": FORMULA,
        "flops_per_pair": needed_flops(met, config) / len(met),
        "lengths": lengths,
    }
    (out / "facts.json").write_text(json.dumps(facts))


def asdict_row(pair: Pair) -> dict[str, str]:
    """What is left of a pair for training."""
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def lengthened(pairs: list[Pair], tokens: int, tokenizer: Tokenizer) -> Iterator[Pair]:
    """The pairs with prompts of about `tokens` tokens: other pairs' texts in front of their own, cut from the left."""
    others = cycle(f"{pair.prompt}{pair.chosen}\n\n" for pair in pairs)
    for pair in pairs:
        text = pair.prompt
        while len(ids := tokenizer.encode(text)) < tokens:
            text = next(others) + text
        yield pair._replace(prompt=tokenizer.decode(ids[-tokens:]))


@dataclass(frozen=True)
class Rate:
    """Measure the rate of matrix products, and say what measured it."""

    init: str = flag(help="model folder, for the shapes")
    out: str = flag(help="JSON file to write")
    device: str = flag("auto", "cpu, cuda or auto")


def rate(flags: Rate) -> None:
    device, config = check_device(flags.device), read_config(Path(flags.init, "config.json"))
    # where the device has no bfloat16, float32 is what there is
    dtype = torch.bfloat16 if precision.resolve("auto", device, precision.SMALL) == "bf16" else torch.float32
    facts = {
        "flops_per_second": matmul_rate(config, device, dtype),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
    }
    Path(flags.out).write_text(json.dumps(facts))
