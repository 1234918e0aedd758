"""Does the result hold elsewhere: distances to each site of real images, and what corruption of the images does to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from synthorax.errors import InputError
from synthorax.evaluation.metrics.corruptions import CORRUPTIONS, corrupt
from synthorax.evaluation.metrics.distances import kid, kid_difference, kid_score
from synthorax.evaluation.metrics.feature_sets import MIN_IMAGES_PER_GROUP, MIN_PATIENTS_PER_GROUP, RealImages, SetFeatures
from synthorax.evaluation.report.record import Dimension
from synthorax.progress import Progress, quiet
from synthorax.types import ImageSet, Score

MAX_CORRUPTED_IMAGES = 64


def robustness(real: RealImages, synthetic: ImageSet, seen: SetFeatures, *, seed: int, corruptions: bool = True,
               progress: Progress = quiet) -> Dimension:
    """Scores by site and, unless left out, by corruption; skipped with the reason where neither can be had."""
    sites = site_distances(real, synthetic, seen, seed=seed)
    reasons = {} if sites else {"other_sites": "the real images name fewer than two sites with enough held-out images"}
    try:
        if not corruptions:
            raise InputError("left out of a quick evaluation; run `synthorax evaluate` without --quick for it")
        moved = corruption_shifts(real, synthetic, seen, seed=seed, progress=progress)
    except InputError as error:
        moved, reasons = (), reasons | {"corruptions": str(error)}
    if not (sites or moved):
        return Dimension("skipped", reason="; ".join(f"{name.replace('_', ' ')}: {reason}" for name, reason in reasons.items()))
    return Dimension("measured", scores=(*sites, *moved), extra={"not_measured": reasons} if reasons else {})


def site_distances(real: RealImages, synthetic: ImageSet, seen: SetFeatures, *, seed: int) -> tuple[Score, ...]:
    """KID of all synthetic images to the real images of each site; floor: of real images of the other sites to these."""
    site = {part: np.array([study.site for study in images.studies]) for part, images in (("held_out", real.held_out), ("train",
                                                                                                                        real.train))}
    patients = real.held_out.patients()
    named = []
    for name in sorted(set(site["held_out"].tolist()) - {""}):
        rows = np.flatnonzero(site["held_out"] == name)
        if len(rows) >= MIN_IMAGES_PER_GROUP and len(set(patients[rows])) >= MIN_PATIENTS_PER_GROUP:
            named.append((name, rows))
    if len(set(site["train"].tolist()) | set(site["held_out"].tolist())) < 2:
        return ()
    scores = []
    for name, rows in named:
        elsewhere = np.flatnonzero(site["train"] != name)
        floor = (seen.held_out[rows], seen.train[elsewhere]) if len(elsewhere) >= MIN_IMAGES_PER_GROUP else None
        score = kid_score(seen.held_out[rows], seen.synthetic, floor_sets=floor, features_name=seen.space.name, seed=seed,
                          group=f"site {name}", real_patients=patients[rows])
        note = "all synthetic images against this site; floor: real images of other sites against it"
        scores.append(replace(score, metric="kid_to_site", note="; ".join(filter(None, (note, score.note)))))
    return tuple(scores)


def corruption_shifts(real: RealImages, synthetic: ImageSet, seen: SetFeatures, *, seed: int,
                      progress: Progress = quiet) -> tuple[Score, ...]:
    """How much farther from real images each corruption carries the synthetic ones: KID afterwards less KID before, on the same images.

    The floor is the same corruption of as many real training images. A shift of zero means that this feature space does not see the
    corruption, so it could not see a generator that makes such images either.
    """
    if min(len(synthetic), len(real.train), len(real.held_out)) < MIN_IMAGES_PER_GROUP:
        raise InputError(f"corruptions need {MIN_IMAGES_PER_GROUP} images a side")
    rng = np.random.default_rng(seed)
    num = min(MAX_CORRUPTED_IMAGES, len(synthetic), len(real.train))
    made, known = (rng.permutation(len(images))[:num] for images in (synthetic, real.train))
    scores = []
    for number, name in enumerate(CORRUPTIONS):
        progress(number / len(CORRUPTIONS), f"robustness, {name}")
        after = seen.space(corrupt(synthetic.pixels[made], name, seed=seed))
        value, low, high = kid_difference(seen.held_out, seen.synthetic[made], after, real_patients=real.held_out.patients())
        of_real = seen.space(corrupt(real.train.pixels[known], name, seed=seed))
        floor = kid(seen.held_out, of_real) - kid(seen.held_out, seen.train[known])
        scores.append(Score(metric="kid_shift", value=value, low=low, high=high, n_real=len(real.held_out),
                            n_synthetic=num, group=name, features=seen.space.name, floor=floor,
                            note="KID after the corruption minus KID before, on the same images; floor: the same for real training images"))
    return tuple(scores)
