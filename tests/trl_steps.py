"""The first steps of TRL's trainers on given ids, in a process of its own: `python -m tests.trl_steps FOLDER`.

FOLDER/asked.json has the model folders, pairs of ids by name, and what is asked: a trainer, its settings, which pairs.
FOLDER/said.json will have of each, step by step over all those pairs at once, the loss, the norm of the gradient, and what
the trainer logged. The ids are ours, and nothing else of ours comes near: model, forward pass, loss and gradient are
transformers' and TRL's.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}  # read at import

import torch
from datasets import Dataset
from transformers import AutoTokenizer, GPT2LMHeadModel
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class Noting:
    """A trainer that notes the loss of each step, the norm of the gradient and what it would log, and keeps given rates."""

    def training_step(self, model, *rest):
        loss = super().training_step(model, *rest)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        logged = getattr(self, "_metrics", None) or self._stored_metrics
        line = {name: values[-1] for name, values in logged["train"].items()}
        self.noted.append(line | {"loss": loss.item(), "norm": torch.nn.utils.get_total_norm(gradients).item()})
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        rates = [*self.rates, 0.0]  # asked once more after the last step
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rates.__getitem__)
        return self.lr_scheduler


class AsTheyAre:
    """A trainer that takes ids as they are given."""

    def _prepare_dataset(self, dataset, *rest):
        return dataset


class Labelled:
    """The same for trainers that want sequences and labels: the prompt's are not counted."""

    def tokenize_row(self, row, model=None):
        found = {"prompt_input_ids": row["prompt_ids"], "prompt_attention_mask": [1] * len(row["prompt_ids"])}
        for side in ("chosen", "rejected"):
            answer = row[f"{side}_ids"]
            found[f"{side}_input_ids"] = row["prompt_ids"] + answer
            found[f"{side}_attention_mask"] = [1] * len(row["prompt_ids"] + answer)
            found[f"{side}_labels"] = [-100] * len(row["prompt_ids"]) + answer
        return found


def unpaired(rows: list[dict], against: str) -> list[dict]:
    """The halves of pairs for KTO, whose z is taken over the pairs' `against` answers."""
    halves = [(row, side) for side in ("chosen", "rejected") for row in rows]
    return [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row[f"{side}_ids"],
            "KL_completion_ids": row[f"{against}_ids"],
            "label": side == "chosen",
        }
        for row, side in halves
    ]


class DPO(Noting, AsTheyAre, DPOTrainer):
    config = DPOConfig


class KTO(Noting, AsTheyAre, KTOTrainer):
    config = KTOConfig


class CPO(Noting, Labelled, CPOTrainer):
    config = CPOConfig


class ORPO(Noting, Labelled, ORPOTrainer):
    config = ORPOConfig


def steps(trainer: str, settings: dict, rows: list[dict], policy: str, reference: str) -> list[dict]:
    cls, settings = {"DPO": DPO, "KTO": KTO, "CPO": CPO, "ORPO": ORPO}[trainer], dict(settings)
    rates = settings.pop("rates", [0.0])
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.pad_token = tokenizer.eos_token
    models = [GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32) for folder in (policy, reference)]
    if cls is KTO:
        rows = unpaired(rows, settings.pop("against"))
    elif cls in (CPO, ORPO):  # which look at the texts, and then at nothing that comes of them
        rows = [row | {"prompt": "a", "chosen": "b", "rejected": "c"} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        config = cls.config(
            output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False, max_steps=len(rates), max_grad_norm=0.0,
            per_device_train_batch_size=len(rows), learning_rate=1.0, adam_beta2=0.95, weight_decay=0.01,
            logging_strategy="no", save_strategy="no",
            report_to="none", disable_tqdm=True, dataloader_pin_memory=False, **settings,
        )  # fmt: skip
        more = {"ref_model": models[1]} if cls in (DPO, KTO) else {}
        found = cls(
            models[0],
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            **more,
        )
        found.noted, found.rates = [], rates
        found.train()
    return found.noted


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    asked = json.loads((folder / "asked.json").read_text())
    said = [
        steps(one["trainer"], one["settings"], asked["pairs"][one["pairs"]], asked["policy"], asked["reference"])
        for one in asked["steps"]
    ]
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
