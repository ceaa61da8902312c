"""dpo/online.py as its users run it: two rounds from end to end, killed, stopped and resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from statistics import fmean

import pytest

from data.best_worst import UNKNOWN
from data.pairs import read_pairs
from data.sides import side
from dpo.online import Flags, as_begun, main
from dpo.round_table import gain, row
from dpo.run_folder import RunFolder
from gpt.command import UserError
from gpt.generate import generate
from gpt.streaming import stops_at
from gpt.tokenizer import Tokenizer
from gpt.weights import fingerprint, load_gpt
from tests.openai_server import MODEL, fenced, serving
from tests.processes import ENVIRONMENT, ROOT, call, command

SCRIPT = ROOT / "dpo" / "online.py"
ONE = {"N": "1"}


def words(toy: Path, out: Path, *more) -> list:
    # a model that knows nothing hardly ever says end-of-text: a letter ends its answers
    usual = "--score length:shorter --rounds 2 --samples 4 --max-new 16 --stop e --held-out 0.2 --device cpu --seed 5"
    training = "--loss dpo --lr 1e-3 --batch 4 --epochs 20".split()
    return ["--init", toy / "model", "--pairs", toy / "pairs.jsonl", "--out", out, *usual.split(), *training, *more]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def key_and_answers(folder: Path) -> tuple[dict, list[dict]]:
    key, *lines = map(json.loads, (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines())
    return key, lines


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> tuple[Path, str]:
    """Two rounds that nothing broke off: their folder, and what was printed."""
    out = tmp_path_factory.mktemp("online") / "whole"
    return out, call(SCRIPT, *words(toy, out), limit=300, **ONE).stdout


def same_rounds(one: Path, other: Path) -> None:
    """Pairs and weights of both rounds are equal to the byte."""
    for number in (1, 2):
        for name in ("pairs.jsonl", "answers.jsonl", "run/model/model.safetensors"):
            file = Path(f"round-{number:02}") / name
            assert (one / file).read_bytes() == (other / file).read_bytes(), file
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()


# Two rounds


@pytest.mark.slow
def test_each_round_samples_from_and_is_compared_with_the_policy_as_it_began(whole, toy):
    out, _ = whole
    policies = [toy / "model", out / "round-01/run", out / "round-02/run"]
    prints = [fingerprint(load_gpt(folder)) for folder in policies]
    assert len(set(prints)) == 3
    for number, before in zip((1, 2), prints):
        folder = out / f"round-{number:02}"
        key, lines = key_and_answers(folder)
        record = read(folder / "run/run.json")
        assert key["model"] == before == record["settings"]["init_sha256"]
        assert record["settings"]["reference_sha256"] is None and record["flags"]["reference"] == ""
        pairs = read_pairs(folder / "pairs.jsonl")
        texts = {line["prompt"]: [answer["text"] for answer in line["answers"]] for line in lines}
        assert len(pairs) == read(folder / "sampled.json")["pairs"] > 10
        assert all(pair.chosen in texts[pair.prompt] and pair.rejected in texts[pair.prompt] for pair in pairs)
        assert not (folder / "run/checkpoints").exists()
    one, two = ({line["prompt"]: line["answers"] for line in key_and_answers(out / f"round-0{n}")[1]} for n in (1, 2))
    assert one != two


@pytest.mark.slow
def test_no_held_out_prompt_is_answered_in_a_round_nor_trained_on(whole, toy):
    out, _ = whole
    held = {pair.prompt for pair in read_pairs(toy / "pairs.jsonl") if side(pair) < 0.2}
    asked = {line["prompt"] for n in (1, 2) for line in key_and_answers(out / f"round-0{n}")[1]}
    assert len(held) > 2 and asked and not held & asked


@pytest.mark.slow
def test_the_figures_are_those_of_the_answers_asked_for_one_by_one_and_of_the_table(whole, toy):
    out, said = whole
    held = [pair for pair in read_pairs(toy / "pairs.jsonl") if side(pair) < 0.2]
    tokenizer = Tokenizer.load(toy / "model")
    found = []
    for folder, file in (
        (toy / "model", "start.json"),
        *((out / f"round-0{n}/run", f"round-0{n}/round.json") for n in (1, 2)),
    ):
        model = load_gpt(folder)
        ends = stops_at(tokenizer, ["e"])
        prompts, end = [tokenizer.encode(pair.prompt) for pair in held], [tokenizer.end_of_text]
        answers = [generate(model, [prompt], 16, end, stop=ends)[0] for prompt in prompts]
        figures = read(out / file)
        assert figures["scores"] == [-len(ids) for ids in answers]
        assert figures["score"] == pytest.approx(-fmean(map(len, answers)))
        assert figures["prompts"] == len(held)
        found.append(figures["score"])
    assert len(set(found)) > 1
    rows = [line for line in said.splitlines() if re.match(r"start |\d {4}|in all", line)]
    assert [float(row.split()[1 if row.startswith("start") else 2]) for row in rows[:3]] == pytest.approx(
        found, abs=6e-4
    )
    assert float(rows[3].split()[2]) == pytest.approx(found[2] - found[0], abs=6e-4)


@pytest.mark.slow
def test_the_folder_is_a_model_and_a_run_to_evaluate(whole, toy):
    out, _ = whole
    assert (out / "model/model.safetensors").read_bytes() == (out / "round-02/run/model/model.safetensors").read_bytes()
    call(ROOT / "dpo/evaluate.py", "--policy", out, "--show", 0)
    report = read(out / "evaluation.json")
    assert report["before"]["prompts"] == read(out / "start.json")["prompts"] and report["before"] != report["after"]


# Broken off


def started(*flags, **environment) -> subprocess.Popen:
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command(SCRIPT, *flags), env=ENVIRONMENT | ONE | environment, **how)


def until(true, job: subprocess.Popen, seconds: float = 120) -> None:
    """Wait for something to come true while the job goes on."""
    end = time.monotonic() + seconds
    while not true():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def has(path: Path, lines: int):
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= lines


@pytest.mark.slow
def test_killed_again_and_again_and_resumed_it_has_the_same_pairs_and_weights(whole, toy, tmp_path):
    out = tmp_path / "killed"
    moments = [
        (out / "round-01/answers.jsonl", 1),
        (out / "round-01/run/metrics.jsonl", 20),
        (out / "round-02/sampled.json", 1),
        (out / "round-02/run/metrics.jsonl", 40),
    ]
    for number, moment in enumerate(moments):
        job = started(*(["--resume", "--out", out] if number else words(toy, out)))
        until(has(*moment), job)
        job.kill()
        job.communicate()
    call(SCRIPT, "--resume", "--out", out, limit=300, **ONE)
    same_rounds(out, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("moment", [("round-01/answers.jsonl", 1), ("round-02/run/metrics.jsonl", 20)])
def test_sigterm_ends_with_143_and_one_line_and_resume_goes_on(whole, toy, tmp_path, moment):
    out = tmp_path / "stopped"
    job = started(*words(toy, out))
    until(has(out / moment[0], moment[1]), job)
    job.send_signal(signal.SIGTERM)
    said, errors = job.communicate(timeout=60)
    assert job.returncode == 143, errors
    assert said.splitlines()[-1] == f"stopped by a signal; continue with the same command with --resume --out {out}"
    assert not [line for line in re.split(r"[\r\n]", errors) if line.strip() and "%|" not in line], errors
    call(SCRIPT, "--resume", "--out", out, limit=300, **ONE)
    same_rounds(out, whole[0])


@pytest.mark.slow
def test_finished_rounds_are_shown_not_done_again_other_flags_are_refused_and_more_rounds_go_on(whole, toy, tmp_path):
    out, said = whole
    before = {path: path.stat().st_mtime_ns for path in out.rglob("round-*/*") if path.is_file()}
    again = call(SCRIPT, "--resume", "--out", out, **ONE).stdout
    assert again == said and before == {path: path.stat().st_mtime_ns for path in before}
    done = call(SCRIPT, *words(toy, out, "--resume"), **ONE)  # the same flags may be given
    assert done.stdout == said
    done = call(SCRIPT, "--resume", "--out", out, "--samples", 5, "--seed", 6, code=2)
    assert "samples" in done.stderr and "seed" in done.stderr and done.stderr.count("\n") == 1
    done = call(SCRIPT, *words(toy, out), code=2)
    assert "holds another run; continue it with --resume" in done.stderr
    copy = shutil.copytree(out, tmp_path / "copy")
    longer = call(SCRIPT, "--resume", "--out", copy, "--rounds", 3, **ONE).stdout
    assert longer.splitlines()[:5] == said.splitlines()[:5]
    assert read(copy / "round-03/run/run.json")["flags"]["init"] == str((copy / "round-02/run/model").resolve())
    assert (copy / "model/model.safetensors").read_bytes() == (
        copy / "round-03/run/model/model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_two_on_one_folder_are_kept_apart(toy, tmp_path):
    out = tmp_path / "both"
    job = started(*words(toy, out))
    until((out / "run.json").exists, job)
    done = call(SCRIPT, "--resume", "--out", out, code=2)
    job.kill()
    job.communicate()
    assert "is writing there" in done.stderr and done.stderr.count("\n") == 1


# What cannot be


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"rounds": 0}, "--rounds is 0"),
        ({"samples": 1}, "--samples is 1"),
        ({"temperature": 0.0}, "--temperature is 0"),
        ({"held_out": 0.0}, "no prompt is held out at --held-out 0"),
        ({"loss": "dqo"}, "there is no loss 'dqo'"),
        ({"train": "--stepz 3"}, "did you mean --steps?"),
        ({"score": "rules:right"}, "rules:right is no score"),
        ({"score": "implicit:no/run"}, "names no run folder"),
        ({"init": "no/such/model"}, "no/such/model does not exist"),
        ({"pairs": "no.jsonl"}, "no.jsonl does not exist"),
        ({"max_new": 256}, "--max-new is 256, but the model's context is 256"),
        ({"resume": True, "out": ""}, "--resume needs --out"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_sampled(toy, tmp_path, monkeypatch, flags, expected):
    monkeypatch.chdir(tmp_path)
    usual = {"init": str(toy / "model"), "pairs": str(toy / "pairs.jsonl"), "out": "out", "device": "cpu"}
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    try:
        with pytest.raises(UserError) as error:
            main(Flags(**usual | flags))
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out" / "round-01").exists()


def by_words(question: str, request: dict) -> str:
    """More words are better; of 'x' it says nothing."""
    answer = fenced(question)["answer"] if "<answer" in question else "Hello."
    return "Well." if "x" in answer else f"Score: {min(10, 1 + len(answer.split()))}"


def strictly(path: Path) -> dict:
    """What a JSON file holds, which must be JSON: NaN is none."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{path}: {name}"))


def test_where_no_score_is_known_one_line_says_why_and_nothing_is_noted(toy, tmp_path):
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    with serving(lambda text, request: "Well.") as server:
        how = {
            "init": str(toy / "model"),
            "pairs": str(toy / "pairs.jsonl"),
            "out": str(tmp_path / "out"),
            "max_new": 4,
        }
        how |= {"score": f"llm:{MODEL}", "address": server.address, "tries": 1, "held_out": 0.2, "device": "cpu"}
        try:
            with pytest.raises(UserError, match="^no score is known of 7 held-out prompts") as error:
                main(Flags(**how))
        finally:
            for number, handler in before:
                signal.signal(number, handler)
    assert "(failed: no score in the reply: 14 (rows" in str(error.value)
    assert not (tmp_path / "out/start.json").exists() and strictly(tmp_path / "out/run.json")


@pytest.mark.slow
def test_scores_that_are_not_known_are_told_by_kind_and_the_code_is_1(toy, tmp_path):
    out = tmp_path / "out"
    with serving(by_words) as server:
        flags = ["--score", f"llm:{MODEL}", "--address", server.address, "--rounds", 1, "--at-once", 3, "--tries", 2]
        done = call(SCRIPT, *words(toy, out, *flags), code=1, **ONE)
        moved = [
            "--resume",
            "--out",
            out,
            "--address",
            "http://127.0.0.1:9/v1",
            "--timeout",
            5,
        ]  # it asks nothing any more
        again = call(SCRIPT, *moved, code=1, **ONE)
    start, found, drawn = (
        strictly(out / name) for name in ("start.json", "round-01/round.json", "round-01/sampled.json")
    )
    assert found["sampled"] == drawn and drawn["failed"]["no score in the reply"] == drawn["dropped"][UNKNOWN] > 0
    counts = [one["failed"].get("no score in the reply", 0) for one in (start, found, drawn)]
    assert start["scores"].count(None) <= counts[0]
    assert f"failed   round 1, answers drawn: no score in the reply: {counts[2]} (row" in done.stdout
    total = f"failed   scores that are not known, and in no figure: no score in the reply: {sum(counts)}"
    assert total in done.stdout and total in again.stdout and "nan" not in done.stdout


def test_a_score_in_a_file_of_ones_own_is_said_again_on_resume_and_an_llms_place_may_be_another(tmp_path):
    before = {"rounds": 2, "score": "mine.py:short", "address": "http://then/v1", "criterion": "polite"}
    with pytest.raises(UserError, match="begun with the score 'mine.py:short'; a folder runs no code"):
        as_begun(Flags(), before, RunFolder(tmp_path))
    found = as_begun(Flags(score="mine.py:short", address="http://now/v1", at_once=2), before, RunFolder(tmp_path))
    assert (found.score, found.address, found.at_once) == ("mine.py:short", "http://now/v1", 2)
    assert (found.rounds, found.criterion) == (2, "polite")
    with pytest.raises(UserError, match="was begun with another --criterion; leave that out"):
        as_begun(Flags(score="mine.py:short", criterion="concise"), before, RunFolder(tmp_path))


def test_what_is_not_known_is_no_number_in_the_table():
    one = {"score": 1.0, "sampled score": None, "scores": [None, 1.0], "prompts": 2}
    assert row("start", one).split() == ["start", "1.000", "unknown"]
    assert gain({"scores": [None, 1.0]}, {"scores": [2.0, None]}) == "unknown"
    assert gain({"scores": [1.0, 1.0]}, {"scores": [2.5, None]}) == "+1.500"
    assert gain({"scores": [1.0, 1.0]}, {"scores": [2.0, 3.0]}) == "+1.500 ± 0.500"


def test_under_torchrun_it_says_how_it_is_started():
    done = call(SCRIPT, TORCHELASTIC_RUN_ID="x", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", code=2)
    assert "dpo/online.py runs alone; N=4 ./launch.sh online" in done.stderr


def test_words_for_training_that_a_shell_could_not_read_are_named():
    with pytest.raises(UserError, match="--train '--lora \"8' cannot be read: No closing quotation"):
        main(Flags(train='--lora "8'))


@pytest.mark.slow
def test_an_error_of_training_is_one_line_with_its_exit_code(toy, tmp_path):
    done = call(SCRIPT, *words(toy, tmp_path / "out", "--train=--lora 4000"), code=2, **ONE)
    lines = [line for line in re.split(r"[\r\n]", done.stderr) if line.strip() and "%|" not in line]
    assert len(lines) == 1 and "--lora" in lines[0]
    assert os.path.exists(tmp_path / "out/round-01/pairs.jsonl")
