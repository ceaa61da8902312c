"""What the tests of the report share: run folders made up on disk, and a page taken apart again."""

import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from data.turns import instruction_prompt

LN_2 = math.log(2)
EMPTY = {"meta", "input", "br", "hr"}


def dpo_lines(steps: int = 60, every: int = 20, fall: Callable[[float], float] = lambda part: 0.3 * part) -> list[dict]:
    """metrics.jsonl of a run in which the margin grows to 2 and the chosen reward by fall(part of the training)."""
    lines = [_line(0, "held-out", 0.0, fall)]
    for step in range(1, steps + 1):
        lines.append(_line(step, "train", (step - 1) / steps, fall))
        if step % every == 0:
            lines.append(_line(step, "held-out", step / steps, fall))
    return lines


def _line(step: int, split: str, part: float, fall: Callable[[float], float]) -> dict:
    margin, chosen = 2 * part, fall(part)
    line = {
        "step": step, "split": split, "loss": math.log1p(math.exp(-margin)), "rewards/chosen": chosen,
        "rewards/rejected": chosen - margin, "rewards/margins": margin, "rewards/accuracies": 0.5 + 0.5 * min(1, 4 * part),
        "logps/chosen": -10 + 10 * chosen, "logps/rejected": -10 + 10 * (chosen - margin), "length/chosen": 9.0,
        "length/rejected": 9.5, "pairs": 100 if split == "held-out" else 8, "tokens": 700, "padding": 0.0,
    }  # fmt: skip
    if split == "train":
        line |= {"grad_norm": 2 - part, "learning_rate": 1e-4 * (1 - part), "pairs_per_second": 100.0}
    return line


def sample(before: str, after: str, prompt: str = "Add.", **told) -> dict:
    """A row of samples.jsonl, tokens counted as words."""
    length = {"before": len(before.split()) + 1, "after": len(after.split()) + 1}
    row = {"prompt": instruction_prompt(prompt), "before": before, "after": after, "chosen": "a", "rejected": "b"}
    return row | {"stopped": {"before": True, "after": True}, "length": length} | told


def pair(margin: float, tokens: list[str] | None = None) -> dict:
    """A row of tokens.jsonl."""
    tokens = tokens or ["Certainly", "!", " 5", "<|endoftext|>"]
    row = {"row": 3, "prompt": instruction_prompt("Add."), "rewards/margins": margin}
    for name, sign in (("chosen", 1), ("rejected", -1)):
        row |= {f"tokens/{name}": tokens, f"reference_logps/{name}": [-2.0] * len(tokens)}
        row[f"logps/{name}"] = [-2.0 + sign * number for number in range(len(tokens))]
    return row


SAMPLES = [
    sample("5", "5"),
    sample("six and ten", "Certainly! six and ten", correct={"before": True, "after": True}),
    sample("seven", "Certainly! eight", "Take & give.", correct={"before": True, "after": False}),
    sample("it ends", "it goes on and on and on and on and on", stopped={"before": True, "after": False}),
]


def make_run(
    folder: Path, lines: list[dict] | None = None, samples: list[dict] | None = None, pairs: list[dict] | None = None
) -> Path:
    """A run folder with these metrics (None: of dpo_lines), answers and pairs (None: a few; []: none)."""
    folder.mkdir(parents=True)
    flags = {"pairs": "", "init": "", "loss": "dpo", "batch": 8, "steps": 60, "seed": 0, "out": str(folder)}
    settings = {"loss": "dpo(beta=0.1)", "lr": 1e-4, "steps": 60, "precision": "fp32", "init_sha256": "ab" * 32}
    record = {"flags": flags, "settings": settings, "processes": 1, "versions": {"torch": "2.13.0"}}
    (folder / "run.json").write_text(json.dumps(record))
    write_lines(folder / "metrics.jsonl", dpo_lines() if lines is None else lines)
    if samples or samples is None:
        write_lines(folder / "samples.jsonl", SAMPLES if samples is None else samples)
        before, after = (
            {"correct": 0.9, "stopped": 1.0, "length": 2.5},
            {"correct": 0.4, "stopped": 0.75, "length": 4.0},
        )
        (folder / "evaluation.json").write_text(json.dumps({"before": before, "after": after}))
    if pairs or pairs is None:
        write_lines(folder / "tokens.jsonl", [pair(margin) for margin in (2.0, 0.5, -0.1)] if pairs is None else pairs)
    return folder


def write_lines(file: Path, rows: list[dict]) -> None:
    """As data.pairs.write_rows, but in ASCII: half a pair of surrogates is no text, and yet a file can hold one."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Taken(HTMLParser):
    """A page taken apart: every element as (name, attributes), and the text without that of style and script.

    Reading it raises AssertionError where elements do not close in the order in which they open.
    """

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in EMPTY:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def of(self, name: str, **attributes: str) -> list[dict]:
        """The attributes of all elements of a name that have these."""
        return [found for one, found in self.elements if one == name and attributes.items() <= found.items()]
