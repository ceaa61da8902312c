"""Pairs by an LLM: the answers of a file rewritten, judged or ranked, in the order of its rows.

    rewrite   {"instruction": ..., "output": ...}           chosen: made better, rejected: made worse
    judge     {"prompt": ..., "answers": [one, other]}      chosen: what both orders prefer; ties are dropped
    rank      {"prompt": ..., "answers": [one, two, ...]}   chosen: the best score, rejected: the worst, margin: how far

Rewriting is the book's way to pairs (Raschka, "LLM from scratch", the preference set of chapter 7), the criterion its
politeness. A row may be in any format (data/candidates.py), and keeps its other fields. Rows wait for each other, so the
same replies make the same file, whatever order they came in and however often the build was interrupted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data.beside import beside, check_out
from data.best_worst import UNREADABLE
from data.candidates import FEWEST, Candidates, candidates, row_with
from data.carry import are_one
from data.endpoint import Failed
from data.failures import Failures
from data.in_order import in_order
from data.judge import DISAGREE, Judge, JudgeFlags, open_judge
from data.llm import GROUP
from data.pairs import Pair, line_of, teaches_nothing
from data.questions import FIRST, TIE
from data.reading import stream_rows
from data.sides import text_hash
from data.tally import summary
from gpt.command import UserError, argument, check_range, flag
from gpt.files import whole


@dataclass(frozen=True)
class Annotate(JudgeFlags):
    """Let an LLM make pairs of the answers in a file: rewrite each better and worse, judge two, or rank several.

    python data/build.py llm answers.jsonl --way rewrite --model llama3.1 --out pairs.jsonl
    """

    file: str = argument("JSON or JSONL file of rows with a prompt and answers, in any format that convert knows")
    out: str = flag(help="JSONL file to write; what the LLM says is kept beside it, and so - is none")
    model: str = flag(help="the name by which the server knows the model, such as llama3.1", group=GROUP)
    way: str = flag("rewrite", "what the model does with the answers of a row", choices=tuple(FEWEST))
    direction: str = flag("both", "of rewriting: both ways, or one by chance with the given answer as the other side",
                          choices=("both", "random"))  # fmt: skip
    answers: list = flag((), "fields that hold the answers, or lists of them; unset: answers, else those of ratings, else "
                         "chosen and rejected; for rewriting output, else answer, else chosen, else the best rated, else "
                         "the last turn of a dialogue")  # fmt: skip
    seed: int = flag(0, "of the model's replies, and of --direction random")
    temperature: float = flag(0.0, "of the first try; further ones have 0.7 at least")
    replies: str = flag("", "file that keeps every reply; empty: beside --out, ending in .replies.jsonl")


class Made(NamedTuple):
    """What came of a row: a row with a pair, or why there is none."""

    number: int
    row: dict | None = None
    dropped: str = ""  # there was nothing to learn from it
    failed: Failed | None = None


class Report(NamedTuple):
    """What came of all rows."""

    pairs: int
    dropped: dict[str, list[int]]  # by why, the numbers of the rows
    failures: Failures


def annotate(flags: Annotate) -> int:
    check_range(flags, ("temperature",), 0, most=2)
    check_range(flags, ("seed",), 0, below=2**31 - 100)
    flags.llm(flags.model)  # what is wrong with the flags is said now
    out = check_out(flags.out)
    kept = Path(flags.replies) if flags.replies else beside(out, "replies")
    if are_one(flags.file, out) or len({path.resolve() for path in (Path(flags.file), out, kept)}) < 3:
        raise UserError(f"--out {out}: what is read, the replies and what is written must be three files")
    rows = sum(1 for _ in works(flags))  # all are looked at before anything is asked
    if not rows:
        raise UserError(f"{flags.file}: the file has no rows")
    with open_judge(flags.model, flags, kept, flags.temperature, flags.seed) as judge:
        found = in_order(lambda work: made_of(work, judge, flags), works(flags), flags.at_once)
        report = write_pairs(out, tqdm(found, flags.way, total=rows, unit="row", leave=False, delay=1))
        asked, known = judge.replies.asked, judge.replies.known
    print(f"pairs   {report.pairs:,} of {rows:,} rows, {'written to' if report.pairs else 'so there is no new'} {out}")
    print(f"asked   {asked:,} questions of {flags.model}, {known:,} known from {kept}")
    if report.dropped:
        print(f"dropped {summary(report.dropped, '')}")
    if report.failures:
        print(f"failed  {report.failures}")
    return 1 if report.failures or not report.pairs else 0


class _Nothing(Exception):
    """No row gave a pair, so that no file is written."""


def write_pairs(out: Path, found: tqdm) -> Report:
    """Write the pairs among what was `found`, in its order. Where there is none, the file stays as it was."""
    report = Report(0, {}, Failures())
    try:
        with whole(out, binary=True) as file:
            for made in found:
                if made.failed:
                    report.failures.add(made.failed, made.number)
                    found.set_postfix(failed=len(report.failures), refresh=False)
                elif made.dropped:
                    report.dropped.setdefault(made.dropped, []).append(made.number)
                else:
                    file.write(line_of(made.row, f"row {made.number}"))
                    report = report._replace(pairs=report.pairs + 1)
            if not report.pairs:
                raise _Nothing
    except _Nothing:
        pass
    return report


def works(flags: Annotate) -> Iterator[Candidates]:
    """The rows of the file. Raises UserError, naming file, row and field, where one has not the answers that --way needs."""
    for number, row, *_ in stream_rows(Path(flags.file)):
        yield candidates(row, number, f"{flags.file}, row {number}", flags.way, flags.answers)


def made_of(work: Candidates, judge: Judge, flags: Annotate) -> Made:
    """What comes of a row, by --way. Raises UserError where no row can be done any more."""
    new: dict | str = "an empty answer"
    try:
        if flags.way == "rank":
            new = _ranked(work, judge)
        elif all(text.strip() for text in work.answers):
            new = _judged(work, judge) if flags.way == "judge" else _rewritten(work, judge, flags)
    except Failed as error:
        return Made(work.number, failed=error)
    if isinstance(new, str):
        return Made(work.number, dropped=new)
    if nothing := teaches_nothing(Pair(work.prompt, new["chosen"], new["rejected"])):
        return Made(work.number, dropped=nothing)
    row = row_with(work.row, work.prompt, new)
    return Made(work.number, row, "" if row else UNREADABLE)


def _rewritten(work: Candidates, judge: Judge, flags: Annotate) -> dict | str:
    (answer,), better, worse = work.answers, judge.criterion.better, judge.criterion.worse
    text = answer.strip()
    # the space that begins answers in some data sets would tell the given one from the other, to whoever learns of them
    before = answer[: len(answer) - len(answer.lstrip())]
    if flags.direction == "both":
        chosen = judge.rewritten(work.prompt, answer, better)
        rejected = judge.rewritten(work.prompt, answer, worse, other_than=chosen)
        return {"chosen": before + chosen, "rejected": before + rejected}
    # by a hash, so that a row gets the same side wherever in the file it stands
    if text_hash(f"{flags.seed} {work.prompt} {answer}") % 2:
        return {"chosen": before + judge.rewritten(work.prompt, answer, better, other_than=text), "rejected": answer}
    return {"chosen": answer, "rejected": before + judge.rewritten(work.prompt, answer, worse, other_than=text)}


def _judged(work: Candidates, judge: Judge) -> dict | str:
    first, second = work.answers
    if first == second:
        return "the answers are equal"
    verdict = judge.verdict(work.prompt, first, second)
    if verdict in (TIE, DISAGREE):
        return "a tie" if verdict == TIE else DISAGREE
    chosen, rejected = (first, second) if verdict == FIRST else (second, first)
    return {"chosen": chosen, "rejected": rejected}


def _ranked(work: Candidates, judge: Judge) -> dict | str:
    answers = [text for text in dict.fromkeys(work.answers) if text.strip()]
    if len(answers) < 2:
        return "less than two different answers"
    scores = judge.score(work.prompt, answers)
    best, worst = max(scores), min(scores)
    if best == worst:
        return "a tie"
    return {
        "chosen": answers[scores.index(best)],
        "rejected": answers[scores.index(worst)],
        "margin": best - worst,
    }
