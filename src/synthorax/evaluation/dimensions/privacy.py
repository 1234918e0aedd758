"""The privacy dimension of an evaluation: the rate of near-duplicates. Membership and re-identification are the work of an audit."""

from __future__ import annotations

from synthorax.data.derived import told_apart
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.report.record import Dimension
from synthorax.evaluation.statistics.roc import wilson
from synthorax.privacy.copies import half_calibrated
from synthorax.types import ImageSet, Score

ALL_DERIVED = "all {} images are derived from patients' images, who can be recognised in them: there is no copy to look for"


def privacy(real: RealImages, synthetic: ImageSet) -> Dimension:
    """Rate of near-duplicates of training images, beside the rate of false alarms on real images of other patients.

    Images that are derived from a patient's are near-duplicates by construction: they are counted, not measured.
    """
    made, derived = told_apart(synthetic)
    known = {"derived_from_patients": len(derived)} if len(derived) else {}
    if not len(made):
        return Dimension("skipped", reason=ALL_DERIVED.format(len(derived)))
    detector, alarms = half_calibrated(real.train.pixels, real.held_out.pixels, real.held_out.patients())
    copies = int(detector.check(made.pixels).is_copy.sum())
    low, high = wilson(copies, len(made))
    score = Score(metric="near_duplicate_rate", value=copies / len(made), low=low, high=high, n_real=len(real.train),
                  n_synthetic=len(made), floor=alarms.rate,
                  note=f"floor: {alarms.num_images} real images of other patients by the same threshold "
                       f"[{alarms.low:.3f}, {alarms.high:.3f}]")
    extra = {"copy_threshold": detector.threshold, **known, "not_measured": "membership, re-identification; see `synthorax audit`"}
    return Dimension("measured", scores=(score,), extra=extra)
