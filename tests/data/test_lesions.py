"""Lesions in the table: cells and records say the same, masks are measured as geometry has it, nothing is guessed."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthorax import protocols
from synthorax.data.dataset import read_dataset
from synthorax.data.lesions import PROPERTIES, lesion_cells, lesion_matrix, lesions_of, measure_lesion, with_lesions
from synthorax.data.pixels import write_png
from synthorax.errors import InputError
from synthorax.types import Lesion, Study

FULL = Lesion(finding="Nodule", side="left", size=0.25, severity=0.7, x=0.61, y=0.4, box=(0.55, 0.3, 0.12, 0.2), mask="masks/a.png")


def same(first, second):
    """Whether two lesions are equal, NaN being equal to NaN."""
    return repr(first) == repr(second)


def study(label="", mask=(), **extra):
    return Study(file_name="a.png", lesion_label=label, masks={"lesion_mask": tuple(mask)} if mask else {},
                 extra={f"lesion_{name}": cell for name, cell in extra.items()})


def disc(size, x, y, radius):
    """A disc as the covered part of each pixel, 0 to 255, drawn 8 times finer; 128 is left to boxes."""
    axis = (np.arange(size * 8) + 0.5) / (size * 8)
    inside = (axis[None] - x) ** 2 + (axis[:, None] - y) ** 2 < radius**2
    covered = np.rint(255 * inside.reshape(size, 8, size, 8).mean(axis=(1, 3))).astype(np.uint8)
    return np.where(covered == 128, 127, covered).astype(np.uint8)


def test_properties_are_those_of_the_condition():
    assert PROPERTIES == protocols.LESION_PROPERTIES


def test_cells_are_read_by_position_and_empty_ones_state_nothing():
    first, second = lesions_of(study("Nodule|pleural effusion", ["n.png", ""], side="left|", size="|0.5", box="|0.1,0.2,0.3,0.4"))
    assert same(first, Lesion(finding="Nodule", side="left", mask="n.png"))
    assert same(second, Lesion(finding="Effusion", size=0.5, box=(0.1, 0.2, 0.3, 0.4)))


def test_images_without_lesions_and_lesions_without_a_name():
    assert lesions_of(study()) == () == lesions_of(study(side="", size=""))
    assert same(lesions_of(study(mask=["m.png"]))[0], Lesion(finding="", mask="m.png"))
    assert [lesion.finding for lesion in lesions_of(study("Ground_Glass_Opacities|Nodule|Nodule"))] == ["Ground_Glass_Opacities", "Nodule",
                                                                                                     "Nodule"]


NUMBERS = st.one_of(st.just(math.nan), st.integers(0, 1000).map(lambda number: number / 1000))
BOXES = st.tuples(*[st.integers(0, 499)] * 2, *[st.integers(1, 500)] * 2).map(lambda box: tuple(number / 1000 for number in box))
LESIONS = st.builds(Lesion, finding=st.sampled_from(["", "Nodule", "Mass", "Ground_Glass_Opacities"]),
                    side=st.sampled_from(["", "left", "right"]), size=NUMBERS, severity=NUMBERS, x=NUMBERS, y=NUMBERS,
                    box=st.none() | BOXES, mask=st.sampled_from(["", "masks/1.png"]))


@given(st.lists(LESIONS, min_size=1, max_size=4))
def test_lesions_survive_the_table(lesions):
    read = lesions_of(with_lesions(Study(file_name="a.png", masks={"lung_mask": ("l.png",)}, extra={"ward": "3"}), lesions))
    says_nothing = all(same(lesion, Lesion(finding="")) for lesion in lesions)
    assert same(list(read), [] if says_nothing else lesions)


def test_the_example_of_the_docs_reads_as_they_say(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "reference" / "data.md").read_text(encoding="utf-8")
    table = page.partition("```csv\n")[2].partition("```")[0]
    (tmp_path / "metadata.csv").write_text(table, encoding="utf-8")
    for name in ("a.png", "masks/a-lung.png", "masks/a-nodule.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_png(tmp_path / name, np.zeros((8, 8), np.uint8))
    nodule, effusion = lesions_of(read_dataset(tmp_path).studies[0])
    assert same(nodule, Lesion(finding="Nodule", severity=0.8, mask="masks/a-nodule.png"))
    assert same(effusion, Lesion(finding="Effusion", side="left", box=(0.55, 0.6, 0.35, 0.3)))


def test_cells_leave_out_what_nobody_states_and_replace_what_was_there():
    assert lesion_cells([Lesion(finding="Mass"), FULL]) == {
        "lesion_label": "Mass|Nodule", "lesion_mask": "|masks/a.png", "lesion_side": "|left", "lesion_size": "|0.25",
        "lesion_severity": "|0.7", "lesion_x": "|0.61", "lesion_y": "|0.4", "lesion_box": "|0.55,0.3,0.12,0.2"}
    assert lesion_cells([]) == {}
    before = replace(study("Mass", ["m.png"], side="left"), masks={"lesion_mask": ("m.png",), "lung_mask": ("l.png",)})
    after = with_lesions(replace(before, extra={**before.extra, "ward": "3"}), [Lesion(finding="Nodule", size=0.5)])
    assert (after.lesion_label, after.masks, after.extra) == ("Nodule", {"lung_mask": ("l.png",)}, {"ward": "3", "lesion_size": "0.5"})


@pytest.mark.parametrize(("row", "message"), [
    (study("Nodule|Mass", ["n.png"]), "lesion_mask has 1 items and lesion_label 2 names"),
    (study("Nodule", side="left|right"), "lesion_side has 2 items and lesion_label 1 name;"),
    (study(mask=["n.png", "m.png"]), "lesion_mask has 2 items and lesion_label no names"),
    (study("Nodule", side="middle"), "lesion_side 'middle' cannot be; write left or right"),
    (study("Nodule", size="1.5"), "lesion_size '1.5' cannot be; write a number from 0 to 1"),
    (study("Nodule", severity="severe"), "lesion_severity 'severe' cannot be"),
    (study("Nodule", x="nan"), "lesion_x 'nan' cannot be"),
    (study("Nodule", y="-0.1"), "lesion_y '-0.1' cannot be"),
    (study("Nodule", box="0.1,0.2,0.3"), "lesion_box '0.1,0.2,0.3' cannot be; write left,top,width,height"),
    (study("Nodule", box="0.8,0.2,0.3,0.1"), "lesion_box"),
    (study("Nodule", box="0.8,0.2,0,0.1"), "lesion_box"),
    (study("Nodule", box="10,20,30,40"), "lesion_box"),
])
def test_what_cannot_be_is_refused_with_file_row_and_remedy(row, message):
    with pytest.raises(InputError) as caught:
        lesions_of(row, file="metadata.csv", row=7)
    assert str(caught.value).startswith("metadata.csv row 7: ") and message in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize("size", [32, 33, 256])
def test_a_disc_has_its_area_centre_side_and_box(size):
    lesion = measure_lesion(Lesion(finding="Nodule"), disc(size, 0.7, 0.4, 0.1))
    assert lesion.size == pytest.approx(2 * math.sqrt(math.pi) * 0.1, abs=0.01)  # 2 sqrt(pi r^2)
    assert (lesion.x, lesion.y) == (pytest.approx(0.7, abs=0.005), pytest.approx(0.4, abs=0.005))
    assert lesion.side == "left"  # the right of the image is the patient's left
    assert lesion.box == pytest.approx((0.6, 0.3, 0.2, 0.2), abs=2.1 / size) and math.isnan(lesion.severity)


@pytest.mark.parametrize("size", [64, 65])
@pytest.mark.parametrize(("x", "side"), [(0.2, "right"), (0.8, "left"), (0.5, ""), (0.45, ""), (0.43, "right"), (0.57, "left")])
def test_a_lesion_on_both_sides_has_none(size, x, side):
    assert measure_lesion(Lesion(finding="Mass"), disc(size, x, 0.5, 0.15)).side == side  # a quarter of a disc lies beyond 0.404 radii
    assert measure_lesion(Lesion(finding="Cardiomegaly"), disc(size, x, 0.5, 0.15)).side == ""


def test_what_is_stated_is_kept_and_an_empty_mask_fills_nothing():
    assert same(measure_lesion(FULL, disc(32, 0.2, 0.8, 0.1)), FULL)
    assert same(measure_lesion(Lesion(finding="Mass"), np.zeros((32, 32), np.uint8)), Lesion(finding="Mass"))
    assert same(measure_lesion(Lesion(finding="Mass")), Lesion(finding="Mass"))


def test_a_box_is_measured_as_the_same_area_drawn_as_a_mask():
    drawn = np.zeros((40, 40), dtype=np.uint8)
    drawn[10:30, 4:14] = 128
    by_box, by_mask = measure_lesion(Lesion(finding="Mass", box=(0.1, 0.25, 0.25, 0.5))), measure_lesion(Lesion(finding="Mass"), drawn)
    assert by_box.box == pytest.approx(by_mask.box) and by_box.side == by_mask.side == "right"
    for name in ("size", "x", "y"):
        assert getattr(by_box, name) == pytest.approx(getattr(by_mask, name))
    assert by_box.size == pytest.approx(2 * math.sqrt(0.125))
    assert measure_lesion(Lesion(finding="Mass", box=(0.1, 0, 0.7, 1))).side == ""
    assert measure_lesion(Lesion(finding="Mass", box=(0, 0, 1, 1))).size == 1


def test_the_matrix_joins_lesions_of_one_finding():
    small = Lesion(finding="Nodule", side="left", size=0.3, severity=0.2, x=0.7, y=0.2)
    large = Lesion(finding="Nodule", side="left", size=0.4, severity=0.9, x=0.8, y=0.6)
    other = Lesion(finding="Hernia", size=0.9)
    images = [[small, large, other], [], [small, replace(large, side="right", size=1.0)], [small, replace(large, size=math.nan)]]
    matrix = lesion_matrix(images, ["Mass", "Nodule"])
    assert matrix.shape == (4, 2, 5) and matrix.dtype == np.float32
    assert np.isnan(matrix[:, 0]).all() and np.isnan(matrix[1]).all()
    assert matrix[0, 1] == pytest.approx([1, 0.5, 0.9, 0.8, 0.6])  # 0.3^2 + 0.4^2 = 0.5^2
    assert np.isnan(matrix[2, 1, 0]) and matrix[2, 1, 1] == 1  # the sides differ, and there is nothing larger than the image
    assert matrix[3, 1, 0] == 1 and np.isnan(matrix[3, 1, 1:]).all()  # who is the largest is not known
    alone = lesion_matrix([[replace(small, size=math.nan, side="right")]], ["Nodule"])[0, 0]
    assert alone[[0, 2, 3, 4]] == pytest.approx([0, 0.2, 0.7, 0.2]) and np.isnan(alone[1])
