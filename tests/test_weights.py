"""gpt/weights.py: folders that go to transformers and come from it, and every folder that is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Model

from gpt.command import UserError
from gpt.model import GPT, SIZES, GPTConfig
from gpt.tokenizer import Tokenizer, train_bpe
from gpt.weights import fingerprint, load_gpt, model_folder, random_gpt, save_gpt

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["the cat sat on the mat", "I'm  here\r\n\tnow", "한국어 😀 é\x00", "a<|endoftext|>b", ""]
SHAPE = dict(n_positions=29, n_embd=36, n_layer=2, n_head=3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the cat sat on the mat; the rat's hat 한국어 é\n"] * 3, 300)


def randomized(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew, biases and gains too: fresh ones are 0 and 1 and would hide a lost one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def toy(tokenizer: Tokenizer, seed: int = 0, **changes) -> GPT:
    return randomized(GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **SHAPE | changes)), seed)


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


@pytest.mark.parametrize(
    "changes", [{}, dict(n_embd=33, n_layer=1, n_head=11), dict(layer_norm_epsilon=1e-2, dropout=0.2)]
)
def test_a_saved_folder_loads_in_transformers_with_equal_logits_and_equal_ids(changes, tokenizer, tmp_path):
    model = toy(tokenizer, **changes)
    save_gpt(tmp_path / "model", model, tokenizer)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    peer_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert_same_logits(model, peer.eval())
    for text in TEXTS:
        assert peer_tokenizer(text, split_special_tokens=True).input_ids == tokenizer.encode(text)
        assert peer_tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text
    assert peer_tokenizer.eos_token_id == peer.config.eos_token_id == tokenizer.end_of_text
    assert peer_tokenizer.model_max_length == peer.config.n_positions == model.config.n_positions
    assert peer.config.resid_pdrop == peer.config.embd_pdrop == peer.config.attn_pdrop == model.config.dropout


def test_a_saved_folder_is_whole_float32_and_loads_here_bit_for_bit(tokenizer, tmp_path):
    model = toy(tokenizer).bfloat16()
    save_gpt(tmp_path / "a" / "model", model, tokenizer)
    files = {file.name for file in (tmp_path / "a" / "model").iterdir()}
    assert {"config.json", "model.safetensors", "vocab.json", "merges.txt"} <= files
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]
    assert all(
        value.dtype == torch.float32 for value in load_file(tmp_path / "a" / "model" / "model.safetensors").values()
    )
    loaded = load_gpt(tmp_path / "a" / "model")
    assert not loaded.training
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert all(torch.equal(value, model.state_dict()[name].float()) for name, value in loaded.state_dict().items())
    assert loaded.lm_head.weight is loaded.transformer["wte"].weight
    assert (loaded.config.n_head, loaded.config.n_positions) == (3, 29)


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
save_gpt(folder, GPT(GPTConfig(vocab_size=300, n_positions=29, n_embd=240, n_layer=1, n_head=1)), Tokenizer.load(folder))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "too large" in done.stderr
    assert fingerprint(load_gpt(tmp_path / "model")) == fingerprint(old)
    assert Tokenizer.load(tmp_path / "model").merges == tokenizer.merges


# theirs to ours


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_saved_by_transformers_loads_here_with_equal_logits(number, tmp_path):
    peer = randomized(GPT2LMHeadModel(GPT2Config(vocab_size=131, **SHAPE))).to(number)
    peer.save_pretrained(tmp_path)
    assert_same_logits(load_gpt(tmp_path), peer.float())


def test_a_folder_without_the_transformer_prefix_loads_here_with_equal_logits(tmp_path):
    peer = randomized(GPT2LMHeadModel(GPT2Config(vocab_size=131, **SHAPE)))
    peer.transformer.save_pretrained(tmp_path)  # a GPT2Model: no head, and names such as h.0.attn.c_attn.weight
    assert isinstance(peer.transformer, GPT2Model)
    assert not any(name.startswith("transformer.") for name in load_file(tmp_path / "model.safetensors"))
    assert_same_logits(load_gpt(tmp_path), peer)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_old_files_with_attention_buffers_and_a_copy_of_the_head_load_here(prefix, tmp_path):
    peer = randomized(GPT2LMHeadModel(GPT2Config(vocab_size=131, **SHAPE)))
    peer.save_pretrained(tmp_path)
    old = {prefix + name: value.contiguous() for name, value in peer.transformer.state_dict().items()}
    for layer in range(2):  # as openai-community/gpt2 has them to this day
        old[f"{prefix}h.{layer}.attn.bias"] = torch.ones(29, 29).tril()[None, None]
        old[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    old["lm_head.weight"] = peer.lm_head.weight.detach().clone()
    save_file(old, tmp_path / "model.safetensors")
    assert_same_logits(load_gpt(tmp_path), peer)


def test_a_config_without_the_fields_that_have_defaults_is_gpt2s(tmp_path):
    peer = randomized(GPT2LMHeadModel(GPT2Config(vocab_size=131, **SHAPE | dict(n_head=12))))
    peer.save_pretrained(tmp_path)
    given = ("model_type", "vocab_size", "n_positions", "n_embd", "n_layer")
    edit("config.json", lambda found: {name: found[name] for name in given})(tmp_path)
    assert_same_logits(load_gpt(tmp_path), peer)  # n_head 12 and epsilon 1e-5 are the defaults


def test_n_inner_written_out_as_four_times_n_embd_is_the_same_model(tokenizer, tmp_path):
    model = toy(tokenizer)
    save_gpt(tmp_path, model, tokenizer)
    edit("config.json", lambda config: config | {"n_inner": 144})(tmp_path)
    assert fingerprint(load_gpt(tmp_path)) == fingerprint(model)


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


FC = "transformer.h.0.mlp.c_fc.weight"
REFUSED = {
    "a missing tensor": (tensors(lambda s: s.pop(FC)), ["model.safetensors", FC, "missing"]),
    "an extra tensor": (
        tensors(lambda s: s.update({"transformer.lora": torch.ones(1)})),
        ["transformer.lora", "no part"],
    ),
    "a layer more than config.json says": (config(n_layer=1), ["model.safetensors", "transformer.h.1."]),
    "a transposed matrix": (
        tensors(lambda s: s.update({FC: s[FC].t()})),
        ["model.safetensors", FC, "(36, 144)", "(144, 36)"],
    ),
    "a vector in place of a matrix": (
        tensors(lambda s: s.update({FC: torch.ones(7)})),
        ["model.safetensors", FC, "(7,)"],
    ),
    "a cube in place of a matrix": (tensors(lambda s: s.update({FC: torch.ones(2, 3, 4)})), ["model.safetensors", FC]),
    "another vocabulary than config.json says": (
        config(vocab_size=77),
        ["model.safetensors", "transformer.wte.weight", "77"],
    ),
    "a head of its own": (
        tensors(lambda s: s.update({"lm_head.weight": s["transformer.wte.weight"] + 1})),
        ["lm_head.weight"],
    ),
    "another architecture": (config(model_type="llama"), ["config.json", "llama"]),
    "no architecture": (edit("config.json", lambda c: {}), ["config.json", "gpt2"]),
    "another activation": (config(activation_function="relu"), ["config.json", "activation_function", "relu"]),
    "another width of the MLP": (config(n_inner=100), ["config.json", "n_inner", "100"]),
    "unscaled attention": (config(scale_attn_weights=False), ["config.json", "scale_attn_weights"]),
    "an untied head in config.json": (config(tie_word_embeddings=False), ["config.json", "tie_word_embeddings"]),
    "heads that do not divide the channels": (config(n_head=5), ["config.json", "n_head 5"]),
    "no layers": (config(n_layer=0), ["config.json", "n_layer"]),
    "half a layer": (config(n_layer=1.5), ["config.json", "n_layer", "1.5"]),
    "a word for a number": (config(n_embd="wide"), ["config.json", "n_embd", "wide"]),
    "a word for the epsilon": (config(layer_norm_epsilon="small"), ["config.json", "small"]),
    "null for the epsilon": (config(layer_norm_epsilon=None), ["config.json", "layer_norm_epsilon"]),
    "a config.json that is no JSON": (
        lambda f: (f / "config.json").write_text('{"model_type": "gpt2"'),
        ["config.json"],
    ),
    "a config.json that is a list": (lambda f: (f / "config.json").write_text("[1, 2]"), ["config.json"]),
    "a config.json that is not UTF-8": (
        lambda f: (f / "config.json").write_bytes(b'{"model_type": "\xff"}'),
        ["config.json"],
    ),
    "weights of another format": (
        lambda f: (f / "model.safetensors").write_bytes(b"PK\x03\x04" * 99),
        ["model.safetensors"],
    ),
    "a pickle alone": (to_pickle, ["model.safetensors", "pytorch_model.bin", "pickle"]),
    "no weights at all": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "missing"]),
    "no config.json": (lambda f: (f / "config.json").unlink(), ["config.json"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_is_not_exactly_one_gpt2_is_refused_in_one_line_that_says_why(what, tokenizer, tmp_path):
    save_gpt(tmp_path / "model", toy(tokenizer), tokenizer)
    damage, named = REFUSED[what]
    damage(tmp_path / "model")
    assert_refused(lambda: load_gpt(tmp_path / "model"), str(tmp_path / "model"), *named)


def test_weights_cut_off_anywhere_are_refused_in_one_line_that_names_the_file(tokenizer, tmp_path):
    save_gpt(tmp_path, toy(tokenizer), tokenizer)
    whole = (tmp_path / "model.safetensors").read_bytes()

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, len(whole) - 1) | st.integers(0, 20))
    def cut(length):
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        assert_refused(lambda: load_gpt(tmp_path), str(tmp_path / "model.safetensors"))

    cut()


def test_no_folder_a_file_and_an_empty_folder_are_refused_by_name(tmp_path):
    assert_refused(lambda: load_gpt(tmp_path / "nowhere"), str(tmp_path / "nowhere"), "does not exist", *SIZES)
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
