"""gpt/streaming.py against decoding the whole and searching in it, for any ids, texts and stop strings."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.streaming import stops_at, text_pieces

# U+FFFD stands for bytes that are no text; a stop string that holds it is no string that anyone can mean.
any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40)
few_letters = st.lists(st.sampled_from(["a", "#", "é", "😀", " ", "t", "the", " the", "in"]), max_size=12).map("".join)
texts = any_text | few_letters
stop_strings = st.text(alphabet="a#é😀 then", min_size=1, max_size=4) | st.sampled_from(
    ["the", "h", " th", "##", "###", "é#"]
)
any_ids = st.lists(st.integers(0, 340), max_size=30)  # some are no token's, 329 is end-of-text, many are lone bytes


def given_by(ids, tokenizer, stop=()) -> tuple[str, list[str]]:
    """All the text, and what was given after 0, 1, 2, ... ids when the next one was asked for."""
    pieces, so_far = [], []

    def source():
        for i in ids:
            so_far.append("".join(pieces))
            yield i
        so_far.append("".join(pieces))

    for piece in text_pieces(source(), tokenizer, stop):
        pieces.append(piece)
    return "".join(pieces), so_far


def spelled(text: str, tokenizer, cuts: set[int]) -> list[int]:
    """The ids of `text` where a token ends at each of the bytes `cuts`, so also within characters and words."""
    whole, places = text.encode(), sorted({0, len(text.encode()), *(cut for cut in cuts if cut < len(text.encode()))})
    by_bytes = {token: i for i, token in sorted((i, token) for token, i in tokenizer.ids.items())}
    ids = []
    for start, end in zip(places, places[1:]):
        while start < end:  # the longest token that fits
            length = next(n for n in range(end - start, 0, -1) if whole[start : start + n] in by_bytes)
            ids.append(by_bytes[whole[start : start + length]])
            start += length
    return ids


def test_the_picture_in_its_docstring_is_true(tokenizer):
    ids = [i for part in (" caf", "é", " ##", "#", " Next") for i in tokenizer.encode(part)]
    text, so_far = given_by(ids, tokenizer, ["###"])
    assert text == " café " and set(so_far) <= {"", " ", " c", " ca", " caf", " café", " café "}


@settings(max_examples=200)
@given(ids=any_ids)
def test_the_pieces_joined_are_the_whole_decoded_for_any_ids(tokenizer, ids):
    assert "".join(text_pieces(ids, tokenizer)) == tokenizer.decode(ids)


@settings(max_examples=200)
@given(
    data=st.binary(max_size=24)
    | st.lists(st.sampled_from([*"é😀a", "é"]), max_size=9).map(lambda s: "".join(s).encode())
)
def test_so_they_are_where_every_byte_is_a_token_and_may_be_no_text(tokenizer, data):
    ids = [tokenizer.ids[bytes([byte])] for byte in data]
    text, so_far = given_by(ids, tokenizer)
    assert text == data.decode("utf-8", "replace")
    assert all(text.startswith(given) for given in so_far)  # what is said stays said


@given(text=texts, cuts=st.sets(st.integers(0, 60)))
def test_every_piece_of_valid_text_is_given_as_soon_as_its_characters_are_whole(tokenizer, text, cuts):
    ids = spelled(text, tokenizer, cuts)
    whole, so_far = given_by(ids, tokenizer)
    assert whole == text
    assert so_far == [tokenizer.decode_bytes(ids[:n]).decode("utf-8", "ignore") for n in range(len(ids) + 1)]


@settings(max_examples=200)
@given(ids=any_ids | texts, cuts=st.sets(st.integers(0, 60)), stop=stop_strings, data=st.data())
def test_the_text_is_cut_at_the_first_place_of_a_stop_string(tokenizer, ids, cuts, stop, data):
    ids = spelled(ids, tokenizer, cuts) if isinstance(ids, str) else ids
    text = tokenizer.decode(ids)
    if text:  # or a string that surely stands there
        start = data.draw(st.integers(0, len(text) - 1))
        stop = data.draw(st.just(stop) | st.integers(1, 4).map(lambda n: text[start : start + n]))
    if "\ufffd" not in stop:
        assert "".join(text_pieces(ids, tokenizer, [stop])) == text.split(stop)[0]


@settings(max_examples=300)
@given(text=few_letters, cuts=st.sets(st.integers(0, 60)), stop=st.lists(stop_strings, max_size=4))
def test_of_several_stop_strings_the_one_that_ends_first_counts_wherever_tokens_end(tokenizer, text, cuts, stop):
    # letter by letter: the text so far holds one, and what stands before it is the answer
    so_far = (text[:n] for n in range(len(text) + 1))
    first = next((s for s in so_far if any(string in s for string in stop)), "")
    expected = text[: min((first.find(string) for string in stop if string in first), default=len(text))]
    assert "".join(text_pieces(spelled(text, tokenizer, cuts), tokenizer, stop)) == expected


@settings(max_examples=300)
@given(text=few_letters, cuts=st.sets(st.integers(0, 60)), stop=st.lists(stop_strings, min_size=1, max_size=4))
def test_where_none_lies_within_another_the_text_is_cut_at_the_leftmost(tokenizer, text, cuts, stop):
    stop = [s for s in stop if not any(s in other[1:] for other in stop)]  # it may be another's beginning
    expected = re.split("|".join(map(re.escape, stop)), text)[0]
    assert "".join(text_pieces(spelled(text, tokenizer, cuts), tokenizer, stop)) == expected


@settings(max_examples=200)
@given(text=few_letters, cuts=st.sets(st.integers(0, 60)), stop=st.lists(stop_strings, max_size=3))
def test_only_what_may_become_a_stop_string_is_held_back_and_no_id_after_it_is_asked_for(tokenizer, text, cuts, stop):
    ids = spelled(text, tokenizer, cuts)
    beginnings = {string[:n] for string in stop for n in range(len(string))}
    expected = []
    for n in range(len(ids) + 1):
        read = tokenizer.decode_bytes(ids[:n]).decode("utf-8", "ignore")
        if any(string in read for string in stop):
            break
        held = max(length for length in range(len(read) + 1) if read[len(read) - length :] in beginnings | {""})
        expected.append(read[: len(read) - held])
    assert given_by(ids, tokenizer, stop)[1] == expected


@settings(max_examples=200)
@given(ids=any_ids | texts, cuts=st.sets(st.integers(0, 60)), stop=st.lists(stop_strings, max_size=3), data=st.data())
def test_stops_at_agrees_with_a_search_in_the_text_after_each_id(tokenizer, ids, cuts, stop, data):
    ids = spelled(ids, tokenizer, cuts) if isinstance(ids, str) else ids
    text = tokenizer.decode(ids)
    stop += [text[at : at + 3] for at in data.draw(st.lists(st.integers(0, 30), max_size=2)) if text[at : at + 3]]
    stop = [string for string in stop if "\ufffd" not in string]
    stops = stops_at(tokenizer, stop)
    for n in range(len(ids) + 1):
        found = any(string in tokenizer.decode(ids[:n]) for string in stop)
        assert stops(ids[:n]) == found
        if found:  # it is asked after every id, and not again
            break


@pytest.mark.parametrize("ids", [[], [104], list(range(256))])
def test_without_stop_strings_nothing_stops(tokenizer, ids):
    assert not stops_at(tokenizer, [])(ids)
