"""data/scores.py: what scores say of answers whose quality is known, their sums, and the errors of a spec."""

import math
import sys
from dataclasses import fields
from pkgutil import resolve_name

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.annotate import Annotate
from data.failures import Failures
from data.judge import JudgeFlags
from data.onpolicy import OnPolicy
from data.pairs import Pair, instruction_prompt
from data.questions import read_criterion
from data.rules import COURTEOUS, RUDE, embedded_pairs, styled
from data.scores import KNOWN, SCORES, How, parse_score, runs_code, terms_of
from dpo.evaluate import Flags as Evaluate
from dpo.online import Flags as Online
from gpt.answers import Answer
from gpt.command import UserError
from tests.openai_server import fenced, serving

PAIRS = embedded_pairs(40)


def scored(spec: str, pair: Pair, *answers: Answer) -> list[float]:
    ((*found,),) = parse_score(spec)([pair], [answers])
    return found


@pytest.mark.parametrize("pair", PAIRS)
def test_right_answers_in_every_manner_are_correct_and_wrong_or_unended_ones_are_not(pair):
    right = [pair.output, *(styled(pair.output, phrase) for phrase in COURTEOUS + RUDE)]
    wrong = [pair.output + "x", pair.output[1:], pair.output + " ", ""]
    assert scored("rules:correct", pair, *(Answer(text, True, 3) for text in right)) == [1] * 9
    assert scored("rules:correct", pair, *(Answer(text, True, 3) for text in wrong)) == [0] * 4
    assert scored("rules:correct", pair, *(Answer(text, False, 3) for text in right)) == [0] * 9
    manners = [Answer(text, True, 3) for text in right] + [Answer(right[1], False, 3)]
    assert scored("rules:courteous", pair, *manners) == [0, *[1] * 4, *[0] * 5]


@given(lengths=st.lists(st.integers(1, 500), min_size=1), a=st.sampled_from([0.5, -2.0, 3.0]))
def test_a_sum_is_the_weighted_sum_of_its_terms(lengths, a):
    answers = [Answer(PAIRS[0].output * (n % 2), True, n) for n in lengths]
    found = scored(f"rules:correct + {a}*length:shorter + length:longer", PAIRS[0], *answers)
    assert found == pytest.approx([n % 2 - a * n + n for n in lengths])


def test_several_prompts_keep_their_answers_apart_and_none_is_a_score_of_none():
    answers = [[Answer(PAIRS[0].output, True, 2)], [], [Answer("no", True, 1), Answer(PAIRS[2].output, True, 4)]]
    assert parse_score("rules:correct")(PAIRS[:3], answers) == [[1.0], [], [0.0, 1.0]]


def test_an_llm_is_asked_by_its_flags_and_what_fails_is_told_with_its_row():
    def reply(text: str, request: dict) -> str:
        return "Hello." if "<answer" not in text else "Well." if fenced(text)["answer"] == "odd" else "Score: 7"

    with serving(reply) as server:
        flags = JudgeFlags(address=server.address, criterion="concise", max_tokens=33, tries=1, at_once=2, wait=0.0)
        score = parse_score("0.5*llm:tiny + length:longer", How(flags))
        pairs = [Pair(instruction_prompt(f"Say {n}."), "", None, 10 + n) for n in range(3)]
        answers = [[Answer("a", True, 2)], [Answer("b", True, 3), Answer("odd", True, 4)], []]
        one, two, three = score(pairs, answers, failures := Failures())
    assert (one, three) == ([0.5 * 7 + 2], []) and all(map(math.isnan, two))
    assert failures.rows == {"no score in the reply": [11]}
    assert {request["max_tokens"] for request in server.asked} == {33}
    texts = [request["messages"][0]["content"] for request in server.asked][1:]
    assert len(texts) == 3 and all(read_criterion("concise").text in text for text in texts)
    assert {fenced(text)["request"] for text in texts} == {"Say 0.", "Say 1."}


@pytest.mark.parametrize("command", [Annotate, OnPolicy, Online, Evaluate])
def test_every_command_that_asks_an_llm_has_the_same_flags_for_it(command):
    theirs = {f.name: (f.type, f.default, f.metadata) for f in fields(command)}
    assert len(fields(JudgeFlags)) == 8
    for f in fields(JudgeFlags):
        assert theirs[f.name] == (f.type, f.default, f.metadata)
    assert not [name for name in theirs if "address" in name and name != "address"]


@pytest.mark.parametrize("word", SCORES)
def test_every_score_is_made_by_a_function_that_stands_where_the_table_says(word):
    maker = resolve_name(SCORES[word])
    assert callable(maker) and f"{word}:" in KNOWN and f"{word}:" in sys.modules["data.scores"].__doc__


# A score of one's own


def own(folder, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_function_of_ones_own_gets_what_was_asked_and_the_answer_and_joins_sums(tmp_path):
    file = own(tmp_path, "def short(prompt, answer):\n    return len(prompt) - 10 * len(answer)\n")
    pair = Pair(instruction_prompt("Add.", "2 + 3"), "", None, 1, output="5", family="sum")
    answers = [Answer("5", True, 2), Answer("five", False, 7)]
    assert scored(f"{file}:short", pair, *answers) == [len("Add.\n\n2 + 3") - 10, len("Add.\n\n2 + 3") - 40]
    found = scored(f"rules:correct + 0.1*{file}:short + length:longer", pair, *answers)
    assert found == pytest.approx([1 + 0.1 * 1 + 2, 0.1 * -29 + 7])


def test_it_may_be_named_from_where_one_stands_and_be_anything_that_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own(
        tmp_path,
        "from dataclasses import dataclass\n@dataclass\nclass Like:\n    word: str\n    def __call__(self, prompt, answer):\n"
        "        return self.word in answer\nkind = Like('please')\ndef odd(prompt, answer): return float('nan')\n",
    )
    answers = [Answer("yes, please", True, 3), Answer("no", True, 1)]
    for name in ("mine.py", "./mine.py", f"../{tmp_path.name}/mine.py"):
        assert scored(f"{name}:kind", PAIRS[0], *answers) == [1.0, 0.0]
        assert scored(f"-2*{name}:kind", PAIRS[0], *answers) == [-2.0, 0.0]
    assert all(map(math.isnan, scored("mine.py:odd", PAIRS[0], *answers)))


@pytest.mark.parametrize(
    "text, name, expected",
    [
        ("", "no.py:short", "there is no file"),
        ("def short(prompt, answer): return 1", "mine.py:shot", "has no function 'shot'; it has short"),
        ("from math import pi\nthe = 5", "mine.py:the", "has no function 'the'; it has none"),
        ("def short(prompt, answer): return 1", "mine.py:", "has no function ''; it has short"),
        ("def short(:", "mine.py:short", "the file cannot be run: SyntaxError"),
        ("x = 1\ny = x / 0", "mine.py:y", "the file cannot be run: ZeroDivisionError: division by zero (line 2)"),
    ],
)
def test_a_file_that_holds_no_such_function_is_one_line(tmp_path, text, name, expected):
    own(tmp_path, text)
    with pytest.raises(UserError) as error:
        parse_score(f"length:longer + {tmp_path}/{name}")
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "body, expected",
    [
        ("return answer[3]", "IndexError: string index out of range (line 2)"),
        ("return None", "TypeError: float() argument must be"),
        ("return '5'", "TypeError: it returned the text '5', not a number"),
        ("raise KeyError('a\\nb')", "KeyError"),
    ],
)
def test_a_function_that_fails_names_the_row_and_its_own_line(tmp_path, body, expected):
    file = own(tmp_path, f"def short(prompt, answer):\n    {body}\n")
    with pytest.raises(UserError, match="^row 17: --score .*mine.py:short: ") as error:
        scored(f"{file}:short", PAIRS[0]._replace(row=17), Answer("no", True, 1))
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_what_runs_a_file_of_code_is_known_before_it_does():
    assert runs_code("rules:correct + 0.1*../a b/mine.py:short") and runs_code("mine.py:short")
    assert not any(map(runs_code, ["rules:correct", "implicit:runs/mine.py/x", "llm:mine.py", "None", ""]))


@pytest.mark.parametrize("fields", [{"family": None}, {"family": "poems"}, {"output": None}])
def test_rules_name_the_row_that_is_of_no_embedded_task_before_there_is_an_answer(fields):
    pairs = [PAIRS[0], PAIRS[1]._replace(row=17, **fields)]
    with pytest.raises(UserError, match="^row 17: the score rules:correct is of the embedded tasks alone"):
        parse_score("length:longer + rules:correct")(pairs, [[], []])
    assert parse_score("length:longer")(pairs, [[], []]) == [[], []]


@pytest.mark.parametrize(
    "spec, expected",
    [
        (
            "",
            "there is no score ''; there are rules:correct, rules:courteous, length:shorter, length:longer, llm:MODEL, "
            "implicit:RUN, FILE.py:FUNCTION, and",
        ),
        ("rule:correct", "there is no score 'rule:correct'"),
        ("rules:polite", "rules:polite is no score; there are rules:correct, rules:courteous"),
        ("length", "length: is no score; there are length:shorter, length:longer"),
        ("0*rules:correct", "the weight of rules:correct is a finite number other than 0, found '0'"),
        ("1e999*rules:correct", "found '1e999'"),
        ("-*rules:correct", "found '-'"),
        ("implicit:runs/x", "implicit:runs/x names no run folder"),
        ("mine.py", "there is no score 'mine.py'"),
        ("2 rules:correct", "there is no score '2 rules:correct'"),
        ("rules:correct + ", "there is no score ''"),
    ],
)
def test_a_spec_that_makes_no_sense_is_one_line_that_names_it(spec, expected):
    with pytest.raises(UserError) as error:
        parse_score(spec)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec",
    [
        "length:shorter+0.1*rules:correct",
        "rules:correct+0.1*short.py:short",
        "llm:tiny+rules:correct",
        "rules:correct +length:longer",
        "rules:correct - 0.1*length:longer",
    ],
)
def test_a_sum_without_its_spaces_is_not_taken_for_one_name(spec):
    with pytest.raises(UserError, match=r"looks like a sum; write its plus with a space on either side"):
        parse_score(spec)


def test_a_plus_in_a_name_stays_in_it_and_a_weight_may_be_below_0():
    assert terms_of("llm:my+model + 2*folder/a+b.py:short") == ["llm:my+model", "2*folder/a+b.py:short"]
    assert terms_of("rules:correct + -0.1*length:longer") == ["rules:correct", "-0.1*length:longer"]
