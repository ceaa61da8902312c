"""gpt/tokenizer.py against tiktoken, transformers, the tokenizers library and BPE written out naively."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import regex
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str
from transformers import GPT2Tokenizer

from gpt.command import UserError
from gpt.tokenizer import SPLIT, Tokenizer, train_bpe

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(__file__).resolve().parents[2] / "shared"
VOCAB_BPE = SHARED / "tiktoken" / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"  # OpenAI's merges.txt
ENCODER_JSON = SHARED / "tiktoken" / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"  # OpenAI's vocab.json

HARD = [
    "",
    " ",
    "a",
    "Hello, world!",
    "naïve café — “quoted” … 1234567890 3.14159 x²",
    "한국어 텍스트를 나누는 법, 띄어쓰기 없이도",
    "I'm you're he'll we've they'd it's can't I'M IT'S",
    "👩‍👩‍👧‍👦 🇰🇷 😀😀 emoji \ufe0f",
    "日本語とelse العربية ไทย",
    "tabs\t\tand \t mixed\t ",
    "line\r\nline\r\n\r\n  end\r",
    "\n\n\n\t\n x",
    " " * 37 + "x" + " " * 100,
    "a" * 300,
    "\x00\x01\x07\x1b[0m\x7f\x85\xa0\u2028\u200b\ufeff",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> ",
    "!!!???---===",
    "def f(x):\n    return x**2  # comment\n",
    "\ud800 lone \udfff",
]

# few letters meet the same pairs again and again; the rest of Unicode meets every branch of the split
few_letters = st.text(alphabet="aab b'sn\n.1é", max_size=60)
any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    if not VOCAB_BPE.is_file():
        pytest.skip("../shared is missing: GPT-2's published vocabulary lies there")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
        return Tokenizer.gpt2()


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return train_bpe(
        ["the cat sat on the mat, the rat's hat; 한국어 한국 é\n"] * 2 + ["low lower lowest newer wider"], 330
    )


def naive_words(text: str) -> list[list[bytes]]:
    """The words of a text by tiktoken's pattern, which is written otherwise than ours, each as its bytes."""
    return [[bytes([b]) for b in word.encode()] for word in regex.findall(r50k_pat_str, text)]


def naive_merge(pieces: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    for i in range(len(pieces) - 1):
        if (pieces[i], pieces[i + 1]) == pair:
            return pieces[:i] + [pieces[i] + pieces[i + 1]] + naive_merge(pieces[i + 2 :], pair)
    return pieces


def naive_training(texts: list[str], count: int) -> list[tuple[bytes, bytes]]:
    """Sennrich's algorithm as the paper has it: count all pairs of all words, join the most frequent, begin again."""
    words = [word for text in texts for word in naive_words(text)]
    merges = []
    while len(merges) < count:
        counts = Counter(pair for word in words for pair in zip(word, word[1:]))
        if not counts:
            break
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        words = [naive_merge(word, merges[-1]) for word in words]
    return merges


def naive_encoding(tokenizer: Tokenizer, text: str) -> list[int]:
    """Join the pair that was learned first, again and again; pairs are looked up as pairs, not by their result."""
    rank, ids = {pair: i for i, pair in enumerate(tokenizer.merges)}, []
    for pieces in naive_words(text):
        while known := [pair for pair in zip(pieces, pieces[1:]) if pair in rank]:
            pieces = naive_merge(pieces, min(known, key=rank.__getitem__))
        ids += [tokenizer.ids[piece] for piece in pieces]
    return ids


def cli(*arguments, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "gpt" / "tokenizer.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def assert_one_line(error: str) -> None:
    assert error.strip() and "\n" not in error.strip() and "Traceback" not in error


# GPT-2's vocabulary


def test_gpt2_ids_equal_tiktokens_on_hard_text(gpt2):
    peer = tiktoken.get_encoding("gpt2")
    for text in HARD:
        assert gpt2.encode(text) == peer.encode_ordinary(text), text
    assert gpt2.vocab_size == peer.n_vocab and gpt2.end_of_text == peer.eot_token


@settings(deadline=None, max_examples=150)
@given(text=any_text)
def test_gpt2_ids_equal_tiktokens_on_any_text_and_decode_to_it(gpt2, text):
    ids = gpt2.encode(text)
    assert ids == tiktoken.get_encoding("gpt2").encode_ordinary(text)
    assert gpt2.decode(ids) == text


@settings(deadline=None, max_examples=60)
@given(text=any_text | few_letters)
def test_gpt2_ids_equal_merging_the_pairs_by_rank_naively(gpt2, text):
    assert gpt2.encode(text) == naive_encoding(gpt2, text)


def test_gpt2_is_saved_as_openai_published_it_and_loads_to_the_same_ids(gpt2, tmp_path):
    gpt2.save(tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text("utf-8")) == json.loads(ENCODER_JSON.read_text("utf-8"))
    assert (tmp_path / "merges.txt").read_text("utf-8").splitlines() == VOCAB_BPE.read_text("utf-8").splitlines()
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.ids, loaded.merges, loaded.end_of_text) == (gpt2.ids, gpt2.merges, gpt2.end_of_text)
    for text in HARD:
        assert loaded.encode(text) == gpt2.encode(text)


def test_transformers_reads_gpt2_as_saved_here_and_gives_equal_ids(gpt2, tmp_path):
    gpt2.save(tmp_path)
    peer = GPT2Tokenizer.from_pretrained(tmp_path)
    for text in HARD[:-1]:  # the lone surrogates are no text for it
        assert peer(text, split_special_tokens=True).input_ids == gpt2.encode(text), text


def test_without_network_and_vocabulary_gpt2_is_one_line_that_says_what_to_do(tmp_path):
    script = """
from gpt.command import UserError
from gpt.tokenizer import Tokenizer
try:
    Tokenizer.gpt2()
except UserError as error:
    print(error)
"""
    nobody = "http://127.0.0.1:9"  # nothing listens there, so that the download fails at once
    environment = os.environ | {
        "HTTPS_PROXY": nobody,
        "https_proxy": nobody,
        "NO_PROXY": "",
        "no_proxy": "",
        "PYTHONPATH": str(ROOT),
        "TIKTOKEN_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert_one_line(done.stdout)
    assert "TIKTOKEN_CACHE_DIR" in done.stdout


# vocabularies trained here


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(few_letters | any_text, max_size=4), merges=st.integers(0, 25))
def test_training_equals_recounting_all_pairs_at_each_merge(texts, merges):
    trained = train_bpe(texts, 257 + merges)
    assert trained.merges == naive_training(texts, merges)
    learned = [left + right for left, right in trained.merges]
    assert trained.ids == {token: i for i, token in enumerate([bytes([b]) for b in range(256)] + learned)}
    assert trained.end_of_text == 256 + len(learned) and trained.vocab_size == 257 + len(learned)


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(few_letters, min_size=1, max_size=4), text=few_letters | any_text)
def test_encoding_equals_merging_the_pairs_by_rank_naively_and_decodes_to_the_text(texts, text):
    trained = train_bpe(texts, 300)
    ids = trained.encode(text)
    assert ids == naive_encoding(trained, text)
    assert trained.decode(ids) == text


@settings(deadline=None, max_examples=100)
@given(text=any_text)
def test_training_splits_a_text_into_the_words_that_encoding_splits_it_into(own, text):
    words = regex.findall(SPLIT, text)
    assert "".join(words) == text
    assert words == regex.findall(r50k_pat_str, text)
    assert own.encode(text) == [i for word in words for i in own.encode(word)]


def test_the_picture_of_the_module_docstring_is_true():
    merges = [(b"l", b"o"), (b"lo", b"w"), (b"e", b"r")]
    tokens = [bytes([b]) for b in range(256)] + [left + right for left, right in merges]
    tokenizer = Tokenizer({token: i for i, token in enumerate(tokens)}, merges, 259)
    assert [tokens[i] for i in tokenizer.encode("lower")] == [b"low", b"er"]
    assert len(tokenizer.encode("<|endoftext|>")) == 13


def test_end_of_text_in_a_text_is_never_the_special_id(own, gpt2):
    for tokenizer in (own, gpt2, train_bpe(["<|endoftext|>" * 50], 400)):
        ids = tokenizer.encode("x<|endoftext|>y")
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode([*ids, tokenizer.end_of_text]) == "x<|endoftext|>y<|endoftext|>"


def test_half_a_character_decodes_to_the_replacement_character(own):
    assert own.decode(own.encode("aé")[:-1] + own.encode("b")) in ("a\ufffdb", "ab")  # "ab" where é is one token
    bare = train_bpe([], 257)
    assert bare.decode(bare.encode("é")[:1]) == "\ufffd"


def test_training_does_not_depend_on_the_order_of_the_texts():
    texts = ["ab abc abcd", "bc bcd", "xyz zyx", "aaa aaaa"]
    assert train_bpe(texts, 290).merges == train_bpe(texts[::-1], 290).merges


def test_texts_with_lone_surrogates_can_be_trained_on_as_they_can_be_encoded():
    # JSON can hold half a character ("\\ud83d"), and answers of language models do; encode takes it for U+FFFD
    assert train_bpe(["a\ud800b"] * 3, 262).encode("a\ud800b") == train_bpe(["a\ufffdb"] * 3, 262).encode("a\ufffdb")


def test_a_vocabulary_below_257_is_refused():
    with pytest.raises(UserError, match="256.*257"):
        train_bpe(["text"], 256)


def test_own_vocabulary_is_the_same_after_saving_and_loading(own, tmp_path):
    own.save(tmp_path / "new" / "folder")
    loaded = Tokenizer.load(tmp_path / "new" / "folder")
    assert (loaded.ids, loaded.merges, loaded.end_of_text) == (own.ids, own.merges, own.end_of_text)


def test_merges_with_windows_line_ends_and_without_a_version_line_load_the_same(own, tmp_path):
    own.save(tmp_path)
    lines = (tmp_path / "merges.txt").read_text("utf-8").splitlines()[1:]
    (tmp_path / "merges.txt").write_bytes("\r\n".join(lines).encode())
    assert Tokenizer.load(tmp_path).merges == own.merges


@settings(deadline=None, max_examples=60)
@given(text=few_letters | any_text)
def test_transformers_gives_equal_ids_from_a_folder_saved_here(own, peer_of_own, text):
    assert peer_of_own(text, split_special_tokens=True).input_ids == own.encode(text)


@pytest.fixture(scope="module")
def peer_of_own(own, tmp_path_factory) -> GPT2Tokenizer:
    folder = tmp_path_factory.mktemp("own")
    own.save(folder)
    return GPT2Tokenizer.from_pretrained(folder)


def test_transformers_gives_equal_ids_on_hard_text_from_a_folder_saved_here(own, peer_of_own):
    for text in HARD[:-1]:
        assert peer_of_own(text, split_special_tokens=True).input_ids == own.encode(text), text
    assert peer_of_own.convert_tokens_to_ids("<|endoftext|>") == own.end_of_text


@pytest.mark.slow
def test_a_megabyte_of_text_and_4096_merges_take_less_than_15_seconds():
    files = sorted((SHARED / "data").glob("*.json")) if SHARED.is_dir() else []
    if not files:
        pytest.skip("../shared is missing: the text to train on lies there")
    text, letters = "".join(file.read_text("utf-8") for file in files), random.Random(0)
    while len(text.encode()) < 1_000_000:  # words that never came before: the hard case, few repeats
        text += " " + "".join(letters.choices("etaoinshrdlucm", k=letters.randint(3, 10)))
    start = time.process_time()  # of this process alone: the machine may be busy
    trained = train_bpe([text], 4096 + 257)
    assert time.process_time() - start < 15
    assert len(trained.merges) == 4096
    assert trained.decode(trained.encode(text)) == text


# vocabularies of others


@pytest.fixture(scope="module")
def special_first(tmp_path_factory) -> tuple[tokenizers.Tokenizer, Path]:
    """As the tokenizers library trains it: the special token is id 0, the bytes follow, in the order of their letters."""
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = [
        "the cat sat on the mat and the rat ate the hat",
        "low lower lowest newer newest 한국어 한국",
        "aaaa aa aaa baab",
    ]
    peer.train_from_iterator(texts, trainer)
    folder = tmp_path_factory.mktemp("peer")
    peer.model.save(str(folder))
    return peer, folder


@settings(deadline=None, max_examples=100)
@given(text=few_letters | any_text)
def test_ids_in_another_order_than_the_merges_encode_as_the_tokenizers_library_does(special_first, text):
    peer, folder = special_first
    ours = Tokenizer.load(folder)
    assert ours.end_of_text == 0 and ours.vocab_size == peer.get_vocab_size()
    assert ours.encode(text) == peer.encode(text).ids
    assert ours.decode(ours.encode(text)) == text


def test_ids_in_another_order_than_the_merges_are_saved_as_they_were_loaded(special_first, tmp_path):
    folder = special_first[1]
    Tokenizer.load(folder).save(tmp_path)
    vocabularies = [json.loads((place / "vocab.json").read_text("utf-8")) for place in (folder, tmp_path)]
    merges = [(place / "merges.txt").read_text("utf-8").splitlines()[1:] for place in (folder, tmp_path)]
    assert vocabularies[0] == vocabularies[1] and merges[0] == merges[1]


def rewrite_vocabulary(change):
    def broken(folder: Path) -> None:
        vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
        vocabulary = change(vocabulary) or vocabulary
        (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")

    return broken


def rewrite_merges(line: int, text: str):
    def broken(folder: Path) -> None:
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        lines[line - 1] = text
        (folder / "merges.txt").write_text("\n".join(lines), "utf-8")

    return broken


# own's third line in merges.txt is its second merge
BROKEN = {
    "vocab.json is missing": (lambda f: (f / "vocab.json").unlink(), "vocab.json.*missing"),
    "merges.txt is missing": (lambda f: (f / "merges.txt").unlink(), "merges.txt.*missing"),
    "vocab.json is no JSON": (lambda f: (f / "vocab.json").write_text('{"a": 1'), "vocab.json"),
    "vocab.json is not UTF-8": (lambda f: (f / "vocab.json").write_bytes(b'{"\xff": 1}'), "vocab.json"),
    "vocab.json is a list": (rewrite_vocabulary(list), "vocab.json"),
    "vocab.json is a number": (rewrite_vocabulary(lambda v: 5), "vocab.json"),
    "end-of-text has no id": (
        rewrite_vocabulary(lambda v: v.pop("<|endoftext|>") and None),
        r"vocab.json.*<\|endoftext\|>",
    ),
    "a byte has no id": (rewrite_vocabulary(lambda v: v.pop("Ġ") and None), "no id.*b' '"),
    "a token has a letter of no byte": (rewrite_vocabulary(lambda v: v | {"한": 999}), "vocab.json.*한"),
    "an id is a word": (rewrite_vocabulary(lambda v: v | {"a": "x"}), "vocab.json"),
    "an id is null": (rewrite_vocabulary(lambda v: v | {"<|endoftext|>": None}), "vocab.json"),
    "an id is negative": (rewrite_vocabulary(lambda v: v | {"a": -1}), "vocab.json"),
    "two tokens have one id": (rewrite_vocabulary(lambda v: v | {"a": v["b"]}), "vocab.json"),
    "a token has the id of end-of-text": (rewrite_vocabulary(lambda v: v | {"<|endoftext|>": v["b"]}), "vocab.json"),
    "a merge has three parts": (rewrite_merges(3, "a b c"), "merges.txt, line 3"),
    "a merge has one part": (rewrite_merges(3, "ab"), "merges.txt, line 3"),
    "a merge has an empty part": (rewrite_merges(3, "a "), "merges.txt, line 3"),
    "a merge has a letter of no byte": (rewrite_merges(3, "a 한"), "merges.txt, line 3"),
    "a merge gives a token without id": (rewrite_merges(3, "q x"), "no id.*b'qx'"),
    "a merge stands twice": (rewrite_merges(4, "a t"), "b'at'"),
    "merges.txt is not UTF-8": (lambda f: (f / "merges.txt").write_bytes(b"#version: 0.2\n\xff \xfe\n"), "merges.txt"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_vocabulary_is_refused_in_one_line_that_names_the_file(broken, own, tmp_path):
    own.save(tmp_path)
    damage, named = BROKEN[broken]
    damage(tmp_path)
    with pytest.raises(UserError, match=named) as caught:
        Tokenizer.load(tmp_path)
    assert_one_line(str(caught.value))
    assert str(tmp_path) in str(caught.value)


def test_merges_that_tiktoken_cannot_follow_are_refused_or_encoded_as_transformers_does(tmp_path):
    # b c is joined first, so (ab, c) never is; a rank for the result abc must not let (a, bc) join instead
    bare = train_bpe([], 257)
    bare.save(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text("utf-8")) | {"bc": 257, "ab": 258, "abc": 259}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nb c\na b\nab c\n")
    theirs = GPT2Tokenizer.from_pretrained(tmp_path)("abc").input_ids
    assert theirs == [ord("a"), 257]
    try:
        ours = Tokenizer.load(tmp_path)
    except UserError:
        return
    assert ours.encode("abc") == theirs


# the command


def test_the_command_trains_a_vocabulary_from_another_working_directory(tmp_path):
    texts = ["the cat sat on the mat\n" * 9, "한국어 é\n"]
    for name, text in zip(("a.txt", "b.txt"), texts):
        (tmp_path / name).write_bytes(text.encode())
    done = cli("train", "a.txt", "b.txt", "--vocab-size", 270, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Tokenizer.load(tmp_path / "out").merges == naive_training(texts, 13)


def test_the_command_trains_on_the_line_ends_that_the_file_has(tmp_path):
    text = "x\r\n"  # its one pair is \r \n: what the file holds, not what Python's text mode makes of it
    (tmp_path / "windows.txt").write_bytes(text.encode())
    done = cli("train", "windows.txt", "--vocab-size", 258, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Tokenizer.load(tmp_path / "out").merges == naive_training([text], 1) == [(b"\r", b"\n")]


@pytest.mark.parametrize(
    "files, flags, named",
    [
        (["missing.txt"], ["--vocab-size", 300, "--out", "out"], "missing.txt"),
        (["latin.txt"], ["--vocab-size", 300, "--out", "out"], "latin.txt"),
        (["good.txt"], ["--vocab-size", 100, "--out", "out"], "257"),
        (["good.txt"], ["--vocab-size", 300], "--out"),
        (["good.txt"], ["--vocab-size", 300, "--out", "latin.txt"], "latin.txt"),
    ],
)
def test_what_the_command_cannot_do_is_one_line_with_exit_code_2(files, flags, named, tmp_path):
    (tmp_path / "good.txt").write_text("good text")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    done = cli("train", *files, *flags, cwd=tmp_path)
    assert_one_line(done.stderr)
    assert done.returncode == 2 and named in done.stderr
    assert not (tmp_path / "out").exists()
