"""The images that lesions are inserted into: which can be used, why the others cannot, and which are chosen."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from synthorax.data.adapters.assembly import IMAGE_SUFFIXES, files_below, passed_over
from synthorax.data.attributes import age_to_publish, parse_age_years
from synthorax.data.dataset import TABLE_NAME, Dataset, read_dataset
from synthorax.data.derived import marked_by_file
from synthorax.data.image_files import read_image
from synthorax.data.pixels import Pixels
from synthorax.data.prepared import FACTS_NAME as PREPARED_FACTS
from synthorax.data.prepared import Prepared
from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import InputError, SynthoraxError
from synthorax.rng import derive
from synthorax.types import Stated, Study

ROW_COLUMNS = ("host", "row", "reason", "remedy")
"""of dropped.csv"""
OR_ASSUME = ", or use --assume-absent if you know that it does not"


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """One image that a lesion may be inserted into."""

    path: Path
    study: Study
    """its row, or what its file says; `patient_id` is never empty"""
    row: int | None
    """of its table, as a spreadsheet counts; None where there is no table"""
    reference: str
    """what `pair_of` calls it: its path in its folder, or a number where that could name a patient"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """One image into which nothing is inserted, and why."""

    host: str
    reason: str
    remedy: str = ""
    row: int | None = None

    def cells(self) -> dict[str, str]:
        """Cells of `ROW_COLUMNS`."""
        return {"host": self.host, "row": "" if self.row is None else str(self.row), "reason": self.reason, "remedy": self.remedy}


@dataclass(frozen=True, kw_only=True, slots=True)
class Hosts:
    """The images of a folder, sorted into those that can be used and the others."""

    folder: Path
    name: str
    usable: tuple[Host, ...]
    dropped: tuple[Dropped, ...]
    findings: tuple[str, ...]
    """that the set declares"""
    licence: str = ""
    positives: tuple[Study, ...] = field(default=(), repr=False)
    """training images of the set that show the finding; hosts are matched to them"""
    notes: tuple[str, ...] = ()
    """what was taken for granted"""


def find_hosts(source: Path | Dataset | Prepared, finding: str, *, assume_absent: bool = False) -> Hosts:
    """The frontal training images without the finding: of a prepared folder, of a dataset folder, or of a folder of nothing but images.

    An image counts as without the finding where its row states it absent, or states normal; with `assume_absent` also where nothing is
    said of it. Images of patients who have it, of validation and test patients, lateral ones and changed ones are left out. Raises
    InputError where no image is left, with the first reason.
    """
    hosts = (_of_prepared(source, finding, assume_absent) if isinstance(source, Prepared) else
             _of_dataset(source, finding, assume_absent) if isinstance(source, Dataset) else
             _of_prepared(Prepared.load(source), finding, assume_absent) if (source / PREPARED_FACTS).is_file() else
             _of_dataset(read_dataset(source, allow=(finding,)), finding, assume_absent) if (source / TABLE_NAME).is_file() else
             _of_files(source, finding, assume_absent))
    if not hosts.usable:
        first = hosts.dropped[0]
        counts = Counter(re.sub(r" in row \d+", "", one.reason) for one in hosts.dropped)
        others = "" if len(hosts.dropped) == 1 else f" (of {len(hosts.dropped)} images: " + ", ".join(
            f"{count} {reason}" for reason, count in counts.most_common(3)) + ")"
        table = hosts.folder / TABLE_NAME
        raise InputError(f"no image can take a {finding}: '{first.host}' {first.reason}{others}", file=table if table.is_file() else
                         hosts.folder, row=first.row, remedy=first.remedy)
    return hosts


def read_host(host: Host) -> tuple[Pixels, str]:
    """Pixels [H, W] of 8 or 16 bits, bone bright, and a note where they are not simply those of the file."""
    pixels = read_image(host.path)
    try:
        with Image.open(host.path, formats=("PNG", "JPEG")) as image:
            colour = image.mode not in ("1", "L", "I;16", "I;16B", "I")
    except OSError:  # DICOM
        colour = False
    return pixels, "colour: its luminance is used" if colour else ""


def spacing_of(host: Host, *, given: float) -> tuple[float | None, str]:
    """mm a pixel and where that is from: `stated` by the row or file, or `given`; None where nobody says it. InputError for no number."""
    cell = host.study.extra.get("spacing_mm", "")
    if cell:
        numbers = [_number(part) for part in cell.split("|")]
        if not all(0.01 <= number <= 10 for number in numbers):
            raise InputError(f"spacing_mm '{cell}' cannot be", remedy="write mm per pixel, such as 0.168, or empty the cell")
        if max(numbers) > 1.01 * min(numbers):
            raise InputError(f"its pixels are {cell} mm, not square", remedy="resample the image to square pixels")
        return float(np.mean(numbers)), "stated"
    return (None, "") if math.isnan(given) else (given, "given")


def choose(hosts: Hosts, *, num: int | None, seed: int) -> list[Host]:
    """As many hosts as are wanted; by default each of them once, in their order.

    For a number, each host is drawn for a patient who has the finding, of the same view, then sex, then age, as far as both state it; no
    host comes again before all have come. Without such patients hosts are drawn at random.
    """
    if num is None:
        return list(hosts.usable)
    rng = np.random.default_rng(derive(seed, "hosts"))
    chosen: list[Host] = []
    left: list[Host] = []
    for _ in range(num):
        left = left or [hosts.usable[number] for number in rng.permutation(len(hosts.usable))]
        if not hosts.positives:
            chosen.append(left.pop())
            continue
        like = hosts.positives[int(rng.integers(len(hosts.positives)))]
        nearest = min(range(len(left)), key=lambda number: _unlikeness(left[number].study, like))
        chosen.append(left.pop(nearest))
    return chosen


def _unlikeness(one: Study, other: Study) -> tuple[float, float, float]:
    """0 for the same view, sex and age; what one of them does not state lies between the same and another."""
    view = 0.5 if not (one.view and other.view) else float(one.view != other.view)
    sex = 0.5 if not (one.sex and other.sex) else float(one.sex != other.sex)
    years = abs(one.age_years - other.age_years)
    return view, sex, 20.0 if math.isnan(years) else years


def _of_prepared(prepared: Prepared, finding: str, assume_absent: bool) -> Hosts:
    if not prepared.source.is_dir():
        raise InputError(f"its images are not at {prepared.source} any more", file=prepared.path,
                         remedy="give the dataset folder, or prepare it again")
    rows = list(enumerate(prepared.studies, start=2))
    return _sorted(rows, folder=prepared.source, name=prepared.source.name, findings=prepared.findings, finding=finding,
                   assume_absent=assume_absent)


def _of_dataset(dataset: Dataset, finding: str, assume_absent: bool) -> Hosts:
    rows = list(enumerate(dataset.studies, start=2))
    return _sorted(rows, folder=dataset.path, name=dataset.name, findings=dataset.findings, finding=finding, assume_absent=assume_absent,
                   licence=str(dataset.facts.get("licence") or ""))


def _sorted(rows: Sequence[tuple[int, Study]], *, folder: Path, name: str, findings: Sequence[str], finding: str, assume_absent: bool,
            licence: str = "") -> Hosts:
    """The rows of a table, each usable or with the reason why not."""
    shown = {study.patient_id for _, study in rows if study.patient_id and study.labels.get(finding) is Stated.PRESENT}
    held_out = {study.patient_id for _, study in rows if study.patient_id and study.split in ("val", "test")}
    usable, unusable = [], []
    for row, study in rows:
        reason, remedy = _unusable(study, finding, assume_absent=assume_absent, shown=shown, held_out=held_out)
        if reason:
            unusable.append(Dropped(host=study.file_name, row=row, reason=reason, remedy=remedy))
        else:
            own = replace(study, patient_id=study.patient_id or f"film:{study.file_name}")
            usable.append(Host(path=folder / study.file_name, study=own, row=row, reference=study.file_name))
    positives = tuple(study for _, study in rows if study.labels.get(finding) is Stated.PRESENT and study.origin == "real"
                      and study.split in ("", "train"))
    return Hosts(folder=folder, name=name, usable=tuple(usable), dropped=tuple(unusable), findings=tuple(findings), positives=positives,
                 licence=licence, notes=_notes(usable, [study for _, study in rows]))


def _unusable(study: Study, finding: str, *, assume_absent: bool, shown: set[str], held_out: set[str]) -> tuple[str, str]:
    """Why nothing may be inserted into an image, and what to do; two empty words where it may."""
    stated, normal = study.labels.get(finding), study.labels.get(NO_FINDING) is Stated.PRESENT
    marked = {name.strip() for name in study.lesion_label.split("|")}
    if study.derived_from_patient or study.origin != "real":
        what = "is derived from a patient's image already" if study.derived_from_patient else "is synthetic"
        return what, "give real images without the finding"
    if study.split in ("val", "test"):
        return f"is in the split '{study.split}'", "lesions go into training images only: what is changed may not be tested"
    if study.patient_id in held_out:
        return "is of a patient who has validation or test images", "all images of a patient belong to one split"
    if stated is Stated.PRESENT or finding in marked:
        return f"shows {finding} already", "give images without it"
    if stated is Stated.UNCERTAIN:
        return f"may show {finding} ('{finding}?')", "give images without it"
    if study.patient_id in shown:
        return f"is of a patient who has {finding} on another image", "give images of other patients"
    if study.view == "LATERAL":
        return "is a lateral image", "give frontal images"
    if not normal and stated is not Stated.ABSENT and not assume_absent:
        return f"does not state whether it shows {finding}", f"write No Finding or !{finding} in its row{OR_ASSUME}"
    return "", ""


def _of_files(folder: Path, finding: str, assume_absent: bool) -> Hosts:
    """A folder of image files without a table: PNG, JPEG and DICOM, anywhere below."""
    from synthorax.data.dicom_read import is_dicom, read_dicom  # keeps pydicom out of runs that have no DICOM

    if not folder.is_dir():
        raise InputError("no such folder", file=folder, remedy="give a folder of images, a dataset folder or a prepared folder")
    usable, unusable, patients = [], list[Dropped](), dict[str, str]()
    for number, path in enumerate(files_below(folder)):
        name = path.relative_to(folder).as_posix()
        dicom = is_dicom(path)
        if not dicom and path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        study, reference = Study(file_name=name, patient_id=f"film:{name}"), name
        if dicom:
            reference = f"host:{number:06d}"  # names of DICOM files are often identifiers
            try:
                facts = read_dicom(path)[1]
            except InputError as error:
                reason, remedy = _reason(error, path)
                unusable.append(Dropped(host=reference, reason=reason, remedy=remedy))
                continue
            patient = facts["patient_id"] or name
            code = patients.setdefault(patient, f"patient-{len(patients):06d}")
            extra = {key: facts[key] for key in ("spacing_mm", "modality") if facts[key]}
            study = Study(file_name=reference, patient_id=code, view=facts["view"], sex=facts["sex"], extra=extra,
                          age_years=age_to_publish(parse_age_years(facts["age_years"])[0]))
        study = marked_by_file(study, path)
        reason, remedy = _unusable(study, finding, assume_absent=assume_absent, shown=set(), held_out=set())
        if reason:
            remedy = f"give a dataset folder whose table says so{OR_ASSUME}" if remedy.endswith(OR_ASSUME) else remedy
            unusable.append(Dropped(host=reference, reason=reason, remedy=remedy))
        else:
            usable.append(Host(path=path, study=study, row=None, reference=reference))
    if not usable and not unusable:
        raise InputError("holds no PNG, JPEG or DICOM image", file=folder,
                         remedy=passed_over(folder) or "give a folder of images, a dataset folder or a prepared folder")
    return Hosts(folder=folder, name=folder.resolve().name, usable=tuple(usable), dropped=tuple(unusable), findings=(),
                 notes=_notes(usable, [host.study for host in usable]))


def _notes(usable: Sequence[Host], studies: Sequence[Study]) -> tuple[str, ...]:
    """What had to be taken for granted of the hosts."""
    notes, total = [], len(usable)
    if (alone := sum(host.study.patient_id.startswith("film:") for host in usable)):
        notes.append(f"{alone} of {total} images name no patient, and each counts as a patient of its own")
    if (unseen := sum(not host.study.view for host in usable)):
        notes.append(f"{unseen} of {total} images state no view and are taken for frontal ones")
    if usable and not any(study.split for study in studies):
        notes.append("no split is stated: the patients of these images may only train from now on")
    return tuple(notes)


def dropped(host: Host, error: SynthoraxError) -> Dropped:
    """A host into which nothing could be inserted, with what was wrong: without the path, which may name a patient."""
    reason, remedy = _reason(error, host.path)
    return Dropped(host=host.reference, row=host.row, reason=reason, remedy=remedy)


def _reason(error: SynthoraxError, path: Path) -> tuple[str, str]:
    """What was wrong, without the path and the remedy, and the remedy."""
    reason, remedy = str(error), ""
    if isinstance(error, InputError):
        remedy = error.remedy
        reason = reason.removeprefix(f"{error.file}: ").removesuffix(f"; {remedy}" if remedy else "")
    return reason.replace(str(path), "the file").replace(path.name, "the file"), remedy


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def summary(left_out: Sequence[Dropped]) -> Mapping[str, int]:
    """How many images were left out for which reason, the commonest first."""
    return dict(Counter(one.reason for one in left_out).most_common())
