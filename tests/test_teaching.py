"""The tables of docs/questions.md and docs/from-the-seed.md, and tests/bench/, where they come from."""

import math
import re
from functools import partial

import pytest

from dpo import train
from dpo.compare import signals_as_before
from dpo.examples import open_examples
from dpo.loss_table import ANSWERED, table
from dpo.rows import Ids
from gpt.command import UserError
from gpt.tokenizer import Tokenizer
from gpt.weights import load_gpt
from tests.bench import questions
from tests.bench import teaching as module
from tests.bench.questions import AT_ONCE, BETAS, DPO, LOOKED, TABLES, TAUGHT, Figures, Flags
from tests.bench.record import parts_of
from tests.bench.teaching import CUTS, HEADER, Case, cut, first_embedded, taught

NUMBER = re.compile(r"[-+\N{MINUS SIGN}]?\d[\d,]*\.?\d*")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


SHOWN = parts_of("questions")  # tests/test_measured.py holds the pages to it


def numbers(line: str) -> list[float]:
    return [float(n.replace("\N{MINUS SIGN}", "-").replace(",", "")) for n in NUMBER.findall(line)]


# Cuts


def test_the_cuts_are_those_of_the_picture():
    picture = re.findall(r"prompt ([\d ]+?) +chosen ([\d ]+?)  +(\w+)\b", module.__doc__)
    assert [name for *_, name in picture] == ["ours", "end", "prompt", "seed"]
    ids = Ids([10, 11, 12], [20, 21, 0], [30, 0])
    for prompt, chosen, name in picture:
        found = CUTS[name](ids, 1) if name != "ours" else ids
        assert [found.prompt, found.chosen] == [list(map(int, part.split())) for part in (prompt, chosen)]
        # both answers are cut alike
        assert found.prompt + found.rejected == (ids.prompt + ids.rejected)[: -1 if name in ("end", "seed") else None]
    assert CUTS["header"](ids, 2) == Ids([10], [11, 12, 20, 21, 0], [11, 12, 30, 0])


def test_the_header_is_what_the_seeds_mask_leaves_in(toy):
    """Its mask is False on the prompt, the text before the two newlines, and on two tokens more."""
    tokenizer = Tokenizer.load(toy / "model")
    examples, _ = open_examples(str(toy / "pairs.jsonl"), tokenizer, 256, 0.0, False, {})
    for pair, ids, ours in zip(examples.pairs, cut(examples, "header", tokenizer).ids, examples.ids):
        before, _ = pair.prompt.split("\n\n### Response:\n")
        assert tokenizer.decode(ids.prompt) == before + "\n\n" and pair.prompt.endswith(HEADER)
        assert ids.prompt + ids.chosen == ours.prompt + ours.chosen
        assert tokenizer.decode(ids.rejected[:-1]) == HEADER + pair.rejected


@pytest.mark.parametrize("spec", ["dpo(beta=0.3)", "sft"])
def test_a_model_that_is_taught_is_the_one_that_the_trainer_gives(toy, tmp_path, spec):
    init, pairs = str(toy / "model"), str(toy / "pairs.jsonl")
    flags = train.Flags(init=init, pairs=pairs, loss=spec, steps=5, batch=8, out=str(tmp_path / "run"))
    with signals_as_before():
        assert train.main(flags) == 0
    training, _ = open_examples(pairs, Tokenizer.load(init), 256, flags.held_out, spec == "sft", {})
    *_, (step, policy) = taught(Case(spec, init=init), training, 5, 8)
    start, trained = load_gpt(init), load_gpt(tmp_path / "run/model")
    moved = [float((a - b).detach().abs().max()) for a, b in zip(trained.parameters(), start.parameters())]
    assert step == 5 and min(moved) > 1e-5
    for ours, theirs in zip(policy.parameters(), trained.parameters(), strict=True):
        assert float((ours - theirs).detach().abs().max()) < 1e-6


# The pages


def test_every_table_was_recorded_and_no_other():
    assert SHOWN.keys() == set(TABLES)


@pytest.fixture(scope="module")
def computed() -> dict[str, list[str]]:
    return {name: make() for name, make in AT_ONCE.items()}


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_table_of_what_needs_no_training_is_what_is_found_now(computed, name):
    how = "run python tests/bench/questions.py --record"
    assert [NUMBER.sub("#", line) for line in SHOWN[name]] == [NUMBER.sub("#", line) for line in computed[name]], how
    for shown, found in zip(SHOWN[name], computed[name]):
        assert numbers(shown) == pytest.approx(numbers(found), rel=0.02, abs=2e-3), how


def test_the_first_loss_is_ln_2_and_the_slope_half_of_beta():
    for line in SHOWN["start"][2:]:
        beta, loss, chosen, rejected, norm = numbers(line)
        assert (loss, chosen, rejected) == pytest.approx((math.log(2), -beta / 2, beta / 2), abs=5e-5)
        assert norm / beta == pytest.approx(numbers(SHOWN["start"][-1])[-1] / 10, rel=0.02)


def test_means_are_sums_with_beta_divided_by_the_tokens():
    for line in SHOWN["scale"][2:]:
        tokens, means, scaled, sums = numbers(line)
        assert means == scaled == pytest.approx(math.log1p(math.exp(-0.1 * (4 + 6) / tokens)), abs=5e-5)
        assert sums == pytest.approx(math.log1p(math.exp(-0.1 * (4 + 6))), abs=5e-5)


def test_rewards_of_the_seed_are_those_of_the_log_over_beta():
    for side in ("chosen", "rejected"):
        (line,) = (line for line in SHOWN["seed"] if f"reward, {side}" in line)
        seeds, ours, times = numbers(line)
        assert seeds == pytest.approx(ours / 0.1, rel=0.02) and times == 10


@pytest.mark.parametrize("name", TAUGHT)
def test_a_table_of_trained_models_has_a_row_for_each_with_all_its_figures(name):
    head, _, *rows = map(cells, SHOWN[name])
    assert head[1:] == [*ANSWERED, "accuracy", "KL, nats", "chosen, nats"]
    assert [row[0] for row in rows] == list(TAUGHT[name])
    for row in rows:
        assert all(0 <= float(row[place]) <= 1 for place in (1, 2, 3, 4, 6)) and 1 <= float(row[5]) <= 64
        assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", row[7]) and re.fullmatch(r"[+\N{MINUS SIGN}]\d+\.\d\d", row[8])


def test_a_model_has_the_same_figures_wherever_it_stands():
    found: dict[Case, set] = {}
    for name, rows in TAUGHT.items():
        for case, line in zip(rows.values(), SHOWN[name][2:]):
            found.setdefault(case, set()).add(tuple(cells(line)[1:]))
    assert all(len(lines) == 1 for lines in found.values()) and len(found[DPO]) == 1


def test_what_is_said_of_the_sweep_is_in_the_sweep():
    kl = [numbers(line)[-3] for line in SHOWN["beta"][3:]]
    assert len(kl) == len(BETAS) and kl == sorted(kl, reverse=True)
    way = [numbers(line)[1:] for line in SHOWN["way"][2:]]
    at = dict(zip(LOOKED[1:], zip(*way)))
    assert max(at[10]) - min(at[10]) < 0.05 and max(at[50]) < 1.25 * min(at[50])  # the same way at first
    assert list(at[200]) == sorted(at[200], reverse=True) and at[200][0] > 20 * at[200][-1]


def test_chosen_answers_fall_with_dpo_and_rise_with_sft_beside_it():
    fall = {line.split("|")[1].strip(): numbers(line.split("|", 2)[2]) for line in SHOWN["falls"][2:]}
    alone, beside = fall["`dpo`, chosen"], fall["`dpo + 1.0*sft`, chosen"]
    assert alone[-1] < 0 < beside[-1] and fall["`dpo`, rejected"][-1] < alone[-1]
    # the end of the way is what the other tables have
    assert alone[-1] == numbers(SHOWN["beta"][5])[-1] and beside[-1] == numbers(SHOWN["prompt"][7])[-1]


# The command


def test_a_model_that_was_taught_is_not_taught_again(tmp_path, monkeypatch):
    flags = Flags(steps=1, batch=2, prompts=3, out=str(tmp_path))
    few = partial(first_embedded, 8)
    monkeypatch.setattr(questions, "embedded", lambda *how: (few(*how), few(*how)))
    first = Figures(flags).of(DPO)
    assert (
        list(first["trace"]) == ["0", "1"]
        and first["trace"]["1"]["logps/chosen"] != first["trace"]["0"]["logps/chosen"]
    )
    monkeypatch.setattr(questions, "taught", None)
    assert Figures(flags).of(DPO) == first


def test_a_table_is_printed_under_its_name_and_others_are_refused(tmp_path, capsys):
    questions.main(Flags(tables=["scale"], out=str(tmp_path)))
    table = "\n".join(AT_ONCE["scale"]())
    assert capsys.readouterr().out == f"scale\n{table}\n\n"
    with pytest.raises(UserError, match="there is no table 'size'"):
        questions.main(Flags(tables=["size"], out=str(tmp_path)))
    with pytest.raises(UserError, match="--record keeps all tables"):
        questions.main(Flags(tables=["scale"], out=str(tmp_path), record=True))


@pytest.mark.slow
def test_a_row_of_the_sweep_comes_out_again(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "LOOKED", ())
    known, name = Figures(Flags(out=str(tmp_path))), "`dpo(beta=3)`"
    rows = {row: known.of(TAUGHT["beta"][row])["figures"] for row in ("the start", name)}
    (shown,) = (line for line in SHOWN["beta"] if name in line)
    assert numbers(table(rows)[3])[1:] == pytest.approx(numbers(shown)[1:], rel=0.1, abs=0.05)
