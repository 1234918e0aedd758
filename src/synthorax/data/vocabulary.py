"""The names of findings, what a table says of them, and the numbers that training and evaluation use.

One finding has one name here whatever its source calls it: `Pleural Effusion`, `effusion` and `Effusion` are one. The
spelling is that of ChestX-ray14 where it has the finding, else that of the later list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthorax.errors import InputError, nearest
from synthorax.types import LabelPolicy, Stated, Study

NO_FINDING = "No Finding"

CHESTXRAY14 = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)
"""The 14 findings of ChestX-ray14 (Wang et al., CVPR 2017); `No Finding` is its fifteenth label."""

CHESTXRAY_LT20 = (
    NO_FINDING, "Infiltration", "Effusion", "Atelectasis", "Nodule", "Mass", "Pneumothorax", "Consolidation",
    "Pleural_Thickening", "Cardiomegaly", "Emphysema", "Edema", "Subcutaneous Emphysema", "Fibrosis", "Pneumonia",
    "Tortuous Aorta", "Calcification of the Aorta", "Pneumoperitoneum", "Pneumomediastinum", "Hernia",
)
"""The 20 labels of the long-tailed relabelling of ChestX-ray14 (Holste et al. 2022), the most frequent first."""

CHEXPERT14 = (
    NO_FINDING, "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Effusion", "Pleural Other", "Fracture", "Support Devices",
)
"""The 14 labels of CheXpert (Irvin et al., AAAI 2019), in its order."""

KNOWN = tuple(dict.fromkeys((*CHESTXRAY14, *CHESTXRAY_LT20, *CHEXPERT14, "COVID-19")))
"""Every name that is understood without a data set declaring it."""

NOT_A_FINDING_OF_DISEASE = frozenset({"Support Devices"})
"""Labels that may stand beside `No Finding`: a catheter does not make a chest abnormal (Irvin et al. 2019)."""

SYNONYMS = {
    "Atelectasis": ("atelectases",),
    "Calcification of the Aorta": ("aortic calcification", "calcified aorta"),
    "COVID-19": ("covid", "covid19", "sars cov 2 pneumonia"),
    "Cardiomegaly": ("enlarged heart", "cardiac enlargement"),
    "Consolidation": ("consolidations",),
    "Edema": ("oedema", "pulmonary edema", "pulmonary oedema", "lung edema", "lung oedema"),
    "Effusion": ("pleural effusion", "effusions", "pleural effusions"),
    "Emphysema": ("pulmonary emphysema",),
    "Enlarged Cardiomediastinum": ("enlarged cardiomediastinal silhouette", "widened mediastinum"),
    "Fibrosis": ("pulmonary fibrosis", "lung fibrosis"),
    "Fracture": ("fractures",),
    "Hernia": ("hiatal hernia", "hiatus hernia"),
    "Infiltration": ("infiltrate", "infiltrates"),
    "Lung Lesion": ("lung lesions",),
    "Lung Opacity": ("airspace opacity", "lung opacities"),
    "Mass": ("masses", "lung mass"),
    NO_FINDING: ("normal", "no findings", "healthy"),
    "Nodule": ("nodules", "lung nodule", "pulmonary nodule"),
    "Pneumomediastinum": ("mediastinal emphysema",),
    "Pneumothorax": ("pneumothoraces",),
    "Subcutaneous Emphysema": ("surgical emphysema",),
    "Support Devices": ("support device",),
    "Tortuous Aorta": ("aortic tortuosity",),
}

_NOTHING_STATED = frozenset({"", "unlabelled", "unlabeled", "not stated"})


def canonical(name: str, *, allow: Iterable[str] = (), file: str | Path | None = None, row: int | None = None) -> str:
    """The one name of a finding, whatever its case, underscores, hyphens or spelling.

    `allow` are names that a data set declares beyond the vocabulary; they keep the spelling in which they are declared.
    Raises `InputError` with the nearest name; `file` and `row` say where the name was read.

    >>> canonical("pleural effusion"), canonical("Pleural Thickening"), canonical("bacterial", allow=["Bacterial"])
    ('Effusion', 'Pleural_Thickening', 'Bacterial')
    """
    allow = tuple(allow)
    found = _NAMES.get(_fold(name)) or {_fold(own): own for own in allow}.get(_fold(name))
    if found is None:
        remedy = nearest(name.strip(), (*KNOWN, *allow))
        raise InputError(f"unknown finding '{name.strip()}'", file=file, row=row, remedy=remedy)
    return found


def parse_findings(
    cell: str, *, allow: Iterable[str] = (), file: str | Path | None = None, row: int | None = None
) -> dict[str, Stated]:
    """What a `findings` cell states: `A` present, `B?` uncertain, `!C` and `No C` absent, separated by `|`.

    `Unlabelled` states nothing. Raises `InputError` for an unknown name, a finding stated in two ways, and `No Finding`
    beside a finding that is present.

    >>> {name: stated.value for name, stated in parse_findings("Mass|Oedema?|!Hernia").items()}
    {'Mass': 'present', 'Edema': 'uncertain', 'Hernia': 'absent'}
    """
    allow = tuple(allow)
    labels: dict[str, Stated] = {}
    for part in cell.split("|"):
        if _fold(part) in _NOTHING_STATED:
            continue
        name, stated = _statement(part.strip(), allow, file, row)
        if labels.get(name, stated) is not stated:
            raise InputError(f"'{name}' is stated as {labels[name].value} and as {stated.value}", file=file, row=row,
                             remedy="keep one of the two")
        labels[name] = stated
    if labels.get(NO_FINDING) is Stated.PRESENT and (present := _diseases_present(labels)):
        raise InputError(f"'{NO_FINDING}' stands beside '{present[0]}'", file=file, row=row,
                         remedy="keep one of the two")
    return labels


def format_findings(labels: Mapping[str, Stated]) -> str:
    """The `findings` cell that `parse_findings` reads back.

    >>> format_findings({"Mass": Stated.PRESENT, "Edema": Stated.UNCERTAIN, "Hernia": Stated.ABSENT})
    'Mass|Edema?|!Hernia'
    """
    written = {Stated.PRESENT: "{}", Stated.UNCERTAIN: "{}?", Stated.ABSENT: "!{}"}
    return "|".join(written[stated].format(name) for name, stated in labels.items())


def label_matrix(
    studies: Sequence[Study], findings: Sequence[str], *, policy: LabelPolicy | None = None
) -> NDArray[np.float32]:
    """Statements as numbers, [N, K] in {1, 0, NaN}; columns follow `findings`, `policy` defaults to `LabelPolicy()`.

    A row that states nothing is NaN throughout. Where `No Finding` is present, every other disease is 0. The column
    `No Finding` is 0 beside any disease that counts as present, and NaN where a row names neither: an image without a
    mass need not be normal.

    >>> image = Study(file_name="a.png", labels={"Mass": Stated.PRESENT, "Edema": Stated.UNCERTAIN})
    >>> label_matrix([image], ["Mass", "Edema", "Hernia", "No Finding"])
    array([[ 1., nan,  0.,  0.]], dtype=float32)
    """
    policy = policy or LabelPolicy()
    rows = [[_number(study.labels, finding, policy) for finding in findings] for study in studies]
    return np.array(rows, dtype=np.float32).reshape(len(studies), len(findings))


def _number(labels: Mapping[str, Stated], finding: str, policy: LabelPolicy) -> float:
    if not labels:
        return np.nan
    uncertain = {"ignore": np.nan, "positive": 1.0, "negative": 0.0}[policy.uncertain]
    number = {Stated.PRESENT: 1.0, Stated.ABSENT: 0.0, Stated.UNCERTAIN: uncertain}
    if finding == NO_FINDING:
        if any(number[labels[name]] == 1.0 for name in _diseases(labels)):
            return 0.0
        return number[labels[finding]] if finding in labels else np.nan
    if finding in labels:
        return number[labels[finding]]
    if labels.get(NO_FINDING) is Stated.PRESENT and finding not in NOT_A_FINDING_OF_DISEASE:
        return 0.0
    abnormal_unnamed = NO_FINDING in labels and not _diseases(labels)  # `!No Finding` alone: something, not said what
    return 0.0 if policy.unlisted == "absent" and not abnormal_unnamed else np.nan


def _diseases(labels: Mapping[str, Stated]) -> list[str]:
    return [name for name in labels if name != NO_FINDING and name not in NOT_A_FINDING_OF_DISEASE]


def _diseases_present(labels: Mapping[str, Stated]) -> list[str]:
    return [name for name in _diseases(labels) if labels[name] is Stated.PRESENT]


def _statement(part: str, allow: tuple[str, ...], file: str | Path | None, row: int | None) -> tuple[str, Stated]:
    if part.startswith("!"):
        return canonical(part[1:], allow=allow, file=file, row=row), Stated.ABSENT
    if part.endswith("?"):
        return canonical(part[:-1], allow=allow, file=file, row=row), Stated.UNCERTAIN
    denied = re.fullmatch(r"no[ _](.+)", part, flags=re.IGNORECASE)  # JSRT writes `No Nodule`
    if denied and _fold(part) not in _NAMES and _fold(denied[1]) in _NAMES:
        return _NAMES[_fold(denied[1])], Stated.ABSENT
    return canonical(part, allow=allow, file=file, row=row), Stated.PRESENT


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


_NAMES = {_fold(name): name for name in KNOWN}
_NAMES |= {_fold(other): name for name, others in SYNONYMS.items() for other in others}
