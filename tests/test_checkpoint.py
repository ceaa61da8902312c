"""gpt/checkpoint.py: a stopped run against one that never stopped, and every way in which a checkpoint can be damaged."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from gpt import checkpoint
from gpt.checkpoint import FILES, latest_checkpoint
from gpt.command import UserError
from gpt.lora import adapters, add_lora
from gpt.model import GPT, GPTConfig
from gpt.optim import adamw, learning_rate
from gpt.parallel import World

ALONE = World(0, 1, torch.device("cpu"))
ROOT = Path(__file__).resolve().parents[1]
STEPS = 5
Run = tuple[GPT, torch.optim.Optimizer]


def save_checkpoint(folder: Path, *run_and_state, **more) -> Path:
    checkpoint.save_checkpoint(folder, *run_and_state, ALONE, **more)
    return folder / f"step-{run_and_state[-1]['step']:06d}"


def load_checkpoint(path: Path, model: GPT, optimizer: torch.optim.Optimizer) -> None:
    checkpoint.load_checkpoint(path, model, optimizer, ALONE)


def start(seed: int = 0, **changes) -> Run:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**dict(vocab_size=23, n_positions=8, n_embd=12, n_layer=2, n_head=3) | changes))
    return model, adamw(model, 0.1)


def train(run: Run, steps: range) -> None:
    """Real updates; the data of a step depend on its number alone."""
    model, optimizer = run
    for step in steps:
        tokens = torch.randint(23, (3, 8), generator=torch.Generator().manual_seed(step))
        (-model(tokens[:, :-1], tokens[:, 1:]).mean()).backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, 1e-2, 0.4)
        optimizer.step()
        optimizer.zero_grad()


def trained(steps: int, **changes) -> Run:
    run = start(**changes)
    train(run, range(1, steps + 1))
    return run


def assert_bit_equal(run: Run, other: Run) -> None:
    for (name, a), (_, b) in zip(run[0].named_parameters(), other[0].named_parameters(), strict=True):
        assert torch.equal(a, b), name
        mine, theirs = run[1].state.get(a, {}), other[1].state.get(b, {})
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(mine[key], theirs[key]) and mine[key].dtype == theirs[key].dtype, (name, key)


def newest(folder: Path) -> str | None:
    found = latest_checkpoint(folder)
    return found and found[0].name


@pytest.fixture
def two(tmp_path) -> Path:
    """Checkpoints of step 2 and of step 3."""
    run = trained(2)
    save_checkpoint(tmp_path, *run, {"step": 2})
    train(run, range(3, 4))
    save_checkpoint(tmp_path, *run, {"step": 3})
    return tmp_path


@pytest.mark.parametrize("stop", range(STEPS))
def test_saving_loading_and_continuing_is_bit_equal_to_not_having_stopped(stop, tmp_path):
    save_checkpoint(tmp_path, *trained(stop), {"step": stop})
    path, state = latest_checkpoint(tmp_path)
    resumed = start(seed=99)  # other weights, to be overwritten
    load_checkpoint(path, *resumed)
    assert_bit_equal(resumed, trained(stop))
    train(resumed, range(state["step"] + 1, STEPS + 1))
    assert_bit_equal(resumed, trained(STEPS))


def test_saving_does_not_disturb_the_run_that_is_saved(tmp_path):
    run = start()
    for step in range(1, STEPS + 1):
        train(run, range(step, step + 1))
        save_checkpoint(tmp_path, *run, {"step": step})
    assert_bit_equal(run, trained(STEPS))


def test_what_trains_is_stored_and_restored_and_what_is_frozen_is_neither_stored_nor_touched(tmp_path):
    def partly_frozen(seed: int) -> Run:
        model, _ = start(seed)
        model.requires_grad_(False)
        model.transformer["h"][1].requires_grad_(True)
        optimizer = adamw(model, 0.1)
        model.transformer["wpe"].requires_grad_(True)  # trains, but no optimizer has met it: it has no moments
        return model, optimizer

    run, resumed = partly_frozen(0), partly_frozen(99)
    train(run, range(1, 3))
    path = save_checkpoint(tmp_path, *run, {"step": 2})
    trains = {name for name, p in run[0].named_parameters() if ".h.1." in name or ".wpe." in name}
    assert load_file(path / "model.safetensors").keys() == trains
    moments = {name.rpartition("/")[0] for name in load_file(path / "optimizer.safetensors")}
    assert moments == {name for name in trains if ".h.1." in name}
    other = {name: p.detach().clone() for name, p in resumed[0].named_parameters()}
    load_checkpoint(path, *resumed)
    saved = dict(run[0].named_parameters())
    for name, p in resumed[0].named_parameters():
        assert torch.equal(p, (saved if name in trains else other)[name]), name
        assert p.requires_grad == (name in trains)
        mine, theirs = resumed[1].state.get(p, {}), run[1].state.get(saved[name], {})
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine), name


def with_adapters(rank: int, seed: int = 0, **changes) -> Run:
    """The model's own weights are those of seed 0, whatever the adapters' seed."""
    model = add_lora(start(**changes)[0], rank, seed=seed)
    return model, adamw(model, 0.1)


def test_a_run_of_adapters_saved_loaded_and_continued_is_bit_equal_to_one_not_stopped(tmp_path):
    run = with_adapters(3)
    train(run, range(1, 3))
    path = save_checkpoint(tmp_path, *run, {"step": 2})
    names = {f"{name}.{part}" for name in adapters(run[0]) for part in ("lora_A", "lora_B")}
    assert load_file(path / "model.safetensors").keys() == names and len(names) == 16
    resumed = with_adapters(3, seed=99)
    load_checkpoint(path, *resumed)
    assert_bit_equal(resumed, run)
    for each in (run, resumed):
        train(each, range(3, STEPS + 1))
    assert_bit_equal(resumed, run)


def unfrozen(model: GPT) -> Run:
    return model.requires_grad_(True), adamw(model, 0.1)


OTHERS = {
    "another rank": lambda: with_adapters(2),
    "another model": lambda: with_adapters(3, n_layer=1),
    "no adapters": start,
    "adapters and the rest": lambda: unfrozen(with_adapters(3)[0]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_adapters_loads_into_the_same_adapters_alone(name, tmp_path):
    run = with_adapters(3)
    train(run, range(1, 3))
    path = save_checkpoint(tmp_path / "adapters", *run, {"step": 2})
    other, before = OTHERS[name](), OTHERS[name]()
    theirs = save_checkpoint(tmp_path / "other", *other, {"step": 0})
    for saved, model in ((path, other), (theirs, with_adapters(3))):  # neither this way nor the other
        with pytest.raises(UserError, match="another model") as caught:
            load_checkpoint(saved, *model)
        assert str(saved) in str(caught.value) and "\n" not in str(caught.value)
    assert_bit_equal(other, before)


def test_the_head_stays_tied_to_the_embedding_after_loading(tmp_path):
    path = save_checkpoint(tmp_path, *trained(1), {"step": 1})
    model, optimizer = start(seed=99)
    load_checkpoint(path, model, optimizer)
    assert model.lm_head.weight is model.transformer["wte"].weight


def test_every_state_lands_on_the_device_where_adamw_itself_would_put_it(tmp_path):
    # fused AdamW keeps its step counter beside the parameter, and the GPU's kernel cannot read one that lies on the CPU.
    # "meta" is a device that every machine has: shapes, no memory
    run = trained(2)
    path = save_checkpoint(tmp_path, *run, {"step": 2})
    with torch.device("meta"):
        model = start()[0]
    ours, peer = adamw(model, 0.1), adamw(model, 0.1)
    load_checkpoint(path, model, ours)
    peer.load_state_dict(run[1].state_dict())
    for name, p in model.named_parameters():
        for key, value in peer.state[p].items():
            assert ours.state[p][key].device == value.device, (name, key)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_whatever_json_the_caller_adds_to_the_state_comes_back_equal(tmp_path):
    run = start(n_layer=1)

    @settings(deadline=None, max_examples=30)
    @given(st.dictionaries(st.text(max_size=9), json_values, max_size=4))
    def check(extra):
        state = extra | {"step": 7}
        save_checkpoint(tmp_path, *run, state)
        assert latest_checkpoint(tmp_path)[1] == state

    check()


# which checkpoint is found


def test_a_file_cut_off_anywhere_or_with_one_bit_flipped_makes_the_one_before_be_used(two):
    original = {name: (two / "step-000003" / name).read_bytes() for name in (*FILES, "manifest.json")}

    @settings(deadline=None, max_examples=80)
    @given(
        name=st.sampled_from(sorted(original)),
        place=st.floats(0, 1, exclude_max=True),
        bit=st.none() | st.integers(0, 7),
    )
    def damage(name, place, bit):
        whole = original[name]
        at = int(place * len(whole))
        broken = whole[:at] if bit is None else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        (two / "step-000003" / name).write_bytes(broken)
        try:
            if name == "manifest.json" and _json(broken) == _json(whole):
                return  # one blank for another changes nothing of what the manifest says
            assert newest(two) == "step-000002"
        finally:
            (two / "step-000003" / name).write_bytes(whole)

    damage()
    assert newest(two) == "step-000003"


def _json(data: bytes):
    try:
        return json.loads(data)
    except ValueError:
        return None


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_makes_the_one_before_be_used_and_its_path_be_printed_once(name, two, capsys):
    (two / "step-000003" / name).unlink()
    path, state = latest_checkpoint(two)
    assert (path.name, state["step"]) == ("step-000002", 2)
    resumed = start(seed=99)
    load_checkpoint(path, *resumed)
    assert_bit_equal(resumed, trained(2))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 and str(two / "step-000003") in printed[0]


def test_with_every_checkpoint_damaged_it_is_for_the_user_to_begin_anew_and_without_any_there_is_none(two, tmp_path):
    for path in two.glob("step-*"):
        (path / "state.json").write_text("")
    with pytest.raises(UserError, match="every checkpoint there is damaged") as caught:
        latest_checkpoint(two)
    assert str(two) in str(caught.value) and "\n" not in str(caught.value)
    assert latest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "empty").mkdir()
    assert latest_checkpoint(tmp_path / "empty") is None


def test_a_step_saved_again_replaces_the_damaged_one(two):
    (two / "step-000003" / "model.safetensors").write_bytes(b"")
    run = trained(3)
    save_checkpoint(two, *run, {"step": 3})
    assert newest(two) == "step-000003"
    resumed = start(seed=99)
    load_checkpoint(two / "step-000003", *resumed)
    assert_bit_equal(resumed, run)


def test_the_best_on_held_out_pairs_is_kept_beside_the_newest_and_found(tmp_path):
    run, losses = start(), {2: 0.5, 4: 0.3, 5: 0.3, 6: 0.4, 9: 0.1}
    for step in range(1, 9):
        known = {k: losses[k] for k in losses if k <= step}
        save_checkpoint(tmp_path, *run, {"step": step}, keep=1, held_out=known.copy)
    # of step 4 and step 5 the later; step 9 has no checkpoint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000005", "step-000008"]
    assert checkpoint.best_checkpoint(tmp_path, losses).name == "step-000005"
    assert checkpoint.best_checkpoint(tmp_path, {}) is None


def test_no_loss_that_is_not_finite_and_no_damaged_checkpoint_is_the_best(tmp_path):
    run, losses = start(), {1: 0.5, 2: 0.4, 3: float("nan")}
    for step in losses:
        save_checkpoint(tmp_path, *run, {"step": step}, keep=3)
    assert checkpoint.best_checkpoint(tmp_path, losses).name == "step-000002"
    (tmp_path / "step-000002/model.safetensors").write_bytes(b"")
    assert checkpoint.best_checkpoint(tmp_path, losses).name == "step-000001"


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_of_later_steps_give_way_to_those_of_the_run_that_went_on_before_them(keep, tmp_path):
    run = start()
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, *run, {"step": step}, keep=3)
    for step in (20, 30):
        (tmp_path / f"step-{step:06d}/model.safetensors").write_bytes(b"")
    assert newest(tmp_path) == "step-000010"
    save_checkpoint(tmp_path, *run, {"step": 13}, keep=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000013"][-keep:]
    assert newest(tmp_path) == "step-000013"


def test_a_step_that_is_saved_already_is_not_written_again(tmp_path):
    run = start()
    path = save_checkpoint(tmp_path, *run, {"step": 3})
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    save_checkpoint(tmp_path, *run, {"step": 3})
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_what_stood_there_before_is_found_again_where_a_save_was_killed_between_two_renames(two):
    (two / "step-000003").rename(two / "step-000003.old")
    (two / "step-000002.old").mkdir()  # of which the new one is there
    (two / "step-000004.part").mkdir()
    assert newest(two) == "step-000003"
    save_checkpoint(two, *trained(5), {"step": 5})
    assert sorted(path.name for path in two.iterdir()) == ["step-000003", "step-000005"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(keep, tmp_path):
    run = start()
    for step in (1, 2, 9, 10, 11):
        save_checkpoint(tmp_path, *run, {"step": step}, keep=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000009", "step-000010", "step-000011"][-keep:]


def test_steps_beyond_six_digits_are_newer_than_those_before(tmp_path):
    run = start()
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, *run, {"step": step}, keep=2)
    assert latest_checkpoint(tmp_path)[1]["step"] == 1_000_000
    save_checkpoint(tmp_path, *run, {"step": 1_000_001}, keep=1)
    assert latest_checkpoint(tmp_path)[1]["step"] == 1_000_001


def test_a_copy_that_the_user_made_beside_the_checkpoints_is_left_alone(two):
    copy = two / "step-000001-copy1"
    shutil.copytree(two / "step-000002", copy)
    assert newest(two) == "step-000003"
    save_checkpoint(two, *trained(4), {"step": 4}, keep=1)
    assert {path.name for path in two.iterdir()} == {"step-000004", copy.name}


def test_what_a_killed_save_left_is_no_checkpoint_and_does_not_hinder_the_next(two, capsys):
    part = two / "step-000004.part"
    part.mkdir()
    for name in FILES:  # all but the manifest, and a file that a save does not write
        (part / name).write_bytes((two / "step-000003" / name).read_bytes())
    (part / "stale").write_text("")
    assert newest(two) == "step-000003"
    assert capsys.readouterr().out == ""  # nor is it a damaged one, to be complained of
    save_checkpoint(two, *trained(4), {"step": 4})
    assert newest(two) == "step-000004"
    assert not (two / "step-000004" / "stale").exists() and not part.exists()


def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path):
    script = f"""
from pathlib import Path
import torch
from gpt.checkpoint import save_checkpoint
from gpt.model import GPT, GPTConfig
from gpt.optim import adamw
from gpt.parallel import World
model = GPT(GPTConfig(vocab_size=2000, n_positions=8, n_embd=240, n_layer=2, n_head=1))
optimizer = adamw(model, 0.1)
for step in range(1, 1000):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    save_checkpoint(Path({str(tmp_path)!r}), model, optimizer, {{"step": step}}, World(0, 1, torch.device("cpu")), keep=2)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        while not list(
            tmp_path.glob("step-000003.part/optimizer.safetensors")
        ):  # files of some MB: this is in the midst of it
            assert process.poll() is None
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
    path, state = latest_checkpoint(tmp_path)
    assert state["step"] >= 2 and path.name == f"step-{state['step']:06d}"
    moments = load_file(path / "optimizer.safetensors")
    assert {float(value) for name, value in moments.items() if name.endswith("/step")} == {float(state["step"])}


# what lies in the folder, and what is refused


def test_nothing_in_a_checkpoint_is_a_pickle(two):
    folder = two / "step-000003"
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}
    for path in folder.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            data = path.read_bytes()  # 8 bytes of length, a header of JSON, then numbers up to the last byte
            size = 8 + int.from_bytes(data[:8], "little")
            ends = [
                entry["data_offsets"][1] for name, entry in json.loads(data[8:size]).items() if name != "__metadata__"
            ]
            assert size + max(ends) == len(data)


def test_the_model_file_holds_every_parameter_once_by_name_in_float32(two):
    saved = load_file(two / "step-000003" / "model.safetensors")
    expected = dict(trained(3)[0].named_parameters())
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], p) and saved[name].dtype == torch.float32 for name, p in expected.items())


@pytest.mark.parametrize("changes", [dict(n_embd=24), dict(n_layer=1), dict(n_layer=3), dict(vocab_size=24)])
def test_a_checkpoint_of_another_model_is_refused_by_its_path_and_nothing_is_changed(changes, two):
    other, before = start(**changes), start(**changes)
    with pytest.raises(UserError, match="step-000003.*another model") as caught:
        load_checkpoint(two / "step-000003", *other)
    assert "\n" not in str(caught.value)
    assert_bit_equal(other, before)
