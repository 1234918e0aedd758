"""Measure a synthetic set against real images: every dimension that images and tables can answer, the others with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.derived import derived_rows, refuse_held_out_hosts
from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import InputError
from synthorax.evaluation.dimensions.balance import balance, balance_rows
from synthorax.evaluation.dimensions.clinical_acceptability import reader_study
from synthorax.evaluation.dimensions.controllability import controllability
from synthorax.evaluation.dimensions.diversity import diversity
from synthorax.evaluation.dimensions.fidelity import ORGANS, fidelity
from synthorax.evaluation.dimensions.lesion_preservation import lesion_preservation, requested_classes
from synthorax.evaluation.dimensions.privacy import privacy
from synthorax.evaluation.dimensions.readings import Readings
from synthorax.evaluation.dimensions.robustness import robustness
from synthorax.evaluation.metrics.feature_sets import MIN_IMAGES_PER_GROUP, RealImages, SetFeatures, shared_groups
from synthorax.evaluation.metrics.segmentation import FittedSegmenter, fit_segmenter
from synthorax.evaluation.report.contact_sheets import contact_sheet, png_bytes
from synthorax.evaluation.report.group_plots import embedding_map
from synthorax.evaluation.report.record import Dimension, Report
from synthorax.judges.features import FeatureSpace, looks_at
from synthorax.judges.segmenter import Segmenter
from synthorax.progress import Progress, portion, quiet
from synthorax.types import ImageSet

SHEET_IMAGES = 24
SHEET_FINDINGS = 3
NO_READINGS = "no reader study was given"
LEFT_OUT = "left out of a quick evaluation; run `synthorax evaluate` without --quick for it"


def evaluate_images(real: RealImages, synthetic: ImageSet, *, features: FeatureSpace | Sequence[FeatureSpace], facts: Mapping[str, Any],
                   seed: int = 0, quick: bool = False, readings: Readings | None = None, progress: Progress = quiet) -> Report:
    """Everything that can be said of `synthetic` without training on it; `facts` is the synthetic set's dataset.json.

    Fidelity and diversity compare with held-out images; floors compare held-out with training images. Groups, requests and robustness are
    measured in the first of `features`. `quick` leaves out what trains a judge and what needs features of corrupted images. Raises
    InputError if a judge that chose these images (`facts["judges"]`) has the same weights as one that would grade them now.
    """
    spaces = features if isinstance(features, Sequence) else (features,)
    for space in spaces:
        _refuse_reused_judge(space, facts)
    refuse_held_out_hosts(synthetic.studies, {"held-out": real.held_out.studies})
    seen = []
    for number, space in enumerate(spaces):
        share = 0.4 / len(spaces)
        seen.append(SetFeatures.through(space, real, synthetic, progress=portion(progress, number * share, (number + 1) * share)))
    control, judges = controllability(real, synthetic, seen[0])
    fitted_segmenter = FittedSegmenter(segmenter=None, reasons=dict.fromkeys((*ORGANS, *requested_classes(synthetic)), LEFT_OUT))
    if not quick:
        fitted_segmenter = fit_segmenter(real, _classes(real, synthetic), seed=seed, progress=portion(progress, 0.4, 0.6))
        if fitted_segmenter.segmenter is not None:
            _refuse_reused_judge(fitted_segmenter.segmenter.judge, facts)
    groups = list(shared_groups(real, synthetic))
    measures: Mapping[str, tuple[float, Callable[[Progress], Dimension]]] = {  # from which fraction of the whole work on each is measured
        "fidelity": (0.6, lambda own: _or_skipped(
            lambda: fidelity(real, synthetic, seen, groups, fitted_segmenter, seed=seed, progress=own))),
        "diversity": (0.75, lambda own: _or_skipped(lambda: diversity(real, synthetic, seen, groups, seed=seed, progress=own))),
        "lesion_preservation": (0.85, lambda own: _or_skipped(
            lambda: lesion_preservation(real, synthetic, fitted_segmenter, space=spaces[0], seed=seed))),
        "controllability": (0.87, lambda own: control),
        "balance": (0.87, lambda own: balance(real.train, synthetic)),
        "robustness": (0.87, lambda own: _or_skipped(
            lambda: robustness(real, synthetic, seen[0], seed=seed, corruptions=not quick, progress=own))),
        "privacy": (0.94, lambda own: _or_skipped(lambda: privacy(real, synthetic))),
        "clinical_acceptability": (0.97, lambda own: Dimension("skipped", reason=NO_READINGS) if readings is None else
                                   reader_study(readings, real, synthetic, seed=seed)),
    }
    dimensions, starts = {}, [start for start, _ in measures.values()]
    for (name, (start, measure)), end in zip(measures.items(), [*starts[1:], 0.98], strict=True):
        progress(start, name.replace("_", " "))
        dimensions[name] = measure(portion(progress, start, end))
    progress(0.98, "sheets and maps")
    made_by = {name: facts[name] for name in ("model", "model_digest") if name in facts}
    named: list[dict[str, Any]] = [{"name": space.name, "digest": space.digest} | looks_at(space) for space in spaces]
    if fitted_segmenter.segmenter is not None:
        named.append({"name": fitted_segmenter.segmenter.judge.name, "digest": fitted_segmenter.segmenter.judge.digest})
    sides = {"real": _describe(real.train, real.held_out), "synthetic": _describe(synthetic) | made_by}
    study = {} if readings is None else {"readings": {"digest": readings.digest}}
    figures: dict[str, bytes | str] = {**sheets(real.train, synthetic), **maps(seen)}
    progress(1.0, "measured")
    return Report(inputs=sides | study,
                  judges=(*named, *judges, *dimensions["lesion_preservation"].extra.get("observers", ()), *facts.get("judges", ())),
                  dimensions=dimensions, balance=balance_rows(real.train, synthetic),
                  figures=figures, notes=(*_notes(real.train, synthetic, facts), *_sizes(real.train, spaces)))


def maps(seen: Sequence[SetFeatures], *, most: int = 400) -> dict[str, str]:
    """For each feature space, where real and synthetic images lie on the two directions in which real images differ most."""
    drawn = {}
    for space in seen:
        enough = len(space.held_out) >= MIN_IMAGES_PER_GROUP and len(space.synthetic) >= 2
        if enough and np.isfinite(space.held_out).all() and np.isfinite(space.synthetic).all():
            name = f"feature_map: {space.space.name}"
            drawn[name] = embedding_map(space.held_out[:most], space.synthetic[:most], space=space.space.name)
    return drawn


def _classes(real: RealImages, synthetic: ImageSet) -> list[str]:
    """Mask classes that a judge is wanted for: organs, and whatever was requested."""
    known = () if real.train.masks is None else real.train.masks.names
    organs = [name for name in ORGANS if name in known or name == "lung"]
    return [*organs, *(name for name in requested_classes(synthetic) if name not in organs)]


def sheets(real: ImageSet, synthetic: ImageSet) -> dict[str, bytes]:
    """Real and synthetic sheets, of all images and of the findings asked for most, under the names that the page pairs up."""
    figures = {"real: all": _sheet(real, np.arange(len(real))), "synthetic: all": _sheet(synthetic, np.arange(len(synthetic)))}
    counts = {name: int((synthetic.column(name) == 1).sum()) for name in synthetic.findings if name != NO_FINDING}
    for finding in sorted(counts, key=lambda name: -counts[name])[:SHEET_FINDINGS]:
        shown, asked = np.flatnonzero(real.column(finding) == 1), np.flatnonzero(synthetic.column(finding) == 1)
        if len(shown) and len(asked) >= MIN_IMAGES_PER_GROUP:
            figures |= {f"real: {finding}": _sheet(real, shown), f"synthetic: {finding}": _sheet(synthetic, asked)}
    return figures


def _sheet(images: ImageSet, rows: NDArray[np.intp]) -> bytes:
    """The first images after a fixed shuffle: uncurated."""
    chosen = np.random.default_rng(0).permutation(rows)[:SHEET_IMAGES]
    return png_bytes(contact_sheet(images.pixels[chosen], columns=6, tile_px=max(96, images.pixels.shape[1])))


def _refuse_reused_judge(grading: FeatureSpace | Segmenter, facts: Mapping[str, Any]) -> None:
    for judge in facts.get("judges", ()):
        if judge["digest"] == grading.digest:
            raise InputError(f"the judge '{judge['name']}' chose these images and must not grade them",
                             remedy="evaluate with another judge: another feature space, or a segmenter that is trained for it")


def _or_skipped(measure: Callable[[], Dimension]) -> Dimension:
    """The dimension, or why these images do not allow it, for instance because they are too few."""
    try:
        return measure()
    except InputError as error:
        return Dimension("skipped", reason=str(error))


def _describe(images: ImageSet, *more: ImageSet) -> dict[str, Any]:
    """Digest and counts of one side; the real side also says how its images are divided."""
    sets = (images, *more)
    facts: dict[str, Any] = {"digest": images.digest, "images": sum(len(part) for part in sets)}
    if images.studies[0].origin == "real":
        facts["patients"] = len({patient for part in sets for patient in part.patients()})
        facts["train"], facts["held_out"] = len(images), sum(len(part) for part in more)
    facts["image_size"] = int(images.pixels.shape[1])
    if derived := len(derived_rows(images.studies)):
        facts["derived_from_patients"] = derived
    return facts


def _sizes(real: ImageSet, spaces: Sequence[FeatureSpace]) -> list[str]:
    """At which size each feature space looks, where that is not the size of the images."""
    own = real.pixels.shape[1]
    told = [(space.name, looks_at(space)["input_px"]) for space in spaces if looks_at(space)]
    unseen = "; finer detail is not in its numbers."
    return [f"The feature space {name} looks at these images of {own} px at {size} px{unseen if size < own else '.'}"
            for name, size in told if size != own]


def _notes(real: ImageSet, synthetic: ImageSet, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader must know before the numbers."""
    drawn = any(study.site == "phantom" for study in real.studies)
    notes = ["These images are drawings of a phantom thorax, not radiographs of people."] if drawn else []
    if derived := len(derived_rows(synthetic.studies)):
        notes.append(f"{derived} of the {len(synthetic)} synthetic images are derived from patients' images: but for what was inserted "
                     "they are real, so fidelity and diversity are nearly those of real images, and they are left out of privacy.")
    unchecked = facts.get("screening", {}).get("not_checked", {})
    notes += [f"Screening did not check whether {finding} is visible: {reason}." for finding, reason in unchecked.items()]
    return tuple(notes)
