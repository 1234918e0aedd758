"""Several sets of images as one: terms and patients are kept, what a set does not know stays unstated, drawn masks stay out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import synthorax as sx
from synthorax.data.dataset import read_dataset
from synthorax.data.prepared import Prepared
from synthorax.data.sources import merge_datasets, origins_of
from synthorax.errors import InputError
from synthorax.types import LabelPolicy, Stated


def images(folder: Path, rows: list[str], *, header: str = "file_name,patient_id,findings", **facts: object) -> Path:
    """A dataset folder of noise images with these rows, two masks beside them."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(len(rows) + len(folder.name))
    for number in range(len(rows)):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"images/{number}.png")
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(folder / "masks/m.png")
    (folder / "metadata.csv").write_text("\n".join([header, *(f"images/{number}.png,{row}" for number, row in enumerate(rows))]) + "\n")
    (folder / "dataset.json").write_text(json.dumps({"name": folder.name, **facts}))
    return folder


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    first = images(tmp_path / "first", ["1,Mass,masks/m.png,", "2,No Finding,,masks/m.png", "3,,,", "4,!No Finding,,"],
                  header="file_name,patient_id,findings,pseudo_lung_mask,heart_mask", labels=["Mass", "Hernia", "No Finding"],
                  licence="free", attribution="A. Author 2020")
    second = images(tmp_path / "second", ["1,COVID-19,CC BY 4.0", "2,COVID-19,"], header="file_name,patient_id,findings,licence",
                   labels=["COVID-19"])
    return [first, second]


def test_what_a_set_knows_is_stated_and_the_rest_is_not(sets: list[Path], tmp_path: Path) -> None:
    merged = merge_datasets(sets, tmp_path / "all", name="all")
    stated = {study.file_name: dict(study.labels) for study in merged.studies}
    assert stated["first/images/0.png"] == {"Mass": Stated.PRESENT, "Hernia": Stated.ABSENT}, "nothing is said of COVID-19"
    assert stated["second/images/0.png"] == {"COVID-19": Stated.PRESENT}, "nothing is said of masses"
    assert stated["first/images/1.png"] == {"No Finding": Stated.PRESENT}
    assert stated["first/images/2.png"] == {} and stated["first/images/3.png"] == {"No Finding": Stated.ABSENT}
    prepared = sx.prepare(merged, size=16, out=tmp_path / "p", split=(0.5, 0.0, 0.5), policy=LabelPolicy(unlisted="not stated"))
    everything = prepared.images()
    row = [study.file_name for study in everything.studies].index("first/images/0.png")
    assert everything.column("Hernia")[row] == 0 and np.isnan(everything.column("COVID-19")[row])


def test_patients_of_different_sets_stay_different_and_sites_are_named(sets: list[Path], tmp_path: Path) -> None:
    merged = merge_datasets(sets, tmp_path / "all", name="all")
    assert len({study.patient_id for study in merged.studies}) == 6
    assert {study.site for study in merged.studies} == {"first", "second"}


def test_masks_that_a_network_drew_stay_out(sets: list[Path], tmp_path: Path) -> None:
    merged = merge_datasets(sets, tmp_path / "all", name="all")
    assert {kind for study in merged.studies for kind in study.masks} == {"heart_mask"}
    assert [path.name for path in (tmp_path / "all").rglob("m.png")] == ["m.png"], "and the file of the human mask is there once"


def test_terms_go_with_the_images_into_the_prepared_folder(sets: list[Path], tmp_path: Path) -> None:
    merged = merge_datasets(sets, tmp_path / "all", name="all", attributions={"first": "not asked", "second": "B. Binder 2021"})
    first, second = origins_of(merged)
    assert (first.licence, first.attribution, first.images, first.patients) == ("free", "A. Author 2020", 4, 4)
    assert (second.licence, second.attribution) == ("CC BY 4.0; not stated", "B. Binder 2021"), "one image states nothing, and that is said"
    prepared = sx.prepare(merged, size=16, out=tmp_path / "p", split=(0.5, 0.0, 0.5))
    assert Prepared.load(prepared.path).sources == (first, second)
    alone = sx.prepare(read_dataset(sets[0]), size=16, out=tmp_path / "q", split=(0.5, 0.0, 0.5))
    assert [origin.name for origin in alone.sources] == ["first"]


def test_the_same_sets_again_are_found_and_other_ones_refused(sets: list[Path], tmp_path: Path) -> None:
    merge_datasets(sets, tmp_path / "all", name="all")
    before = (tmp_path / "all/metadata.csv").stat().st_mtime_ns
    merge_datasets(sets, tmp_path / "all", name="all")
    assert (tmp_path / "all/metadata.csv").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds a merged set with other sets"):
        merge_datasets(sets[:1], tmp_path / "all", name="all")


def test_synthetic_images_and_one_name_twice_are_refused(sets: list[Path], tmp_path: Path) -> None:
    made = images(tmp_path / "made", ["1,Mass"], synthetic=True)
    with pytest.raises(InputError, match="learns from real images alone"):
        merge_datasets([made], tmp_path / "all", name="all")
    duplicate = images(tmp_path / "deeper/first", ["1,Mass"])
    with pytest.raises(InputError, match="two sets are called 'first'"):
        merge_datasets([sets[0], duplicate], tmp_path / "all", name="all")
