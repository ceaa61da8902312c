"""data/normal.py: which texts are equal and which are not."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.normal import normalized, normalized_prompt
from data.turns import instruction_prompt

EQUAL = [
    ("What is 5 * 3?", "what  is\n5*3"),
    ("Don't!", "dont"),
    ("Don’t", "don't"),
    ("Straße", "STRASSE"),
    ("１２ ＡＢＣ ﬁn", "12 abc fin"),
    ("e\u0301te\u0301", "ÉTÉ"),
    ("well-known", "well known"),
    ("Paris (France)", "paris, france"),
    ("soft\u00adhyphen \ufeffx", "softhyphen x"),
    ("你好，世界。", "你好 世界"),
    ("a\u00a0b\u2003c\x00d", "a b c d"),
    ("run `ls`", "run ls"),
]
UNLIKE = [
    ("5 * 3", "5 / 3"),
    ("5 - 3", "5 + 3"),
    ("3.5", "35"),
    ("3.5", "3 5"),
    ("1,000", "1000"),
    ("is -5", "is 5"),
    ("7 - -2", "7 - 2"),
    ("10:30", "10 30"),
    ("is 5 < 3", "is 5 > 3"),
    ("कि", "का"),  # vowel signs are no marks
    ("é", "e"),
    ("😀", "😡"),
    ("a + b", "a b"),
    ("?", "!"),
    (";", ""),
]


@pytest.mark.parametrize("one, other", EQUAL)
def test_case_space_and_punctuation_make_no_difference(one, other):
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize("one, other", UNLIKE)
def test_numbers_symbols_accents_and_vowel_signs_do(one, other):
    assert normalized(one) != normalized(other)


letters = st.text("abcxyzéñßдж日本あ", min_size=1, max_size=4)
between = st.sampled_from([" ", "\n", ", ", "! ", " — ", "\t ", "... ", " (", "\u3000"])


@given(st.lists(st.tuples(letters, between, between, st.booleans()), min_size=1, max_size=5))
def test_a_text_dressed_up_in_any_way_is_the_same_text(parts):
    plain = "".join(word + " " for word, *_ in parts)
    dressed = "".join((word.upper() if upper else word) + mark for word, mark, _, upper in parts)
    decomposed = "".join(unicodedata.normalize("NFD", word) + mark for word, _, mark, _ in parts)
    assert normalized(plain) == normalized(dressed) == normalized(decomposed)


@given(st.text(max_size=30))
def test_what_comes_out_is_words_with_single_spaces_between_and_nothing_only_of_nothing(text):
    found = normalized(text)
    assert found == " ".join(found.split()) and bool(found) == bool(unicodedata.normalize("NFKC", text).split())


ascii_texts = st.text(st.characters(max_codepoint=127) | st.sampled_from("55--.,_ \t\x1c\x1f"), max_size=20)


@given(ascii_texts)
@example("5\x1c3")
@example("5 \x1f*\x1d3")
def test_plain_text_is_the_same_by_either_way_of_searching(text):
    """A soft hyphen, which is left out, makes the text one that is not ASCII."""
    assert normalized(text + " x\xad") == normalized(text + " x")


@given(
    st.text(),
    st.sampled_from([str.upper, str.title, lambda text: f"\n {text}\t", lambda text: text.replace(" ", "\r\n  ")]),
)
def test_copies_in_another_case_with_other_white_space_are_equal(text, change):
    plain = text.encode("ascii", "ignore").decode()
    assert normalized(change(plain)) == normalized(plain)


@given(st.text(max_size=20), st.text(max_size=20))
def test_the_template_of_an_instruction_does_not_count(instruction, given_input):
    asked = instruction + ("\n" + given_input if given_input else "")
    if "\n\n### Input:\n" not in asked:
        assert normalized_prompt(instruction_prompt(instruction, given_input)) == normalized(asked)
    assert normalized_prompt(asked) == normalized(asked)
