"""A file without the rows that give away what other files are to test.

    test.jsonl     "At what time does the night train from Vienna to Rome arrive in Florence on weekdays?"
    pairs.jsonl    "Please say: at what time does the night train from Vienna to Rome arrive in Florence, ..."    is left out

A row is left out if its prompt is one of theirs, or if its prompt or an answer of it shares 13 words in a row with a text of
theirs: the rule for GPT-3's training set (Brown et al. 2020, appendix C), which also passes over such runs as are found in
more than 10 documents, since most of those are common phrases. Here more than 10 prompts, so that the many pairs of one
prompt hide nothing. Words are those of data/normal.py; the Alpaca template, which every instruction row has, does not count.
Rows of which training makes no pair are left out as well (data/carry.py).

Of the other files 9 bytes are kept for each run of words and 8 for each text, of the file itself 10 for each row, and 16 for
each prompt that a run of theirs was met in, up to one more than are passed over. They are hashes of 64 bits: that any of n
runs is taken for one of the m of other words there has a chance of n m / 2^64, one in 18,000 for a hundred million words
against ten million.
"""

from array import array
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data.carry import check_files, chosen_rows, left_out, pairs, report, rows, where_to, written
from data.ngrams import Met, Runs, places
from data.normal import normalized, normalized_prompt
from data.pairs import Pair, pair_of
from data.ratings import NoPair
from data.reading import Row
from data.sides import text_hash
from data.tally import Tally, number_of
from gpt.command import UserError, argument, check_range, flag
from gpt.untrusted import shown


@dataclass(frozen=True)
class Decontaminate:
    """Leave out the rows that share a prompt, or a long run of words, with other files, such as those for testing.

    python data/build.py decontaminate pairs.jsonl --against test.jsonl --out clean.jsonl
    """

    file: str = argument("JSON or JSONL file of pairs")
    against: list = flag(help="files to be kept unseen: pairs, or JSON objects of which every text counts")
    out: str = flag(help="JSONL file to write; - for none, to see the report only")
    ngram: int = flag(13, "words in a row that must not be shared; 0: whole prompts alone are compared")
    common: int = flag(
        10, "with --ngram: words in a row that stand in rows of more prompts than this give nothing away"
    )


class Others(NamedTuple):
    """What is known of the other files, as hashes, ascending, each once."""

    prompts: np.ndarray  # (texts,) uint64
    runs: np.ndarray  # (runs,) uint64


def decontaminate(flags: Decontaminate) -> None:
    check_range(flags, ("ngram",), 0, most=1000)
    check_range(flags, ("common",), 1)
    check_files(flags.out, flags.file, *flags.against)
    hashed = Runs(flags.ngram)
    others = learned(flags.against, hashed)
    prompts, marked, are_pairs = array("Q"), array("B"), array("B")
    dropped: dict[str, Tally] = {}  # why -> rows
    met = Met(len(others.runs), flags.common)
    for _, pair in pairs(flags.file, "reading", dropped):
        are_pairs.append(pair is not None)
        if pair:
            texts = texts_of(pair)
            prompts.append(key_of(texts[0]))
            at = places(others.runs, hashed.of_all(texts))
            marked.append(met.add(at[at >= 0], prompts[-1]))
    is_common, telling = met.common_runs(), met.telling_runs()
    by_prompt = np.isin(np.asarray(prompts), others.prompts)

    same, sharing, example = Tally(), Tally(), ""
    with written(flags.out) as write:
        for i, row in enumerate(chosen_rows(flags.file, np.asarray(are_pairs), "writing")):
            where = f"{flags.file}, row {row.number}"
            texts = texts_of(pair_of(row.value, row.number, where)) if marked[i] and not by_prompt[i] else []
            if by_prompt[i]:
                same.add(row.number)
            elif run := next(filter(None, (shared(text, hashed, others.runs, is_common) for text in texts)), None):
                sharing.add(row.number)
                example = example or f", the first {shown(run)}"
            else:
                write(row.value, where)
        left = len(prompts) - same.count - sharing.count
        if not left:
            raise UserError(f"{flags.file}: no row is left, each has a prompt or words of {', '.join(flags.against)}")

    lines = [
        ("read", f"{number_of(len(are_pairs))} from {flags.file}"),
        *left_out(dropped),
        ("same prompt", f"{number_of(same.count)} left out" + (f": {same}" if same.count else "")),
    ]
    if flags.ngram:
        named = f": {sharing}{example}" if sharing.count else ""
        lines.append((f"same {flags.ngram} words", f"{number_of(sharing.count, 'more row')} left out{named}"))
    if is_common.any():
        text = f"{number_of(int(is_common.sum()), 'run')} of {flags.ngram} words passed over"
        lines.append(("common", f"{text}: they stand in rows of more than {flags.common} prompts"))
    for path in flags.against:
        count, total, strange = found(path, hashed, others.runs, telling, np.unique(np.asarray(prompts)))
        every = "; they are no pairs, every text in them counts" if strange else ""
        lines.append(("found", f"{count:,} of {number_of(total)} ({count / total:.1%}) of {path}{every}"))
    report([*lines, ("written", f"{number_of(left)} {where_to(flags.out)}")])


def key_of(text: str) -> int:
    """64 bits of a text, the same in every run; half a surrogate pair may be in it."""
    return text_hash(repr(text))


def texts_of(pair: Pair) -> list[str]:
    """Prompt and answers, normalized."""
    answers = (pair.chosen, pair.rejected, pair.output)
    return [normalized_prompt(pair.prompt), *(normalized(text) for text in answers if text is not None)]


def strings(value: Any) -> list[str]:
    """Every text in a parsed JSON value."""
    texts, waiting = [], [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, (dict, list)):
            waiting += value.values() if isinstance(value, dict) else value
    return texts


def tested(row: Row, path: str) -> tuple[list[str], list[str], bool]:
    """(prompts, all texts, whether it is a pair) of a row of the other files, normalized."""
    value = row.value if row.value.get("chosen") is not None else {**row.value, "chosen": ""}
    try:  # a test need not have answers to choose from
        pair = pair_of(value, row.number, f"{path}, row {row.number}")
    except (UserError, NoPair):  # or name its fields as pairs do
        texts = [normalized_prompt(text) for text in strings(row.value)]
        return texts, texts, False
    texts = texts_of(pair)
    return texts[:1], texts, True


def learned(paths: list[str], hashed: Runs) -> Others:
    """What is to be known of the other files."""
    prompts, runs = array("Q"), array("Q")
    for path in paths:
        before = len(prompts), len(runs)
        for row in rows(path, "learning"):
            asked, texts, _ = tested(row, path)
            prompts.extend(key_of(text) for text in asked if text)  # an empty prompt gives nothing away
            runs.frombytes(hashed.of_all(texts).tobytes())
        if (len(prompts), len(runs)) == before:
            raise UserError(f"{path}: there is no text to compare with")
    return Others(np.unique(np.asarray(prompts)), np.unique(np.asarray(runs)))


def shared(text: str, hashed: Runs, runs: np.ndarray, is_common: np.ndarray) -> str:
    """The first run of words in a text that is one of `runs` and not common, or ""."""
    if not len(runs):
        return ""
    at = places(runs, hashed.of(text))
    telling = np.flatnonzero((at >= 0) & ~is_common[at])
    return " ".join(text.split()[telling[0] : telling[0] + hashed.length]) if len(telling) else ""


def found(path: str, hashed: Runs, runs: np.ndarray, is_met: np.ndarray, prompts: np.ndarray) -> tuple[int, int, bool]:
    """(rows of another file that were met, rows of it, whether some are no pairs): by a run of words, or by a prompt."""
    count = total = strange = 0
    for row in rows(path, "counting"):
        asked, texts, is_pair = tested(row, path)
        at = places(runs, hashed.of_all(texts))
        keys = np.array([key_of(text) for text in asked if text], np.uint64)
        count += bool((places(prompts, keys) >= 0).any() or is_met[at[at >= 0]].any())
        total, strange = total + 1, strange + (not is_pair)
    return count, total, strange > 0
