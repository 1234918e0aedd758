"""Prepared folders of lesions: a bank on one grid, measured, and split by scan, with a reason for each reject.

The folder holds `volumes.npy` [N, 2, S, S, S] of float16 in [-1, 1], `lesions.csv` (the accepted ones in the same order), `rejects.csv` and
`prepared.json` (settings and digests).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.config import read_record
from synthorax.data.lesion_grid import GriddedLesion, UnusableError, gridded, measured_rim
from synthorax.data.lesion_shape import LesionMeasures
from synthorax.data.lesion_units import MEASUREMENTS, QUANTITIES, measurements_of, to_unit_volume
from synthorax.data.nodule_bank import CtLesion, read_bank
from synthorax.data.prepared import AGAIN, FACTS_NAME
from synthorax.data.prepared import VOLUMES_SCHEMA as SCHEMA
from synthorax.data.rejects import FACT, Rejected, count_reasons
from synthorax.data.sources import NOT_STATED, Origin
from synthorax.errors import InputError, UsageError
from synthorax.files import check_kind, read_json_object, sha256, write_json
from synthorax.folders import claimed, file_stamp
from synthorax.progress import Progress, quiet
from synthorax.types import VolumeSet

SPLITS = ("train", "test")
SIDES = (8, 64)
COLUMNS = ("name", "scan", "split", "diameter_mm", "volume_mm3", "sphericity", "roughness", "mean_water", "peak_water", "solid_share",
           "lung_hu")
_VOLUMES, _TABLE = "volumes.npy", "lesions.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedVolumes:
    """A prepared folder of lesions whose digest was checked."""

    path: Path
    side: int
    """voxels of a side of the grid"""
    rim: tuple[float, ...]
    """soft rim of the bank, see `lesion_grid.measured_rim`"""
    digest: str
    """SHA-256 over volumes and table"""
    rows: tuple[Mapping[str, str], ...] = field(repr=False)
    """the lines of `lesions.csv`, columns as in `COLUMNS`"""
    sources: tuple[Origin, ...] = field(repr=False)
    rejected: Rejected = field(default_factory=Rejected, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self)} lesions of {self.side} x {self.side} x {self.side} voxels"]
        for split in SPLITS:
            scans = [row["scan"] for row in self.rows if row["split"] == split]
            lines.append(f"  {split:<5} {len(scans):>6} lesions of {len(set(scans))} scans")
        return "\n".join([*lines, f"  rejected: {self.rejected}"])

    @property
    def findings(self) -> tuple[str, ...]:
        """None: what is known of lesions is measured."""
        return ()

    def mask_classes(self) -> tuple[str, ...]:
        """None: the shape is part of a volume."""
        return ()

    @classmethod
    def load(cls, path: str | Path) -> PreparedVolumes:
        """Open a prepared folder of lesions; `InputError` where it is none, or where a file is damaged or was edited."""
        path = Path(path)
        if not (path / FACTS_NAME).is_file():
            raise InputError("this is not a prepared folder of lesions", file=path, remedy="`synthorax prepare-nodules` makes one")
        facts = read_json_object(path / FACTS_NAME, {"schema": str}, remedy=AGAIN)
        if facts["schema"] != SCHEMA:
            raise InputError("is a prepared folder of images, not of lesions", file=path, remedy="`synthorax prepare-nodules` makes one")
        for key, kind in {"settings": dict, "digest": str, "rim": list}.items():
            check_kind(facts, key, kind, where=path / FACTS_NAME, remedy=AGAIN)
        check_kind(facts["settings"], "side", int, where=path / FACTS_NAME, remedy=AGAIN)
        if not all((path / name).is_file() for name in (_VOLUMES, _TABLE)) or _digest(path, facts["rim"]) != facts["digest"]:
            raise InputError("the prepared folder is damaged or was edited", file=path, remedy=AGAIN)
        rows = list(csv.DictReader(io.StringIO((path / _TABLE).read_text(encoding="utf-8"))))
        return cls(path=path, side=facts["settings"]["side"], rim=tuple(facts["rim"]), digest=facts["digest"], rows=tuple(rows),
                   rejected=Rejected.of_folder(path, facts),
                   sources=read_record(tuple[Origin, ...], facts.get("sources", ()), what="sources", where=path / FACTS_NAME, remedy=AGAIN))

    def volumes(self, split: str) -> VolumeSet:
        """The lesions of one split, or of both (an empty `split`)."""
        if split and split not in SPLITS:
            raise UsageError(f"there is no split '{split}'; choose from: {', '.join(SPLITS)}")
        chosen = [number for number, row in enumerate(self.rows) if split in ("", row["split"])]
        stored = np.load(self.path / _VOLUMES, mmap_mode="r")
        measured = np.array([measurements_of(measures_in(self.rows[number])) for number in chosen], dtype=np.float32)
        return VolumeSet(volumes=np.asarray(stored[chosen]), measurements=measured.reshape(-1, len(MEASUREMENTS)),
                         quantities=QUANTITIES, names=MEASUREMENTS, scans=tuple(self.rows[number]["scan"] for number in chosen),
                         digest=self.digest)

    def to_dict(self) -> dict[str, Any]:
        """Where it is, what is in it and what was rejected, JSON-ready."""
        lesions = {split: sum(row["split"] == split for row in self.rows) for split in SPLITS}
        return {"prepared": str(self.path), "lesions": len(self), "side": self.side, "splits": lesions, "rim": list(self.rim),
                "digest": self.digest, "rejected": self.rejected.to_dict()}


def prepare_volumes(bank: Path, out: str | Path, *, side: int = 32, held_out: float = 0.2, seed: int = 0, licence: str = "",
                    attribution: str = "", progress: Progress = quiet) -> PreparedVolumes:
    """Resample, measure and split the lesions of a bank into the folder `out`, whole or not at all; see `nodule_bank.read_bank`.

    All lesions of a scan go to one split. Lesions that cannot be used are in `rejects.csv`, with the reason. `licence` and `attribution`
    are the terms of the bank and whom to name, for the card of a model. The same call again returns the folder as it is.
    """
    if not SIDES[0] <= side <= SIDES[1] or side % 2:
        raise UsageError(f"lesions are prepared on grids of {SIDES[0]} to {SIDES[1]} voxels a side, an even number, not {side}")
    if not 0 <= held_out < 1:
        raise UsageError(f"held_out is {held_out:g}; it must be 0 or above, and below 1")
    settings = {"side": side, "held_out": held_out, "seed": seed, "licence": licence, "attribution": attribution}
    files = sorted(bank.iterdir()) if bank.is_dir() else [bank] if bank.exists() else []
    stamp = hashlib.sha256("\0".join(f"{file.name}\0{file_stamp(file)}" for file in files).encode("utf-8", "surrogateescape")).hexdigest()
    with claimed(Path(out), kind="a prepared folder of lesions", inputs={"bank": stamp, **settings}) as folder:
        if not folder.done:
            _build(bank, folder.work, settings, progress=progress)
            folder.deliver(last=(FACTS_NAME,))
    return PreparedVolumes.load(out)


def split_scans(scans: Sequence[str], sizes: Sequence[float], *, held_out: float, seed: int = 0) -> list[str]:
    """Split of each lesion: scans in the order of their largest lesion, and of each few in a row one, at random, is held out.

    So both splits have large and small lesions alike.
    """
    if not held_out:
        return ["train"] * len(scans)
    largest: dict[str, float] = {}
    for scan, size in zip(scans, sizes, strict=True):
        largest[scan] = max(size, largest.get(scan, 0.0))
    order = sorted(largest, key=lambda scan: (largest[scan], scan))
    rng = np.random.default_rng([seed, 13])
    tests: set[str] = set()
    due = 0.0
    group = max(1, round(1 / held_out))
    for start in range(0, len(order), group):
        some = order[start:start + group]
        due += held_out * len(some)
        for scan in rng.permutation(np.array(some, dtype=object))[:math.floor(due + 1e-9)]:
            tests.add(scan)
        due -= math.floor(due + 1e-9)
    return ["test" if scan in tests else "train" for scan in scans]


def measures_in(row: Mapping[str, str]) -> LesionMeasures:
    """What a line of `lesions.csv` says was measured."""
    return LesionMeasures(**{name: float(row[name]) for name in LesionMeasures.__slots__})


def _build(bank: Path, work: Path, settings: Mapping[str, Any], *, progress: Progress) -> None:
    """Fill the empty folder `work`."""
    lesions = list(read_bank(bank))
    rim = measured_rim(lesions) if lesions else ()
    made: list[tuple[CtLesion, GriddedLesion]] = []
    rejects: list[tuple[str, str]] = []
    for number, lesion in enumerate(lesions, start=1):
        try:
            made.append((lesion, gridded(lesion, side=settings["side"], rim=rim)))
        except UnusableError as error:
            rejects.append((lesion.name, str(error)))
        progress(0.9 * number / len(lesions), f"{number} of {len(lesions)} lesions")
    if not made:
        first = f"the first one {rejects[0][1]}" if rejects else "the bank is empty"
        raise InputError(f"no lesion can be used: {first}", file=bank)
    splits = split_scans([lesion.scan for lesion, _ in made], [grid.diameter_mm for _, grid in made], held_out=settings["held_out"],
                         seed=settings["seed"])
    volumes: list[NDArray[np.float16]] = []
    rows = []
    for (lesion, grid), split in zip(made, splits, strict=True):
        volumes.append(to_unit_volume(grid.distance, grid.water).astype(np.float16))
        measured = grid.measures()
        numbers = {name: f"{getattr(measured, name):.6g}" for name in LesionMeasures.__slots__}
        rows.append({"name": lesion.name, "scan": lesion.scan, "split": split, "lung_hu": f"{grid.lung_hu:g}", **numbers})
        progress(0.9 + 0.1 * len(rows) / len(made), "measuring")
    np.save(work / _VOLUMES, np.stack(volumes))
    _write_table(work / _TABLE, COLUMNS, rows)
    _write_table(work / "rejects.csv", ("name", "reason"), [{"name": name, "reason": reason} for name, reason in rejects])
    digest, scans = _digest(work, rim), len({lesion.scan for lesion, _ in made})
    origin = Origin(name=bank.stem, images=len(made), patients=scans, licence=settings["licence"] or NOT_STATED,
                    attribution=settings["attribution"], digest=digest)
    write_json(work / FACTS_NAME, {"schema": SCHEMA, "settings": dict(settings), "rim": list(rim), "digest": digest,
                                   "num_lesions": len(made),
                                   FACT: count_reasons([reason for _, reason in rejects], accepted=len(made)).to_facts(),
                                   "sources": [origin.to_dict()]})
    progress(1.0, f"{len(made)} lesions prepared")


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _digest(folder: Path, rim: Sequence[float]) -> str:
    parts = [json.dumps(list(rim)), sha256(folder / _VOLUMES), sha256(folder / _TABLE)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
