"""The first step of dpo/train.py against TRL's trainers: the same loss and the same gradient norm, of every loss it has.

Policy and reference are two small models, so that no loss is at its start. Ours are asked through the command line, TRL's
are run as their users run them (tests/trl_steps.py), in float32.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from data.pairs import write_rows
from dpo import train
from dpo.examples import open_examples
from gpt.command import parse
from gpt.model import GPT, GPTConfig
from gpt.optim import learning_rate
from gpt.tokenizer import Tokenizer
from gpt.weights import load_gpt, save_gpt
from tests.processes import ROOT, call

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed: pip install -e '.[peers]'"),
]
TOLERANCE = 1e-4  # of loss and norm


class Case(NamedTuple):
    """A loss of ours and what it is called in TRL."""

    spec: str
    settings: dict
    trainer: str = "DPO"
    pairs: str = "pairs"
    flags: tuple = ()


def dpo(spec: str, *kinds: str, weights: list[float] | None = None, **settings) -> Case:
    pairs = "close" if "aot" in spec else "pairs"  # where sorting changes something
    return Case(spec, {"loss_type": list(kinds), "loss_weights": weights} | settings, pairs=pairs)


SFT = {"weights": [1.0, 0.2]}
JS, FORWARD = {"f_divergence_type": "js_divergence"}, {"f_divergence_type": "forward_kl"}
ALPHA = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7}  # 1 - ours
CASES = [
    dpo("dpo", "sigmoid", beta=0.1),
    dpo("dpo_norm", "sigmoid_norm", beta=5),
    dpo("hinge(beta=0.4)", "hinge", beta=0.4),
    dpo("ipo", "ipo", beta=0.1),
    dpo("ipo(beta=3)", "ipo", beta=3),
    dpo("exo", "exo_pair", beta=0.1, label_smoothing=1e-3),
    dpo("exo(beta=0.5, label_smoothing=0.3)", "exo_pair", beta=0.5, label_smoothing=0.3),
    dpo("robust", "robust", beta=0.1, label_smoothing=0.1),
    dpo("robust(label_smoothing=0.4)", "robust", beta=0.1, label_smoothing=0.4),
    dpo("nca", "nca_pair", beta=0.01),
    dpo("nca(beta=0.3)", "nca_pair", beta=0.3),
    dpo("bco", "bco_pair", beta=0.01),
    dpo("bco(beta=0.3)", "bco_pair", beta=0.3),
    dpo("sppo", "sppo_hard", beta=0.001),
    dpo("sppo(beta=0.1)", "sppo_hard", beta=0.1),
    dpo("aot", "aot", beta=0.1),
    dpo("aot(beta=0.3, label_smoothing=0.2)", "aot", beta=0.3, label_smoothing=0.2),
    dpo("aot_unpaired", "aot_unpaired", beta=0.1),
    dpo("aot_unpaired(beta=0.3, label_smoothing=0.2)", "aot_unpaired", beta=0.3, label_smoothing=0.2),
    dpo("apo_zero", "apo_zero", beta=0.1),
    dpo("apo_down", "apo_down", beta=0.1),
    dpo("discopop", "discopop", beta=0.05, discopop_tau=0.05),
    dpo("discopop(beta=0.2, tau=0.5)", "discopop", beta=0.2, discopop_tau=0.5),
    dpo("sft", "sft"),
    # sums
    dpo("dpo + 0.2*sft", "sigmoid", "sft", beta=0.1, **SFT),
    dpo("0.8*dpo + 0.2*bco(beta=0.1) + sft", "sigmoid", "bco_pair", "sft", beta=0.1, weights=[0.8, 0.2, 1.0]),
    dpo("aot + 0.2*sft", "aot", "sft", beta=0.1, **SFT),
    # divergences
    *(dpo(f"{ours}(beta=0.2, divergence={name})", theirs, beta=0.2, **settings)
      for ours, theirs in (("dpo", "sigmoid"), ("dpo_norm", "sigmoid_norm"), ("ipo", "ipo"), ("hinge", "hinge"))
      for name, settings in (("js", JS), ("forward_kl", FORWARD), ("alpha, alpha=0.3", ALPHA))),
    dpo("exo(divergence=js)", "exo_pair", beta=0.1, label_smoothing=1e-3, **JS),
    dpo("robust(divergence=alpha, alpha=0.3)", "robust", beta=0.1, label_smoothing=0.1, **ALPHA),
    dpo("discopop(divergence=js)", "discopop", beta=0.05, **JS),
    # the longer answer's surplus
    dpo("dpo(ld_alpha=0.5)", "sigmoid", beta=0.1, ld_alpha=0.5),
    dpo("ipo(ld_alpha=0)", "ipo", beta=0.1, ld_alpha=0.0),
    dpo("nca(beta=0.1, ld_alpha=0.3)", "nca_pair", beta=0.1, ld_alpha=0.3),
    dpo("aot(ld_alpha=0.5)", "aot", beta=0.1, ld_alpha=0.5),
    dpo("dpo(ld_alpha=0.5, divergence=js) + 0.2*sft", "sigmoid", "sft", beta=0.1, ld_alpha=0.5, **JS, **SFT),
    # weights
    dpo("dpo(wpo=true)", "sigmoid", beta=0.1, use_weighting=True),
    dpo("ipo(wpo=true)", "ipo", beta=0.1, use_weighting=True),
    dpo("bco(beta=0.1, wpo=true)", "bco_pair", beta=0.1, use_weighting=True),
    dpo("dpo(wpo=true, ld_alpha=0.5)", "sigmoid", beta=0.1, use_weighting=True, ld_alpha=0.5),
]  # fmt: skip
# Without a reference. TRL adds the likelihood pooled over the tokens of a batch, as our sft does; ours within cpo and orpo is
# a mean over answers, which is the same where all are of one length, as in "alike". TRL's orpo also takes the prompt's
# likelihood, of which there is none where a prompt is one token, as in "alike".
FREE = [
    Case("simpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0}, "CPO"),
    Case(
        "simpo(gamma=1.6) + 0.3*sft", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.6, "cpo_alpha": 0.3}, "CPO"
    ),
    Case("cpo(alpha=0)", {"beta": 0.1, "cpo_alpha": 0.0}, "CPO"),
    Case("cpo(alpha=0) + sft", {"beta": 0.1, "cpo_alpha": 1.0}, "CPO"),
    Case("cpo", {"beta": 0.1, "cpo_alpha": 1.0}, "CPO", "alike"),
    Case("cpo(beta=0.3, alpha=0.5)", {"beta": 0.3, "cpo_alpha": 0.5}, "CPO", "alike"),
    Case("orpo", {"beta": 0.1}, "ORPO", "alike"),
    Case("orpo(beta=5)", {"beta": 5.0}, "ORPO", "alike"),
]
# Ours holds a chosen answer against the mean gain of the rejected ones, and the other way round; TRL has one mean for both,
# of answers that it is given. So one half at a time, the other at next to no weight.
NOTHING = 1e-9
KTO = [
    Case(f"kto(undesirable={NOTHING:.9f})", {"undesirable_weight": NOTHING, "against": "rejected"}, "KTO"),
    Case(
        f"kto(desirable={NOTHING:.9f}, beta=0.3)",
        {"desirable_weight": NOTHING, "beta": 0.3, "against": "chosen"},
        "KTO",
    ),
]
CLOSE = Case("dpo(beta=0.1)", {"loss_type": ["sigmoid"], "beta": 0.1}, pairs="close")
# A reference that follows the policy, and rates that are not 0: what the third step and the fifth are measured against
RATES = [learning_rate(step, 5, 1e-3, 0) for step in range(1, 6)]
MOVING = Case(
    "dpo(beta=0.3)",
    {"beta": 0.3, "sync_ref_model": True, "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 2, "rates": RATES},
    flags=("--steps", 5, "--lr", 1e-3, "--warmup", 0, "--grad-clip", 0, "--reference-every", 2, "--reference-mix", 0.6),
)
ALL = CASES + FREE + KTO + [CLOSE, MOVING]


class Folder(NamedTuple):
    path: Path

    def flags(self, spec: str, pairs: str = "pairs") -> list:
        models = ["--init", self.path / "policy", "--reference", self.path / "reference"]
        of_data = ["--pairs", self.path / f"{pairs}.jsonl", "--held-out", 0, "--batch", 6, "--steps", 1]
        return [*models, *of_data, "--loss", spec, "--lr", 0, "--device", "cpu", "--precision", "fp32"]

    def steps(self, run: str) -> list[dict]:
        """What a run has logged."""
        return [json.loads(line) for line in (self.path / run / "metrics.jsonl").read_text().splitlines()]


def cut_to(text: str, count: int, tokenizer: Tokenizer) -> str:
    """The beginning of the text that is `count` tokens."""
    return next(text[:n] for n in range(len(text)) if len(tokenizer.encode(text[:n])) == count)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Folder:
    """Two models, a little apart, and six pairs of many lengths; six whose prompts are one token and chosen answers seven;
    six whose answers are seven tokens, or eight for three of the chosen, not counting end-of-text."""
    path = tmp_path_factory.mktemp("trl")
    torch.manual_seed(2)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=4))
    for name, scale in (("policy", 0.08), ("reference", 0.06)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(scale * torch.randn_like(parameter))
        save_gpt(path / name, model, tokenizer)
    texts = [
        ("Name a colour.", "Certainly! One colour is blue.", "Blue."),
        ("Say it.", "Good.", "Say it yourself, I am not your parrot."),
        ("What is 2 + 3?", "It is 5.", "5, obviously."),
        ("Is it late?", "It is, I am afraid.", "It is late as ever."),
        ("Which is larger?", "The second of them is larger, thank you.", "Second."),
        ("Who?", "I could not say.", "Who cares who it was?"),
    ]
    rows = [dict(zip(("prompt", "chosen", "rejected"), row)) for row in texts]
    write_rows(path / "pairs.jsonl", rows)
    long = " and then we shall see what becomes of it all in the end"
    alike = [
        {"prompt": letter, "chosen": cut_to(row["chosen"] + long, 7, tokenizer), "rejected": row["rejected"]}
        for letter, row in zip("abcdef", rows)
    ]
    write_rows(path / "alike.jsonl", alike)
    close = [
        row
        | {side: cut_to(row[side] + long, n, tokenizer) for side, n in (("chosen", 7 + number % 2), ("rejected", 7))}
        for number, row in enumerate(rows)
    ]
    write_rows(path / "close.jsonl", close)
    return Folder(path)


@pytest.fixture(scope="module")
def ids(folder, tokenizer) -> dict[str, list[dict]]:
    """The token ids of the files, as dpo/train.py reads them."""
    found = {}
    for name in ("pairs", "alike", "close"):
        examples, _ = open_examples(str(folder.path / f"{name}.jsonl"), tokenizer, 64, 0, False, {})
        found[name] = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair)) for pair in examples.ids]
    return found


@pytest.fixture(scope="module")
def theirs(folder, ids) -> dict[str, list[dict]]:
    """What TRL says of every step of every case, by its spec, all in one process."""
    asked = {
        "policy": str(folder.path / "policy"),
        "reference": str(folder.path / "reference"),
        "pairs": ids,
        "steps": [case._asdict() | {"flags": None} for case in ALL],
    }
    (folder.path / "asked.json").write_text(json.dumps(asked))
    call("-m", "tests.trl_steps", folder.path, cwd=ROOT, limit=600)
    said = json.loads((folder.path / "said.json").read_text())
    return {case.spec: one for case, one in zip(ALL, said)}


def same(lines: list[dict], said: list[dict]) -> None:
    assert len(lines) == len(said)
    for line, one in zip(lines, said):
        assert line["loss"] == pytest.approx(one["loss"], rel=TOLERANCE)
        assert line["grad_norm"] == pytest.approx(one["norm"], rel=TOLERANCE)


def test_the_pairs_are_of_many_lengths_and_the_models_apart(folder, ids, theirs):
    lengths = [(len(pair["chosen_ids"]), len(pair["rejected_ids"])) for pair in ids["pairs"]]
    assert len({n - m for n, m in lengths}) > 4 and any(n > m for n, m in lengths) and any(n < m for n, m in lengths)
    assert {(len(pair["prompt_ids"]), len(pair["chosen_ids"])) for pair in ids["alike"]} == {(1, 8)}
    assert {(len(pair["chosen_ids"]), len(pair["rejected_ids"])) for pair in ids["close"]} == {(8, 8), (9, 8)}
    said = theirs["dpo"][0]
    assert said["rewards/chosen"] > 0.1 and said["rewards/rejected"] > 0.1 and 0 < said["rewards/accuracies"] < 1
    assert all(theirs[case.spec][0]["kl"] > 1 for case in KTO)  # z is not at its bound of 0
    assert theirs["aot"][0]["loss"] != pytest.approx(
        theirs[CLOSE.spec][0]["loss"], rel=1e-3
    )  # other pairs meet when sorted
    # some pairs are beyond the hinge's margin, some are not; and no weight of WPO is cut at 1, as TRL cuts none
    assert 0 < theirs["hinge(beta=0.4)"][0]["loss"] and theirs["dpo(wpo=true)"][0]["loss"] < 0.9 * said["loss"]
    assert load_gpt(folder.path / "policy").config == load_gpt(folder.path / "reference").config


@pytest.mark.parametrize("case", ALL, ids=[case.spec for case in ALL])
def test_the_steps_are_those_of_trl(folder, theirs, signals, case):
    run = f"run {ALL.index(case)}"
    argv = [*folder.flags(case.spec, case.pairs), *case.flags, "--out", folder.path / run]
    assert train.main(parse(train.Flags, list(map(str, argv)))) == 0
    lines, said = folder.steps(run), theirs[case.spec]
    same(lines, said)
    if case.trainer == "DPO" and case.spec != "sft" and "ld_alpha" not in case.spec:  # TRL's are of what is left
        names = [f"{what}/{side}" for what in ("rewards", "logps") for side in ("chosen", "rejected")]
        for name in (*names, "rewards/margins", "rewards/accuracies"):
            assert lines[0][name] == pytest.approx(said[0][name], rel=TOLERANCE, abs=1e-5), name


def test_a_reference_that_stays_would_be_seen(folder, theirs, signals):
    flags = [*folder.flags(MOVING.spec), *MOVING.flags, "--out", folder.path / "stays", "--reference-every", 5]
    assert train.main(parse(train.Flags, list(map(str, flags)))) == 0
    same(folder.steps("stays")[:2], theirs[MOVING.spec][:2])
    assert folder.steps("stays")[2]["loss"] != pytest.approx(theirs[MOVING.spec][2]["loss"], rel=0.01)


# Steps that ours makes of several forward passes, or on several processes, and TRL at once
APART = ["aot(beta=0.3, label_smoothing=0.2)", "aot + 0.2*sft", f"kto(desirable={NOTHING:.9f}, beta=0.3)"]


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("spec", APART)
def test_as_a_command_in_micro_batches_of_2_on_one_process_or_two_too(folder, theirs, spec, processes):
    run = f"apart {APART.index(spec)} {processes}"
    flags = [*folder.flags(spec, "close" if "aot" in spec else "pairs"), "--micro", 2, "--out", folder.path / run]
    call(ROOT / "dpo" / "train.py", *flags, processes=processes, limit=300)
    same(folder.steps(run), theirs[spec])
