"""TRL's DPOTrainer, given the very same work, at the settings that are its fastest on this machine.

- bf16, no gradient checkpointing (its default is to do it), no logs, no saves, AdamW fused. Of the optimizers that
  `optim` names, torch's fused one is the fastest on CPU too.
- The ids are ours. On the 1,100 instruction rows with GPT-2's vocabulary TRL's own preparation makes exactly the same
  ones of the strings; to hand them over makes it so for every file, and keeps tokenizing out of the time.
- The pairs lie in the order in which the steps want them, and are read one after the other.
- The rate of each step is ours, by a scheduler. Weight decay leaves biases and gains alone, as ours.

What it does that others do not: entropy, mean logit, accuracy and eight more metrics in every step, which it cannot be
told to leave. What counts as its time: with a live reference the training, from the callback before the first step
to the one after the last; with a precomputed one also the pass over the pairs, from its first batch to the numbers
standing in the data set. The hash that names its cache is not counted.
"""

import os
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # read when the libraries below are imported

import torch
from datasets import Dataset
from transformers import AutoTokenizer, GPT2LMHeadModel, TrainerCallback
from trl import DPOConfig, DPOTrainer

from gpt.device import check_device, peak_memory
from gpt.optim import learning_rate
from tests.bench.systems import BETA, BETAS, SEED, WEIGHT_DECAY, Took, Work, opened, step_pairs

REFERENCE_BATCH = 8  # pairs of the precomputing pass; larger ones pad more and are slower on CPU


class Clock(TrainerCallback):
    """When the first step began and the last one ended."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self.ended = time.perf_counter()


class Peer(DPOTrainer):
    """DPOTrainer that takes ids as they are, notes how long its reference pass took, and follows our rate."""

    reference_seconds = 0.0

    def _prepare_dataset(self, dataset, *rest):
        return dataset

    def _precompute_ref_logps(self, *arguments):
        began = time.perf_counter()
        found = super()._precompute_ref_logps(*arguments)
        self.reference_seconds = time.perf_counter() - began
        return found

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        def share(done: int) -> float:  # asked once more after the last step
            return learning_rate(min(done + 1, num_training_steps), num_training_steps, 1.0, warmup=0.0)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)
        return self.lr_scheduler


def trl(work: Work, precomputed: bool) -> Took:
    """Train as TRL does; the model that came out stands in --out/model."""
    device, examples = check_device(work.device), opened(work)
    order = [i for step in range(1, work.steps + 1) for i in step_pairs(work, examples, step)]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = Dataset.from_list([dict(zip(names, examples.ids[i])) for i in order])
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, use_cpu=device.type == "cpu", bf16=True, gradient_checkpointing=False, seed=SEED,
            per_device_train_batch_size=work.batch, num_train_epochs=1, train_sampling_strategy="sequential",
            precompute_ref_log_probs=precomputed, precompute_ref_batch_size=REFERENCE_BATCH, loss_type="sigmoid",
            beta=BETA, optim="adamw_torch_fused", learning_rate=work.lr, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
            weight_decay=WEIGHT_DECAY, max_grad_norm=0.0, logging_strategy="no", save_strategy="no", report_to="none",
            disable_tqdm=True, dataloader_pin_memory=device.type == "cuda",
        )  # fmt: skip
        trainer = Peer(
            GPT2LMHeadModel.from_pretrained(work.init, dtype=torch.float32),
            args=config,
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(work.init),
        )
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        peak = peak_memory(device)
        if trainer.state.global_step != work.steps:
            raise RuntimeError(f"TRL made {trainer.state.global_step} steps, not {work.steps}")
        trainer.model.save_pretrained(Path(work.out, "model"))
    return Took(len(order), trainer.reference_seconds, clock.ended - clock.began, peak)
