"""What a text is made of: whose letters, and what a reader does not see or a template left behind.

    script("Good morning!")          Latin
    script("Привет, Anna!")          Cyrillic    the script of most letters; digits and signs count for none
    script("日本語はむずかしい")        Kana        Han among kana is Japanese

Scripts are told by the first word of a letter's name in the Unicode database: CYRILLIC SMALL LETTER A, HANGUL SYLLABLE GA.
"""

import re
from collections import Counter
from functools import lru_cache
from unicodedata import name, normalize

# First words of names that are not what the script is called, and those that name no script
OF_NAME = {"cjk": "Han", "ideographic": "Han"} | dict.fromkeys(
    ("hiragana", "katakana", "katakana-hiragana", "hentaigana"), "Kana"
)
NO_SCRIPT = ("none", "modifier", "combining", "caron", "vertical", "masu", "turned", "roman")
# Scripts that set no space between words
UNSPACED = ("Han", "Kana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")

# Unicode's category Cc but for tab, line feed and carriage return
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Zero width, byte order marks, and what turns the direction of writing; joiners stay, as emoji and Persian need them
INVISIBLE = re.compile("[\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
# What tokenizers and chat templates write around texts: GPT-2 and ChatML, Llama 2, Gemma, BERT, DeepSeek (with wide bars)
SPECIAL = re.compile(
    r"<[|｜][^<>|｜\s]{1,40}[|｜]>|</?s>|<(?:pad|unk|bos|eos|mask)>|<(?:start|end)_of_turn>"
    r"|\[/?INST\]|<</?SYS>>|\[(?:PAD|CLS|SEP|MASK|UNK)\]"
)
# The heads of turns, at the beginning of a line: an answer that has one goes on with somebody else's words
TURN = re.compile(r"^(?:### ?(?:Instruction|Input|Response|Human|Assistant):|(?:Human|Assistant|User): )", re.MULTILINE)
LETTER = re.compile("[A-Za-z]")


def script(text: str) -> str:
    """The script of most letters of a text, a tie going to the one that comes first; "none" where it has no letter."""
    if text.isascii():
        return "Latin" if LETTER.search(text) else "none"
    found: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        found[script_of(letter)] += count
    del found["none"]
    if found["Kana"]:
        found["Kana"] += found.pop("Han", 0)
    return max(found, key=found.__getitem__) if found.total() else "none"


@lru_cache(2**16)
def script_of(letter: str) -> str:
    """The script of one character; "none" of what is no letter."""
    if not letter.isalpha():
        return "none"
    # full width and mathematical letters are those they stand for, and the last of several, as in 'n
    plain = next((part for part in reversed(normalize("NFKC", letter)) if part.isalpha()), letter)
    head = name(plain, "none").split()[0].lower()
    return "none" if head in NO_SCRIPT else OF_NAME.get(head, head.capitalize())


def special_tokens(text: str) -> list[str]:
    """Those that stand in a text, such as <|endoftext|>, in their order."""
    return SPECIAL.findall(text) if "<" in text or "[" in text else []


def is_word(text: str) -> bool:
    """Whether a text is one word, where its script tells words apart."""
    return len(text.split(maxsplit=1)) == 1 and script(text) not in UNSPACED
