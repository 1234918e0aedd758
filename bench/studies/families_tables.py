"""The tables of docs/studies/families.md from a comparison: distribution, obedience and copies, costs.

  python bench/studies/families_tables.py comparison.json
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from synthorax.evaluation.comparison.join import read_report
from synthorax.evaluation.comparison.measures import DISTRIBUTION
from synthorax.evaluation.comparison.pages import REAL, sentences, table

ALARMS = re.compile(r"(?<=\]) \(.* \[.*\]\)")
"""in the cell of near-duplicates: how often real images are called copies, the same in every row"""


def main() -> int:
    """Print one Markdown table a group of columns, and what a reader must know."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    report = read_report(parser.parse_args().comparison)
    columns, rows = table(report)
    costs = next(index for index, name in enumerate(columns) if name.startswith("parameters"))
    last = 1 + len(DISTRIBUTION)
    for first, end, body in ((1, last, rows), (last, costs, rows), (costs, len(columns), rows[1:])):  # real images cost nothing
        print(part([columns[0], *columns[first:end]], [[row[0], *row[first:end]] for row in body]))
    print("\n".join(sentences(report)))
    return 0


def part(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; rates of false alarms and reasons, which are the same for all rows, are left to the text."""
    short = [[name if name == REAL else f"`{name}`",
              *("–" if cell.startswith("not measured: ") else ALARMS.sub("", cell) for cell in cells)] for name, *cells in rows]
    columns = [column.removesuffix(" (false alarms)") for column in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *short)) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
