"""Masks: on the grid of their images, in the right class, and never guessed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthorax.data.dataset import read_dataset, write_table
from synthorax.data.image_files import read_image
from synthorax.data.lesions import lesions_of
from synthorax.data.masks import (
    box_mask,
    image_shape,
    in_square,
    is_organ,
    lesion_union,
    load_lesions,
    load_masks,
    mask_class,
    mask_classes,
    mask_stack,
    read_mask,
)
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.pixels import letterbox, write_png
from synthorax.data.prepared import load_images, prepare_dataset
from synthorax.data.vocabulary import label_matrix
from synthorax.errors import InputError
from synthorax.types import Lesion, Masks, Stated, Study

IMAGES = Path(__file__).parents[3] / "shared" / "data"
RNG = np.random.default_rng(0)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def rectangle(shape=(40, 20), rows=(10, 30), columns=(5, 15)):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[slice(*rows), slice(*columns)] = 255
    return mask


# Files


@pytest.mark.parametrize("change", [
    lambda mask: mask, lambda mask: mask // 255, lambda mask: mask.astype(np.uint16) * 257, lambda mask: mask > 0,
    lambda mask: np.stack([mask, mask * 0, mask * 0], axis=2), lambda mask: np.dstack([mask] * 3 + [np.full_like(mask, 255)]),
    lambda mask: np.where(mask > 0, 1 + (np.arange(20) % 5), 0).astype(np.uint8),
])
def test_every_usual_way_of_saving_a_mask_reads_the_same(tmp_path, change):
    expected = letterbox(rectangle(), 40)
    assert np.array_equal(read_mask(save(tmp_path / "m.png", change(rectangle())), 40), expected)


def test_a_palette_is_read_by_its_colours(tmp_path):
    image = Image.fromarray((rectangle() == 0).astype(np.uint8), mode=None).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])  # the index 0 is white: inside
    image.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", 40), letterbox(rectangle(), 40))


def test_smaller_masks_keep_the_covered_part_and_their_place(tmp_path):
    path = save(tmp_path / "m.png", rectangle(rows=(10, 31), columns=(5, 15)))
    small = read_mask(path, 10)
    assert small.shape == (10, 10) and small[:, :2].max() == 0 == small[:, 8:].max()  # the image takes the middle half
    assert small[7, 4] == pytest.approx(255 * 3 / 4, abs=1) and small[3, 4] == 255  # 3 of 4 rows are covered
    assert small.sum() / 255 == pytest.approx(21 * 10 / 16, abs=0.1)


def test_masks_lie_on_their_images(tmp_path):
    for shape in ((50, 30), (31, 47), (64, 64), (7, 90)):
        mask = rectangle(shape, (1, shape[0] // 2), (shape[1] // 2, shape[1] - 1))
        image = letterbox(mask, 24).astype(float)
        path = save(tmp_path / "m.png", mask)
        assert np.abs(read_mask(path, 24) - image).mean() < 6, shape  # edges alone differ
        blocks = image.reshape(8, 3, 8, 3).mean(axis=(1, 3))  # as images are that were prepared at 24 pixels
        assert np.abs(read_mask(path, 8, blocks=3) - blocks).mean() < 6, shape


def test_a_speck_stays(tmp_path):
    speck = rectangle((400, 200), (300, 301), (60, 61))
    small = read_mask(save(tmp_path / "m.png", speck), 8)
    assert np.argwhere(small).tolist() == [[6, 3]]
    assert np.argwhere(read_mask(tmp_path / "m.png", 8, blocks=2)).tolist() == [[6, 3]]


def test_a_value_of_128_is_a_box(tmp_path):
    mask = rectangle()
    mask[12:16, 6:10] = 128
    read = read_mask(save(tmp_path / "m.png", mask), 40)
    assert set(np.unique(read)) == {0, 128, 255} and (read == 128).sum() == 16
    half = read_mask(save(tmp_path / "m.png", rectangle(rows=(10, 29))), 20)
    assert 127 in half and 128 not in half  # half a pixel of an outline is no box


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: save(path, RNG.integers(0, 256, (40, 20), dtype=np.uint8)), "grey values, as an image has and no mask"),
    (lambda path: save(path, rectangle((20, 20))), "has 20 x 20 pixels and its image 20 x 40"),
    (lambda path: save(path, rectangle().T), "has 40 x 20 pixels and its image 20 x 40; save it with the size and the crop"),
    (lambda path: path.write_bytes(b"not a picture"), "is no PNG that can be read"),
    (lambda path: path.write_bytes(save(path, rectangle()).read_bytes()[:-40]), "is no PNG that can be read"),
    (lambda path: Image.fromarray(rectangle()).save(path, format="JPEG"), "is no PNG that can be read"),
    (lambda path: save(path, np.dstack([rectangle()] * 4)), "has transparent parts"),
    (lambda path: None, "is missing"),
])
def test_what_is_no_mask_of_this_image_is_refused(tmp_path, make, message):
    make(tmp_path / "m.png")
    with pytest.raises(InputError) as caught:
        read_mask(tmp_path / "m.png", 16, image_shape=(40, 20), file="metadata.csv", row=5)
    assert str(caught.value).startswith("metadata.csv row 5: mask 'm.png' ") and message in str(caught.value) and caught.value.remedy


def test_boxes():
    assert box_mask((0.25, 0.5, 0.5, 0.25), 8).tolist() == [[0] * 8] * 4 + [[0, 0, 128, 128, 128, 128, 0, 0]] * 2 + [[0] * 8] * 2
    for corner in (0.0, 0.5, 0.999):
        assert (box_mask((corner, corner, 0.001, 0.001), 8) == 128).sum() == 1
    assert (box_mask((0, 0, 1, 1), 8) == 128).all()
    tall = in_square(Lesion(finding="Mass", x=0.5, y=0.25, size=0.4, box=(0.0, 0.0, 1.0, 0.5)), (200, 100), 64)
    assert (tall.x, tall.y, tall.box) == (0.5, 0.25, (0.25, 0.0, 0.5, 0.5))
    assert tall.size == pytest.approx(0.4 * np.sqrt(0.5))  # half of the square is image


# Classes


def test_classes_are_organs_then_findings():
    studies = [
        Study(file_name="a", masks={"pseudo_lung_mask": ("1",), "device_masks": ("2", "3"), "lesion_mask": ("4", "")},
              lesion_label="Nodule|Mass"),
        Study(file_name="b", masks={"lung_mask": ("5",), "lesion_mask": ("6",)}, lesion_label="ground glass"),
        Study(file_name="c", lesion_label="Hernia", extra={"lesion_box": "0,0,1,1"}),
        Study(file_name="d", masks={"lesion_mask": ("7",)}),
        Study(file_name="e", masks={"effusion_mask": ("8",), "Clavicle_mask": ("9",)}),
    ]
    names = mask_classes(studies, ["Nodule"])
    assert names == ("clavicle", "device", "lung", "Effusion", "Ground glass", "Hernia", "Lesion", "Nodule")
    assert [name for name in names if is_organ(name)] == ["clavicle", "device", "lung"]
    assert mask_class("own finding", findings=["Own Finding"]) == "Own Finding"


# Images


@pytest.fixture
def folder(tmp_path):
    """Six images of 40 x 40: an outline, a box, a box drawn as mask, a normal image, one that states nothing, an unnamed lesion."""
    left, right = rectangle((40, 40), (10, 20), (24, 34)), rectangle((40, 40), (20, 30), (2, 12))
    save(tmp_path / "left.png", left)
    save(tmp_path / "right.png", right)
    save(tmp_path / "empty.png", left * 0)
    save(tmp_path / "lung.png", np.full((40, 40), 255, np.uint8))
    present = {"Nodule": Stated.PRESENT}
    studies = [
        Study(file_name="0.png", labels=present, masks={"lesion_mask": ("left.png", "right.png"), "lung_mask": ("lung.png",),
                                                        "pseudo_lung_mask": ("left.png",)}, lesion_label="Nodule|Nodule"),
        Study(file_name="1.png", labels=present | {"Mass": Stated.PRESENT}, lesion_label="Nodule", extra={"lesion_box": "0.5,0,0.25,0.25"}),
        Study(file_name="2.png", labels={"Mass": Stated.PRESENT}, masks={"lesion_mask": ("right.png",), "pseudo_lung_mask": ("right.png",)},
              lesion_label="Mass", extra={"lesion_kind": "box"}),
        Study(file_name="3.png", labels={"No Finding": Stated.PRESENT}, masks={"lung_mask": ("empty.png",)}),
        Study(file_name="4.png", masks={"lesion_mask": ("empty.png",)}, lesion_label="Nodule"),
        Study(file_name="5.png", masks={"lesion_mask": ("left.png",)}, extra={"lesion_size": "0.9", "lesion_severity": "0.3"}),
    ]
    for study in studies:
        write_png(tmp_path / study.file_name, RNG.integers(0, 256, (40, 40), dtype=np.uint8))
    write_table(tmp_path, studies)
    return tmp_path


def loaded(folder, size=40):
    studies = read_dataset(folder).studies
    findings = ("Mass", "Nodule")
    return load_lesions(studies, folder, size=size, classes=mask_classes(studies, findings), labels=label_matrix(studies, findings),
                        findings=findings)


def test_images_get_the_masks_of_their_rows(folder):
    masks, _ = loaded(folder)
    missing, nothing = Masks.NOT_STATED, Masks.NOTHING_THERE
    assert masks.names == ("lung", "Lesion", "Mass", "Nodule")
    assert np.where(masks.index >= 0, 1, masks.index).tolist() == [
        [1, missing, nothing, 1],  # the policy makes unlisted findings absent
        [missing, missing, missing, 1],  # a mass is there, nobody drew where
        [1, missing, 1, nothing],
        [nothing, nothing, nothing, nothing],
        [missing, missing, missing, missing],  # an empty mask of a lesion that is listed says nothing
        [missing, 1, missing, missing],
    ]
    assert sorted(masks.index[masks.index >= 0].tolist()) == list(range(len(masks.pixels)))
    both = rectangle((40, 40), (10, 20), (24, 34)) | rectangle((40, 40), (20, 30), (2, 12))
    assert np.array_equal(masks.pixels[masks.index[0, 3]], both)
    assert (masks.pixels[masks.index[0, 0]] == 255).all()  # the human outline, not the network's
    assert np.array_equal(masks.pixels[masks.index[1, 3]], box_mask((0.5, 0, 0.25, 0.25), 40))
    assert np.array_equal(masks.pixels[masks.index[2, 2]], rectangle((40, 40), (20, 30), (2, 12)) // 255 * 128)


def test_lesions_are_measured_each_from_its_own_mask(folder):
    _, lesions = loaded(folder)
    first, second = lesions[0]
    assert (first.side, second.side) == ("left", "right") and first.x == pytest.approx(29 / 40) and second.y == pytest.approx(25 / 40)
    assert first.size == pytest.approx(2 * np.sqrt(100 / 1600))
    assert lesions[1][0].size == pytest.approx(0.5) and lesions[1][0].side == "left"
    assert lesions[2][0].size == pytest.approx(0.5) and lesions[3] == ()
    assert np.isnan(lesions[4][0].x)
    assert lesions[5][0].size == pytest.approx(0.5) and lesions[5][0].severity == 0.3  # the outline knows its size better than the table


def test_stack_and_union(folder):
    masks, _ = loaded(folder)
    stack = mask_stack(masks, [3, 2, 4])
    assert stack.shape == (3, 4, 40, 40) and stack.dtype == np.float32
    assert (stack[0] == 0).all() and np.isnan(stack[2]).all() and np.isnan(stack[1, 1]).all() and (stack[1, 3] == 0).all()
    assert set(np.unique(stack[1, 2])) == {0.0, 0.5} and set(np.unique(stack[1, 0])) == {0.0, 1.0}
    union = lesion_union(masks, np.array([0, 1, 3, 5]), ("Mass", "Nodule"))
    assert union.shape == (4, 1, 40, 40) and union[0].sum() == 200 and union[1].max() == 0.5
    assert not union[2].any() and union[3].sum() == 100  # lungs are no lesions, and the unnamed one is
    assert mask_stack(masks, []).shape == (0, 4, 40, 40) and lesion_union(masks, []).shape == (0, 1, 40, 40)


def test_classes_that_are_not_asked_for_are_left_out_but_measured(folder):
    studies = read_dataset(folder).studies
    masks, lesions = load_lesions(studies, folder, size=20, classes=("Mass", "heart"), labels=label_matrix(studies, ["Mass"]),
                                  findings=["Mass"])
    assert masks.index.shape == (6, 2) and (masks.index[:, 1] == Masks.NOT_STATED).all() and len(masks.pixels) == 1
    assert lesions[0][0].side == "left"
    assert load_masks(studies[:1], folder, size=20, classes=(), labels=np.ones((1, 0)), findings=()).pixels.shape == (0, 20, 20)


@pytest.mark.parametrize(("victim", "message"), [
    (lambda folder: save(folder / "right.png", rectangle((30, 40))), "row 2: mask 'right.png' has 40 x 30 pixels and its image 40 x 40"),
    (lambda folder: (folder / "right.png").unlink(), "row 2: mask 'right.png' is missing"),
    (lambda folder: (folder / "1.png").unlink(), "row 3: '1.png' is missing, so its masks cannot be compared"),
])
def test_a_mask_that_does_not_fit_is_refused_with_its_row(folder, victim, message):
    studies = read_dataset(folder).studies
    victim(folder)
    with pytest.raises(InputError, match=message):
        load_masks(studies, folder, size=20, classes=("Mass", "Nodule"), labels=np.ones((6, 2), np.float32), findings=("Mass", "Nodule"))


def test_places_in_the_table_are_those_of_the_image_and_become_those_of_the_square(tmp_path):
    write_png(tmp_path / "a.png", RNG.integers(0, 256, (20, 40), dtype=np.uint8))
    save(tmp_path / "m.png", rectangle((20, 40), (0, 10), (0, 20)))
    studies = [Study(file_name="a.png", masks={"lesion_mask": ("m.png", "")}, lesion_label="Mass|Mass",
                     extra={"lesion_x": "|0.5", "lesion_y": "|1", "lesion_box": "|0.5,0.5,0.5,0.5"})]
    masks, ((drawn, boxed),) = load_lesions(studies, tmp_path, size=40, classes=("Mass",), labels=np.ones((1, 1), np.float32),
                                            findings=("Mass",))
    assert image_shape(tmp_path / "a.png") == (20, 40)
    assert (drawn.x, drawn.y) == (pytest.approx(0.25), pytest.approx(0.375)) and drawn.box == (0, 0.25, 0.5, 0.25)
    assert (boxed.x, boxed.y) == (0.5, 0.75) and boxed.box == (0.5, 0.5, 0.5, 0.25)
    expected = rectangle((40, 40), (10, 20), (0, 20)) + rectangle((40, 40), (20, 30), (20, 40)) // 255 * 128
    assert np.array_equal(masks.pixels[0], expected)


@pytest.mark.skipif(not IMAGES.exists(), reason="the real images are not beside the checkout")
def test_the_size_of_every_kind_of_image_is_known(tmp_path):
    for path in (path for path in sorted((IMAGES / "formats").iterdir()) if path.suffix != ".csv"):
        assert image_shape(path) == read_image(path).shape
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.png"):
        image_shape(tmp_path / "a.png")


# Prepared folders


@pytest.fixture(scope="module")
def prepared_phantoms(tmp_path_factory):
    place = tmp_path_factory.mktemp("drawn")
    return prepare_dataset(write_phantom_dataset(place / "set", num=120, size=64, seed=1), place / "prepared", size=64)


def test_prepared_images_come_with_their_masks(prepared_phantoms):
    images = prepared_phantoms.images("train", masks=True)
    assert images.digest == prepared_phantoms.images("train").digest and prepared_phantoms.images("train").masks is None
    masks = images.masks
    assert masks.names == ("heart", "lung", "Cardiomegaly", "Effusion", "Nodule", "Pneumothorax")
    union = lesion_union(masks, range(len(images)))
    for row, study in enumerate(images.studies):
        expected = np.zeros((64, 64))
        for path in study.masks.get("lesion_mask", ()):
            with Image.open(prepared_phantoms.source / path) as image:
                expected = np.maximum(expected, np.asarray(image) / 255)
        assert np.array_equal(union[row, 0], expected)
        for finding in images.findings:
            if finding in masks.names:
                index = masks.index[row, masks.names.index(finding)]
                present = images.labels[row, images.findings.index(finding)] == 1
                assert index >= 0 if present else index == Masks.NOTHING_THERE
    with Image.open(prepared_phantoms.source / images.studies[3].masks["lung_mask"][0]) as image:
        assert np.array_equal(mask_stack(masks, [3])[0, 1], np.asarray(image) / 255)


def test_prepared_lesions_say_what_was_drawn(prepared_phantoms):
    images = prepared_phantoms.images(masks=True)
    assert images.lesions.shape == (120, len(images.findings), 5)
    for column, finding in enumerate(images.findings):
        here = images.lesions[:, column]
        present = images.labels[:, column] == 1
        assert np.isnan(here[~present]).all()
        if finding == "No Finding":
            continue
        assert np.isfinite(here[present][:, 1:]).all()
        rows = [row for row in np.nonzero(present)[0] if lesions_of(images.studies[row])[0].finding == finding]
        stated = [lesions_of(images.studies[row])[0] for row in rows]
        assert here[rows, 2] == pytest.approx([lesion.severity for lesion in stated], abs=1e-3)
        if finding == "Cardiomegaly":
            assert np.isnan(here[:, 0]).all()
        else:
            assert [{1: "left", 0: "right"}[value] for value in here[rows, 0].tolist()] == [lesion.side for lesion in stated]
            assert ((here[present, 3] > 0.5) == (here[present, 0] == 1)).all()


def test_classes_do_not_depend_on_the_split_and_rows_follow_the_prepared_table(prepared_phantoms):
    whole, test = prepared_phantoms.images(masks=True), prepared_phantoms.images("test", masks=True, size=32)
    assert whole.masks.names == test.masks.names == prepared_phantoms.mask_classes() and test.masks.pixels.shape[1:] == (32, 32)
    rows = [row for row, study in enumerate(whole.studies) if study.split == "test"]
    blocks = mask_stack(whole.masks, rows).reshape(len(rows), 6, 32, 2, 32, 2).mean(axis=(3, 5))
    stack = mask_stack(test.masks, range(len(rows)))
    assert np.array_equal(np.isnan(stack), np.isnan(blocks)) and np.nanmax(np.abs(stack - blocks)) < 0.01
    assert np.allclose(test.lesions, whole.lesions[rows], atol=0.02, equal_nan=True)
    taken = whole.take([5, 2])
    assert np.array_equal(mask_stack(taken.masks, [1]), mask_stack(whole.masks, [2]), equal_nan=True)


def test_load_images_reads_masks_too(folder):
    images = load_images(read_dataset(folder), size=20, masks=True)
    assert images.masks.names == ("lung", "Lesion", "Mass", "Nodule") and images.lesions.shape == (6, 3, 5)
    assert load_images(read_dataset(folder), size=20, masks=True, classes=("lung",)).masks.index.shape == (6, 1)
    assert load_images(read_dataset(folder), size=20).masks is None


def test_an_error_names_the_row_of_the_prepared_table(tmp_path):
    dataset = write_phantom_dataset(tmp_path / "set", num=12, size=32, seed=3)
    prepared = prepare_dataset(dataset, tmp_path / "prepared", size=32)
    row, study = next((row, study) for row, study in enumerate(prepared.studies) if study.split == "val")
    (prepared.source / study.masks["lung_mask"][0]).unlink()
    with pytest.raises(InputError, match=rf"prepared/metadata.csv row {row + 2}: mask '.*' is missing"):
        prepared.images("val", masks=True)


@pytest.mark.images
@pytest.mark.skipif(not IMAGES.exists(), reason="the real images are not beside the checkout")
@pytest.mark.parametrize(("name", "names", "marked"), [
    ("open/nih", ("heart", "lung", "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
                  "Pneumothorax"), 47),
    ("open/kermany", ("heart", "lung"), 0), ("open/hannover", ("heart", "lung"), 0),
    ("research/jsrt", ("clavicle", "heart", "lung", "Nodule"), 127),
    ("research/cohen", ("device", "heart", "lung", "Consolidation", "Ground_Glass_Opacities", "Pneumothorax"), 81),
])
def test_the_masks_of_real_images(name, names, marked):
    dataset = read_dataset(IMAGES / name)
    classes = mask_classes(dataset.studies, dataset.findings)
    assert classes == names
    studies = [study for study in dataset.studies if study.lesion_label or marked == 0][:150]
    labels = label_matrix(studies, dataset.findings)
    masks, lesions = load_lesions(studies, dataset.path, size=64, classes=classes, labels=labels, findings=dataset.findings)
    union = lesion_union(masks, range(len(studies)))
    assert int(union.any(axis=(1, 2, 3)).sum()) == marked
    assert union.max(initial=0) == (0.5 if name == "open/nih" else float(marked > 0))
    lungs = mask_stack(masks, range(len(studies)))[:, classes.index("lung")].mean(axis=(1, 2))
    assert 0.1 < np.nanmedian(lungs) < 0.45
    if name == "research/jsrt":  # the table's text names the side: `r.upper lobe`
        told = [("right" if " r." in study.text else "left", image[0].side) for study, image in zip(studies, lesions, strict=True)
                if " r." in study.text or " l." in study.text]
        assert len(told) > 80 and np.mean([text == side for text, side in told]) > 0.95


def test_a_set_without_masks_has_none(tmp_path):
    studies = [Study(file_name=f"{number}.png", patient_id=str(number), labels={"Mass": Stated.PRESENT}) for number in range(2)]
    for study in studies:
        write_png(tmp_path / study.file_name, RNG.integers(0, 255, (16, 16), dtype=np.uint8))
    write_table(tmp_path, studies)
    assert load_images(read_dataset(tmp_path), size=16, masks=True).masks is None
