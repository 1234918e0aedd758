"""Who trains, who sets the threshold and who is tested: one split, or folds of patients; and which mixtures are refused as leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from synthorax.data.derived import refuse_held_out_hosts
from synthorax.data.prepared import Prepared
from synthorax.errors import InputError, UsageError, nearest
from synthorax.evaluation.benefit.protocol import BenefitConfig
from synthorax.rng import derive
from synthorax.types import ImageSet

Rows = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fraction:
    """One set of real training images, with the images that its classifiers are asked about; rows of the design's images."""

    train: Rows
    val: Rows
    """they set the threshold"""
    test: Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """All real images, and how they are divided: `parts[repeat][fold]`; every tested image is tested once in each repeat."""

    real: ImageSet
    parts: tuple[tuple[Fraction, ...], ...]
    tested: Rows
    """images that are tested, in the order of all scores"""
    facts: Mapping[str, Any]
    """what the report says of it"""

    @property
    def test(self) -> ImageSet:
        """The images that are tested."""
        return self.real.take(self.tested)


def one_split(train: ImageSet, test: ImageSet, val: ImageSet | None) -> Design:
    """Train on one split, set thresholds on another, test on the third."""
    real, sizes = ImageSet.join([train, test, *([val] if val is not None else [])]), np.cumsum([len(train), len(test), len(val or ())])
    train_rows, test_rows, val_rows = np.split(np.arange(sizes[-1]), sizes[:-1])
    part = Fraction(train=train_rows, val=val_rows, test=test_rows)
    return Design(real=real, parts=((part,),), tested=test_rows, facts={"protocol": "test split"})


def cross_validation(seen: ImageSet, unseen: ImageSet, *, targets: Sequence[str], config: BenefitConfig) -> Design:
    """Folds over the patients that the generator has not seen; those that it has seen (`seen`, perhaps none) always train.

    In each repeat the unseen patients are dealt into folds anew, those with the rarest target first, so that each fold has its part
    of them. A fold is tested by classifiers trained on `seen` and on all folds but two: it, and the next, which sets their threshold.
    Raises InputError where there are fewer patients with a target than folds.
    """
    real = ImageSet.join([seen, unseen]) if len(seen) else unseen
    always, rows = np.arange(len(seen)), np.arange(len(seen), len(real))
    patients, parts = unseen.patients(), []
    for finding in targets:
        if (count := len(np.unique(patients[unseen.column(finding) == 1]))) < config.folds:
            raise InputError(f"{count} patients that may be tested show {finding}, too few for {config.folds} folds",
                             remedy="take fewer folds, or the test split")
    for repeat in range(config.repeats):
        fold = _deal_folds(unseen, targets, folds=config.folds, seed=derive(config.seed, "folds", repeat))
        parts.append(tuple(
            Fraction(train=np.concatenate([always, rows[(fold != k) & (fold != (k + 1) % config.folds)]]),
                 val=rows[fold == (k + 1) % config.folds], test=rows[fold == k]) for k in range(config.folds)))
    over = "the patients of validation and test split; the training split, which the generator has seen, always trains"
    facts = {"protocol": "cross-validation", "folds": config.folds, "repeats": config.repeats,
            "over": over if len(seen) else "all patients; the synthetic set says that its generator has seen none of them"}
    return Design(real=real, parts=tuple(parts), tested=rows, facts=facts)


def known_to_generator(facts: Mapping[str, Any], prepared: Prepared, *, cross_validated: bool) -> Literal["training split", "nothing"]:
    """Which real images the generator of a synthetic set has seen, by the set's `dataset.json`; the training split if it is silent.

    `trained_on` there names the prepared data and the data sets that it learned from, `not_trained_on` the prepared data of which it
    has seen no image: the word of whoever made the set. Raises InputError where the two contradict each other, and, before a
    cross-validation, where it learned from another division of these data sets, so that its training patients may be tested here.
    """
    trained_on = facts.get("trained_on", {})
    declared, learned = prepared.digest in facts.get("not_trained_on", ()), trained_on.get("data_digest", "")
    own = {source.digest for source in prepared.sources if source.digest}
    shared = own & {str(source.get("digest", "")) for source in trained_on.get("sources", ())}
    if declared and (learned == prepared.digest or shared):
        raise InputError("says that its generator was trained on these images and that it was not", file="dataset.json",
                         remedy="correct trained_on or not_trained_on")
    if cross_validated and learned and learned != prepared.digest and shared:
        raise InputError("the generator learned from another division of the same data set, so patients whom it has seen may be tested",
                         remedy="cross-validate on the prepared folder that it was trained on")
    return "nothing" if declared else "training split"


def stated_labels(images: ImageSet, finding: str) -> tuple[NDArray[np.bool_], NDArray[np.int_]]:
    """Which images state the finding [N], and what these state, 0 or 1."""
    labels = images.column(finding)
    known = ~np.isnan(labels)
    return known, labels[known].astype(int)


def too_few(test: ImageSet, finding: str, config: BenefitConfig) -> str:
    """Why a finding cannot be tested, or nothing. Patients count, not images: twenty images of one patient are one story."""
    known, labels = stated_labels(test, finding)
    return too_few_patients(labels, test.patients()[known], config)


def too_few_patients(labels: NDArray[np.int_], patients: NDArray[np.str_], config: BenefitConfig) -> str:
    """The same for images that state the finding, by their labels [N] and patients [N]."""
    with_it, without = (len(np.unique(patients[labels == value])) for value in (1, 0))
    if min(with_it, without) >= config.min_patients:
        return ""
    return (f"unseen real images show it in {with_it} patients and lack it in {without}; "
            f"{config.min_patients} of each are needed")


def refuse_leaks(train: ImageSet, test: ImageSet, synthetic: ImageSet, val: ImageSet | None) -> None:
    """A verdict on images that training knew would be worthless."""
    sides = {"training": train, "test": test} | ({"validation": val} if val is not None else {})
    for side, images in sides.items():
        for study in images.studies:
            if study.origin != "real":
                raise InputError(f"'{study.origin}' image {study.file_name} stands among the real {side} images",
                                 remedy="benefit is measured on real images only; move it to the synthetic set")
            if not study.patient_id:
                raise InputError(f"{side} image {study.file_name} has no patient",
                                 remedy="fill patient_id: sides must not share a patient")
    refuse_held_out_hosts(synthetic.studies, {side: sides[side].studies for side in ("validation", "test") if side in sides})
    named = {side: {study.patient_id for study in images.studies} for side, images in sides.items()}
    named["synthetic"] = {study.patient_id for study in synthetic.studies} - {""}
    for one, other in (("training", "test"), ("validation", "test"), ("training", "validation"), ("synthetic", "test"),
                       ("synthetic", "validation")):
        if shared := named.get(one, set()) & named.get(other, set()):
            raise InputError(f"{len(shared)} patients have {one} and {other} images", remedy="split by patient")
    for side in ("test", "validation"):
        held_out = sides.get(side)
        known = {} if held_out is None else {
            image.tobytes(): study.file_name for image, study in zip(held_out.pixels, held_out.studies, strict=True)}
        for image, study in zip(synthetic.pixels, synthetic.studies, strict=True):
            if (duplicate := known.get(image.tobytes())) is not None:
                raise InputError(f"synthetic image {study.file_name} is, pixel for pixel, the {side} image {duplicate}",
                                 remedy=f"a generator must not have seen the {side} images")


def refuse_misfits(train: ImageSet, test: ImageSet, synthetic: ImageSet, val: ImageSet | None, findings: Sequence[str]) -> None:
    """Sides that are empty, of other sizes or with other columns, and findings that nobody knows."""
    sides = [train, test, synthetic] + ([val] if val is not None else [])
    if any(len(images) == 0 for images in sides):
        raise InputError(f"images are needed on every side: {len(train)} training, {len(test)} test, {len(synthetic)} synthetic")
    if len({images.findings for images in sides}) > 1:
        raise UsageError("real and synthetic images must have the same columns of findings, in the same order")
    if len({(images.pixels.shape[1:], images.pixels.dtype) for images in sides}) > 1:
        raise UsageError("real and synthetic images must have the same size and number of bits")
    for finding in findings:
        if finding not in train.findings:
            raise UsageError(f"unknown finding '{finding}'; {nearest(finding, train.findings)}")


def _deal_folds(images: ImageSet, targets: Sequence[str], *, folds: int, seed: int) -> Rows:
    """Fold of each image, [N]: patients of one stratum (the rarest target that they show) go round the folds in random order."""
    patients, owner = np.unique(images.patients(), return_inverse=True)
    stratum = np.full(len(patients), len(targets))
    counts = [len(np.unique(owner[images.column(finding) == 1])) for finding in targets]
    for rank, index in reversed(list(enumerate(np.argsort(counts, kind="stable")))):
        stratum[np.unique(owner[images.column(targets[index]) == 1])] = rank
    order = np.random.default_rng(seed).permutation(len(patients))
    order = order[np.argsort(stratum[order], kind="stable")]
    fold = np.empty(len(patients), dtype=np.intp)
    fold[order] = np.arange(len(patients)) % folds
    return np.asarray(fold[owner], dtype=np.intp)
