"""How sure a fraction is that was counted on some of many cases."""

from math import sqrt

Z = 1.96  # of the normal distribution, 2.5 % lie above


def wilson(rate: float, count: int) -> tuple[float, float]:
    """The bounds between which the rate of a large number of cases lies with 95 % confidence, from that of `count`: Wilson's
    score interval (1927), which stays in [0, 1]."""
    middle = rate + Z**2 / (2 * count)
    half = Z * sqrt(rate * (1 - rate) / count + (Z / (2 * count)) ** 2)
    scale = 1 + Z**2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
