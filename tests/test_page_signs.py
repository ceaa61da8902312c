"""dpo/page/signs.py, answer_signs.py: each sign on a curve that was made to show it, on others, and on spoiled runs."""

import json
import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.pairs import write_rows
from data.rules import preference_rows
from dpo.compare import signals_as_before
from dpo.page import answer_signs, signs
from dpo.page.charts import signs_of
from dpo.page.reading import Metrics, Run, Sample, read_run
from dpo.train import Flags
from dpo.train import main as train
from tests.pages import LN_2, dpo_lines

CURVES = [signs.stuck, signs.by_heart, signs.collapsing, signs.racing, signs.below_chance, signs.lengths_differ]
CURVES += [signs.exploding, signs.slowing]


def seen(lines: list[dict]) -> set[str]:
    """The names of the signs that these lines show."""
    return {sign.__name__ for sign in CURVES if sign(Metrics(lines))}


def with_values(lines: list[dict], **changed) -> list[dict]:
    """The lines with metrics (of which / is written __) set by functions of the line, where they have them."""
    named = {name.replace("__", "/"): make for name, make in changed.items()}
    return [line | {name: make(line) for name, make in named.items() if name in line} for line in lines]


def test_a_run_that_went_well_shows_none():
    assert seen(dpo_lines()) == set()


def test_too_few_steps_say_nothing():
    assert seen(dpo_lines(steps=8, every=100)[1:]) == set()


def noisy(level: float, spread: float):
    rng = Random(0)
    return lambda line: level + rng.uniform(-spread, spread)


SHOWN = {
    "stuck": with_values(dpo_lines(), loss=lambda line: LN_2 - 1e-4 * (line["step"] > 1)),
    "by_heart": with_values(
        dpo_lines(), loss=lambda line: {0: 0.69, 20: 0.5, 40: 0.55, 60: 0.7}[line["step"]]
        if line["split"] == "held-out" else 0.7 - line["step"] / 100,
    ),
    "collapsing": dpo_lines(fall=lambda part: -0.3 * part),
    "racing": with_values(dpo_lines(), rewards__margins=lambda line: line["step"] / 15),
    "below_chance": with_values(dpo_lines(), rewards__accuracies=noisy(0.3, 0.02)),
    "lengths_differ": with_values(dpo_lines(), length__chosen=noisy(15, 1)),
    "exploding": with_values(dpo_lines(), grad_norm=lambda line: math.exp(line["step"] / 15)),
    "slowing": with_values(dpo_lines(), pairs_per_second=lambda line: 100 if line["step"] < 30 else 40),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_a_curve_that_was_made_to_show_a_sign_shows_that_one_alone(name):
    assert seen(SHOWN[name]) == {name}


@pytest.mark.parametrize("name", ["stuck", "collapsing", "below_chance"])
def test_without_held_out_pairs_the_training_is_looked_at(name):
    assert name in seen([line for line in SHOWN[name] if line["split"] == "train"])


def test_while_the_rate_still_rises_a_loss_at_ln_2_says_nothing():
    warming = with_values(SHOWN["stuck"], learning_rate=lambda line: line["step"] * 1e-6)
    assert "stuck" not in seen(warming)
    assert "stuck" in seen(with_values(warming, learning_rate=lambda line: 0.0))


def test_a_loss_that_does_not_begin_at_ln_2_is_not_stuck_there_but_its_term_may_be():
    lines = with_values(dpo_lines(), loss=lambda line: 1.5)
    assert "stuck" not in seen(lines)
    lines = [line | {"loss/dpo": LN_2, "loss/sft": 0.8} for line in lines]
    assert "loss/dpo" in signs.stuck(Metrics(lines))


def test_a_loss_that_rises_from_ln_2_has_left_it():
    assert "stuck" not in seen(with_values(dpo_lines(), loss=lambda line: LN_2 + line["step"] / 50))


def test_an_accuracy_that_fell_again_is_not_said_to_be_as_good_at_the_end():
    level = {0: 0.5, 20: 0.95, 40: 0.9, 60: 0.8}
    lines = with_values(SHOWN["racing"], rewards__accuracies=lambda line: level.get(line["step"], 0.9))
    assert "Accuracy was better at step 20 than at the end" in signs.racing(Metrics(lines))
    assert "Accuracy was as good at step 20 as at the end" in signs.racing(Metrics(SHOWN["racing"]))


def test_a_chosen_reward_that_falls_by_less_than_a_nat_or_a_twentieth_is_no_collapse():
    assert "collapsing" not in seen(dpo_lines(fall=lambda part: -0.09 * part))  # 0.9 nats of 10
    long = with_values(
        dpo_lines(fall=lambda part: -0.3 * part), logps__chosen=lambda line: -300 + 10 * line["rewards/chosen"]
    )
    assert "collapsing" not in seen(long)  # 3 nats of 300


def test_an_accuracy_below_one_half_that_chance_explains_is_none():
    assert "below_chance" not in seen(with_values(dpo_lines(), rewards__accuracies=lambda line: 0.45))  # of 100 pairs


@given(
    st.lists(
        st.fixed_dictionaries(
            {"step": st.integers(-5, 10**25), "split": st.sampled_from(["train", "held-out", "other"])},
            optional={
                name: st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=2), st.booleans())
                for name in (
                    "loss",
                    "loss/x",
                    "rewards/margins",
                    "rewards/chosen",
                    "logps/chosen",
                    "pairs",
                    "grad_norm",
                )
            },
        ),
        max_size=60,
    )
)
def test_whatever_stands_in_the_lines_a_sign_is_a_sentence_or_none(lines):
    for sign in CURVES:
        assert isinstance(sign(Metrics(lines)), str)


# answers


def answered(before: str, after: str, **told) -> Sample:
    given = {
        "stopped": (True, True),
        "length": (len(before.split()), len(after.split())),
        "correct": None,
    } | told
    return Sample("prompt", before, after, **given)


@pytest.mark.parametrize(
    "text, loops",
    [
        ("a b c a b c a b c a b c", True),
        ("!!!!!!!!", True),
        ("you are welcome! you are welcome! you are welcome!", True),
        ("the cat sat on the mat and the dog sat on the rug", False),
        ("no no no", False),
        ("IIIIII", True),
        ("abcabcabcabcabcabcabc", True),
        ("Soooooo many letters stand in this answer that six of one are no loop", False),
        ("1000000000", False),
        ("Fill in: __________", False),
        ("", False),
    ],
)
def test_an_answer_that_goes_round_in_circles(text, loops):
    assert answer_signs.is_looping(text) == loops


def test_of_n_words_in_a_row_those_that_were_there_before_are_counted():
    words = "one two three four one two three five".split()  # six runs of three, one of them again
    assert not answer_signs.is_looping(" ".join(words)) and answer_signs.is_looping(" ".join(words[:7] + words[:4]))


def test_signs_of_answers_compare_before_and_after():
    loop = answered("fine", "a b c a b c a b c", stopped=(True, False))
    quiet = [answered("fine", "fine")] * 9
    assert not answer_signs.repeating([*quiet, loop]) and "2 of 11" in answer_signs.repeating([*quiet, loop, loop])
    old = answered(loop.after, loop.after)
    assert "9 of 9 answers repeat themselves; so did 9 before" in answer_signs.repeating([old] * 9)
    assert not answer_signs.repeating([*quiet * 3, old, old]) and not answer_signs.repeating(
        [answered(loop.after, "fine")] * 9
    )
    assert "2 of 11" in answer_signs.not_ending([*quiet, loop, loop]) and not answer_signs.not_ending(quiet)
    assert "longer: 1.0 tokens before, 9.0" in answer_signs.drifting([loop]) and not answer_signs.drifting(quiet)
    assert "shorter" in answer_signs.drifting([answered("one two three", "one")])


@pytest.mark.parametrize(
    "before, after, expected", [(9, 9, "9 did not before: the start"), (8, 6, "8 did not"), (8, 5, "")]
)
def test_that_most_answers_do_not_end_is_said_also_where_they_did_not_before(before, after, expected):
    rows = [answered("a", "b", stopped=(number >= before, number >= after)) for number in range(10)]
    assert expected in answer_signs.not_ending(rows) and bool(answer_signs.not_ending(rows)) == bool(expected)


@pytest.mark.parametrize("init", ["random:tiny", "", "gpt2", "runs/random:tiny", None])
@pytest.mark.parametrize("loss", ["dpo(beta=0.1)", "ipo", "dpo + 0.2*sft", "sft", "orpo(beta=0.1)", "cpo", ""])
def test_random_weights_and_a_loss_that_only_compares_are_said(init, loss):
    said = signs.untaught({"flags": {"init": init}, "settings": {"loss": loss}})
    assert bool(said) == (init == "random:tiny" and loss in ("dpo(beta=0.1)", "ipo"))


def test_a_loss_of_which_the_flags_alone_tell_is_known_too():
    assert signs.untaught({"flags": {"init": "random:tiny", "loss": "dpo"}}) and not signs.untaught({})


LOG_1024 = math.log(1024)


def guesses(first: float, last: float, loss: str = "dpo(beta=0.1)", warms_up: bool = False, **settings) -> str:
    """The sign for a run with these log π of a token at its ends."""
    lines = [line | {"logps/chosen": line["length/chosen"] * (last if line["step"] else first)} for line in dpo_lines()]
    if warms_up:
        lines = with_values(lines, learning_rate=lambda line: line["step"] * 1e-6)
    record = {"settings": {"loss": loss, "vocab_size": 1024} | settings}
    return signs.guessing(Run("run", record, Metrics(lines), {}, [], []))


def test_a_start_that_says_each_token_is_as_likely_as_any_other_guesses():
    said = guesses(-LOG_1024, -5.0)
    assert "log π a token is \N{MINUS SIGN}6.93 at the start: that of a model that guesses" in said
    assert "\N{MINUS SIGN}ln 1,024 = \N{MINUS SIGN}6.93" in said
    assert not guesses(-0.8 * LOG_1024, -5.0) and not guesses(-3.0, -3.0)
    assert not guesses(-3.0, -LOG_1024)  # unlearned, which is another sign
    assert not guesses(-LOG_1024, -5.0, vocab_size=None) and not guesses(-LOG_1024, -5.0, vocab_size=50_257)


def test_a_loss_that_teaches_answers_may_begin_with_guesses_but_not_stay_there():
    for loss in ("sft", "dpo(beta=0.1) + 0.2*sft"):
        assert not guesses(-LOG_1024, -2.0, loss)
        assert "6.93 at the start, \N{MINUS SIGN}6.90 now" in guesses(-LOG_1024, -6.9, loss)
        assert not guesses(-LOG_1024, -6.9, loss, warms_up=True)


def test_answers_became_wrong_only_where_a_coin_for_each_does_not_explain_it():
    wrong, right = (answered("a", "b", correct=ends) for ends in ((True, False), (False, True)))
    assert not answer_signs.fewer_correct([wrong] * 6 + [right] * 3)  # 3 more, of 9: one standard error
    assert "6 prompts became wrong, 0 right" in answer_signs.fewer_correct([wrong] * 6)
    assert not answer_signs.fewer_correct([answered("a", "b")] * 20)


@pytest.mark.parametrize("sign", answer_signs.OF_ANSWERS)
def test_without_answers_there_is_nothing_to_say(sign):
    assert sign([]) == ""


# real runs, spoiled on purpose


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A function that trains the embedded model with flags that spoil it, and gives the signs that its curves show."""
    folder = tmp_path_factory.mktemp("spoiled")
    write_rows(folder / "pairs.jsonl", preference_rows(160))
    usual = Flags(pairs=str(folder / "pairs.jsonl"), steps=24, batch=8, eval_every=8, save_minutes=0)

    def run(name: str, **flags) -> set[str]:
        with signals_as_before():
            assert train(replace(usual, **flags, out=str(folder / name))) == 0
        return seen(read_run(folder / name).metrics.lines)

    return run


@pytest.mark.slow
def test_runs_that_were_spoiled_on_purpose_show_it_and_one_that_was_not_does_not(spoiled):
    speed = {"slowing"}  # the machine may have other work
    assert spoiled("well", loss="dpo + 1.0*sft", lr=1e-4) <= speed
    assert spoiled("still", lr=1e-9) - speed == {"stuck"}
    assert "collapsing" in spoiled("wild", lr=3e-3)
    assert "below_chance" in spoiled("pit", loss="discopop", lr=1e-3)


def test_a_run_from_random_weights_is_said_to_guess_and_the_embedded_model_not(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", preference_rows(60))
    for init, said in (("random:tiny", True), ("", False)):
        usual = Flags(init=init, pairs=str(tmp_path / "pairs.jsonl"), steps=2, batch=4, eval_every=0, save_minutes=0)
        with signals_as_before():
            assert train(replace(usual, out=str(tmp_path / f"run{said}"))) == 0
        found = signs_of(read_run(tmp_path / f"run{said}"))
        assert any("that of a model that guesses" in one and at == ["logps"] for one, at in found.items()) == said


def test_lines_that_were_written_are_read_as_they_were(tmp_path):
    lines = dpo_lines()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(tmp_path).metrics.lines == lines
