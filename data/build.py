"""Make a file of pairs, or look into one before it costs anything.

python data/build.py rules --out pairs.jsonl                  the embedded preference set, as a file
python data/build.py rules --sft --count 40000 --out sft.jsonl    answers in three manners, for a start
python data/build.py check pairs.jsonl                        what is in a file, and what would be dropped
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from data.pairs import Pair, instruction_prompt, read_pairs, split, summary, write_rows
from data.rules import PAIRS, TINY, preference_rows, row_pairs, sft_rows
from gpt.command import argument, check_range, flag, run
from gpt.config_json import read_config
from gpt.files import whole
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rules:
    """Write pairs of the embedded tasks: the same right answer, courteous (chosen) and rude (rejected)."""

    out: str = flag(help="JSONL file to write; - for none, to see the summary only")
    count: int = flag(PAIRS, "rows")
    seed: int = flag(0, "of tasks and manners; the same seed gives the same file on every machine")
    sft: bool = flag(False, "one answer a row, in one of three manners, to train a start with --loss sft")
    plain: float = flag(0.5, "with --sft: the fraction of plain answers")
    text: str = flag("", "also write prompts and answers as plain text to this file, to train a vocabulary on")


@dataclass(frozen=True)
class Check:
    """Look into a file of pairs: lengths, duplicates, splits, and what would be dropped and why."""

    file: str = argument("JSON or JSONL file of pairs")
    model: str = flag("", "model folder whose vocabulary counts the tokens; empty: the embedded one; gpt2: GPT-2's")
    held_out: float = flag(0.1, "fraction of the prompts to hold out")
    max_length: int = flag(None, "tokens of prompt and longer answer that fit; unset: the model's context, else 1024")


def rules(flags: Rules) -> None:
    check_range(flags, ("count",), 1)
    check_range(flags, ("plain",), 0, most=1)
    rows = sft_rows(flags.count, flags.seed, flags.plain) if flags.sft else preference_rows(flags.count, flags.seed)
    if len(rows) < flags.count:
        print(f"the tasks have {len(rows):,} distinct prompts at this seed, fewer than the {flags.count:,} asked for")
    if flags.out != "-":
        write_rows(flags.out, tqdm(rows, desc="writing", unit="row", leave=False, delay=1))
    if flags.text:
        text = "\n".join(instruction_prompt(row["instruction"], row["input"]) + row["chosen"] for row in rows)
        # digits apart, so that the vocabulary has no token for 27: a small model then adds by digits, and learns to carry
        with whole(flags.text) as file:
            file.write(re.sub(r"(?<=\d)(?=\d)", " ", text))
    print(report(row_pairs(rows), {}, Tokenizer.load(TINY) if (TINY / "vocab.json").exists() else None, 0.1, 256))


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


if __name__ == "__main__":
    run({"rules": (rules, Rules), "check": (check, Check)})
