"""dpo/score.py against transformers: other code reads the models, encodes the pairs and adds up log-probabilities."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from data.pairs import instruction_prompt, write_rows
from dpo import evaluate
from dpo.examples import Examples, open_examples
from dpo.forward import ANY, Way
from dpo.metrics import TIE
from dpo.order import Limit
from dpo.reference import AT_ONCE
from dpo.score import score_pairs, verdict
from gpt.command import parse
from gpt.parallel import World
from gpt.weights import save_gpt

# Lengths that differ, an empty prompt, two answers alike but for a space, and rows with one answer.
ROWS = [
    {
        "prompt": instruction_prompt("Write it in the plural.", "mouse"),
        "chosen": "mice",
        "rejected": "mouses, obviously",
    },
    {"prompt": "Say hello.", "chosen": "Good morning! I hope this helps!", "rejected": "no"},
    {"prompt": "One answer.", "chosen": "yes"},
    {"prompt": "", "chosen": "a b", "rejected": "a  b"},
    {"prompt": "é, ü and 中", "chosen": "中", "rejected": "é"},
    {"prompt": "Null.", "chosen": "none at all", "rejected": None},
    {"prompt": "Say hello.", "chosen": "Hello", "rejected": "What do you want? " * 3},
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory, make_gpt, tokenizer) -> Path:
    """Two models of one vocabulary, and the rows above."""
    folder = tmp_path_factory.mktemp("score")
    for seed, name in enumerate(("policy", "reference")):
        save_gpt(folder / name, make_gpt(seed, vocab_size=tokenizer.vocab_size, n_positions=256), tokenizer)
    write_rows(folder / "pairs.jsonl", ROWS)
    return folder


@torch.no_grad()
def peer_logp(folder: Path, prompt: str, answer: str) -> tuple[float, int]:
    """log p(answer, end-of-text | prompt) and the tokens that it is of, by transformers."""
    peer, tokenizer = GPT2LMHeadModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, split_special_tokens=True).input_ids for text in (prompt, answer)]
    prompt_ids, answer_ids = ids[0] or [tokenizer.eos_token_id], [*ids[1], tokenizer.eos_token_id]
    logp = peer(torch.tensor([prompt_ids + answer_ids])).logits[0].log_softmax(-1)
    places = range(len(prompt_ids) - 1, len(prompt_ids) + len(answer_ids) - 1)
    return sum(float(logp[at, token]) for at, token in zip(places, answer_ids)), len(answer_ids)


@pytest.fixture
def scored(capsys):
    """A function that runs dpo/evaluate.py here: its lines of JSON, and what it said on standard error."""

    def run(*flags) -> tuple[list[dict], str]:
        evaluate.main(parse(evaluate.Flags, [str(word) for word in flags]))
        out, said = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()], said

    return run


def models(toy: Path) -> list:
    return ["--policy", toy / "policy", "--reference", toy / "reference"]


@pytest.fixture
def file(tmp_path):
    """A function that writes rows to a file."""

    def write(*rows: dict) -> Path:
        write_rows(tmp_path / "rows.jsonl", rows)
        return tmp_path / "rows.jsonl"

    return write


@pytest.mark.parametrize("loss, beta", [("", 0.1), ("dpo(beta=0.3)", 0.3), ("0.5*sft + ipo(beta=2)", 2), ("sft", 1)])
def test_rewards_are_beta_times_what_transformers_finds_the_policy_gained_over_the_reference(toy, scored, loss, beta):
    lines, _ = scored(*models(toy), "--pairs", toy / "pairs.jsonl", "--loss", loss)
    assert [line["row"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    for row, line in zip(ROWS, lines):
        rewards = {}
        for answer in ("chosen", "rejected"):
            if row.get(answer) is None:
                assert not [name for name in line if answer in name]
                continue
            said, length = peer_logp(toy / "policy", row["prompt"], row[answer])
            before, _ = peer_logp(toy / "reference", row["prompt"], row[answer])
            rewards[answer] = beta * (said - before)
            assert line[f"logps/{answer}"] == pytest.approx(said, abs=1e-4)
            assert line[f"reference_logps/{answer}"] == pytest.approx(before, abs=1e-4)
            assert line[f"rewards/{answer}"] == pytest.approx(rewards[answer], abs=1e-4)
            assert line[f"length/{answer}"] == length
        if len(rewards) == 1:
            assert "wins" not in line and "rewards/margins" not in line
        else:
            margin = rewards["chosen"] - rewards["rejected"]
            assert line["rewards/margins"] == pytest.approx(margin, abs=1e-4) and abs(margin) > 0.01
            assert line["wins"] == ("chosen" if margin > 0 else "rejected")


def test_the_verdict_counts_wins_and_averages_margins(toy, scored):
    lines, said = scored(*models(toy), "--pairs", toy / "pairs.jsonl")
    both = [line for line in lines if "wins" in line]
    wins = [line["wins"] for line in both].count("chosen")
    assert 0 < wins < len(both) == 5
    margin = sum(line["rewards/chosen"] - line["rewards/rejected"] for line in both) / 5
    expected = f"5 pairs, chosen wins {wins / 5:.3f} of them (a tie is half), mean margin {margin:.4g} (beta 0.1)"
    assert verdict(lines, 0.1) == expected
    assert said.splitlines()[-1] == expected  # nothing was left out


def test_answers_without_a_rival_have_a_mean_reward(toy, scored, file):
    lines, said = scored(*models(toy), "--pairs", file(ROWS[2], ROWS[5]))
    mean = sum(line["rewards/chosen"] for line in lines) / 2
    assert [line["row"] for line in lines] == [1, 2] and f"2 answers, mean reward {mean:.4g} (beta 0.1)\n" in said


def test_a_model_against_itself_is_a_tie_of_rewards_0(toy, scored):
    both = ["--policy", toy / "policy", "--reference", toy / "policy"]
    lines, said = scored(*both, "--pairs", toy / "pairs.jsonl")
    assert {line["wins"] for line in lines if "wins" in line} == {"tie"}
    assert all(line["rewards/chosen"] == 0 == line.get("rewards/margins", 0) for line in lines)
    assert "5 pairs, chosen wins 0.500 of them" in said


@pytest.mark.parametrize(
    "gain, wins", [(5 * TIE, "chosen"), (TIE / 5, "tie"), (-TIE / 5, "tie"), (-5 * TIE, "rejected")]
)
def test_a_tie_is_a_log_ratio_that_rounding_could_make_whatever_beta_is(make_gpt, tokenizer, file, gain, wins):
    # a reference whose head bears a little more on one token: that moves the log-ratio of answers that differ in it
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert len(a) == len(b) == 1
    policy = make_gpt(vocab_size=tokenizer.vocab_size, n_positions=64, tie_word_embeddings=False).eval()
    reference = make_gpt(vocab_size=tokenizer.vocab_size, n_positions=64, tie_word_embeddings=False).eval()
    examples, _ = open_examples(
        str(file({"prompt": "Say it.", "chosen": "a", "rejected": "b"})), tokenizer, 64, 0, None, {}
    )
    (ids,) = examples.ids
    with torch.no_grad():  # the logit of `a` after the prompt falls by `gain`, that of `b` stays
        hidden = reference.hidden(torch.tensor([ids.prompt]), torch.arange(len(ids.prompt)))[0, -1]
        after = reference.hidden(torch.tensor([ids.prompt + a]), torch.arange(len(ids.prompt) + 1))[0, -1]
        away = hidden - (hidden @ after) / (after @ after) * after  # after `a` itself nothing changes
        reference.lm_head.weight[a[0]] -= gain * away / (away @ hidden)
    world = World(0, 1, torch.device("cpu"))
    for beta in (0.01, 100):
        (line,) = score_pairs(policy, reference, examples, beta, Way(Limit(4, ANY), "fp32", world))
        assert line["wins"] == wins, line
        assert line["rewards/margins"] == pytest.approx(beta * gain, abs=beta * 5e-5)


def test_lines_do_not_depend_on_how_many_pairs_a_pass_has(toy, make_gpt, tokenizer, monkeypatch):
    policy, reference = (make_gpt(seed, vocab_size=tokenizer.vocab_size, n_positions=256).eval() for seed in (0, 1))
    examples, _ = open_examples(str(toy / "pairs.jsonl"), tokenizer, 256, 0, None, {})
    world = World(0, 1, torch.device("cpu"))
    found = []
    for micro in (1, 2, 50):
        way = Way(Limit(micro, ANY), "fp32", world)
        monkeypatch.setitem(AT_ONCE, "cpu", Limit(micro, ANY))
        found.append(list(score_pairs(policy, reference, examples, 0.1, way)))
    backwards = list(score_pairs(policy, reference, Examples(examples.store, examples.index[::-1]), 0.1, way))[::-1]
    for lines in (*found[1:], backwards):
        for line, expected in zip(lines, found[0], strict=True):
            assert line.keys() == expected.keys()
            assert all(
                line[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-4) for name in line if name != "wins"
            )


def test_what_is_left_out_is_said_with_its_rows_and_the_others_keep_their_numbers(toy, scored, file):
    long = {"prompt": "x", "chosen": "word " * 200, "rejected": "no"}
    cut = {"prompt": "word " * 200, "chosen": "yes", "rejected": "no"}
    alike = {"prompt": "Say hello.", "chosen": "Hello", "rejected": "Hello"}
    lines, said = scored(*models(toy), "--pairs", file(ROWS[0], alike, long, cut, ROWS[1], {**alike, "chosen": " "}))
    assert [line["row"] for line in lines] == [1, 4, 5]
    for part in ("chosen equal to rejected: 1 pair (row 2)", "an empty answer: 1 pair (row 6)", "(row 3)", "(row 4)"):
        assert said.count(part) == 1
    assert "left out or cut: " in said


def test_the_lines_go_into_a_folder_where_one_is_named(toy, scored, tmp_path):
    flags = [*models(toy), "--pairs", toy / "pairs.jsonl"]
    printed, verdict_printed = scored(*flags)
    lines, said = scored(*flags, "--out", tmp_path / "new" / "folder")
    assert lines == [] and said.splitlines()[-1] == verdict_printed.splitlines()[-1]
    written = (tmp_path / "new/folder/scores.jsonl").read_text().splitlines()
    assert list(map(json.loads, written)) == printed and len(list((tmp_path / "new/folder").iterdir())) == 1
