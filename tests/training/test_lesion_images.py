"""Training images with inserted lesions: they join the real ones, train, and move nobody to another split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import synthorax as sx
from synthorax.data.dataset import read_dataset, write_dataset
from synthorax.data.derived import COLUMN
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.pixels import write_png
from synthorax.types import LabelPolicy, Stated

BENCH = Path(__file__).parents[2] / "bench" / "release"


def test_inserted_images_join_the_training_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import lesion_images

    write_phantom_dataset(tmp_path / "real", num=40, size=32, seed=0, prevalence={"Effusion": 0.4})
    prepared = sx.prepare(tmp_path / "real", size=32, out=tmp_path / "prepared", split=(0.6, 0.2, 0.2), seed=1)
    hosts = [study for study in prepared.studies if study.split == "train"][:3]
    rows = []
    for number, host in enumerate(hosts):
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[8:12, 8:12] = 255
        ramp = np.arange(1024, dtype=np.uint8).reshape(32, 32) + np.uint8(number)
        for name, pixels in ((f"images/{number}.png", ramp), (f"masks/{number}.png", mask)):
            (tmp_path / "inserted" / name).parent.mkdir(parents=True, exist_ok=True)
            write_png(tmp_path / "inserted" / name, pixels)
        rows.append(replace(host, file_name=f"images/{number}.png", study_id=f"made-{number}", origin="synthetic", split="train",
                            labels={**host.labels, "Nodule": Stated.PRESENT}, masks={"Nodule_mask": (f"masks/{number}.png",)},
                            extra={COLUMN: "yes"}))
    write_dataset(tmp_path / "inserted", rows, name="inserted", synthetic=True, facts={"labels": ["Effusion", "Nodule"]})
    joined = lesion_images.join(prepared, [read_dataset(tmp_path / "inserted")], tmp_path / "joined")
    again = sx.prepare(joined, size=32, out=tmp_path / "again", split=(0.6, 0.2, 0.2), seed=5, policy=LabelPolicy(unlisted="not stated"))

    for split in ("val", "test"):
        before, after = prepared.images(split), again.images(split)
        assert list(before.patients()) == list(after.patients()) and np.array_equal(before.pixels, after.pixels), split
    train = again.images("train", masks=True)
    assert len(train) == len(prepared.images("train")) + 3
    column = train.findings.index("Nodule")
    shown = [row for row, study in enumerate(train.studies) if study.derived_from_patient]
    assert len(shown) == 3 and (train.labels[shown, column] == 1).all()
    assert train.masks is not None and "Nodule" in train.masks.names
    outline = train.masks.index[shown, train.masks.names.index("Nodule")]
    assert (train.masks.pixels[outline] > 0).sum(axis=(1, 2)).tolist() == [16, 16, 16]
