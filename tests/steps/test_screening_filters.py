"""Filters of screening: what is planted is rejected for the right reason, and real images pass at the stated rate."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import synthorax as sx
from phantoms import phantom_images, study_and_image, write_drawn
from synthorax.data.dataset import Dataset, read_dataset, write_facts, write_table
from synthorax.data.pixels import write_png
from synthorax.data.prepared import Prepared
from synthorax.data.tables import read_table
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.metrics.corruptions import corrupt
from synthorax.judges.appearance import NAMES, appearance_statistics
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.cross_fit import CrossFit, cross_conformal
from synthorax.judges.lungs import load_lung_model
from synthorax.judges.plausible_chest import load_chest_judge
from synthorax.privacy.planted import plant
from synthorax.rng import derive
from synthorax.steps.screening.filters import (
    ASK_THE_JUDGE,
    FILTERS,
    REJECTION_RATE,
    VIEW_RATE,
    other_views,
    unusual_images,
)
from synthorax.steps.screening.screen import Screened, screen_images, screening_judge
from synthorax.types import ImageSet

Row = dict[str, str]
QUICK = ClassifierConfig(updates=150, batch_size=16, width=8, input_size=32, learning_rate=0.01, autocast=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("images")
    images = phantom_images(300, seed=7)
    drawn = [(replace(study, file_name=f"images/{study.file_name}"), image) for study, image in zip(images.studies, images.pixels,
                                                                                                    strict=True)]
    return sx.prepare(write_drawn(folder / "drawn", drawn), size=32, out=folder / "prepared", split=(0.5, 0.25, 0.25))


@pytest.fixture(scope="module")
def judge(prepared: Prepared) -> CrossFit:
    return screening_judge(prepared.images("train"), config=QUICK)


def as_synthetic(images: ImageSet, out: Path) -> Dataset:
    """Images of anybody as a synthetic dataset folder."""
    studies = []
    for number, (study, image) in enumerate(zip(images.studies, images.pixels, strict=True)):
        name = f"images/synthetic-{number:06d}.png"
        write_png(out / name, image)
        studies.append(replace(study, file_name=name, patient_id="", study_id="", masks={}, lesion_label="", split="", origin="synthetic",
                               extra={}))
    write_table(out, studies)
    write_facts(out, name="made", studies=studies, synthetic=True, extra={"labels": images.findings})
    return read_dataset(out)


def screened(images: ImageSet, prepared: Prepared, judge: CrossFit, tmp_path: Path, *filters: str) -> tuple[Screened, dict[int, str]]:
    """What screening says of images, and the reason of each dropped row."""
    found, rows = screened_rows(images, prepared, judge, tmp_path, *filters)
    return found, {number: row["reason"] for number, row in rows.items()}


def screened_rows(images: ImageSet, prepared: Prepared, judge: CrossFit, tmp_path: Path, *filters: str) -> tuple[Screened, dict[int, Row]]:
    """What screening says of images, and dropped.csv by the number of the image."""
    (tmp_path / "made/images").mkdir(parents=True)
    found = screen_images(as_synthetic(images, tmp_path / "made"), prepared, out=tmp_path / "kept", filters=filters, judge=judge)
    with (tmp_path / "kept/dropped.csv").open() as table:
        return found, {int(row["file_name"][-10:-4]): row for row in csv.DictReader(table)}


def test_held_out_real_images_pass_at_the_stated_rate(prepared: Prepared, judge: CrossFit) -> None:
    held_out = prepared.images("test")
    for one in unusual_images(prepared.images("train"), judge, held_out, filters=tuple(FILTERS)):
        rejected = int((one.p <= REJECTION_RATE).sum())
        assert rejected <= len(held_out) * REJECTION_RATE + 3 * np.sqrt(len(held_out) * REJECTION_RATE), one.reason


@pytest.mark.parametrize("name", sorted(ASK_THE_JUDGE))
def test_every_filter_that_asks_the_judge_says_something_by_itself(name: str, prepared: Prepared, judge: CrossFit) -> None:
    """A new line in `FILTERS` without scores would let everything pass."""
    held_out = prepared.images("test")
    found = unusual_images(prepared.images("train"), judge, held_out, filters=(name,))
    assert found and all(one.p.shape == (len(held_out),) for one in found)


@pytest.mark.parametrize("how", ["noise", "blur"])
def test_spoilt_images_are_far_from_real_ones(prepared: Prepared, judge: CrossFit, tmp_path: Path, how: str) -> None:
    image_set = prepared.images("test").take(range(40))
    images = image_set.pixels.copy()
    if how == "noise":
        images[:20] = np.random.default_rng(0).integers(0, 256, images[:20].shape, dtype=np.uint8)
    else:
        images[:20] = ndimage.gaussian_filter(images[:20], sigma=(0, 2, 2))
    found, dropped = screened(replace(image_set, pixels=images), prepared, judge, tmp_path, "distance", "outlier")
    assert sum(number in dropped for number in range(20)) >= 19
    assert sum(number in dropped for number in range(20, 40)) <= 4
    assert {reason.partition(" ")[0] for reason in dropped.values()} <= {"far", "unlike"}
    assert found.filters == ("distance", "outlier") and found.to_dict()["filters"] == ["distance", "outlier"]


def test_repeated_images_are_dropped_but_for_the_first(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    image_set = prepared.images("test").take([0, 1, 2, 3, 0, 1, 0])
    images = image_set.pixels.copy()
    images[6] = corrupt(images[6:], "gain", seed=1)[0]
    found, dropped = screened_rows(replace(image_set, pixels=images), prepared, judge, tmp_path, "duplicate")
    assert set(dropped) == {4, 5, 6} and dropped[6]["partner"] == "images/synthetic-000000.png"
    assert all(float(row["value"]) > float(row["threshold"]) for row in dropped.values())
    assert found.reasons == {"repeats an earlier image": 3}


def test_of_a_collapsed_set_one_image_stays(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    """One image again and again, under a little noise and of another exposure: as usual, without naming a filter."""
    images = prepared.images("test").take([0] * 100)
    rng = np.random.default_rng(0)
    jittered = images.pixels * rng.uniform(0.95, 1.05, (100, 1, 1)) + rng.normal(0, 2, images.pixels.shape)
    found, dropped = screened(replace(images, pixels=np.clip(jittered, 0, 255).astype(np.uint8)), prepared, judge, tmp_path)
    assert len(dropped) == 99 and found.filters == ("copy", "realism", "duplicate", "finding")
    assert "with another seed or another family" in str(found).splitlines()[-1]
    assert found.to_dict()["most_dropped"] and found.unrealistic_share < 0.1


def test_copies_state_the_detector_and_no_name_of_a_real_image(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    """Noise and blends are caught by other ways than registration, each with its own value and threshold."""
    train, others = prepared.images("train").take(range(20)), prepared.images("test").take(range(3))
    images = [plant(train.pixels, how="noise 5 %"), plant(train.pixels, how="blended 50%"), train.pixels[:5], others.pixels]
    image_set = replace(train.take([*range(20), *range(20), *range(8)]), pixels=np.concatenate(images))
    found, dropped = screened_rows(image_set, prepared, judge, tmp_path, "copy")
    assert sum(number < 20 for number in dropped) >= 18 and {40, 41, 42, 43, 44} <= set(dropped)
    assert {row["way"] for row in dropped.values()} == {"registration", "whitened pixels"}
    assert {row["way"]: float(row["threshold"]) for row in dropped.values()} == pytest.approx(found.copies["thresholds"], rel=1e-5)
    assert all(float(row["value"]) > float(row["threshold"]) for row in dropped.values())
    rows = read_table(prepared.path / "metadata.csv").rows
    named = [int(dropped[40 + number]["partner"].removeprefix("row ")) for number in range(5)]
    assert [row.cells["file_name"] for row in rows if row.number in named] == [study.file_name for study in train.studies[:5]]
    told = (tmp_path / "kept/dropped.csv").read_text()
    assert not any(name in told for study in prepared.studies for name in (study.file_name, study.patient_id) if name)


def test_noise_is_dropped_as_usual_and_before_any_judge_is_trained(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    image_set = prepared.images("test").take(range(40))
    images = image_set.pixels.copy()
    images[:30] = np.random.default_rng(0).integers(0, 256, images[:30].shape, dtype=np.uint8)
    found, dropped = screened(replace(image_set, pixels=images), prepared, judge, tmp_path / "a")
    assert {dropped[number] for number in range(30)} == {"unlike the real images"} and found.unrealistic_share >= 0.75
    assert "look at its sample sheets" in str(found).splitlines()[-1]
    made = as_synthetic(replace(image_set.take(range(30)), pixels=images[:30]), tmp_path / "b")
    with pytest.raises(InputError, match=r"none of the 30 synthetic images passed: 30 unlike the real images.*train it for longer"):
        screen_images(made, prepared, out=tmp_path / "c", classifier=replace(QUICK, updates=0))  # which no training accepts


@pytest.mark.parametrize("filters", [("copy",), ("realism", "duplicate"), ("copy", "finding")])
def test_only_the_judges_that_are_needed_are_trained(prepared: Prepared, tmp_path: Path, filters: tuple[str, ...]) -> None:
    """No judge for filters that ask none, nor for a finding that no real image states."""
    images = prepared.images("test").take(range(10))
    nothing_asked = replace(images, studies=tuple(replace(study, labels={}) for study in images.studies))
    found = screen_images(as_synthetic(nothing_asked, tmp_path / "made"), prepared, out=tmp_path / "kept", filters=filters,
                         classifier=replace(QUICK, updates=0))  # which no training accepts
    assert found.judges == () and found.filters == filters
    assert read_dataset(tmp_path / "kept").facts["judges"] == []


def test_images_of_the_other_class_are_dropped_and_only_if_asked(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    images = prepared.images("test")
    shows, lacks = (np.flatnonzero(images.column("Effusion") == value)[:20] for value in (1, 0))
    chosen = images.take([*shows, *lacks])
    labelled = replace(chosen, studies=tuple(replace(study, labels=images.studies[int(shows[0])].labels) for study in chosen.studies))
    _, dropped = screened(labelled, prepared, judge, tmp_path, "finding")
    assert Counter(number >= 20 for number in dropped if dropped[number] == "Effusion not visible")[True] >= 15
    assert sum(number < 20 for number in dropped) <= 8
    _, without = screened(labelled, prepared, judge, tmp_path / "again", "copy")
    assert without == {}


def test_images_of_another_view_than_asked_for_are_dropped(prepared: Prepared) -> None:
    """Half of the real images stand on their heads and are called AP; synthetic ones are asked for with the wrong view and the right
    one.
    """
    def turned(image_set: ImageSet, *, wrongly: int) -> ImageSet:
        down = np.arange(len(image_set)) % 2 == 1
        images = np.where(down[:, None, None], image_set.pixels[:, ::-1], image_set.pixels)
        views = np.where(down ^ (np.arange(len(image_set)) < wrongly), "AP", "PA")
        return replace(image_set, pixels=images, studies=tuple(replace(study, view=str(view)) for study, view in
                                                           zip(image_set.studies, views, strict=True)))

    real, made = turned(prepared.images("train"), wrongly=0), turned(prepared.images("test").take(range(60)), wrongly=30)
    found, judge = other_views(real, made, config=QUICK)
    assert judge is not None and judge.findings == ("AP", "PA")
    assert sorted(one.reason for one in found) == ["does not look like AP", "does not look like PA"]
    rejected = np.logical_or.reduce([one.p <= VIEW_RATE for one in found])
    assert rejected[:30].sum() >= 28 and rejected[30:].sum() <= 30 * VIEW_RATE + 4
    unstated = replace(made, studies=tuple(replace(study, view="") for study in made.studies))
    assert other_views(real, unstated, config=QUICK) == other_views(unstated, made, config=QUICK) == ([], None)


def test_undecided_images_have_high_entropy(prepared: Prepared, judge: CrossFit) -> None:
    """Halfway between an image with a large effusion and one without, the judge is less sure than of either."""
    images, scores = prepared.images("test"), judge.predict(prepared.images("test").pixels)[:, prepared.findings.index("Effusion")]
    sure, unsure = np.argsort(-np.abs(scores - 0.5))[:30], np.argsort(np.abs(scores - 0.5))[:10]
    one, = unusual_images(prepared.images("train"), judge, images, filters=["entropy"])
    assert np.median(one.p[unsure]) < 0.35 < np.median(one.p[sure])


def test_cross_conformal_is_the_plain_rank_with_one_part_and_valid_with_several() -> None:
    rng = np.random.default_rng(0)
    known, part = rng.normal(size=300), np.arange(300) % 3
    new = np.repeat(rng.normal(size=(1, 4000)), 3, axis=0)
    p = cross_conformal(known, part, new)
    assert p == pytest.approx(cross_conformal(known, np.zeros(300, dtype=np.intp), new[:1]))
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.03)


def test_appearance_statistics_distinguish_noise_from_blur() -> None:
    images = np.full((1, 64, 64), 128, dtype=np.uint8)
    images[0, 20:40, 20:40] = 200
    noisy = corrupt(images, "noise", seed=0)
    noise = 10 ** appearance_statistics(noisy)[0, NAMES.index("noise")]
    assert noise == pytest.approx(0.05, rel=0.1)
    assert appearance_statistics(images)[0, NAMES.index("noise")] < -5  # edges are no noise
    assert appearance_statistics(corrupt(images, "blur", seed=0))[0, 5] < appearance_statistics(images)[0, 5]


def test_unknown_filters_and_nothing_left_are_refused(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    images = prepared.images("test").take(range(8))
    with pytest.raises(UsageError, match="did you mean 'entropy'"):
        screened(images, prepared, judge, tmp_path / "a", "entropie")
    noise = np.random.default_rng(0).integers(0, 256, images.pixels.shape, dtype=np.uint8)
    with pytest.raises(InputError, match="none of the 8 synthetic images passed: 8 unlike the real images"):
        screened(replace(images, pixels=noise), prepared, judge, tmp_path / "b", "all")


def test_wrong_anatomy_is_dropped_and_the_row_says_which_number(tmp_path: Path) -> None:
    """Thoraces of 64 px, some of them upside down or noise; the lung model is among the judges of the kept set."""
    drawn = [study_and_image(f"images/{row}.png", patient=str(row), seed=derive(5, row), px=64) for row in range(120)]
    prepared = sx.prepare(write_drawn(tmp_path / "drawn", drawn), size=64, out=tmp_path / "prepared", split=(0.7, 0.1, 0.2))
    images = prepared.images("test").take(range(16))
    pixels = images.pixels.copy()
    pixels[:4] = pixels[:4, ::-1]
    pixels[4:8] = np.random.default_rng(0).integers(0, 256, pixels[4:8].shape)
    (tmp_path / "made/images").mkdir(parents=True)
    found = screen_images(as_synthetic(replace(images, pixels=pixels), tmp_path / "made"), prepared, out=tmp_path / "kept",
                          filters=("anatomy",))
    with (tmp_path / "kept/dropped.csv").open() as table:
        dropped = {int(row["file_name"][-10:-4]): row for row in csv.DictReader(table)}
    assert sum(number < 8 for number in dropped) >= 7 and sum(number >= 8 for number in dropped) <= 1
    for row in dropped.values():
        assert row["reason"] == "anatomy unlike that of real images" and "real images" in row["way"]  # by outlines or by look
        assert row["value"] != row["threshold"]
    used = {load_lung_model().digest, load_chest_judge().digest}
    assert used <= {one["digest"] for one in found.judges}
    assert used <= {one["digest"] for one in read_dataset(tmp_path / "kept").facts["judges"]}


def test_too_few_real_images_leave_the_anatomy_filter_out_and_the_result_says_so(prepared: Prepared, judge: CrossFit,
                                                                                 tmp_path: Path) -> None:
    few = [study_and_image(f"images/{row}.png", patient=str(row), seed=derive(6, row), px=32) for row in range(30)]
    small = sx.prepare(write_drawn(tmp_path / "few", few), size=32, out=tmp_path / "prepared", split=(0.6, 0.2, 0.2))
    (tmp_path / "made/images").mkdir(parents=True)
    made = as_synthetic(prepared.images("test").take(range(5)), tmp_path / "made")
    found = screen_images(made, small, out=tmp_path / "kept", filters=("anatomy",))
    assert len(found.kept) == 5 and "set no limits to anatomy" in found.filters_left_out["anatomy"]
    assert "anatomy was left out" in str(found)
    assert Screened.read(tmp_path / "kept").filters_left_out == found.filters_left_out
