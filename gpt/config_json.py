"""config.json: which function the weights of a model folder are of.

    {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, ...}

Every setting that changes the function is obeyed, or refused by name. Beside it stand two small files that other
tools want: generation_config.json and tokenizer_config.json.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

from gpt.command import UserError
from gpt.model import GPTConfig
from gpt.untrusted import printing, read_json, shown
from gpt.vocabulary import END_OF_TEXT

# Other names by which `transformers` knows a setting.
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
SETTINGS = {field.name: field.type for field in fields(GPTConfig) if field.name != "dropout"}
# What is refused before a model of that shape is made, though no file of weights could fill it.
LAYERS, SIZE = 1000, 2**24  # the most layers; the most of everything else that is counted
BYTES = 2**20  # of config.json: it has about 1,000
REFUSED = ("add_cross_attention", "quantization_config", "pruned_heads")  # of what they ask, GPT computes nothing


def read_config(file: Path, dropout: float = 0.0) -> GPTConfig:
    """The shape of the model, with this dropout, not the file's.

    Raises UserError, naming the setting, for what GPT does not compute.
    """
    found = read_json(file, BYTES)
    if not isinstance(found, dict) or "model_type" not in found:
        raise UserError(f"{file} does not say which model it is: it must be a JSON object with model_type 'gpt2'")
    if found["model_type"] != "gpt2":
        raise UserError(f"{file}: the model is a {shown(found['model_type'])}; only model_type 'gpt2' can be read")
    for name in REFUSED:
        if found.get(name):
            raise UserError(
                f"{file}: {name} is set; GPT computes a plain decoder with floating-point weights and nothing else"
            )
    found = {ALIASES[name]: value for name, value in found.items() if name in ALIASES} | found
    settings = {name: found[name] for name in SETTINGS if name in found}
    for name, value in settings.items():
        if (wanted := _wanted(name, value)) is not None:
            raise UserError(f"{file}: {name} is {shown(value)}, it must be {wanted}")
    try:
        return GPTConfig(**settings, dropout=dropout)
    except ValueError as error:
        raise UserError(f"{file}: {printing(str(error), 300)}") from None


def _wanted(name: str, value) -> str | None:
    """What a setting must be, or None where `value` is it."""
    kind, most = SETTINGS[name], LAYERS if name == "n_layer" else SIZE
    if kind is bool:
        return None if type(value) is bool else "true or false"
    if kind is float:
        return None if type(value) is float and 0 < value < 1 else "a number between 0 and 1"
    if kind is str:
        return None if type(value) is str else "text"
    if value is None and kind == int | None:
        return None
    return None if type(value) is int and 0 < value <= most else f"a whole number above 0 and at most {most:,}"


def write_configs(folder: Path, config: GPTConfig, end_of_text: int) -> None:
    """Write config.json, generation_config.json and tokenizer_config.json into a folder that exists."""
    ends = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    dropout = {f"{place}_pdrop": config.dropout for place in ("attn", "embd", "resid")}
    shape = {name: value for name, value in asdict(config).items() if name in SETTINGS}
    written = {
        "config.json": {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **shape,
            "n_ctx": config.n_positions,
            **dropout,
            **ends,
            "torch_dtype": "float32",
        },
        "generation_config.json": ends | {"pad_token_id": end_of_text},  # of several prompts the short ones are padded
        "tokenizer_config.json": {
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": config.n_positions,
            **{f"{name}_token": END_OF_TEXT for name in ("bos", "eos", "unk")},
            "add_prefix_space": False,
        },
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
