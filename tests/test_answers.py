"""gpt/answers.py: answers as text, and batches that hold every prompt once within their limits."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import answers
from gpt.answers import Answer, prompt_ids, together
from gpt.command import Notice
from gpt.model import GPTConfig


@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    max_new=st.integers(1, 200),
    each=st.integers(1, 9),
    layers=st.integers(1, 48),
)
def test_every_prompt_is_in_one_batch_with_others_of_its_length_that_fits_in_memory(lengths, max_new, each, layers):
    config = GPTConfig(vocab_size=40, n_positions=64, n_embd=1600, n_layer=layers, n_head=4)
    batches = together([[0] * n for n in lengths], max_new, config, each)
    assert sorted(sum(batches, [])) == list(range(len(lengths)))
    assert [lengths[i] for some in batches for i in some] == sorted(lengths)
    for some in batches:
        tokens = each * len(some) * (max(lengths) + max_new)
        assert len(some) == 1 or tokens <= answers.TOKENS and tokens * 8 * layers * 1600 <= answers.CACHE
    assert batches == together([[1] * n for n in lengths], max_new, config, each)  # nothing but lengths matters


def test_an_answer_is_what_stands_before_its_end_or_before_the_first_string_that_ends_it(tokenizer):
    end, ids = tokenizer.end_of_text, tokenizer.encode("one two, three")
    assert Answer.of([*ids, end], tokenizer) == Answer("one two, three", True, len(ids) + 1)
    assert Answer.of(ids, tokenizer) == Answer("one two, three", False, len(ids))
    assert Answer.of(ids, tokenizer, [", t", "three"]) == Answer("one two", True, len(ids))
    assert Answer.of(ids, tokenizer, ["four"]) == Answer("one two, three", False, len(ids))
    assert Answer.of([end], tokenizer) == Answer("", True, 1)


def test_an_empty_prompt_is_one_end_of_text_and_long_ones_lose_their_beginning_with_a_warning(tokenizer):
    ids = tokenizer.encode("a long prompt of many words")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", Notice)
        assert prompt_ids(tokenizer, ["", "a"], 3) == [[tokenizer.end_of_text], tokenizer.encode("a")]
        assert not said
    with pytest.warns(Notice, match="1 of 2 prompts cut from the left to 3 tokens"):
        assert prompt_ids(tokenizer, ["a", "a long prompt of many words"], 3) == [tokenizer.encode("a"), ids[-3:]]
