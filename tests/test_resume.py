"""dpo/resume.py: which checkpoints a run leaves and when, which of them is best, and what is exported."""

import hashlib
import json
import shutil

import pytest
from safetensors.torch import load_file

from gpt.weights import load_gpt
from tests.processes import call
from tests.test_train import TRAIN, flags_for, metrics, train


def steps_kept(run) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def assert_same(run, checkpoint) -> None:
    """The model that was exported is that of the checkpoint."""
    kept = load_file(checkpoint / "model.safetensors")
    for name, value in load_gpt(run).named_parameters():
        assert value.equal(kept[name]), name


@pytest.mark.parametrize("processes", [0, 2])
def test_a_checkpoint_is_due_when_the_minutes_are_over_and_changes_no_bit(toy, processes):
    common = ["--steps", 4, "--eval-every", 0, "--keep", 9]
    for minutes in (0, 1e-6):
        train(
            toy, *common, "--save-minutes", minutes, "--out", toy / f"clock-{processes}-{minutes}", processes=processes
        )
    never, always = toy / f"clock-{processes}-0", toy / f"clock-{processes}-1e-06"
    assert steps_kept(never) == [4] and steps_kept(always) == [1, 2, 3, 4]
    assert_same(always, never / "checkpoints/step-000004")


@pytest.fixture(scope="module")
def overtrained(toy):
    """A run of 8 steps that ends with a rate so high that its last evaluations are worse than its first ones."""
    run = toy / "overtrained"
    flags = "--loss sft --steps 8 --lr 1.0 --eval-every 1 --save-every 1 --grad-clip 0 --warmup 0.9".split()
    done = train(toy, *flags, "--out", run)
    return run, flags, done.stdout


def test_the_best_is_kept_beside_the_newest_and_named_at_the_end(overtrained):
    run, _, said = overtrained
    losses = {line["step"]: line["loss"] for line in metrics(run) if line["split"] == "held-out" and line["step"] > 0}
    best = min(losses, key=losses.get)
    assert best < 7  # or this run shows nothing
    assert steps_kept(run) == [best, 7, 8]
    assert f"step-{best:06d}, by the loss on held-out pairs; --export best writes that one" in said
    assert_same(run, run / "checkpoints/step-000008")


def test_export_best_writes_the_weights_of_the_best_step_and_the_run_goes_on_from_the_last(toy, overtrained):
    run, flags, _ = overtrained
    again = toy / "exported"
    shutil.copytree(run, again)
    shutil.rmtree(again / "model")
    best = steps_kept(run)[0]
    done = train(toy, *flags, "--out", again, "--resume", "--export", "best")
    assert f"step-{best:06d}, by the loss on held-out pairs; exported" in done.stdout
    assert_same(again, run / f"checkpoints/step-{best:06d}")
    assert json.loads((again / "run.json").read_text())["flags"]["export"] == "best"


def test_card_and_tokens_are_of_the_model_that_is_exported(toy, tmp_path):
    flags = "--steps 6 --lr 1.0 --eval-every 1 --save-every 1 --grad-clip 0 --warmup 0.9 --export best --keep 9".split()
    train(toy, *flags, "--out", tmp_path / "run")
    held_out = {line["step"]: line for line in metrics(tmp_path / "run") if line["split"] == "held-out"}
    best = min(range(1, 7), key=lambda step: held_out[step]["loss"])
    assert best < 6 and held_out[best]["rewards/margins"] != pytest.approx(held_out[6]["rewards/margins"], rel=0.01)
    card = (tmp_path / "run/model/README.md").read_text()
    assert f"| weights | of step {best}, the best on held-out pairs |" in card
    assert f"| held-out pairs | step 0 | step {best} |" in card
    rows = [json.loads(line) for line in (tmp_path / "run/tokens.jsonl").read_text().splitlines()]
    assert len(rows) == held_out[best]["pairs"]
    margin = sum(row["rewards/margins"] for row in rows) / len(rows)
    assert margin == pytest.approx(held_out[best]["rewards/margins"], rel=1e-3, abs=1e-4)


def test_a_run_that_goes_on_with_other_numbers_of_the_reference_says_so(toy, tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"

    def resume() -> str:
        """From the checkpoint before the last one."""
        shutil.rmtree(run / "model", ignore_errors=True)
        shutil.rmtree(run / "checkpoints/step-000004", ignore_errors=True)
        words = flags_for(toy, "--steps", 4, "--save-every", 2, "--out", run, "--resume")
        return call(TRAIN, *words, GPT_DPO_CACHE=str(cache)).stdout

    assert "reference asked about" in resume() and "other numbers" not in resume()
    (kept,) = (path for path in (cache / "references").iterdir() if path.stat().st_size > 4000)
    digest, data = kept.read_bytes()[:32], bytearray(kept.read_bytes()[32:])
    assert hashlib.sha256(data).digest() == digest
    data[0] ^= 1  # the last bit of a log-probability
    kept.write_bytes(hashlib.sha256(data).digest() + data)
    assert "by rounding it says other numbers than before" in resume()
