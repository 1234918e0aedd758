"""The joined training set: real images keep their masks, lesions and own columns, synthetic ones theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import synthorax as sx
from synthorax.data.dataset import Dataset, read_dataset, write_facts, write_table
from synthorax.data.lesions import lesions_of
from synthorax.data.masks import mask_stack
from synthorax.data.pixels import write_png
from synthorax.data.prepared import Prepared, load_images
from synthorax.steps.training_set import join_training_set
from synthorax.types import Stated, Study

PRESENT, ABSENT = Stated.PRESENT, Stated.ABSENT


def mask(path: Path, shape: tuple[int, int], rows: slice, columns: slice) -> None:
    pixels = np.zeros(shape, np.uint8)
    pixels[rows, columns] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, pixels)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Images of 40 x 20 pixels: the square of each has black to the left and right of it."""
    folder = tmp_path_factory.mktemp("real")
    rng = np.random.default_rng(0)
    studies = []
    for number in range(12):
        write_png(folder / f"{number}.png", rng.integers(1, 256, (40, 20), dtype=np.uint8))
        mask(folder / f"lungs/{number}.png", (40, 20), slice(8, 32), slice(2, 18))
        marked = Study(file_name=f"{number}.png", patient_id=f"p{number}", site="west", labels={"Mass": PRESENT, "Effusion": PRESENT},
                       lesion_label="Mass|Effusion", masks={"lung_mask": (f"lungs/{number}.png",), "lesion_mask": (f"m{number}.png", "")},
                       extra={"lesion_box": "|0.5,0.5,0.5,0.25", "lesion_kind": "|box", "scanner": f"S{number}"})
        mask(folder / f"m{number}.png", (40, 20), slice(4, 8), slice(12, 16))
        studies.append(marked if number % 2 else Study(file_name=f"{number}.png", patient_id=f"p{number}", labels={"Mass": ABSENT}))
    write_table(folder, studies)
    write_facts(folder, name="real", studies=studies, synthetic=False)
    return sx.prepare(folder, size=20, out=folder / "prepared", split=(0.6, 0.0, 0.4))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("synthetic")
    (folder / "images").mkdir()
    write_png(folder / "images/synthetic-000000.png", np.arange(400, dtype=np.uint8).reshape(20, 20))
    mask(folder / "masks/lung/synthetic-000000.png", (20, 20), slice(2, 9), slice(3, 7))
    study = Study(file_name="images/synthetic-000000.png", labels={"Mass": PRESENT}, origin="synthetic", extra={"model": "m", "seed": "4"},
                  masks={"lung_mask": ("masks/lung/synthetic-000000.png",)})
    write_table(folder, [study])
    write_facts(folder, name="made", studies=[study], synthetic=True)
    return read_dataset(folder)


def test_both_origins_keep_their_masks_lesions_and_columns(real: Prepared, synthetic: Dataset, tmp_path: Path) -> None:
    joined = join_training_set(real, synthetic, out=tmp_path / "train", name="joined", facts={"licence": "mine"})
    train = real.images("train", masks=True)
    assert len(joined) == len(train) + 1 and joined.facts["licence"] == "mine"
    assert train.masks is not None and train.lesions is not None
    images = load_images(joined, size=20, findings=real.findings, masks=True, classes=train.masks.names)
    assert images.masks is not None and images.lesions is not None
    rows = list(range(len(train)))
    assert np.array_equal(images.pixels[:-1], train.pixels)
    assert np.array_equal(mask_stack(images.masks, rows), mask_stack(train.masks, rows), equal_nan=True), "a box stays a box"
    assert np.allclose(images.lesions[:-1], train.lesions, atol=1e-5, equal_nan=True)
    marked = [study for study in joined.studies if study.lesion_label]
    assert marked and all(study.extra["scanner"].startswith("S") and study.extra["lesion_kind"] == "|box" for study in marked)
    assert lesions_of(marked[0])[1].box == pytest.approx((0.5, 0.5, 0.25, 0.25)), "in parts of the square"
    made = joined.studies[-1]
    assert made.origin == "synthetic" and made.extra["seed"] == "4" and made.extra["scanner"] == "" and made.masks["lung_mask"]
    assert {study.split for study in joined.studies} == {"train"}


def test_the_joined_set_is_one_that_can_be_prepared_again(real: Prepared, synthetic: Dataset, tmp_path: Path) -> None:
    joined = join_training_set(real, synthetic, out=tmp_path / "train", name="joined", facts={})
    again = join_training_set(real, synthetic, out=tmp_path / "train", name="joined", facts={})
    assert again.facts["digest"] == joined.facts["digest"]
    assert len(sx.prepare(joined, size=20, out=tmp_path / "p", split=(1.0, 0.0, 0.0)).images("train", masks=True)) == len(joined)
