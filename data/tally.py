"""In how many rows something was found, and in which first: what every report and every error says in one way.

rows_listed([3, 7])               rows 3, 7
rows_listed(range(1, 31))         rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 20 more
rows_listed([[3, 7], [4, 9]])     rows 3 and 7, 4 and 9
"""

from collections.abc import Mapping, Sequence

LISTED = 10  # rows that are named


class Tally:
    """How many rows something was found in, and the first `kept` of them. As text it is what `rows_listed` says."""

    def __init__(self, kept: int = LISTED):
        self.count, self.kept = 0, kept
        self.rows: list[int | str] = []

    def add(self, row: int | str) -> None:
        """One more."""
        self.count += 1
        if self.count <= self.kept:
            self.rows.append(row)

    def __str__(self) -> str:
        return rows_listed(self.rows, self.count)


def rows_listed(rows: Sequence, count: int | None = None) -> str:
    """The first LISTED of these rows, or couples of rows, by their numbers, and how many more.

    count: of all of them, where `rows` are the first only.
    """
    count = len(rows) if count is None else count
    couples = len(rows) > 0 and isinstance(rows[0], (list, tuple))
    named = [" and ".join(map(str, row)) if couples else str(row) for row in rows[:LISTED]]
    more = f" and {count - len(named):,} more" if count > len(named) else ""
    return f"row{'s' * (count > 1 or couples)} {', '.join(named)}{more}"


def summary(
    counted: Mapping[str, Tally | Sequence[int]], what: str = "pair", details: Mapping[str, str] | None = None
) -> str:
    """{"an empty answer": [3, 7]} -> 'an empty answer: 2 pairs (rows 3, 7)', and behind each reason its detail, if any.

    what: is counted; "" leaves it unsaid.
    """

    def one(why: str, rows: Tally | Sequence[int]) -> str:
        count = rows.count if isinstance(rows, Tally) else len(rows)
        listed = rows if isinstance(rows, Tally) else rows_listed(rows)
        detail = f": {details[why]}" if details and details.get(why) else ""
        return f"{why}: {number_of(count, what) if what else f'{count:,}'} ({listed}){detail}"

    return "; ".join(one(why, rows) for why, rows in counted.items())


def number_of(count: int, what: str = "row") -> str:
    """1 -> '1 row', 2000 -> '2,000 rows'"""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
