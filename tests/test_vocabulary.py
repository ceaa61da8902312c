"""gpt/vocabulary.py: tokenizer.json as transformers and the tokenizers library write it, and every one that is not GPT-2's."""

import json
import warnings
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from gpt.command import Notice, UserError
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import Tokenizer, train_bpe
from gpt.weights import save_gpt

CORPUS = [
    "the cat sat on the mat and the rat ate the hat; I'm sure they'd say it's the cat's",
    "Съешь ещё этих мягких французских булок, да выпей чаю, ещё этих булок",
    "السلام عليكم ورحمة الله وبركاته السلام عليكم",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。明月光",
    "def f(x):\n    return x**2\n\ndef g(x):\n    return f(x) + 1\n",
    "😀 👩‍👩‍👧‍👦 🇰🇷 😀😀",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "   leading, trailing and   inner   ",
    "\n\n\t \r\n  \n x \t\t",
    "naïve café — “quoted” … 1234567890 ١٢٣ x² ½",
    "ไทย हिन्दी 한국어 日本語とelse",
    "<|endof text|> [PAD",
    "\x00\x1b[0m\x7f\x85\xa0\u2028\u200b\ufeff",
]
any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
few_letters = st.text(alphabet="thecamf чёن明😀 \n.1'", max_size=60)  # which meet the same merges again and again


def peer_bpe(texts=CORPUS, size=500, special=("<|endoftext|>",)) -> tokenizers.Tokenizer:
    peer = tokenizers.Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    peer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    peer.train_from_iterator(texts, trainer)
    return peer


def transformers_tokenizer(ours: Tokenizer, folder: Path):
    """What AutoTokenizer makes of a model folder of ours."""
    save_gpt(folder, GPT(GPTConfig(ours.vocab_size, n_positions=8, n_embd=4, n_layer=1, n_head=1)), ours)
    return AutoTokenizer.from_pretrained(folder)


def by_transformers(folder: Path) -> tokenizers.Tokenizer:
    transformers_tokenizer(train_bpe(CORPUS, 400), folder / "ours").save_pretrained(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def by_the_byte_level_class(folder: Path) -> tokenizers.Tokenizer:
    peer = tokenizers.ByteLevelBPETokenizer()
    peer.train_from_iterator(
        CORPUS, vocab_size=450, min_frequency=1, special_tokens=["<|endoftext|>", "<pad>"], show_progress=False
    )
    peer.save(str(folder / "tokenizer.json"))
    return peer


def by_a_trainer(folder: Path) -> tokenizers.Tokenizer:
    peer = peer_bpe()
    peer.save(str(folder / "tokenizer.json"))
    return peer


def with_a_last_step(folder: Path) -> tokenizers.Tokenizer:
    peer = peer_bpe(special=["<s>", "<pad>", "</s>", "<|endoftext|>", "<mask>"])
    peer.post_processor = processors.ByteLevel(trim_offsets=False)
    peer.save(str(folder / "tokenizer.json"))
    return peer


WRITTEN = {function.__name__: function for function in (by_transformers, by_a_trainer, with_a_last_step)}
WRITTEN |= {"by_the_byte_level_class": by_the_byte_level_class}


@pytest.fixture(scope="module", params=WRITTEN)
def written(request, tmp_path_factory) -> tuple[tokenizers.Tokenizer, Path]:
    """A peer, and a folder where it wrote tokenizer.json and nothing else that is read here."""
    folder = tmp_path_factory.mktemp(request.param)
    peer = WRITTEN[request.param](folder)
    assert not (folder / "vocab.json").exists() and not (folder / "merges.txt").exists()
    return peer, folder


def assert_same_ids(ours: Tokenizer, peer: tokenizers.Tokenizer, texts=TEXTS) -> None:
    for text in texts:
        assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ours.encode(text)) == text


def assert_same(a: Tokenizer, b: Tokenizer) -> None:
    assert (a.ids, list(a.merges), a.end_of_text) == (b.ids, list(b.merges), b.end_of_text)


# files that others write


def test_a_tokenizer_json_gives_the_ids_of_the_library_that_wrote_it(written):
    peer, folder = written
    ours = Tokenizer.load(folder)
    assert_same_ids(ours, peer)
    assert ours.vocab_size == peer.get_vocab_size() and ours.end_of_text == peer.token_to_id("<|endoftext|>")
    assert ours.end_of_text not in ours.encode("a<|endoftext|>b")


loaded = cache(Tokenizer.load)  # hypothesis asks for the same folder again and again


@given(text=any_text | few_letters)
def test_a_tokenizer_json_gives_the_ids_of_the_library_that_wrote_it_on_any_text(written, text):
    peer, folder = written
    assert_same_ids(loaded(folder), peer, [text])


def test_a_tokenizer_json_is_the_same_after_saving_and_loading(written, tmp_path):
    ours = Tokenizer.load(written[1])
    ours.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    assert_same(Tokenizer.load(tmp_path), ours)


@pytest.mark.parametrize("form", [list, " ".join])
def test_merges_as_lists_and_as_strings_are_the_same(form, written, tmp_path):
    peer, folder = written
    found = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in found["model"]["merges"]]
    found["model"]["merges"] = [form(pair) for pair in merges]
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    assert_same(Tokenizer.load(tmp_path), Tokenizer.load(folder))
    assert_same_ids(Tokenizer.load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")))


@pytest.mark.parametrize("name", ["truncation", "post_processor", "pre_tokenizer.use_regex", "model.type"])
def test_an_old_tokenizer_json_without_a_younger_field_is_the_same(name, tmp_path):
    # the first versions of the tokenizers library wrote neither model.type nor pre_tokenizer.use_regex
    peer, (*path, last) = by_transformers(tmp_path), name.split(".")
    found = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    del (found[path[0]] if path else found)[last]
    for younger in ("byte_fallback", "ignore_merges"):
        del found["model"][younger]
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    old = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [old.encode(text).ids for text in TEXTS] == [peer.encode(text).ids for text in TEXTS]
    assert_same_ids(Tokenizer.load(tmp_path), peer)


def test_tokenizer_json_beside_vocab_json_must_be_the_same_vocabulary_and_gpt2s_way_to_it(tmp_path):
    by_a_trainer(tmp_path)
    ours = Tokenizer.load(tmp_path)
    ours.save(tmp_path)
    assert_same(Tokenizer.load(tmp_path), ours)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    for change, named in (
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"model": whole["model"] | {"merges": whole["model"]["merges"][:-1]}}, "two vocabularies"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match=named):
            Tokenizer.load(tmp_path)


def test_the_tokenizer_json_of_a_run_folders_model_is_found(tmp_path):
    (tmp_path / "model").mkdir()
    peer = by_a_trainer(tmp_path / "model")
    assert_same_ids(Tokenizer.load(tmp_path), peer)


# added tokens


def test_tokens_added_in_transformers_keep_their_ids_after_loading_and_saving(tmp_path):
    ours = train_bpe(CORPUS, 400)
    peer = transformers_tokenizer(ours, tmp_path / "model")
    peer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<|im start|>", "<한국>"]})
    peer.save_pretrained(tmp_path / "theirs")
    read = Tokenizer.load(tmp_path / "theirs")
    read.save(tmp_path / "ours")
    added = {text: peer.convert_tokens_to_ids(text) for text in ("[PAD]", "<|im start|>", "<한국>")}
    assert sorted(added.values()) == [400, 401, 402]
    for tokenizer in (read, Tokenizer.load(tmp_path / "ours")):
        assert {text: tokenizer.ids[text.encode()] for text in added} == added
        assert tokenizer.vocab_size == len(peer) == 403
        assert tokenizer.decode(added.values()) == "".join(added)
        assert [tokenizer.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
        assert not set(added.values()) & set(tokenizer.encode("a[PAD]b<|im start|>"))


@pytest.mark.parametrize("text", ["  ", "the cat"])
def test_an_added_token_that_stands_for_ordinary_text_is_refused_or_encoded_as_the_peer_does(text, tmp_path):
    peer = peer_bpe()
    peer.add_tokens([text])  # not special: runs of spaces, for example, as vocabularies for code have them
    peer.save(str(tmp_path / "tokenizer.json"))
    try:
        ours = Tokenizer.load(tmp_path)
    except UserError as error:
        assert "added_tokens" in str(error)
        return
    assert_same_ids(ours, peer, [f"a{text}b"])


@pytest.mark.parametrize("special", ["[PAD]", "<|end of turn|>", "<한국>", "«s»"])
def test_a_special_token_that_a_trainer_was_given_keeps_its_id(special, tmp_path):
    peer = peer_bpe(special=["<|endoftext|>", special])  # it stands in model.vocab too, as it is and not in letters
    peer.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    ours.save(tmp_path / "saved")
    for tokenizer in (ours, Tokenizer.load(tmp_path / "saved")):
        assert tokenizer.decode([peer.token_to_id(special)]) == special
        assert tokenizer.vocab_size == peer.get_vocab_size()
        assert_same_ids(tokenizer, peer)


def test_gpt2s_vocabulary_goes_to_transformers_and_back_with_the_same_ids(shared, monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    gpt2 = Tokenizer.gpt2()
    peer = transformers_tokenizer(gpt2, tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "tokenizer.json").exists() and not (tmp_path / "theirs" / "vocab.json").exists()
    back = Tokenizer.load(tmp_path / "theirs")
    assert_same(back, gpt2)
    for text in TEXTS:
        assert back.encode(text) == gpt2.encode(text) == peer(text, split_special_tokens=True).input_ids


# what is refused


def put(*path, **fields):
    """An edit that sets fields of the object at this path."""

    def edit(found):
        inner = found
        for part in path:
            inner = inner[part]
        inner |= fields

    return edit


def split_by(step) -> object:
    return put(pre_tokenizer=json.loads(step.__getstate__()))


def ended_by(step) -> object:
    return put(post_processor=json.loads(step.__getstate__()))


def of_model(model) -> object:
    """An edit that puts this model in the place of the BPE."""
    return put(model=json.loads(tokenizers.Tokenizer(model).to_str())["model"])


BYTES, ENDS = pre_tokenizers.ByteLevel(add_prefix_space=False), [("<|endoftext|>", 0)]
OTHER_STEPS = {
    "normalizer NFC": (put(normalizer={"type": "NFC"}), ["normalizer", "NFC"]),
    "normalizer Lowercase": (put(normalizer={"type": "Lowercase"}), ["normalizer", "Lowercase"]),
    "a space put before": (put("pre_tokenizer", add_prefix_space=True), ["pre_tokenizer", '"add_prefix_space": true']),
    "no split": (put("pre_tokenizer", use_regex=False), ["pre_tokenizer", '"use_regex": false']),
    "no pre_tokenizer": (put(pre_tokenizer=None), ["pre_tokenizer", "null"]),
    "Split": (split_by(pre_tokenizers.Split(tokenizers.Regex(r"\d"), "isolated")), ["pre_tokenizer", "Split"]),
    "Sequence": (
        split_by(pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTES])),
        ["pre_tokenizer", "Sequence", "Digits"],
    ),
    "Metaspace": (split_by(pre_tokenizers.Metaspace()), ["pre_tokenizer", "Metaspace"]),
    "Whitespace": (split_by(pre_tokenizers.Whitespace()), ["pre_tokenizer", "Whitespace"]),
    "a token put before": (
        ended_by(processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=ENDS)),
        ["post_processor", "TemplateProcessing"],
    ),
    "a token put behind": (
        ended_by(processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=ENDS)),
        ["post_processor", "TemplateProcessing"],
    ),
    "RoBERTa's ends": (
        ended_by(processors.RobertaProcessing(("</s>", 2), ("<s>", 0))),
        ["post_processor", "RobertaProcessing"],
    ),
    "WordPiece": (of_model(models.WordPiece({"a": 0, "[UNK]": 1})), ["model.type", "WordPiece"]),
    "Unigram": (of_model(models.Unigram([("a", 0.0)])), ["model.type", "Unigram"]),
    "WordLevel": (of_model(models.WordLevel({"a": 0, "<unk>": 1})), ["model.type", "WordLevel"]),
    "byte_fallback": (put("model", byte_fallback=True), ["model.byte_fallback", "true"]),
    "dropout": (put("model", dropout=0.1), ["model.dropout", "0.1"]),
    "a prefix": (put("model", continuing_subword_prefix="##"), ["model.continuing_subword_prefix", "##"]),
    "a suffix": (put("model", end_of_word_suffix="</w>"), ["model.end_of_word_suffix", "</w>"]),
    "ignore_merges": (put("model", ignore_merges=True), ["model.ignore_merges", "true"]),
}

HERE = "tokenizer.json"
MALFORMED = {
    "no end-of-text": (
        lambda f: f.update(added_tokens=[]) or f["model"]["vocab"].pop("<|endoftext|>") and None,
        [HERE, "<|endoftext|>"],
    ),
    "a list": (lambda f: [f], [HERE, "no JSON object"]),
    "a number": (lambda f: 5, [HERE, "no JSON object"]),
    "no model": (lambda f: f.pop("model") and None, [HERE, "model"]),
    "a model that is text": (put(model="BPE"), [HERE, "model"]),
    "a pre_tokenizer that is text": (put(pre_tokenizer="ByteLevel"), [HERE, "pre_tokenizer"]),
    "a post_processor that is a list": (put(post_processor=["ByteLevel"]), [HERE, "post_processor"]),
    "a vocab that is a list": (put("model", vocab=["a"]), [HERE, "vocab"]),
    "merges that are no list": (put("model", merges={"a": "b"}), [HERE, "merges"]),
    "merges that are missing": (lambda f: f["model"].pop("merges") and None, [HERE, "merges"]),
    "a merge of three": (put("model", merges=[["t", "h"], ["t", "h", "e"]]), [HERE, "merge 2", "t h e"]),
    "a merge of three in text": (put("model", merges=["t h", "t h e"]), [HERE, "merge 2", "t h e"]),
    "a merge of one": (put("model", merges=["th"]), [HERE, "merge 1"]),
    "a merge that is a number": (put("model", merges=[7]), [HERE, "merge 1", "7"]),
    "a merge of lists": (put("model", merges=[[["t"], ["h"]]]), [HERE, "merge 1"]),
    "a merge in no letters of bytes": (put("model", merges=["한 국"]), [HERE, "merge 1"]),
    "a merge whose result has no id": (put("model", merges=["q z"]), [HERE, "b'qz'"]),
    "a merge that stands twice": (lambda f: f["model"]["merges"].append(f["model"]["merges"][0]), [HERE, "two merges"]),
    "an id twice": (put("model", "vocab", a=900, b=900), [HERE, "'a'", "'b'", "900"]),
    "an id of an added token twice": (
        lambda f: f["added_tokens"].append({"id": 66, "content": "[PAD]"}),
        [HERE, "[PAD]", "66"],
    ),
    "an id that is text": (put("model", "vocab", a="66"), [HERE, "'a'", "'66'"]),
    "a negative id": (put("model", "vocab", a=-1), [HERE, "'a'", "-1"]),
    "a token in no letters of bytes": (put("model", "vocab", 한=999), [HERE, "한"]),
    "a byte without id": (lambda f: f["model"]["vocab"].pop("Ġ") and None, [HERE, "b' '"]),
    "added_tokens that are a number": (put(added_tokens=5), [HERE, "added_tokens"]),
    "an added token that is text": (put(added_tokens=["<|endoftext|>"]), [HERE, "added_tokens"]),
    "an added token without id": (put(added_tokens=[{"content": "<|endoftext|>"}]), [HERE, "added_tokens"]),
    "an added token that is a number": (
        lambda f: f["added_tokens"].append({"content": 7, "id": 900}),
        [HERE, "added_tokens"],
    ),
    "half a character in an added token": (
        lambda f: f["added_tokens"].append({"content": "\ud800", "id": 900}),
        [HERE, "added_tokens"],
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """What is in a good tokenizer.json."""
    folder = tmp_path_factory.mktemp("whole")
    by_transformers(folder)
    return json.loads((folder / "tokenizer.json").read_text("utf-8"))


def refusal(folder: Path, content: str | bytes) -> str:
    """The one line with which a folder with this tokenizer.json is refused."""
    (folder / "tokenizer.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        Tokenizer.load(folder)
    message = str(caught.value)
    assert message.startswith(str(folder)) and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("what", OTHER_STEPS)
def test_a_step_that_gpt2_does_not_take_is_refused_by_name(what, whole, tmp_path):
    edit, named = OTHER_STEPS[what]
    found = deepcopy(whole)
    edit(found)
    message = refusal(tmp_path, json.dumps(found))
    assert all(name in message for name in (HERE, *named)), message


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_tokenizer_json_is_refused_in_one_line(what, whole, tmp_path):
    edit, named = MALFORMED[what]
    found = deepcopy(whole)
    message = refusal(tmp_path, json.dumps(edit(found) or found))
    assert all(name in message for name in named), message


@pytest.mark.parametrize("content", ["", "{", '{"model": ', b'{"model": "\xff"}', "\ufeff{}"])
def test_a_file_that_is_no_json_is_refused_in_one_line(content, tmp_path):
    assert HERE in refusal(tmp_path, content)


def test_a_file_cut_off_anywhere_is_refused_in_one_line(whole, tmp_path):
    content = json.dumps(whole)

    @given(st.integers(0, len(content) - 1))
    def cut_to(length):
        assert HERE in refusal(tmp_path, content[:length])

    cut_to()


def test_a_folder_without_a_vocabulary_says_what_a_vocabulary_is(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.json.* merges\.txt, or tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_special_tokens_besides_end_of_text_are_said_to_be_plain_text_here(tmp_path):
    ours = train_bpe(CORPUS, 400)
    ours.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tokenizer.load(tmp_path)
    written = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(written | {"<|im_start|>": len(written)}))
    with pytest.warns(Notice, match=r"special tokens \(<\|im_start\|>\) are read as plain text"):
        loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("<|im_start|>") == ours.encode("<|im_start|>")
