"""Pairs by an LLM: the answers of a file rewritten, judged or ranked, in the order of its rows.

    rewrite   {"instruction": ..., "output": ...}           chosen: made better, rejected: made worse
    judge     {"prompt": ..., "answers": [one, other]}      chosen: what both orders prefer; ties are dropped
    rank      {"prompt": ..., "answers": [one, two, ...]}   chosen: the best score, rejected: the worst, margin: how far

Rewriting is the book's way to pairs (Raschka, "LLM from scratch", the preference set of chapter 7), the criterion its
politeness. Every row keeps its other fields. Rows wait for each other, so the same replies make the same file, whatever
order they came in and however often the build was interrupted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data.carry import line_of
from data.endpoint import Failed
from data.in_order import in_order
from data.judge import DISAGREE, Judge
from data.llm import LLMFlags
from data.pairs import pair_of, summary, teaches_nothing
from data.questions import FIRST, TIE, read_criterion
from data.reading import stream_rows
from data.replies import kept_replies
from data.sides import text_hash
from gpt.command import UserError, argument, check_range, flag
from gpt.files import whole
from gpt.untrusted import shown

FEWEST = {"rewrite": 1, "judge": 2, "rank": 2}  # answers of a row
MOST = {"rewrite": 1, "judge": 2, "rank": 1000}


@dataclass(frozen=True)
class Annotate(LLMFlags):
    """Let an LLM make pairs of the answers in a file: rewrite each better and worse, judge two, or rank several.

    python data/build.py llm answers.jsonl --way rewrite --model llama3.1 --out pairs.jsonl
    """

    file: str = argument("JSON or JSONL file of rows: prompt, or instruction and input; and answers")
    out: str = flag(help="JSONL file to write")
    way: str = flag("rewrite", "what the model does with the answers of a row", choices=tuple(FEWEST))
    criterion: str = flag("helpful", "what makes an answer better: a name of data/criteria, or a text file")
    direction: str = flag("both", "of rewriting: both ways, or one by chance with the given answer as the other side",
                          choices=("both", "random"))  # fmt: skip
    answers: list = flag((), "fields that hold the answers, or lists of them; unset: answers, else chosen and rejected; "
                         "for rewriting output, else answer, else chosen")  # fmt: skip
    seed: int = flag(0, "of the model's replies, and of --direction random")
    temperature: float = flag(0.0, "of the first try; further ones have 0.7 at least")
    max_tokens: int = flag(1024, "of a reply; 0: as many as the server allows")
    tries: int = flag(3, "times that a question is asked until the reply can be read")
    replies: str = flag("", "file that keeps every reply; empty: beside --out, ending in .replies.jsonl")


class Work(NamedTuple):
    number: int  # of the row in its file
    row: dict
    request: str  # what the answers are answers to
    answers: list[str]


class Made(NamedTuple):
    """What came of a row: a row with a pair, or why there is none."""

    number: int
    row: dict | None = None
    dropped: str = ""  # there was nothing to learn from it
    failed: Failed | None = None


class Report(NamedTuple):
    """What came of all rows. The lists are of row numbers."""

    pairs: int
    dropped: dict[str, list[int]]  # by why
    failed: dict[str, list[int]]  # by kind
    details: dict[str, str]  # of each kind the first


def annotate(flags: Annotate) -> int:
    check_range(flags, ("tries",), 1, most=100)
    check_range(flags, ("temperature",), 0, most=2)
    check_range(flags, ("seed",), 0, below=2**31 - 100)
    check_range(flags, ("max_tokens",), 0)
    llm, criterion, out = flags.llm(), read_criterion(flags.criterion), Path(flags.out)
    if not out.name:
        raise UserError(f"--out {out} is a folder; name a file")
    kept = Path(flags.replies) if flags.replies else out.with_suffix(".replies.jsonl")
    if len({path.resolve() for path in (Path(flags.file), out, kept)}) < 3:
        raise UserError(f"--out {out}: what is read, the replies and what is written must be three files")
    rows = sum(1 for _ in works(flags))  # all are looked at before anything is asked
    with kept_replies(llm, kept) as replies:
        judge = Judge(replies, criterion, flags.temperature, flags.seed, flags.max_tokens, flags.tries)
        found = in_order(lambda work: made_of(work, judge, flags), works(flags), flags.at_once)
        report = write_pairs(out, tqdm(found, flags.way, total=rows, unit="row", leave=False, delay=1))
    print(f"pairs   {report.pairs:,} of {rows:,} rows, {'written to' if report.pairs else 'so there is no new'} {out}")
    print(f"asked   {replies.asked:,} questions of {llm.model}, {replies.known:,} known from {kept}")
    if report.dropped:
        print(f"dropped {summary(report.dropped)}")
    if report.failed:
        said = "".join(f"; {kind}: {detail}" for kind, detail in report.details.items() if detail)
        print(f"failed  {summary(report.failed)}{said}")
    return 1 if report.failed or not report.pairs else 0


class _Nothing(Exception):
    """No row gave a pair, so that no file is written."""


def write_pairs(out: Path, found: tqdm) -> Report:
    """Write the pairs among what was `found`, in its order. Where there is none, the file stays as it was."""
    report = Report(0, {}, {}, {})
    try:
        with whole(out, binary=True) as file:
            for made in found:
                if made.failed:
                    report.failed.setdefault(made.failed.kind, []).append(made.number)
                    report.details.setdefault(made.failed.kind, made.failed.detail)
                    found.set_postfix(failed=sum(map(len, report.failed.values())), refresh=False)
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


def works(flags: Annotate) -> Iterator[Work]:
    """The rows of the file. Raises UserError, naming file, row and field, where one has not the answers that --way needs."""
    for number, row, *_ in stream_rows(Path(flags.file)):
        where = f"{flags.file}, row {number}"
        answers = _answers(row, flags, where) if isinstance(row, dict) else [""]
        # as a pair is read, and so as the row that comes of it will be
        pair_of({**row, "chosen": answers[0], "rejected": answers[-1]} if isinstance(row, dict) else row, number, where)
        request = row.get("prompt")
        if request is None:
            request = "\n\n".join(filter(None, (row.get("instruction"), row.get("input"))))
        if not isinstance(request, str) or not {"prompt", "instruction"} & row.keys():
            raise UserError(f"{where}: llm reads rows with 'prompt' or 'instruction' as text; convert gives such")
        yield Work(number, row, request, answers)


def _answers(row: dict, flags: Annotate, where: str) -> list[str]:
    names = _fields(row, flags)
    found = [text for name in names for text in (row[name] if isinstance(row.get(name), list) else [row.get(name)])]
    for text in found:
        if not isinstance(text, str):
            raise UserError(f"{where}: an answer in {_named(names)} is no text: {shown(text)}")
    fewest, most = FEWEST[flags.way], MOST[flags.way]
    if not fewest <= len(found) <= most:
        needs = f"{fewest}" if fewest == most else f"at least {fewest}"
        raise UserError(
            f"{where}: --way {flags.way} needs {needs} answer{'s' * (most > 1)}, the row has {len(found)}"
            + (f" in {_named(names)}" if names else f"; its fields are {shown(list(row))}")
            + "; --answers says which fields hold them"
        )
    return found


def _fields(row: dict, flags: Annotate) -> list[str]:
    """Which fields of the row hold the answers."""
    if flags.answers:
        return flags.answers
    if flags.way == "rewrite":
        return [name for name in ("output", "answer", "chosen") if row.get(name) is not None][:1]
    return ["answers"] if row.get("answers") is not None else [name for name in ("chosen", "rejected") if name in row]


def _named(names: Iterable[str]) -> str:
    return ", ".join(map(shown, names))


def made_of(work: Work, judge: Judge, flags: Annotate) -> Made:
    """What comes of a row, by --way. Raises UserError where no row can be done any more."""
    new: dict[str, Any] | str = "an empty answer"
    try:
        if flags.way == "rank":
            new = _ranked(work, judge)
        elif all(text.strip() for text in work.answers):
            new = _judged(work, judge) if flags.way == "judge" else _rewritten(work, judge, flags)
    except Failed as error:
        return Made(work.number, failed=error)
    if isinstance(new, str):
        return Made(work.number, dropped=new)
    row = {name: value for name, value in work.row.items() if name != "margin"}  # that was of another pair
    pair = pair_of(row | new, work.number, f"row {work.number}")
    return Made(work.number, row | new, teaches_nothing(pair) or "")


def _rewritten(work: Work, judge: Judge, flags: Annotate) -> dict | str:
    (answer,), better, worse = work.answers, judge.criterion.better, judge.criterion.worse
    if flags.direction == "both":
        chosen = judge.rewritten(work.request, answer, better)
        return {"chosen": chosen, "rejected": judge.rewritten(work.request, answer, worse, other_than=chosen)}
    # by a hash, so that a row gets the same side wherever in the file it stands
    if text_hash(f"{flags.seed} {work.request} {answer}") % 2:
        return {"chosen": judge.rewritten(work.request, answer, better, other_than=answer), "rejected": answer}
    return {"chosen": answer, "rejected": judge.rewritten(work.request, answer, worse, other_than=answer)}


def _judged(work: Work, judge: Judge) -> dict | str:
    first, second = work.answers
    if first == second:
        return "the answers are equal"
    verdict = judge.verdict(work.request, first, second)
    if verdict in (TIE, DISAGREE):
        return "a tie" if verdict == TIE else DISAGREE
    chosen, rejected = (first, second) if verdict == FIRST else (second, first)
    return {"chosen": chosen, "rejected": rejected}


def _ranked(work: Work, judge: Judge) -> dict | str:
    answers = [text for text in dict.fromkeys(work.answers) if text.strip()]
    if len(answers) < 2:
        return "less than two different answers"
    scores = judge.score(work.request, answers)
    best, worst = max(scores), min(scores)
    if best == worst:
        return "a tie"
    return {
        "chosen": answers[scores.index(best)],
        "rejected": answers[scores.index(worst)],
        "margin": best - worst,
    }
