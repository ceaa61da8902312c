"""What it brought, in figures: before beside after, and where several runs ended."""

from collections.abc import Sequence

from dpo.page.about import said
from dpo.page.digits import MINUS, number_of, signed
from dpo.page.inline import RUNS
from dpo.page.markup import Html, joined, tag
from dpo.page.reading import Run, figure, part
from dpo.page.state import word
from dpo.side_by_side import NOTES

# What metrics.jsonl says of held-out pairs, beside the figures of evaluation.json
HELD_OUT = {
    "loss": ("loss", "of held-out pairs"),
    "rewards/accuracies": ("accuracy", "pairs, a tie is half"),
    "rewards/margins": ("margin", "beta × log-ratio"),
    "rewards/chosen": ("chosen reward", "beta × gain"),
    "rewards/rejected": ("rejected reward", "beta × gain"),
    "logps/chosen": ("log π(chosen)", "nats"),
    "logps/rejected": ("log π(rejected)", "nats"),
}
# Flags that change nothing of what is learned, or that have a column of their own
RUNNING = (
    "out steps resume dry_run device eval_every log_every log_to save_every save_minutes keep timeout debug".split()
)
PATHS = ("pairs", "init", "reference")
COMPARED = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen")
ANSWERS = ("courteous", "rude", "correct", "stopped", "length")


def figures(run: Run) -> Html | None:
    """Before beside after: held-out pairs at the first and the last evaluation, and the answers of both models."""
    curves = {name: run.metrics.curve(name, "held-out")[1] for name in HELD_OUT}
    pairs = [_change(*HELD_OUT[name], ends[0], ends[-1]) for name, ends in curves.items() if len(ends) > 1]
    before, after = (part(run.evaluation, when) for when in ("before", "after"))
    answered = _changes({name: NOTES[name] for name in ANSWERS}, before, after)
    one, other = (part(side, "correct by family") for side in (before, after))
    families = _changes(dict.fromkeys(other, ""), one, other)
    tables = [_table(title, rows) for title, rows in (("Held-out pairs", pairs), ("Answers", answered)) if rows]
    if not tables:
        return None
    more = families and tag("details", tag("summary", "Correct, by family"), _table("", families), id="families")
    return joined(tag("div", *tables, class_="columns"), _difference(run), _judged(run), more or None)


def _table(title: str, rows: Sequence[Html]) -> Html:
    head = tag("tr", *(tag("th", word) for word in (title, "before", "after", "change")))
    return tag("table", head, *rows, class_="figures")


def _changes(notes: dict[str, str], before: dict, after: dict) -> list[Html]:
    ends = ((name, figure(before, name), figure(after, name)) for name in notes)
    return [_change(name, notes[name], old, new) for name, old, new in ends if old is not None and new is not None]


def overview(runs: Sequence[Run]) -> Html:
    """Several runs as one table: where they ended on held-out pairs, and what differs between their flags."""
    given = [part(run.record, "flags") for run in runs]
    keys = [key for key in dict.fromkeys(k for one in given for k in one) if key not in RUNNING]
    differ = [key for key in keys if len({said(one.get(key)) for one in given}) > 1]
    ended = {HELD_OUT[name][0]: [_last(run, name) for run in runs] for name in COMPARED}
    ended |= {name: [figure(part(run.evaluation, "after"), name) for run in runs] for name in ANSWERS}
    ended = {short: values for short, values in ended.items() if any(value is not None for value in values)}
    flagged = (tag("th", tag("code", f"--{key.replace('_', '-')}"), class_="flag") for key in differ)
    columns = {key: [said(one.get(key)) for one in given] for key in differ}
    shown = {key: short(column) if key in PATHS else column for key, column in columns.items()}
    head = tag("tr", tag("th"), *(tag("th", word) for word in ("steps", *ended)), *flagged)
    rows = []
    for number, run in enumerate(runs):
        cells = [tag("td", _steps(run), class_="number")]
        cells += [_cell(values[number]) for values in ended.values()]
        for key in differ:
            full, brief = columns[key][number], shown[key][number]
            cells.append(tag("td", tag("code", brief, title=None if brief == full else full)))
        rows.append(tag("tr", tag("th", run_swatch(number), run.name), *cells))
    return tag("div", tag("table", head, *rows, class_="figures wide"), class_="scroll")


def short(paths: Sequence[str]) -> list[str]:
    """The paths without their folders, but for those folders that tell two of them apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    different = len(set(map(tuple, parts)))
    for length in range(1, max(map(len, parts), default=0)):
        tails = ["/".join(one[-length:]) for one in parts]
        if len(set(tails)) == different:
            return tails
    return list(paths)


def _steps(run: Run) -> Html:
    done, planned = run.steps
    count = f"{done:,} of {planned:,}" if done < planned else f"{done:,}"
    return joined(count, " ", tag("small", word(run))) if word(run) else joined(count)


def swatch(color: str, thin: bool = False) -> Html:
    """A short line in the colour of a curve."""
    return tag("span", "", class_=f"swatch {color}{' thin' * thin}")


def run_swatch(number: int) -> Html:
    """That of a run among several: after all colours come these dashed, and then dotted."""
    return swatch(f"run-{number % RUNS} round-{number // RUNS}")


def _cell(value: float | None) -> Html:
    return tag("td", "" if value is None else number_of(value), class_="number")


def _last(run: Run, name: str) -> float | None:
    _, values = run.metrics.curve(name, "held-out")
    return values[-1] if values else None


def _change(name: str, note: str, before: float, after: float) -> Html:
    change = number_of(after - before)
    sign = "" if change.startswith(MINUS) or not change.strip("0.") else "+"
    head = tag("th", name, " ", tag("small", note))
    return tag("tr", head, _cell(before), _cell(after), tag("td", sign + change, class_="number"))


def _difference(run: Run) -> Html | None:
    found = part(run.evaluation, "difference")
    names = ("correct", "standard error", "became correct", "became wrong")
    numbers = [number for name in names if (number := figure(found, name)) is not None]
    if len(numbers) < len(names):
        return None
    change, error, right, wrong = numbers
    became = f"{right:.0f} prompts became correct, {wrong:.0f} wrong."
    return tag("p", f"Correct changed by {signed(change, 3)}, standard error {error:.3f}: {became}")


def _judged(run: Run) -> Html | None:
    found = part(run.evaluation, "judge")
    if (rate := figure(found, "win rate")) is None:
        return None
    counts = ", ".join(
        f"{int(count):,} {name}" for name in ("won", "tied", "lost") if (count := figure(found, name)) is not None
    )
    return tag("p", f"Win rate of the answers after {rate:.3f}, judged by {said(found.get('model'))}: {counts}.")
