"""dpo/reference.py: what the reference says of all pairs at once is what it says of each by itself, also from the cache."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch

from data.pairs import Pair
from dpo import forward
from dpo.examples import Examples, in_memory
from dpo.forward import ANY, Way
from dpo.order import Limit
from dpo.reference import AT_ONCE, KEEP, Reference, no_reference, reference_logps
from dpo.rows import Ids
from gpt.command import UserError
from gpt.parallel import World
from gpt.stopping import Stopped
from gpt.weights import fingerprint

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of the cache, empty in every test, and not there yet."""
    monkeypatch.setenv("GPT_DPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


def examples_of(ids: list[Ids]) -> Examples:
    return in_memory([Pair("", "", "", row) for row in range(1, len(ids) + 1)], ids)


def ask(model, ids: list[Ids], wanted=None, precision: str = "fp32", sha256: str = "", stop=lambda: None) -> Reference:
    wanted = range(len(ids)) if wanted is None else wanted
    way = Way(Limit(2, ANY), precision, ALONE, stop)
    return reference_logps(model, examples_of(ids), wanted, way, sha256 or fingerprint(model))


def one_by_one(model, pairs: list[Ids]) -> list[torch.Tensor]:
    """log p of every answer token of each pair, chosen then rejected, from logits, each answer in a row of its own."""

    def said(prompt: list[int], answer: list[int]) -> torch.Tensor:
        if not answer:
            return torch.zeros(0)
        logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[torch.arange(len(answer)), answer]

    with torch.no_grad():
        return [torch.cat([said(p.prompt, p.chosen), said(p.prompt, p.rejected)]) for p in pairs]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """A NaN too is the same as itself."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


# What it says


@pytest.mark.parametrize("limit", [AT_ONCE["cpu"], Limit(1, ANY), Limit(3, ANY), Limit(50, 30)])
def test_the_log_probabilities_are_what_asking_the_model_answer_by_answer_gives(
    make_gpt, random_ids, monkeypatch, limit
):
    monkeypatch.setitem(AT_ONCE, "cpu", limit)
    model, pairs = make_gpt(1), random_ids(11)
    found, expected = ask(model, pairs), one_by_one(model, pairs)
    assert found.logps.dtype == torch.float32 and found.logps.device.type == "cpu"
    assert torch.allclose(found.logps, torch.cat(expected), atol=1e-4)
    assert found.computed == 11 and found.seconds > 0
    for i in range(11):
        assert torch.allclose(found.of([i]), expected[i], atol=1e-4)
    assert torch.equal(found.of([7, 2, 7]), torch.cat([found.of([7]), found.of([2]), found.of([7])]))


def test_sums_are_those_of_whole_answers(make_gpt, random_ids):
    model = make_gpt(1)
    pairs = [*random_ids(6), Ids([1, 2], [3, 4], [])]
    found = ask(model, pairs).sums(examples_of(pairs))
    expected = [
        [float(said[: len(pair.chosen)].sum()), float(said[len(pair.chosen) :].sum())]
        for pair, said in zip(pairs, one_by_one(model, pairs))
    ]
    assert found.shape == (7, 2) and torch.allclose(found, torch.tensor(expected), atol=1e-4)
    assert found[6, 1] == 0  # an answer that is not there


def test_pairs_that_are_not_wanted_are_nan_and_the_others_are_in_their_places(make_gpt, random_ids):
    model, pairs, wanted = make_gpt(1), random_ids(9), [7, 2, 4]
    found, expected = ask(model, pairs, wanted), one_by_one(model, pairs)
    assert found.computed == 3
    for i in range(9):
        said = found.of([i])
        assert torch.allclose(said, expected[i], atol=1e-4) if i in wanted else said.isnan().all()


def test_a_reference_that_is_not_finite_is_refused_naming_the_rows(make_gpt, random_ids, monkeypatch):
    monkeypatch.setitem(AT_ONCE, "cpu", Limit(1, ANY))
    model, pairs = make_gpt(1), random_ids(9)
    pairs[3].prompt[:] = [7] * 20
    with torch.no_grad():
        model.transformer["wpe"].weight[20] = torch.inf  # which the other pairs do not reach
    with pytest.raises(UserError, match=r"not finite.* 1 of 9 pairs .*: row 4$"):
        ask(model, pairs)
    assert ask(model, pairs, [0, 1, 2]).logps[:3].isfinite().all()


def test_nothing_wanted_asks_nothing(make_gpt, random_ids, cache):
    found = ask(make_gpt(1), random_ids(3), [])
    assert found.logps.isnan().all() and found.computed == 0 and not cache.exists()
    assert ask(make_gpt(1), []).logps.shape == (0,)


def test_a_model_in_training_with_dropout_is_asked_in_eval_mode_and_keeps_no_gradient(make_gpt, random_ids):
    pairs = random_ids(8)
    model = make_gpt(1, dropout=0.5).train()
    found = ask(model, pairs)
    assert torch.allclose(found.logps, torch.cat(one_by_one(make_gpt(1), pairs)), atol=1e-4)
    assert not found.logps.requires_grad and all(p.grad is None for p in model.parameters())
    assert not model.training


def test_the_model_is_asked_in_the_precision_of_the_way(make_gpt, random_ids):
    # bfloat16 products move the sums visibly, and stay within what bfloat16 can do
    model, pairs = make_gpt(1), random_ids(6)
    exact, rounded = ask(model, pairs).logps, ask(model, pairs, precision="bf16").logps
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded) and torch.allclose(exact, rounded, rtol=0.1, atol=0.5)


def test_no_reference_says_0_of_everything(random_ids):
    pairs = random_ids(5)
    found = no_reference(examples_of(pairs))
    assert found.of([3, 0]).tolist() == [0.0] * sum(len(pairs[i].chosen) + len(pairs[i].rejected) for i in (3, 0))
    assert found.computed == 0 and not found.sums(examples_of(pairs)).any()


# The cache


def test_a_second_run_computes_nothing_and_has_the_same_bits(make_gpt, random_ids, cache):
    model, pairs = make_gpt(1), random_ids(9)
    first = ask(model, pairs)
    (file,) = cache.iterdir()
    second = ask(make_gpt(1), pairs)
    assert (first.computed, second.computed) == (9, 0)
    assert same_bits(first.logps, second.logps) and list(cache.iterdir()) == [file]
    # it is read, not computed: a model of other weights under the same key would not be asked
    assert same_bits(ask(make_gpt(5), pairs, sha256=fingerprint(model)).logps, first.logps)


def test_a_run_that_meets_more_pairs_computes_those_alone_and_keeps_them_too(make_gpt, random_ids, cache):
    model, pairs = make_gpt(1), random_ids(9)
    few = ask(model, pairs, [4, 1])
    more = ask(model, pairs, [1, 3, 4, 8])
    assert (few.computed, more.computed) == (2, 2)
    assert same_bits(few.of([1, 4]), more.of([1, 4])) and torch.allclose(
        more.of([3, 8]), torch.cat([one_by_one(model, pairs)[i] for i in (3, 8)]), atol=1e-4
    )
    # who wants less gets it, and takes nothing away from the others
    assert ask(model, pairs, [8]).computed == 0 and ask(model, pairs, [4, 3]).computed == 0
    assert ask(model, pairs).computed == 5 and ask(model, pairs).computed == 0 and len(list(cache.iterdir())) == 1


# A pass that does not come to its end


class Passes:
    """Stands where a signal would: called before each pass, it raises `error` before pass `at` (0: never) and counts."""

    def __init__(self, at: int = 0, error: type[Exception] = Stopped):
        self.at, self.error, self.count = at, error, 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise self.error("stopped by a signal")


@pytest.fixture
def batches(monkeypatch) -> list[list[int]]:
    """The batches that models were asked about, of at most three pairs, where four prompts are compared at once."""
    found = []

    def noted(model, ids, rows, way):
        said = forward.ask(model, ids, rows, way)
        found.append(rows)
        return said

    monkeypatch.setitem(AT_ONCE, "cpu", Limit(3, ANY))
    monkeypatch.setattr("dpo.order.WINDOW", 4)
    monkeypatch.setattr("dpo.reference.ask", noted)
    return found


def test_a_pass_that_a_signal_stopped_goes_on_with_the_same_batches_to_the_same_bits(make_gpt, random_ids, batches):
    model, pairs = make_gpt(1), random_ids(11)
    with pytest.raises(Stopped, match="in the reference pass; started again, the run goes on"):
        ask(model, pairs, stop=Passes(3))
    first, asked = batches[:2], Passes()
    batches.clear()
    found = ask(model, pairs, stop=asked)
    assert (found.computed, asked.count) == (5, 2)
    both = first + batches
    batches.clear()
    undisturbed = ask(model, pairs, sha256="another key")
    assert both == batches and same_bits(found.logps, undisturbed.logps)


def test_what_is_known_is_written_from_time_to_time_so_that_a_crash_loses_little(
    make_gpt, random_ids, batches, monkeypatch
):
    model, pairs = make_gpt(1), random_ids(11)
    with pytest.raises(RuntimeError):
        ask(model, pairs, stop=Passes(4, RuntimeError))
    assert ask(model, pairs).computed == 11  # a minute had not passed
    monkeypatch.setattr("dpo.reference.EVERY", 0.0)
    with pytest.raises(RuntimeError):
        ask(model, pairs, stop=Passes(4, RuntimeError), sha256="another key")
    assert 2 <= ask(model, pairs, sha256="another key").computed <= 8  # no pass was lost but those since the last time


def test_runs_that_ask_at_the_same_time_lose_nothing_and_both_have_what_was_written_first(
    make_gpt, random_ids, monkeypatch
):
    pairs, model, other = random_ids(9), make_gpt(1), make_gpt(2)

    def meanwhile() -> None:  # of another model under the same key, to see whose numbers are there
        ask(other, pairs, [3, 4, 5], sha256="one key")

    found = ask(model, pairs, [0, 1, 4], stop=meanwhile, sha256="one key")
    known = ask(model, pairs, [0, 1, 3, 4, 5], sha256="one key")
    assert known.computed == 0 and same_bits(found.of([0, 1, 4]), known.of([0, 1, 4]))
    for i in (0, 1, 3, 4, 5):
        said = one_by_one(model if i < 2 else other, pairs)[i]
        assert torch.allclose(known.of([i]), said, atol=1e-4)


CHANGES = ["weights", "config", "ids", "precision", "order", "torch", "limit"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_numbers_depend_on_is_in_the_key(make_gpt, random_ids, cache, monkeypatch, change):
    pairs = random_ids(5)
    ask(make_gpt(1), pairs)
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0")
    if change == "limit":
        monkeypatch.setitem(AT_ONCE, "cpu", Limit(2, 99))
    other = {
        "ids": [pairs[0]._replace(chosen=[*pairs[0].chosen[:-1], (pairs[0].chosen[-1] + 1) % 40]), *pairs[1:]],
        "order": pairs[::-1],
    }.get(change, pairs)
    config = {"activation_function": "relu"} if change == "config" else {}  # the weights are the same
    model = make_gpt(2 if change == "weights" else 1, **config)
    found = ask(model, other, precision="bf16" if change == "precision" else "fp32")
    assert found.computed == 5 and len(list(cache.iterdir())) == 2
    assert torch.allclose(found.logps, torch.cat(one_by_one(model, other)), atol=0.5 if change == "precision" else 1e-4)


def damage(content: bytes, how: str) -> bytes:
    half = len(content) // 2
    return {
        "cut": content[:-1],
        "cut by a number": content[:-4],
        "empty": b"",
        "shorter than its hash": content[:20],
        "a byte of a number": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
        "a byte of the hash": bytes([content[0] ^ 1]) + content[1:],
        "longer": content + bytes(4),
        "zeros": bytes(len(content)),
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "cut by a number",
        "empty",
        "shorter than its hash",
        "a byte of a number",
        "a byte of the hash",
        "longer",
        "zeros",
    ],
)
def test_a_damaged_file_is_never_used_and_is_written_anew(make_gpt, random_ids, cache, how):
    model, pairs = make_gpt(1), random_ids(9)
    first = ask(model, pairs)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole, how))
    found = ask(model, pairs)
    assert found.computed == 9 and same_bits(found.logps, first.logps)
    assert file.read_bytes() == whole and ask(model, pairs).computed == 0


def test_a_file_half_written_by_a_run_that_died_is_not_taken_for_a_whole_one(make_gpt, random_ids, cache):
    model, pairs = make_gpt(1), random_ids(9)
    ask(model, pairs)
    (file,) = cache.iterdir()
    file.rename(file.with_name(file.name + ".part"))
    assert ask(model, pairs).computed == 9 and ask(model, pairs).computed == 0


@pytest.mark.parametrize("what", ["a file where the folder should be", "a folder where the file should be"])
def test_a_cache_that_cannot_be_written_costs_time_only(make_gpt, random_ids, cache, what):
    model, pairs = make_gpt(1), random_ids(5)
    if what.startswith("a file"):
        cache.parent.write_text("in the way")
    else:
        ask(model, pairs)
        (file,) = cache.iterdir()
        file.unlink()
        file.mkdir()
    for _ in range(2):
        found = ask(model, pairs)
        assert found.computed == 5
        assert torch.allclose(found.logps, torch.cat(one_by_one(model, pairs)), atol=1e-4)


@pytest.fixture
def someone_elses(cache, monkeypatch):
    """A function after which this process is an ordinary user, and the cache is root's: it can be read and not written."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    above = Path(tempfile.mkdtemp(dir="/tmp"))
    above.chmod(0o755)
    monkeypatch.setenv("GPT_DPO_CACHE", str(above / "cache"))

    def leave() -> Path:
        os.seteuid(65534)
        return above / "cache" / "references"

    yield leave
    os.seteuid(0)
    shutil.rmtree(above)


def test_a_cache_that_another_user_keeps_is_read(make_gpt, random_ids, someone_elses):
    model, pairs = make_gpt(1), random_ids(5)
    first = ask(model, pairs, [0, 1, 2])
    folder = someone_elses()
    assert not os.access(folder, os.W_OK, effective_ids=True)
    second = ask(model, pairs, [0, 1, 2])
    assert second.computed == 0 and same_bits(first.logps, second.logps)


def test_what_is_missing_in_a_cache_that_another_user_keeps_is_computed_every_time(make_gpt, random_ids, someone_elses):
    model, pairs = make_gpt(1), random_ids(5)
    someone_elses()
    for _ in range(2):
        assert ask(model, pairs).computed == 5


def test_files_that_were_used_longest_ago_are_dropped(make_gpt, random_ids, cache):
    cache.mkdir(parents=True)
    for age in range(KEEP + 5):
        (cache / f"old-{age}").write_bytes(b"x")
        os.utime(cache / f"old-{age}", (time.time() - 1000 * (age + 1),) * 2)
    model, pairs = make_gpt(1), random_ids(3)
    ask(model, pairs)
    names = {file.name for file in cache.iterdir()}
    assert len(names) == KEEP and {name for name in names if name.startswith("old")} == {
        f"old-{age}" for age in range(KEEP - 1)
    }
    # to be read counts as to be used: after many others this one is still there
    (file,) = (file for file in cache.iterdir() if not file.name.startswith("old"))
    os.utime(file, (1, 1))
    assert ask(model, pairs).computed == 0
    ask(make_gpt(2), pairs)
    assert file.exists() and len(list(cache.iterdir())) == KEEP


def test_a_file_that_another_run_takes_away_meanwhile_stops_nothing(make_gpt, random_ids, cache):
    # a name that leads nowhere is what a file is that was there when the folder was read, and is not any more
    cache.mkdir(parents=True)
    (cache / "gone").symlink_to(cache / "nowhere")
    model, pairs = make_gpt(1), random_ids(3)
    assert ask(model, pairs).computed == 3
    assert ask(model, pairs).computed == 0
