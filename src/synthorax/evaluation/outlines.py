"""Outlines of organs and lesions by a judge that learned from the real training films' masks: where they are enough to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from synthorax.data.masks import INSIDE
from synthorax.evaluation.sides import FEWEST_FILMS, FEWEST_PATIENTS, RealFilms
from synthorax.judges.fitting import FilmArray
from synthorax.judges.segmenter import Segmenter, SegmenterConfig, dice, train_segmenter
from synthorax.types import Films, Masks

SIDE_PX = 64
LEAST_DICE = 0.7
"""overlap with human outlines on held-out films below which the judge of an organ says nothing"""
QUICK = SegmenterConfig(updates=400, batch_size=16, width=16, input_size=SIDE_PX)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outliner:
    """A segmenter of the real side's masks, and how well it does on films of other patients."""

    judge: Segmenter
    held_out_dice: Mapping[str, float]
    """class -> mean Dice with human outlines on held-out films; a class without such films is not in it"""
    learned_from: Mapping[str, int]
    """class -> training films with an outline"""

    def __call__(self, images: FilmArray) -> dict[str, NDArray[np.bool_]]:
        """Class -> outlines of films [N, S, S] on a grid of at most 64 px, [N, P, P]."""
        found = self.judge.outline(smaller(images))
        return {name: found[:, column] for column, name in enumerate(self.judge.classes)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlining:
    """The outliner, or None, and why classes have none."""

    outliner: Outliner | None
    reasons: Mapping[str, str] = field(default_factory=dict)
    """class -> reason"""


def smaller(images: FilmArray) -> FilmArray:
    """Films [N, S, S] averaged down to 64 px; smaller ones as they are."""
    if images.shape[1] <= SIDE_PX:
        return images
    chunks = (torch.from_numpy(images[start : start + 64].astype(np.float32))[:, None] for start in range(0, len(images), 64))
    parts = [functional.interpolate(chunk, (SIDE_PX, SIDE_PX), mode="area") for chunk in chunks]
    return cast(FilmArray, torch.cat(parts)[:, 0].round().numpy().astype(images.dtype))


def outlines_of(films: Films, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Drawn outlines of one class on at most 64 px [N, P, P], which films have one [N], and which are stated to show nothing [N].

    A box is no outline. An outline smaller than a pixel keeps its most covered one.
    """
    side = min(films.images.shape[1], SIDE_PX)
    drawn, has, nothing = np.zeros((len(films), side, side), dtype=np.bool_), np.zeros(len(films), dtype=np.bool_), None
    if films.masks is None or name not in films.masks.names:
        return drawn, has, has.copy()
    index = films.masks.index[:, films.masks.names.index(name)]
    nothing = index == Masks.NOTHING_THERE
    for row in np.flatnonzero(index >= 0):
        pixels = films.masks.pixels[index[row]]
        if pixels.max() < INSIDE and set(np.unique(pixels)) <= {0, 128}:
            continue
        cover = smaller(pixels[None])[0]
        drawn[row] = cover >= min(128, max(1, int(cover.max())))
        has[row] = True
    return drawn, has, nothing


def fit_outliner(real: RealFilms, classes: Sequence[str], *, seed: int, config: SegmenterConfig = QUICK) -> Outlining:
    """Learn the classes of which the training films have at least 20 outlines of 10 patients; the others get a reason."""
    reasons: dict[str, str] = {}
    drawn, stated, learned_from = [], [], {}
    patients = real.train.patients()
    for name in classes:
        outlines, has, nothing = outlines_of(real.train, name)
        if has.sum() < FEWEST_FILMS or len(set(patients[has])) < FEWEST_PATIENTS:
            reasons[name] = (f"no judge could learn it: {int(has.sum())} real training films have an outline of '{name}', "
                             f"at least {FEWEST_FILMS} films of {FEWEST_PATIENTS} patients are needed")
            continue
        learned_from[name] = int(has.sum())
        few_absent = np.flatnonzero(nothing)[: 2 * int(has.sum())]
        known = has.copy()
        known[few_absent] = True
        drawn.append(outlines)
        stated.append(known)
    if not drawn:
        return Outlining(outliner=None, reasons=reasons)
    rows = np.flatnonzero(np.any(stated, axis=0))
    judge = train_segmenter(smaller(real.train.images[rows]), np.stack(drawn, axis=1)[rows], classes=list(learned_from), config=config,
                            seed=seed, stated=np.stack(stated, axis=1)[rows], patients=patients[rows])
    agreement = {}
    for column, name in enumerate(judge.classes):
        outlines, has, _ = outlines_of(real.held_out, name)
        if has.sum() >= 2:
            found = judge.outline(smaller(real.held_out.images[has]))[:, column]
            agreement[name] = float(dice(outlines[has], found).mean())
    return Outlining(outliner=Outliner(judge=judge, held_out_dice=agreement, learned_from=learned_from), reasons=reasons)


def describe_outliner(outlining: Outlining) -> dict[str, Any]:
    """JSON-ready: what the judge learned from, its overlap on held-out films, and why classes are missing."""
    facts: dict[str, Any] = {"no_judge": dict(outlining.reasons)} if outlining.reasons else {}
    if outlining.outliner is not None:
        facts["outlines_learned_from"] = dict(outlining.outliner.learned_from)
        facts["held_out_dice"] = dict(outlining.outliner.held_out_dice)
    return facts
