"""Sets of hosts made of formulas, and the verb insert with few words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import synthorax as sx
from dicom_files import dicom
from synthorax.data.dataset import Dataset, read_dataset, write_dataset
from synthorax.data.pixels import write_png
from synthorax.data.prepared import Prepared
from synthorax.steps.insertion.config import InsertConfig
from synthorax.types import Stated, Study
from thorax import thorax

NORMAL = {"No Finding": Stated.PRESENT}
HERE = {"device": "cpu", "threads": 1}
SIZE_PX = 128


def host_set(folder: Path, rows: Sequence[Study] = (), *, num: int = 2, kind: str = "png8") -> Dataset:
    """A dataset folder of thoraxes made of formulas, with the masks of their lungs."""
    studies = list(rows) or [Study(file_name=f"images/{number}.png", patient_id=f"p{number}", labels=NORMAL, view="PA", sex="M",
                                   age_years=50.0 + number) for number in range(num)]
    made = []
    for number, study in enumerate(studies):
        drawn = thorax(SIZE_PX, bits=16 if kind == "png16" else 8, seed=number)
        write_png(folder / f"masks/lung/{number}.png", drawn.lungs.astype(np.uint8) * 255)
        path = folder / study.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "jpeg":
            Image.fromarray(drawn.pixels).save(path.with_suffix(".jpg"), quality=90)
        elif kind == "dicom":  # inverted and 12 bits deep, as many detectors write
            stored = (4095 - drawn.pixels.astype(np.uint16) * 16).astype(np.uint16)
            dicom(path.with_suffix(".dcm"), stored, bits=12, PhotometricInterpretation="MONOCHROME1", WindowCenter=2048, WindowWidth=4096)
        else:
            write_png(path, drawn.pixels)
        suffix = {"jpeg": ".jpg", "dicom": ".dcm"}.get(kind, ".png")
        name = str(Path(study.file_name).with_suffix(suffix))
        made.append(replace(study, file_name=name, masks={"lung_mask": (f"masks/lung/{number}.png",)}))
    write_dataset(folder, made, name="hosts", synthetic=False, facts={"labels": ["Effusion", "Nodule"], "licence": "none"})
    return read_dataset(folder)


def insert(hosts: Path | Dataset | Prepared, out: Path, *, finding: str = "Nodule", seed: int = 1, **config: object) -> Dataset:
    return sx.insert(hosts, finding=finding, out=out, seed=seed, config=InsertConfig(**config), **HERE).dataset  # type: ignore[arg-type]
