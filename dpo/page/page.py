"""The page: a head, what stands out, the figures, the curves, the pairs token by token, the answers.

It has no script, no address and no file beside it; its one style is allowed by its hash. Watched (dpo/page/serve.py), it has
one script, which asks the server that it came from for the page anew.
"""

import base64
import hashlib
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from dpo.page.about import heading, in_full, paragraph
from dpo.page.answers import answers
from dpo.page.charts import CHARTS, Chart, charts_of, signs_of
from dpo.page.curves import chart, is_smoothed
from dpo.page.figures import figures, overview, run_swatch, swatch
from dpo.page.markup import Html, joined, tag
from dpo.page.reading import Run, not_begun, own_name, read_run, run_folders
from dpo.page.signs import ENOUGH
from dpo.page.state import has_curves, state, to_begin, waits
from dpo.page.token_view import legend, margins, token_view
from gpt.command import UserError

MOST = 24  # runs on a page: as many as colours, solid, dashed and dotted, tell apart
MACHINE = [one.name for one in CHARTS if one.machine]
HOW = (
    "A loss such as DPO's knows whole answers only. Here is each of their tokens, coloured by log π less log π of the "
    "reference: their sum, times beta, is the answer's reward. A manner that was learned shows in a few tokens, an answer that "
    "was unlearned in those that carry its meaning. Point at a token, or tap it, for its numbers."
)


def page_of(paths: Sequence[Path], watched: bool = False) -> str:
    """The report on these runs, a whole HTML document. The same folders give the same bytes.

    Raises UserError for what is no run, or holds what cannot be read; if the page is watched, what has not begun is waited for.
    """
    waited = not_begun(paths) if watched else []
    folders = [folder for path in paths if path not in waited for folder in run_folders(path)]
    if len(folders) > MOST:
        raise UserError(f"{len(folders)} runs; a page has room for the curves of {MOST}, name fewer")
    names = [own_name(folder) for folder in folders]
    runs = [read_run(f, name if names.count(name) == 1 else str(f)) for f, name in zip(folders, names)]
    if not watched and not any(run.metrics.lines for run in runs):
        raise UserError(f"{paths[0]} holds no metrics yet; wait for the first line of metrics.jsonl")
    wait = to_begin([str(path) for path in waited]) if waited else None
    if not runs:
        return document("waiting", joined(wait), watched)
    body = joined(wait, _one(runs[0]) if len(runs) == 1 else _several(runs))
    return document(", ".join(run.name for run in runs[:3]) + ", ..." * (len(runs) > 3), body, watched)


def document(title: str, body: Html, watched: bool = False) -> str:
    """A whole page around what it shows."""
    style, script = ((files("dpo.page") / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    allowed = f"default-src 'none'; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    if watched:
        allowed += f"; script-src {_hash(script)}; connect-src 'self'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=allowed),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style)),
    )
    live = tag("p", "watching", id="live", role="status") if watched else None
    parts = (tag("main", body), live, tag("script", Html(script)) if watched else None)
    return "<!doctype html>\n" + tag("html", head, tag("body", *parts), lang="en") + "\n"


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _one(run: Run) -> Html:
    shown = signs_of(run)
    before_after, spread = figures(run), margins(run.pairs, run.held_out)
    how = tag("div", spread, tag("div", tag("p", HOW, class_="hint"), legend()), class_="beside")
    tokens = joined(how, token_view(run.pairs)) if run.pairs else None
    return joined(
        tag("header", heading(run), paragraph(run), state(run), in_full(run) if run.record else None),
        _section("signs", "What stands out", _signs(shown, early=run.steps[0] < ENOUGH))
        if shown or has_curves(run)
        else None,
        _section("figures", "Before and after", before_after) if before_after else None,
        _section("curves", "Curves", *_curves([run], shown)),
        _section("tokens", "Where training acted", tokens) if tokens else None,
        _section("answers", "Answers, before and after", _answers(run)),
    )


def _answers(run: Run) -> Html:
    if not run.samples:
        how = f"python dpo/evaluate.py --policy {shlex.quote(run.path)}"
        return tag(
            "p", "No answers yet: ", tag("code", how), " lets both models answer the held-out prompts.", class_="hint"
        )
    return answers(run.samples)


def _several(runs: Sequence[Run]) -> Html:
    lists = [joined(tag("h3", run.name), _signs(found, linked=False)) for run in runs if (found := signs_of(run))]
    return joined(
        tag("header", tag("h1", f"{len(runs)} runs"), tag("p", ", ".join(run.name for run in runs), class_="lead")),
        _section("figures", "Side by side", overview(runs)),
        _section("signs", "What stands out", *(lists or [_signs({})])),
        _section("curves", "Curves", *_curves(runs, {})),
    )


def _section(name: str, title: str, *content: Html | None) -> Html:
    return tag("section", tag("h2", title), *content, id=name)


def _signs(shown: dict[str, list[str]], linked: bool = True, early: bool = False) -> Html:
    if not shown:
        none = "Nothing: none of the signs of trouble that are looked for is there."
        soon = f"Nothing yet: most signs of trouble are looked for after {ENOUGH} steps."
        return tag("p", soon if early else none, class_="hint")
    items = [
        tag(
            "li", said, *(" ", tag("a", "look", href=f"#{where[0]}")) * linked, class_="machine" * (where[0] in MACHINE)
        )
        for said, where in shown.items()
    ]
    return tag("ul", *items, class_="signs")


def _key(runs: Sequence[Run]) -> Html:
    metrics = [run.metrics for run in runs]
    lines = [line for one in charts_of(metrics) for line in one.lines]
    means = any(is_smoothed(line, one) for line in lines for one in metrics)
    alone = len(runs) == 1
    mean = (", faint points each step, the line their mean" if alone else ", the mean over some steps") * means
    how = tag("p", f"A line is training{mean}; dots are held-out pairs.", class_="hint")
    names = [tag("span", run_swatch(number), run.name) for number, run in enumerate(runs)]
    return how if alone else joined(tag("p", *names, class_="key"), how)


def _curves(runs: Sequence[Run], shown: dict[str, list[str]]) -> list[Html]:
    """The charts and how they are read; of runs that have none yet, that they are waited for."""
    drawn = any(map(has_curves, runs))
    return [_key(runs), _charts(runs, shown)] if drawn else [tag("p", waits(runs[0]), class_="hint")]


def _charts(runs: Sequence[Run], shown: dict[str, list[str]]) -> Html:
    metrics = [run.metrics for run in runs]
    cards = [
        _card(one, chart(one, metrics), [s for s, where in shown.items() if one.name in where], len(runs) == 1)
        for one in charts_of(metrics)
    ]
    return tag("div", *cards, class_="cards")


def _card(one: Chart, svg: Html, sentences: Sequence[str], alone: bool) -> Html:
    keys = [
        tag("span", swatch(line.color if alone else "ink", line.thin and not alone), line.label) for line in one.lines
    ]
    head = tag("div", tag("h3", one.title), tag("p", *keys, class_="key") if len(keys) > 1 else None, class_="top")
    usual = ["Trouble would look like this: ", one.warning]
    said = [tag("b", "Seen here: "), " ".join(sentences)] if sentences else usual
    kind = "warning" + " on" * bool(sentences) + " machine" * (bool(sentences) and one.machine)
    warning = tag("p", *said, class_=kind) if one.warning or sentences else None
    return tag(
        "figure",
        head,
        svg,
        tag("figcaption", tag("p", one.reading), warning),
        class_="card",
        id=one.name,
    )
