"""dpo/metrics.py: sums over pairs against arithmetic, added up over micro-batches and divided last."""

import math

import pytest
import torch

from dpo.losses import Scores, parse_loss
from dpo.metrics import Totals, sums
from dpo.rows import Ids, collate
from gpt.parallel import World

ALONE = World(0, 1, torch.device("cpu"))

# Four pairs: (policy chosen, rejected, reference chosen, rejected), and rows of ids with the lengths of their answers.
SAID = [(-5.0, -9.0, -6.0, -8.0), (-7.0, -4.0, -6.0, -4.0), (-3.0, -3.0, -3.0, -3.0), (-2.0, -6.0, -4.0, -5.0)]
IDS = [
    Ids([1, 2, 3], [1] * 4, [1] * 2),
    Ids([1], [1] * 3, [1] * 5),
    Ids([1, 2], [1] * 1, [1] * 1),
    Ids([1, 2, 3, 4], [1] * 6, [1] * 2),
]


def averages(micro_sums: list[dict[str, torch.Tensor]], loss) -> dict[str, float]:
    """The metrics of a step that had these micro-batches, in one process."""
    return Totals.of(micro_sums, ALONE).averages(loss)


def micro(rows: list[int], loss, weight: float = 1.0, multiple: int = 1) -> dict[str, torch.Tensor]:
    """The sums of the pairs `rows` as one micro-batch."""
    four = torch.tensor([SAID[i] for i in rows]).unbind(1)
    scores = Scores(
        *four, *(torch.tensor([float(len(getattr(IDS[i], side))) for i in rows]) for side in ("chosen", "rejected"))
    )
    return sums(scores, loss(scores), collate([IDS[i] for i in rows], multiple), torch.full((len(rows),), weight), loss)


def read(rows: list[int]) -> int:
    """The tokens that these pairs have, what texts begin with in common counted once: as many as there are beginnings."""
    texts = [IDS[i].prompt + answer[:-1] for i in rows for answer in (IDS[i].chosen, IDS[i].rejected)]
    return len({tuple(text[:n]) for text in texts for n in range(1, len(text) + 1)})


def test_every_metric_is_what_arithmetic_over_the_pairs_gives():
    loss = parse_loss("dpo(beta=0.5)")
    line = averages([micro([0, 1, 2, 3], loss)], loss)
    gain_chosen, gain_rejected = [1, -1, 0, 2], [-1, 0, 0, -1]
    expected = {
        "loss": sum(
            torch.nn.functional.softplus(torch.tensor(-0.5 * (c - r))).item()
            for c, r in zip(gain_chosen, gain_rejected)
        )
        / 4,
        "rewards/chosen": 0.5 * sum(gain_chosen) / 4,
        "rewards/rejected": 0.5 * sum(gain_rejected) / 4,
        "rewards/margins": 0.5 * (sum(gain_chosen) - sum(gain_rejected)) / 4,
        "rewards/accuracies": (1 + 0 + 0.5 + 1) / 4,  # pair 2 is a tie
        "logps/chosen": (-5 - 7 - 3 - 2) / 4,
        "logps/rejected": (-9 - 4 - 3 - 6) / 4,
        "length/chosen": (4 + 3 + 1 + 6) / 4,
        "length/rejected": (2 + 5 + 1 + 2) / 4,
        "pairs": 4,
        "tokens": 8 + 8 + 3 + 11,
        "padding": 0,
    }
    assert line == pytest.approx(expected) and line.keys() == expected.keys()
    assert isinstance(line["pairs"], int) and isinstance(line["tokens"], int)
    padded = averages([micro([0, 1, 2, 3], loss, multiple=64)], loss)
    assert padded == pytest.approx(expected | {"padding": 1 - read([0, 1, 2, 3]) / 64})


@pytest.mark.parametrize("spec", ["dpo", "dpo_norm(beta=2)", "dpo + 0.5*sft", "0.1*ipo + 2*hinge + sft"])
@pytest.mark.parametrize("cut", [[[0], [1], [2], [3]], [[3, 1, 0], [2]], [[2, 3], [1, 0]]])
def test_how_pairs_are_cut_into_micro_batches_changes_nothing_but_the_padding(spec, cut):
    loss = parse_loss(spec)
    whole = averages([micro([0, 1, 2, 3], loss)], loss)
    found = averages([micro(rows, loss) for rows in cut], loss)
    assert found == pytest.approx(whole) and whole["padding"] == 0
    padded = averages([micro(rows, loss, multiple=16) for rows in cut], loss)
    places = [math.ceil(read(rows) / 16) * 16 for rows in cut]
    assert padded == pytest.approx(whole | {"padding": 1 - sum(map(read, cut)) / sum(places)})


def test_a_row_of_weight_0_counts_for_nothing():
    loss = parse_loss("dpo + 0.5*sft")
    assert averages([micro([0, 1], loss), micro([3], loss, weight=0.0)], loss) == averages([micro([0, 1], loss)], loss)


def test_each_term_of_a_sum_is_logged_unweighted_in_its_own_unit_and_the_loss_is_their_weighted_sum():
    loss = parse_loss("dpo + 0.5*sft")
    line = averages([micro([0, 1, 2], loss), micro([3], loss)], loss)
    assert line["loss/sft"] == pytest.approx((5 + 7 + 3 + 2) / (4 + 3 + 1 + 6))  # by tokens of the chosen answers
    assert line["loss/dpo"] == pytest.approx(
        averages([micro([0, 1, 2, 3], parse_loss("dpo"))], parse_loss("dpo"))["loss"]
    )
    assert line["loss"] == pytest.approx(line["loss/dpo"] + 0.5 * line["loss/sft"])


def test_one_loss_alone_is_not_logged_twice():
    loss = parse_loss("2*dpo")
    assert not [name for name in averages([micro([0], loss)], loss) if name.startswith("loss/")]


def test_sft_has_no_rejected_answer_and_no_rewards():
    loss = parse_loss("sft")
    line = averages([micro([0, 1, 2, 3], loss)], loss)
    assert set(line) == {"loss", "logps/chosen", "length/chosen", "pairs", "tokens", "padding"}
    assert line["loss"] == pytest.approx(17 / 14)


def test_rewards_are_measured_with_the_first_beta_of_a_sum():
    loss = parse_loss("sft + hinge(beta=0.3) + dpo(beta=0.7)")
    assert averages([micro([0], loss)], loss)["rewards/margins"] == pytest.approx(0.3 * 2)


@pytest.mark.parametrize("difference, expected", [(0.0, 0.5), (1e-5, 0.5), (-1e-5, 0.5), (0.1, 1.0), (-0.1, 0.0)])
def test_a_tie_to_rounding_counts_one_half(difference, expected):
    loss = parse_loss("dpo")
    scores = Scores(*(torch.tensor([x]) for x in (-2.0 + difference, -3.0, -2.0, -3.0, 4.0, 2.0)))
    found = averages([sums(scores, loss(scores), collate(IDS[:1]), torch.ones(1), loss)], loss)
    assert found["rewards/accuracies"] == expected


def test_the_sums_carry_no_gradient():
    loss = parse_loss("dpo")
    scores = Scores(*(torch.tensor([x], requires_grad=True) for x in (-1.0, -2.0, -3.0, -4.0, 4.0, 2.0)))
    assert not any(
        value.requires_grad for value in sums(scores, loss(scores), collate(IDS[:1]), torch.ones(1), loss).values()
    )


def test_a_row_of_weight_0_is_no_padding_and_no_place_either():
    loss = parse_loss("dpo")
    alone = averages([micro([0], loss, multiple=16)], loss)
    assert alone["padding"] == 10 / 16  # 1 2 3 1 1 1 is read; 1 2 3 1 is in it
    assert averages([micro([0], loss, multiple=16), micro([3], loss, weight=0.0, multiple=16)], loss) == alone


@pytest.mark.parametrize("spec", ["dpo", "dpo + 0.5*sft"])
def test_totals_are_sound_unless_a_loss_is_not_finite(spec):
    loss = parse_loss(spec)
    assert Totals.of([micro([0, 1], loss), micro([2], loss)], ALONE).sound
    for broken in (math.nan, math.inf, -math.inf):
        for name in ("loss/dpo", *(["loss/sft"] if "sft" in spec else [])):
            found = [micro([0, 1], loss), micro([2], loss)]
            found[1][name] = torch.tensor(broken)
            assert not Totals.of(found, ALONE).sound
        # what is only shown stops nothing
        found = [micro([0, 1], loss), micro([2], loss)]
        found[1]["logps/chosen"] = torch.tensor(broken)
        assert Totals.of(found, ALONE).sound
