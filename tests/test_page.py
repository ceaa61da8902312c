"""dpo/page/: what stands in a page taken apart again, what cannot run in one, and what is said of a run that is damaged."""

import html
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

import numpy as np
from matplotlib.figure import Figure

from dpo.page.about import in_full, paragraph
from dpo.page.answers import AT_FIRST, MOST, answers, kinds_of, marked
from dpo.page.charts import CHARTS
from dpo.page.curves import POINTS, smoothed, thinned
from dpo.page.curves import chart as draw_chart
from dpo.page.digits import number_of, signed, tick
from dpo.page.figures import figures, overview, short
from dpo.page.inline import COLORS, inline_svg
from dpo.page.markup import escaped, joined, tag, text
from dpo.page.page import page_of
from dpo.page.reading import Answered, Metrics, Pair, Run, read_run, run_folders
from dpo.page.token_view import LEVELS, level, margins
from gpt.command import UserError
from tests.pages import SAMPLES, Taken, dpo_lines, make_run, pair, sample
from tests.processes import ROOT

STYLE = (ROOT / "dpo/page/page.css").read_text(encoding="utf-8")
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</style></script></title><img src=x onerror='window.hacked = 1'>",
    '"><iframe src="data:text/html,<script>parent.hacked = 1</script>">',
    "</article></main></body>\n<h1>gone</h1>",
    "<a href='javascript:window.hacked = 1'>data:text/html;base64,PHNjcmlwdD4=</a>",
    "abc \u202edcba\u202c \u2066x\u2069",
    "\x00\x1b[31mred\x07\r\n\ud800\U000e0041",
    "&lt;b&gt; &amp; &#60;script&#62;",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("page") / "well")


@pytest.fixture(scope="module")
def page(run) -> Taken:
    return Taken(page_of([run]))


# markup


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_text_is_read_back_letter_by_letter_what_is_hidden_as_an_escape(plain):
    found = Taken(f"<p>{text(plain)}</p>")
    assert found.text == escaped(plain)
    assert {name for name, _ in found.elements} <= {"p", "span"}
    found.text.encode()  # no half of a pair is left


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_an_attribute_is_read_back(plain):
    (found,) = Taken(tag("p", data_x=plain or "-")).of("p")
    assert found == {"data-x": escaped(plain) or "-"}


def test_what_is_made_by_tag_is_not_escaped_again_and_the_rest_is():
    inner = tag("b", "<", class_="x", hidden=True, title=None, id="")
    assert inner == '<b class="x" hidden>&lt;</b>'
    assert joined("a<", inner, None, tag("br")) == f"a&lt;{inner}<br>"


@pytest.mark.parametrize(
    "mark", ["\u202e", "\u2066", "\u200f", "\x1b", "\x00", "\u2028", "\ud800", "\ufeff", "\U000e0041"]
)
def test_what_turns_or_hides_text_is_shown_as_an_escape(mark):
    assert mark not in text(f"a{mark}b") and mark.encode("unicode_escape").decode() in text(f"a{mark}b")


def test_what_people_write_stays_as_it_is():
    plain = "Grüße, 日本語 🧑‍🚀 مرحبا\n\tnext"  # with a joiner
    assert text(plain) == plain


# pictures


def drawn(name: str) -> str:
    figure = Figure(figsize=(2, 1))
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.plot([0, 1], [2, 5], "o-", color=COLORS["chosen"])
    return inline_svg(figure, name, "a picture")


def test_a_picture_takes_its_colours_from_the_page_and_has_ids_and_no_style_of_its_own():
    one, other = drawn("one"), drawn("other")
    assert "style" not in one and "DejaVu" not in one and "#0b66c2" not in one
    assert re.search(r'class="chosen"[^>]*stroke="currentColor"|stroke="currentColor"[^>]*class="chosen"', one)
    ids, others = (set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other))
    assert ids and not ids & others
    assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', one)) == ids  # all that is referred to, and nothing else
    assert drawn("one") == one
    Taken(one)


def test_a_curve_of_many_steps_is_thinned_to_means_that_keep_the_whole():
    steps, values = thinned(list(range(10_000)), [float(step % 7) for step in range(10_000)])
    assert len(steps) == POINTS and steps[0] < steps[-1] and abs(values.mean() - np.mean([0, 1, 2, 3, 4, 5, 6])) < 0.01
    assert thinned([], [])[0].size == 0 and thinned([4, 5], [1.0, 2.0])[1].tolist() == [1.0, 2.0]


def test_a_smoothed_curve_is_the_mean_of_the_neighbours_that_there_are():
    values = np.arange(60.0) ** 2
    window = 4  # of 60 values: on either side
    expected = [values[max(0, i - window) : i + window + 1].mean() for i in range(60)]
    assert smoothed(values) == pytest.approx(expected)


def shown_of(name: str, lines: list[dict]) -> Taken:
    """One chart of a run."""
    (one,) = (chart for chart in CHARTS if chart.name == name)
    return Taken(draw_chart(one, [Metrics(lines)]))


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_the_axes_of_a_chart_say_what_they_count(chart):
    found = shown_of(chart.name, dpo_lines())
    assert "step" in found.text and chart.unit in found.text and chart.unit


@pytest.mark.parametrize("steps", [20, 60, 400])
def test_each_step_is_a_point_behind_the_mean_and_of_few_steps_the_line_itself(steps):
    pieces = [one["d"].split("M") for one in shown_of("margins", dpo_lines(steps)).of("path")]
    points = [piece for piece in pieces if len(piece) > 9]
    assert [len(piece) - 1 for piece in points] == ([] if steps == 20 else [min(steps, POINTS)])
    for piece in points:  # each a line without length, which its round ends make a dot
        ends = [re.findall("[-.0-9]+", one) for one in piece[1:]]
        assert all(len(end) == 4 and end[:2] == end[2:] for end in ends)


def test_rounding_is_drawn_as_nothing_and_not_as_a_curve():
    lines = [line | {"rewards/margins": 1e-8 * (-1) ** line["step"]} for line in dpo_lines(4)]
    assert not re.search("e\N{MINUS SIGN}[5-9]", shown_of("margins", lines).text)


# the page


def test_a_page_has_one_chart_for_each_metric_and_says_how_to_read_each(page):
    names = {one["id"] for one in page.of("figure")}
    assert names == {chart.name for chart in CHARTS} | {"spread"}
    assert len(page.of("svg")) == len(names)
    for chart in CHARTS:
        assert chart.reading in page.text and (not chart.warning or chart.warning in page.text)
    assert "ln 2" in page.text and "chance" in page.text
    assert not page.of("p", **{"class": "warning on"})


def test_what_was_run_stands_in_full(page):
    assert "60 steps of 8 pairs with dpo(beta=0.1), from data/tiny, on the embedded set; peak rate 0.0001" in page.text
    assert "100 pairs were held out" in page.text and "ab" * 32 in page.text and "2.13.0" in page.text


def test_figures_stand_before_beside_after(page):
    for word in ("loss", "accuracy", "margin", "log π(chosen)", "correct", "stopped", "length"):
        assert f"{word} " in page.text
    assert "0.693" in page.text and "0.900" in page.text and "\N{MINUS SIGN}0.500" in page.text


def test_a_sign_is_on_at_its_chart_and_named_above(tmp_path):
    lines = dpo_lines(fall=lambda part: -0.3 * part)
    found = Taken(page_of([make_run(tmp_path / "falls", lines)]))
    assert len(found.of("p", **{"class": "warning on"})) == 2  # at the rewards and at log π
    assert found.text.count("The margin grew by 2 while chosen answers lost 3 nats") == 3
    assert found.of("a", href="#rewards")


def test_trouble_of_the_machine_is_told_from_that_of_the_model(tmp_path):
    lines = dpo_lines(fall=lambda part: -0.3 * part)
    for line in lines[31:]:
        line |= {"pairs_per_second": 30.0} if line["split"] == "train" else {}
    folder = make_run(tmp_path / "slow", lines)
    found = Taken(page_of([folder]))
    assert found.text.count("The machine became slower, from 100 pairs a second to 30") == 2
    assert (
        len(found.of("li", **{"class": "machine"})) == 1 and len(found.of("p", **{"class": "warning on machine"})) == 1
    )
    assert found.of("li") != found.of("li", **{"class": "machine"}) and found.of("p", **{"class": "warning on"})
    assert len(Taken(page_of([folder, make_run(tmp_path / "well")])).of("li", **{"class": "machine"})) == 1


def test_nothing_of_a_page_comes_from_elsewhere_or_runs(page):
    assert not {"script", "img", "link", "iframe", "object", "base"} & {name for name, _ in page.elements}
    for name, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key == "style"], name
        for key in ("href", "src", "xlink:href"):
            assert attributes.get(key, "#").startswith("#")
    (policy,) = page.of("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy["content"]
    assert "script-src" not in policy["content"] and "url(" not in STYLE and "@import" not in STYLE


def test_the_ids_of_a_page_are_its_own(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {one["href"][1:] for one in page.of("a")} <= set(ids)


def test_the_same_run_gives_the_same_bytes(run):
    assert page_of([run]) == page_of([run])


def test_a_colour_of_a_curve_is_one_of_the_style():
    for name in COLORS:
        assert (
            f".{name} {{ color: var(--{name}); }}" in STYLE and STYLE.count(f"--{name}: #") == 2
        )  # by day and by night


def test_whatever_a_file_holds_stays_text(tmp_path, page):
    samples = [
        row for hostile in HOSTILE for row in (sample("5", hostile, hostile, expected=hostile), sample(hostile, "5"))
    ]
    pairs = [pair(number, [hostile, "b", hostile]) for number, hostile in enumerate(HOSTILE)]
    more = {f"loss/{hostile}": 0.5 for hostile in HOSTILE} | dict.fromkeys(HOSTILE, 1.0)
    folder = make_run(tmp_path / HOSTILE[0].replace("/", "|"), [line | more for line in dpo_lines()], samples, pairs)
    record = json.loads((folder / "run.json").read_text())
    record["flags"] |= {"init": HOSTILE[1], "pairs": HOSTILE[2]} | {hostile: hostile for hostile in HOSTILE}
    record["settings"]["loss"] = record["versions"]["torch"] = HOSTILE[3]
    (folder / "run.json").write_text(json.dumps(record))
    evaluation = {"correct": 0.5, "correct by family": dict.fromkeys(HOSTILE, 0.5)}
    judge = {"win rate": 0.5, "model": HOSTILE[4], "won": 1}
    (folder / "evaluation.json").write_text(json.dumps({"before": evaluation, "after": evaluation, "judge": judge}))
    found = Taken(page_of([folder]))
    shown = found.text.replace("\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n", "\n")  # as a token shows it
    for hostile in HOSTILE:  # in answers 2, prompts 1, expected 1, tokens 4, terms 1, flags 2, families 1
        assert shown.count(escaped(hostile)) >= 12
    there, usual = ({name for name, _ in one.elements} for one in (found, page))
    assert there - {"span"} <= usual  # no element that a page without such text does not have
    test_nothing_of_a_page_comes_from_elsewhere_or_runs(found)


# answers


def test_words_that_changed_are_marked_in_both_texts():
    before, after = marked("six and ten", "Certainly! six and  eleven ")
    assert before == "six and <del>ten</del>" and after == "<ins>Certainly!</ins> six and  <ins>eleven </ins>"
    assert marked("same", "same") == ("same", "same") and marked("", "new") == ("", "<ins>new</ins>")


@given(st.text("ab \n.<é", max_size=30), st.text("ab \n.<é", max_size=30))
def test_marked_texts_are_the_texts(before, after):
    for plain, found in zip((before, after), marked(before, after)):
        assert html.unescape(re.sub("</?(del|ins)>", "", found)) == plain


def test_what_an_answer_is_counted_as(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert [kinds_of(one) for one in run.samples] == [
        set(), {"changed", "longer"}, {"changed", "longer", "worse"}, {"changed", "longer", "worse"},
    ]  # fmt: skip


def test_each_choice_says_how_many_and_each_answer_has_its_classes(page):
    labels = re.findall(r"(all|changed|worse|longer) (\d+)", page.text)
    assert labels == [("all", "4"), ("changed", "3"), ("worse", "2"), ("longer", "3")]
    classes = [set((one.get("class") or "").split()) for one in page.of("article")]
    assert sum("worse" in one for one in classes) == 2
    assert f"n + {AT_FIRST + 1} of .worse" in STYLE


def test_what_was_expected_stands_beside_the_prompt_and_how_each_answer_is_at_the_answer(tmp_path):
    told = {"expected": "<b>91", "correct": {"before": True, "after": False}}
    rows = [sample("91", "93", **told), sample("a", "b")]
    items = re.findall(
        "<article.*?</article>", answers(read_run(make_run(tmp_path / "run", samples=rows)).samples), re.S
    )
    first, second = (Taken(item) for item in items)
    assert "expected <b>91" in first.text
    assert "before \N{CHECK MARK}91" in first.text and "after \N{BALLOT X}93" in first.text
    assert [one["aria-label"] for one in first.of("span", role="img")] == ["correct", "not correct"]
    assert "expected" not in second.text and not second.of("span", role="img")


def test_all_answers_of_a_choice_are_asked_for_by_their_number_where_some_are_hidden(tmp_path, page):
    rows = [sample("a", f"{'b ' * (number < 40)}c") for number in range(1234)]
    found = Taken(page_of([make_run(tmp_path / "run", samples=rows)]))
    assert re.findall(r"show all ([\d,]+)", found.text) == ["1,234", "1,234", "40"]  # all, changed, longer
    assert "show all" not in page.text and not page.of("input", id="whole")


def test_of_very_many_answers_some_from_all_over_are_shown(tmp_path):
    rows = [sample("a", f"answer {number}") for number in range(2 * MOST)]
    run = read_run(make_run(tmp_path / "many", samples=rows))
    found = Taken(answers(run.samples))
    assert len(found.of("article")) == MOST and f"Shown are {MOST:,} of {2 * MOST:,}" in found.text


def test_samples_of_before_there_were_lengths_are_shown_without(tmp_path):
    old = [{name: row[name] for name in ("prompt", "before", "after", "chosen", "rejected")} for row in SAMPLES]
    assert "changed" in Taken(page_of([make_run(tmp_path / "old", samples=old)])).text


# tokens


def test_a_colour_is_stronger_from_each_level_on():
    assert [level(0.0), level(0.99 * LEVELS[0]), level(-LEVELS[0])] == ["", "", "down-1"]
    assert [level(sign * LEVELS[-1]) for sign in (1, -1)] == ["up-4", "down-4"]
    for name in ("up", "down"):
        assert all(f".{name}-{number} {{" in STYLE for number in range(1, len(LEVELS) + 1))


def test_a_token_says_what_both_models_say_of_it(page):
    told = [one["data-moved"] for one in page.of("span") if "data-moved" in one]
    assert "log p \N{MINUS SIGN}2.00 to \N{MINUS SIGN}1.00, +1.00" in told
    assert len(told) == 3 * 2 * 4 and "margin +2.00 nats × beta" in page.text
    assert "3 of the 100 held-out pairs, 1 of these ranked wrong" in page.text
    assert "change of log π, in nats" in page.text


def test_all_held_out_pairs_or_an_unknown_number_of_them_are_counted_as_they_are():
    pairs = [Pair(1, "p", value, Answered([], [], []), None) for value in (1.0, -1.0)]
    for count in (0, 2):
        assert ">2 held-out pairs, 1 of these" in margins(pairs, count)
    assert ">2 of the 1,246 held-out pairs, 1 of these" in margins(pairs, 1246)


def test_pairs_without_margins_and_a_single_one_are_shown(tmp_path):
    row = {name: value for name, value in pair(0.0).items() if "rejected" not in name and name != "rewards/margins"}
    found = Taken(page_of([make_run(tmp_path / "sft", pairs=[row])]))
    assert "Some answers" in found.text and not found.of("figure", id="spread")


# several runs, and parts of one


def test_several_runs_are_one_table_and_share_their_charts_though_losses_differ(run, tmp_path):
    sft = [
        {k: v for k, v in line.items() if not k.startswith("rewards") and "rejected" not in k} for line in dpo_lines()
    ]
    other = make_run(tmp_path / "other", sft)
    (other / "run.json").write_text((other / "run.json").read_text().replace('"loss": "dpo"', '"loss": "sft"'))
    found = Taken(page_of([run, other]))
    assert {one["id"] for one in found.of("figure")} == {chart.name for chart in CHARTS}
    assert "--loss" in found.text and "2 runs" in found.text and not found.of("article")


def heads_and_rows(table: str) -> list[list[str]]:
    """The text of each cell of a table, row by row."""
    rows = re.findall("<tr>(.*?)</tr>", table, re.S)
    return [[Taken(cell).text for cell in re.findall("<t[hd].*?</t[hd]>", row, re.S)] for row in rows]


def test_of_several_runs_results_come_first_then_what_differs_in_the_experiment():
    flags = [
        {"out": "a", "device": "cpu", "log_to": ["tensorboard"], "keep": 1, "save_every": 5, "log_every": 1, "lr": 1e-4,
         "pairs": "/long/way/to/one.jsonl", "init": "runs/a/model", "tags": []},
        {"out": "b", "device": "cuda", "log_to": [], "keep": 2, "save_every": 0, "log_every": 9, "lr": 1e-5,
         "pairs": "/long/way/to/two.jsonl", "init": "runs/b/model", "tags": ["x", "y"]},
    ]  # fmt: skip
    lines = [dpo_lines(46), dpo_lines(60)]
    runs = [
        Run(name, {"flags": flag, "settings": {"steps": 60}}, Metrics(some), {}, [], [])
        for name, flag, some in zip("ab", flags, lines)
    ]
    table = overview(runs)
    head, first, second = heads_and_rows(table)
    assert head[1:] == ["steps", "loss", "accuracy", "margin", "log π(chosen)", "--lr", "--pairs", "--init", "--tags"]
    assert first[1] == "46 of 60" and second[1] == "60"
    assert first[-4:] == ["0.0001", "one.jsonl", "a/model", "\N{EN DASH}"]
    assert second[-4:] == ["1e-05", "two.jsonl", "b/model", "x, y"]
    assert 'title="/long/way/to/one.jsonl"' in table and "[" not in table


@given(st.lists(st.text("ab/", min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_shortened_path_ends_the_path_and_tells_apart_what_was_apart(paths):
    paths = [path.rstrip("/") for path in paths]
    shown = short(paths)
    assert all(path.endswith(brief) for path, brief in zip(paths, shown)) and len(set(shown)) == len(set(paths))


def test_trouble_that_is_not_there_is_no_verdict(page, run):
    assert "Trouble would look like this: it stays at ln 2" in page.text and "A warning" not in page.text
    assert "<b>Trouble" not in page_of([run])


def test_a_loss_that_does_not_begin_at_ln_2_is_not_held_against_it(tmp_path):
    lines = [line | {"loss": 25.0 - line["step"] / 10} for line in dpo_lines()]
    folder = make_run(tmp_path / "ipo", lines)
    found = Taken(page_of([folder]))
    assert "ln 2" not in found.text and "Trouble would look like this: it does not fall" in found.text


def test_faint_steps_and_their_mean_are_spoken_of_where_both_are_drawn(page, tmp_path):
    assert "faint points each step, the line their mean" in page.text
    shorter = make_run(tmp_path / "short", dpo_lines(20))
    assert "A line is training; dots" in Taken(page_of([shorter])).text
    assert "A line is training; dots" in Taken(page_of([shorter, make_run(tmp_path / "again", dpo_lines(15))])).text


def test_random_weights_without_likelihood_stand_out(tmp_path):
    folder = make_run(tmp_path / "random", samples=[sample("IIIIIIII", "IIIIIIII")] * 4)
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"init": ""', '"init": "random:tiny"'))
    found = Taken(page_of([folder]))
    assert "It began at random weights" in found.text and "4 of 4 answers repeat themselves" in found.text
    assert found.of("a", href="#in-full") and found.of("details", id="in-full")


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    other = make_run(tmp_path / "elsewhere" / "well")
    assert str(other) in Taken(page_of([run, other])).text


@pytest.mark.parametrize("inner", ["{}", "{}/run", "rounds/{}/run"])
def test_a_folder_of_runs_stands_for_them(tmp_path, inner):
    for name in ("round-02", "round-01"):
        make_run(tmp_path / inner.format(name))
    assert [path.relative_to(tmp_path).as_posix() for path in run_folders(tmp_path)] == [
        inner.format(name) for name in ("round-01", "round-02")
    ]
    assert "round-01, round-02" in Taken(page_of([tmp_path])).text


def test_a_run_that_has_begun_shows_what_there_is(tmp_path):
    found = Taken(page_of([make_run(tmp_path / "begun", dpo_lines()[:2], [], [])]))
    assert "1 of 60 steps of 8 pairs, stopped, with dpo(beta=0.1)" in found.text and "No answers yet" in found.text
    assert f"python dpo/evaluate.py --policy {tmp_path / 'begun'} lets" in found.text


def test_the_path_in_a_command_is_one_word_of_a_shell_and_stays_text(tmp_path):
    folder = make_run(tmp_path / "a <b>run", samples=[])
    assert f"--policy '{folder}' lets" in Taken(page_of([folder])).text


# what cannot be read


def refusal(paths) -> str:
    with pytest.raises(UserError) as caught:
        page_of(paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_damaged_line_of_metrics_is_named_but_a_last_one_that_is_being_written_waited_for(tmp_path):
    folder = make_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 61, "spl')
    page_of([folder])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("\n")
    line = len(dpo_lines()) + 1
    assert f"{folder / 'metrics.jsonl'}, line {line}: this is no line of metrics" in refusal([folder])


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("samples.jsonl", '{"prompt": "p", "before": 1}\n', "line 1: field 'before' must be text, found a number"),
        ("samples.jsonl", "3\n", "line 1: field 'prompt' must be text"),
        ("samples.jsonl", "{", "samples.jsonl, line 1"),
        ("tokens.jsonl", '{"prompt": "p", "tokens/chosen": ["a"]}\n', "line 1: tokens/chosen, logps/chosen"),
        ("tokens.jsonl", json.dumps(pair(0.0) | {"logps/rejected": [1]}) + "\n", "line 1: tokens/rejected"),
        ("tokens.jsonl", json.dumps(pair(0.0, ["a"]) | {"logps/chosen": ["x"]}) + "\n", "line 1: tokens/chosen"),
        ("run.json", "[]", "run.json holds no JSON object"),
        ("evaluation.json", "{", "evaluation.json is no JSON"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, name, content, expected):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(content)
    assert expected in refusal([folder])


def test_no_run_and_no_metrics_yet_say_what_to_name(tmp_path):
    assert "does not exist" in refusal([tmp_path / "none"])
    assert "no run: no metrics.jsonl" in refusal([tmp_path])
    (tmp_path / "run.json").write_text("{}")
    assert "no metrics yet" in refusal([tmp_path])
    (tmp_path / "metrics.jsonl").write_text("")
    assert "no metrics yet" in refusal([tmp_path])


def test_each_of_many_runs_has_a_mark_of_its_own_and_too_many_are_refused(tmp_path):
    for number in range(24):
        make_run(tmp_path / f"{number}", dpo_lines()[:3], [], [])
    marks = [one["class"] for one in Taken(page_of([tmp_path])).of("span") if "run-" in one.get("class", "")]
    assert len(marks) == 2 * 24 and len(set(marks)) == 24  # in the table and above the curves
    make_run(tmp_path / "24", dpo_lines()[:2], [], [])
    assert "25 runs; a page has room for the curves of 24" in refusal([tmp_path])


ANYTHING = st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=3), st.lists, max_leaves=4)
FLAGS = st.dictionaries(st.sampled_from(["steps", "lr", "batch", "pairs", "loss", "lora", "correct"]), ANYTHING)


@given(st.dictionaries(st.sampled_from(["flags", "settings", "processes", "versions", "before"]), ANYTHING | FLAGS))
def test_whatever_json_the_records_hold_the_head_of_a_page_can_be_written(record):
    run = Run("run", record, Metrics(dpo_lines()[:3]), record | {"after": record.get("before")}, [], [])
    for made in (paragraph(run), in_full(run), figures(run)):
        assert made is None or Taken(made)


NUMBERS = {
    number_of: {0.69314: "0.693", -0.0001: "0.000", -12.5: "−12.500", 123.45: "123.5", 12345.6: "12,346"},
    tick: {0.0001: "1e−4", -5e-7: "−5e−7", 12000: "12k", 0.25: "0.25", -0.0: "0", 1e-17: "0"},
    signed: {1.5: "+1.50", -0.25: "−0.25"},
}


@pytest.mark.parametrize("write", NUMBERS)
def test_a_number_has_the_digits_that_say_something(write):
    assert {value: write(value) for value in NUMBERS[write]} == NUMBERS[write]
