"""The diversity dimension: neighbours and Vendi score of all images, of each group and named subtype, and MS-SSIM of pairs."""

from __future__ import annotations

from collections.abc import Sequence

from synthorax.errors import InputError
from synthorax.evaluation.metrics.feature_sets import Group, RealImages, SetFeatures
from synthorax.evaluation.metrics.ms_ssim import ms_ssim_scores
from synthorax.evaluation.metrics.neighbours import neighbour_scores
from synthorax.evaluation.metrics.vendi import vendi_score
from synthorax.evaluation.report.record import Dimension
from synthorax.progress import Progress, quiet
from synthorax.types import ImageSet, Score


def diversity(real: RealImages, synthetic: ImageSet, seen: Sequence[SetFeatures], groups: Sequence[Group], *, seed: int,
              progress: Progress = quiet) -> Dimension:
    """Precision, recall, density, coverage and Vendi score by group in the first feature space, of all images in the others."""
    scores: list[Score] = []
    compared = [(space, group) for number, space in enumerate(seen) for group in groups if number == 0 or group.name == "all"]
    for done, (space, group) in enumerate(compared):
        progress(0.8 * done / len(compared), f"diversity, {group.name}")
        scores += neighbourhood(real, space, group, seed=seed)
    progress(0.8, "diversity, MS-SSIM of pairs")
    missing = {}
    try:
        scores += ms_ssim_scores(real.held_out.pixels, synthetic.pixels, seed=seed, floor_sets=(real.held_out.pixels, real.train.pixels))
    except InputError as error:
        missing["ms_ssim"] = str(error)
    return Dimension("measured", scores=tuple(scores), extra={"not_measured": missing} if missing else {})


def neighbourhood(real: RealImages, seen: SetFeatures, group: Group, *, seed: int) -> tuple[Score, ...]:
    """The five scores of one group in one feature space."""
    held_out, made = seen.held_out[group.held_out], seen.synthetic[group.synthetic]
    floor = (held_out, seen.train[group.train]) if group.floor else None
    prdc = neighbour_scores(held_out, made, floor_sets=floor, features_name=seen.space.name, seed=seed, group=group.name,
                            real_patients=real.held_out.patients()[group.held_out])
    return (*prdc, vendi_score(held_out, made, features_name=seen.space.name, seed=seed, group=group.name, reference=seen.train))
