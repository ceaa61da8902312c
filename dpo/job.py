"""A training run before it begins: everything that can be wrong is found here, in one process, and nothing is written.

Then the reference is asked, on every process.
"""

import hashlib
import math
from dataclasses import asdict
from pathlib import Path

import torch

from data.pairs import summary
from dpo.examples import EMBEDDED, check_margins, open_examples
from dpo.forward import Way, fitting
from dpo.loggers import check_loggers
from dpo.losses import parse_loss
from dpo.moving import Moving, frozen_copy
from dpo.order import pairs_met, steps_in_epochs
from dpo.reference import Reference, no_reference, reference_logps
from dpo.run_folder import RunFolder
from dpo.start import open_model
from gpt import precision
from gpt.command import UserError, check_range
from gpt.device import check_device
from gpt.launched import is_restarted, process_count
from gpt.lora import adapter_size, adapters, add_lora, check_rank, without_adapters
from gpt.model import GPT
from gpt.optim import default_learning_rate
from gpt.parallel import World, least, placed
from gpt.weights import fingerprint

# Flags that settings leave out: they change nothing that is computed, or stand there resolved.
FREE = frozenset(
    "out resume dry_run device eval_every log_every log_to save_every save_minutes micro precision init reference pairs epochs "
    "shard keep export timeout debug".split()
)


class Job:
    """The models, the pairs and the loss that the flags of dpo/train.py name. Raises UserError for what cannot be used."""

    def __init__(self, flags):
        _check_ranges(flags)
        check_device(flags.device)
        check_loggers(flags.log_to)
        self.flags, self.loss = flags, parse_loss(flags.loss, flags.beta)
        if flags.out:
            RunFolder(flags.out).check_free(flags.resume or is_restarted())
        elif flags.resume:
            raise UserError("--resume needs --out, the run folder to continue")
        if flags.reference_every and not self.loss.needs_reference:
            raise UserError(f"--reference-every: the loss {self.loss} has no reference")
        self.policy, self.tokenizer, self.origin = open_model(flags.init, flags.seed, flags.dropout)
        self.reference, self.reference_origin = None, ""  # none: the policy before its first update
        if flags.reference and self.loss.needs_reference:
            self.reference, tokenizer, self.reference_origin = open_model(flags.reference)
            if tokenizer.ids != self.tokenizer.ids:
                raise UserError(f"--reference {flags.reference} has another vocabulary than the model that is trained")
        check_rank(flags.lora, self.policy.config)
        self.parameters = self.policy.parameter_count  # adapters, which come later, not counted
        context = self.policy.config.n_positions
        if flags.max_length > context:
            raise UserError(f"--max-length is {flags.max_length}, the model's context is {context}")
        trained = adapter_size(self.policy, flags.lora) if flags.lora else self.parameters
        moved = self.parameters if flags.reference_every else 0
        RunFolder(flags.out or "runs").check_room(4 * (3 * trained + moved), 4 * self.parameters)
        self.counted: dict[str, list[int]] = {}
        self.train, self.held_out = open_examples(
            flags.pairs,
            self.tokenizer,
            flags.max_length or context,
            flags.held_out,
            not self.loss.needs_rejected,
            self.counted,
        )
        for examples in (self.train, self.held_out):
            check_margins(self.loss, examples, flags.pairs)
        processes = process_count()
        if len(self.train.ids) < processes:
            raise UserError(
                f"{flags.pairs or EMBEDDED}: {len(self.train.ids)} pairs to train on, fewer than the {processes} processes; "
                "start fewer (--nproc_per_node)"
            )
        if flags.batch < processes:
            raise UserError(f"--batch is {flags.batch}, fewer pairs a step than there are processes ({processes})")
        self.steps = flags.steps or steps_in_epochs(len(self.train.ids), flags.batch, flags.epochs)
        self.lr = (
            flags.lr
            if flags.lr is not None
            else default_learning_rate(self.parameters, self.loss.needs_rejected, lora=flags.lora > 0)
        )

    def record(self) -> dict:
        """The flags, with paths that hold from any folder and Hub names pinned to a commit."""
        flags = self.flags
        paths = {name: str(Path(path).resolve()) for name in ("pairs", "out") if (path := getattr(flags, name))}
        models = {"init": self.origin if flags.init else "", "reference": self.reference_origin}
        return asdict(flags) | paths | models

    def settings(self, world: World, kept: dict) -> dict:
        """What this run computes, and from what: stored with it, and compared before it is resumed.

        `kept` are the settings of the run that is resumed: its micro-batch, precision and threads are taken over, since
        they change how sums are rounded. All processes call it together, before `models`.
        """
        flags, trained = self.flags, 4 * _trained_count(self.policy)
        still_elsewhere = (
            4 * self.parameters if world.device.type == "cuda" else 0
        )  # on a CPU the model is there already
        coming = 3 * trained + still_elsewhere
        coming //= world.size if flags.shard else 1
        limit = fitting(self.policy.config, world, reserved=coming, micro=flags.micro)
        return {name: value for name, value in asdict(flags).items() if name not in FREE} | {
            "loss": str(self.loss),
            "lr": self.lr,
            "lora_alpha": flags.lora_alpha or (2 * flags.lora or None),
            "steps": self.steps,
            "vocab_size": self.policy.config.vocab_size,
            "micro": limit.pairs,
            "tokens": kept.get("tokens") if kept.get("micro") == limit.pairs else limit.tokens,
            "precision": (flags.precision == "auto" and kept.get("precision"))
            or precision.resolve(flags.precision, world.device, self.parameters),
            "threads": kept.get("threads") or least(torch.get_num_threads(), world),
            "tokenizer_sha256": hashlib.sha256(repr(sorted(self.tokenizer.ids.items())).encode()).hexdigest(),
            "init_sha256": fingerprint(self.policy),
            "reference_sha256": fingerprint(self.reference) if self.reference else None,
            "pairs_sha256": self.train.fingerprint,
            "held_out_sha256": self.held_out.fingerprint,
            "margins_sha256": hashlib.sha256(self.train.margins).hexdigest() if self.loss.needs("margin") else None,
        }

    def models(self, world: World) -> tuple[GPT, GPT]:
        """The policy, with its adapters, and what the reference is asked of, which unless another is named or it moves is
        the policy itself; both on their devices."""
        flags = self.flags
        if flags.lora:
            add_lora(self.policy, flags.lora, flags.lora_alpha, flags.seed)
        if flags.reference_every:
            self.reference = frozen_copy(self.reference or self.policy)
        policy = placed(self.policy, world, flags.shard)
        return policy, placed(self.reference, world, flags.shard) if self.reference else policy

    def references(
        self, policy: GPT, reference: GPT, settings: dict, way: Way
    ) -> tuple[Reference | Moving, Reference | Moving]:
        """What the reference says of the pairs that will be met, and of the held-out ones. Unless it moves, it is asked
        here, before the policy does, and not needed any more."""
        flags, every = self.flags, range(len(self.held_out.ids))
        if not self.loss.needs_reference:
            return no_reference(self.train), no_reference(self.held_out)
        if flags.reference_every:
            moving = Moving(reference, self.train, way, flags.reference_every, flags.reference_mix or 0.6)
            return moving, moving._replace(examples=self.held_out)
        # a resumed run too asks for the pairs of all steps: other batches would round otherwise, and its bits would differ
        met = pairs_met(self.steps, len(self.train.ids), flags.batch, flags.seed)
        sha256 = settings["reference_sha256"] or settings["init_sha256"]
        self.reference = None
        with without_adapters(policy):
            return (
                reference_logps(reference, self.train, met, way, sha256),
                reference_logps(reference, self.held_out, every, way, sha256),
            )

    def describe(self, settings: dict, folder: RunFolder, world: World) -> str:
        """What is about to happen, for the person who waits."""
        model, flags = self.policy, self.flags
        kind = ["sft"] * (not self.loss.needs_rejected) + ["lora"] * (flags.lora > 0)
        rate = "given" if flags.lr is not None else ", ".join(["by size", *kind])
        reference = f"reference {flags.reference or 'the start'}" if self.loss.needs_reference else "no reference"
        processes = f"{world.size} process{'es' * (world.size > 1)}"
        at_once = f"{flags.micro} pairs" if flags.micro else f"up to {settings['tokens']:,} tokens"
        name = flags.init or "data/tiny"
        lines = {
            "model": f"{name}, {self.parameters:,} parameters, {model.config.n_positions} positions",
            "lora": trained_summary(model) if flags.lora else "",
            "memory": memory_summary(model),
            "pairs": f"{flags.pairs or EMBEDDED}, {len(self.train.ids):,} to train on, {len(self.held_out.ids):,} held out",
            "dropped": summary(self.counted),
            "loss": f"{self.loss}, {reference}",
            "steps": f"{self.steps} of {flags.batch} pairs, {processes}, {at_once} a forward pass",
            "lr": f"{self.lr:g} ({rate})",
            "numbers": f"{settings['precision']} on {world.device.type}, {settings['threads']} threads a process",
            "out": str(folder.path),
        }
        return "\n".join(f"{name:9}{text}" for name, text in lines.items() if text)


def trained_summary(model: GPT) -> str:
    """What trains of a model with adapters."""
    one = next(iter(adapters(model).values()))
    trained, every = _trained_count(model), model.parameter_count
    return f"rank {one.rank}, alpha {one.alpha:g}: {trained:,} parameters train, {trained / every:.2%} of all"


def memory_summary(model: GPT) -> str:
    """What a process holds before the first activation: float32 weights; of what trains a gradient and AdamW's two moments."""
    weights, trained = 4 * model.parameter_count, 4 * _trained_count(model)
    return (
        f"{_size(weights)} of weights, {_size(trained)} of gradients, {_size(2 * trained)} of AdamW's moments a process"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 1000 * 2**20 else f"{count / 2**20:.3g} MiB"


def _trained_count(model: GPT) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


AT_LEAST_1 = ("epochs", "batch", "keep", "timeout")
AT_LEAST_0 = (
    "steps",
    "micro",
    "weight_decay",
    "grad_clip",
    "eval_every",
    "log_every",
    "save_every",
    "save_minutes",
    "max_length",
    "lr",
    "lora",
    "reference_every",
)
FRACTIONS = ("warmup", "held_out", "dropout")


def _check_ranges(flags) -> None:
    check_range(flags, AT_LEAST_1, 1)
    check_range(flags, AT_LEAST_0, 0)
    check_range(flags, FRACTIONS, 0, below=1)
    check_range(flags, ("seed",), 0, below=2**31)
    if flags.reference_mix is not None and not flags.reference_every:
        raise UserError("--reference-mix needs --reference-every, the steps after which the reference moves")
    if flags.reference_mix is not None and not 0 < flags.reference_mix <= 1:
        raise UserError(f"--reference-mix is {flags.reference_mix}, it must be above 0 and at most 1")
    if flags.reference_every and flags.lora:
        raise UserError("--reference-every moves a model's own weights; it does not go with --lora")
    if flags.lora_alpha is not None and not flags.lora:
        raise UserError("--lora-alpha needs --lora, the rank of the adapters")
    if flags.lora_alpha is not None and not 0 < flags.lora_alpha < math.inf:
        raise UserError(f"--lora-alpha is {flags.lora_alpha}, it must be above 0")
