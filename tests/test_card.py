"""dpo/card.py: the model card of a finished run against its metrics, and of jobs that are about to begin."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants

from data.pairs import write_rows
from data.rules import preference_rows, sft_rows
from dpo.card import model_card
from dpo.job import Job
from dpo.run_folder import RunFolder
from dpo.train import Flags
from gpt.command import parse
from gpt.parallel import World
from gpt.weights import save_gpt
from tests.processes import ROOT, call
from tests.test_train import COMMIT, hub_cache

NAMES = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}  # in the card, in metrics.jsonl


@pytest.fixture(scope="module")
def toy(tmp_path_factory, make_gpt, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("card")
    save_gpt(folder / "model", make_gpt(vocab_size=tokenizer.vocab_size, n_positions=256), tokenizer)
    write_rows(folder / "pairs.jsonl", preference_rows(37))
    write_rows(folder / "answers.jsonl", sft_rows(37))
    return folder


def rows(card: str) -> list[list[str]]:
    """The cells of every line of a table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]


def front_matter(card: str) -> dict:
    begin, matter, _ = card.split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(matter)


def assert_of_no_machine(card: str, *folders: Path) -> None:
    for folder in (ROOT, Path.home(), *folders):
        assert str(folder) not in card
    assert not re.search(r"(?<![\w.:/])/\w", card.replace("://", ""))  # nothing begins with a slash


@pytest.fixture(scope="module")
def run(toy) -> Path:
    flags = [
        "--loss",
        "dpo(beta=0.3) + 0.5*sft",
        "--batch",
        8,
        "--steps",
        6,
        "--eval-every",
        3,
        "--lora",
        4,
        "--seed",
        3,
    ]
    call(ROOT / "dpo/train.py", "--init", toy / "model", "--pairs", toy / "pairs.jsonl", "--out", toy / "mine", *flags)
    return toy / "mine"


def test_the_card_of_a_run_is_read_by_the_hubs_own_client(run):
    card = ModelCard.load(run / "model/README.md")
    matter = front_matter((run / "model/README.md").read_text())
    assert card.data.to_dict() == matter
    assert matter["library_name"] == "transformers" and matter["pipeline_tag"] == "text-generation"
    assert "dpo" in matter["tags"] and "base_model" not in matter  # a folder of this machine is none


def test_the_card_of_a_run_says_what_was_done_and_nothing_of_the_machine(toy, run):
    text = (run / "model/README.md").read_text()
    count = sum(p.numel() for p in Job(parse(Flags, ["--init", str(toy / "model")])).policy.parameters())
    assert f"# mine\n\nA GPT-2 of {count:,} parameters" in text
    assert "`dpo(beta=0.3) + 0.5*sft` against its start" in text
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out, first = lines[0]["pairs"], lines[1]
    said = {cells[0]: cells[1] for cells in rows(text) if len(cells) == 2}
    assert said["data"] == f"pairs.jsonl: {37 - held_out} pairs, {held_out} more held out"
    assert said["beta"] == "0.3" and said["steps"] == f"6 of {first['pairs']} pairs, seed 3"
    assert said["adapters"].startswith("rank 4") and said["precision"] == "fp32"
    rate = json.loads((run / "run.json").read_text())["settings"]["lr"]
    assert said["learning rate"].split(", ")[0] == f"{rate:g}"
    assert_of_no_machine(text, toy)


def test_the_cards_figures_are_those_of_the_first_and_the_last_held_out_line(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if line["split"] == "held-out"]
    first, last = held_out[0], held_out[-1]
    assert (first["step"], last["step"], len(held_out)) == (0, 6, 3)
    head, _, *figures = [cells for cells in rows((run / "model/README.md").read_text()) if len(cells) == 3]
    assert head == ["held-out pairs", "step 0", "step 6"] and {cells[0] for cells in figures} == set(NAMES)
    for name, before, after in figures:
        for shown, line in ((before, first), (after, last)):
            assert float(shown) == pytest.approx(line[NAMES[name]], rel=5e-4, abs=1e-9)


@pytest.fixture
def card(toy, tmp_path, monkeypatch):
    """A function that makes the card of a job that stands in `toy`, after what a run would have logged."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", hub_cache(tmp_path / "cache", toy / "model")["HF_HUB_CACHE"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(toy)

    def make(*flags, out: str | Path = tmp_path / "run", logged: tuple[dict, ...] = ()) -> str:
        folder = RunFolder(out)
        folder.path.mkdir(exist_ok=True)
        for line in logged:
            folder.log({"split": "held-out", **line})
        job = Job(parse(Flags, [str(word) for word in ("--pairs", toy / "pairs.jsonl", *flags)]))
        return model_card(job, job.settings(World(0, 1, torch.device("cpu")), {}), folder, job.steps)

    return make


@pytest.mark.parametrize(
    "init, base, said",
    [
        ("me/toy", "me/toy", f"trained from `me/toy@{COMMIT}`"),
        (f"me/toy@{COMMIT}", "me/toy", f"trained from `me/toy@{COMMIT}`"),
        ("me/toy@main", "me/toy", f"trained from `me/toy@{COMMIT}`"),
        ("model", None, "/model`"),  # a folder here, though a model on the Hub could bear its name
        ("", None, "the embedded start"),
        ("random:tiny", None, "trained from `random:tiny`"),
    ],
)
def test_a_base_model_is_named_only_where_others_can_have_it(toy, card, init, base, said):
    text = card("--init", init)
    assert front_matter(text).get("base_model") == base and said in text
    assert_of_no_machine(text, toy)


@pytest.mark.parametrize("loss", ["sft", "dpo", "ipo(beta=0.2)"])
def test_answers_alone_have_no_reference_no_beta_and_no_tag_of_preferences(card, loss):
    sft = loss == "sft"
    figures = {"loss": 1.25} if sft else {"loss": 0.5, "rewards/accuracies": 0.75, "rewards/margins": 0.1}
    pairs = "answers.jsonl" if sft else "pairs.jsonl"
    text = card(
        "--init", "model", "--loss", loss, "--pairs", pairs, logged=({"step": 0, **figures}, {"step": 9, **figures})
    )
    tags, names = front_matter(text)["tags"], {cells[0] for cells in rows(text)}
    assert ("sft" in tags) == sft and ("dpo" in tags) != sft and ("against" in text) != sft
    assert ("beta" in names) != sft and ("Accuracy" in text) != sft and f"| data | {pairs}" in text
    assert names >= (set(NAMES) - {"accuracy", "margin"} if sft else set(NAMES)) and ("margin" in names) != sft


def test_another_reference_is_named_without_its_path(toy, card):
    text = card("--init", "model", "--reference", toy / "model")
    assert f"against the folder `{toy.name}/model`" in text and "its start" not in text
    assert_of_no_machine(text, toy)
    assert f"against `me/toy@{COMMIT}`" in card("--init", "model", "--reference", "me/toy")


def test_a_run_without_held_out_pairs_has_a_card_without_figures(card):
    text = card("--init", "model", "--held-out", 0)
    assert front_matter(text) and "held-out pairs" not in text and "Accuracy" not in text
    assert "37 pairs, 0 more held out" in text


def test_the_title_is_the_folders_name_also_where_the_run_is_in_the_folder_one_stands_in(
    toy, tmp_path, card, monkeypatch
):
    assert "\n# run\n" in card("--init", "model")
    monkeypatch.chdir(tmp_path / "run")
    assert "\n# run\n" in card("--init", toy / "model", out=".")
