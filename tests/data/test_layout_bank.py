"""The bank of a user's own outlines: sides, sizes, no copies, no patients of the test split, and what cannot be used."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from synthorax.data.dataset import read_dataset
from synthorax.data.layout_bank import read_bank
from synthorax.data.layouts import overlap, shape_of
from synthorax.data.pixels import write_png
from synthorax.data.prepared import prepare_dataset
from synthorax.errors import InputError, UsageError

RIGHT, LEFT = (10, 20, 50, 100), (70, 20, 110, 100)
SIDE = 120


def area(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def write_set(folder: Path, *, lungs: bool = True, split: bool = False) -> Path:
    """Ten patients, each with an effusion at the base of one lung that is larger in every other; one has a nodule in a box too."""
    rng = np.random.default_rng(0)
    rows = ["file_name,patient_id,findings,lung_mask,lesion_mask,lesion_label,lesion_box" + (",split" if split else "")]
    write_png(folder / "masks/lungs.png", area(*RIGHT) | area(*LEFT))
    for number in range(10):
        left, height = number % 2, 12 + 2 * number
        box = LEFT if left else RIGHT
        write_png(folder / f"images/{number}.png", rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
        write_png(folder / f"masks/{number}.png", area(box[0] + 5, 100 - height, box[2], 100))
        lung = "masks/lungs.png" if lungs else ""
        more = ("|Nodule", "|", '"|0.2,0.3,0.1,0.1"') if number == 4 else ("", "", "")
        rows.append(f"images/{number}.png,p{number},Effusion{more[0]},{lung},masks/{number}.png{more[1]},Effusion{more[0]},{more[2]}")
        if split:
            rows[-1] += ",test" if number >= 8 else ",train"
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_outlines_keep_their_side_and_are_never_copies(tmp_path: Path) -> None:
    bank = read_bank(write_set(tmp_path / "set"))
    assert bank.findings == ("Effusion", "Nodule") and len(bank) == 11 and not bank.left_out
    originals = [one.layout for one in bank.outlines]
    for side in ("left", "right"):
        made = bank.draw(["Effusion"] * 12, [side] * 12, [math.nan] * 12, list(range(12)))
        assert {one.side for one in made} == {side}
        assert all(shape_of(one).y > 0.6 for one in made), "effusions lie at the base"
        assert max(overlap(one, original) for one in made for original in originals) < 0.95
    again = bank.draw(["Effusion"], ["right"], [math.nan], [5])[0]
    assert np.array_equal(again.grid, bank.draw(["Effusion"] * 12, ["right"] * 12, [math.nan] * 12, list(range(12)))[5].grid)


def test_sizes_are_followed(tmp_path: Path) -> None:
    bank = read_bank(write_set(tmp_path / "set"))
    sizes = [0.2, 0.3, 0.4, 0.5]
    made = [shape_of(one).size for one in bank.draw(["Effusion"] * 4, ["left"] * 4, sizes, [1, 2, 3, 4])]
    np.testing.assert_allclose(made, sizes, rtol=0.1)


def test_a_prepared_folder_lends_outlines_of_its_training_patients_only(tmp_path: Path) -> None:
    prepared = prepare_dataset(read_dataset(write_set(tmp_path / "set", split=True)), tmp_path / "prepared", size=64)
    assert len(read_bank(prepared.path)) == 9 and len(read_bank(tmp_path / "set")) == 9


def test_lungs_are_looked_for_where_there_is_no_mask_of_them(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", lungs=False)
    with pytest.raises(InputError, match=r"no outline that can be used.*no lung mask.*lung_mask"):
        read_bank(folder)
    scale = 256 / SIDE
    boxes = tuple(tuple(scale * number for number in box) for box in (RIGHT, LEFT))
    none = ((math.nan,) * 4, (math.nan,) * 4)
    bank = read_bank(folder, find_lungs=lambda pixels: [boxes] * (len(pixels) - 1) + [none])
    assert len(bank) == 10 and sum(bank.left_out.values()) == 1
    whole = read_bank(write_set(tmp_path / "whole"))
    assert overlap(bank.outlines[0].layout, whole.outlines[0].layout) > 0.95


def test_what_the_bank_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    bank = read_bank(write_set(tmp_path / "set"))
    with pytest.raises(UsageError, match=r"did you mean 'Effusion'.*it knows Effusion, Nodule"):
        bank.draw(["Efusion"], [""], [math.nan], [1])
    with pytest.raises(UsageError, match="no outline of Nodule on the left"):
        bank.draw(["Nodule"], ["left"], [math.nan], [1])
    empty = tmp_path / "empty"
    write_png(empty / "images/a.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    (empty / "metadata.csv").write_text("file_name,patient_id,findings\nimages/a.png,p,Mass\n")
    with pytest.raises(InputError, match="no outline that can be used"):
        read_bank(empty)
