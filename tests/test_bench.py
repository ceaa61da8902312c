"""tests/bench: the count of the work that is needed, and that every system does the same work, by what it trains."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dpo.rows import Ids
from gpt.attention import Tree, may_look
from gpt.model import GPTConfig
from tests.bench.needed import allowed_looks, matmul_rate, needed_flops
from tests.bench.systems import BETA, collated, loss_of_batch, summed
from tests.bench.table import SYSTEMS, Run, ahead, order

ROOT = Path(__file__).resolve().parents[1]
KEYS = ["system", "pairs_per_second", "peak_bytes", "fraction_of_matmul_rate"]


def bench(script: str, *flags) -> subprocess.CompletedProcess:
    words = [sys.executable, str(ROOT / "tests/bench" / script), *map(str, flags)]
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


def test_the_picture_of_needed_py():
    assert allowed_looks(Ids([10, 11, 12], [20, 21, 0], [30, 0])) == 3 + 12 + 7


def test_needed_flops_are_those_counted_one_by_one_on_the_row(random_ids):
    config = GPTConfig(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    L, d, V = config.n_layer, config.n_embd, config.vocab_size
    for ids in random_ids(20):
        # the row of the design: a trunk, then both branches, each with a copy of the last prompt token
        trunk, chosen, rejected = len(ids.prompt) - 1, len(ids.chosen), len(ids.rejected)
        tree = Tree((trunk, chosen, rejected), (-1, 0, 0))
        tokens, looks, targets = sum(tree.sizes), int(may_look(tree).sum()), chosen + rejected
        forward = 0
        for rows, inner, outer in ((tokens, d, 3 * d), (tokens, d, d), (tokens, d, 4 * d), (tokens, 4 * d, d)):
            forward += L * 2 * rows * inner * outer
        forward += 2 * targets * d * V
        forward += L * looks * (2 * d + 2 * d)  # over all heads a query times a key, and a weight times a value
        assert needed_flops([ids], config) == 3 * forward + forward


def test_needed_flops_of_a_batch_are_the_sum_over_its_pairs(random_ids):
    pairs, config = random_ids(5), GPTConfig()
    assert needed_flops(pairs, config) == sum(needed_flops([ids], config) for ids in pairs)


def test_the_matmul_rate_is_one_that_this_machine_can_have():
    config = GPTConfig(vocab_size=64, n_embd=64, n_layer=1, n_head=2)
    assert 1e6 < matmul_rate(config, torch.device("cpu"), torch.float32, repeats=1) < 1e15


def test_the_seeds_loop_optimizes_the_papers_loss_on_sums(make_gpt, random_ids):
    policy, reference = make_gpt(0), make_gpt(1)
    pairs = random_ids(5)
    batch = collated(pairs, 0, torch.device("cpu"))
    margins = {}
    for model in (policy, reference):
        for side in ("chosen", "rejected"):
            for i, ids in enumerate(pairs):  # each answer in a row of its own, token by token
                answer = getattr(ids, side)
                logp = model(torch.tensor([ids.prompt + answer])).log_softmax(-1)[0]
                places = range(len(ids.prompt) - 1, len(ids.prompt) + len(answer) - 1)
                total = sum(logp[place, token] for place, token in zip(places, answer))
                assert torch.allclose(summed(model, batch, side)[i], total, atol=1e-4)
                margins[model, i] = margins.get((model, i), 0) + (total if side == "chosen" else -total)
    losses = [torch.log1p(torch.exp(-BETA * (margins[policy, i] - margins[reference, i]))) for i in range(len(pairs))]
    assert torch.allclose(loss_of_batch(batch, policy, reference), sum(losses) / len(pairs), atol=1e-4)


def held_out(done: subprocess.CompletedProcess) -> dict[str, list[float]]:
    """Of each system the held-out loss before and after, from the printed table."""
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    return {row[0]: [float(loss) for loss in row[-1].split(" to ")] for row in cells if row[0] in SYSTEMS and row[-1]}


TINY = ["--size", "tiny", "--lr", "1e-3", "--held-out", "8", "--batch", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[subprocess.CompletedProcess, list[dict]]:
    """ours and the seed's loop, two steps of four pairs of the tiny model, from a file that is given."""
    folder = tmp_path_factory.mktemp("bench")
    rows = [
        {"prompt": f"What is {a} plus {b}?\n", "chosen": f"It is {a + b}, thank you.", "rejected": f"{a + b}"}
        for a in range(12)
        for b in range(12)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--systems", "ours,seed fp32", "--steps", "2", "--pairs", folder / "pairs.jsonl"]
    done = bench("table.py", *TINY, *flags, "--out", folder / "bench.json")
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads((folder / "bench.json").read_text())


def test_ours_and_the_seeds_loop_end_at_one_held_out_loss(small):
    losses = held_out(small[0])
    assert list(losses) == ["ours", "seed fp32"]
    (before, ours), (also_before, seed) = losses.values()
    assert before == also_before == 0.6931 and ours < before - 1e-3
    assert ours == pytest.approx(seed, abs=1.01e-4)  # printed with four digits


def test_bench_json_has_the_promised_keys(small):
    assert [list(line) for line in small[1]] == [KEYS, KEYS]
    assert [line["system"] for line in small[1]] == ["ours", "seed fp32"]
    for line in small[1]:
        assert line["pairs_per_second"] > 0 and line["peak_bytes"] > 2**26 and 0 < line["fraction_of_matmul_rate"] < 1


def test_the_output_says_how_it_counts_and_on_which_machine(small):
    out = small[0].stdout
    assert "24 L d^2 T + 2 d V (C + R) + 4 d L A" in out
    assert f"torch {torch.__version__}" in out and "threads" in out and "GFLOP/s" in out


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed (the extra peers)")
def test_trl_ends_at_the_held_out_loss_of_the_seeds_loop(tmp_path):
    done = bench("table.py", *TINY, "--steps", "3", "--pairs", "", "--out", tmp_path / "bench.json")
    losses = held_out(done)
    assert list(losses) == list(SYSTEMS)
    assert losses["ours"][1] == pytest.approx(losses["seed fp32"][1], abs=2e-4)
    for name in ("seed bf16", "trl bf16", "trl bf16 precomputed"):  # bf16 rounds; a wrong order or rate would show
        assert losses[name][1] == pytest.approx(losses["seed fp32"][1], abs=3e-3)


def test_ours_runs_before_and_after_each_of_the_others():
    assert order(["ours", "a", "b"], 1) == ["ours", "a", "ours", "b", "ours"]
    assert order(["b", "ours", "a"], 2) == ["ours", "b", "ours", "a", "ours", "a", "ours", "b", "ours"]
    assert order(["ours"], 3) == ["ours"] * 3 and order(["a", "b"], 2) == ["a", "b", "b", "a"]


def test_a_machine_that_slows_down_slows_both_sides_of_a_ratio():
    speeds = [8.0, 1.75, 6.0, 1.25, 4.0]  # ours loses 1 with each process, and is always 4 times as fast
    runs = [Run(name, speed, 0, 0) for name, speed in zip(order(["ours", "a", "b"], 1), speeds)]
    assert ahead("a", runs) == ahead("b", runs) == [4.0] and ahead("ours", runs) == []
    assert ahead("a", runs[:2]) == [8 / 1.75] and ahead("a", runs[1:2]) == []  # a run beside it failed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_its_rows_are_not_measured(tmp_path):
    done = bench("table.py", "--size", "tiny", "--device", "cuda", "--out", tmp_path / "bench.json")
    assert done.returncode == 0 and "| ours | not measured |" in done.stdout


@pytest.mark.parametrize(
    "script, flags, expected",
    [
        ("table.py", ["--systems", "hers"], "there is no 'hers'"),
        ("table.py", ["--size", "huge"], "random:huge"),
        ("table.py", ["--size", "tiny", "--steps", "100000"], "more than one pass"),
        ("growth.py", ["--scans", "hope"], "there is no 'hope'"),
        ("commands.py", ["--which", "dance"], "there is no 'dance'"),
        ("checking.py", ["--counts", "many"], "'many' is no number of rows"),
        ("adapters.py", ["--turns", "0"], "--turns is 0"),
    ],
)
def test_a_wrong_flag_is_one_line_and_code_2(script, flags, expected):
    done = bench(script, *flags)
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1, done.stdout + done.stderr


@pytest.mark.slow
def test_growth_measures_one_and_two_processes(tmp_path):
    flags = ["--size", "tiny", "--scans", "processes", "--steps", "2", "--batch", "4", "--device", "cpu"]
    done = bench("growth.py", *flags, "--pairs", "", "--out", tmp_path / "growth.json")
    found = json.loads((tmp_path / "growth.json").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(line["processes"], line["system"]) for line in found] == [(1, "ours"), (1, "seed bf16"), (2, "ours")]
    assert all(line["pairs_per_second"] > 0 and line["peak_bytes"] > 2**26 for line in found)


@pytest.mark.slow
def test_growth_lengthens_prompts(tmp_path):
    flags = ["--size", "tiny", "--scans", "prompt", "--systems", "ours", "--steps", "1", "--batch", "4"]
    done = bench("growth.py", *flags, "--pairs", "", "--out", tmp_path / "growth.json")
    found = json.loads((tmp_path / "growth.json").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    lengths = [line["row_tokens"] for line in found]
    assert 64 < lengths[0] < 160 < lengths[1]


def test_the_benchmark_itself_stays_small():
    """What it loads would count as memory of the processes that it starts."""
    code = "import sys; import tests.bench.table, tests.bench.growth; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
