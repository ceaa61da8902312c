"""dpo/win_rate.py, and dpo/evaluate.py --judge: the rate counted again by hand, the interval against other formulas."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.confidence import Z, wilson
from data.failures import Failures
from data.judge import JudgeFlags, open_judge
from data.pairs import Pair, write_rows
from data.questions import request_in
from data.rules import preference_rows
from dpo.answers import Answer
from dpo.win_rate import judged_by, line, win_rate
from gpt.command import UserError
from tests.openai_server import MODEL, by_rule, fenced, manner, serving
from tests.processes import ROOT, call


@pytest.fixture
def server():
    with serving(by_rule) as server:
        yield server


def texts(*answers: str) -> list[Answer]:
    return [Answer(text, True, 1) for text in answers]


def test_wins_ties_and_losses_are_counted_and_what_has_no_verdict_apart(server):
    def reply(text: str, request: dict) -> str:
        return "Well." if fenced(text)["request"] == "p5" else by_rule(text, request)

    server.reply = reply
    pairs = [Pair(f"p{n}", "-", None, 10 + n) for n in range(6)]
    failures = Failures()
    before = texts("1", "Certainly! 1", "same", "Ugh, fine. 1", "one", "x")
    after = texts("Certainly! 1", "1", "same", "1", "two", "y")
    with open_judge(MODEL, JudgeFlags(address=server.address, criterion="polite")) as judge:
        found = win_rate(judge, pairs, before, after, failures)
    assert {name: found[name] for name in ("won", "tied", "lost", "failed")} == {
        "won": 2,
        "tied": 2,
        "lost": 1,
        "failed": {"no verdict in the reply": 1},
    }
    assert found["win rate"] == (2 + 2 * 0.5) / 5 and found["interval"] == wilson(0.6, 5)
    said = line({"model": "m", "criterion": "polite", **found}, failures)
    assert "win rate 0.600" in said and "2 won, 2 tied, 1 lost, 1 failed" in said and "polite by m" in said
    assert said.endswith("\nfailed   no verdict in the reply: 1 (row 15)")


def test_a_judge_that_always_says_first_finds_no_difference(server):
    server.reply = lambda text, request: "Verdict: first"
    with open_judge(MODEL, JudgeFlags(address=server.address)) as judge:
        found = win_rate(judge, [Pair("p", "-", None)] * 3, texts("a", "b", "c"), texts("d", "e", "f"), Failures())
    assert (found["win rate"], found["won"], found["tied"], found["lost"]) == (0.5, 0, 3, 0)


def test_without_any_verdict_there_is_no_rate(server):
    server.reply = lambda text, request: None
    with open_judge(MODEL, JudgeFlags(address=server.address)) as judge:
        found = win_rate(judge, [Pair("p", "-", None)], texts("a"), texts("b"), failures := Failures())
    assert found["win rate"] is None and found["failed"] == {"the model refused, or said nothing": 1}
    said = line({"model": "m", "criterion": "polite", **found}, failures)
    assert "m gave no verdict\nfailed   the model refused" in said


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_ends_where_the_rate_is_just_z_standard_errors_away(case):
    won, count = case
    rate = won / count
    low, high = wilson(rate, count)
    assert 0 <= low <= rate + 1e-12 and rate - 1e-12 <= high <= 1
    for bound in (low, high):  # Wilson's definition: the p of which |rate - p| = Z sqrt(p (1 - p) / n)
        assert abs(rate - bound) == pytest.approx(Z * math.sqrt(bound * (1 - bound) / count), abs=1e-7)
    other = wilson(1 - rate, count)
    assert [1 - other[1], 1 - other[0]] == pytest.approx([low, high])


def test_the_interval_of_a_known_case():
    assert wilson(0.7, 100) == pytest.approx([0.60415, 0.78106], abs=1e-4)  # 70 of 100, in many a textbook
    assert wilson(1.0, 10)[0] == pytest.approx(0.72246, abs=1e-4)


@pytest.mark.parametrize(
    "model, flags, expected",
    [
        (
            "",
            {"address": "http://x/v1", "at_once": 2},
            "--address, --at-once: of an LLM that is asked, and there is no --judge",
        ),
        ("", {"criterion": "polite"}, "--criterion: of an LLM"),
        ("m", {"address": "x"}, "an address has the form"),
        ("m", {"criterion": "pollite"}, "--criterion pollite"),
        ("m", {"tries": 0}, "--tries is 0"),
        ("m", {"address": "http://127.0.0.1:9/v1"}, "nothing answers at http://127.0.0.1:9/v1"),
    ],
)
def test_flags_of_a_judge_need_a_judge_and_one_that_is_there(model, flags, expected):
    with pytest.raises(UserError, match=expected):
        judged_by(model, JudgeFlags(**flags))


def test_a_judge_is_asked_a_small_question_first_unless_it_was_found_to_reply_before(server, tmp_path):
    assert judged_by("", JudgeFlags()) is None
    flags, kept = JudgeFlags(address=server.address, wait=0.0, retries=1), tmp_path / "judge.jsonl"
    server.reply = lambda text, request: "Hello."
    assert judged_by(MODEL, flags, kept) == (MODEL, flags, kept)
    assert [request["messages"][0]["content"] for request in server.asked] == ["Say hello."] and not kept.exists()
    server.fault = lambda request: "503"
    with pytest.raises(UserError, match=r"it does not reply even to 'Say hello.' \(HTTP 503: planned 503\)"):
        judged_by(MODEL, flags, kept)
    kept.write_text("a reply")
    assert judged_by(MODEL, flags, kept) and len(server.asked) == 3


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("win")
    write_rows(folder / "pairs.jsonl", preference_rows(120))
    flags = ["--batch", 16, "--steps", 40, "--eval-every", 0, "--lr", 1e-3, "--out", folder / "run"]
    call(ROOT / "dpo/train.py", "--pairs", folder / "pairs.jsonl", *flags)
    return folder / "run"


@pytest.mark.slow
def test_evaluate_shows_the_win_rate_and_asks_nothing_twice(run, server):
    judge = ["--judge", MODEL, "--address", server.address, "--criterion", "polite"]
    done = call(ROOT / "dpo/evaluate.py", "--policy", run, "--show", 1, *judge)
    report = json.loads((run / "evaluation.json").read_text())
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    won = [manner(sample["after"]) - manner(sample["before"]) for sample in samples]
    rate = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in won) / len(won)
    assert (
        report["judge"]["win rate"] == pytest.approx(rate) and rate > 0.6
    )  # after 25 steps many answers are courteous
    assert report["judge"] | {"model": MODEL, "criterion": "polite", "failed": {}} == report["judge"]
    assert f"win rate {rate:.3f}" in done.stdout and "correct" in report["after"]
    asked = len(server.asked)
    assert asked == 1 + 2 * sum(sample["after"] != sample["before"] for sample in samples)
    call(ROOT / "dpo/evaluate.py", "--policy", run, "--show", 1, *judge, processes=2)
    assert len(server.asked) == asked
    assert json.loads((run / "evaluation.json").read_text())["judge"] == report["judge"]
    # of other pairs nothing is written into the run's folder but what the judge said
    call(ROOT / "dpo/evaluate.py", "--policy", run, "--held-out", 0.1, "--show", 1, *judge)
    assert len(server.asked) == asked
    done = call(ROOT / "dpo/evaluate.py", "--policy", run / "model", "--reference", "data/tiny", *judge, code=2)
    assert "name a folder with --out, where its replies are kept" in done.stderr


@pytest.mark.slow
def test_a_judge_that_goes_away_is_one_line_and_the_other_figures_are_written(run, server, tmp_path):
    server.reply, server.fault = (
        lambda text, request: "Hello.",
        lambda request: "401" if len(server.asked) > 1 else None,
    )
    judge = ["--judge", MODEL, "--address", server.address]
    done = call(ROOT / "dpo/evaluate.py", "--policy", run, "--prompts", 9, "--out", tmp_path, *judge, code=2)
    assert done.stderr.splitlines()[-1].startswith(f"error: {server.address}, model {MODEL}: the server wants a key")
    assert "judge" not in json.loads((tmp_path / "evaluation.json").read_text())


@pytest.mark.slow
def test_what_the_judge_gives_no_verdict_on_is_told_by_kind_and_row_and_the_code_is_1(run, server, tmp_path):
    def fault(request: dict) -> str | None:
        text = request["messages"][0]["content"]
        return "400" if "<first" in text and len(fenced(text)["request"]) % 2 else None

    server.fault = fault
    words = ["--policy", run, "--prompts", 20, "--show", 0, "--out", tmp_path, "--judge", MODEL]
    done = call(ROOT / "dpo/evaluate.py", *words, "--address", server.address, "--at-once", 2, code=1)
    judged = json.loads((tmp_path / "evaluation.json").read_text())["judge"]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    failed = [s for s in samples if s["before"] != s["after"] and len(request_in(s["prompt"])) % 2]
    assert judged["failed"] == {"HTTP 400": len(failed)} and judged["won"] + judged["tied"] + judged["lost"] > 0
    assert f"failed   HTTP 400: {len(failed)} (row" in done.stdout and "planned 400" in done.stdout
