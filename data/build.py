"""Make a file of pairs, or look into one before it costs anything.

python data/build.py rules --out pairs.jsonl                  the embedded preference set, as a file
python data/build.py rules --sft --count 40000 --out sft.jsonl    answers in three manners, for a start
python data/build.py llm answers.jsonl --model llama3.1 --criterion polite --out pairs.jsonl     an LLM makes the pairs
python data/build.py llm answers.jsonl --way judge --model llama3.1 --out pairs.jsonl     of two answers it prefers one
python data/build.py onpolicy --model runs/sft --out pairs.jsonl  a model's own answers, the best against the worst
python data/build.py onpolicy --model runs/sft --score implicit:runs/dpo --out pairs.jsonl     by a DPO model's own reward
python data/build.py check pairs.jsonl                        what is in a file, and what would be dropped
python data/build.py convert data.parquet --out pairs.jsonl   from chat messages, HH, ShareGPT, ratings ... to pairs
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from data.annotate import Annotate, annotate
from data.carry import check_apart
from data.check import Check, check, report
from data.convert import Convert, convert
from data.onpolicy import OnPolicy, onpolicy
from data.pairs import instruction_prompt, write_rows
from data.rules import PAIRS, TINY, preference_rows, row_pairs, sft_rows
from data.shape import SHAPE
from gpt.command import check_range, flag, run
from gpt.files import whole
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rules:
    """Write pairs of the embedded tasks: the same right answer, courteous (chosen) and rude (rejected).

    python data/build.py rules --count 2000 --out pairs.jsonl
    """

    out: str = flag(help="JSONL file to write; - for none, to see the summary only")
    count: int = flag(PAIRS, "rows")
    seed: int = flag(0, "of tasks and manners; the same seed gives the same file on every machine")
    sft: bool = flag(False, "one answer a row, in one of three manners, to train a start with --loss sft")
    plain: float = flag(0.5, "with --sft: the fraction of plain answers")
    text: str = flag("", "also write prompts and answers as plain text to this file, to train a vocabulary on")


def rules(flags: Rules) -> None:
    check_range(flags, ("count",), 1)
    check_range(flags, ("plain",), 0, most=1)
    if flags.text:
        check_apart(flags.text, flags.out, flag="--text", used="--out writes")
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


if __name__ == "__main__":
    made: dict[str, tuple[Callable, type]] = {
        **{"rules": (rules, Rules), "llm": (annotate, Annotate), "onpolicy": (onpolicy, OnPolicy)},
        **{"check": (check, Check), "convert": (convert, Convert)},
    }
    run(made | SHAPE)
