"""View, sex, age and split as sources write them, turned into the few spellings that a dataset folder uses."""

from __future__ import annotations

import math
import re
from pathlib import Path

from synthorax.errors import InputError

MAX_AGE_YEARS = 120
OLDEST_TOLD_YEARS = 90
"""what every age above 89 is written as by the adapters: so few people are older that their age may tell who they are"""

_NOT_STATED = frozenset({"", "UNKNOWN", "UNK", "N/A", "NA", "NAN", "NONE", "NULL", "NOT STATED", "?"})
_VIEWS = {
    "PA": "PA", "FRONTAL PA": "PA", "PA FRONTAL": "PA", "POSTEROANTERIOR": "PA", "POSTERO ANTERIOR": "PA",
    "PA ERECT": "PA", "PA UPRIGHT": "PA",
    "AP": "AP", "FRONTAL AP": "AP", "AP FRONTAL": "AP", "ANTEROPOSTERIOR": "AP", "ANTERO POSTERIOR": "AP",
    "AP SUPINE": "AP", "AP ERECT": "AP", "AP UPRIGHT": "AP", "AP PORTABLE": "AP", "PORTABLE AP": "AP",
    "AP SEMI ERECT": "AP", "AP HORIZONTAL": "AP", "AXIAL AP": "AP",
    "L": "LATERAL", "LL": "LATERAL", "RL": "LATERAL", "LAT": "LATERAL", "LATERAL": "LATERAL",
    "LEFT LATERAL": "LATERAL", "RIGHT LATERAL": "LATERAL", "LATERAL LEFT": "LATERAL", "LATERAL RIGHT": "LATERAL",
}  # LLD and RLD, the decubitus views, are not lateral views: the beam runs front to back
_SEXES = {"M": "M", "MALE": "M", "MAN": "M", "F": "F", "FEMALE": "F", "WOMAN": "F",
          "O": "", "OTHER": "", "U": "", "X": "", "DIVERSE": ""}
_SPLITS = {"": "", "TRAIN": "train", "TRAINING": "train", "VAL": "val", "VALID": "val", "VALIDATION": "val",
           "DEV": "val", "TEST": "test", "TESTING": "test"}
_AGE_UNITS_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 52.1775, "D": 365.25}


def parse_view(cell: str) -> tuple[str, str]:
    """The view, PA, AP, LATERAL or empty, and a note that is empty unless a view was stated but not understood.

    >>> parse_view("AP_SUPINE"), parse_view("LL"), parse_view("UNKNOWN")
    (('AP', ''), ('LATERAL', ''), ('', ''))
    """
    name = re.sub(r"[\s_-]+", " ", cell).strip().upper().removeprefix("VIEW: ")
    if name in _NOT_STATED:
        return "", ""
    return (_VIEWS[name], "") if name in _VIEWS else ("", f"view '{cell}' is none of PA, AP, LATERAL: not stated")


def parse_sex(cell: str, *, file: str | Path, row: int) -> str:
    """M, F or empty. Codes such as 0 and 1 mean different things in different tables: `InputError`.

    >>> parse_sex("Female", file="a.csv", row=2)
    'F'
    """
    name = cell.strip().upper()
    if name in _NOT_STATED:
        return ""
    if name not in _SEXES:
        raise InputError(f"sex '{cell}' is not known", file=file, row=row, remedy="write M or F, or leave it empty")
    return _SEXES[name]


def parse_age_years(cell: str) -> tuple[float, str]:
    """Age in years and a note. Ages such as `57`, `57,5`, `058Y` and `006M` are read; NaN where none is stated.

    An age below 0, above 120 or unreadable becomes NaN with a note that says so: public tables have them, and one wrong
    age is no reason to lose an image.

    >>> parse_age_years("006M"), parse_age_years("411")
    ((0.5, ''), (nan, "age '411' is outside 0 to 120 years: not stated"))
    """
    text = cell.strip().upper()
    if text in _NOT_STATED:
        return math.nan, ""
    parts = re.fullmatch(r"([+-]?\d+(?:[.,]\d+)?)\s*([YMWD]?)", text)
    if not parts:
        return math.nan, f"age '{cell}' is not a number of years: not stated"
    age_years = float(parts[1].replace(",", ".")) / _AGE_UNITS_PER_YEAR[parts[2] or "Y"]
    if not 0 <= age_years <= MAX_AGE_YEARS:
        return math.nan, f"age '{cell}' is outside 0 to {MAX_AGE_YEARS} years: not stated"
    return age_years, ""


def age_to_publish(age_years: float) -> float:
    """The age as a data set that may be given away states it (HIPAA, 45 CFR 164.514(b)(2)(i)(C)): exact up to 89, and 90 for all above.

    >>> age_to_publish(89.0), age_to_publish(97.0)
    (89.0, 90.0)
    """
    return float(OLDEST_TOLD_YEARS) if age_years >= OLDEST_TOLD_YEARS else age_years


def parse_split(cell: str, *, file: str | Path, row: int) -> str:
    """train, val, test or empty; anything else is an `InputError`.

    >>> parse_split("valid", file="a.csv", row=2)
    'val'
    """
    if cell.strip().upper() not in _SPLITS:
        raise InputError(f"split '{cell}' is not known", file=file, row=row,
                         remedy="write train, val or test, or leave it empty")
    return _SPLITS[cell.strip().upper()]
