"""The model card of a trained model: README.md in its folder, as the Hugging Face Hub shows it."""

from pathlib import Path

from dpo.examples import EMBEDDED
from dpo.job import Job
from dpo.run_folder import SHOWN, RunFolder, figure
from gpt.hub import is_hub_name

CARD = """---
{base}library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
{tag}---

# {title}

A GPT-2 of {parameters:,} parameters, trained from {init} with the loss `{loss}`{reference}.

| | |
|---|---|
{settings}
{figures}
"""


def model_card(job: Job, settings: dict, folder: RunFolder, step: int) -> str:
    """What a run made, from what and how, and its figures on held-out pairs. step: the one whose weights the model has."""
    flags, preference = job.flags, job.loss.needs_rejected
    facts = {
        "data": f"{Path(flags.pairs).name or EMBEDDED}: {len(job.train.ids):,} pairs, {len(job.held_out.ids):,} more held out",
        "beta": f"{job.loss.beta:g}" if job.loss.needs_reference else "",
        "steps": f"{job.steps:,} of {flags.batch} pairs, seed {flags.seed}",
        "weights": f"of step {step:,}, the best on held-out pairs" if step < job.steps else "",
        "learning rate": f"{job.lr:g}, warmup {flags.warmup:g}, cosine",
        "adapters": f"rank {flags.lora}, merged into the weights" if flags.lora else "",
        "precision": settings["precision"],
    }
    hub = "" if Path(flags.init).exists() or not is_hub_name(flags.init) else flags.init.partition("@")[0]
    return CARD.format(
        base=f"base_model: {hub}\n" if hub else "",
        tag="- dpo\n- preference-optimization\n" if preference else "- sft\n",
        title=folder.path.resolve().name,
        parameters=job.parameters,
        init=_public(job.origin) if flags.init else "the embedded start of gpt-dpo",
        loss=str(job.loss),
        reference=f" against {_public(job.reference_origin)}" if job.loss.needs_reference else "",
        settings="\n".join(f"| {name} | {fact} |" for name, fact in facts.items() if fact),
        figures=_figures([line for line in folder.held_out_metrics() if line["step"] <= step]),
    )


def _public(origin: str) -> str:
    """A path of this machine says nothing elsewhere: its last two parts do."""
    if Path(origin).is_absolute():
        return f"the folder `{'/'.join(Path(origin).parts[-2:])}`"
    return f"`{origin}`" if origin else "its start"


def _figures(lines: list[dict]) -> str:
    if not lines:
        return ""
    first, last = lines[0], lines[-1]
    rows = [
        f"| {short} | {figure(first[long], 4)} | {figure(last[long], 4)} |"
        for short, long in SHOWN.items()
        if long in last
    ]
    head = f"\n| held-out pairs | step {first['step']} | step {last['step']} |\n|---|---|---|\n"
    note = (
        "\n\nAccuracy: how often the chosen answer gained more log-probability than the rejected one, a tie one half."
    )
    return head + "\n".join(rows) + (note if len(rows) > 1 else "")
