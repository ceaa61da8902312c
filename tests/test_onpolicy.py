"""data/onpolicy.py with toy models: which prompts are asked, what is drawn, and what is left when it is interrupted."""

import json
import os
import subprocess
import time

import pytest

from data.best_worst import UNKNOWN, best_and_worst
from data.onpolicy import OnPolicy, every_prompt, held_out_of, onpolicy, prompts_of, sampled, seed_of
from data.pairs import read_pairs, write_rows
from data.rules import embedded_pairs
from data.scores import parse_score
from data.sides import side
from gpt import answers as portions
from gpt.answers import Answer
from gpt.command import UserError, parse
from gpt.generate import generate
from gpt.sampling import Sampling
from gpt.tokenizer import Tokenizer
from gpt.weights import load_gpt
from tests.openai_server import MODEL, fenced, serving
from tests.processes import ENVIRONMENT, ROOT, call, command

BUILD = ROOT / "data" / "build.py"


@pytest.fixture(scope="module")
def opened(toy):
    """The toy model, far enough from nothing to say different things, and its vocabulary."""
    return load_gpt(toy / "model"), Tokenizer.load(toy / "model")


def flags_of(toy, **more) -> OnPolicy:
    usual = {"pairs": str(toy / "pairs.jsonl"), "score": "length:shorter", "samples": 4, "max_new": 12, "device": "cpu"}
    return OnPolicy(**{"model": str(toy / "model"), "out": "unused"} | usual | more)


def written(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Which prompts


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_no_prompt_that_training_would_hold_out_is_ever_asked(fraction):
    flags = OnPolicy(model="", out="", held_out=fraction)
    pairs = embedded_pairs()
    held = {pair.prompt for pair in pairs if side(pair) < fraction}
    asked, left = prompts_of(flags)
    assert len(held) > 1000 and not held & {prompt.pair.prompt for prompt in asked}
    assert len(asked) + left["held out"] == len(pairs) == 12_000
    assert {pair.prompt for pair in held_out_of(flags.pairs, flags.held_out)} == held
    groups = {pair.group for pair in pairs if pair.prompt in held}
    assert not groups & {prompt.pair.group for prompt in asked}  # nor the same input in other words


def test_no_held_out_prompt_is_in_what_the_command_wrote(toy, tmp_path):
    out = tmp_path / "pairs.jsonl"
    words = ["--pairs", toy / "pairs.jsonl", "--score", "length:longer", "--held-out", 0.3, "--temperature", 2]
    call(BUILD, "onpolicy", "--model", toy / "model", "--out", out, "--max-new", 20, *words)
    held = {pair.prompt for pair in read_pairs(toy / "pairs.jsonl") if side(pair) < 0.3}
    assert held and not held & {line["prompt"] for line in written(tmp_path / "pairs.answers.jsonl")[1:]}
    assert not held & {pair.prompt for pair in read_pairs(out)}


def test_some_are_drawn_by_the_seed_whatever_their_order_and_all_others_stay_prompts(toy, tmp_path):
    rows = written(toy / "pairs.jsonl")
    write_rows(tmp_path / "back.jsonl", rows[::-1])
    drawn = [{p.pair.prompt for p in prompts_of(flags_of(toy, prompts=9, seed=seed))[0]} for seed in (0, 1)]
    back = prompts_of(flags_of(toy, prompts=9, pairs=str(tmp_path / "back.jsonl")))
    assert {p.pair.prompt for p in back[0]} == drawn[0] != drawn[1] and len(drawn[0]) == len(drawn[1]) == 9
    assert back[1]["not drawn"] == 37 - 9 - back[1]["held out"]


def test_a_file_of_prompts_alone_will_do_and_a_prompt_that_repeats_is_asked_once(toy, tmp_path):
    rows = [
        {"prompt": "Say hello."},
        {"instruction": "Add.", "input": "2 + 3", "output": "5", "chosen": None, "source": "mine"},
        {"prompt": "Say hello.", "chosen": "Hello", "rejected": "What?"},
    ]
    write_rows(tmp_path / "prompts.jsonl", rows)
    asked, left = prompts_of(flags_of(toy, pairs=str(tmp_path / "prompts.jsonl"), held_out=0.0))
    assert [p.head for p in asked] == [
        {"prompt": "Say hello."},
        {k: rows[1][k] for k in ("instruction", "input", "output")},
    ]
    assert left == {"held out": 0, "repeated": 1, "not drawn": 0}


# What is drawn


def test_each_answer_is_that_of_its_prompt_and_seed_alone_whatever_the_batch(opened, toy, tmp_path, monkeypatch):
    model, tokenizer = opened
    flags = flags_of(toy, seed=7)
    asked, _ = prompts_of(flags)
    found = []
    for number, tokens in enumerate((1, 700, 32_768)):
        monkeypatch.setattr(portions, "TOKENS", tokens)
        found.append(sampled(model, tokenizer, asked, flags, tmp_path / f"{number}.jsonl"))
    monkeypatch.setattr(portions, "TOKENS", 32_768)
    backwards = sampled(model, tokenizer, asked[::-1], flags, tmp_path / "back.jsonl")[::-1]
    assert found[0] == found[1] == found[2] == backwards
    for prompt, some in zip(asked, found[0]):
        text = prompt.pair.prompt
        for number, answer in enumerate(some):
            ids, seeds = tokenizer.encode(text), [seed_of(7, number, text)]
            (new,) = generate(model, [ids], 12, [tokenizer.end_of_text], Sampling(temperature=1.0), seeds)
            assert answer == Answer.of(new, tokenizer)
    assert len({answer.text for some in found[0] for answer in some}) > 2 * len(asked)
    other = sampled(model, tokenizer, asked, flags_of(toy, seed=8), tmp_path / "other.jsonl")
    assert other != found[0]


def test_the_pairs_are_the_best_and_worst_of_the_answers_in_the_file(toy, tmp_path):
    out = tmp_path / "pairs.jsonl"
    done = call(
        BUILD, "onpolicy", "--model", toy / "model", "--pairs", toy / "pairs.jsonl", "--out", out, "--samples", 5,
        "--score", "2*length:shorter", "--min-gap", 3, "--max-new", 200, "--temperature", 0.7, "--held-out", 0.2,
    )  # fmt: skip
    rows = {row["group"]: row for row in written(toy / "pairs.jsonl")}
    key, *lines = written(tmp_path / "pairs.answers.jsonl")
    assert key["samples"] == 5 and key["temperature"] == 0.7
    answers = {line["prompt"]: [Answer(**answer) for answer in line["answers"]] for line in lines}
    pairs, kept = read_pairs(out), 0
    for prompt, some in answers.items():
        lengths = [answer.length for answer in some]
        picked = best_and_worst(some, [-2 * n for n in lengths])
        if not isinstance(picked, tuple) or 2 * (lengths[picked[1]] - lengths[picked[0]]) < 3:
            assert prompt not in [pair.prompt for pair in pairs]
            continue
        (pair,) = [pair for pair in pairs if pair.prompt == prompt]
        assert (pair.chosen, pair.rejected) == tuple(some[k].text for k in picked)
        assert pair.margin == 2 * (lengths[picked[1]] - lengths[picked[0]]) >= 3
        assert pair.output == rows[pair.group]["output"] and pair.family == rows[pair.group]["family"]
        kept += 1
    assert 0 < kept == len(pairs) and f"{kept} kept" in done.stdout


def test_a_string_that_ends_answers_is_no_part_of_them(opened, toy, tmp_path):
    model, tokenizer = opened
    asked, _ = prompts_of(flags_of(toy))
    plain = sampled(model, tokenizer, asked, flags_of(toy, max_new=40), tmp_path / "plain.jsonl")
    ended = sampled(model, tokenizer, asked, flags_of(toy, max_new=40, stop=["e"]), tmp_path / "ended.jsonl")
    cut = 0
    for long, short in zip(sum(plain, []), sum(ended, [])):
        assert "e" not in short.text
        if "e" in long.text:
            assert short.text == long.text.partition("e")[0] and short.stopped
            cut += 1
        else:
            assert short == long
    assert cut > 10


# Interrupted


def test_what_was_interrupted_goes_on_to_the_same_bytes_and_what_is_there_is_not_drawn_again(toy, opened, tmp_path):
    model, tokenizer = opened
    flags, whole = flags_of(toy), tmp_path / "whole.jsonl"
    asked, _ = prompts_of(flags)
    expected = sampled(model, tokenizer, asked, flags, whole)
    content = whole.read_bytes()
    for size in (0, 10, len(content) // 3, len(content) - 1, len(content)):
        part = tmp_path / f"{size}.jsonl"
        part.write_bytes(content[:size])
        batches = []
        found = sampled(model, tokenizer, asked, flags, part, check=lambda: batches.append(1))  # noqa: B023
        assert found == expected and part.read_bytes() == content
        assert (len(batches) == 0) == (size == len(content))


@pytest.mark.slow
def test_a_command_killed_at_any_moment_goes_on_to_the_same_bytes(toy, tmp_path):
    def words(out):
        some = ["--model", "data/tiny", "--prompts", 700, "--temperature", 1.3, "--device", "cpu", "--out", out]
        return command(BUILD, "onpolicy", *some)

    def run_to_end(out):
        subprocess.run(words(out), cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)

    run_to_end(tmp_path / "whole.jsonl")
    kills = 0
    for more in (1, 30_000, 200_000):  # bytes of answers, after which it is killed
        answers = tmp_path / "killed.answers.jsonl"
        before = answers.stat().st_size if answers.exists() else 0
        job = subprocess.Popen(words(tmp_path / "killed.jsonl"), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        while job.poll() is None and (not answers.exists() or answers.stat().st_size < before + more):
            time.sleep(0.01)
        kills += job.poll() is None
        job.kill()
        job.wait()
    run_to_end(tmp_path / "killed.jsonl")
    assert kills >= 2
    for name in ("{}.jsonl", "{}.answers.jsonl"):
        assert (tmp_path / name.format("killed")).read_bytes() == (tmp_path / name.format("whole")).read_bytes()


# What cannot be


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--samples", 1], "--samples is 1"),
        (["--temperature", 0], "--temperature is 0"),
        (["--held-out", 1], "--held-out is 1"),
        (["--min-gap", -1], "--min-gap is -1"),
        (["--max-new", 256], "--max-new is 256, but the model's context is 256"),
        (["--out", "."], "--out . is a folder; name a file"),
        (["--out", "-"], "--out - would keep nothing"),
        (["--address", "http://x/v1"], "--address: of an LLM that is asked, and --score has no llm:MODEL"),
        (["--score", "llm:m", "--address", "http://127.0.0.1:9/v1"], "nothing answers at http://127.0.0.1:9/v1"),
        (["--score", "llm:m", "--criterion", "no.txt"], "--criterion no.txt: there is no such file"),
        (["--score", "implicit:no/run"], "names no run folder"),
        (["--score", "no.py:short"], "--score no.py:short: there is no file no.py"),
        (["--score", "llm:"], "the name of the model to ask is empty"),
        (["--pairs", os.devnull], "no regular file"),
        (["--held-out", 0.999999], "no prompt is left to answer (all 37 are held out; lower --held-out)"),
        (["--score", "rules:witty"], "rules:witty is no score"),
        (["--min-gap", 1e9], "no pair came of"),
        (["--pairs", "no.jsonl"], "no.jsonl does not exist"),
        (["--model", "no/folder/here"], "no/folder/here does not exist"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_writes_no_pairs(toy, tmp_path, flags, expected):
    usual = [
        "--model",
        toy / "model",
        "--pairs",
        toy / "pairs.jsonl",
        "--out",
        tmp_path / "pairs.jsonl",
        "--max-new",
        4,
    ]
    with pytest.raises(UserError) as error:
        onpolicy(parse(OnPolicy, [str(word) for word in [*usual, "--score", "length:shorter", *flags]]))
    assert "\n" not in str(error.value) and expected in str(error.value) and not (tmp_path / "pairs.jsonl").exists()


def test_a_row_that_no_rule_knows_is_named_before_anything_is_drawn(toy, tmp_path):
    write_rows(tmp_path / "mine.jsonl", [{"prompt": f"Say {i}.", "family": "sum" * (i < 3)} for i in range(9)])
    words = ["--model", toy / "model", "--pairs", tmp_path / "mine.jsonl", "--out", tmp_path / "out.jsonl"]
    done = call(BUILD, "onpolicy", *words, code=2)
    assert "row 1: the score rules:correct is of the embedded tasks alone" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


@pytest.mark.parametrize(
    "row, expected", [({"text": "x"}, "'instruction' or 'prompt' is missing"), ([1], "a JSON object")]
)
def test_a_row_that_is_no_prompt_is_named(toy, tmp_path, row, expected):
    write_rows(tmp_path / "mine.jsonl", [{"prompt": "Say it."}, row])
    with pytest.raises(UserError, match="mine.jsonl, row 2: .*" + expected):
        prompts_of(flags_of(toy, pairs=str(tmp_path / "mine.jsonl")))


@pytest.mark.parametrize("change", [{"seed": 3}, {"samples": 5}, {"temperature": 2.0}, {"max_new": 13}])
def test_answers_by_other_flags_are_not_taken_for_these_nor_overwritten(toy, opened, tmp_path, change):
    file = tmp_path / "answers.jsonl"
    asked, _ = prompts_of(flags_of(toy))
    sampled(*opened, asked, flags_of(toy), file)
    content = file.read_bytes()
    with pytest.raises(UserError, match=f"has answers by another {next(iter(change))}; remove it"):
        sampled(*opened, asked, flags_of(toy, **change), file)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "text",
    [
        "[]\n",
        "nothing\n",
        '[{"prompt": "a"}, {"prompt": "b"}]',
        '{"prompt": "a"}\n{"prompt": "b"}',
        '{"model": 1}\n{"prompt": 5}\n',
        '{"model": 1}\n[' + "[" * 99_999 + "\n",
    ],
)
def test_what_is_no_file_of_answers_is_said_and_left_alone(toy, opened, tmp_path, text):
    file = tmp_path / "answers.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match="answers.jsonl is no file of answers"):
        sampled(*opened, prompts_of(flags_of(toy))[0], flags_of(toy), file)
    assert file.read_text() == text


def test_the_file_of_answers_is_not_that_of_the_prompts(toy, tmp_path):
    write_rows(tmp_path / "q.answers.jsonl", [{"prompt": "a"}])
    with pytest.raises(UserError, match="q.answers.jsonl, which is read"):
        onpolicy(OnPolicy(pairs=str(tmp_path / "q.answers.jsonl"), model=str(toy), out=str(tmp_path / "q.jsonl")))


def test_half_a_letter_in_a_field_that_nobody_reads_is_written_as_it_came(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "é", "chosen": "a"}, {"prompt": "b", "input": "\ud800"}])
    first, second = (tmp_path / "pairs.jsonl").read_text().splitlines()
    assert "é" in first and json.loads(second) == {"prompt": "b", "input": "\ud800"}


def test_two_that_write_the_same_answers_are_kept_apart(toy, opened, tmp_path):
    file = tmp_path / "answers.jsonl"
    asked, _ = prompts_of(flags_of(toy))

    def again():
        with pytest.raises(UserError, match="another process is writing there"):
            sampled(*opened, asked, flags_of(toy), file)
        raise KeyboardInterrupt  # as a user who sees it

    with pytest.raises(KeyboardInterrupt):
        sampled(*opened, asked, flags_of(toy), file, check=again)
    assert len(sampled(*opened, asked, flags_of(toy), file)) == len(asked)


def test_a_place_that_cannot_be_written_is_one_line(toy, opened, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written") as error:
        sampled(*opened, prompts_of(flags_of(toy))[0], flags_of(toy), tmp_path / "file" / "answers.jsonl")
    assert os.linesep not in str(error.value)


def test_scores_are_asked_with_what_was_drawn(toy, opened, tmp_path):
    asked, _ = prompts_of(flags_of(toy))
    answers = sampled(*opened, asked, flags_of(toy), tmp_path / "answers.jsonl")
    scores = parse_score("length:longer")([prompt.pair for prompt in asked], answers)
    assert scores == [[answer.length for answer in some] for some in answers]


def test_a_judge_scores_the_answers_once_and_what_it_does_not_score_is_counted(toy, tmp_path):
    def by_words(question: str, request: dict) -> str:
        """More words are better; of 'x' it says nothing."""
        answer = fenced(question)["answer"] if "<answer" in question else "Hello."
        return "no score" if "x" in answer else f"Score: {min(10, 1 + len(answer.split()))}"

    with serving(by_words) as server:
        words = ["onpolicy", "--model", toy / "model", "--pairs", toy / "pairs.jsonl", "--samples", 4, "--max-new", 12]
        words += ["--score", f"llm:{MODEL}", "--address", server.address, "--criterion", "concise"]
        first = call(BUILD, *words, "--out", tmp_path / "pairs.jsonl", code=1).stdout
        asked = len(server.asked)
        pairs = (tmp_path / "pairs.jsonl").read_bytes()
        call(BUILD, *words, "--out", tmp_path / "pairs.jsonl", code=1)
        assert (tmp_path / "pairs.jsonl").read_bytes() == pairs
    _, *rows = written(tmp_path / "pairs.answers.jsonl")
    texts = [[answer["text"] for answer in row["answers"]] for row in rows]
    unknown = sum(any("x" in text for text in some) for some in texts)
    assert unknown and f"{UNKNOWN}: {unknown} (row" in first
    assert f"failed   no score in the reply: {unknown} (row" in first
    assert not any("Below is an instruction" in request["messages"][0]["content"] for request in server.asked)
    for pair in read_pairs(tmp_path / "pairs.jsonl"):
        assert len(pair.chosen.split()) - len(pair.rejected.split()) == pair.margin > 0
    failed = 3 * sum("x" in text for text in {text for some in texts for text in some})  # asked again each time
    assert len(server.asked) <= asked + failed * 5


SAID = [{"role": "user", "content": "Say it."}]
TURNS = [{"from": "human", "value": "Say it."}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Say it."},
        {"instruction": "Say it.", "input": "now", "group": "g"},
        {"instruction": "Say it.", "system": "Be brief."},
        {"instruction": "And now?", "history": [["Say it.", "It."]]},
        {"prompt": SAID},
        {"conversations": TURNS, "family": "f"},
        {"chosen": "\n\nHuman: Say it.\n\nAssistant: It.", "rejected": "\n\nHuman: Say it.\n\nAssistant: No."},
    ],
)
def test_a_row_in_any_format_keeps_its_prompt(row, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [row])
    (prompt,) = every_prompt(str(tmp_path / "rows.jsonl"))
    write_rows(tmp_path / "pairs.jsonl", [prompt.head | {"chosen": "a", "rejected": "b", "margin": 1.0}])
    (pair,) = read_pairs(tmp_path / "pairs.jsonl")
    assert pair.prompt == prompt.pair.prompt and "Say it." in pair.prompt
    assert (pair.group, pair.family) == (row.get("group"), row.get("family"))


def test_the_file_of_prompts_is_not_written_over(toy, tmp_path):
    before = (toy / "pairs.jsonl").read_bytes()
    with pytest.raises(UserError, match="name another file"):
        onpolicy(flags_of(toy, out=str(toy / "pairs.jsonl")))
    assert (toy / "pairs.jsonl").read_bytes() == before
