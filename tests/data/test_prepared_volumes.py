"""Banks of lesions: what is read and refused, and what a prepared folder of them holds."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from nodules import LUNG_HU, TISSUE_HU, ball, bank_of, write_bank
from synthorax.data.lesion_grid import RIM_MM, UnusableError, gridded, measured_rim
from synthorax.data.lesion_units import from_unit_volume, to_unit_volume
from synthorax.data.nodule_bank import read_bank
from synthorax.data.prepared import Prepared
from synthorax.data.prepared_volumes import PreparedVolumes, measures_in, prepare_volumes, split_scans
from synthorax.errors import InputError, UsageError

HARD = (0.0, 0.0, 0.0, 0.0)
"""no rim"""


def test_a_bank_is_read_as_it_was_written(tmp_path: Path) -> None:
    lesions = [ball(6), ball(11, scan="other")]
    np.savez(tmp_path / "bank.npz", **bank_of(lesions))
    for read, made in zip(read_bank(tmp_path / "bank.npz"), lesions, strict=True):
        assert np.array_equal(read.mask, made.mask) and np.abs(read.hounsfield - made.hounsfield).max() < 1
        assert (read.scan, read.spacing_mm) == (made.scan, (1.0, 1.0, 1.0))


def nifti(values: np.ndarray, spacing: tuple[float, float, float], *, slope: float = 1.0) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *values.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, *spacing[::-1], 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, 352, slope, 0)
    header[344:348] = b"n+1\0"
    return bytes(header) + values.astype("<i2").tobytes()


def test_a_folder_of_npz_and_nifti_volumes_is_read(tmp_path: Path) -> None:
    lesion = ball(8)
    np.savez(tmp_path / "a.npz", hounsfield=lesion.hounsfield, mask=lesion.mask, spacing_mm=np.array([2.0, 1.0, 1.0]), scan="s7")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(nifti(lesion.hounsfield[:-2], (2.0, 1.0, 0.5), slope=2.0)))
    (tmp_path / "b_mask.nii.gz").write_bytes(gzip.compress(nifti(lesion.mask[:-2], (2.0, 1.0, 0.5))))
    first, second = read_bank(tmp_path)
    assert (first.scan, first.spacing_mm) == ("s7", (2.0, 1.0, 1.0)) and np.array_equal(first.mask, lesion.mask)
    assert (second.scan, second.spacing_mm) == ("b", (2.0, 1.0, 0.5)) and np.array_equal(second.mask, lesion.mask[:-2])
    assert np.array_equal(second.hounsfield, 2 * lesion.hounsfield[:-2].astype("<i2"))
    (tmp_path / "b_mask.nii.gz").unlink()
    with pytest.raises(InputError, match=r"no mask beside it; add b_mask\.nii\.gz"):
        list(read_bank(tmp_path))
    (tmp_path / "b.nii.gz").write_bytes(b"not gzip")
    (tmp_path / "b_mask.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="no NIfTI volume"):
        list(read_bank(tmp_path))


@pytest.mark.parametrize(("change", "message"), [
    ({"mask": None}, "has no array mask"), ({"shapes": np.ones((2, 2), int)}, "whole numbers above 0"),
    ({"shapes": np.zeros((2, 3), int)}, "whole numbers above 0"), ({"shapes": np.full((2, 3), 4)}, "ask for 128 voxels"),
    ({"scan": np.array(["one"])}, "1 of `scan`"), ({"spacing_mm": np.array([1.0, -1.0, 1.0])}, "above 0"),
    ({"hounsfield": "NaN"}, "lesion 0: Hounsfield units that are not finite")])
def test_a_damaged_bank_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    arrays = bank_of([ball(6), ball(8)])
    for name, value in change.items():
        if value is None:
            del arrays[name]
        elif isinstance(value, str):
            arrays[name] = arrays[name].astype(np.float32)
            arrays[name][3] = np.nan
        else:
            arrays[name] = value  # type: ignore[assignment]
    np.savez(tmp_path / "bank.npz", **arrays)
    with pytest.raises(InputError, match=message):
        list(read_bank(tmp_path / "bank.npz"))


@pytest.mark.parametrize("name", ["missing.npz", "empty", "text.npz", "image.png"])
def test_what_is_no_bank_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "image.png").write_text("hello")
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        list(read_bank(tmp_path / name))


def test_a_ball_on_the_grid_is_a_ball_of_its_size() -> None:
    grid = gridded(ball(12), side=32, rim=HARD)
    measured = grid.measures()
    assert grid.diameter_mm == pytest.approx(12, rel=0.03) and measured.diameter_mm == pytest.approx(grid.diameter_mm, rel=0.005)
    assert measured.sphericity > 0.97 and measured.solid_share > 0.75
    assert grid.lung_hu == pytest.approx(LUNG_HU, abs=3)
    assert measured.peak_water == pytest.approx((TISSUE_HU - LUNG_HU) / 1000, abs=0.02)
    assert not grid.water[grid.distance <= 0].any()


def test_vessels_do_not_come_along_and_the_rim_goes_no_farther_than_measured() -> None:
    plain, crossed = (gridded(ball(12, vessel=vessel), side=32, rim=(0.5, 0.2, 0.1, 0.0)) for vessel in (False, True))
    outside = crossed.distance * crossed.spacing_mm < -RIM_MM[-1]
    assert not crossed.water[outside].any()
    assert crossed.water[crossed.distance <= 0].max() <= 0.5 * 0.9
    assert np.abs(crossed.water - plain.water).max() < 0.25, "at most the rim, where the vessel leaves"


def test_the_rim_is_that_of_the_blur() -> None:
    from scipy import ndimage

    def blurred(width: float) -> tuple[float, ...]:
        lesions = []
        for number in range(5):
            one = ball(10 + number, seed=number)
            one.hounsfield[:] = ndimage.gaussian_filter(one.hounsfield, width) if width else one.hounsfield
            lesions.append(one)
        return measured_rim(lesions)

    sharp, soft = blurred(0.0), blurred(1.0)
    assert sharp[0] == pytest.approx(0.5, abs=0.05) and sharp[1] < 0.05 and sharp[-1] == soft[-1] == 0
    assert soft[1] > sharp[1] + 0.1 and soft[1] > soft[2] > soft[3]


@pytest.mark.parametrize(("lesion", "reason"), [
    (ball(1.5), "fewer than 20 voxels"), (ball(9, hounsfield=LUNG_HU), None)])
def test_a_lesion_of_few_voxels_is_rejected_and_a_faint_one_is_not(lesion: object, reason: str | None) -> None:
    if reason is None:
        assert gridded(lesion, side=16, rim=HARD).water.max() < 0.1  # type: ignore[arg-type]
        return
    with pytest.raises(UnusableError, match=reason):
        gridded(lesion, side=16, rim=HARD)  # type: ignore[arg-type]


def test_other_lesions_that_cannot_be_used() -> None:
    empty, many, bare, long = ball(8), ball(8), ball(8), ball(8)
    empty.mask[:] = False
    many.mask[:] = False
    many.mask[::4, ::4, ::4] = True
    bare.hounsfield[:] = TISSUE_HU
    long.mask[:, 10:12, 10:12] = True
    long.mask[8:14, 8:14, 8:14] = False
    long.mask[4:8, 10:12, 10:12] = True
    for lesion, reason in ((empty, "empty mask"), (many, "many parts"), (bare, "no lung around it")):
        with pytest.raises(UnusableError, match=reason):
            gridded(lesion, side=16, rim=HARD)
    rod = ball(8)
    rod.mask[:] = False
    rod.mask[1:-1, 9:12, 9:12] = True
    with pytest.raises(UnusableError, match="farther than 1 diameters"):
        gridded(rod, side=16, rim=HARD)


def test_units_of_volumes_make_a_round_trip() -> None:
    grid = gridded(ball(12), side=32, rim=HARD)
    volume = to_unit_volume(grid.distance, grid.water)
    assert volume.shape == (2, 32, 32, 32) and np.abs(volume).max() <= 1
    distance, water = from_unit_volume(volume)
    near = np.abs(grid.distance) < 8
    np.testing.assert_allclose(distance[near], grid.distance[near], atol=1e-4)
    np.testing.assert_allclose(water, grid.water, atol=1e-5)


def test_a_prepared_folder_holds_what_was_measured_and_scans_are_never_split(tmp_path: Path) -> None:
    prepared = prepare_volumes(write_bank(tmp_path / "bank.npz"), tmp_path / "out", side=16, held_out=0.3, licence="CC0", attribution="us")
    train, test = prepared.volumes("train"), prepared.volumes("test")
    assert len(train) + len(test) == len(prepared) == 12 and len(test) >= 2
    assert not set(train.scans) & set(test.scans)
    assert train.volumes.shape[1:] == (2, 16, 16, 16) and bool((train.measurements >= 0).all()) and bool((train.measurements <= 1).all())
    diameters = [measures_in(row).diameter_mm for row in prepared.rows]
    np.testing.assert_allclose(diameters, 5.0 + np.arange(12), rtol=0.08)  # of the voxels, which is what is kept
    assert prepared.sources[0].licence == "CC0" and prepared.sources[0].attribution == "us"
    again = prepare_volumes(tmp_path / "bank.npz", tmp_path / "out", side=16, held_out=0.3, licence="CC0", attribution="us")
    assert again.digest == prepared.digest
    with pytest.raises(InputError, match="choose another --out"):
        prepare_volumes(tmp_path / "bank.npz", tmp_path / "out", side=8)
    (tmp_path / "out" / "lesions.csv").write_text("edited")
    with pytest.raises(InputError, match="damaged or was edited"):
        PreparedVolumes.load(tmp_path / "out")


def test_folders_of_images_and_of_lesions_are_told_apart(tmp_path: Path) -> None:
    prepare_volumes(write_bank(tmp_path / "bank.npz"), tmp_path / "out", side=8)
    with pytest.raises(InputError, match="prepared folder of lesions, not of images"):
        Prepared.load(tmp_path / "out")
    with pytest.raises(InputError, match="prepare-nodules"):
        PreparedVolumes.load(tmp_path)
    with pytest.raises(UsageError, match="no split 'val'"):
        PreparedVolumes.load(tmp_path / "out").volumes("val")
    for wrong in ({"side": 9}, {"side": 200}, {"held_out": 1.0}):
        with pytest.raises(UsageError):
            prepare_volumes(tmp_path / "bank.npz", tmp_path / "other", **wrong)  # type: ignore[arg-type]


def test_both_splits_have_large_and_small_lesions() -> None:
    scans = [f"s{number}" for number in range(200)]
    sizes = [3.0 + number**2 / 800 for number in range(200)]
    splits = split_scans(scans, sizes, held_out=0.2)
    held = [size for size, split in zip(sizes, splits, strict=True) if split == "test"]
    assert len(held) == 40 and abs(np.median(held) - np.median(sizes)) < 2 and max(held) > 45
    assert split_scans(scans, sizes, held_out=0.2, seed=1) != splits
    assert set(split_scans(scans, sizes, held_out=0.0)) == {"train"}
