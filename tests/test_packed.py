"""gpt/packed.py: the twin against the model, in float32 against float64, and the model that it leaves alone."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from gpt.generate import generate
from gpt.packed import PackedLinear, packed
from tests.processes import ROOT, call

needs_packing = pytest.mark.skipif(
    not isinstance(packed(nn.Linear(2, 2)), PackedLinear), reason="this processor or this torch packs no matrices"
)
SHAPES = {
    "as it is": {},
    "untied": dict(tie_word_embeddings=False),
    "odd": dict(vocab_size=41, n_embd=15, n_head=3, n_inner=37),
    "one": dict(vocab_size=1, n_embd=1, n_head=1, n_inner=1, n_layer=1),
    "wide": dict(vocab_size=509, n_embd=96, n_head=2, n_inner=7, tie_word_embeddings=False),
    "other activation": dict(activation_function="silu", n_inner=1, scale_attn_by_inverse_layer_idx=True),
}
of_every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)


def random_tokens(model, rows: int = 3, columns: int = 17) -> Tensor:
    return torch.randint(model.config.vocab_size, (rows, columns), generator=torch.Generator().manual_seed(0))


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def error(model, truth: nn.Module) -> float:
    """The largest distance of a logit from that of `truth` in float64, as a part of the largest one."""
    tokens = random_tokens(truth)
    wanted = truth(tokens)
    return float((model(tokens) - wanted).abs().max() / wanted.abs().max())


@needs_packing
@of_every_shape
@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 9), (5, 1), (3, 17)])
def test_the_twin_gives_the_logits_of_the_model(make_gpt, config, rows, columns):
    model = make_gpt(**config).eval()
    tokens = random_tokens(model, rows, columns)
    with torch.no_grad():
        wanted, found = model(tokens), packed(model)(tokens)
        assert float((found - wanted).abs().max()) < 1e-5 * max(1.0, float(wanted.abs().max()))
        targets = tokens.roll(-1, 1)
        torch.testing.assert_close(packed(model)(tokens, targets), model(tokens, targets), rtol=1e-5, atol=1e-4)


@needs_packing
@of_every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_rounding_is_that_of_the_model(make_gpt, config, dtype):
    model = make_gpt(**config).eval().to(dtype)
    truth = copy.deepcopy(model).double()  # of the same rounded weights
    assert error(packed(model), truth) <= 10 * error(model, truth) + torch.finfo(dtype).eps


@needs_packing
def test_every_linear_layer_is_packed_and_nothing_else_is_copied(make_gpt):
    model = make_gpt()
    twin = packed(model)
    layers = [module for module in twin.modules() if isinstance(module, PackedLinear)]
    assert len(layers) == len(linear_layers(model)) == 4 * 2 + 1 and not linear_layers(twin)
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    assert theirs and all(value is ours[name] for name, value in theirs.items())
    assert {name for name in ours if name not in theirs} == {
        name for name in ours if name.endswith("weight") and ".c_" in name
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_where_packing_does_not_serve_the_twin_has_the_very_parameters_of_the_model(make_gpt, dtype):
    model = make_gpt().to(dtype)
    theirs = dict(packed(model).named_parameters())
    assert all(theirs.pop(name) is parameter for name, parameter in model.named_parameters()) and not theirs
    assert packed(make_gpt().to("meta")).transformer["wte"].weight.is_meta


@needs_packing
@pytest.mark.parametrize("tied", [True, False])
def test_the_model_is_untouched_and_still_trains(make_gpt, tied):
    model = make_gpt(tie_word_embeddings=tied).train()
    tokens = random_tokens(model)
    model(tokens, tokens).sum().backward()
    modules, state = list(model.named_modules()), {n: v.clone() for n, v in model.state_dict().items()}
    parameters = [(name, p, p.grad, p.requires_grad) for name, p in model.named_parameters()]
    twin = packed(model)
    with torch.no_grad():
        twin(tokens)
    assert all(a[1] is b[1] for a, b in zip(modules, model.named_modules(), strict=True))
    found = [(name, p, p.grad, p.requires_grad) for name, p in model.named_parameters()]
    assert all(x is y for a, b in zip(parameters, found, strict=True) for x, y in zip(a[1:], b[1:]))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (model.lm_head.weight is model.transformer["wte"].weight) == tied
    model.zero_grad()
    model(tokens, tokens).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@needs_packing
@pytest.mark.parametrize("tied", [True, False])
def test_a_new_twin_sees_what_an_optimizer_changed(make_gpt, tied):
    model = make_gpt(tie_word_embeddings=tied).eval()
    tokens = random_tokens(model)
    with torch.no_grad():
        before = packed(model)(tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(tokens, tokens).sum().backward()
    optimizer.step()
    with torch.no_grad():
        after, wanted = packed(model)(tokens), model(tokens)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@needs_packing
def test_packing_a_twin_again_packs_nothing(make_gpt):
    twin = packed(make_gpt())
    again = packed(twin)
    layers = [[m.ordered for m in model.modules() if isinstance(m, PackedLinear)] for model in (twin, again)]
    assert len(layers[0]) == 9 and all(a is b for a, b in zip(*layers, strict=True))


class Doubled(nn.Linear):
    """A linear layer that computes something else, as one with an adapter does."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@needs_packing
def test_a_subclass_of_a_linear_layer_is_not_packed(make_gpt):
    model = make_gpt().eval()
    mlp = model.transformer["h"][1].mlp
    doubled = Doubled(mlp.c_fc.in_features, mlp.c_fc.out_features)
    doubled.load_state_dict(mlp.c_fc.state_dict())
    mlp.c_fc = doubled
    twin = packed(model)
    found = twin.transformer["h"][1].mlp
    assert type(found.c_fc) is Doubled and found.c_fc.weight is doubled.weight and type(found.c_proj) is PackedLinear
    tokens = random_tokens(model)
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens), model(tokens), rtol=1e-5, atol=1e-4)


@needs_packing
def test_the_twin_is_in_eval_mode_whatever_the_model_does_and_has_its_hooks(make_gpt):
    model, seen = make_gpt(dropout=0.5).train(), []
    hook = model.transformer["ln_f"].register_forward_hook(lambda *_: seen.append(1))
    tokens = random_tokens(model)
    with torch.no_grad():
        twin = packed(model)
        assert torch.equal(twin(tokens), twin(tokens))
        assert model.training and not torch.equal(model(tokens), model(tokens))  # dropout
    hook.remove()
    assert len(seen) == 4


@needs_packing
def test_a_processor_without_bfloat16_gets_plain_matrices_and_an_answer():
    """oneDNN is told to take this processor for an older one."""
    script = (
        "import torch\nfrom gpt.weights import load_gpt\nfrom gpt.generate import generate\n"
        "print(generate(load_gpt('data/tiny').bfloat16(), [[5, 6]], 3))"
    )
    assert json.loads(call("-c", script, ONEDNN_MAX_CPU_ISA="AVX2", PYTHONPATH=str(ROOT), cwd=ROOT).stdout)


def test_under_autocast_nothing_is_packed_and_answers_come(make_gpt):
    model = make_gpt()
    with torch.autocast("cpu", torch.bfloat16):
        assert not any(isinstance(module, PackedLinear) for module in packed(model).modules())
        assert len(generate(model, [[5, 6, 7], [8]], 4)[0]) == 4
