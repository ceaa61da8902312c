"""What dpo/evaluate.py prints and writes: its figures as a table, before beside after, and answers to the same prompts."""

from collections.abc import Iterator, Sequence

from data.pairs import Pair
from data.scores import is_correct, is_task
from gpt.answers import Answer


def table(report: dict, prompts: int) -> str:
    """The figures of evaluation.json, before beside after."""
    before, after = report["before"], report["after"]
    lines = [f"\n{prompts:,} held-out prompts, greedy      before   after"]
    for name in ("courteous", "rude", "correct", "stopped", "length", "loss", "accuracy", "margin"):
        if name in after:
            lines.append(f"{name:12}{NOTES[name]:24}{shown(before[name])} {shown(after[name])}")
    if report["difference"]:
        d = report["difference"]
        lines.append(
            f"\ncorrect changed by {d['correct']:+.3f}, standard error {d['standard error']:.3f}: "
            f"{d['became correct']} prompts became correct, {d['became wrong']} wrong"
        )
        lines.append(
            "\ncorrect by family"
            + "".join(
                f"\n{name:36}{before['correct by family'][name]:7.3f} {rate:7.3f}"
                for name, rate in after["correct by family"].items()
            )
        )
    return "\n".join(lines)


def shown(value: float) -> str:
    """In three digits; a margin of -1e-9 is rounding: it is 0, which has no sign."""
    return f"{round(value, 3) + 0.0:7.3f}"


NOTES = {
    "courteous": "answers",
    "rude": "answers",
    "correct": "answers, and stopped",
    "stopped": "by end-of-text",
    "length": "tokens of an answer",
    "loss": "of held-out pairs",
    "accuracy": "pairs, a tie is half",
    "margin": "beta x log-ratio",
}


def samples(pairs: list[Pair], answers: dict, count: int) -> str:
    """`count` prompts from all over the list, each with what the start and the trained model answer."""
    step = max(1, len(pairs) // max(count, 1))
    blocks = []
    for i in range(0, len(pairs), step)[:count]:
        task = pairs[i].prompt.removesuffix("\n\n### Response:\n").split("### Instruction:\n")[-1]
        blocks.append(
            "\n".join(
                [
                    "",
                    " ".join(task.replace("### Input:", "|").split()),
                    *(f"  {name:8}{answers[name][i].text!r}" for name in ("before", "after")),
                ]
            )
        )
    return "\n".join(blocks)


def sample_rows(prompts: Sequence[Pair], before: Sequence[Answer], after: Sequence[Answer]) -> Iterator[dict]:
    """The rows of samples.jsonl: what both models answer to each prompt, whether the answer ended, its tokens, and where a
    rule knows the plain answer, that and whether each of both is correct."""
    for pair, old, new in zip(prompts, before, after):
        row: dict = {
            "prompt": pair.prompt,
            "before": old.text,
            "after": new.text,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "stopped": {"before": old.stopped, "after": new.stopped},
            "length": {"before": old.length, "after": new.length},
        }
        if is_task(pair):
            row["expected"] = pair.output
            row["correct"] = {"before": is_correct(pair, old), "after": is_correct(pair, new)}
        yield row
