"""What a set of images consists of, and what in it could mislead a model: `fingerprint.json`.

A finding that is filmed mostly in one view, or mostly at one site, can be guessed from how the image was taken. The
warning asks two things: is it unlikely to be chance (chi-square over patients, p < 0.01 after Holm's correction over all
tests made), and is it large (the share of some view differs by more than 0.1 between images with and without the
finding)? Shares are compared given the finding, not the other way round, because the risk of a rare finding can never
differ by 0.1. Each patient weighs one, however many images they have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.splits import SPLITS
from synthorax.data.vocabulary import label_matrix
from synthorax.multiple_testing import holm
from synthorax.types import LabelPolicy, Stated, Study

FEW_IMAGES, SCARCE_IMAGES = 5, 20
CONFOUNDER_P, CONFOUNDER_DIFFERENCE = 0.01, 0.1


def fingerprint(
    studies: Sequence[Study], findings: Sequence[str], *, policy: LabelPolicy | None = None,
    image_sizes: Sequence[tuple[int, int]] = (), bit_depths: Sequence[int] = (),
) -> dict[str, Any]:
    """Counts and warnings of a set of images, ready for JSON.

    `image_sizes` are (height, width) in pixels before resizing and `bit_depths` 8 or 16, each one an image or empty.
    `warnings` lists sentences for people; what a verb refuses because of them is the verb's own business.

    >>> images = [Study(file_name=f"{i}.png", patient_id=f"p{i}", labels={"Mass": Stated.PRESENT}) for i in range(3)]
    >>> fingerprint(images, ["Mass"])["warnings"]
    ['Mass: only 3 images of 3 patients have it; at least 5 are needed to use it', 'Mass: every image that states it has it']
    """
    labels = label_matrix(studies, findings, policy=policy)
    confounders = _confounders(studies, findings, labels)
    ages = np.array([study.age_years for study in studies], dtype=np.float64)
    ages = ages[np.isfinite(ages)]
    return {
        "num_images": len(studies),
        "num_patients": len({study.patient_id for study in studies if study.patient_id}),
        "findings": {finding: _prevalence(studies, finding, labels[:, k]) for k, finding in enumerate(findings)},
        "co_occurrence": {"findings": list(findings), "images": _co_occurrence(labels)},
        "splits": _counts(study.split for study in studies),
        "views": _counts(study.view for study in studies),
        "sexes": _counts(study.sex for study in studies),
        "sites": _counts(study.site for study in studies),
        "origins": _counts(study.origin for study in studies),
        "ages_years": {"stated": len(ages), "quartiles": np.percentile(ages, [0, 25, 50, 75, 100]).tolist() if len(ages) else []},
        "image_sizes": _counts(f"{width} x {height}" for height, width in image_sizes),
        "bit_depths": _counts(str(bits) for bits in bit_depths),
        "confounders": confounders,
        "warnings": [*_scarcity_warnings(studies, findings, labels), *_split_warnings(studies, findings, labels),
                     *_confounder_warnings(confounders)],
    }


def _counts(values: Any) -> dict[str, int]:
    """How often each value occurs, the most frequent first; an empty value is 'not stated'."""
    return {value or "not stated": count for value, count in Counter(values).most_common()}


def _prevalence(studies: Sequence[Study], finding: str, labels: NDArray[np.float32]) -> dict[str, Any]:
    """Images and patients by what their rows count as; `uncertain` is counted from the table, whatever the policy makes of it."""
    def count(chosen: NDArray[np.bool_]) -> dict[str, int]:
        rows = np.flatnonzero(chosen).tolist()
        return {"images": len(rows), "patients": len({studies[row].patient_id for row in rows})}

    uncertain = np.array([study.labels.get(finding) is Stated.UNCERTAIN for study in studies], dtype=bool)
    stated = int(np.isfinite(labels).sum())
    return {"present": count(labels == 1), "absent": count(labels == 0), "uncertain": count(uncertain),
            "not_stated": count(np.isnan(labels) & ~uncertain),
            "prevalence": round(float((labels == 1).sum() / stated), 4) if stated else None}


def _co_occurrence(labels: NDArray[np.float32]) -> list[list[int]]:
    """Images that have both findings, [K, K]; the diagonal is the images that have the finding."""
    present = (labels == 1).astype(np.int64)
    counts: list[list[int]] = (present.T @ present).tolist()
    return counts


def _scarcity_warnings(studies: Sequence[Study], findings: Sequence[str], labels: NDArray[np.float32]) -> list[str]:
    warnings = []
    for finding, column in zip(findings, labels.T, strict=True):
        have = np.flatnonzero(column == 1).tolist()
        patients = len({studies[row].patient_id for row in have})
        who = f"{_images(len(have))} of {patients} patient{'' if patients == 1 else 's'} {'has' if len(have) == 1 else 'have'} it"
        if not np.isfinite(column).any():
            warnings.append(f"{finding}: no image states whether it is there")
            continue
        if len(have) < FEW_IMAGES:
            warnings.append(f"{finding}: only {who}; at least {FEW_IMAGES} are needed to use it")
        elif len(have) < SCARCE_IMAGES:
            warnings.append(f"{finding}: only {who}; expect wide intervals")
        if not (column == 0).any():
            warnings.append(f"{finding}: every image that states it has it")
    return warnings


def _split_warnings(studies: Sequence[Study], findings: Sequence[str], labels: NDArray[np.float32]) -> list[str]:
    """Where a set that is split cannot measure a finding that it has."""
    splits = np.array([study.split for study in studies])
    if not (splits != "").any():
        return []
    warnings = [f"the split {split} is empty" for split in SPLITS if not (splits == split).any()]
    for finding, column in zip(findings, labels.T, strict=True):
        missing = [split for split in SPLITS if (splits == split).any() and not (column[splits == split] == 1).any()]
        if missing and (column == 1).any():
            warnings.append(f"{finding}: no image in {' or '.join(missing)} has it")
    return warnings


def _confounders(
    studies: Sequence[Study], findings: Sequence[str], labels: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """Test view and site against every finding; all tests are returned, `confounds` says which passed both thresholds."""
    columns = {"view": np.array([study.view for study in studies]), "site": np.array([study.site for study in studies])}
    tests = []
    for attribute, values in columns.items():
        for finding, column in zip(findings, labels.T, strict=True):
            usable = np.isfinite(column) & (values != "")
            levels = sorted(set(values[usable].tolist()))
            if len(levels) < 2 or (column[usable] == 1).sum() < FEW_IMAGES or not (column[usable] == 0).any():
                continue
            table = _table_over_patients([study.patient_id or study.file_name for study in studies], usable, column, values, levels)
            share = table / table.sum(axis=1, keepdims=True)  # [with, without] by level
            difference = np.round(share[0] - share[1], 9)
            largest = int(np.argmax(np.abs(difference) + 1e-9 * (difference > 0)))  # of two equal ones, the view that is favoured
            tests.append({"attribute": attribute, "finding": finding, "level": levels[largest],
                          "share_with": round(float(share[0, largest]), 4), "share_without": round(float(share[1, largest]), 4),
                          "p": _chi_square_p(table)})
    for test, p_holm in zip(tests, holm([test["p"] for test in tests]), strict=True):
        difference = abs(test["share_with"] - test["share_without"])
        test |= {"p_holm": p_holm, "confounds": p_holm < CONFOUNDER_P and difference > CONFOUNDER_DIFFERENCE}
    return tests


def _table_over_patients(
    patients: Sequence[str], usable: NDArray[np.bool_], column: NDArray[np.float32], values: NDArray[np.str_], levels: Sequence[str]
) -> NDArray[np.float64]:
    """[2, levels]: finding present, absent by level; the images of a patient share a weight of one."""
    rows = np.flatnonzero(usable).tolist()
    images = Counter(patients[row] for row in rows)
    table = np.zeros((2, len(levels)))
    for row in rows:
        table[0 if column[row] == 1 else 1, levels.index(values[row])] += 1 / images[patients[row]]
    return table


def _chi_square_p(table: NDArray[np.float64]) -> float:
    """Pearson's test of independence without continuity correction; every row and column of `table` has a sum above 0."""
    from scipy.special import chdtrc  # here, because training reads prepared folders and needs nothing else of SciPy

    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return float(chdtrc((table.shape[0] - 1) * (table.shape[1] - 1), statistic))


def _confounder_warnings(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{test['attribute']} confounds {test['finding']}: {100 * test['share_with']:.0f} % {test['level']} with it, "
            f"{100 * test['share_without']:.0f} % without (patients, Holm p {test['p_holm']:.1g}); "
            f"condition on {test['attribute']} and report by {test['attribute']}"
            for test in tests if test["confounds"]]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
