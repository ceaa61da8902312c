"""data/characters.py: scripts told by hand-made ranges of Unicode, and the odd characters by their categories."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.characters import CONTROL, INVISIBLE, TURN, is_word, script, script_of, special_tokens

# Blocks of the Unicode standard, of which every assigned letter is of the script that gives the block its name
BLOCKS = {
    "Latin": [(0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0x100, 0x17F)],
    "Greek": [(0x391, 0x3A1), (0x3B1, 0x3C9)],
    "Cyrillic": [(0x400, 0x481)],
    "Hebrew": [(0x5D0, 0x5EA)],
    "Arabic": [(0x620, 0x63F)],
    "Devanagari": [(0x904, 0x939)],
    "Thai": [(0xE01, 0xE30)],
    "Hangul": [(0xAC00, 0xD7A3), (0x1100, 0x1112)],
    "Kana": [(0x3041, 0x3096), (0x30A1, 0x30FA)],
    "Han": [(0x4E00, 0x9FA5), (0x3400, 0x4DB5)],
}
LETTERS = {name: [chr(i) for low, high in ranges for i in range(low, high + 1)] for name, ranges in BLOCKS.items()}
NO_LETTERS = list("0123456789 .,!?\n-+[]{}'\"「」。、€😀🚀٣")


@pytest.mark.parametrize("name", LETTERS)
def test_every_letter_of_a_block_is_of_its_script(name):
    assert {script_of(letter) for letter in LETTERS[name]} == {name}


@given(st.lists(st.sampled_from([(name, i) for name in LETTERS for i in range(26)]), max_size=40), st.randoms())
def test_the_script_of_a_text_is_that_of_most_of_its_letters(picked, rng):
    letters = [LETTERS[name][i % len(LETTERS[name])] for name, i in picked] + rng.choices(NO_LETTERS, k=30)
    rng.shuffle(letters)
    counts = {name: sum(letter in block for letter in letters) for name, block in LETTERS.items()}
    if counts["Kana"]:  # Japanese
        counts["Kana"] += counts.pop("Han")
    found, most = script("".join(letters)), max(counts.values())
    assert counts[found] == most if most else found == "none"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "none"),
        ("42 + 1 = 43", "none"),
        ("😀👍🏽", "none"),
        ("Good morning!", "Latin"),
        ("Über naïve Œuvres", "Latin"),
        ("Ｆｕｌｌ ｗｉｄｔｈ", "Latin"),
        ("𝐛𝐨𝐥𝐝", "Latin"),
        ("α", "Greek"),
        ("Привет (Privet) мир", "Cyrillic"),
        ("日本語はむずかしい", "Kana"),
        ("漢字漢字漢字の", "Kana"),
        ("我们去学校", "Han"),
        ("々々", "Han"),
        ("안녕하세요", "Hangul"),
        ("नमस्ते", "Devanagari"),
    ],
)
def test_the_script_of_texts_as_they_are(text, expected):
    assert script(text) == expected


def test_control_characters_are_those_of_unicodes_category_but_for_tab_and_line_ends():
    everything = [chr(i) for i in range(sys.maxunicode + 1)]
    assert [c for c in everything if CONTROL.match(c)] == [
        c for c in everything if unicodedata.category(c) == "Cc" and c not in "\t\n\r"
    ]


def test_what_is_invisible_is_a_format_character_and_no_joiner():
    found = [chr(i) for i in range(sys.maxunicode + 1) if INVISIBLE.match(chr(i))]
    assert len(found) == 12 and {unicodedata.category(c) for c in found} == {"Cf"}
    assert not INVISIBLE.search("👩\u200d🚀 می\u200cخواهم")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("the end<|endoftext|>", ["<|endoftext|>"]),
        ("<|im_start|>user\nhi<|im_end|>", ["<|im_start|>", "<|im_end|>"]),
        ("<s>[INST] <<SYS>> be kind <</SYS>> hi [/INST] yes</s>", "<s> [INST] <<SYS>> <</SYS>> [/INST] </s>".split()),
        ("<start_of_turn>model\nhi<end_of_turn><eos>", ["<start_of_turn>", "<end_of_turn>", "<eos>"]),
        ("<｜begin▁of▁sentence｜>", ["<｜begin▁of▁sentence｜>"]),
        ("[CLS] a [SEP]", ["[CLS]", "[SEP]"]),
        ("a < b, c | d > e, a[1], <p>, <|>, x <| y |> z, [x]", []),
        ("<|" + "x" * 41 + "|>", []),
    ],
)
def test_special_tokens_are_found_and_what_looks_like_them_is_not(text, expected):
    assert special_tokens(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("yes", True),
        (" yes.\n", True),
        ("42", True),
        ("да", True),
        ("예", True),
        ("yes no", False),
        ("我们去学校", False),  # words stand without space there
        ("ภาษาไทย", False),
    ],
)
def test_one_word(text, expected):
    assert is_word(text) is expected


@pytest.mark.parametrize(
    "text", ["Human: hi", "so.\n\nHuman: more", "5\n### Instruction:\nnext", "\nAssistant: x", "### Response:"]
)
def test_a_turn_at_the_beginning_of_a_line(text):
    assert TURN.search(text)


@pytest.mark.parametrize("text", ["To err is Human: no", "# Instruction", "Humans: 3", "the ### Response: is"])
def test_no_turn_within_a_line(text):
    assert not TURN.search(text)
