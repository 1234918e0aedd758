"""Training, validation and test sets that share no patient, each with its part of the rare findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from synthorax.data.vocabulary import NO_FINDING, label_matrix
from synthorax.errors import InputError, UsageError
from synthorax.types import LabelPolicy, Study

SPLITS = ("train", "val", "test")
DEFAULT_FRACTIONS = (0.7, 0.1, 0.2)


def split_patients(
    studies: Sequence[Study], *, fractions: Sequence[float] = DEFAULT_FRACTIONS, seed: int = 0,
    label_policy: LabelPolicy | None = None, images_per_patient: int = 5, file: str | Path | None = None,
) -> list[str]:
    """One of train, val and test for each image; all images of a patient go together, `fractions` are of patients.

    Patients are dealt out stratum by stratum, the stratum of a patient being the rarest finding that any of their images
    has, so that a rare finding reaches every split in proportion. Patients with more images than `images_per_patient` are
    dealt to train first, where their number is capped: else one patient could be most of a test set. Splits that the
    table already states are kept and count towards the fractions. Synthetic rows are always train, and so are the patients from whom
    images are derived.

    Raises `InputError` (naming `file` and the row) for a patient on two sides, a real image without a patient, an unknown
    split or a synthetic image in val or test.

    >>> images = [Study(file_name=f"{i}.png", patient_id=f"p{i}") for i in range(10)]
    >>> sorted(Counter(split_patients(images)).items())
    [('test', 2), ('train', 7), ('val', 1)]
    """
    _check_fractions(fractions)
    stated = _stated_splits(studies, file)
    num_images = Counter(study.patient_id for study in studies if study.origin == "real")
    strata: dict[str, list[str]] = {}
    for patient, finding in _rarest_of_patients(studies, label_policy).items():
        strata.setdefault(finding, []).append(patient)
    rng = np.random.default_rng([seed, 11])
    chosen = dict(stated)
    owed = np.zeros(3)  # what rounding kept from each split in earlier strata
    for finding in sorted(strata, key=lambda name: (len(strata[name]), name)):
        patients = sorted(strata[finding])
        patients = [patients[index] for index in rng.permutation(len(patients))]
        patients.sort(key=lambda patient: num_images[patient] <= images_per_patient)
        due = np.asarray(fractions) * len(patients) + owed
        given = np.array([sum(chosen.get(patient) == split for patient in patients) for split in SPLITS], dtype=np.float64)
        for patient in (patient for patient in patients if patient not in stated):
            large = num_images[patient] > images_per_patient
            split = 0 if large and fractions[0] > 0 and due[0] > given[0] else int(np.argmax(due - given))
            chosen[patient] = SPLITS[split]
            given[split] += 1
        owed = due - given
    return ["train" if study.origin == "synthetic" else chosen[study.patient_id] for study in studies]


def cap_images(
    studies: Sequence[Study], splits: Sequence[str], *, images_per_patient: int = 5, seed: int = 0,
    label_policy: LabelPolicy | None = None,
) -> list[bool]:
    """Which images to keep so that no patient has more than `images_per_patient` real images in train.

    Images with the rarest findings are kept first, then by chance (`seed`). Val, test and synthetic images are all kept.
    """
    if images_per_patient < 1:
        raise UsageError(f"images_per_patient is {images_per_patient}; it must be 1 or more")
    rarity = _rarity(studies, label_policy)
    rarest = _rarest_of_images(studies, rarity, label_policy)
    chance = np.random.default_rng([seed, 12]).permutation(len(studies))
    taken: Counter[str] = Counter()
    keep = [True] * len(studies)
    order = sorted(range(len(studies)), key=lambda row: (rarity[rarest[row]], chance[row]))
    for row in order:
        if splits[row] == "train" and studies[row].origin == "real":
            taken[studies[row].patient_id] += 1
            keep[row] = taken[studies[row].patient_id] <= images_per_patient
    return keep


def _check_fractions(fractions: Sequence[float]) -> None:
    valid = len(fractions) == 3 and all(0 <= part <= 1 for part in fractions) and abs(sum(fractions) - 1) < 1e-6
    if not valid or fractions[0] == 0:
        raise UsageError(f"the split {tuple(fractions)} is not three shares (train above 0, val, test) that add up to 1")


def _stated_splits(studies: Sequence[Study], file: str | Path | None) -> dict[str, str]:
    """Patient -> split for the patients whose rows state one."""
    stated: dict[str, tuple[str, int]] = {}
    for row, study in enumerate(studies, start=2):
        if study.split not in ("", *SPLITS):
            raise InputError(f"split '{study.split}' is not known", file=file, row=row, remedy="write train, val, test or nothing")
        if study.origin == "synthetic":
            if study.split in ("val", "test"):
                raise InputError(f"a synthetic image is in the split '{study.split}'", file=file, row=row,
                                 remedy="synthetic images may only train")
            if not study.derived_from_patient or not study.patient_id:
                continue
            study = replace(study, split="train")
        if not study.patient_id:
            raise InputError(f"'{study.file_name}' has no patient_id", file=file, row=row,
                             remedy="fill the column patient_id, or say that each image is its own patient (patient_per_image)")
        if study.split:
            split, earlier = stated.setdefault(study.patient_id, (study.split, row))
            if split != study.split:
                remedy = ("a patient from whom an image is derived trains and cannot be tested" if study.derived_from_patient else
                          "all images of a patient belong to one split, and who has a derived image is in train")
                raise InputError(f"the patient of this image is in the split '{study.split}', and in '{split}' in row {earlier}",
                                 file=file, row=row, remedy=remedy)
    return {patient: split for patient, (split, _) in stated.items()}


def _rarity(studies: Sequence[Study], policy: LabelPolicy | None) -> dict[str, int]:
    """Finding -> number of real patients who have it; '' (nothing) and `No Finding` come after every disease."""
    everyone = len(studies) + 1
    findings = _diseases(studies)
    labels = label_matrix(studies, findings, policy=policy)
    rarity = {"": everyone + 1, NO_FINDING: everyone}
    for column, finding in enumerate(findings):
        rarity[finding] = len({study.patient_id for study, label in zip(studies, labels[:, column], strict=True)
                               if label == 1 and study.origin == "real"})
    return rarity


def _rarest_of_images(studies: Sequence[Study], rarity: dict[str, int], policy: LabelPolicy | None) -> list[str]:
    findings = [*_diseases(studies), NO_FINDING]
    labels = label_matrix(studies, findings, policy=policy)
    present = [[finding for finding, label in zip(findings, row, strict=True) if label == 1] for row in labels]
    return [min([*names, ""], key=lambda name: (rarity[name], name)) for names in present]


def _rarest_of_patients(studies: Sequence[Study], policy: LabelPolicy | None) -> dict[str, str]:
    rarity = _rarity(studies, policy)
    rarest: dict[str, str] = {}
    for study, finding in zip(studies, _rarest_of_images(studies, rarity, policy), strict=True):
        if study.origin == "real":
            best = rarest.get(study.patient_id, "")
            rarest[study.patient_id] = min(best, finding, key=lambda name: (rarity[name], name))
    return rarest


def _diseases(studies: Sequence[Study]) -> list[str]:
    return sorted({name for study in studies for name in study.labels} - {NO_FINDING})
