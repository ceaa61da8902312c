"""The docstrings of dpo/losses: that the formula at the head of each is the formula, and that nothing goes unsaid."""

import inspect
import math
import re

import pytest

from dpo.losses import LOSSES, parse_loss
from dpo.losses.family import CHOICES, COUPLED, EXAMPLES, MODIFIERS, TAKES, described, own_keywords, table
from dpo.losses.spec import RANGES
from tests.by_hand import KEYWORDS, random_scores, sigmoid, softplus
from tests.processes import ROOT, call

FUNCTIONS = {
    "log": math.log,
    "exp": math.exp,
    "max": max,
    "sigmoid": sigmoid,
    "logsigmoid": lambda x: -softplus(-x),
}


def computed(text: str, known: dict[str, float]) -> float:
    """The value of a formula as the docstrings write them: 0.5 log sigmoid(x), (1-2e), ^2."""
    for written, name in (("log pi(y_w)", "chosen"), ("log pi(y_l)", "rejected"), ("log sigmoid(", "logsigmoid(")):
        text = text.replace(written, name)
    text = re.sub(r"\blog (p_\w)", r"log(\1)", text).replace("^", "**")
    text = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", text)  # 2 beta
    text = re.sub(r"(?<=\d)(?=[a-z])", "*", text)  # 2e
    return eval(text, FUNCTIONS | {"__builtins__": {}}, known)


def of_the_docstring(name: str, known: dict[str, float]) -> float:
    """What the first paragraph of a loss's docstring gives. Its definitions, `, x = ...`, are read from the last one back."""
    formula, *definitions = re.split(r", (?=[a-z] = )", described(LOSSES[name])[0])
    known = dict(known)
    for definition in reversed(definitions):
        letter, _, text = definition.partition(" = ")
        if f"{letter}_w" in formula:  # one for each answer
            for which, side in (("w", "chosen"), ("l", "rejected")):
                of_one = text.replace("log pi(y)", f"log pi(y_{which})").replace("length", f"{side}_len")
                known[f"{letter}_{which}"] = computed(re.sub(r"\bgain\b", f"gain_{side}", of_one), known)
        else:
            known[letter] = computed(text, known)
    return computed(formula.split(", ")[0] if name == "sft" else formula, known)


@pytest.mark.parametrize("name", sorted({*LOSSES} - COUPLED))  # for these, what is sorted or averaged is said in words
def test_the_formula_that_is_printed_gives_what_the_function_gives(name):
    s = random_scores(7, B=8)
    found = []
    for i in range(8):
        numbers = ("chosen", "rejected", "chosen_len", "rejected_len", "gain_chosen", "gain_rejected", "log_ratio")
        found.append(of_the_docstring(name, {key: getattr(s, key)[i].item() for key in numbers} | KEYWORDS[name]))
    assert found == pytest.approx(LOSSES[name](s, **KEYWORDS[name]).tolist(), rel=1e-9)


def test_a_formula_that_is_wrong_would_be_seen():
    assert computed("-(1-e) log sigmoid(2 x) / (1-2e)^2", {"e": 0.25, "x": 0.0}) == pytest.approx(3 * math.log(2))
    assert computed("p log(p / (1-e))", {"p": 0.5, "e": 0.25}) == pytest.approx(0.5 * math.log(2 / 3))


@pytest.mark.parametrize("name", LOSSES)
def test_a_docstring_is_a_formula_a_source_and_what_to_know(name):
    formula, source, *rest = inspect.getdoc(LOSSES[name]).split("\n\n")
    assert set(re.findall(r"[a-z_]{2,}", formula)) & {"sigmoid", "log", "exp", "max", "gain_chosen"}
    assert re.search(r"arXiv \d{4}\.\d{4,5}|A note on DPO", source) and re.search(r"\b20\d\d\b", source)
    assert rest


def keywords_paragraph(name: str) -> str:
    return inspect.getdoc(LOSSES[name]).split("\n\n", 2)[2]


@pytest.mark.parametrize("name, keyword", [(name, keyword) for name in LOSSES for keyword in own_keywords(name)])
def test_every_keyword_is_in_the_formula_is_explained_and_has_a_range_that_its_default_is_in(name, keyword):
    formula, _ = described(LOSSES[name])
    assert re.search(rf"\b{keyword}\b", formula)
    assert re.search(rf"(^|\. |, |\n){keyword}(, \w+)*:", keywords_paragraph(name))  # beta: 0.1 there
    assert RANGES.get(f"{name} {keyword}") or RANGES[keyword]
    default = own_keywords(name)[keyword]
    assert parse_loss(f"{name}({keyword}={default})") == parse_loss(name)  # which is refused outside


def test_no_range_is_left_over():
    known = {f"{name} {key}" for name in LOSSES for key in own_keywords(name)}
    known |= {key for name in LOSSES for key in own_keywords(name)} | {*MODIFIERS}
    assert RANGES.keys() <= known and {*MODIFIERS} == RANGES.keys() & {*MODIFIERS} | CHOICES.keys() == TAKES.keys()


@pytest.mark.parametrize("example, keyword, change", EXAMPLES, ids=[keyword for _, keyword, _ in EXAMPLES])
def test_a_modifier_says_what_it_changes_its_source_and_its_keyword(example, keyword, change):
    what, source, rest = inspect.getdoc(change).split("\n\n", 2)
    assert parse_loss(example).needs(keyword) and re.search(r"arXiv \d{4}\.\d{4,5}", source)
    assert what.endswith(".") and {"divergence": "divergence:", "ld_alpha": "ld_alpha:"}.get(keyword, "") in rest


def test_the_page_has_the_table_that_loss_list_prints():
    text = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    between = text.split("<!-- losses -->\n")[1].split("\n<!-- /losses -->")[0]
    assert between == table(), "docs/losses.md: put what `python dpo/train.py --loss list` prints between the marks"


def test_loss_list_prints_the_table_and_trains_nothing(tmp_path):
    done = call(ROOT / "dpo/train.py", "--loss", "list", "--out", tmp_path / "run")
    assert done.stdout == table() + "\n" and not (tmp_path / "run").exists()
