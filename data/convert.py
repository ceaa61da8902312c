"""Any file of preferences to pairs as they are: JSONL with prompt, chosen and rejected, shown as they will be tokenized."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from tqdm import tqdm

from data.carry import check_apart
from data.dialogues import are_dialogues
from data.formats import FORMATS, OneFormat, fitting
from data.pairs import Pair, checked, write_rows
from data.rules import TINY
from data.sources import Source, files_of, sources
from data.tally import Tally, summary
from gpt.command import UserError, argument, check_range, flag
from gpt.tokenizer import Tokenizer
from gpt.untrusted import printing
from gpt.vocabulary import END_OF_TEXT

EXAMPLES = 2
PIECES = 24  # tokens at either end of a text that is shown; what lies between is counted
LONG = 20_000  # characters; of a longer text only its ends are tokenized to be shown
GOES_ON = "an answer goes on with more turns, as the dialogues part earlier"
NAMED = 20  # fields that are named of those that say nothing of a pair


@dataclass(frozen=True)
class Convert:
    """Turn preferences of any format into pairs: JSONL with prompt, chosen and rejected.

    JSON, JSONL, gzip of either, Parquet files or folders of them, and hub:OWNER/NAME[SPLIT] are read. A row may be an
    instruction, a prompt, chat messages, ShareGPT's conversations, a dialogue of Human: and Assistant:, or several answers
    with their scores.

    python data/build.py convert data.jsonl.gz --out pairs.jsonl
    """

    files: list = argument("what to read: files, folders of Parquet files, hub:OWNER/NAME[SPLIT]", nargs="+")
    out: str = flag(help="JSONL file to write; - for none, to see the report only")
    format: str = flag("", "read every row as this; unset: as its content says", choices=tuple(FORMATS))
    model: str = flag("", "model folder whose vocabulary the examples show; empty: the embedded one; gpt2: GPT-2's")
    limit: int = flag(0, "rows to read of each file at most; 0: all")


@dataclass
class Found:
    """What was met in one file."""

    name: str
    format: str = ""
    by: int = 0  # the row that decided
    rows: int = 0
    pairs: int = 0
    margins: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)  # why -> rows
    noted: dict[str, Tally] = field(default_factory=dict)
    unused: Counter = field(default_factory=Counter)  # a field that says nothing of a pair -> rows that have it

    def pass_over(self, row: dict, used: frozenset[str]) -> None:
        """Note the fields of a row that are not among those `used`."""
        for name in row.keys() - used:
            if row[name] is not None and (name in self.unused or len(self.unused) < NAMED):
                self.unused[name] += 1


def convert(flags: Convert) -> None:
    check_range(flags, ("limit",), 0)
    check_apart(flags.out, *(file for name in flags.files for file in files_of(name)))
    tokenizer = Tokenizer.gpt2() if flags.model == "gpt2" else Tokenizer.load(flags.model or TINY)
    found: list[Found] = []
    examples: list[Pair] = []
    rows = _rows(flags, found, examples)
    if flags.out == "-":
        for _ in rows:
            pass
    else:
        write_rows(flags.out, rows)
    for one in found:
        print(report(one, flags))
    for pair in examples:
        print(f"\nrow {pair.row}, as it will be tokenized\n{example(pair, tokenizer)}")
    pairs = sum(one.pairs for one in found)
    print(f"\n{pairs:,} pair{'s' * (pairs != 1)}" + (f" written to {flags.out}" if flags.out != "-" else ""))


def _rows(flags: Convert, found: list[Found], examples: list[Pair]) -> Iterator[dict]:
    """The rows to write. `found` and `examples` are filled on the way. Raises UserError where there are none."""
    for name in flags.files:
        for source in sources(name):
            found.append(Found(source.name))
            for pair in _pairs(source, found[-1], flags):
                if len(examples) < EXAMPLES:
                    examples.append(pair)
                yield row_of(pair)
    if not any(one.pairs for one in found):
        why = "; ".join(summary(one.dropped) for one in found if one.dropped) or "there are no rows"
        raise UserError(f"{', '.join(flags.files)}: no pair is left ({why})")


def _pairs(source: Source, found: Found, flags: Convert) -> Iterator[Pair]:
    """The pairs of a source; what else there is to say of it goes into `found`."""
    format = OneFormat(flags.format)
    rows = islice(source.rows, flags.limit) if flags.limit else source.rows
    bar = tqdm(total=source.total, desc="convert", unit=source.unit, unit_scale=True, leave=False, delay=1)
    with bar:
        for row, pair, why in checked(rows, source.name, None, format):
            found.rows, found.format, found.by = found.rows + 1, format.name, format.row
            bar.update(source.done(row) - bar.n)
            if why:
                found.dropped.setdefault(why, Tally()).add(row.number)
            if pair is None:
                continue
            found.pairs, found.margins = found.pairs + 1, found.margins + (pair.margin is not None)
            found.pass_over(row.value, FORMATS[format.name].fields)
            texts = (pair.prompt, pair.chosen, pair.rejected or "")
            if any(END_OF_TEXT in text for text in texts):
                found.noted.setdefault(f"{END_OF_TEXT} in the text, read as its letters", Tally()).add(row.number)
            if format.name == "hh" and any("\nHuman:" in text for text in texts[1:]):
                found.noted.setdefault(GOES_ON, Tally()).add(row.number)
            yield pair


def row_of(pair: Pair) -> dict:
    """The row that is read as this pair again."""
    row: dict = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    row |= {"margin": pair.margin, "family": pair.family, "group": pair.group, "output": pair.output}
    row = {name: value for name, value in row.items() if value is not None}
    is_doubtful = are_dialogues(pair.chosen) and fitting(row) != ["prompt"]
    return row | {"format": "prompt"} if is_doubtful else row


def report(found: Found, flags: Convert) -> str:
    """What was met in one file, as text."""
    sign = (
        "as --format says" if flags.format else f"by row {found.by}: {FORMATS[found.format].sign}" if found.by else ""
    )
    lines = {
        "file": found.name,
        "format": f"{found.format}, {sign}" if sign else "none",
        "rows": f"{found.rows:,} read, {found.pairs:,} pairs"
        + f", {found.margins:,} with a margin" * (found.margins > 0),
        "dropped": summary(found.dropped) or "none",
        "noted": summary(found.noted),
        "not used": ", ".join(f"{printing(str(name))} ({count:,})" for name, count in found.unused.most_common()),
    }
    return "\n".join(f"{name:10}{text}" for name, text in lines.items() if text)


def example(pair: Pair, tokenizer: Tokenizer) -> str:
    """Prompt and answers as tokens, a dot between one and the next; each answer ends in end-of-text."""
    lines = [f"prompt    {pieces(pair.prompt, tokenizer)}"]
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if answer is not None:
            lines.append(f"{name:10}{pieces(answer, tokenizer)}·{END_OF_TEXT}")
    return "\n".join(lines)


def pieces(text: str, tokenizer: Tokenizer) -> str:
    """The tokens of a text with a dot between: "Sum· of· two". A long one is without its middle, what does not print an
    escape, and so are the bytes of a letter that is in two tokens."""
    if len(text) <= LONG:
        ids = tokenizer.encode(text)
        head, tail, left = ids[:PIECES], ids[PIECES:][-PIECES:], f"{len(ids) - 2 * PIECES:,} more tokens"
        is_cut = len(ids) > 2 * PIECES
    else:  # letters that no space parts take the square of their number to tokenize
        head, tail = tokenizer.encode(text[: LONG // 2])[:PIECES], tokenizer.encode(text[-LONG // 2 :])[-PIECES:]
        is_cut, left = True, f"{len(text):,} characters in all"

    def shown(ids: list[int]) -> str:
        texts = (tokenizer.decode_bytes([i]).decode("utf-8", "backslashreplace") for i in ids)
        return "·".join(printing(piece, 10 * len(piece)) for piece in texts)

    return f"{shown(head)} ... {left} ... {shown(tail)}" if is_cut else shown(head + tail)
