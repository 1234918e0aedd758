"""The controllability dimension: do images show what was asked for, by linear probes that learned from real training images?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.vocabulary import NO_FINDING
from synthorax.evaluation.metrics.feature_sets import MIN_IMAGES_PER_GROUP, RealImages, SetFeatures
from synthorax.evaluation.report.record import Dimension
from synthorax.evaluation.statistics.roc import delong_interval, wilson
from synthorax.judges.linear_probe import fit_probe
from synthorax.types import ImageSet, Score


def controllability(real: RealImages, synthetic: ImageSet, seen: SetFeatures) -> tuple[Dimension, list[dict[str, str]]]:
    """AUROC of what was asked for, and the judges of it; floor: the same on real held-out images."""
    if not all(np.isfinite(vectors).all() for vectors in (seen.train, seen.held_out, seen.synthetic)):
        return Dimension("skipped", reason=f"the features of '{seen.space.name}' hold NaN or infinity"), []
    scores, judges = [], []
    for finding in synthetic.findings:
        asked, shown = synthetic.column(finding), real.held_out.column(finding)
        if finding == NO_FINDING or not (_both_classes(asked) and _both_classes(shown) and _both_classes(real.train.column(finding))):
            continue
        probe = fit_probe(seen.train, real.train.column(finding), name=f"{seen.space.name} probe for {finding}")
        judges.append({"name": probe.name, "digest": probe.digest})
        value = _auroc(asked, probe.scores(seen.synthetic))
        ceiling = _auroc(shown, probe.scores(seen.held_out))
        scores.append(Score(metric="requested_finding_auroc", value=value.auc, low=value.low, high=value.high, n_real=len(real.held_out),
                            n_synthetic=len(synthetic), group=finding, features=probe.name,
                            floor=ceiling.auc, note=f"on real held-out images {ceiling.auc:.2f} [{ceiling.low:.2f}, {ceiling.high:.2f}]"))
    views = _views(real, synthetic, seen)
    if views is not None:
        scores.append(views)
    if not scores:
        return Dimension("skipped", reason=f"no finding is both asked for and not asked for in at least {MIN_IMAGES_PER_GROUP} images"), []
    return Dimension("measured", scores=tuple(scores)), judges


def _views(real: RealImages, synthetic: ImageSet, seen: SetFeatures) -> Score | None:
    """How often a probe for the view agrees with the view that was asked for (PA against AP)."""
    train, held_out, made = (_view_labels(images) for images in (real.train, real.held_out, synthetic))
    if not (_both_classes(train) and _both_classes(held_out) and _both_classes(made)):
        return None
    probe = fit_probe(seen.train, train, name=f"{seen.space.name} probe for view")

    def agreement(labels: NDArray[np.float32], vectors: NDArray[np.float32]) -> tuple[int, int]:
        stated = ~np.isnan(labels)
        return int(((probe.scores(vectors) > 0) == (labels == 1))[stated].sum()), int(stated.sum())

    agreed, total = agreement(made, seen.synthetic)
    low, high = wilson(agreed, total)
    real_agreed, real_total = agreement(held_out, seen.held_out)
    return Score(metric="view_agreement", value=agreed / total, low=low, high=high, n_real=real_total,
                 n_synthetic=total, features=probe.name, floor=real_agreed / real_total)


def _view_labels(images: ImageSet) -> NDArray[np.float32]:
    return np.array([{"PA": 1.0, "AP": 0.0}.get(study.view, np.nan) for study in images.studies], dtype=np.float32)


def _both_classes(labels: NDArray[np.float32]) -> bool:
    return min(int((labels == 1).sum()), int((labels == 0).sum())) >= MIN_IMAGES_PER_GROUP // 2


def _auroc(labels: NDArray[np.float32], scores: NDArray[np.float64]) -> Any:
    stated = ~np.isnan(labels)
    return delong_interval(labels[stated].astype(int), scores[stated])
