"""gpt/weights.py: folders that go to transformers and come from it, and every folder that is none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    pipeline,
)

from gpt.command import UserError
from gpt.model import ACTIVATIONS, GPT, SIZES, GPTConfig
from gpt.tokenizer import Tokenizer, train_bpe
from gpt.weights import fingerprint, load_gpt, model_folder, random_gpt, save_gpt

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    "the cat sat on the mat",
    "I'm  here\r\n\tnow",
    "Съешь ещё этих мягких булок",
    "السلام عليكم ١٢٣",
    "床前明月光，疑是地上霜",
    "한국어 😀 👩‍👩‍👧‍👦 é\x00",
    "def f(x):\n    return x**2  # comment\n",
    "  \t \n\n   two  spaces   ",
    "a<|endoftext|>b",
    "",
]
SHAPE = dict(n_positions=37, n_embd=105, n_layer=2, n_head=3)

# Each setting of config.json that changes the function, away from its default, and several at once.
SETTINGS = {
    "as OpenAI's": {},
    **{f"{name} activation": dict(activation_function=name) for name in ACTIVATIONS},
    "a narrow MLP": dict(n_inner=50, n_head=5),
    "a wide MLP": dict(n_inner=501, n_head=7),
    "unscaled attention": dict(scale_attn_weights=False),
    "attention scaled by layer": dict(scale_attn_by_inverse_layer_idx=True, n_layer=4),
    "attention in float32": dict(reorder_and_upcast_attn=True),
    "a large epsilon": dict(layer_norm_epsilon=0.3),
    "a head of its own": dict(tie_word_embeddings=False),
    "as Mistral's": dict(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True, n_layer=3, n_head=5),
    "all at once": dict(
        activation_function="silu",
        n_inner=77,
        scale_attn_weights=False,
        scale_attn_by_inverse_layer_idx=True,
        reorder_and_upcast_attn=True,
        layer_norm_epsilon=1e-2,
        tie_word_embeddings=False,
        n_head=7,
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the cat sat on the mat; the rat's hat 한국어 é\n"] * 3, 300)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory) -> Path:
    """A folder with a model, which is not to be changed: writing one waits for the disk, copying it does not."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_gpt(folder, toy(tokenizer), tokenizer)
    return folder


def randomized(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew, biases and gains too: fresh ones are 0 and 1 and would hide a lost one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def toy(tokenizer: Tokenizer, seed: int = 0, **changes) -> GPT:
    return randomized(GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **SHAPE | changes)), seed)


def peer_model(**changes) -> GPT2LMHeadModel:
    return randomized(GPT2LMHeadModel(GPT2Config(vocab_size=131, **SHAPE | changes)))


def some_tokens(vocab_size: int) -> torch.Tensor:
    return torch.randint(vocab_size, (2, SHAPE["n_positions"]), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_logits(ours: GPT, peer: torch.nn.Module) -> None:
    tokens = some_tokens(ours.config.vocab_size)
    a, b = ours(tokens), peer(tokens).logits
    assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def assert_refused(load, *named: str) -> None:
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert message and "\n" not in message
    assert all(name in message for name in named), message


# ours to theirs


@pytest.mark.parametrize("name", SETTINGS)
def test_a_saved_folder_loads_in_transformers_and_here_with_equal_logits(name, tokenizer, tmp_path):
    model = toy(tokenizer, **SETTINGS[name])
    save_gpt(tmp_path / "model", model, tokenizer)
    for attention in ("sdpa", "eager"):  # only the second one obeys reorder_and_upcast_attn
        peer, report = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", attn_implementation=attention, output_loading_info=True
        )
        assert not any(report.values()) and peer.dtype == torch.float32
        assert_same_logits(model, peer)
    loaded = load_gpt(tmp_path / "model")
    assert (loaded.config, fingerprint(loaded)) == (model.config, fingerprint(model))


def test_a_saved_folder_gives_transformers_the_ids_the_ends_the_length_and_the_dropout(tokenizer, tmp_path):
    save_gpt(tmp_path / "model", toy(tokenizer, dropout=0.2), tokenizer)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "model").config
    peer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in TEXTS:
        assert peer(text, split_special_tokens=True).input_ids == tokenizer.encode(text)
        assert peer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text
    assert peer.model_max_length == config.n_positions == SHAPE["n_positions"]
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.2
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    for ends in (peer, config, generation):
        assert ends.bos_token_id == ends.eos_token_id == tokenizer.end_of_text
    assert generation.pad_token_id == tokenizer.end_of_text
    assert load_gpt(tmp_path / "model").config.dropout == 0  # it is asked for, not taken from the file


@torch.no_grad()
@pytest.mark.parametrize("name", ["as OpenAI's", "all at once"])
def test_transformers_pipeline_goes_on_with_a_text_as_the_most_likely_token_each_time(name, tokenizer, tmp_path):
    model, prompt = toy(tokenizer, **SETTINGS[name]), "the cat sat"
    save_gpt(tmp_path, model, tokenizer)
    peer = pipeline("text-generation", model=str(tmp_path), device="cpu")
    ids = tokenizer.encode(prompt)
    while len(ids) < SHAPE["n_positions"] and ids[-1] != tokenizer.end_of_text:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert len(ids) > 20
    count = len(ids) - len(tokenizer.encode(prompt))
    found = peer(prompt, do_sample=False, max_new_tokens=count, return_tensors=True)
    assert found[0]["generated_token_ids"] == ids


@pytest.mark.parametrize("card", ["", "# A model\n\nIt answers politely. 한국어 😀\n"])
def test_a_model_card_is_written_where_there_is_something_to_say(card, tokenizer, tmp_path):
    save_gpt(tmp_path / "model", toy(tokenizer), tokenizer, card=card)
    readme = tmp_path / "model" / "README.md"
    assert readme.exists() == bool(card)
    assert not card or readme.read_text("utf-8") == card


def test_a_saved_folder_is_whole_float32_and_loads_here_bit_for_bit(tokenizer, tmp_path):
    model = toy(tokenizer).bfloat16()
    save_gpt(tmp_path / "a" / "model", model, tokenizer)
    files = {file.name for file in (tmp_path / "a" / "model").iterdir()}
    assert files == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    }
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]
    assert all(
        value.dtype == torch.float32 for value in load_file(tmp_path / "a" / "model" / "model.safetensors").values()
    )
    loaded = load_gpt(tmp_path / "a" / "model")
    assert not loaded.training
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert all(torch.equal(value, model.state_dict()[name].float()) for name, value in loaded.state_dict().items())
    assert loaded.lm_head.weight is loaded.transformer["wte"].weight
    assert loaded.config == model.config


def test_a_run_folder_will_do_where_a_model_folder_is_asked_for(tokenizer, tmp_path):
    model = toy(tokenizer)
    save_gpt(tmp_path / "run" / "model", model, tokenizer)
    assert model_folder(tmp_path / "run") == model_folder(tmp_path / "run" / "model") == tmp_path / "run" / "model"
    assert (
        fingerprint(load_gpt(tmp_path / "run"))
        == fingerprint(load_gpt(str(tmp_path / "run" / "model")))
        == fingerprint(model)
    )


def test_saving_over_a_folder_replaces_it_whole(tokenizer, tmp_path):
    folder = tmp_path / "model"
    save_gpt(folder, toy(tokenizer, n_layer=3), tokenizer)
    (folder / "stale.txt").write_text("of the model before")
    (tmp_path / "model.part").mkdir()
    (tmp_path / "model.part" / "stale.txt").write_text("of a save that was killed")
    (tmp_path / "model.old").mkdir()
    new, other = toy(tokenizer, seed=1), train_bpe(["other words"], tokenizer.vocab_size)
    save_gpt(folder, new, other)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (folder / "stale.txt").exists()
    assert fingerprint(load_gpt(folder)) == fingerprint(new)
    assert Tokenizer.load(folder).merges == other.merges


def test_a_save_that_fails_half_way_leaves_the_folder_that_was_there(tokenizer, tmp_path):
    old = toy(tokenizer)
    save_gpt(tmp_path / "model", old, tokenizer)
    # the system itself refuses to write more than 100 kB into a file, as a full disk would
    script = f"""
import resource
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import Tokenizer
from gpt.weights import save_gpt
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = {str(tmp_path / "model")!r}
save_gpt(folder, GPT(GPTConfig(vocab_size=300, n_positions=37, n_embd=240, n_layer=1, n_head=1)), Tokenizer.load(folder))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "too large" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"gpt.files.Unwritable: {tmp_path / 'model'}")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert fingerprint(load_gpt(tmp_path / "model")) == fingerprint(old)
    assert Tokenizer.load(tmp_path / "model").merges == tokenizer.merges


@pytest.mark.parametrize("place", ["file/model", "file/a/b/model"])
def test_a_folder_that_cannot_be_made_is_one_line_that_names_it(place, tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")  # root may write everywhere else
    assert_refused(lambda: save_gpt(tmp_path / place, toy(tokenizer), tokenizer), str(tmp_path / place), "written")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# theirs to ours


@pytest.mark.parametrize("name", SETTINGS)
def test_a_folder_saved_by_transformers_loads_here_with_equal_logits(name, tmp_path):
    peer = peer_model(**SETTINGS[name])
    peer.save_pretrained(tmp_path)
    for attention in ("sdpa", "eager"):
        peer.set_attn_implementation(attention)
        assert_same_logits(load_gpt(tmp_path), peer)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes, same",
    [
        (dict(activation_function="gelu_pytorch_tanh"), True),  # another name of gelu_new
        (dict(activation_function="gelu"), False),
        (dict(activation_function="relu"), False),
        (dict(activation_function="silu"), False),
        (dict(scale_attn_weights=False), False),
        (dict(scale_attn_by_inverse_layer_idx=True), False),
        (dict(reorder_and_upcast_attn=True), True),  # all is float32 here
        (dict(layer_norm_epsilon=1e-3), False),
    ],
)
def test_a_setting_changes_what_the_same_weights_compute(changes, same, tmp_path):
    # so that a model which overlooked one could not pass the tests above
    peer_model().save_pretrained(tmp_path)
    before = load_gpt(tmp_path)(some_tokens(131))
    config(**changes)(tmp_path)
    assert torch.equal(load_gpt(tmp_path)(some_tokens(131)), before) == same


@pytest.mark.parametrize("name", ["as OpenAI's", "all at once"])
@pytest.mark.parametrize("number", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_computed_with_in_float32(number, name, tmp_path):
    peer = peer_model(**SETTINGS[name]).to(number)
    peer.save_pretrained(tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {number}
    model = load_gpt(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same_logits(model, peer.float())


@pytest.mark.parametrize("name", ["as OpenAI's", "a head of its own"])
@pytest.mark.parametrize("headless", [False, True])
def test_weights_spread_over_several_files_load_here_with_equal_logits(headless, name, tmp_path):
    peer = peer_model(**SETTINGS["as OpenAI's" if headless else name])
    (peer.transformer if headless else peer).save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").is_file() and not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    assert_same_logits(load_gpt(tmp_path), peer)


def test_a_folder_without_the_transformer_prefix_loads_here_with_equal_logits(tmp_path):
    peer = peer_model()
    peer.transformer.save_pretrained(tmp_path)  # a GPT2Model: no head, and names such as h.0.attn.c_attn.weight
    assert isinstance(peer.transformer, GPT2Model)
    assert not any(name.startswith("transformer.") for name in load_file(tmp_path / "model.safetensors"))
    assert_same_logits(load_gpt(tmp_path), peer)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_old_files_with_attention_buffers_and_a_copy_of_the_head_load_here(prefix, shards, tmp_path):
    peer = peer_model()
    peer.save_pretrained(tmp_path)
    old = {prefix + name: value.contiguous() for name, value in peer.transformer.state_dict().items()}
    for layer in range(2):  # as openai-community/gpt2 has them to this day
        old[f"{prefix}h.{layer}.attn.bias"] = torch.ones(37, 37).tril()[None, None].to(torch.uint8)
        old[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    old["lm_head.weight"] = peer.lm_head.weight.detach().clone()
    save_file(old, tmp_path / "model.safetensors")
    if shards:
        into_shards(tmp_path)
    assert_same_logits(load_gpt(tmp_path), peer)


def test_a_config_without_the_fields_that_have_defaults_is_gpt2s(tmp_path):
    peer = peer_model(n_embd=108, n_head=12)
    peer.save_pretrained(tmp_path)
    given = ("model_type", "vocab_size", "n_positions", "n_embd", "n_layer")
    edit("config.json", lambda found: {name: found[name] for name in given})(tmp_path)
    assert_same_logits(load_gpt(tmp_path), peer)  # n_head 12 and epsilon 1e-5 are the defaults


def test_n_inner_written_out_as_four_times_n_embd_is_the_same_model(saved, tmp_path):
    copytree(saved, tmp_path, dirs_exist_ok=True)
    config(n_inner=420)(tmp_path)
    assert fingerprint(load_gpt(tmp_path)) == fingerprint(load_gpt(saved))


# what is refused


def edit(name: str, change):
    def damage(folder: Path) -> None:
        (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))

    return damage


def tensors(change):
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")

    return damage


def config(**changes):
    return edit("config.json", lambda found: found | changes)


def to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


INDEX, SHARDS = "model.safetensors.index.json", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def into_shards(folder: Path) -> None:
    state = sorted(load_file(folder / "model.safetensors").items())
    halves = [dict(state[: len(state) // 2]), dict(state[len(state) // 2 :])]
    for name, half in zip(SHARDS, halves):
        save_file(half, folder / name)
    (folder / "model.safetensors").unlink()
    weight_map = {tensor: name for name, half in zip(SHARDS, halves) for tensor in half}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def in_shards(damage):
    def both(folder: Path) -> None:
        into_shards(folder)
        damage(folder)

    return both


def tensors_of_a_shard(change):
    def damage(folder: Path) -> None:
        state = load_file(folder / SHARDS[0])
        change(state)
        save_file({name: value.contiguous() for name, value in state.items()}, folder / SHARDS[0])

    return in_shards(damage)


def cut(name: str):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


FC, WTE, HEAD = "transformer.h.0.mlp.c_fc.weight", "transformer.wte.weight", "lm_head.weight"
REFUSED = {
    # tensors
    "a missing tensor": (tensors(lambda s: s.pop(FC)), ["model.safetensors", FC, "missing"]),
    "an extra tensor": (
        tensors(lambda s: s.update({"transformer.lora": torch.ones(1)})),
        ["model.safetensors", "transformer.lora", "no part"],
    ),
    "a layer more than config.json says": (config(n_layer=1), ["model.safetensors", "transformer.h.1."]),
    "a layer less than config.json says": (config(n_layer=3), ["model.safetensors", "transformer.h.2.", "missing"]),
    "a transposed matrix": (
        tensors(lambda s: s.update({FC: s[FC].t()})),
        ["model.safetensors", FC, "(105, 420)", "(420, 105)"],
    ),
    "a vector in place of a matrix": (
        tensors(lambda s: s.update({FC: torch.ones(7)})),
        ["model.safetensors", FC, "(7,)"],
    ),
    "a cube in place of a matrix": (tensors(lambda s: s.update({FC: torch.ones(2, 3, 4)})), ["model.safetensors", FC]),
    "whole numbers": (tensors(lambda s: s.update({FC: s[FC].to(torch.int8)})), ["model.safetensors", FC, "int8"]),
    "another vocabulary than config.json says": (config(vocab_size=77), ["model.safetensors", WTE, "77"]),
    "another width of the MLP than config.json says": (config(n_inner=100), ["model.safetensors", FC[:-6], "100"]),
    "a head that differs though it is tied": (
        tensors(lambda s: s.update({HEAD: s[WTE] + 1})),
        ["model.safetensors", HEAD, WTE, "tie_word_embeddings"],
    ),
    "no head though it is not tied": (config(tie_word_embeddings=False), ["model.safetensors", HEAD, "missing"]),
    "one tensor by two names": (
        tensors(lambda s: s.update({"wte.weight": s[WTE].clone()})),
        ["model.safetensors", "wte.weight", WTE],
    ),
    # config.json
    "another architecture": (config(model_type="llama"), ["config.json", "llama", "gpt2"]),
    "no architecture": (edit("config.json", lambda c: {}), ["config.json", "gpt2"]),
    "an unknown activation": (
        config(activation_function="quick_gelu"),
        ["config.json", "activation_function", "quick_gelu", *ACTIVATIONS],
    ),
    "a number for the activation": (config(activation_function=3), ["config.json", "activation_function", "3"]),
    "cross-attention": (config(add_cross_attention=True), ["config.json", "add_cross_attention"]),
    "quantized weights": (
        config(quantization_config={"quant_method": "bitsandbytes"}),
        ["config.json", "quantization_config"],
    ),
    "pruned heads": (config(pruned_heads={"0": [1]}), ["config.json", "pruned_heads"]),
    "a word for yes": (config(scale_attn_weights="yes"), ["config.json", "scale_attn_weights", "true or false"]),
    "1 for yes": (config(tie_word_embeddings=1), ["config.json", "tie_word_embeddings", "true or false"]),
    "no width of the MLP": (config(n_inner=0), ["config.json", "n_inner", "above 0"]),
    "heads that do not divide the channels": (config(n_head=4), ["config.json", "n_head 4"]),
    "no layers": (config(n_layer=0), ["config.json", "n_layer"]),
    "half a layer": (config(n_layer=1.5), ["config.json", "n_layer", "1.5"]),
    "a word for a number": (config(n_embd="wide"), ["config.json", "n_embd", "wide"]),
    "a word for the epsilon": (config(layer_norm_epsilon="small"), ["config.json", "small"]),
    "null for the epsilon": (config(layer_norm_epsilon=None), ["config.json", "layer_norm_epsilon"]),
    "no epsilon": (config(layer_norm_epsilon=0.0), ["config.json", "layer_norm_epsilon"]),
    "no JSON in config.json": (lambda f: (f / "config.json").write_text('{"model_type": "gpt2"'), ["config.json"]),
    "a list in config.json": (lambda f: (f / "config.json").write_text("[1, 2]"), ["config.json"]),
    "no UTF-8 in config.json": (
        lambda f: (f / "config.json").write_bytes(b'{"model_type": "\xff"}'),
        ["config.json"],
    ),
    "no config.json": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    # files
    "weights of another format": (
        lambda f: (f / "model.safetensors").write_bytes(b"PK\x03\x04" * 99),
        ["model.safetensors"],
    ),
    "weights cut off": (cut("model.safetensors"), ["model.safetensors", "no whole"]),
    "a pickle alone": (to_pickle, ["model.safetensors", "pytorch_model.bin", "pickle", "save_pretrained"]),
    "no weights at all": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "missing"]),
    "a folder in place of the weights": (
        lambda f: (f / "model.safetensors").unlink() or (f / "model.safetensors").mkdir(),
        ["model.safetensors"],
    ),
    # several files with an index
    "a missing shard": (in_shards(lambda f: (f / SHARDS[1]).unlink()), [SHARDS[1], "missing"]),
    "a shard cut off": (in_shards(cut(SHARDS[1])), [SHARDS[1], "no whole"]),
    "a missing tensor in a shard": (tensors_of_a_shard(lambda s: s.pop(FC)), [INDEX, FC, "missing"]),
    "an extra tensor in a shard": (
        tensors_of_a_shard(lambda s: s.update({"transformer.lora": torch.ones(1)})),
        [INDEX, "transformer.lora"],
    ),
    "a misshapen tensor in a shard": (tensors_of_a_shard(lambda s: s.update({FC: torch.ones(7)})), [INDEX, FC, "(7,)"]),
    "whole numbers in a shard": (tensors_of_a_shard(lambda s: s.update({FC: s[FC].int()})), [INDEX, FC, "int32"]),
    "an index that is no JSON": (in_shards(cut(INDEX)), [INDEX, "weight_map"]),
    "an index that is a list": (in_shards(edit(INDEX, list)), [INDEX, "weight_map"]),
    "an index without a weight_map": (in_shards(edit(INDEX, lambda i: {"metadata": {}})), [INDEX, "weight_map"]),
    "an index whose weight_map is a list": (in_shards(edit(INDEX, lambda i: {"weight_map": SHARDS})), [INDEX]),
    "an index whose weight_map is empty": (in_shards(edit(INDEX, lambda i: {"weight_map": {}})), [INDEX, "missing"]),
    "an index of one shard of two": (
        in_shards(edit(INDEX, lambda i: {"weight_map": {FC: SHARDS[0]}})),
        [INDEX, "missing"],
    ),
    **{
        f"an index that names {name}": (
            in_shards(edit(INDEX, lambda i, name=name: {"weight_map": i["weight_map"] | {FC: name}})),
            named,
        )
        for name, named in {
            "../evil.safetensors": [INDEX, "../evil.safetensors"],
            "/etc/passwd": [INDEX, "/etc/passwd"],
            "a/b.safetensors": [INDEX, "a/b.safetensors"],
            "..": [INDEX, "safetensors file beside it"],
            "": [INDEX, "safetensors file beside it"],
            "config.json": [INDEX, "safetensors file beside it"],
        }.items()
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_is_not_exactly_one_gpt2_is_refused_in_one_line_that_says_why(what, saved, tmp_path):
    copytree(saved, tmp_path / "model")
    damage, named = REFUSED[what]
    damage(tmp_path / "model")
    assert_refused(lambda: load_gpt(tmp_path / "model"), str(tmp_path / "model"), *named)


def test_weights_cut_off_anywhere_are_refused_in_one_line_that_names_the_file(saved, tmp_path):
    copytree(saved, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "model.safetensors").read_bytes()

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, len(whole) - 1) | st.integers(0, 20))
    def cut_to(length):
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        assert_refused(lambda: load_gpt(tmp_path), str(tmp_path / "model.safetensors"))

    cut_to()


def test_pickles_in_pieces_are_refused_as_one_is(saved, tmp_path):
    copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model-00001-of-00001.bin")
    assert_refused(lambda: load_gpt(tmp_path), "pickle", "save_pretrained")


def test_a_file_outside_the_folder_is_not_read_even_where_it_exists(saved, tmp_path):
    copytree(saved, tmp_path / "model")
    into_shards(tmp_path / "model")
    (tmp_path / "model" / SHARDS[0]).rename(tmp_path / "evil.safetensors")
    index = (tmp_path / "model" / INDEX).read_text().replace(SHARDS[0], "../evil.safetensors")
    (tmp_path / "model" / INDEX).write_text(index)
    assert_refused(lambda: load_gpt(tmp_path / "model"), INDEX, "../evil.safetensors")


def test_a_model_that_is_not_there_is_answered_with_the_newest_that_are(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate("new middle old older oldest".split()):
        copytree(saved, tmp_path / "runs" / name / "model")
        os.utime(tmp_path / "runs" / name, (1e9 - age, 1e9 - age))
    (tmp_path / "runs/unfinished").mkdir()
    for name in ("runs/none", "./runs/none", "runs/none/model", "runs/unfinishe"):
        assert_refused(
            lambda name=name: load_gpt(name), f"{Path(name)} does not exist; runs/ has new, middle, old, older, ..."
        )
    assert_refused(lambda: load_gpt(tmp_path / "runs/x"), f"does not exist; {tmp_path / 'runs'}/ has new")
    assert_refused(lambda: load_gpt("./none"), "none does not exist; a model is a folder")


def test_random_weights_are_no_model_to_open():
    assert_refused(lambda: load_gpt("random:tiny"), "random:tiny: random weights", "dpo/train.py --init")


def test_no_folder_a_file_and_an_empty_folder_are_refused_by_name(tmp_path):
    assert_refused(lambda: load_gpt(tmp_path / "nowhere"), str(tmp_path / "nowhere"), "does not exist")
    (tmp_path / "file").write_text("")
    assert_refused(lambda: load_gpt(tmp_path / "file"), str(tmp_path / "file"), "it is a file")
    (tmp_path / "empty").mkdir()
    assert_refused(lambda: load_gpt(tmp_path / "empty"), str(tmp_path / "empty"), "config.json")


# random weights and fingerprints


def test_random_weights_depend_on_the_seed_alone():
    first, again, other = (fingerprint(random_gpt("tiny", 300, seed)) for seed in (7, 7, 8))
    assert first == again != other
    assert_refused(lambda: random_gpt("huge", 300, 0), "huge", *SIZES)


def test_a_fingerprint_changes_with_the_last_bit_of_any_one_weight(tokenizer):
    model = toy(tokenizer)
    seen = {fingerprint(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] = torch.nextafter(parameter.view(-1)[-1], torch.tensor(9.0))
        seen.add(fingerprint(model))
    assert len(seen) == 1 + len(list(model.parameters()))


@pytest.mark.parametrize(
    "change",
    [
        dict(n_head=5),
        dict(activation_function="relu"),
        dict(layer_norm_epsilon=1e-6),
        dict(scale_attn_weights=False),
        dict(scale_attn_by_inverse_layer_idx=True),
        dict(reorder_and_upcast_attn=True),
    ],
)
def test_a_fingerprint_changes_with_what_the_same_weights_compute(tokenizer, change):
    model, other = toy(tokenizer), toy(tokenizer, **change)
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    assert fingerprint(model) != fingerprint(other)


def test_dropout_is_no_part_of_a_fingerprint_since_a_model_that_is_asked_has_none(tokenizer):
    assert fingerprint(toy(tokenizer)) == fingerprint(toy(tokenizer, dropout=0.3))
