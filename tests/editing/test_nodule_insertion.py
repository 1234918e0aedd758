"""Nodules by physics: the right grey levels in the right place, no other pixel changed, no seam, and refusals."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest

from synthorax.editing.insertion.nodules import NoduleOptions, check_place, insert_nodule
from synthorax.editing.insertion.seams import seam, seam_ratio
from synthorax.errors import InputError
from synthorax.physics.grey_curve import noise_of
from synthorax.physics.volumes import LesionVolume
from thorax import thorax

PLACE = (0.33, 0.5)


def ball(radius_mm: float = 8.0, water: float = 0.8) -> LesionVolume:
    side = int(2 * radius_mm) + 5
    at = np.arange(side) - (side - 1) / 2
    mask = at[:, None, None] ** 2 + at[:, None] ** 2 + at**2 <= radius_mm**2
    return LesionVolume(water=np.where(mask, water, 0).astype(np.float32), mask=mask, spacing_mm=1.0)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_nodule_adds_its_water_and_nothing_else_changes(bits: int) -> None:
    made = thorax(512, bits=bits, noise=1.0)
    options = NoduleOptions(place=PLACE, diameter_mm=20, spacing_mm=made.spacing_mm, levels_per_mm=made.levels_per_mm, noise=False)
    before = made.pixels.copy()
    inserted = insert_nodule(made.pixels, ball(), lungs=made.lungs, seed=1, options=options)
    assert np.array_equal(made.pixels, before) and inserted.pixels.dtype == made.pixels.dtype and inserted.mask.dtype == np.uint8
    assert set(np.unique(inserted.mask)) == {0, 255}
    added = inserted.pixels.astype(float) - made.pixels
    row, column = int(PLACE[1] * 512), int(PLACE[0] * 512)
    assert added[row - 3:row + 4, column - 3:column + 4].mean() == pytest.approx(0.8 * 20 * made.levels_per_mm, rel=0.08)
    total = added.sum() * made.spacing_mm**2 / made.levels_per_mm
    assert total == pytest.approx(0.8 * 4 / 3 * np.pi * 1000, rel=0.08), "mm of water times mm^2 are the volume's"
    left, top, width, height = inserted.box
    assert abs(left + width / 2 - column) < 2 and abs(top + height / 2 - row) < 2
    assert width * made.spacing_mm == pytest.approx(20, abs=2.5)
    changed = np.argwhere(added != 0)
    rim = inserted.record["rim_px"]
    assert changed.min(0)[0] >= top - rim and changed.max(0)[0] < top + height + rim and rim < 8
    assert inserted.mask[inserted.mask > 0].size < (added != 0).sum() + 20


def test_the_same_record_makes_the_same_bits() -> None:
    made = thorax()
    one = insert_nodule(made.pixels, ball(), lungs=made.lungs, seed=3)
    record = json.loads(json.dumps(one.record))
    again = insert_nodule(made.pixels, ball(), lungs=made.lungs, seed=record["seed"], options=NoduleOptions(**record["options"]))
    assert np.array_equal(one.pixels, again.pixels) and one.record == again.record
    other = insert_nodule(made.pixels, ball(), lungs=made.lungs, seed=4)
    assert one.box != other.box


def test_places_are_drawn_inside_the_lungs_and_not_behind_the_heart() -> None:
    made = thorax()
    x = []
    for seed in range(12):
        inserted = insert_nodule(made.pixels, ball(), lungs=made.lungs, seed=seed, options=NoduleOptions(diameter_mm=15))
        assert made.lungs[inserted.mask > 0].mean() > 0.75
        x.append(inserted.record["place"][0])
    assert min(x) < 0.45 and max(x) > 0.55, "both lungs"


def test_a_nodule_has_no_seam_and_a_pasted_disc_has_one() -> None:
    made = thorax(noise=1.0)
    inserted = insert_nodule(made.pixels, ball(water=0.5), lungs=made.lungs, seed=1, options=NoduleOptions(place=PLACE, diameter_mm=22))
    assert inserted.record["seam"] == seam_ratio(made.pixels, inserted.pixels) < 1.3
    disc = np.hypot(*np.ogrid[-128:128, -84:172]) < 9
    pasted = made.pixels + np.where(disc, 12, 0).astype(np.uint8)
    assert seam_ratio(made.pixels, pasted) > 3


def test_the_seam_of_a_square_is_that_of_its_sides() -> None:
    square = np.zeros((40, 40), bool)
    square[10:30, 12:28] = True
    ramp = np.add.outer(np.arange(40.0), np.zeros(40))
    assert seam(ramp + 9 * square, square) > 5 and seam(ramp, square) == pytest.approx(1, abs=0.35)


def test_white_stays_white_and_noise_grows() -> None:
    made = thorax(white_mm=75)
    quiet = NoduleOptions(place=(0.545, 0.6), diameter_mm=30, dense=True, noise=False)
    inserted = insert_nodule(made.pixels, ball(), lungs=made.lungs, seed=1, options=quiet)
    assert inserted.pixels.max() <= 255 and inserted.record["peak_levels"] < 10, "a saturated heart hides it"
    options = NoduleOptions(place=PLACE, diameter_mm=40, noise=True)
    noisy, plain = (insert_nodule(made.pixels, ball(), lungs=made.lungs, seed=1, options=each)
                    for each in (options, NoduleOptions(place=PLACE, diameter_mm=40, noise=False)))
    added = [noise_of(each.pixels, plain.mask > 0) for each in (noisy, plain)]
    assert added[0] > 1.1 * added[1]


def test_what_cannot_be_is_refused() -> None:
    made = thorax()

    def refused(message: str, *, host: np.ndarray = made.pixels, lungs: np.ndarray = made.lungs, lesion: LesionVolume | None = None,
                options: NoduleOptions | None = None) -> None:
        with pytest.raises(InputError, match=message):
            insert_nodule(host, lesion or ball(), lungs=lungs, seed=0, options=options)

    refused("larger than the lung", options=NoduleOptions(diameter_mm=200))
    refused("outside the lungs", options=NoduleOptions(place=(0.01, 0.01)))
    refused("outside the image", options=NoduleOptions(place=(1.5, 0.1)))
    refused("outside the lungs|dense", options=NoduleOptions(place=(0.53, 0.6)))
    refused("grey image", host=np.zeros((64, 64, 3), np.uint8))
    refused("neither 8 nor 16 bit", host=made.pixels.astype(np.float32))
    refused("finite", host=np.full(made.pixels.shape, np.nan))
    refused("single grey level", host=np.full_like(made.pixels, 9))
    refused("does not fit", lungs=made.lungs[:10])
    refused("is empty", lungs=np.zeros_like(made.lungs))
    refused("MONOCHROME1", host=255 - made.pixels)
    refused("below the threshold", lesion=ball(water=0.01), options=NoduleOptions(place=PLACE))
    refused("give one of them", options=NoduleOptions(diameter_mm=5, diameter_px=5))


def test_a_large_lesion_at_full_resolution_is_its_projection_and_takes_seconds() -> None:
    made = thorax(1024, noise=1.0)
    options = NoduleOptions(place=PLACE, diameter_mm=100, spacing_mm=made.spacing_mm, levels_per_mm=made.levels_per_mm / 4, noise=False)
    start = time.process_time()
    inserted = insert_nodule(made.pixels, ball(), lungs=made.lungs, seed=1, options=options)
    assert time.process_time() - start < 15, "rays through voxels as small as pixels take a minute"
    added = inserted.pixels.astype(float) - made.pixels
    row, column = int(PLACE[1] * 1024), int(PLACE[0] * 1024)
    y, x = np.mgrid[:1024, :1024]
    distance = np.hypot(y - row, x - column) * made.spacing_mm
    for at in (0, 20, 40):
        near = np.abs(distance - at) < 1.0
        chord = 0.8 * 2 * math.sqrt(50**2 - at**2) * made.levels_per_mm / 4
        assert added[near].mean() == pytest.approx(chord, rel=0.04), at
    total = added.sum() * made.spacing_mm**2 / (made.levels_per_mm / 4)
    assert total == pytest.approx(0.8 * 4 / 3 * math.pi * 50**3, rel=0.03)


def test_a_place_is_checked_before_a_lesion_is_made() -> None:
    made = thorax()
    check_place(made.pixels, made.lungs, options=NoduleOptions(place=PLACE, diameter_mm=20))
    for options, message in ((NoduleOptions(place=(0.02, 0.02), diameter_mm=20), "outside the lungs"),
                             (NoduleOptions(place=PLACE, diameter_mm=280), "larger than the lung")):
        with pytest.raises(InputError, match=message):
            check_place(made.pixels, made.lungs, options=options)
