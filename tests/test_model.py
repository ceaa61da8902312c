"""gpt/model.py against transformers' GPT-2, against log_softmax and gather, and against its own rows written apart."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

from gpt.head import Targets
from gpt.model import GPT, IGNORE, SIZES, GPTConfig
from gpt.weights import load_gpt

ODD = dict(vocab_size=131, n_positions=37, n_embd=48, n_layer=2, n_head=3)  # nothing here is a power of two


def randomized(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew, biases and gains too: fresh ones are 0 and 1 and would hide a forgotten one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def toy(**changes) -> GPT:
    return randomized(GPT(GPTConfig(**ODD | changes)))


def some_tokens(rows: int, length: int, vocab_size: int = ODD["vocab_size"], seed: int = 1) -> Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def some_targets(rows: int, length: int) -> Tensor:
    """About half of them IGNORE; the first row has none to score, the last row only scored ones."""
    targets = some_tokens(rows, length, seed=2)
    targets[torch.rand(rows, length, generator=torch.Generator().manual_seed(3)) < 0.5] = IGNORE
    targets[0], targets[-1] = IGNORE, some_tokens(1, length, seed=4)[0]
    return targets


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest value: the rounding of a sum is relative to its largest term."""
    assert a.shape == b.shape
    assert float((a - b).detach().abs().max()) <= tolerance * float(b.detach().abs().max())


@pytest.mark.parametrize(
    "shape",
    [
        ODD,
        ODD | dict(vocab_size=67, n_embd=33, n_layer=1),
        ODD | dict(n_embd=40, n_layer=3, n_head=5),
        ODD | dict(n_head=1, layer_norm_epsilon=1e-2),
    ],
)
def test_logits_equal_those_of_transformers_from_the_same_folder(shape, tmp_path):
    peer = randomized(GPT2LMHeadModel(GPT2Config(**shape)))
    peer.save_pretrained(tmp_path)
    tokens = some_tokens(3, shape["n_positions"], shape["vocab_size"])
    with torch.no_grad():
        assert_close(load_gpt(tmp_path)(tokens), peer(tokens).logits)


def test_log_probabilities_equal_log_softmax_and_gather_of_the_logits_and_so_do_gradients():
    model, tokens, targets = toy(), some_tokens(4, 20), some_targets(4, 20)
    weights = torch.randn(4, 20, generator=torch.Generator().manual_seed(5))
    scored = targets != IGNORE

    fast = model(tokens, targets)
    fast_gradients = torch.autograd.grad((fast * weights).sum(), list(model.parameters()))
    plain = model(tokens).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1) * scored
    plain_gradients = torch.autograd.grad((plain * weights).sum(), list(model.parameters()))

    assert fast.dtype == torch.float32 and (fast[scored] < 0).all()
    assert torch.equal(fast[~scored], torch.zeros(int((~scored).sum())))
    assert_close(fast, plain)
    for ours, theirs in zip(fast_gradients, plain_gradients):
        assert_close(ours, theirs)


def test_a_batch_without_any_target_gives_zeros_and_zero_gradients():
    model = toy()
    logp = model(some_tokens(2, 5), torch.full((2, 5), IGNORE))
    assert torch.equal(logp, torch.zeros(2, 5))
    logp.sum().backward()  # an empty micro-batch still takes part in the backward pass of all processes
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


class Products(TorchDispatchMode):
    """Notes every matrix product, as it came out."""

    def __init__(self):
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            self.seen.append(y.detach().clone())
        return y


def test_the_head_runs_only_where_there_is_a_target():
    model, targets = toy(), some_targets(4, 20)
    with Products() as products:
        model(some_tokens(4, 20), targets)
    heads = [tuple(y.shape) for y in products.seen if ODD["vocab_size"] in y.shape]
    assert heads == [(int((targets != IGNORE).sum()), ODD["vocab_size"])]
    several = several_targets()
    with Products() as products:
        model(some_tokens(4, 20), several)
    heads = [tuple(y.shape) for y in products.seen if ODD["vocab_size"] in y.shape]
    assert heads == [(8, ODD["vocab_size"])] and len(several.tokens) > 8  # once for each place


def test_the_last_layer_does_only_keys_and_values_where_there_is_no_target():
    model, tokens, targets = toy(n_layer=3), some_tokens(4, 20), some_targets(4, 20)
    N, C = int((targets != IGNORE).sum()), ODD["n_embd"]
    with Products() as products:
        model(tokens, targets)
    shapes = [tuple(y.shape) for y in products.seen if y.dim() == 2]
    whole = [(80, 3 * C), (80, C), (80, 4 * C), (80, C)]
    assert shapes == [*whole, *whole, (80, 3 * C), (N, C), (N, 4 * C), (N, C), (N, ODD["vocab_size"])]


WEIGHTS = torch.randn(4, 20, generator=torch.Generator().manual_seed(5), dtype=torch.double)


SHAPES = pytest.mark.parametrize(
    "changes", [{}, dict(tie_word_embeddings=False), dict(n_layer=1), dict(n_layer=4, n_head=1)]
)
PRECISIONS = pytest.mark.parametrize("dtype, tolerance", [(torch.double, 1e-6), (torch.float32, 2e-5)])


def assert_same_gradients(found: GPT, expected: GPT, tolerance: float) -> None:
    """Of every parameter, and there is one of each; to `tolerance` of the largest entry of all."""
    of = dict(found.named_parameters())
    assert ("lm_head.weight" in of) == (not found.config.tie_word_embeddings)
    scale = max(float(p.grad.abs().max()) for p in expected.parameters())
    for name, parameter in expected.named_parameters():
        gradient = of[name].grad
        assert gradient.layout == torch.strided and gradient.dtype == of[name].dtype
        assert gradient.shape == parameter.shape
        assert float((gradient.double() - parameter.grad).abs().max()) <= tolerance * scale, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("form", ["tensor", "Targets"])
@PRECISIONS
@SHAPES
def test_log_probabilities_and_the_gradient_of_every_parameter_are_those_of_logits_everywhere(
    changes, dtype, tolerance, form
):
    tokens, targets = some_tokens(4, 20), some_targets(4, 20)
    plain, fast = toy(**changes).double(), toy(**changes).to(dtype)
    logits = plain(tokens)  # (B, T, V)
    expected = -cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORE).view(
        4, 20
    )
    (expected * WEIGHTS).sum().backward()
    weights = WEIGHTS.float()
    if form == "Targets":  # (S,) instead of (B, T)
        where = (targets.flatten() != IGNORE).nonzero()[:, 0]
        targets = Targets(where, torch.arange(len(where)), targets.flatten()[where])
        expected, weights = expected.flatten()[where], weights.flatten()[where]
    found = fast(tokens, targets)
    assert found.dtype == torch.float32
    (found * weights).sum().backward()
    assert_close(found.double(), expected, tolerance)
    assert_same_gradients(fast, plain, tolerance)


def several_targets() -> Targets:
    """Of some places of (4, 20) one token, of others up to five, of which some are the same; in no order."""
    generator = torch.Generator().manual_seed(6)
    places = torch.tensor([3, 4, 19, 20, 41, 42, 77, 79])
    of = torch.cat([torch.arange(8), torch.randint(5, (14,), generator=generator)])
    of = of[torch.randperm(len(of), generator=generator)]
    tokens = torch.randint(ODD["vocab_size"], of.shape, generator=generator)
    tokens[of == 2] = 7
    return Targets(places, of, tokens)


@PRECISIONS
@SHAPES
def test_of_one_place_several_tokens_may_be_asked_and_each_has_its_log_probability_and_gradient(
    changes, dtype, tolerance
):
    tokens, targets = some_tokens(4, 20), several_targets()
    plain, fast = toy(**changes).double(), toy(**changes).to(dtype)
    expected = plain(tokens).flatten(0, 1).log_softmax(-1)[targets.places[targets.of], targets.tokens]  # (S,)
    weights = WEIGHTS.flatten()[: len(expected)]
    (expected * weights).sum().backward()
    found = fast(tokens, targets)
    assert found.shape == targets.tokens.shape and found.dtype == torch.float32
    (found * weights.float()).sum().backward()
    assert_close(found.double(), expected, tolerance)
    assert_same_gradients(fast, plain, tolerance)


def test_targets_as_a_tensor_give_a_number_for_each_place_and_targets_as_a_list_one_for_each_token():
    model, tokens, targets = toy(), some_tokens(4, 20), some_targets(4, 20)
    where = (targets.flatten() != IGNORE).nonzero()[:, 0]
    as_list = Targets(where, torch.arange(len(where)), targets.flatten()[where])
    with torch.no_grad():
        by_place, by_token = model(tokens, targets), model(tokens, as_list)
    assert by_place.shape == (4, 20) and by_token.shape == where.shape
    assert torch.equal(by_place.flatten()[where], by_token) and not by_place[targets == IGNORE].any()


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_of_the_embedding_is_dense_and_is_added_to_what_it_held(tied):
    model, tokens, targets = toy(tie_word_embeddings=tied), some_tokens(4, 20), some_targets(4, 20)
    embedding = model.transformer["wte"].weight
    (once,) = torch.autograd.grad(model(tokens, targets).sum(), [embedding])
    assert once.layout == torch.strided
    for times in (1, 2, 3):
        model(tokens, targets).sum().backward()
        assert embedding.grad.layout == torch.strided
        assert_close(embedding.grad, times * once)
    used = torch.zeros(ODD["vocab_size"], dtype=torch.bool)
    used[tokens] = True
    assert not used.all()
    rows = once.any(-1)
    # a tied head pushes at every token of the vocabulary; an embedding alone at those that were read
    assert rows.all() if tied else rows.any() and not rows[~used].any()


def test_a_frozen_embedding_gets_no_gradient_and_the_others_the_same():
    tokens, targets = some_tokens(4, 20), some_targets(4, 20)
    whole, frozen = toy(), toy()
    frozen.transformer["wte"].weight.requires_grad_(False)
    for model in (whole, frozen):
        model(tokens, targets).sum().backward()
    of = dict(frozen.named_parameters())
    assert of.pop("transformer.wte.weight").grad is None and len(of) == len(list(whole.parameters())) - 1
    for name, parameter in of.items():
        assert_close(parameter.grad, dict(whole.named_parameters())[name].grad)


def test_hidden_at_wanted_places_is_hidden_everywhere_at_those_places():
    model, tokens, positions = toy(n_layer=3).double(), some_tokens(3, 11), torch.arange(11)
    with torch.no_grad():
        everywhere = model.hidden(tokens, positions).flatten(0, 1)
        for wanted in (torch.tensor([0, 5, 32, 7]), torch.arange(33), torch.zeros(0, dtype=torch.long)):
            found = model.hidden(tokens, positions, wanted=wanted)
            assert found.shape == (len(wanted), ODD["n_embd"])
            assert torch.allclose(found, everywhere[wanted], rtol=0, atol=1e-12)


def test_dropout_in_the_last_layer_drops_at_wanted_places_too():
    model = toy(dropout=0.5).train()
    tokens, targets = some_tokens(4, 20), some_targets(4, 20)
    torch.manual_seed(0)
    one, other = model(tokens, targets), model(tokens, targets)
    scored = targets != IGNORE
    assert not torch.equal(one[scored], other[scored]) and not one[~scored].any()


def test_explicit_positions_and_causal_mask_give_the_same_as_the_defaults():
    model, tokens = toy(), some_tokens(3, 11)
    positions, causal = torch.arange(11).expand(3, 11), torch.ones(11, 11, dtype=torch.bool).tril()
    with torch.no_grad():
        default = model(tokens)
        assert_close(model(tokens, positions=positions), default, 1e-6)
        assert_close(model(tokens, look=causal), default, 1e-6)
        assert_close(model(tokens, positions=positions, look=causal.expand(3, 1, 11, 11)), default, 1e-6)


def test_a_row_of_two_texts_with_their_own_positions_and_mask_gives_what_each_text_gives_alone():
    model, first, second = toy(), some_tokens(1, 7), some_tokens(1, 5, seed=9)
    text = torch.tensor([0] * 7 + [1] * 5)
    mask = torch.ones(12, 12, dtype=torch.bool).tril() & (text[:, None] == text)
    positions = torch.tensor([*range(7), *range(5)])[None]
    with torch.no_grad():
        together = model(torch.cat([first, second], 1), positions=positions, look=mask)
        assert_close(together, torch.cat([model(first), model(second)], 1))


def test_look_may_be_a_function_which_each_layer_calls_with_its_scale_and_dropout():
    model, tokens, seen = toy(scale_attn_by_inverse_layer_idx=True, dropout=0.25), some_tokens(1, 9), []

    def look(q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float) -> Tensor:
        seen.append((q.shape, dropout, scale))
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)

    with torch.no_grad():
        assert_close(model(tokens, look=look), model(tokens), 1e-6)
        model.train()(tokens, look=look)
    shape = torch.Size([1, 3, 9, 16])
    assert seen == [(shape, 0.0, 0.25), (shape, 0.0, 0.125), (shape, 0.25, 0.25), (shape, 0.25, 0.125)]


def test_no_logit_depends_on_a_later_token():
    model, tokens = toy(), some_tokens(2, 12)
    for place in (1, 6, 11):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % ODD["vocab_size"]
        with torch.no_grad():
            before, after = model(tokens), model(changed)
        assert torch.equal(before[:, :place], after[:, :place])
        assert (before[:, place:] != after[:, place:]).any(-1).all()  # and every later one does depend on it


def test_a_row_may_fill_the_context_and_one_token_more_is_refused_by_number():
    model = toy()
    assert model(some_tokens(1, 37)).shape == (1, 37, 131)
    with pytest.raises(ValueError, match="38 tokens.*37 positions"):
        model(some_tokens(1, 38))
    with pytest.raises(ValueError, match="38 tokens.*37 positions"):
        model(some_tokens(1, 38), some_tokens(1, 38))


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="50.*3"):
        GPTConfig(n_embd=50, n_head=3)


@pytest.mark.parametrize("how", ["autocast", "bfloat16 weights"])
def test_the_softmax_is_float32_where_the_products_are_bfloat16(how):
    model, targets = toy(), some_targets(3, 9)
    model = model.bfloat16() if how == "bfloat16 weights" else model
    with Products() as products, torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        logp = model(some_tokens(3, 9), targets)
    (seen,) = [y for y in products.seen if y.shape[-1] == ODD["vocab_size"]]
    scored = targets != IGNORE
    expected = seen.double().log_softmax(-1).gather(-1, targets[scored][:, None]).squeeze(-1)
    assert seen.dtype == torch.bfloat16 and logp.dtype == torch.float32
    assert_close(logp[scored].double(), expected, 1e-6)  # one bfloat16 rounding would be 4e-3


def test_dropout_changes_nothing_in_eval_mode():
    tokens = some_tokens(2, 9)
    assert torch.equal(toy(dropout=0.5)(tokens), toy()(tokens))


def test_dropout_of_everything_leaves_only_the_last_norms_bias():
    # with all dropped, the embeddings and what every block adds are 0, and a layer norm of 0 is its bias
    model = toy(dropout=1.0).train()
    expected = model.lm_head(model.transformer["ln_f"].bias)
    assert_close(model(some_tokens(2, 9)), expected.expand(2, 9, -1))


def test_attention_dropout_is_active_in_training():
    # dropout of 1 in the attention alone: what is left of it is the output bias
    model = toy().train()
    attention = model.transformer["h"][0].attn
    attention.dropout = 1.0
    x = torch.randn(1, 5, ODD["n_embd"])
    assert torch.equal(attention(x, None), attention.c_proj.bias.expand(1, 5, -1))
    assert not torch.equal(attention.eval()(x, None), attention.c_proj.bias.expand(1, 5, -1))


@pytest.mark.parametrize(
    "size, published",
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_sizes_have_the_parameters_that_transformers_counts_and_openai_published(size, published):
    with torch.device("meta"):  # shapes without memory
        model, peer = GPT(GPTConfig(**SIZES[size])), GPT2LMHeadModel(GPT2Config(**SIZES[size]))
    assert model.parameter_count == peer.num_parameters() == published


def test_fresh_weights_have_gpt2s_spread_and_the_head_is_the_embedding():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, n_positions=100, n_embd=96, n_layer=8, n_head=3))
    assert model.lm_head.weight is model.transformer["wte"].weight
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif "ln_" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(16) if "c_proj" in name else 0.02  # 8 layers add to the stream 16 times
            # the spread of a sample of n varies by 1 / sqrt(2 n), 0.7 % at the smallest matrix here
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.04), name
