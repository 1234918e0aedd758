"""The images that lesions are inserted into: which can be used, why the others cannot, and which are chosen."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from synthorax.data.adapters.assembly import IMAGE_SUFFIXES, files_below, passed_over
from synthorax.data.attributes import age_to_publish, parse_age_years
from synthorax.data.dataset import TABLE_NAME, Dataset, own_patient, read_dataset, with_own_patient
from synthorax.data.derived import INVERTED, PHOTOMETRIC, marked_by_file
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
FILE_COLUMNS = ("host", "file", "reason", "remedy")
"""of private_dropped.csv"""
OR_ASSUME = ", or use --assume-absent if you know that it does not"


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """One image that a lesion may be inserted into."""

    path: Path
    study: Study
    """its row, or what its file says; `patient_id` is empty only where a generator made the image, and there is none"""
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
    file: str = field(default="", repr=False)
    """its path where `host` does not say it; it may name a patient"""

    def cells(self) -> dict[str, str]:
        """Cells of `ROW_COLUMNS`."""
        return {"host": self.host, "row": "" if self.row is None else str(self.row), "reason": self.reason, "remedy": self.remedy}

    def file_cells(self) -> dict[str, str]:
        """Cells of `FILE_COLUMNS`."""
        return {"host": self.host, "file": self.file, "reason": self.reason, "remedy": self.remedy}


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
    said of it. Images of patients who have it, of validation and test patients, lateral ones and changed ones are left out; generated ones
    are used where the folder holds nothing else. Raises InputError where no image is left, with the first reason.
    """
    hosts = (_of_prepared(source, finding, assume_absent) if isinstance(source, Prepared) else
             _of_dataset(source, finding, assume_absent) if isinstance(source, Dataset) else
             _of_prepared(Prepared.load(source), finding, assume_absent) if (source / PREPARED_FACTS).is_file() else
             _of_dataset(read_dataset(source, allow=(finding,)), finding, assume_absent) if (source / TABLE_NAME).is_file() else
             _of_files(source, finding, assume_absent))
    if not hosts.usable:
        first = hosts.dropped[0]
        others = "" if len(hosts.dropped) == 1 else f" (reasons of all {len(hosts.dropped)}: {commonest(summary(hosts.dropped))})"
        table = hosts.folder / TABLE_NAME
        raise InputError(f"no image can take a {finding}: '{first.host}' {first.reason}{others}", row=first.row, remedy=first.remedy,
                         file=Path(first.file) if first.file else table if table.is_file() else hosts.folder)
    return hosts


def read_host(host: Host) -> tuple[Pixels, str, dict[str, str]]:
    """Pixels [H, W] of 8 or 16 bits, bone bright, a note where they are not simply those of the file, and how a DICOM file stores them."""
    pixels = read_image(host.path)
    try:
        with Image.open(host.path, formats=("PNG", "JPEG")) as image:
            colour = image.mode not in ("1", "L", "I;16", "I;16B", "I")
    except OSError:
        from synthorax.data.dicom_read import stored_inverted  # keeps pydicom out of runs that have no DICOM

        return pixels, "", {PHOTOMETRIC: INVERTED} if stored_inverted(host.path) else {}
    return pixels, "colour: its luminance is used" if colour else "", {}


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
    generated = _all_generated(study for _, study in rows)
    usable, unusable = [], []
    for row, study in rows:
        reason, remedy = _unusable(study, finding, assume_absent=assume_absent, shown=shown, held_out=held_out, generated=generated)
        if reason:
            unusable.append(Dropped(host=study.file_name, row=row, reason=reason, remedy=remedy))
        else:
            usable.append(Host(path=folder / study.file_name, study=with_own_patient(study), row=row, reference=study.file_name))
    positives = tuple(study for _, study in rows if study.labels.get(finding) is Stated.PRESENT and study.origin == "real"
                      and study.split in ("", "train"))
    return Hosts(folder=folder, name=name, usable=tuple(usable), dropped=tuple(unusable), findings=tuple(findings), positives=positives,
                 licence=licence, notes=_notes(usable, [study for _, study in rows]))


def _all_generated(studies: Iterable[Study]) -> bool:
    """Whether a generator made all images: such a set may take lesions, and its images stay those of no patient."""
    return all(study.origin == "synthetic" and not study.derived_from_patient for study in studies)


def _unusable(study: Study, finding: str, *, assume_absent: bool, shown: set[str], held_out: set[str],
              generated: bool) -> tuple[str, str]:
    """Why nothing may be inserted into an image, and what to do; two empty words where it may."""
    stated, normal = study.labels.get(finding), study.labels.get(NO_FINDING) is Stated.PRESENT
    marked = {name.strip() for name in study.lesion_label.split("|")}
    if study.derived_from_patient:
        return "is derived from a patient's image already", "give real images without the finding"
    if study.origin != "real" and not generated:
        return "is synthetic, and other images of the set are not", "give real images without the finding, or a folder of generated ones"
    if study.origin != "real" and study.patient_id:
        return "is synthetic, and its row names a patient", "empty the patient_id of generated images, or mark those derived from a patient"
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
    found, unusable, patients = [], list[Dropped](), dict[str, str]()
    for number, path in enumerate(files_below(folder)):
        name = path.relative_to(folder).as_posix()
        dicom = is_dicom(path)
        if not dicom and path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        study, reference = Study(file_name=name), name
        if dicom:
            reference = f"host:{number:06d}"  # names of DICOM files are often identifiers
            try:
                facts = read_dicom(path)[1]
            except InputError as error:
                reason, remedy = _reason(error, path)
                unusable.append(Dropped(host=reference, reason=reason, remedy=remedy, file=str(path)))
                continue
            patient = facts["patient_id"] or name
            code = patients.setdefault(patient, f"patient-{len(patients):06d}")
            extra = {key: facts[key] for key in ("spacing_mm", "modality") if facts[key]}
            study = Study(file_name=reference, patient_id=code, view=facts["view"], sex=facts["sex"], extra=extra,
                          age_years=age_to_publish(parse_age_years(facts["age_years"])[0]))
        marked = marked_by_file(study, path)
        if marked.origin != "real" and not marked.derived_from_patient:  # the code of a file is no patient
            marked = replace(marked, patient_id="")
        found.append(Host(path=path, study=marked, row=None, reference=reference))
    usable, generated = [], _all_generated(host.study for host in found)
    for host in found:
        reason, remedy = _unusable(host.study, finding, assume_absent=assume_absent, shown=set(), held_out=set(), generated=generated)
        if reason:
            remedy = f"give a dataset folder whose table says so{OR_ASSUME}" if remedy.endswith(OR_ASSUME) else remedy
            unusable.append(Dropped(host=host.reference, reason=reason, remedy=remedy, file=hidden_path(host)))
        else:
            usable.append(replace(host, study=with_own_patient(host.study)))
    if not usable and not unusable:
        raise InputError("holds no PNG, JPEG or DICOM image", file=folder,
                         remedy=passed_over(folder) or "give a folder of images, a dataset folder or a prepared folder")
    return Hosts(folder=folder, name=folder.resolve().name, usable=tuple(usable), dropped=tuple(unusable), findings=(),
                 notes=_notes(usable, [host.study for host in usable]))


def _notes(usable: Sequence[Host], studies: Sequence[Study]) -> tuple[str, ...]:
    """What had to be taken for granted of the hosts."""
    notes, total = [], len(usable)
    if generated := sum(host.study.origin != "real" for host in usable):
        notes.append(f"{images(generated)} {'was' if generated == 1 else 'were'} made by a generator, of no patient")
    if alone := sum(own_patient(host.study.patient_id) for host in usable):
        notes.append(f"{alone} of {images(total)} {'names' if alone == 1 else 'name'} no patient and "
                     f"{'counts' if alone == 1 else 'each count'} as a patient of {'its' if alone == 1 else 'their'} own")
    if unseen := sum(not host.study.view for host in usable):
        notes.append(f"{unseen} of {images(total)} {'states' if unseen == 1 else 'state'} no view and "
                     f"{'is taken for a frontal one' if unseen == 1 else 'are taken for frontal ones'}")
    if total > generated and not any(study.split for study in studies):
        notes.append("no split is stated: the patients of these images may only train from now on")
    return tuple(notes)


def dropped(host: Host, error: SynthoraxError) -> Dropped:
    """A host into which nothing could be inserted, with what was wrong: without the path, which may name a patient."""
    reason, remedy = _reason(error, host.path)
    return Dropped(host=host.reference, row=host.row, reason=reason, remedy=remedy, file=hidden_path(host))


def hidden_path(host: Host) -> str:
    """The path of a host whose reference does not say it, as those of DICOM files, which may name a patient."""
    return "" if host.row is not None or host.path.as_posix().endswith(host.reference) else str(host.path)


def _reason(error: SynthoraxError, path: Path) -> tuple[str, str]:
    """What was wrong, without the path and the remedy, and the remedy."""
    reason, remedy = str(error), ""
    if isinstance(error, InputError):
        remedy = error.remedy
        reason = reason.removeprefix(f"{error.file}: ").removesuffix(f"; {remedy}" if remedy else "")
    return reason.replace(str(path), "the file").replace(path.name, "the file"), remedy


def summary(left_out: Sequence[Dropped]) -> Mapping[str, int]:
    """How many images were left out for which reason, the commonest first."""
    return dict(Counter(re.sub(r" in row \d+", "", one.reason) for one in left_out).most_common())


def commonest(counts: Mapping[str, int]) -> str:
    """The three commonest reasons and how often each holds.

    >>> commonest({"is a lateral image": 3})
    '"is a lateral image" 3 times'
    """
    return ", ".join(f'"{reason}" {"once" if count == 1 else f"{count} times"}' for reason, count in list(counts.items())[:3])


def images(count: int) -> str:
    """A number of images.

    >>> images(1), images(1200)
    ('1 image', '1,200 images')
    """
    return f"{count:,} image{'' if count == 1 else 's'}"
