"""Every loss once more, in plain floats and nothing but `math`, and scores to try it on.

What a formula sees of one pair: c, r the policy's log-probabilities of chosen and rejected, C, R the reference's, n, m
the answers' lengths. Losses that couple pairs see a list of such pairs.
"""

from math import exp, log, log1p

import torch
from hypothesis import strategies as st

from dpo.losses import LOSSES, Scores
from dpo.losses.family import own_keywords


def softplus(x: float) -> float:
    """-log sigmoid(-x) = log(1 + e^x), without overflow."""
    return max(x, 0.0) + log1p(exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x))


def entropic(p: float, q: float) -> float:
    """p log(p / q), which is 0 where p is."""
    return p * (log(p) - log(q)) if p else 0.0


def odds(p: float) -> float:
    return p / (1 - p)


def ipo(c, r, C, R, n, m, beta):
    return ((c - C) / n - (r - R) / m - 0.5 / beta) ** 2


def cdpo(c, r, C, R, n, m, beta, label_smoothing):
    x = beta * ((c - C) - (r - R))
    return (1 - label_smoothing) * softplus(-x) + label_smoothing * softplus(x)


def robust(c, r, C, R, n, m, beta, label_smoothing):
    x, e = beta * ((c - C) - (r - R)), label_smoothing
    return ((1 - e) * softplus(-x) - e * softplus(x)) / (1 - 2 * e)


def exo(c, r, C, R, n, m, beta, label_smoothing):
    x = beta * ((c - C) - (r - R))
    return entropic(sigmoid(x), 1 - label_smoothing) + entropic(sigmoid(-x), label_smoothing)


def discopop(c, r, C, R, n, m, beta, tau):
    x = beta * ((c - C) - (r - R))
    return sigmoid(-x / tau) * softplus(-x) + sigmoid(x / tau) * exp(-x)


def nca(c, r, C, R, n, m, beta):
    good, bad = beta * (c - C), beta * (r - R)
    return softplus(-good) + 0.5 * softplus(good) + 0.5 * softplus(bad)


def sppo(c, r, C, R, n, m, beta):
    return (c - C - 0.5 / beta) ** 2 + (r - R + 0.5 / beta) ** 2


def dpop(c, r, C, R, n, m, beta, penalty):
    return softplus(-beta * ((c - C) - (r - R) - penalty * max(0.0, C - c)))


def simpo(c, r, C, R, n, m, beta, gamma):
    return softplus(gamma - beta * (c / n - r / m))


def orpo(c, r, C, R, n, m, beta):
    good, bad = odds(exp(c / n)), odds(exp(r / m))
    return -c / n + beta * softplus(log(bad) - log(good))


FORMULA = {
    "dpo": lambda c, r, C, R, n, m, beta: softplus(-beta * ((c - C) - (r - R))),
    "dpo_norm": lambda c, r, C, R, n, m, beta: softplus(-beta * ((c - C) / n - (r - R) / m)),
    "cdpo": cdpo,
    "robust": robust,
    "ipo": ipo,
    "hinge": lambda c, r, C, R, n, m, beta: max(0.0, 1 - beta * ((c - C) - (r - R))),
    "exo": exo,
    "discopop": discopop,
    "nca": nca,
    "bco": lambda c, r, C, R, n, m, beta, delta: softplus(delta - beta * (c - C)) + softplus(beta * (r - R) - delta),
    "sppo": sppo,
    "apo_zero": lambda c, r, C, R, n, m, beta: 1 - sigmoid(beta * (c - C)) + sigmoid(beta * (r - R)),
    "apo_down": lambda c, r, C, R, n, m, beta: sigmoid(beta * (c - C)) + 1 - sigmoid(beta * ((c - C) - (r - R))),
    "dpop": dpop,
    "sft": lambda c, r, C, R, n, m: -c,
    "simpo": simpo,
    "orpo": orpo,
    "cpo": lambda c, r, C, R, n, m, beta, alpha: softplus(-beta * (c - r)) - alpha * c / n,
}


def transported(values: list[float], others: list[float], beta: float, e: float) -> list[float]:
    """The k-th smallest of `values` against the k-th smallest of `others`, in the order of `values`."""
    found = [0.0] * len(values)
    for k, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        x = beta * (values[i] - sorted(others)[k])
        found[i] = (1 - e) * softplus(-x) + e * softplus(x)
    return found


def aot(pairs, beta, label_smoothing):
    margins, before = ([pair[k] - pair[k + 1] for pair in pairs] for k in (0, 2))
    return transported(margins, before, beta, label_smoothing)


def aot_unpaired(pairs, beta, label_smoothing):
    chosen, rejected = ([pair[k] - pair[k + 2] for pair in pairs] for k in (0, 1))
    return transported(chosen, rejected, beta, label_smoothing)


def kto(pairs, beta, desirable, undesirable):
    chosen, rejected = ([pair[k] - pair[k + 2] for pair in pairs] for k in (0, 1))
    of_chosen, of_rejected = (max(0.0, sum(gains) / len(gains)) for gains in (chosen, rejected))
    good = [desirable * sigmoid(-beta * (gain - of_rejected)) for gain in chosen]
    bad = [undesirable * sigmoid(-beta * (of_chosen - gain)) for gain in rejected]
    return [(a + b) / 2 for a, b in zip(good, bad)]


COUPLING = {"aot": aot, "aot_unpaired": aot_unpaired, "kto": kto}


def by_hand(name: str, s: Scores, **keywords: float) -> list[float]:
    """The loss of each pair, from the table above."""
    pairs = list(zip(*(part.tolist() for part in s[:6])))
    if name in COUPLING:
        return COUPLING[name](pairs, **keywords)
    return [FORMULA[name](*pair, **keywords) for pair in pairs]


# What to try for a keyword
TRIED = {
    "beta": st.floats(0.01, 3),
    "label_smoothing": st.floats(1e-4, 0.49),
    "tau": st.floats(0.02, 1),
    "penalty": st.floats(0, 100),
    "delta": st.floats(-5, 5),
    "gamma": st.floats(0, 5),
    "desirable": st.floats(0.1, 10),
    "undesirable": st.floats(0.1, 10),
    "alpha": st.floats(0, 3),
}
# None is a default, so that a keyword which is not passed on shows
SOME = {
    "beta": 0.3,
    "label_smoothing": 0.2,
    "tau": 0.4,
    "penalty": 5.0,
    "delta": 0.7,
    "gamma": 0.9,
    "desirable": 1.3,
    "undesirable": 0.7,
    "alpha": 0.6,
}
KEYWORDS = {name: {key: SOME[key] for key in own_keywords(name)} for name in LOSSES}


def scores(*log_ratios: float, n: float = 1, m: float = 1) -> Scores:
    """Pairs whose chosen answer gained half the log-ratio and whose rejected one lost half; lengths n and m."""
    half = [ratio / 2 for ratio in log_ratios]
    return gains(half, [-gain for gain in half], n, m)


def gains(chosen: list[float], rejected: list[float], n: float = 1, m: float = 1) -> Scores:
    """Pairs whose answers gained these over a reference that gave them -5 and -7."""
    chosen, rejected = (torch.tensor(gain, dtype=torch.double) for gain in (chosen, rejected))
    zero = torch.zeros_like(chosen)
    return Scores(chosen - 5, rejected - 7, zero - 5, zero - 7, zero + n, zero + m)


def random_scores(seed: int, B: int = 4, scale: float = 5.0) -> Scores:
    g = torch.Generator().manual_seed(seed)
    four = [(-20 + scale * torch.randn(B, generator=g, dtype=torch.double)).clamp(max=-0.5) for _ in range(4)]
    return Scores(*four, *(torch.randint(1, 30, (B,), generator=g).double() for _ in range(2)))


def pulls(name: str, s: Scores, **keywords: float) -> tuple[list[float], list[float]]:
    """d loss / d log-probability of the chosen and of the rejected answers. Above 0, a step makes the answer unlikelier."""
    chosen, rejected = (part.clone().requires_grad_() for part in s[:2])
    total = LOSSES[name](s._replace(chosen=chosen, rejected=rejected), **keywords).sum()
    found = torch.autograd.grad(total, (chosen, rejected), allow_unused=True)
    return tuple([0.0] * len(s.chosen) if part is None else part.tolist() for part in found)
