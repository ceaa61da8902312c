"""Model folders in Hugging Face's GPT-2 format, in and out.

    model/  config.json  model.safetensors  vocab.json  merges.txt

Hugging Face's GPT-2 keeps four matrices of each block the other way round (its Conv1D multiplies x @ W, nn.Linear
x @ W.T), and names what is not the head `transformer.*`. That is all there is to translate. What a folder may do
otherwise: spread its tensors over several files with an index, leave the prefix or the tied head away, carry causal
masks as buffers, keep its numbers in float16 or bfloat16.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt.command import UserError
from gpt.config_json import read_config, write_configs
from gpt.files import whole_folder
from gpt.hub import fetch, is_hub_name
from gpt.model import GPT, SIZES, GPTConfig
from gpt.tokenizer import Tokenizer
from gpt.untrusted import printing, read_json, shown
from gpt.waiting import waiting

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks that old files carry; no weights
PADDING = 256  # columns that a model may have beyond its vocabulary: to a round number, or for tokens added later
HEADER, INDEX = 2**22, 2**24  # bytes of a file's list of tensors and of an index, which GPT-2 XL fills to 2 %
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def model_folder(name: str | Path) -> Path:
    """The folder that holds config.json: `name` itself, `name/model` where that is a run folder, or a fetched Hub model.

    Raises UserError where there is none.
    """
    path = Path(name)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if path.exists():
        raise UserError(
            f"{path} is no model folder: it has no config.json" + ("" if path.is_dir() else " (it is a file)")
        )
    if str(name).startswith("random:"):
        raise UserError(f"{name}: random weights have nothing to say here; they are a start for dpo/train.py --init")
    if is_hub_name(str(name)) and not _is_in_folder(str(name)):
        return fetch(str(name))
    raise UserError(f"{path} does not exist; {_near(path) or MODEL}")


MODEL = "a model is a folder with config.json and model.safetensors, a run folder, or a name on the Hugging Face Hub"


def _is_in_folder(name: str) -> bool:
    """Whether a name of the form OWNER/NAME rather means something below a folder that is here; pinned to a revision it
    never does."""
    first, slash, rest = name.partition("/")
    return bool(slash) and "@" not in rest and (first == "runs" or os.path.isdir(first))


def _near(path: Path, most: int = 4) -> str:
    """The newest models in the nearest folder above `path` that exists, "" where it has none."""
    above = next((folder for folder in path.parents if os.path.isdir(folder)), Path())
    try:
        found = [(-one.stat().st_mtime, printing(one.name)) for one in above.iterdir() if _holds_model(one)]
    except OSError:  # it may not be looked into, or changes meanwhile
        return ""
    names = [name for _, name in sorted(found)]
    return f"{above}/ has {', '.join(names[:most])}{', ...' * (len(names) > most)}" if names else ""


def _holds_model(folder: Path) -> bool:
    return any(os.path.isfile(place / "config.json") for place in (folder, folder / "model"))


@waiting("reading the model")
def load_gpt(folder: str | Path, dropout: float = 0.0) -> GPT:
    """The model of a folder, in float32, in eval mode. Tokenizer files are not needed.

    Raises UserError, naming file and tensor, where the folder is not exactly one GPT-2.
    """
    folder = model_folder(folder)
    config = read_config(folder / "config.json", dropout)
    file, state = _read_tensors(folder)
    expected = GPT.shape(config).state_dict()
    if config.tie_word_embeddings:
        expected.pop(HEAD)
        head = state.pop(HEAD, None)
        if head is not None and not torch.equal(head, state.get(EMBEDDING, head)):
            raise UserError(
                f"{file}: {HEAD} differs from {EMBEDDING}, yet config.json ties the two; if the head is meant to be "
                "its own, set tie_word_embeddings to false there"
            )
    for what, names in (
        ("is missing", expected.keys() - state.keys()),
        ("is no part of this GPT-2", state.keys() - expected.keys()),
    ):
        if names:
            raise UserError(
                f"{file}: {printing(min(names))} {what} ({len(names)} such; config.json describes the model)"
            )
    for name, value in state.items():
        asked = expected[name].shape[::-1] if name.endswith(TRANSPOSED) else expected[name].shape
        if value.shape != asked:
            raise UserError(f"{file}: {name} is {tuple(value.shape)}, config.json asks for {tuple(asked)}")
        if not value.is_floating_point():
            raise UserError(f"{file}: {name} holds {value.dtype}, no floating-point numbers; is the model quantized?")
    for name, value in state.items():
        value = value.t() if name.endswith(TRANSPOSED) else value
        state[name] = value.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return GPT.of(config, state).eval()


class Opened(NamedTuple):
    """A model and its tokenizer, and the name under which the same two can be had again."""

    model: GPT
    tokenizer: Tokenizer
    origin: str  # an absolute path, or NAME@COMMIT on the Hub


def open_folder(name: str | Path, dropout: float = 0.0) -> Opened:
    """The model and tokenizer of a model folder, a run folder, or a Hub model.

    Raises UserError also where the vocabulary is not the model's. A model may have some more columns than there are ids,
    as padding to a round number.
    """
    folder = model_folder(name)
    model, tokenizer = load_gpt(folder, dropout), Tokenizer.load(folder)
    ids, columns = tokenizer.vocab_size, model.config.vocab_size
    if not columns - PADDING < ids <= columns:
        raise UserError(
            f"{folder}: the vocabulary has {ids} ids, the model {columns} (vocab_size); they do not belong together"
        )
    fetched = not Path(name).exists()
    origin = f"{str(name).partition('@')[0]}@{folder.name}" if fetched else str(folder.resolve())
    return Opened(model, tokenizer, origin)


def _read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Every tensor of the folder by its full name, and the file to name in errors: the weights, or their index."""
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if file.is_file() or not index.is_file():
        return file, _named(file, _read_file(file))
    try:
        shards = set(map(str, read_json(index, INDEX)["weight_map"].values()))
    except (UserError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index} is no JSON object with a weight_map of tensors and files") from None
    found: dict[str, Tensor] = {}
    for name in sorted(shards):
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", name, re.ASCII):
            raise UserError(f"{index}: {shown(name)} is not the name of a safetensors file beside it")
        more = _read_file(folder / name)
        if twice := found.keys() & more:
            raise UserError(f"{folder / name}: {printing(min(twice))} stands in another file of the index too")
        found |= more
    return index, _named(index, found)


def _read_file(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        pickled = any(file.parent.glob("pytorch_model*.bin"))
        way_out = (
            "; pytorch_model.bin is a pickle, which can run code, and is not read: load it with transformers and "
            "save_pretrained it anew, on a machine that you can do without"
        )
        raise UserError(f"{file} is missing{way_out if pickled else ''}")
    try:
        with open(file, "rb") as start:
            claimed = int.from_bytes(start.read(8), "little")
        if claimed > HEADER:
            raise UserError(f"{file} is no whole safetensors file of a GPT-2: a header of {claimed:,} bytes")
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is no whole safetensors file: {printing(str(error), 300)}") from None


def _named(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without buffers, by the names that GPT gives them."""
    found = {}
    for name, value in tensors.items():
        full = name if name.startswith(("transformer.", "lm_head.")) else "transformer." + name
        if full in found:
            raise UserError(f"{file}: there is both {printing(name)} and another tensor for {printing(full)}")
        if not name.endswith(BUFFERS):
            found[full] = value
    return found


@waiting("writing the model")
def save_gpt(folder: str | Path, model: GPT, tokenizer: Tokenizer, card: str = "") -> None:
    """Write a model folder in float32. It is whole or absent: written beside, then renamed into its place.

    card: what README.md is to say of the model, where it is to say something.
    """
    state = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state[HEAD]
    state = {name: (value.t() if name.endswith(TRANSPOSED) else value).contiguous() for name, value in state.items()}
    with whole_folder(folder) as part:
        save_file(state, part / "model.safetensors", metadata={"format": "pt"})
        os.chmod(part / "model.safetensors", 0o644)  # safetensors leaves it to its owner alone
        write_configs(part, model.config, tokenizer.end_of_text)
        tokenizer.save(part)
        if card:
            (part / "README.md").write_text(card, encoding="utf-8")


@waiting("drawing random weights")
def random_gpt(size: str, vocab_size: int, seed: int, dropout: float = 0.0) -> GPT:
    """A model of one of the SIZES with random weights. Raises UserError for another size."""
    if size not in SIZES:
        raise UserError(f"random:{size}: there is no such size; there are {', '.join(SIZES)}")
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=vocab_size, dropout=dropout, **SIZES[size]))


@waiting("hashing the model")
def fingerprint(model: GPT) -> str:
    """SHA-256 of the configuration and of every parameter, by name: two models with the same one compute the same.

    The same weights compute something else with more heads or another activation. Dropout, which eval mode ignores, does
    not count.
    """
    config = asdict(model.config) | {"dropout": 0.0, "n_inner": model.config.n_inner or 4 * model.config.n_embd}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
