"""The report in a real browser: no errors, nothing that runs, filters, colours by day and night, and a page that follows its run.

It needs Debian's `chromium` (or another Chromium on the PATH) and `playwright`, which drives it; without them it is skipped.
"""

import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives a browser, is not installed")

from dpo.page import serve
from dpo.page.charts import CHARTS
from dpo.page.page import page_of
from gpt.files import locked
from tests.pages import SAMPLES, dpo_lines, make_run, pair, sample
from tests.test_page import HOSTILE

QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window, with a profile of its own."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no chromium on the PATH (Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """A function that opens an address: the page, and what it said on its console or asked of a network."""
    contexts = []

    def open_page(address: str, viewport: dict = WIDE, scheme: str = "light", scripts: bool = True):
        context = browser.new_context(viewport=viewport, color_scheme=scheme, java_script_enabled=scripts)
        contexts.append(context)
        page, heard = context.new_page(), []
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: heard.append(f"dialog: {dialog.message}") or dialog.dismiss())
        page.on("request", lambda request: None if request.url == address else heard.append(f"request: {request.url}"))
        page.goto(address)
        return page, heard

    yield open_page
    for context in contexts:
        context.close()


def written(folder: Path) -> str:
    """The address of the run's report, once it is written."""
    (folder / "report.html").write_text(page_of([folder]), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    many = [sample("a b", f"answer {number}", f"Prompt {number}.") for number in range(60)]
    pairs = [pair(margin / 10 - 0.5) for margin in range(30)]
    lines = [line | {"loss/dpo": line["loss"], "loss/sft": 0.4} for line in dpo_lines(fall=lambda part: -0.3 * part)]
    return written(make_run(tmp_path_factory.mktemp("browser") / "run", lines, SAMPLES + many, pairs))


def visible(page, selector: str) -> int:
    return sum(found.is_visible() for found in page.locator(selector).all())


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_page_opens_without_a_word_and_shows_every_chart_within_its_width(opened, address, viewport):
    page, heard = opened(address, viewport)
    for name in [chart.name for chart in CHARTS] + ["terms", "spread"]:
        box = page.locator(f"#{name} svg").bounding_box()
        assert box["width"] > 250 and box["height"] > 130, name
        curves = page.locator(f"#{name} svg path").evaluate_all(
            "all => all.filter(one => one.getBoundingClientRect().width > 100)"
        )
        assert curves or name == "spread", name
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    assert heard == []


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_of_several_runs_the_results_are_in_view_however_long_the_paths_of_their_pairs(opened, tmp_path, viewport):
    runs = [make_run(tmp_path / f"a-run-of-a-long-name-{number}", dpo_lines(4, 2), [], []) for number in range(2)]
    for run in runs:
        pairs = json.dumps(f"{'/far/away' * 20}/{run.name}.jsonl")
        (run / "run.json").write_text((run / "run.json").read_text().replace('"pairs": ""', f'"pairs": {pairs}'))
    (tmp_path / "report.html").write_text(page_of(runs), encoding="utf-8")
    page, heard = opened((tmp_path / "report.html").as_uri(), viewport)
    heads = page.locator(".wide tr:first-child th")
    ends = {head.inner_text(): head.bounding_box() for head in heads.all()}
    seen = {name for name, box in ends.items() if box["x"] + box["width"] <= viewport["width"]}
    assert seen >= {"steps", "loss", "accuracy"} and "--pairs" in ends
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"] and heard == []


def test_colours_follow_day_and_night(opened, address):
    found = []
    for scheme in ("light", "dark"):
        page, heard = opened(address, scheme=scheme)
        color = "one => getComputedStyle(one)"
        ground = page.locator("body").evaluate(f"{color}.backgroundColor")
        line = page.locator("#rewards svg path.chosen[stroke=currentColor]").first.evaluate(f"{color}.stroke")
        letters = page.locator("#rewards svg text").first.evaluate(f"{color}.fill")
        found.append((ground, line, letters))
        assert heard == []
    assert all(day != night for day, night in zip(*found))
    assert found[0][1] == "rgb(11, 102, 194)"


def test_each_choice_shows_its_answers_and_no_others_without_any_script(opened, address):
    page, heard = opened(address, scripts=False)
    assert visible(page, ".answers article") == 30  # of 64
    for choice, count in (("changed", 30), ("worse", 2), ("longer", 3), ("all", 30)):
        page.locator(f"label[for=only-{choice}]").click()
        assert visible(page, ".answers article") == count, choice
        if choice != "all":
            assert visible(page, f".answers article.{choice}") == count
    more = page.locator("label[for=whole]")
    assert more.inner_text() == "show all 64"
    page.locator("label[for=only-worse]").click()
    assert not more.is_visible()  # its two are there
    page.locator("label[for=only-changed]").click()
    assert more.inner_text() == "show all 63"
    page.locator("label[for=only-all]").click()
    more.click()
    assert visible(page, ".answers article") == 64
    page.locator("label[for=only-changed]").click()
    assert visible(page, ".answers article") == 63 and heard == []


def test_a_token_shows_its_numbers_when_it_is_tapped(opened, address):
    page, _ = opened(address, NARROW)
    token = page.locator(".tokens .side .token").nth(1)
    after = "one => getComputedStyle(one, '::after').content"
    assert token.evaluate(after) == "none"
    token.click()
    assert "+1.00" in token.evaluate(after)
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]


def test_a_hostile_answer_stays_text(opened, tmp_path):
    samples = [sample("5", hostile, hostile) for hostile in HOSTILE]
    lines = [line | {f"loss/{hostile}": 0.5 for hostile in HOSTILE} for line in dpo_lines()]
    folder = make_run(tmp_path / "hostile", lines, samples, [pair(1.0, [hostile, hostile]) for hostile in HOSTILE])
    page, heard = opened(written(folder))
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None and heard == []
    assert page.locator("script, img, iframe, object").count() == 0
    (heading,) = page.locator("h1").all_inner_texts()
    assert heading.split() == "hostile dpo · data/tiny · 60 steps".split()
    assert page.locator(".answers article").count() == len(HOSTILE)
    shown = page.locator(".answers .side:last-child p")
    assert shown.nth(0).text_content() == HOSTILE[0]
    assert shown.nth(5).text_content() == r"abc \u202edcba\u202c \u2066x\u2069"
    assert shown.nth(5).evaluate("one => getComputedStyle(one).unicodeBidi") == "isolate"


def test_what_came_past_the_first_wall_would_stop_at_the_second(opened, tmp_path):
    folder = make_run(tmp_path / "run")
    address = written(folder)
    page = (folder / "report.html").read_text()
    attack = "<script>window.hacked = 1</script><img src='https://example.org/x'><p style='color: red' onclick='x()'>"
    (folder / "report.html").write_text(page.replace("</main>", f"{attack}</main>"))
    page, heard = opened(address)
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None
    assert sum("Content Security Policy" in line for line in heard) >= 3  # the script, the picture, the style


def test_a_watched_page_follows_its_run_and_keeps_what_the_reader_chose(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "SHARE", 0)
    folder = make_run(tmp_path / "live", dpo_lines()[:30])
    with serve.watch([folder], 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            page, heard = opened(f"http://127.0.0.1:{server.server_address[1]}/")
            page.locator("label[for=only-worse]").click()
            page.locator("#in-full summary").click()
            page.evaluate("document.documentElement.style.scrollBehavior = 'auto'; scrollTo(0, 900)")
            assert "28 of 60 steps" in page.locator(".lead").inner_text()
            with open(folder / "metrics.jsonl", "a") as file:
                file.writelines(json.dumps(line) + "\n" for line in dpo_lines()[30:])
            playwright.expect(page.locator(".lead")).to_have_text(
                re.compile("^60 steps of 8 pairs with"), timeout=15_000
            )
            assert page.locator("#only-worse").is_checked() and visible(page, ".answers article") == 2
            assert page.locator("#in-full").get_attribute("open") is not None
            assert page.evaluate("scrollY") == 900
            assert page.locator("#live").inner_text() == "watching"  # finished, it is no run that could stand still
            assert heard == []
        finally:
            server.shutdown()
            thread.join()
    playwright.expect(page.locator("#live")).to_have_class("gone", timeout=15_000)


def test_a_page_is_opened_before_its_run_begins_and_shows_when_it_wrote_last(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "SHARE", 0)
    folder = tmp_path / "later"
    with serve.watch([folder], 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            page, heard = opened(f"http://127.0.0.1:{server.server_address[1]}/")
            live = page.locator("#live")
            assert f"Waiting for {folder} to begin." in page.locator("main").inner_text()
            with locked(make_run(folder, dpo_lines()[:30]) / "lock"):
                playwright.expect(page.locator("#loss svg")).to_be_visible(timeout=15_000)
                playwright.expect(live).to_have_text(re.compile(r"watching; last line \d+ s ago"), timeout=15_000)
                assert live.get_attribute("class") == ""
                then = time.time() - 600
                os.utime(folder / "metrics.jsonl", (then, then))  # as if nothing had been written since
                playwright.expect(live).to_have_text("watching; last line 10 min ago", timeout=15_000)
                assert live.get_attribute("class") == "still"
            assert heard == []
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("cards", range(7, 11))
def test_no_card_stands_alone_in_a_row_and_charts_of_a_row_at_one_height(opened, tmp_path, cards):
    terms = {f"loss/{name}": 0.5 for name in ("dpo", "sft")} if cards == 10 else {}
    gone = ["grad_norm", "pairs_per_second"][: 9 - cards] if cards < 9 else []
    lines = [{k: v for k, v in (line | terms).items() if k not in gone} for line in dpo_lines()]
    for width in (1180, 900):
        page, _ = opened(written(make_run(tmp_path / f"{width}", lines)), {"width": width, "height": 900})
        boxes = [card.bounding_box() for card in page.locator(".cards > .card").all()]
        ends = {round(box["y"]): box["x"] + box["width"] for box in boxes}  # of the last card of each row
        assert len(boxes) == cards and max(ends.values()) - min(ends.values()) < 2
        heights: dict[int, set[int]] = {}
        for card in page.locator(".cards > .card").all():
            place, picture = card.bounding_box(), card.locator("svg").bounding_box()
            heights.setdefault(round(place["y"]), set()).add(round(picture["y"]))
        assert all(max(ys) - min(ys) < 2 for ys in heights.values())
