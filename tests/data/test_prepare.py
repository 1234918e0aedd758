"""Prepared folders: every image is in the array or in the rejects, splits do not leak, damage is seen."""

import csv
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthorax.data.dataset import read_dataset, write_table
from synthorax.data.image_files import read_image
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.pixels import letterbox, write_png
from synthorax.data.prepared import Prepared, load_images, prepare_dataset
from synthorax.errors import InputError, UsageError
from synthorax.types import LabelPolicy, Stated, Study

NIH = Path(__file__).parents[3] / "shared" / "data" / "open" / "nih"


def make_dataset(folder, num=20, *, dtype=np.uint8, change=lambda studies: studies):
    """A folder of noise images, two for each even patient."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    studies = []
    for number in range(num):
        name = f"images/{number}.png"
        write_png(folder / name, rng.integers(0, np.iinfo(dtype).max, (24, 20), dtype=dtype))
        labels = {"Mass": Stated.PRESENT} if number % 4 == 0 else {"No Finding": Stated.PRESENT}
        studies.append(Study(file_name=name, study_id=f"s{number}", patient_id=f"p{number - number % 2}", view="PA" if number % 3 else "AP",
                             sex="F", age_years=30.5 + number, labels=labels, text="=a, \"image\"", extra={"ward": f"w{number}"}))
    write_table(folder, change(studies))
    return read_dataset(folder)


def rejects_of(prepared):
    with (prepared.path / "rejects.csv").open(encoding="utf-8") as handle:
        return {row["file"]: row for row in csv.DictReader(handle)}


def test_images_are_the_letterboxed_files_with_their_rows(tmp_path):
    dataset = make_dataset(tmp_path / "images")
    seen = []
    prepared = prepare_dataset(dataset, tmp_path / "out", size=16, progress=lambda fraction, text: seen.append((fraction, text)))
    assert [text for _, text in seen[:-1]] == [f"{done} of 20 images" for done in range(1, 21)]
    assert seen[-1] == (1.0, f"{len(prepared)} images prepared")
    assert sorted(path.name for path in prepared.path.iterdir()) == [
        "fingerprint.json", "images.npy", "metadata.csv", "prepared.json", "rejects.csv", "synthorax.json"]
    images = prepared.images()
    assert images.pixels.shape == (20, 16, 16) and images.pixels.dtype == np.uint8
    assert [replace(study, split="") for study in images.studies] == list(dataset.studies)
    for image, study in zip(images.pixels, images.studies, strict=True):
        assert np.array_equal(image, letterbox(read_image(dataset.path / study.file_name), 16))
    assert np.array_equal(images.column("Mass") == 1, [number % 4 == 0 for number in range(20)])


def test_splits_cover_everything_once_and_share_no_patient(tmp_path):
    prepared = prepare_dataset(make_dataset(tmp_path / "images", 60), tmp_path / "out", size=8)
    parts = {split: prepared.images(split) for split in ("train", "val", "test")}
    assert sum(len(part) for part in parts.values()) == len(prepared) == 60
    patients = [set(part.patients()) for part in parts.values()]
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
    assert all((part.column("Mass") == 1).any() for part in parts.values())
    with pytest.raises(UsageError, match="dev"):
        prepared.images("dev")


def test_16_bits_stay_and_mixed_sets_keep_white_white(tmp_path):
    deep = prepare_dataset(make_dataset(tmp_path / "deep", 4, dtype=np.uint16), tmp_path / "out", size=24, fractions=(1, 0, 0)).images()
    assert deep.pixels.dtype == np.uint16 and len(np.unique(deep.pixels)) > 500
    dataset = make_dataset(tmp_path / "mixed", 4)
    write_png(dataset.path / "images/0.png", np.arange(24 * 20, dtype=np.uint16).reshape(24, 20) * 100)
    mixed = prepare_dataset(dataset, tmp_path / "mixed-out", size=24, fractions=(1, 0, 0)).images()
    assert mixed.pixels.dtype == np.uint16
    assert np.array_equal(mixed.pixels[1], 257 * letterbox(read_image(dataset.path / "images/1.png"), 24).astype(np.uint16))


def test_smaller_images_are_block_means(tmp_path):
    prepared = prepare_dataset(make_dataset(tmp_path / "images", 6), tmp_path / "out", size=24)
    whole, small = prepared.images().pixels.astype(float), prepared.images(size=8).pixels
    assert np.abs(small - whole.reshape(6, 8, 3, 8, 3).mean(axis=(2, 4))).max() <= 0.5
    with pytest.raises(InputError, match="cannot become 16; use 24, 12, 6, 3"):
        prepared.images(size=16)


def test_what_cannot_be_used_is_rejected_with_row_reason_and_remedy(tmp_path):
    dataset = make_dataset(tmp_path / "images")
    images = dataset.path / "images"
    whole = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(whole[: len(whole) // 2])
    write_png(images / "4.png", np.full((24, 20), 7, dtype=np.uint8))
    (images / "6.png").write_bytes((images / "9.png").read_bytes())  # another patient's
    (images / "13.png").write_bytes((images / "12.png").read_bytes())  # the same patient's
    Image.new("1", (9000, 9000)).save(images / "14.png")
    prepared = prepare_dataset(dataset, tmp_path / "out", size=16)
    rejects = rejects_of(prepared)
    assert {name: row["row"] for name, row in rejects.items()} == {
        "images/3.png": "5", "images/4.png": "6", "images/9.png": "11", "images/13.png": "15", "images/14.png": "16"}
    assert "decoded" in rejects["images/3.png"]["reason"] and "one grey value" in rejects["images/4.png"]["reason"]
    assert "images/6.png" in rejects["images/9.png"]["reason"] and "another patient" in rejects["images/9.png"]["reason"]
    assert "another patient" not in rejects["images/13.png"]["reason"]
    assert "9000 x 9000" in rejects["images/14.png"]["reason"]
    assert all(row["remedy"] and str(tmp_path) not in row["reason"] for row in rejects.values())
    assert len(prepared) == 15 and prepared.num_rejected == 5
    assert not {study.file_name for study in prepared.studies} & set(rejects)


def test_training_images_beyond_the_cap_are_recorded(tmp_path):
    def one_patient_has_twelve(studies):
        return [replace(study, patient_id="many" if number < 12 else f"p{number}") for number, study in enumerate(studies)]

    dataset = make_dataset(tmp_path / "images", 30, change=one_patient_has_twelve)
    prepared = prepare_dataset(dataset, tmp_path / "out", size=8, images_per_patient=4)
    assert Counter(prepared.images("train").patients())["many"] == 4 and len(rejects_of(prepared)) == 8
    assert all("beyond 4 training images" in row["reason"] for row in rejects_of(prepared).values())


def test_same_inputs_are_used_again_and_others_refused(tmp_path):
    dataset = make_dataset(tmp_path / "images", 8)
    first = prepare_dataset(dataset, tmp_path / "out", size=8)
    before = (first.path / "images.npy").stat().st_mtime_ns
    again = prepare_dataset(dataset, tmp_path / "out", size=8, progress=lambda fraction, text: pytest.fail("decoded again"))
    assert again == first and (again.path / "images.npy").stat().st_mtime_ns == before
    for name, change in (("size", {"size": 16}), ("seed", {"size": 8, "seed": 1}),
                         ("policy", {"size": 8, "policy": LabelPolicy(unlisted="not stated")})):
        with pytest.raises(InputError, match=f"holds a prepared folder with other {name}; choose another --out"):
            prepare_dataset(dataset, tmp_path / "out", **change)
    time.sleep(0.01)
    write_png(dataset.path / "images/0.png", read_image(dataset.path / "images/0.png")[::-1].copy())
    with pytest.raises(InputError, match="other images"):
        prepare_dataset(dataset, tmp_path / "out", size=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]


def test_masks_that_were_changed_since_are_noticed(tmp_path):
    dataset = write_phantom_dataset(tmp_path / "images", num=12, size=32)
    prepare_dataset(dataset, tmp_path / "out", size=8)
    mask = dataset.path / next(study.masks["lung_mask"][0] for study in dataset.studies)
    mask.write_bytes(mask.read_bytes() + b" ")
    with pytest.raises(InputError, match="other masks"):
        prepare_dataset(dataset, tmp_path / "out", size=8)


def test_folders_from_before_claims_are_used_again(tmp_path):
    dataset = make_dataset(tmp_path / "images", 8)
    first = prepare_dataset(dataset, tmp_path / "out", size=8)
    (tmp_path / "out" / "synthorax.json").unlink()
    assert prepare_dataset(dataset, tmp_path / "out", size=8, progress=lambda fraction, text: pytest.fail("decoded again")) == first
    (tmp_path / "out" / "synthorax.json").unlink()
    with pytest.raises(InputError, match="is not empty"):
        prepare_dataset(dataset, tmp_path / "out", size=8, seed=1)


def test_a_full_disk_is_an_error_and_no_signal(tmp_path, small_disk):
    with pytest.raises(OSError, match="No space left"):
        prepare_dataset(make_dataset(tmp_path / "images", 8), small_disk / "out", size=256)
    assert list(small_disk.iterdir()) == []


def test_a_foreign_folder_is_never_overwritten(tmp_path):
    dataset = make_dataset(tmp_path / "images", 8)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("irreplaceable")
    with pytest.raises(InputError, match="is not empty"):
        prepare_dataset(dataset, tmp_path / "thesis", size=8)
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_stopping_leaves_nothing_half_written(tmp_path):
    dataset = make_dataset(tmp_path / "images", 8)

    def stop(fraction, text):
        if text.startswith("4 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(dataset, tmp_path / "out", size=8, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("victim", ["images.npy", "metadata.csv"])
def test_damage_is_seen(tmp_path, victim):
    prepared = prepare_dataset(make_dataset(tmp_path / "images", 8), tmp_path / "out", size=8)
    content = bytearray((prepared.path / victim).read_bytes())
    content[-3] ^= 1
    (prepared.path / victim).write_bytes(content)
    with pytest.raises(InputError, match="damaged or was edited; delete it and prepare it again"):
        Prepared.load(prepared.path)
    (prepared.path / victim).unlink()
    with pytest.raises(InputError, match=f"{victim} is missing"):
        Prepared.load(prepared.path)


def test_what_is_no_prepared_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a prepared folder; `synthorax prepare` makes one"):
        Prepared.load(tmp_path)
    (tmp_path / "prepared.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        Prepared.load(tmp_path)
    (tmp_path / "prepared.json").write_text('{"schema": "other/9"}')
    with pytest.raises(InputError, match=r"synthorax\.prepared/1"):
        Prepared.load(tmp_path)


def test_wrong_splits_stop_before_anything_is_decoded(tmp_path):
    dataset = make_dataset(tmp_path / "images", 8)
    studies = [replace(study, split="test" if i else "train", origin="real") for i, study in enumerate(dataset.studies)]
    for wrong in (studies, [replace(studies[1], origin="synthetic")]):
        with pytest.raises(InputError, match=r"metadata.csv row \d"):
            prepare_dataset(replace(dataset, studies=tuple(wrong)), tmp_path / "out", size=8,
                            progress=lambda fraction, text: pytest.fail("decoded"))
    assert not (tmp_path / "out").exists()


def test_nothing_usable_is_an_error(tmp_path):
    dataset = make_dataset(tmp_path / "images", 2)
    for number in range(2):
        (dataset.path / f"images/{number}.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"no image can be used; the first one is not a PNG"):
        prepare_dataset(dataset, tmp_path / "out", size=8)


def test_policy_travels_with_the_folder(tmp_path):
    dataset = replace(make_dataset(tmp_path / "images", 8), findings=("Mass", "Hernia"))
    for unlisted, count in (("absent", 0), ("not stated", 2)):  # two images state a mass and say nothing of a hernia
        folder = prepare_dataset(dataset, tmp_path / unlisted, size=8, policy=LabelPolicy(unlisted=unlisted)).path
        assert np.isnan(Prepared.load(folder).images().column("Hernia")).sum() == count


def test_load_images_ignores_splits_and_refuses_damage(tmp_path):
    dataset = make_dataset(tmp_path / "images", 8)
    images = load_images(dataset, size=16, findings=("Mass", "Hernia"))
    assert images.pixels.shape == (8, 16, 16) and images.findings == ("Mass", "Hernia") and (images.column("Hernia") == 0).all()
    assert images.digest == load_images(dataset, size=16, findings=("Mass", "Hernia")).digest != load_images(dataset, size=8).digest
    (dataset.path / "images/5.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"row 7: 'images/5.png' is empty"):
        load_images(dataset, size=16)


def test_summary_and_fingerprint_agree_with_the_images(tmp_path):
    dataset = write_phantom_dataset(tmp_path / "drawn", num=60, size=32)
    prepared = prepare_dataset(dataset, tmp_path / "out", size=32)
    text = str(prepared)
    assert f"{len(prepared)} images of 32 x 32 pixels" in text and "Pneumothorax: only" in text
    stored = json.loads((prepared.path / "fingerprint.json").read_text())
    assert stored["findings"]["Effusion"]["present"]["images"] == int((prepared.images().column("Effusion") == 1).sum())
    assert stored["image_sizes"] == {"32 x 32": len(prepared)} and stored["sites"] == {"phantom": len(prepared)}
    study = next(study for study in prepared.studies if "lesion_mask" in study.masks)
    assert all((prepared.source / path).is_file() for path in study.masks["lesion_mask"])


@pytest.mark.images
@pytest.mark.skipif(not NIH.exists(), reason="the real images are not beside the checkout")
def test_real_images(tmp_path):
    dataset = read_dataset(NIH)
    few = replace(dataset, studies=dataset.studies[:150])
    prepared = prepare_dataset(few, tmp_path / "out", size=64)
    assert len(prepared) + prepared.num_rejected == 150
    assert 60 < prepared.images().pixels.mean() < 200
