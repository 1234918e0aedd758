"""The privacy dimension of an evaluation: the rate of near-duplicates. Membership and re-identification are the work of an audit."""

from __future__ import annotations

from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.report.record import Dimension
from synthorax.evaluation.statistics.roc import wilson
from synthorax.privacy.copies import half_calibrated
from synthorax.types import ImageSet, Score


def privacy(real: RealImages, synthetic: ImageSet) -> Dimension:
    """Rate of near-duplicates of training images, beside the rate of false alarms on real images of other patients."""
    detector, alarms = half_calibrated(real.train.pixels, real.held_out.pixels, real.held_out.patients())
    copies = int(detector.check(synthetic.pixels).is_copy.sum())
    low, high = wilson(copies, len(synthetic))
    score = Score(metric="near_duplicate_rate", value=copies / len(synthetic), low=low, high=high, n_real=len(real.train),
                  n_synthetic=len(synthetic), floor=alarms.rate,
                  note=f"floor: {alarms.num_images} real images of other patients by the same threshold "
                       f"[{alarms.low:.3f}, {alarms.high:.3f}]")
    extra = {"copy_threshold": detector.threshold, "not_measured": "membership, re-identification; see `synthorax audit`"}
    return Dimension("measured", scores=(score,), extra=extra)
