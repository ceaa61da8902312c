"""Numbers as the page writes them: with the sign of a formula, and no more digits than say something."""

MINUS = "\N{MINUS SIGN}"


def number_of(value: float) -> str:
    """As a table has it: 0.693, \N{MINUS SIGN}12.5, 1,234."""
    digits = 3 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else f"{0:.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """+1.50, \N{MINUS SIGN}0.25"""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def tick(value: float) -> str:
    """As an axis has it: 1e\N{MINUS SIGN}4, 0.25, 12k."""
    value = 0.0 if abs(value) < 1e-12 else value
    if 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:e}".partition("e")
        text = f"{float(digits):.3g}e{int(power)}"
    else:
        text = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.6g}"
    return text.replace("-", MINUS)
