"""Texts and what they state, from which a text encoder learns to read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from synthorax.data.describe import describe, lesions_of
from synthorax.data.language import labels_of, parse_text
from synthorax.data.vocabulary import NO_FINDING, NOT_A_FINDING_OF_DISEASE
from synthorax.protocols import LESION_PROPERTIES, UNCERTAIN, TextStatements
from synthorax.types import Lesion, Stated

NUMBERS = {Stated.PRESENT: 1.0, Stated.ABSENT: 0.0, Stated.UNCERTAIN: UNCERTAIN}
NORMAL = 0.05  # of made-up images
PLAIN = 0.2  # of present findings: named without a place or size
FEW = 3  # findings of a made-up image that are known to be there


def read(texts: Sequence[str], findings: Sequence[str]) -> TextStatements:
    """What the rules of `parse_text` make of each text.

    A chest called normal has none of the findings. Words name a region, not a point, so x stays not stated; several lesions of one
    finding agree on nothing but what all of them share.
    """
    labels = torch.full((len(texts), len(findings)), math.nan)
    lesions = torch.full((len(texts), len(findings), len(LESION_PROPERTIES)), math.nan)
    for row, text in enumerate(texts):
        statements = parse_text(text, allow=findings)
        stated = labels_of(statements)
        normal = stated.get(NO_FINDING) is Stated.PRESENT and Stated.PRESENT not in (stated.get(name) for name in findings)
        for column, name in enumerate(findings):
            if name in stated:
                labels[row, column] = NUMBERS[stated[name]]
            elif normal and name not in NOT_A_FINDING_OF_DISEASE:
                labels[row, column] = 0.0
            same = [_numbers(lesion) for lesion in lesions_of(statements) if lesion.finding == name]
            if same:
                lesions[row, column] = torch.tensor([one[0] if len(set(one)) == 1 else math.nan for one in zip(*same, strict=True)])
    return TextStatements(texts=tuple(texts), labels=labels, lesions=lesions)


def made_up_text(findings: Sequence[str], rng: np.random.Generator) -> str:
    """A description of an image that does not exist, so that rare findings, sides and denials are read as often as common ones."""
    if rng.random() < NORMAL:
        return describe({NO_FINDING: Stated.PRESENT}, choose=lambda choices: int(rng.integers(choices)))
    choice = rng.random(len(findings))
    talkative = rng.random() * min(1.0, 2 * FEW / len(findings))  # "left effusion" is asked for as well as long lists of what is absent
    present = set(rng.permutation(len(findings))[:rng.integers(FEW + 1)].tolist())
    labels, lesions = {}, []
    for column, name in enumerate(findings):
        if column in present:
            labels[name] = Stated.PRESENT
            plain, size, severity, x, y = rng.random(5).tolist()
            if plain > PLAIN:
                lesions.append(Lesion(finding=name, side=("left", "right")[x < 0.5], size=size, severity=severity, x=x, y=y))
        elif choice[column] < talkative:
            labels[name] = Stated.ABSENT if rng.random() < 0.8 else Stated.UNCERTAIN
    return describe(labels, lesions=lesions, choose=lambda choices: int(rng.integers(choices)))


def _numbers(lesion: Lesion) -> tuple[float, ...]:
    """The properties of a lesion as words give them."""
    left = {"left": 1.0, "right": 0.0}.get(lesion.side, math.nan)
    return left, lesion.size, lesion.severity, math.nan, lesion.y
