"""Does the gain hold elsewhere? Classifiers trained without a site asked about its images, and all classifiers about another hospital's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from synthorax.data.pixels import with_bits_of
from synthorax.errors import InputError, UsageError, nearest
from synthorax.evaluation.benefit.comparison import ArmPredictions, Record, arm_predictions, delta_of
from synthorax.evaluation.benefit.design import Design, Fraction, stated_labels, too_few_patients
from synthorax.evaluation.benefit.protocol import PLAIN, Arm, BenefitConfig
from synthorax.evaluation.benefit.subgroups import ARMS, area_record, pair_of
from synthorax.evaluation.benefit.training import Answers, Job, take_ratio
from synthorax.rng import derive
from synthorax.types import ImageSet

NOTE = ("The generator learned from images of all sites unless it was trained without this one, so the synthetic images may carry "
        "something "
        "of the site that the classifiers did not train on.")


# One site left out


def site_jobs(design: Design, synthetic: ImageSet, targets: Sequence[str], config: BenefitConfig) -> list[Job]:
    """`real` and `real+synthetic` without each site in turn, asked about the held-out images of that site.

    Left out with a site's images are those that name no site, which may be of it, and the synthetic images that were asked for as of it.
    """
    made_of = _sites(synthetic)
    return [Job(name=_name(site, arm, run), arm=Arm(ratio=0.0 if arm == PLAIN else config.ratio), train=part.train, asked=part.test,
                targets=tuple(targets), seed=derive(config.seed, "training", run), synthetic=np.flatnonzero(made_of != site))
            for site, part in _parts(design).items() if any(not _reason(design, part, finding, config) for finding in targets)
            for run in range(config.seeds) for arm in ARMS]


def left_out_sites(design: Design, answers: Mapping[str, Answers], at_home: Mapping[str, Sequence[Answers]], synthetic: ImageSet,
                   finding: str,
                   config: BenefitConfig) -> Record:
    """By site: AUROC of both arms that did not train on it, their difference, and for comparison the AUROC of those that did.

    `answers` by the names of `site_jobs`; `at_home` has, for each arm, the answers of its usual trainings on validation and test images.
    """
    parts, made_of = _parts(design), _sites(synthetic)
    if len(parts) < 2:
        return {"sites": [], "skipped": [{"site": next(iter(parts), ""), "reason": "the real images name fewer than two sites"}]}
    (usual,), = design.parts
    place = {int(row): number for number, row in enumerate(np.concatenate([usual.val, usual.test]))}
    sites, skipped = [], []
    for site, part in parts.items():
        if reason := _reason(design, part, finding, config):
            skipped.append({"site": site, "reason": reason})
            continue
        own = replace(design, parts=((part,),), tested=part.test)
        rows = np.array([place[int(row)] for row in part.test])
        without, with_it = (arm_predictions(own, {arm: [[probabilities]] for arm, probabilities in by_arm.items()}, ratios={},
                                            config=config) for by_arm in (
            {arm: [answers[_name(site, arm, run)].probabilities for run in range(config.seeds)] for arm in ARMS},
            {arm: [answer.probabilities[rows] for answer in at_home[arm]] for arm in ARMS}))
        added = synthetic.take(np.flatnonzero(made_of != site))
        sites.append({"site": site, "n_real_train": len(part.train), "n_synthetic_left_out": int((made_of == site).sum()),
                     "ratio": round(len(take_ratio(added, config.ratio, len(part.train))) / len(part.train), 3),
                     **_comparison_record(without, finding, config), "trained_on_it": _areas(with_it, finding, config)})
    return {"sites": sites, "skipped": skipped, "note": NOTE}


def _parts(design: Design) -> dict[str, Fraction]:
    """For each site: the training images of the other sites, and its own held-out images."""
    (usual,), = design.parts
    site, held_out = _sites(design.real), np.concatenate([usual.val, usual.test])
    site[np.setdiff1d(np.arange(len(site)), np.concatenate([usual.train, held_out]))] = ""  # an external image's site is none of ours
    return {name: Fraction(train=usual.train[(site[usual.train] != name) & (site[usual.train] != "")], val=np.arange(0),
                       test=held_out[site[held_out] == name]) for name in sorted(set(site.tolist()) - {""})}


def _reason(design: Design, part: Fraction, finding: str, config: BenefitConfig) -> str:
    """Why a site cannot be tested, or nothing."""
    labels = design.real.column(finding)
    test = part.test[~np.isnan(labels[part.test])]
    if reason := too_few_patients(labels[test].astype(int), design.real.patients()[test], config):
        return reason
    if min((labels[part.train] == value).sum() for value in (0, 1)) == 0:
        return "the training images of the other sites are all with, or all without it"
    return ""


def _name(site: str, arm: str, run: int) -> str:
    return f"{arm} without site {site}, training {run + 1}"


def _sites(images: ImageSet) -> NDArray[np.str_]:
    return np.array([study.site for study in images.studies], dtype=np.str_)


# Another hospital


def fitted_external(external: ImageSet, like: ImageSet, sides: Mapping[str, ImageSet]) -> ImageSet:
    """The other hospital's images with the findings of `like`, by name, and its number of bits; a finding that it does not know is NaN.

    Raises InputError where an image is not real, has no patient, or where patients or images are among those of `sides`; UsageError for
    another size.
    """
    if external.pixels.shape[1:] != like.pixels.shape[1:]:
        raise UsageError("the external images must have the size of the others")
    for study in external.studies:
        if study.origin != "real" or not study.patient_id:
            raise InputError(f"external image {study.file_name} {'has no patient' if study.origin == 'real' else 'is not real'}",
                             remedy="an external test needs real images whose patients are known")
    if not set(external.findings) & set(like.findings):
        raise InputError(f"the external images state none of the findings; {nearest(like.findings[0], external.findings)}",
                         remedy="name the findings alike in both tables")
    labels = np.full((len(external), len(like.findings)), np.nan, dtype=np.float32)
    for column, finding in enumerate(like.findings):
        if finding in external.findings:
            labels[:, column] = external.column(finding)
    images = with_bits_of(external.pixels, like.pixels.dtype)
    patients = {study.patient_id for study in external.studies}
    pixels = {image.tobytes(): study.file_name for image, study in zip(images, external.studies, strict=True)}
    for side, image_set in sides.items():
        if shared := patients & ({study.patient_id for study in image_set.studies} - {""}):
            raise InputError(f"{len(shared)} patients have {side} and external images",
                             remedy="leave them out, or give other people of the same number another patient_id")
        for image, study in zip(image_set.pixels, image_set.studies, strict=True):
            if (duplicate := pixels.get(image.tobytes())) is not None:
                raise InputError(f"external image {duplicate} is, pixel for pixel, the {side} image {study.file_name}",
                                 remedy="an external image must be new to training")
    return ImageSet(pixels=images, studies=external.studies, findings=like.findings, labels=labels, digest=external.digest)


def with_external(design: Design, external: ImageSet) -> Design:
    """The same design; the external images stand behind all others and are on no side of it."""
    return replace(design, real=ImageSet.join([design.real, external]))


def external_test(external: ImageSet, at_home: Mapping[str, Sequence[Answers]], finding: str, config: BenefitConfig) -> Record:
    """Both arms on the external images, whose answers are the last of each training; or `skipped` with the reason."""
    known, labels = stated_labels(external, finding)
    if not known.any():
        return {"skipped": "the external images do not state it"}
    if reason := too_few_patients(labels, external.patients()[known], config):
        return {"skipped": reason.replace("unseen real images", "the external images")}
    probabilities = {arm: np.stack([answer.probabilities[-len(external):] for answer in answers], axis=-1) for arm,
                     answers in at_home.items()}
    found = ArmPredictions(test=external, probabilities=probabilities, scores=probabilities, thresholds={}, ratios={})
    return _comparison_record(found, finding, config)


def _comparison_record(found: ArmPredictions, finding: str, config: BenefitConfig) -> Record:
    known, labels = stated_labels(found.test, finding)
    delta = {key: round(part, 12) if isinstance(part, float) else part  # two equal areas differ in the 17th digit
             for key, part in delta_of(found, finding, against=PLAIN, config=config).items()}
    return {"n_test": len(labels), "n_test_positive": int(labels.sum()), "n_test_patients": len(np.unique(found.test.patients()[known])),
            "arms": _areas(found, finding, config), "delta": {key: delta[key] for key in ("value", "low", "high", "p", "test")}}


def _areas(found: ArmPredictions, finding: str, config: BenefitConfig) -> list[Record]:
    known, labels = stated_labels(found.test, finding)
    pair, patients = pair_of(found, finding), found.test.patients()[known]
    return [area_record(arm, labels, pair[:, place].mean(axis=-1), patients, config) for place, arm in enumerate(ARMS)]
