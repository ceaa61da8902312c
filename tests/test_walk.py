"""dpo/walk.py: what it prints of a pair, computed by transformers, by plain autograd and by a run of dpo/train.py."""

import json
import math
import re

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import GPT2LMHeadModel

from data.pairs import write_rows
from data.rules import TINY, embedded_pairs, preference_rows
from dpo import train, walk
from dpo.compare import signals_as_before
from dpo.losses import LOSSES, parse_loss
from dpo.losses.family import described
from dpo.one_pair import SHORT, Walk, walk_of
from dpo.walk import STOPS, WIDTH, shown, with_numbers
from gpt.command import UserError
from gpt.tokenizer import Tokenizer
from tests.by_hand import KEYWORDS, random_scores
from tests.processes import ROOT, call
from tests.test_loss_docs import computed


@pytest.fixture(scope="module")
def seen() -> Walk:
    """The walk that is shown where nothing else is asked for."""
    return walk_of("", 0, "", parse_loss("dpo"))


def lines(number: int, seen: Walk) -> list[str]:
    return shown(STOPS[number - 1], seen)[2:]


def numbers(text: str) -> list[float]:
    return [float(one) for one in re.findall(r"[-+]?\d+\.\d+", text)]


def texts(seen: Walk) -> dict[str, tuple[list[int], list[int]]]:
    """Prompt and answer of both sides, encoded here."""
    tokenizer, pair = Tokenizer.load(TINY), embedded_pairs()[SHORT - 1]
    end = tokenizer.end_of_text
    prompt = tokenizer.encode(pair.prompt)
    return {side: (prompt, [*tokenizer.encode(getattr(pair, side)), end]) for side in ("chosen", "rejected")}


def logps(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log p of each answer token, in a row of its own, by transformers."""
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def test_the_row_is_the_rows_own_json_and_the_texts_are_its_pair(seen):
    assert json.loads("\n".join(lines(1, seen))) == preference_rows(SHORT)[-1]
    texts = [line.split(" | ", 1)[1] if " | " in line else "" for line in lines(2, seen)]
    pair = embedded_pairs()[SHORT - 1]
    assert texts[-2:] == [pair.chosen, pair.rejected]
    written = "\n".join(line.strip() for line in lines(2, seen)[:-2])
    assert pair.prompt.split("Instruction:\n")[1].split("\n")[0] in written and "### Response:" in written


def test_the_ids_with_their_texts_are_prompt_and_answers(seen):
    text = "\n".join(lines(3, seen))
    parts = re.split(r"^\w+, (\d+) tokens$", text, flags=re.MULTILINE)[1:]
    prompt, chosen = texts(seen)["chosen"]
    for count, part, ids in zip(parts[::2], parts[1::2], (prompt, chosen, texts(seen)["rejected"][1]), strict=True):
        found = re.findall(r"(\d+) ('[^']*')", part)
        assert [int(token) for token, _ in found] == ids and int(count) == len(ids)
        words = "".join(eval(word) for _, word in found).removesuffix("<|endoftext|>")
        assert words == Tokenizer.load(TINY).decode(ids[:-1] if ids is not prompt else ids)


def test_who_may_look_at_whom_is_each_text_from_left_to_right(seen):
    head, *_ = [line for line in lines(4, seen) if line.startswith("place")]
    keys = [int(n) for n in re.findall(r"\d+", head)]
    rows = {int(line.split()[0]): line for line in lines(4, seen) if re.match(r" *\d+ +\d", line)}
    assert sorted(rows) == keys
    (prompt, chosen), (_, rejected) = texts(seen).values()
    P, C, R = map(len, (prompt, chosen, rejected))
    behind = {"chosen": range(P, P + C - 1), "rejected": range(P + C - 1, P + C + R - 2)}
    assert f"{P + C + R - 2} tokens; in a row of its own for each answer {2 * P + C + R - 2}" == lines(4, seen)[0]
    for line in ([*range(P), *places] for places in behind.values()):
        for at, place in enumerate(line):
            if place in rows:
                marks = rows[place].split("'")[2].split()
                assert [key for key, mark in zip(keys, marks) if mark == "x"] == [
                    k for k in line[: at + 1] if k in keys
                ]
                assert int(rows[place].split()[2]) == at  # the position
    # what is asked of these places is the next token of the text
    asked = [
        (int(place), int(token))
        for place, token in re.findall(r"of place +(\d+) .* comes +(\d+) ", "\n".join(lines(5, seen)))
    ]
    first, second = ([P - 1, *places] for places in behind.values())
    assert asked == [*zip(first, chosen), *zip(second, rejected)]


@torch.no_grad()
def test_log_probabilities_and_their_sums_are_those_of_transformers(seen):
    model = GPT2LMHeadModel.from_pretrained(TINY).eval()
    expected = [logps(model, *both) for both in texts(seen).values()]
    rows = [numbers(line.split("'")[2]) for line in lines(6, seen)[1:]]
    for row, logp in zip(rows, torch.cat(expected).tolist(), strict=True):
        assert row == pytest.approx([logp, math.exp(logp), logp, 0], abs=1e-4)
    for line, logp in zip(lines(7, seen)[:2], expected):
        assert numbers(line) == pytest.approx([float(logp.sum()), float(logp.sum()), 0], abs=1e-4)
        assert f" {len(logp)} tokens" in line
    assert numbers(lines(7, seen)[-1]) == pytest.approx([float(logp.sum()) for logp in expected], abs=1e-4)


def test_the_loss_is_ln_2_and_the_pulls_are_half_of_beta(seen):
    assert lines(8, seen)[1:] == [
        f"{'':14}-log sigmoid(0.1 * 0.0000)",
        f"{'':12}= {math.log(2):.4f}",
        f"plain path, compute_dpo_loss: {math.log(2):.4f}",
    ]
    assert [numbers(line) for line in lines(9, seen)[:2]] == [[-0.05], [0.05]]


def test_what_a_step_does_is_what_adamw_does_to_the_loss_written_out(seen):
    model = GPT2LMHeadModel.from_pretrained(TINY).eval()

    def sums() -> torch.Tensor:
        return torch.stack([logps(model, *both).sum() for both in texts(seen).values()])

    before = sums()
    chosen, rejected = before - before.detach()
    (-logsigmoid(0.1 * (chosen - rejected))).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    decayed = {
        True: [p for p in model.parameters() if p.dim() > 1],
        False: [p for p in model.parameters() if p.dim() < 2],
    }
    groups = [{"params": some, "weight_decay": 0.01 * wanted} for wanted, some in decayed.items()]
    torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95)).step()
    with torch.no_grad():
        moved = sums() - before
        after = -logsigmoid(0.1 * (moved[0] - moved[1]))
    found = lines(9, seen)
    assert numbers(found[2])[0] == pytest.approx(float(norm), rel=1e-3)
    assert [numbers(line)[2] for line in found[6:8]] == pytest.approx(moved.tolist(), abs=2e-3)
    assert [numbers(line)[3] for line in found[6:8]] == pytest.approx(moved.exp().tolist(), abs=2e-3)
    assert numbers(found[8])[1] == pytest.approx(float(moved[0] - moved[1]), abs=2e-3)
    assert numbers(found[9])[1] == pytest.approx(float(after), abs=2e-4)


def test_the_line_of_metrics_is_that_of_a_run_of_one_step(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", preference_rows(SHORT)[-1:])
    flags = {"pairs": str(tmp_path / "pairs.jsonl"), "loss": "dpo(beta=0.3) + 0.5*sft"}
    with signals_as_before():
        assert train.main(train.Flags(out=str(tmp_path / "run"), steps=1, batch=1, held_out=0.0, **flags)) == 0
    (line,) = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    there = walk_of(flags["pairs"], 1, "", parse_loss(flags["loss"]))
    found = json.loads("{" + ",".join(re.sub(r'" +', '": ', one) for one in lines(10, there)) + "}")
    del line["pairs_per_second"]
    assert found == {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "ipo", "hinge", "simpo"])
def test_a_formula_with_its_numbers_gives_the_loss(name):
    scores = random_scores(3, B=1)
    (term,) = parse_loss(f"{name}({', '.join(f'{k}={v}' for k, v in KEYWORDS[name].items())})").terms
    text = with_numbers(described(LOSSES[name])[0], term, scores)
    assert not re.search(r"gain|log_ratio|beta|len|pi\(", text)
    assert computed(text, {}) == pytest.approx(float(term(scores)), rel=1e-3)


ROWS = [
    {"prompt": "日本語 and a long word " + "x" * 150, "chosen": "é " * 30, "rejected": "no\n\nno"},
    {"prompt": "Say it.", "chosen": "same", "rejected": "same"},
    {"prompt": "One answer.", "chosen": "yes"},
    {"prompt": "long " * 400, "chosen": "a b", "rejected": "a c", "margin": 0.5},
    {"prompt": "", "chosen": "b", "rejected": "a"},
]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("walk") / "pairs.jsonl"
    write_rows(path, ROWS)
    return str(path)


@pytest.mark.parametrize(
    "number, spec",
    [
        *((1, spec) for spec in ("dpo + 0.2*sft", "kto", "orpo", "dpo(wpo=true)", "aot_unpaired")),
        *((4, spec) for spec in ("dpo(ld_alpha=0.5)", "dpo(margin=true)", "simpo")),
        *((number, "sft") for number in (1, 2, 3, 5)),
    ],
)
def test_every_kind_of_row_and_of_loss_can_be_walked_within_a_hundred_columns(file, tmp_path, number, spec):
    if spec != "sft":
        write_rows(tmp_path / "both.jsonl", [row for row in ROWS if "rejected" in row])
        file, number = str(tmp_path / "both.jsonl"), {1: 1, 4: 3}[number]
    walk = walk_of(file, number, "", parse_loss(spec))
    text = ["\n".join(shown(stop, walk)) for stop in STOPS]
    assert max(map(len, "\n".join(text).splitlines())) <= WIDTH and "nan" not in "".join(text)
    assert ("rejected" in "".join(text[4:])) == (spec != "sft")
    assert ("pi_ref" in text[5] + text[6]) == (spec not in ("sft", "orpo", "simpo"))
    assert ("cut from the left" in text[2]) == (ROWS[3]["chosen"] in text[1])
    # both ways to the sums agree
    sums = [float(getattr(walk.scores, name)) for name in walk.plain if name != "loss"]
    assert [walk.plain[name] for name in walk.plain if name != "loss"] == pytest.approx(sums, abs=1e-3)


def test_tokens_beyond_those_of_the_shorter_answer_are_pulled_at_by_ld_alpha_times_as_much():
    pull = walk_of("", 0, "", parse_loss("dpo(ld_alpha=0.5)")).pull.tolist()
    assert pull == pytest.approx([-0.05] * 6 + [-0.025] + [0.05] * 6)


@pytest.mark.parametrize("spec, has_sft", [("dpo + 0.5*ipo", False), ("dpo + 0.5*sft", True), ("sft", True)])
def test_of_sft_is_spoken_where_it_is_a_term(spec, has_sft, capsys):
    walk.main(walk.Flags(stop=8, loss=spec))
    out = capsys.readouterr().out
    assert "in all" in out and ("sft divided" in out) == has_sft


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"pair": 2}, "row 2 (--pair): it is not used: chosen equal to rejected: 1 pair (row 2)"),
        ({"pair": 9}, "row 9 (--pair): there is none; the last one is row 4"),
        ({"stop": 11}, "--stop is 11"),
        ({"loss": "dqo"}, "there is no loss 'dqo'"),
    ],
)
def test_what_cannot_be_walked_is_one_line(tmp_path, flags, expected):
    write_rows(tmp_path / "pairs.jsonl", [row for row in ROWS if "rejected" in row])
    with pytest.raises(UserError) as error:
        walk.main(walk.Flags(pairs=str(tmp_path / "pairs.jsonl"), **flags))
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_the_embedded_set_has_an_end():
    with pytest.raises(UserError) as error:
        walk.main(walk.Flags(pair=12_001))
    assert "the embedded set, row 12001 (--pair): there is none; the last one is row 12000" in str(error.value)


def test_one_stop_is_one_stop_of_all_as_a_module_too(seen):
    done = call("-m", "dpo.walk", "--stop", 7, cwd=ROOT)
    assert (done.stdout.splitlines(), done.stderr) == (shown(STOPS[6], seen), "")
