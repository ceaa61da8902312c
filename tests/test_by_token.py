"""dpo/by_token.py: each token's figures computed alone, their texts joined, and the same file from any processes."""

import json
from pathlib import Path

import pytest
import torch

from data.pairs import Pair
from dpo.by_token import MOST, by_token, token_texts
from dpo.examples import in_memory
from dpo.forward import Way
from dpo.moving import Moving
from dpo.order import Limit
from dpo.reference import reference_logps
from dpo.rows import Ids
from dpo.start import TINY
from gpt.model import GPT, GPTConfig
from gpt.parallel import World, placed
from gpt.tokenizer import Tokenizer
from tests.processes import gang
from tests.test_train import train

ONE = World(0, 1, torch.device("cpu"))
WAY = Way(Limit(3, 60), "fp32", ONE)


def alone(model, ids: Ids, answer: list[int]) -> list[float]:
    """log p of each token of an answer, all of the text in one row."""
    tokens = torch.tensor([ids.prompt + answer])
    said = model.eval()(tokens[:, :-1]).log_softmax(-1)[0]  # (T - 1, V)
    every = said.gather(1, tokens[0, 1:, None])[:, 0]
    return every[len(ids.prompt) - 1 :].tolist()


@pytest.fixture
def asked(make_gpt, random_ids, tokenizer):
    """(policy, reference, examples) of 11 pairs of random ids."""
    size = tokenizer.vocab_size
    policy, reference = (make_gpt(seed, vocab_size=size) for seed in (1, 2))
    ids = random_ids(11, vocabulary=tokenizer.end_of_text)
    return policy, reference, in_memory([Pair("p", "c", "r", row) for row in range(1, 12)], ids)


@torch.no_grad()
@pytest.mark.parametrize("kept", [True, False])
def test_every_token_has_what_both_models_say_of_it_alone(asked, tokenizer, kept):
    policy, reference, examples = asked
    said = (
        reference_logps(reference, examples, range(11), WAY, "by-token")
        if kept
        else Moving(reference.eval(), examples, WAY, 1, 0.5)
    )
    rows = by_token(policy, said, examples, 0.3, WAY, tokenizer)
    assert [row["row"] for row in rows] == list(range(1, 12))
    for row, ids in zip(rows, examples.ids):
        gains = []
        for name, answer in (("chosen", ids.chosen), ("rejected", ids.rejected)):
            here, there = alone(policy, ids, answer), alone(reference, ids, answer)
            assert row[f"logps/{name}"] == pytest.approx(here, abs=2e-4)
            assert row[f"reference_logps/{name}"] == pytest.approx(there, abs=2e-4)
            assert "".join(row[f"tokens/{name}"]) == tokenizer.decode(answer) and len(row[f"tokens/{name}"]) == len(
                answer
            )
            gains.append(sum(here) - sum(there))
        assert row["rewards/margins"] == pytest.approx(0.3 * (gains[0] - gains[1]), abs=1e-3)


def test_a_row_with_one_answer_has_no_margin(make_gpt, tokenizer):
    model = make_gpt(vocab_size=tokenizer.vocab_size)
    examples = in_memory([Pair("p", "c", None, 1)], [Ids([1, 2], [3, 4], [])])
    said = reference_logps(model, examples, [0], WAY, "one answer")
    (row,) = by_token(model, said, examples, 1.0, WAY, tokenizer)
    assert row.keys() == {"row", "prompt", "tokens/chosen", "logps/chosen", "reference_logps/chosen"}


def test_of_many_pairs_some_from_all_over_are_asked_about(make_gpt, tokenizer):
    model = make_gpt(vocab_size=tokenizer.vocab_size)
    count = 3 * MOST + 1
    examples = in_memory([Pair("p", "c", "r", row) for row in range(count)], [Ids([1], [2], [3])] * count)
    said = reference_logps(model, examples, range(count), WAY._replace(limit=Limit(400, 9999)), "many")
    rows = [row["row"] for row in by_token(model, said, examples, 1.0, WAY._replace(limit=Limit(400, 9999)), tokenizer)]
    assert len(rows) == len(set(rows)) == MOST and rows[0] == 0 and rows[-1] >= 3 * MOST - 3


@pytest.mark.parametrize("text", ["héllo wörld", "日本語", "🦋 wings", "plain", "a\nb"])
def test_the_texts_of_tokens_are_the_text_though_characters_are_cut(text, tokenizer):
    ids = tokenizer.encode(text)
    texts = token_texts(ids, tokenizer)
    assert "".join(texts) == text and len(texts) == len(ids)
    assert text.isascii() or "" in texts  # this vocabulary has none of these characters whole


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "tokens.jsonl").read_text(encoding="utf-8").splitlines()]


# each in turn: a reference that was asked beforehand, and one that moves, of models that are whole and in parts
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from gpt.joining import join
from tests.test_by_token import every_way
torch.set_num_threads(1)
with join("cpu", 60) as world:
    found = every_way(world)
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(found))
os._exit(0)
"""


def every_way(world: World) -> list[list[dict]]:
    """What by_token gives for models that are copies and in parts, beside either kind of reference."""
    tokenizer = Tokenizer.load(TINY)
    examples = in_memory(
        [Pair("p", "c", "r", row) for row in range(7)], [Ids([1, row], [row + 2] * row, [9, 8]) for row in range(1, 8)]
    )
    way, found = Way(Limit(2, 60), "fp32", world), []
    for shard in (False, True):
        models = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            models.append(placed(GPT(GPTConfig(tokenizer.vocab_size, 16, 12, 2, 3)), world, shard))
        policy, reference = models
        with torch.no_grad():
            kept = reference_logps(reference, examples, range(7), way, f"every way {shard} {world.size}")
        for said in (kept, Moving(reference.eval(), examples, way, 1, 0.5)):
            found.append(by_token(policy, said, examples, 0.3, way, tokenizer))
    return found


@pytest.mark.slow
def test_processes_and_parts_change_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for code, _, errors in gang(script, tmp_path / "found.json", size=3).values():
        assert code == 0, errors
    for ours, theirs in zip(every_way(ONE), json.loads((tmp_path / "found.json").read_text()), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys() == b.keys() and a["tokens/chosen"] == b["tokens/chosen"] and a["row"] == b["row"]
            for name in ("logps/chosen", "reference_logps/chosen", "logps/rejected", "reference_logps/rejected"):
                assert a[name] == pytest.approx(b[name], abs=2e-4)


@pytest.mark.slow
def test_the_margins_of_the_file_are_those_of_the_last_evaluation_and_sft_writes_none(toy):
    train(toy, "--steps", 3, "--held-out", 0.3, "--eval-every", 0, "--out", toy / "margins")
    rows = rows_of(toy / "margins")
    last = json.loads((toy / "margins/metrics.jsonl").read_text().splitlines()[-1])
    assert len(rows) == last["pairs"]  # few enough to be all of them
    assert sum(row["rewards/margins"] for row in rows) / len(rows) == pytest.approx(last["rewards/margins"], abs=1e-4)
    train(toy, "--steps", 1, "--loss", "sft", "--eval-every", 0, "--out", toy / "sft-run")
    assert not (toy / "sft-run/tokens.jsonl").exists() and (toy / "sft-run/report.html").exists()
