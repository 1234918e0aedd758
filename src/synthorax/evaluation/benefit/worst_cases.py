"""Contact sheets of the tested images that each arm got most wrong, and of those that training with synthetic images changed most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from synthorax.evaluation.benefit.comparison import ArmPredictions
from synthorax.evaluation.benefit.design import stated_labels
from synthorax.evaluation.benefit.protocol import DECLARED, PLAIN
from synthorax.evaluation.benefit.subgroups import ARMS, pair_of
from synthorax.evaluation.report.contact_sheets import contact_sheet, png_bytes

NOTE = ("This report shows images of real patients (the gallery of failures). Share it only where these images may be shared, or make it "
        "again without --gallery.")
COLUMNS, ROWS, TILE_PX = 6, 2, 168
Vector = NDArray[np.float64]


def failure_sheets(found: ArmPredictions, finding: str) -> dict[str, bytes]:
    """PNG by name: twelve images each; the captions give the label and the probabilities, and nothing that names a patient.

    How wrong an image is called is the share of images of the other class that it stands on the wrong side of: it needs no threshold.
    """
    known, labels = stated_labels(found.test, finding)
    rows, column = np.flatnonzero(known), found.test.findings.index(finding)
    probabilities = {arm: found.probabilities[arm][known, column].mean(axis=-1) for arm in ARMS}
    wrong = {arm: wrongness(labels, scores) for arm, scores in zip(ARMS, pair_of(found, finding).mean(axis=-1).T, strict=True)}
    words = np.where(labels == 1, "present", "absent")
    change = wrong[DECLARED] - wrong[PLAIN]
    pages = {name: (wrong[arm], [f"{word} {p:.2f}" for word, p in zip(words, probabilities[arm], strict=True)])
             for name, arm in (("most_wrong_without", PLAIN), ("most_wrong_with", DECLARED))}
    both = [f"{word} {one:.2f} to {other:.2f}" for word, one, other in zip(words, probabilities[PLAIN], probabilities[DECLARED],
                                                                           strict=True)]
    pages |= {"corrected_by_synthetic": (-change, both), "spoiled_by_synthetic": (change, both)}
    sheets = {}
    for name, (size, captions) in pages.items():
        chosen = [place for place in np.argsort(-size, kind="stable")[: COLUMNS * ROWS].tolist() if size[place] > 0]
        if chosen:
            sheet = contact_sheet(found.test.pixels[rows[chosen]], columns=COLUMNS, tile_px=TILE_PX,
                                  captions=[captions[place] for place in chosen])
            sheets[f"{name}: {finding}"] = png_bytes(sheet)
    return sheets


def wrongness(labels: NDArray[np.int_], scores: Vector) -> Vector:
    """Share of images of the other class that each image stands on the wrong side of, [N] in [0, 1]; ties count half.

    >>> wrongness(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.5, 0.9])).tolist()
    [0.0, 0.5, 0.5, 0.0]
    """
    wrong = np.empty(len(labels))
    for value, sign in ((1, 1), (0, -1)):
        own, others = sign * scores[labels == value], np.sort(sign * scores[labels != value])
        below = (np.searchsorted(others, own, side="left") + np.searchsorted(others, own, side="right")) / 2
        wrong[labels == value] = 1 - below / max(len(others), 1)
    return wrong
