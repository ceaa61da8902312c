"""The end of a run: what training did to each token of some pairs, the report, and the trained model.

The model comes last, since a run that has one is finished: one that was killed before makes all of it again on --resume.
"""

from data.pairs import write_rows
from dpo.by_token import by_token
from dpo.job import Job
from dpo.moving import Moving
from dpo.reference import Reference
from dpo.report import write_report
from dpo.resume import export, exported_step
from dpo.run_folder import RunFolder
from dpo.step import Plan
from gpt.device import peak_memory
from gpt.model import GPT
from gpt.parallel import on_main, say


def finish(job: Job, settings: dict, folder: RunFolder, policy: GPT, held_out: Reference | Moving, plan: Plan) -> None:
    """Leave what a run leaves, and say so. held_out: what the reference says of the held-out pairs. All processes take part."""
    world = plan.way.world
    # first, so that the tokens are those of the model that is exported
    step = exported_step(job, folder, policy, world)
    if job.held_out.ids and job.loss.needs_reference:
        way = plan.way._replace(stop=lambda: None)  # nothing is left to be stopped
        rows = by_token(policy, held_out, job.held_out, job.loss.beta, way, job.tokenizer)
        on_main(lambda: write_rows(folder.tokens, rows), world)
    if change := folder.held_out_change() if world.is_main else "":
        say(f"held out {change}", world)
    if world.is_main:
        say(f"report   {write_report(folder)}", world)
    export(job, settings, folder, policy, step, world)
    say(f"done     {folder.model}, peak memory {peak_memory(world.device) / 2**30:.2f} GiB a process", world)
