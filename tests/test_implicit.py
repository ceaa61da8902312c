"""dpo/implicit.py: the reward of answers by the functions of dpo/plain.py, one padded forward pass a model and answer."""

import json

import pytest
import torch

from data.failures import Failures
from data.onpolicy import OnPolicy, onpolicy
from data.pairs import Pair, read_pairs
from data.scores import How, parse_score
from dpo.implicit import implicit_reward
from dpo.plain import get_log_probs
from gpt.answers import Answer
from gpt.command import UserError
from gpt.tokenizer import Tokenizer
from gpt.weights import load_gpt
from tests.processes import ROOT, call


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A run of a few steps from the toy model, with a beta of its own."""
    out = tmp_path_factory.mktemp("implicit") / "run"
    flags = ["--pairs", toy / "pairs.jsonl", "--init", toy / "model", "--out", out, "--steps", 5, "--batch", 8]
    call(ROOT / "dpo" / "train.py", *flags, "--lr", "3e-3", "--beta", 0.3, "--eval-every", 0, "--device", "cpu")
    return out


@torch.no_grad()
def plain_logp(model, prompt: list[int], answer: list[int]) -> float:
    labels = torch.tensor([[-100] * len(prompt) + answer])
    return float(get_log_probs(model(torch.tensor([prompt + answer])), labels))


def test_it_is_beta_times_the_log_ratio_that_plain_dpo_finds(run, toy):
    policy, start, tokenizer = load_gpt(run), load_gpt(toy / "model"), Tokenizer.load(toy / "model")
    pairs = read_pairs(toy / "pairs.jsonl")[:6] + [Pair("", "x", None, 9)]
    texts = ["5", "an answer of some length", "", "5", "ü"]
    answers = [[Answer(text, text != "ü", 3) for text in texts[: 1 + i % 5]] for i in range(7)]
    found = implicit_reward(str(run), How(device="cpu"))(pairs, answers, Failures())
    largest = 0.0
    for pair, some, rewards in zip(pairs, answers, found, strict=True):
        prompt = tokenizer.encode(pair.prompt) or [tokenizer.end_of_text]
        for given, reward in zip(some, rewards, strict=True):
            ids = tokenizer.encode(given.text) + ([tokenizer.end_of_text] if given.stopped else [])
            gain = plain_logp(policy, prompt, ids) - plain_logp(start, prompt, ids)
            assert reward == pytest.approx(0.3 * gain, abs=2e-5)
            largest = max(largest, abs(reward))
    assert largest > 0.01
    assert implicit_reward(str(run), How(device="cpu"))(pairs, [[] for _ in pairs], Failures()) == [[]] * 7


def test_it_agrees_with_the_rewards_that_evaluate_gives_of_each_pair(run, toy):
    done = call(
        ROOT / "dpo" / "evaluate.py", "--policy", run, "--reference", toy / "model", "--pairs", toy / "pairs.jsonl"
    )
    score = parse_score(f"implicit:{run}")
    pairs = read_pairs(toy / "pairs.jsonl")
    found = score(pairs, [[Answer(p.chosen, True, 1), Answer(p.rejected, True, 1)] for p in pairs])
    for line, (chosen, rejected) in zip(map(json.loads, done.stdout.splitlines()), found, strict=True):
        assert chosen == pytest.approx(line["rewards/chosen"], abs=2e-5)
        assert rejected == pytest.approx(line["rewards/rejected"], abs=2e-5)


def test_a_prompt_loses_its_beginning_where_the_answer_needs_the_room_and_too_long_an_answer_is_named(run, toy):
    policy, start, tokenizer = load_gpt(run), load_gpt(toy / "model"), Tokenizer.load(toy / "model")
    text, prompt = "word " * 30, "many words before " * 60
    ids = [*tokenizer.encode(text), tokenizer.end_of_text]
    left = tokenizer.encode(prompt)[-(256 - len(ids)) :]
    score = implicit_reward(str(run), How(device="cpu"))
    ((reward,),) = score([Pair(prompt, "x", None, 4)], [[Answer(text, True, len(ids))]], Failures())
    assert reward == pytest.approx(0.3 * (plain_logp(policy, left, ids) - plain_logp(start, left, ids)), abs=5e-5)
    with pytest.raises(
        UserError, match="^row 4: an answer of .* tokens is too long for the context of the reward model"
    ):
        score([Pair("p", "x", None, 4)], [[Answer("word " * 300, True, 9)]], Failures())


@pytest.mark.parametrize("name", ["", "no/run"])
def test_what_is_no_run_is_said_in_one_line(name, toy):
    with pytest.raises(UserError, match="names no run folder"):
        implicit_reward(name)
    with pytest.raises(UserError, match="names no run folder"):
        implicit_reward(str(toy / "model"))  # a model alone tells neither reference nor beta


def test_a_policys_own_answers_are_chosen_by_it_and_by_a_function_of_ones_own(run, toy, tmp_path):
    (tmp_path / "mine.py").write_text("def short(prompt, answer):\n    return -len(answer)\n")
    out = tmp_path / "pairs.v1"
    flags = {
        "model": str(toy / "model"),
        "pairs": str(toy / "pairs.jsonl"),
        "out": str(out),
        "samples": 4,
        "max_new": 12,
    }
    flags |= {"stop": ["e"], "device": "cpu", "score": f"implicit:{run} + 0.5*{tmp_path}/mine.py:short"}
    assert onpolicy(OnPolicy(**flags)) == 0
    assert sorted(path.name for path in tmp_path.glob("pairs*")) == ["pairs.v1", "pairs.v1.answers"]
    _, *lines = map(json.loads, (tmp_path / "pairs.v1.answers").read_text(encoding="utf-8").splitlines())
    drawn = {(line["prompt"], answer["text"]): Answer(**answer) for line in lines for answer in line["answers"]}
    pairs, reward = read_pairs(out), implicit_reward(str(run), How(device="cpu"))
    assert len(pairs) > 10
    for pair in pairs:
        answers = [drawn[pair.prompt, text] for text in (pair.chosen, pair.rejected)]
        ((good, bad),) = reward([pair], [answers], Failures())
        assert pair.margin == pytest.approx(good - bad + 0.5 * (len(pair.rejected) - len(pair.chosen)), abs=1e-4)
