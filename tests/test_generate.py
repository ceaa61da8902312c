"""gpt/generate.py against reading everything anew for each token, each prompt alone, transformers, and the softmax."""

import copy
import io
import re
import subprocess
import warnings
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from gpt.command import UserError
from gpt.generate import Flags, generate, main, stream
from gpt.model import GPT, GPTConfig
from gpt.sampling import GREEDY, Sampling
from gpt.streaming import stops_at
from gpt.weights import load_gpt, save_gpt
from tests.processes import ENVIRONMENT, ROOT, call, command

V = 61
SHAPE = dict(vocab_size=V, n_positions=32, n_embd=24, n_layer=2, n_head=3)
PROMPTS = [[5, 9, 33], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [60, 0, 60, 0], [9, 9, 9, 9, 9, 9, 9]]
HOT = Sampling(temperature=5.0)


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
    return randomized(GPT(GPTConfig(**SHAPE)))


@pytest.fixture(scope="module")
def exact(model) -> GPT:
    """The same in float64: what is drawn by chance cannot turn on the last bit of a product, and it has no twin."""
    return copy.deepcopy(model).double()


@torch.no_grad()
def recomputed(model: GPT, prompt: list[int], max_new: int, stop_ids=()) -> list[int]:
    """Greedy, one prompt, the whole text read again for each token."""
    answer = []
    while len(answer) < max_new and not (answer and answer[-1] in stop_ids):
        answer.append(int(model(torch.tensor([[*prompt, *answer]]))[0, -1].argmax()))
    return answer


def common_token(answers: list[list[int]]) -> int:
    """A token that some answers meet on the way, at different places, and others never: to serve as end-of-text."""
    places = {t: [answer.index(t) for answer in answers if t in answer] for t in range(V)}
    found = [t for t, at in places.items() if 2 <= len(at) < len(answers) and len(set(at)) > 1]
    assert found, "the toy model should meet such a token; another seed will"
    return found[0]


@contextmanager
def passes(model: GPT, module: torch.nn.Module | None = None):
    """The (rows, columns) of every pass through the model, or the shape of what comes to `module` without its channels."""
    seen = []

    def note(module, inputs, output):
        assert not torch.is_grad_enabled()
        seen.append(tuple(output.shape[:-1]))

    hook = (module or model.transformer["ln_f"]).register_forward_hook(note)
    yield seen
    hook.remove()


def reads_and_steps(seen: list[tuple[int, int]], rows: int) -> tuple[list, list]:
    """The passes in which every row's prompt is read once, and those for the tokens after the first."""
    reads = next(n for n in range(len(seen) + 1) if sum(together for together, _ in seen[:n]) >= rows)
    return seen[:reads], seen[reads:]


def reciter(ids: list[int], vocabulary: int) -> GPT:
    """A model that knows one text by heart: what it says at a place is what stands next in `ids`."""
    model = GPT(GPTConfig(vocabulary, len(ids), n_embd=len(ids), n_layer=1, n_head=1, tie_word_embeddings=False))
    with torch.no_grad():
        for parameter in model.transformer["h"].parameters():
            parameter.zero_()
        model.transformer["wte"].weight.zero_()
        model.transformer["wpe"].weight.copy_(torch.eye(len(ids)))
        model.lm_head.weight.zero_()
        model.lm_head.weight[ids[1:], range(len(ids) - 1)] = 1.0
    return model.eval()


# greedy


@pytest.mark.parametrize("double", [False, True])
def test_greedy_with_the_cache_equals_reading_everything_anew_for_prompts_of_all_lengths(model, exact, double):
    model = exact if double else model
    answers = generate(model, PROMPTS, 20)
    assert answers == [recomputed(model, prompt, 20) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in answers}) == len(PROMPTS)  # the toy is not the same everywhere


@settings(max_examples=40)
@given(
    prompts=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=12), min_size=1, max_size=5),
    max_new=st.integers(0, 8),
    stop_ids=st.sets(st.integers(0, V - 1), max_size=9),
)
def test_every_prompt_of_a_batch_gets_the_answer_it_gets_alone(model, prompts, max_new, stop_ids):
    alone = [recomputed(model, prompt, max_new, stop_ids) for prompt in prompts]
    assert generate(model, prompts, max_new, stop_ids) == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_memory_held_before_makes_no_difference(model, dtype):
    model = copy.deepcopy(model).to(dtype)
    alone = [generate(model, [prompt], 12)[0] for prompt in PROMPTS]  # no padding, nothing to look past
    torch.use_deterministic_algorithms(True)  # torch then fills every torch.empty with nan
    try:
        found = generate(model, PROMPTS, 12)
    finally:
        torch.use_deterministic_algorithms(False)
    if dtype != torch.bfloat16:
        assert found == alone
    assert [len(set(answer)) > 2 for answer in found] == [True] * 5  # nan would be one token for ever


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers_id_for_id_in_a_ragged_batch(tmp_path, penalty):
    peer = randomized(GPT2LMHeadModel(GPT2Config(**SHAPE, bos_token_id=0, eos_token_id=0)))
    peer.save_pretrained(tmp_path)
    model, sampling = load_gpt(tmp_path), Sampling(repetition_penalty=penalty)
    ends = [common_token(generate(model, PROMPTS, 20, sampling=sampling)), 58]
    width = max(map(len, PROMPTS))
    # padded on the left by the prompt's own first token, since transformers makes padding less likely as well
    padded = torch.tensor([[p[0]] * (width - len(p)) + p for p in PROMPTS])
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    theirs = peer.generate(
        padded,
        attention_mask=attention,
        do_sample=False,
        max_new_tokens=20,
        repetition_penalty=penalty,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )[:, width:].tolist()
    answers = generate(model, PROMPTS, 20, ends, sampling)
    assert [said[: len(answer)] for said, answer in zip(theirs, answers)] == answers
    assert all(answer[-1] in ends or len(answer) == 20 for answer in answers)
    assert len({len(answer) for answer in answers}) > 2
    assert (answers != generate(model, PROMPTS, 20, ends)) == (penalty != 1)


def test_a_row_ends_with_the_first_of_several_stop_ids_and_the_others_go_on_unchanged(model):
    whole = generate(model, PROMPTS, 20)
    ends = {common_token(whole), whole[1][2]}
    expected = [answer[: min([i for i, t in enumerate(answer) if t in ends], default=20) + 1] for answer in whole]
    assert len({len(answer) for answer in expected}) > 2
    for collection in (ends, list(ends), tuple(ends), dict.fromkeys(ends)):
        assert generate(model, PROMPTS, 20, collection) == expected


def test_prompts_may_be_any_sequences(model):
    sequences, sampling = [range(3, 9), (5, 6), [7]], Sampling(repetition_penalty=1.5)
    expected = generate(model, list(map(list, sequences)), 9, sampling=sampling)
    assert generate(model, sequences, 9, sampling=sampling) == expected


def test_in_bfloat16_every_token_is_a_likely_one_to_float64(model, exact):
    answers = generate(copy.deepcopy(model).bfloat16(), PROMPTS, 20)
    assert [len(answer) for answer in answers] == [20] * 5
    for prompt, answer in zip(PROMPTS, answers):
        with torch.no_grad():
            logits = exact(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        behind = logits.amax(-1) - logits[range(20), answer]
        assert float(behind.max()) < 0.1 * float(logits.std(-1).mean())  # bf16 keeps 8 bits


# which rows and columns are computed


def test_the_prompt_is_read_once_then_one_column_and_the_head_serves_only_the_token_that_comes_next(exact):
    end = common_token(generate(exact, PROMPTS, 20))
    with passes(exact) as seen, passes(exact, exact.lm_head) as head:
        lengths = [len(answer) for answer in generate(exact, PROMPTS, 20, [end])]
    reads, steps = reads_and_steps(seen, 5)
    assert sum(rows for rows, _ in reads) == 5 and max(columns for _, columns in reads) == 11
    assert steps == [(sum(length > n for length in lengths), 1) for n in range(1, 20)]
    assert head == [(rows,) for rows, _ in [(5, 1), *steps]]


@given(lengths=st.lists(st.integers(1, 12), min_size=5, max_size=5))
def test_whichever_rows_finish_leave_the_batch_and_the_others_go_on_unchanged(model, lengths):
    whole = generate(model, PROMPTS, 12)
    ends = [answer[:length] for answer, length in zip(whole, lengths)]
    expected = [next(answer[:n] for n in range(1, 13) if answer[:n] in ends) for answer in whole]
    with passes(model) as seen:
        assert generate(model, PROMPTS, 12, stop=lambda ids: ids in ends) == expected
    going = [sum(len(answer) > n for answer in expected) for n in range(1, 12)]
    assert reads_and_steps(seen, 5)[1] == [(rows, 1) for rows in going if rows]


def test_generation_stops_when_every_row_has_ended(model):
    first = recomputed(model, PROMPTS[0], 1)[0]
    with passes(model) as seen:
        assert generate(model, [PROMPTS[0]] * 3, 20, [first]) == [[first]] * 3
    assert seen == [(1, 3)]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_a_prompt_that_stands_several_times_is_read_once_and_each_gets_its_own_answer(model, numbers):
    prompts, seeds = [PROMPTS[i] for i in numbers], range(70, 70 + len(numbers))
    with passes(model) as seen:
        answers = generate(model, prompts, 8, [], HOT, seeds)
    assert answers == [generate(model, [p], 8, [], HOT, [seed])[0] for p, seed in zip(prompts, seeds)]
    reads, steps = reads_and_steps(seen, len(set(numbers)))
    assert sum(rows for rows, _ in reads) == len(set(numbers)) and steps == [(len(numbers), 1)] * 7


def test_many_prompts_are_read_in_groups_of_like_length_and_each_gets_its_answer(model):
    prompts = [[(7 * i + j) % V for j in range(1 + (5 * i) % 23)] for i in range(90)]
    assert sum(map(len, prompts)) > 2 * 512
    with passes(model) as seen:
        answers = generate(model, prompts, 5)
    assert answers == [recomputed(model, prompt, 5) for prompt in prompts]
    reads, steps = reads_and_steps(seen, 90)
    assert steps == [(90, 1)] * 4 and sum(rows for rows, _ in reads) == 90
    assert 2 < len(reads) < 20 and all(rows * columns <= 512 for rows, columns in reads)
    assert sum(rows * columns for rows, columns in reads) < 1.4 * sum(map(len, prompts))  # the rest is padding


def test_a_long_prompt_does_not_pad_the_short_ones(model):
    with passes(model) as seen:
        generate(model, [*[[7]] * 9, [5] * 25], 1)
    assert sum(rows * columns for rows, columns in seen) < 1.5 * (9 + 25)


def test_a_prompt_longer_than_a_pass_is_read_in_one_beside_short_ones():
    model = randomized(GPT(GPTConfig(**SHAPE | {"n_positions": 640})))
    prompts = [[i % V for i in range(600)], [4, 5], [(i * i) % V for i in range(530)], [8]]
    with passes(model) as seen:
        answers = generate(model, prompts, 6)
    assert answers == [recomputed(model, prompt, 6) for prompt in prompts]
    assert seen == [(2, 2), (1, 530), (1, 600)] + [(4, 1)] * 5


# chance


def test_two_sampled_tokens_follow_the_softmax_of_the_logits_over_the_temperature():
    model = randomized(GPT(GPTConfig(vocab_size=5, n_positions=8, n_embd=12, n_layer=1, n_head=2)))
    prompt, temperature, rows = [1, 4, 2], 3.0, 6000
    pairs = generate(model, [prompt] * rows, 2, sampling=Sampling(temperature))
    with torch.no_grad():  # all that can follow, read anew: p(a) p(b | a)
        texts = torch.tensor([[*prompt, a] for a in range(5)])
        probabilities = (model(texts) / temperature).softmax(-1)
    expected = rows * (probabilities[0, 2][:, None] * probabilities[:, 3]).flatten()
    counts = torch.tensor([a * 5 + b for a, b in pairs]).bincount(minlength=25)
    assert expected.min() > 5  # below that, chi square is no chi square
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 51.2  # 24 degrees of freedom: one honest sampler in a thousand is above


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.tuples(st.lists(st.integers(0, V - 1), min_size=1, max_size=12), st.integers(0, 2**63 - 1)),
        min_size=1,
        max_size=5,
    ),
    stop_ids=st.sets(st.integers(0, V - 1), max_size=9),
    sampling=st.sampled_from([HOT, Sampling(9.0, 30, 0.9, 0.01, 1.2)]),
    data=st.data(),
)
def test_a_prompt_with_its_seed_gets_the_same_answer_alone_and_anywhere_in_any_batch(
    exact, rows, stop_ids, sampling, data
):
    def answers(rows):
        return generate(exact, [p for p, _ in rows], 8, stop_ids, sampling, [seed for _, seed in rows])

    alone = [answers([row])[0] for row in rows]
    assert answers(rows) == alone
    order = data.draw(st.permutations(range(len(rows))))
    assert answers([rows[i] for i in order]) == [alone[i] for i in order]


def test_also_in_float32_an_answer_is_the_same_alone_and_in_a_batch(model):
    alone = [generate(model, [p], 15, sampling=HOT, seeds=[seed])[0] for seed, p in enumerate(PROMPTS)]
    assert generate(model, PROMPTS, 15, sampling=HOT, seeds=range(5)) == alone


def test_the_same_seed_gives_the_same_answer_and_each_other_one_another(model):
    answers = generate(model, [[7]] * 40, 15, sampling=HOT, seeds=[*range(20), *range(20)])
    assert answers[:20] == answers[20:]
    assert len({tuple(answer) for answer in answers}) == 20


def test_seeds_are_0_1_2_and_so_on_where_none_are_given(model):
    assert generate(model, PROMPTS, 15, sampling=HOT) == generate(model, PROMPTS, 15, sampling=HOT, seeds=range(5))


def test_a_longer_answer_begins_as_the_shorter_one(model):
    long = generate(model, PROMPTS, 20, sampling=HOT)
    for max_new in (1, 7, 16, 17):
        assert generate(model, PROMPTS, max_new, sampling=HOT) == [answer[:max_new] for answer in long]


def test_chance_neither_needs_nor_moves_the_state_of_torch(model):
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        answers.append(generate(model, PROMPTS, 9, sampling=HOT))
        assert torch.equal(torch.get_rng_state(), before)
    assert answers[0] == answers[1]


def test_sampling_at_a_temperature_near_zero_is_greedy(model):
    assert generate(model, PROMPTS, 15, sampling=Sampling(1e-4)) == generate(model, PROMPTS, 15)


# strings that end an answer


TEXT = "Is a Café ☕ au lait naïve 😀😀? ## one ### two"


@pytest.mark.parametrize(
    "stop", [["é"], ["☕"], ["😀"], ["###", "##"], ["é ☕ a"], ["t n", "###"], ["absent"], []], ids=str
)
@pytest.mark.parametrize("place", [6, 20, -5, None])
def test_an_answer_ends_with_the_first_id_that_completes_a_stop_string_or_is_a_stop_id(tokenizer, stop, place):
    ids = tokenizer.encode(TEXT)
    assert not any(string in tokenizer.decode([i]) for string in stop for i in ids)  # each lies across tokens
    stop_ids = [] if place is None else [ids[place]]

    def expected(start: int) -> list[int]:
        so_far = (ids[start:n] for n in range(start + 1, len(ids)))
        return next(
            (a for a in so_far if a[-1] in stop_ids or any(s in tokenizer.decode(a) for s in stop)), ids[start:]
        )

    model, starts = reciter(ids + [0] * len(ids), tokenizer.vocab_size), [1, 9, 4]
    prompts = [ids[:start] for start in starts]
    answers = generate(model, prompts, len(ids) - 1, stop_ids, stop=stops_at(tokenizer, stop))
    assert [answer[: len(ids) - start] for answer, start in zip(answers, starts)] == list(map(expected, starts))


# the answer as it comes


def test_the_stream_gives_each_column_as_soon_as_it_is_computed(model):
    end = common_token(generate(model, PROMPTS, 20))
    expected = generate(model, PROMPTS, 20, [end])
    answers = [[] for _ in PROMPTS]
    with passes(model) as seen:
        for column, new in enumerate(stream(model, PROMPTS, 20, [end])):
            assert len(reads_and_steps(seen, 5)[1]) == column  # no pass beyond what was asked for
            assert sorted(i for i, _ in new) == [i for i, answer in enumerate(expected) if len(answer) > column]
            for i, token in new:
                answers[i].append(token)
    assert answers == expected


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("columns", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stream_may_be_left_in_the_middle_and_the_model_is_as_it_was(model, columns, training, dtype):
    model = copy.deepcopy(model).to(dtype).train(training)
    model.transformer["wpe"].weight.requires_grad_(False)
    model(torch.tensor(PROMPTS[:1])).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: (p, p.grad, p.requires_grad) for name, p in model.named_parameters()}
    modules = list(model.named_modules())
    answer = stream(model, PROMPTS, 20)
    for _ in range(columns):
        next(answer)
        assert torch.is_grad_enabled()  # between two columns the caller may train
    answer.close()
    assert torch.is_grad_enabled() and all(m.training == training for m in model.modules())
    assert list(model.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, p in model.named_parameters():
        assert all(now is before for now, before in zip((p, p.grad, p.requires_grad), grads[name]))
    model.zero_grad()
    model(torch.tensor(PROMPTS[:1])).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.1 * p)
    assert generate(model, PROMPTS, 9) == [recomputed(model, prompt, 9) for prompt in PROMPTS]  # of the new weights


# limits


def test_prompts_and_new_tokens_may_fill_the_context_without_a_warning(model):
    prompt = list(range(30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(model, [prompt, [1]], 2) == [recomputed(model, prompt, 2), recomputed(model, [1], 2)]


@pytest.mark.parametrize("max_new, lengths, long", [(3, [30, 1], 1), (31, [1, 2, 40], 2), (1, [32, 31, 33], 2)])
def test_a_prompt_too_long_for_the_context_loses_its_beginning_with_a_warning(model, max_new, lengths, long):
    prompts = [[(i + length) % V for i in range(length)] for length in lengths]
    room = 32 - max_new
    said = f"{long} of {len(lengths)} prompts .* {room} tokens .* {max_new} new"
    with pytest.warns(UserWarning, match=said) as caught:
        answers = generate(model, prompts, max_new)
    assert len(caught) == 1
    assert answers == [recomputed(model, prompt[-room:], max_new) for prompt in prompts]
    assert [len(prompt) for prompt in prompts] == lengths  # the caller's own are whole


@pytest.mark.parametrize(
    "prompts, max_new, said", [([[1], []], 3, "prompt 1 .*no tokens"), ([[1]], 32, "32.*32"), ([[1]], 99, "99.*32")]
)
def test_an_empty_prompt_and_an_answer_that_leaves_no_room_are_refused(model, prompts, max_new, said):
    with pytest.raises(ValueError, match=said):
        generate(model, prompts, max_new)


def test_settings_out_of_range_are_refused_before_the_model_is_asked(model):
    with passes(model) as seen, pytest.raises(UserError, match="--top-p"):
        generate(model, PROMPTS, 3, sampling=Sampling(1.0, top_p=2.0))
    assert not seen


def test_no_prompts_have_no_answers_and_no_new_tokens_are_empty_ones(model):
    assert generate(model, [], 3) == []
    assert generate(model, [[1], [2, 3]], 0) == [[], []]


# the command


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A model folder with a model that says anything, and another that says TEXT."""
    place = tmp_path_factory.mktemp("models")
    ids = tokenizer.encode(TEXT)
    save_gpt(place / "any", randomized(GPT(GPTConfig(tokenizer.vocab_size, 64, 24, 2, 3))), tokenizer)
    save_gpt(place / "text", reciter([*ids, *[tokenizer.end_of_text] * 20], tokenizer.vocab_size), tokenizer)
    return place


def said(*words, text: str = "", code: int = 0) -> tuple[str, str]:
    """What the command prints to standard output and to standard error; `text` is its standard input."""
    words = command(ROOT / "gpt" / "generate.py", *words)
    done = subprocess.run(words, env=ENVIRONMENT, input=text.encode(), capture_output=True, timeout=120)
    out, error = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, f"exit code {done.returncode}\n{out}\n{error}"
    return out, error


@pytest.mark.parametrize(
    "flags, sampling, seed",
    [(["--temperature", 0], GREEDY, 0), (["--top-k", 50, "--seed", 7], Sampling(0.7, 50, 0.95), 7)],
)
def test_the_command_prints_the_text_that_generate_gives(folder, tokenizer, flags, sampling, seed):
    prompt, model = "one or two", load_gpt(folder / "any")
    answer, other = (
        generate(model, [tokenizer.encode(prompt)], 20, [tokenizer.end_of_text], sampling, [s])[0] for s in (seed, 99)
    )
    out = said(folder / "any", "--prompt", prompt, "--max-new", 20, *flags)
    assert out == (tokenizer.decode(i for i in answer if i != tokenizer.end_of_text) + "\n", "")
    assert (answer != other) == (sampling != GREEDY)


def test_the_command_continues_standard_input_up_to_the_first_stop_string(folder):
    words = ["--max-new", 50, "--temperature", 0, "--stop", "two", "###", "☕ b"]
    printed = TEXT[1:].split("###")[0]
    assert said(folder / "text", *words, text=TEXT[0]) == (printed + "\n", "")


@pytest.mark.parametrize(
    "words, named",
    [
        (["any"], "prompt is empty"),  # and so is standard input
        (["any", "--prompt", "one", "--max-new", 64], "--max-new is 64.* 64"),
        (["any", "--prompt", "one", "--top-p", 2], "--top-p is 2"),
        (["any", "--prompt", "one", "--temperature", -1], "--temperature is -1"),
        (["none", "--prompt", "one"], "none does not exist"),
        (["random:tiny", "--prompt", "one"], "random weights have nothing to say here"),
    ],
    ids=str,
)
def test_the_command_says_in_one_line_what_is_wrong_and_leaves_with_2(folder, words, named):
    model = words[0] if words[0].startswith("random:") else folder / words[0]
    out, error = said(model, *words[1:], code=2)
    assert out == "" and error.count("\n") == 1 and error.startswith("error: ")
    assert re.search(named, error), error


@pytest.mark.parametrize("held", [b"caf\xe9 \xff\x00", None])
def test_standard_input_that_is_no_text_or_closed_is_no_bug_to_its_user(folder, monkeypatch, capsys, held):
    monkeypatch.setattr("sys.stdin", held and io.TextIOWrapper(io.BytesIO(held), "utf-8"))
    try:
        main(Flags(str(folder / "any"), max_new=3))
    except UserError as error:  # one line, and code 2
        assert "standard input" in str(error)
    else:
        assert held and capsys.readouterr().out


def test_every_prompt_that_is_cut_is_said_also_where_the_words_are_the_same(tmp_path):
    script = tmp_path / "twice.py"
    script.write_text(
        "from gpt.command import run\nfrom gpt.generate import generate\nfrom gpt.weights import load_gpt\n"
        "from dataclasses import dataclass\n@dataclass\nclass Flags:\n    'Twice.'\n"
        "def main(flags):\n    model = load_gpt('data/tiny')\n    for _ in range(2): generate(model, [[1] * 300], 2)\n"
        "run(main, Flags)\n"
    )
    said = call(script, PYTHONPATH=str(ROOT), cwd=ROOT).stderr.splitlines()
    assert len(said) == 2 and said[0] == said[1] and said[0].startswith("warning: 1 of 1 prompts cut")


def test_a_letter_that_the_terminal_does_not_know_is_no_traceback():
    done = call(
        ROOT / "gpt/generate.py", ROOT / "data/tiny", "--prompt", "é ü", "--max-new", 40, PYTHONIOENCODING="ascii"
    )
    assert done.stdout.endswith("\n")
