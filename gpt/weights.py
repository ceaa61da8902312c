"""Model folders in Hugging Face's GPT-2 format, in and out.

    model/  config.json  model.safetensors  vocab.json  merges.txt

Hugging Face's GPT-2 keeps four matrices of each block the other way round (its Conv1D multiplies x @ W, nn.Linear
x @ W.T), and names what is not the head `transformer.*`. That is all there is to translate.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt.command import UserError
from gpt.files import whole_folder
from gpt.model import GPT, SIZES, GPTConfig
from gpt.tokenizer import Tokenizer
from gpt.vocabulary import END_OF_TEXT

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks that old files carry; no weights

# Settings of config.json that change the function; GPT computes these values and no others.
FIXED = {
    "activation_function": "gelu_new",
    "n_inner": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "tie_word_embeddings": True,
}


def model_folder(path: str | Path) -> Path:
    """The folder that holds config.json: `path` itself, or `path/model` where `path` is a run folder."""
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if not path.exists():
        raise UserError(
            f"{path} does not exist; a model is a folder with config.json and model.safetensors, a run folder, "
            f"or random:SIZE with SIZE one of {', '.join(SIZES)}"
        )
    raise UserError(f"{path} is no model folder: it has no config.json" + ("" if path.is_dir() else " (it is a file)"))


def load_gpt(folder: str | Path) -> GPT:
    """The model of a folder, in float32, in eval mode. Tokenizer files are not needed.

    Raises UserError, naming file and tensor, where the folder is not exactly one GPT-2.
    """
    folder = model_folder(folder)
    model = GPT(_read_config(folder / "config.json"))
    state = _read_weights(folder / "model.safetensors")
    expected = model.state_dict()
    expected.pop("lm_head.weight")  # tied to transformer.wte.weight
    if "lm_head.weight" in state:
        head = state.pop("lm_head.weight")
        if not torch.equal(head, state.get("transformer.wte.weight", head)):
            raise UserError(
                f"{folder}: lm_head.weight differs from transformer.wte.weight; an untied head cannot be read"
            )
    for name in [name for name in state if name.endswith(TRANSPOSED)]:
        state[name] = state[name].mT if state[name].dim() > 1 else state[name]
    for what, names in (
        ("is missing", expected.keys() - state.keys()),
        ("is no part of this GPT-2", state.keys() - expected.keys()),
    ):
        if names:
            raise UserError(f"{folder / 'model.safetensors'}: {min(names)} {what} ({len(names)} such)")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise UserError(
                f"{folder / 'model.safetensors'}: {name} is {tuple(state[name].shape)}, config.json asks for {tuple(value.shape)}"
            )
    model.load_state_dict(
        {name: state[name].float() for name in expected} | {"lm_head.weight": state["transformer.wte.weight"].float()}
    )
    return model.eval()


def _read_config(file: Path) -> GPTConfig:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        architecture = found.get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} is no JSON object: {error}") from None
    if architecture != "gpt2":
        raise UserError(f"{file}: the model is a {architecture!r}; only model_type 'gpt2' can be read")
    for name, value in FIXED.items():
        if found.get(name, value) != value and not (name == "n_inner" and found[name] == 4 * found.get("n_embd", 768)):
            raise UserError(f"{file}: {name} is {found[name]!r}; this GPT-2 computes {value!r}")
    shape = {
        name: found[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head") if name in found
    }
    wrong = [name for name, value in shape.items() if type(value) is not int or value < 1]
    if wrong:
        raise UserError(f"{file}: {wrong[0]} is {shape[wrong[0]]!r}, it must be a whole number above 0")
    epsilon = found.get("layer_norm_epsilon", 1e-5)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise UserError(f"{file}: layer_norm_epsilon is {epsilon!r}, it must be a number between 0 and 1")
    try:
        return GPTConfig(**shape, layer_norm_epsilon=epsilon)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        pickled = file.with_name("pytorch_model.bin").exists()
        raise UserError(
            f"{file} is missing"
            + (
                "; pytorch_model.bin is a pickle, which can run code, and is not read: load it with "
                "transformers and save_pretrained it anew"
                if pickled
                else ""
            )
        )
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is no whole safetensors file: {error}") from None
    tensors = {name: value for name, value in tensors.items() if not name.endswith(BUFFERS)}
    return {
        name if name.startswith(("transformer.", "lm_head.")) else "transformer." + name: value
        for name, value in tensors.items()
    }


def save_gpt(folder: str | Path, model: GPT, tokenizer: Tokenizer) -> None:
    """Write a model folder in float32. It is whole or absent: written beside, then renamed into its place."""
    c = model.config
    state = {
        name: value.detach().float().cpu() for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    state = {name: (value.t() if name.endswith(TRANSPOSED) else value).contiguous() for name, value in state.items()}
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_positions": c.n_positions,
        "n_ctx": c.n_positions,
        "n_embd": c.n_embd,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        **FIXED,
        "layer_norm_epsilon": c.layer_norm_epsilon,
        "attn_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "resid_pdrop": c.dropout,
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": tokenizer.end_of_text,
        "torch_dtype": "float32",
    }
    tokens = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": c.n_positions,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "add_prefix_space": False,
    }
    with whole_folder(folder) as part:
        save_file(state, part / "model.safetensors", metadata={"format": "pt"})
        os.chmod(part / "model.safetensors", 0o644)  # safetensors leaves it to its owner alone
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (part / "tokenizer_config.json").write_text(json.dumps(tokens, indent=2) + "\n")
        tokenizer.save(part)


def random_gpt(size: str, vocab_size: int, seed: int) -> GPT:
    """A model of one of the SIZES with random weights. Raises UserError for another size."""
    if size not in SIZES:
        raise UserError(f"random:{size}: there is no such size; there are {', '.join(SIZES)}")
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=vocab_size, **SIZES[size]))


def fingerprint(model: GPT) -> str:
    """SHA-256 of every parameter, by name: two models with the same one compute the same."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
