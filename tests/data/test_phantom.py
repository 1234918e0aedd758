"""The drawn thorax: what is asked for is what is on the image, and nothing else changes."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from synthorax.data.phantom import FINDINGS, LesionSpec, PhantomSpec, draw_phantom, write_phantom_dataset
from synthorax.errors import InputError, UsageError
from synthorax.types import Stated

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _with(spec, **lesion):
    return replace(spec, lesions=(*spec.lesions, LesionSpec(**lesion)))


@pytest.mark.parametrize("size", [32, 64, 200, 512])
def test_image_has_the_asked_size_and_looks_exposed(size):
    image = draw_phantom(PhantomSpec(seed=3), size=size)
    assert image.image.shape == (size, size) and image.image.dtype == np.uint8
    lung, heart = image.masks["lung"] > 0, image.masks["heart"] > 0
    assert set(np.unique(image.masks["lung"])) == {0, 255}
    assert 0.1 < lung.mean() < 0.5 and 0.02 < heart.mean() < 0.25 and not (lung & heart).any()
    assert image.image[heart].mean() > image.image[lung].mean() + 40  # air is dark
    assert np.mean((image.image == 0) | (image.image == 255)) < 0.3


def test_same_spec_same_image_and_other_seed_other_patient():
    spec = PhantomSpec(seed=11, lesions=(LesionSpec(finding="Nodule"),))
    assert np.array_equal(draw_phantom(spec, size=64).image, draw_phantom(spec, size=64).image)
    other, follow_up = draw_phantom(replace(spec, seed=12), size=64), draw_phantom(replace(spec, image=1), size=64)
    assert not np.array_equal(draw_phantom(spec, size=64).image, other.image)
    assert not np.array_equal(draw_phantom(spec, size=64).image, follow_up.image)


def test_one_patient_looks_the_same_at_two_sizes():
    small, large = (draw_phantom(PhantomSpec(seed=5), size=size).image.astype(float) for size in (64, 256))
    shrunk = large.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("view", ["PA", "AP"])
@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("change", [{"size": 1.0}, {"severity": 0.1}, {"side": "right"}, None])
def test_a_lesion_changes_nothing_away_from_itself(finding, view, change):
    spec = PhantomSpec(seed=21, view=view, sex="F", lesions=(LesionSpec(finding="Effusion", side="right", size=0.2),))
    before = _with(spec, finding=finding, side="left", size=0.4, severity=0.8)
    after = spec if change is None else _with(spec, **{"finding": finding, "side": "left", "size": 0.4, "severity": 0.8} | change)
    images = [draw_phantom(one, size=128) for one in (before, after)]
    near = ndimage.binary_dilation(np.maximum(*(image.masks.get(finding, np.zeros((128, 128))) for image in images)) > 0, iterations=6)
    changed = images[0].image != images[1].image
    assert not (changed & ~near).any()
    assert changed.any() or (finding == "Cardiomegaly" and change == {"side": "right"})
    assert np.array_equal(images[0].masks["lung"], images[1].masks["lung"]) or finding == "Cardiomegaly"


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("finding", FINDINGS)
def test_larger_lesions_contain_smaller_ones(finding, size):
    for seed in range(4):
        masks = [draw_phantom(_with(PhantomSpec(seed=seed), finding=finding, size=step), size=size).masks[finding] > 0 for step in STEPS]
        assert masks[0].any()
        for smaller, larger in pairwise(masks):
            assert larger.sum() > smaller.sum() and (larger | ~smaller).all()


@pytest.mark.parametrize("finding", FINDINGS)
def test_contrast_grows_with_severity_and_has_the_right_sign(finding):
    spec = PhantomSpec(seed=8)
    without = draw_phantom(spec, size=128)
    contrasts = []
    for step in STEPS:
        image = draw_phantom(_with(spec, finding=finding, size=0.7, severity=step), size=128)
        contrasts.append((image.image.astype(float) - without.image)[image.masks[finding] > 0].mean())
    darker = -1 if finding == "Pneumothorax" else 1
    assert (np.diff(darker * np.array(contrasts)) > 0).all() and darker * contrasts[0] > 0


@pytest.mark.parametrize("finding", ["Effusion", "Nodule", "Pneumothorax"])
def test_the_patients_left_is_on_the_right_of_the_image(finding):
    for side, expected in (("left", True), ("right", False)):
        mask = draw_phantom(_with(PhantomSpec(seed=2), finding=finding, side=side), size=64).masks[finding]
        columns = np.nonzero(mask)[1]
        assert bool(columns.mean() > 32) is expected


def test_heart_points_to_the_patients_left_and_is_wider_in_ap_and_when_enlarged():
    def width(spec):
        return int((draw_phantom(spec, size=256).masks["heart"] > 0).any(axis=0).sum())

    for seed in range(5):
        spec = PhantomSpec(seed=seed)
        heart = draw_phantom(spec, size=256).masks["heart"]
        lung = draw_phantom(spec, size=256).masks["lung"]
        assert np.nonzero(heart)[1].mean() > np.nonzero(lung)[1].mean()
        assert width(replace(spec, view="AP")) > width(spec)
        assert width(_with(spec, finding="Cardiomegaly", size=0.0)) > width(spec)


def test_cardiomegaly_mask_is_the_heart():
    image = draw_phantom(_with(PhantomSpec(seed=2), finding="Cardiomegaly"), size=64)
    assert np.array_equal(image.masks["Cardiomegaly"], image.masks["heart"])


def test_pneumothorax_has_no_vessels_and_a_bright_pleural_line():
    spec = PhantomSpec(seed=4)
    image, without = (draw_phantom(one, size=256) for one in (_with(spec, finding="Pneumothorax", size=0.8, severity=1.0), spec))
    difference = image.image.astype(float) - without.image
    mask = image.masks["Pneumothorax"] > 0
    inner_rim = ndimage.binary_dilation(mask, iterations=1) & ~mask & (image.masks["lung"] > 0)
    assert difference[ndimage.binary_erosion(mask, iterations=3)].mean() < -8
    assert np.percentile(difference[inner_rim], 50) > 8


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_nodule_can_be_put_anywhere_in_the_lung_field(side):
    middle = {}
    for seed, view in ((1, "PA"), (2, "AP")):
        spec = PhantomSpec(seed=seed, view=view, sex="MF"[seed % 2])
        without = draw_phantom(spec, size=128)
        field = np.maximum(without.masks["lung"], without.masks["heart"]) > 0  # the left lung goes on behind the heart
        for across, along in np.stack(np.meshgrid(STEPS, STEPS), axis=-1).reshape(-1, 2).tolist():
            image = draw_phantom(_with(spec, finding="Nodule", side=side, size=0.0, place=(across, along)), size=128)
            nodule = image.masks["Nodule"] > 0
            assert (nodule & field).sum() > 0.8 * nodule.sum() > 0 and (image.image != without.image).any()
            row, column = ndimage.center_of_mass(nodule)
            middle[seed, across, along] = (column if side == "left" else 127 - column, row)
    for (seed, across, along), (outward, down) in middle.items():
        if across < 1:
            assert middle[seed, across + 0.25, along][0] > outward + 0.5
        if along < 1:
            assert middle[seed, across, along + 0.25][1] > down + 5


def test_the_place_of_a_nodule_does_not_change_its_size_or_the_rest():
    spec = PhantomSpec(seed=6)
    images = [draw_phantom(_with(spec, finding="Nodule", size=0.5, place=place), size=128) for place in ((0.2, 0.3), (0.8, 0.9))]
    areas = [(image.masks["Nodule"] > 0).sum() for image in images]
    assert abs(areas[0] - areas[1]) < 0.05 * areas[0]
    near = ndimage.binary_dilation(np.maximum(*(image.masks["Nodule"] for image in images)) > 0, iterations=6)
    assert not ((images[0].image != images[1].image) & ~near).any()


@pytest.mark.parametrize("wrong", [{"finding": "Efusion"}, {"finding": "Effusion", "place": (0.5, 0.5)},
                                   {"finding": "Nodule", "place": (0.5, 1.5)}, {"finding": "Nodule", "side": "middle"},
                                   {"finding": "Nodule", "size": 1.5},
                                   {"finding": "Nodule", "severity": float("nan")}])
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(UsageError):
        LesionSpec(**wrong)
    with pytest.raises(UsageError, match="32 to 512"):
        draw_phantom(PhantomSpec(seed=0), size=16)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("phantom") / "drawn", num=120, size=32, seed=1)


def test_dataset_says_that_it_is_a_drawing(phantoms):
    assert len(phantoms) == 120 and phantoms.facts["drawing"] is True and phantoms.facts["synthetic"] is False
    for study in phantoms.studies:
        assert study.site == "phantom" and study.text.startswith("Drawn phantom") and study.origin == "real"
    with Image.open(phantoms.path / phantoms.studies[0].file_name) as image:
        assert image.size == (32, 32) and re.fullmatch(r"phantom seed \d+ film \d", image.text["drawing"])


def test_dataset_has_repeated_patients_and_the_asked_prevalence(phantoms):
    patients = {study.patient_id for study in phantoms.studies}
    assert 60 < len(patients) < 110
    for finding, share in (("Pneumothorax", 0.07), ("Effusion", 0.20)):
        have = {study.patient_id for study in phantoms.studies if study.labels.get(finding) is Stated.PRESENT}
        assert len(have) == round(share * len(patients))
    normal = [study for study in phantoms.studies if "No Finding" in study.labels]
    assert normal and all("lesion_mask" not in study.masks for study in normal)


def test_lesion_columns_agree_with_one_another(phantoms):
    study = max(phantoms.studies, key=lambda one: len(one.labels))
    labels = study.lesion_label.split("|")
    assert labels == list(study.labels) and len(study.masks["lesion_mask"]) == len(labels)
    for column in ("lesion_side", "lesion_size", "lesion_severity"):
        assert len(study.extra[column].split("|")) == len(labels)
    for path in study.masks["lesion_mask"]:
        with Image.open(phantoms.path / path) as mask:
            assert np.asarray(mask).any()


def test_dataset_is_reproducible_and_never_overwrites(tmp_path):
    folders = [write_phantom_dataset(tmp_path / name, num=4, size=32, seed=2).path for name in ("a", "b")]
    first, second = ({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in folders)
    assert first == second
    with pytest.raises(InputError, match="with other size, seed"):
        write_phantom_dataset(tmp_path / "a", num=4)
    assert write_phantom_dataset(tmp_path / "a", num=4, size=32, seed=2).path == folders[0], "finished drawings are used again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(UsageError, match="Hernia"):
        write_phantom_dataset(tmp_path / "c", prevalence={"Hernia": 0.1})


def test_places_move_the_nodules_and_nothing_else(tmp_path):
    there, anywhere = (write_phantom_dataset(tmp_path / str(places), num=30, size=32, seed=2, places=places) for places in (False, True))
    assert there.studies == anywhere.studies
    moved = 0
    for study in there.studies:
        for path in (study.file_name, *(path for paths in study.masks.values() for path in paths)):
            same = (there.path / path).read_bytes() == (anywhere.path / path).read_bytes()
            assert same is not (("Nodule" in study.labels and path == study.file_name) or "Nodule" in path)
            moved += not same
    assert moved >= 6
