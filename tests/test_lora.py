"""gpt/lora.py against the matrices written out, the model without adapters, and peft over transformers."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from gpt.command import UserError
from gpt.generate import generate
from gpt.lora import TARGETS, adapter_size, adapters, add_lora, merged, save_adapter, without_adapters
from gpt.model import GPT
from gpt.optim import adamw
from gpt.packed import packed
from gpt.weights import fingerprint, load_gpt, save_gpt

SHAPES = {
    "plain": dict(),
    "odd": dict(vocab_size=41, n_embd=30, n_head=5, n_layer=3),
    "n_inner": dict(n_inner=50),
    "untied": dict(tie_word_embeddings=False),
}
TOKENS = torch.randint(40, (3, 17), generator=torch.Generator().manual_seed(1))


def with_noise(model: GPT, size: float = 0.05) -> GPT:
    """Adapters as training might have left them: B is no longer 0."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for layer in adapters(model).values():
            layer.lora_B.copy_(size * torch.randn(layer.lora_B.shape, generator=generator))
    return model


@pytest.fixture
def adapted(make_gpt):
    """A function that makes a toy with adapters that change what it says."""

    def make(rank: int = 4, alpha: float | None = None, **config) -> GPT:
        return with_noise(add_lora(make_gpt(**config), rank, alpha)).eval()

    return make


@pytest.mark.parametrize("shape", SHAPES)
def test_the_size_of_adapters_is_known_before_they_are_there(make_gpt, shape):
    model = make_gpt(**SHAPES[shape])
    before, expected = model.parameter_count, adapter_size(model, 3)
    assert add_lora(model, 3).parameter_count - before == expected


def losses(model: GPT) -> torch.Tensor:
    return -model(TOKENS[:, :-1], TOKENS[:, 1:]).mean()


def trained(model: GPT, steps: int = 3) -> torch.optim.Optimizer:
    optimizer = adamw(model, 0.1)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for _ in range(steps):
        losses(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def assert_close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal beside the largest of them: logits of the toy reach 20, of which float32 keeps seven digits."""
    assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_start_the_model_says_what_it_said_without_adapters_bit_for_bit(make_gpt, shape):
    model = make_gpt(**SHAPES[shape])
    before, logp = model(TOKENS), model(TOKENS[:, :-1], TOKENS[:, 1:])
    assert add_lora(model, 5) is model and torch.equal(model(TOKENS), before)
    assert torch.equal(model(TOKENS[:, :-1], TOKENS[:, 1:]), logp)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [None, 3.0])
@pytest.mark.parametrize("rank", [1, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_merged_model_is_a_plain_gpt_that_computes_the_same(make_gpt, adapted, shape, rank, alpha):
    model, start = adapted(rank, alpha, **SHAPES[shape]), make_gpt(**SHAPES[shape])
    before = model(TOKENS)
    plain = merged(model)
    assert not adapters(plain) and plain.state_dict().keys() == start.state_dict().keys()
    assert not plain.training and plain.config == model.config
    assert_close(plain(TOKENS), before)
    assert float((before - start(TOKENS)).abs().max()) > 0.1  # the adapters do something
    assert torch.equal(model(TOKENS), before)  # and are still there
    assert (plain.lm_head.weight is plain.transformer["wte"].weight) == model.config.tie_word_embeddings


def test_merging_a_model_without_adapters_returns_the_model_itself(make_gpt):
    model = make_gpt()
    assert merged(model) is model and adapters(model) == {}


@torch.no_grad()
@pytest.mark.parametrize("rank, alpha, scale", [(1, None, 2), (6, None, 2), (4, 2.0, 0.5), (5, 0.0, 0), (8, 8.0, 1)])
def test_a_layers_output_is_that_of_w_and_alpha_by_rank_times_b_a_written_out(adapted, rank, alpha, scale):
    model = adapted(rank, alpha, n_inner=50)
    assert len(adapters(model)) == 4 * model.config.n_layer
    for name, layer in adapters(model).items():
        x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(2))
        W, A, B = (part.double() for part in (layer.weight, layer.lora_A, layer.lora_B))
        W = W + scale * sum(torch.outer(B[:, i], A[i]) for i in range(rank))
        expected = torch.einsum("oi,bti->bto", W, x.double()) + layer.bias.double()
        assert_close(layer(x).double(), expected)
        assert_close(layer.merged_weight().double(), W, 1e-6)
        assert name.rpartition(".")[2] in TARGETS and A.shape == (rank, layer.in_features)


@torch.no_grad()
def test_without_adapters_the_model_is_what_it_was_and_afterwards_it_has_them_again(make_gpt, adapted):
    model, start = adapted(), make_gpt()
    before = model(TOKENS)
    with without_adapters(model):
        assert torch.equal(model(TOKENS), start(TOKENS))
    assert torch.equal(model(TOKENS), before)
    with pytest.raises(KeyError), without_adapters(model):
        assert torch.equal(model(TOKENS), start(TOKENS))
        raise KeyError
    assert torch.equal(model(TOKENS), before)
    with without_adapters(start):  # which has none
        assert torch.equal(start(TOKENS), make_gpt()(TOKENS))


@torch.no_grad()
def test_answers_and_the_packed_twin_go_through_the_adapters(adapted):
    model = adapted()
    assert_close(packed(model)(TOKENS), model(TOKENS))
    prompts = [TOKENS[0].tolist(), [3]]
    assert generate(model, prompts, 12) == generate(merged(model), prompts, 12)
    with without_adapters(model):
        assert generate(model, prompts, 12) != generate(merged(model), prompts, 12)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_a_and_b_train_and_the_rest_keeps_its_bits(make_gpt, shape):
    model, start = add_lora(make_gpt(**SHAPES[shape]), 3), make_gpt(**SHAPES[shape])
    losses(model).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    own = {f"{name}.{part}" for name in adapters(model) for part in ("lora_A", "lora_B")}
    assert with_gradient == own == {name for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = trained(model)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in own), name
    assert set(optimizer.state) == {p for p in model.parameters() if p.requires_grad}  # moments of nothing else
    with without_adapters(model):
        assert torch.equal(model(TOKENS), start(TOKENS))


def test_training_adapters_lowers_the_loss(make_gpt):
    model = add_lora(make_gpt(), 8)
    first = float(losses(model).detach())
    trained(model, 30)
    assert float(losses(model).detach()) < 0.7 * first


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 6])
def test_as_many_parameters_train_as_the_formula_says(make_gpt, shape, rank):
    model = add_lora(make_gpt(**SHAPES[shape]), rank)
    c = model.config
    C, inner = c.n_embd, c.n_inner or 4 * c.n_embd
    by_layer = (
        (C + 3 * C) + (C + C) + (C + inner) + (inner + C)
    )  # c_attn, its c_proj, c_fc, its c_proj: in + out of each
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == c.n_layer * rank * by_layer


def test_the_seed_alone_decides_a_and_chance_elsewhere_is_not_disturbed(make_gpt):
    def drawn(seed: int) -> list[torch.Tensor]:
        return [layer.lora_A.detach() for layer in adapters(add_lora(make_gpt(), 4, seed=seed)).values()]

    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = drawn(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert all(map(torch.equal, first, drawn(5))) and not any(map(torch.equal, first, drawn(6)))
    alike = [(i, j) for i, a in enumerate(first) for j, b in enumerate(first[:i]) if a.shape == b.shape]
    assert alike and not any(torch.equal(first[i], first[j]) for i, j in alike)  # each layer has its own


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no other device")
def test_adapters_begin_alike_on_every_device(make_gpt):
    here, there = (adapters(add_lora(make_gpt().to(device), 4, seed=5)) for device in ("cpu", "cuda"))
    assert all(torch.equal(layer.lora_A, there[name].lora_A.cpu()) for name, layer in here.items())


@pytest.mark.parametrize("rank", [32, 33, 1000])
def test_a_rank_not_below_the_width_is_refused_and_the_model_left_as_it_was(make_gpt, rank):
    model = make_gpt()
    with pytest.raises(UserError, match=f"--lora {rank}.*width, 32"):
        add_lora(model, rank)
    assert not adapters(model) and all(p.requires_grad for p in model.parameters())
    assert len(adapters(add_lora(model, 31))) == 8


@torch.no_grad()
def test_a_begins_uniform_within_1_by_the_root_of_its_inputs_and_b_as_zeros_as_in_peft(make_gpt, tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    model = add_lora(make_gpt(vocab_size=tokenizer.vocab_size, n_embd=120), 64)
    config = peft.LoraConfig(r=64, target_modules=list(TARGETS), fan_in_fan_out=True)
    peer = peft.get_peft_model(saved(model, tokenizer, tmp_path / "base"), config)
    ours = [(layer.lora_A, layer.lora_B, layer.in_features) for layer in adapters(model).values()]
    theirs = [
        (layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.in_features)
        for layer in peer.modules()
        if isinstance(layer, peft.tuners.lora.Linear)
    ]
    assert len(ours) == len(theirs) == 8
    for A, B, inputs in ours + theirs:
        bound = inputs**-0.5
        assert not B.any() and 0.99 * bound < float(A.abs().max()) <= bound
        assert float(A.std()) == pytest.approx(bound / 3**0.5, rel=0.03) and abs(float(A.mean())) < 0.03 * bound


# as others read it


def saved(model: GPT, tokenizer, folder) -> nn.Module:
    """The model without its adapters, saved and read by transformers."""
    with without_adapters(model):
        plain = {name: p for name, p in model.state_dict().items() if ".lora_" not in name}
        save_gpt(folder, GPT.of(model.config, plain), tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
@pytest.mark.filterwarnings("error:fan_in_fan_out")  # peft mends a wrong one, and says so
@pytest.mark.parametrize("shape, rank, alpha", [("odd", 3, None), ("n_inner", 5, 1.5), ("untied", 2, 7)])
def test_peft_reads_the_adapter_over_transformers_model_and_merges_to_equal_logits(
    adapted, tokenizer, tmp_path, shape, rank, alpha
):
    peft = pytest.importorskip("peft")
    model = adapted(rank, alpha, **SHAPES[shape] | dict(vocab_size=tokenizer.vocab_size))
    base = saved(model, tokenizer, tmp_path / "base")
    save_adapter(tmp_path / "adapter", model, str(tmp_path / "base"))
    without = base(TOKENS).logits
    peer = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert float((model(TOKENS) - without).abs().max()) > 0.1
    assert_close(peer(TOKENS).logits, model(TOKENS))
    with peer.disable_adapter(), without_adapters(model):
        assert_close(peer(TOKENS).logits, model(TOKENS))
    assert_close(peer.merge_and_unload()(TOKENS).logits, merged(model)(TOKENS))
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")  # finds the base by itself
    assert_close(found(TOKENS).logits, model(TOKENS))


def test_peft_has_the_same_gradients(adapted, tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    model = adapted(3, vocab_size=tokenizer.vocab_size)
    base = saved(model, tokenizer, tmp_path / "base")
    save_adapter(tmp_path / "adapter", model, str(tmp_path / "base"))
    peer = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    losses(model).backward()
    peer(TOKENS, labels=TOKENS).loss.backward()
    theirs = {name: p for name, p in peer.named_parameters() if p.requires_grad}
    assert len(theirs) == 16
    for name, layer in adapters(model).items():
        for part in ("lora_A", "lora_B"):
            peers = theirs[f"base_model.model.{name}.{part}.default.weight"]
            assert_close(getattr(layer, part).grad, peers.grad)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_a_merged_model_saved_loads_in_transformers_and_here_with_equal_logits(adapted, tokenizer, tmp_path, shape):
    model = adapted(**SHAPES[shape] | dict(vocab_size=tokenizer.vocab_size))
    save_gpt(tmp_path / "model", merged(model), tokenizer)
    peer, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert_close(peer(TOKENS).logits, model(TOKENS))
    assert fingerprint(load_gpt(tmp_path / "model")) == fingerprint(merged(model))


def test_an_adapter_saved_again_replaces_the_one_before(adapted, tmp_path):
    for rank in (2, 3):
        model = adapted(rank)
        save_adapter(tmp_path / "adapter", model, "base")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    names = {f"base_model.model.{name}.{part}.weight" for name in adapters(model) for part in ("lora_A", "lora_B")}
    assert state.keys() == names and {min(value.shape) for value in state.values()} == {3}
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}
