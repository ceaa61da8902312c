"""gpt/generate.py against reading everything anew for each token, each prompt alone, transformers, and the softmax."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from gpt.generate import generate
from gpt.model import GPT, GPTConfig
from gpt.weights import load_gpt

V = 61
PROMPTS = [[5, 9, 33], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [60, 0, 60, 0], [9, 9, 9, 9, 9, 9, 9]]


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Matrices so large that the next token depends on all before it; fresh ones say nearly the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> GPT:
    return randomized(GPT(GPTConfig(vocab_size=V, n_positions=32, n_embd=24, n_layer=2, n_head=3)))


@torch.no_grad()
def recomputed(model: GPT, prompt: list[int], max_new: int, end_of_text: int | None = None) -> list[int]:
    """Greedy, one prompt, the whole text read again for each token."""
    answer = []
    while len(answer) < max_new and (not answer or answer[-1] != end_of_text):
        answer.append(int(model(torch.tensor([prompt + answer]))[0, -1].argmax()))
    return answer


def common_token(answers: list[list[int]]) -> int:
    """A token that some answers meet on the way, at different places, and others never: to serve as end-of-text."""
    places = {t: [answer.index(t) for answer in answers if t in answer] for t in range(V)}
    found = [t for t, at in places.items() if 2 <= len(at) < len(answers) and len(set(at)) > 1]
    assert found, "the toy model should meet such a token; another seed will"
    return found[0]


def test_greedy_with_the_cache_equals_reading_everything_anew_for_prompts_of_all_lengths(model):
    answers = generate(model, PROMPTS, 20)
    assert answers == [recomputed(model, prompt, 20) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in answers}) == len(PROMPTS)  # the toy is not the same everywhere


@settings(deadline=None, max_examples=40)
@given(
    prompts=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=12), min_size=1, max_size=5),
    max_new=st.integers(0, 8),
    end_of_text=st.none() | st.integers(0, V - 1),
)
def test_every_prompt_of_a_batch_gets_the_answer_it_gets_alone(model, prompts, max_new, end_of_text):
    alone = [recomputed(model, prompt, max_new, end_of_text) for prompt in prompts]
    assert generate(model, prompts, max_new, end_of_text) == alone


def test_greedy_equals_transformers_id_for_id(tmp_path):
    shape = dict(vocab_size=V, n_positions=32, n_embd=24, n_layer=2, n_head=3)
    peer = randomized(GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)))
    peer.save_pretrained(tmp_path)
    model = load_gpt(tmp_path)
    end = common_token(generate(model, PROMPTS, 20))
    for prompt, answer in zip(PROMPTS, generate(model, PROMPTS, 20, end)):
        tokens = torch.tensor([prompt])
        theirs = peer.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=end,
            pad_token_id=end,
        )
        assert answer == theirs[0, len(prompt) :].tolist()


def test_a_row_ends_with_its_first_end_of_text_and_the_others_go_on_unchanged(model):
    whole = generate(model, PROMPTS, 20)
    end = common_token(whole)
    expected = [answer[: answer.index(end) + 1] if end in answer else answer for answer in whole]
    assert len({len(answer) for answer in expected}) > 2
    assert generate(model, PROMPTS, 20, end) == expected


def test_the_prompt_is_read_once_then_one_column_for_each_row_that_still_goes_on(model):
    end = common_token(generate(model, PROMPTS, 20))
    lengths = [len(answer) for answer in generate(model, PROMPTS, 20, end)]
    seen = []
    head = []
    hooks = [
        model.transformer["ln_f"].register_forward_hook(lambda m, inputs, out: seen.append(tuple(inputs[0].shape[:2]))),
        model.lm_head.register_forward_hook(lambda m, inputs, out: head.append(tuple(inputs[0].shape[:-1]))),
    ]
    generate(model, PROMPTS, 20, end)
    for hook in hooks:
        hook.remove()
    assert head == [(rows,) for rows, _ in seen]  # the vocabulary only for the token that comes next
    assert seen == [(5, 11)] + [(sum(length > n for length in lengths), 1) for n in range(1, 20)]


def test_generation_stops_when_every_row_has_ended(model):
    first = recomputed(model, PROMPTS[0], 1)[0]
    seen = []
    hook = model.transformer["ln_f"].register_forward_hook(lambda module, inputs, output: seen.append(1))
    assert generate(model, [PROMPTS[0]] * 3, 20, first) == [[first]] * 3
    hook.remove()
    assert len(seen) == 1


def test_two_sampled_tokens_follow_the_softmax_of_the_logits_over_the_temperature():
    model, temperature, rows = (
        randomized(GPT(GPTConfig(vocab_size=5, n_positions=8, n_embd=12, n_layer=1, n_head=2))),
        3.0,
        6000,
    )
    prompt = [1, 4, 2]
    pairs = generate(model, [prompt] * rows, 2, temperature=temperature, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # all that can follow, read anew: p(a) p(b | a)
        texts = torch.tensor([[*prompt, a] for a in range(5)])
        probabilities = (model(texts) / temperature).softmax(-1)
    expected = rows * (probabilities[0, 2][:, None] * probabilities[:, 3]).flatten()
    counts = torch.tensor([a * 5 + b for a, b in pairs]).bincount(minlength=25)
    assert expected.min() > 5  # below that, chi square is no chi square
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 51.2  # 24 degrees of freedom: one honest sampler in a thousand is above


def test_the_same_generator_state_gives_the_same_answers_and_another_one_others(model):
    def sampled(seed: int) -> list[list[int]]:
        return generate(model, PROMPTS, 15, temperature=5.0, generator=torch.Generator().manual_seed(seed))

    assert sampled(1) == sampled(1) != sampled(2)


def test_sampling_at_a_temperature_near_zero_is_greedy(model):
    assert generate(model, PROMPTS, 15, temperature=1e-4) == generate(model, PROMPTS, 15)


def test_prompts_and_new_tokens_may_fill_the_context_and_one_more_is_refused(model):
    prompt = list(range(30))
    assert generate(model, [prompt, [1]], 2) == [recomputed(model, prompt, 2), recomputed(model, [1], 2)]
    with pytest.raises(ValueError, match="30.*3.*32"):
        generate(model, [prompt, [1]], 3)


def test_an_empty_prompt_is_refused_and_no_prompts_have_no_answers(model):
    with pytest.raises(ValueError, match="no tokens"):
        generate(model, [[1], []], 3)
    assert generate(model, [], 3) == []
    assert generate(model, [[1], [2, 3]], 0) == [[], []]
