"""What a trained model reads in texts, against the rules that taught it: in descriptions and, if given, in reports of radiologists.

  python bench/studies/text_statements.py --model runs/controlled [--reports reports.csv]

Descriptions are made up with another seed than training uses. Reports are a table with the columns `findings`, `impression` and
`xml_uid` of the IU collection, each report once.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import synthorax as sx
from synthorax.families.denoising.model import DiffusionModel
from synthorax.protocols import LESION_PROPERTIES
from synthorax.rng import derive
from synthorax.training.text_statements import made_up_text, read

NUM_TEXTS = 2000
BATCH = 64


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder or model file")
    parser.add_argument("--reports", type=Path)
    options = parser.parse_args()
    model = sx.load_model(options.model)
    if not isinstance(model, DiffusionModel) or model.reader is None:
        parser.error("the model is not conditioned on text")
    findings = model.spec.findings
    rng = np.random.default_rng(derive(0, "bench", "reading"))
    print(agreement(model, [made_up_text(findings, rng) for _ in range(NUM_TEXTS)], name="made-up descriptions"))
    if options.reports:
        print(agreement(model, reports(options.reports), name="reports"))
    return 0


def reports(path: Path) -> list[str]:
    """Findings and impression of each report."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = {row["xml_uid"]: row for row in csv.DictReader(file)}
    return [" ".join(filter(None, (row["findings"], row["impression"]))) for row in rows.values()]


def agreement(model: DiffusionModel, texts: Sequence[str], *, name: str) -> str:
    """A Markdown table: of what the rules read in the texts, the part that the model reads alike, and what it adds."""
    assert model.text is not None and model.reader is not None
    wanted = read(texts, model.spec.findings)
    with torch.inference_mode():
        parts = [model.reader(*model.text(texts[start:start + BATCH])) for start in range(0, len(texts), BATCH)]
    labels, lesions = (torch.cat([part[number] for part in parts]) for number in (0, 1))
    lines = [f"{len(texts)} {name}", "", "| finding | present | absent | uncertain | added where the text is silent | side |",
             "|---|---|---|---|---|---|"]
    left = LESION_PROPERTIES.index("left")
    for column, finding in enumerate(model.spec.findings):
        right, read_label = wanted.labels[:, column], labels[:, column]
        sides = wanted.lesions[:, column, left]
        cells = [share(read_label == value, right == value) for value in (1.0, 0.0, 0.5)]
        cells += [share(~read_label.isnan(), right.isnan()), share(lesions[:, column, left] == sides, ~sides.isnan())]
        lines.append(f"| {finding} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def share(right: Tensor, among: Tensor) -> str:
    """The part of the rows `among` that are `right`, and how many these are."""
    return f"{right[among].float().mean().item():.3f} ({int(among.sum())})" if among.any() else ""


if __name__ == "__main__":
    sys.exit(main())
