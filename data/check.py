"""What one wants to know of a file of pairs before training on it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tqdm import tqdm

from data.pairs import Pair, read_pairs, split, summary
from data.rules import TINY
from gpt.command import argument, check_range, flag
from gpt.config_json import read_config
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Check:
    """Look into a file of pairs: lengths, duplicates, splits, and what would be dropped and why."""

    file: str = argument("JSON or JSONL file of pairs")
    model: str = flag("", "model folder whose vocabulary counts the tokens; empty: the embedded one; gpt2: GPT-2's")
    held_out: float = flag(0.1, "fraction of the prompts to hold out")
    max_length: int = flag(None, "tokens of prompt and longer answer that fit; unset: the model's context, else 1024")


def check(flags: Check) -> None:
    if flags.model == "gpt2":
        tokenizer = Tokenizer.gpt2()
    else:
        tokenizer = Tokenizer.load(flags.model or TINY)
    check_range(flags, ("held_out",), 0, most=1)
    check_range(flags, ("max_length",), 1)
    folders = (Path(flags.model or TINY), Path(flags.model or TINY) / "model")
    config = next((folder / "config.json" for folder in folders if (folder / "config.json").is_file()), None)
    context = read_config(config).n_positions if config else 1024
    dropped: dict[str, list[int]] = {}
    print(report(read_pairs(flags.file, dropped), dropped, tokenizer, flags.held_out, flags.max_length or context))


def report(
    pairs: list[Pair], dropped: dict[str, list[int]], tokenizer: Tokenizer | None, held_out: float, max_length: int
) -> str:
    """What one wants to know of pairs before training on them, as text. Lengths are in tokens, each answer's end-of-text
    among them; without a tokenizer they are left out."""
    prompts = Counter(pair.prompt for pair in pairs)
    repeated = sum(n - 1 for n in Counter(pair[:3] for pair in pairs).values())
    training, held = split(pairs, held_out)
    lines = {
        "pairs": f"{len(pairs):,}"
        + (f", of them {single:,} with one answer" if (single := sum(p.rejected is None for p in pairs)) else ""),
        "dropped": summary(dropped) or "none",
        "prompts": f"{len(prompts):,} distinct; {len(pairs) - len(prompts):,} pairs repeat a prompt, {repeated:,} a whole pair",
        "split": f"{len(training):,} to train on, {len(held):,} held out (--held-out {held_out:g}); prompts on both sides: "
        f"{len({p.prompt for p in training} & {p.prompt for p in held})}",
    }
    families = Counter(pair.family for pair in pairs if pair.family)
    if families:
        lines["families"] = ", ".join(f"{name} {n}" for name, n in families.most_common())
    if tokenizer:
        sides = {
            "prompt": [
                len(tokenizer.encode(p.prompt)) for p in tqdm(pairs, desc="tokenize", unit="pair", leave=False, delay=1)
            ],
            "chosen": [len(tokenizer.encode(p.chosen)) + 1 for p in pairs],
            "rejected": [len(tokenizer.encode(p.rejected)) + 1 for p in pairs if p.rejected is not None],
        }
        lines |= {f"{name} tokens": _spread(lengths) for name, lengths in sides.items() if lengths}
        both = (
            [(c, r) for c, r in zip(sides["chosen"], sides["rejected"])] if len(sides["rejected"]) == len(pairs) else []
        )
        if both:
            longer = sum(c > r for c, r in both) + 0.5 * sum(c == r for c, r in both)
            lines["length bias"] = f"'the longer answer is better' is right for {longer / len(both):.0%} of the pairs"
        longest = [p + max(pair) for p, pair in zip(sides["prompt"], both or zip(sides["chosen"]))]
        lines["too long"] = (
            f"{sum(n > max_length for n in longest):,} pairs exceed {max_length} tokens: "
            "their prompts would be cut, or they left out"
        )
    return "\n".join(f"{name:16}{text}" for name, text in lines.items())


def _spread(lengths: Iterable[int]) -> str:
    ordered = sorted(lengths)
    return (
        f"median {median(ordered):g}, 95 % at most {ordered[int(0.95 * (len(ordered) - 1))]}, longest {ordered[-1]}, "
        f"{sum(ordered):,} in all"
    )
