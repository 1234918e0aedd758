"""Physics templates: each finding changes its region in the right direction, more with its severity, and no other pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter, label

from synthorax.editing.insertion.insert import TemplateOptions, insert_template, solid_level
from synthorax.editing.insertion.templates import TEMPLATES
from synthorax.errors import InputError
from synthorax.physics.grey_curve import noise_of
from thorax import Thorax, thorax

DARKER = ("Pneumothorax", "Emphysema")


def region_of(finding: str, made: Thorax) -> np.ndarray:
    """A plausible place in the right lung, which is in the left half of the image."""
    size = len(made.pixels)
    y, x = (grid / size for grid in np.mgrid[:size, :size])
    right = made.lungs & (x < 0.5)
    wall = distance_transform_edt(right) * made.spacing_mm
    if finding == "Effusion":
        return np.asarray(right & (y > 0.62))
    if finding in ("Pneumothorax", "Pleural_Thickening"):
        return np.asarray(right & (wall < (22 if finding == "Pneumothorax" else 10)) & (x < 0.3) & (y < 0.65))
    if finding == "Cardiomegaly":
        return np.asarray(((x - 0.53) / 0.22) ** 2 + ((y - 0.62) / 0.2) ** 2 < 1)
    return np.asarray(right & (((x - 0.32) / 0.1) ** 2 + ((y - 0.5) / 0.13) ** 2 < 1))


@pytest.mark.parametrize("finding", sorted(TEMPLATES))
def test_a_finding_changes_its_region_and_nothing_else(finding: str) -> None:
    made = thorax(noise=1.0)
    region = region_of(finding, made)
    inserted = insert_template(made.pixels, finding=finding, region=region, lungs=made.lungs, seed=1)
    record = json.loads(json.dumps(inserted.record))
    added = inserted.pixels.astype(float) - made.pixels
    assert inserted.pixels.dtype == np.uint8 and set(np.unique(inserted.mask)) == {0, 255}
    beyond = distance_transform_edt(inserted.mask == 0)
    assert not added[beyond > record["rim_px"]].any(), "outside the mask and its rim every pixel is equal"
    assert not added[distance_transform_edt(~region) * made.spacing_mm > 16].any(), "and so it is away from the region"
    middle = added[region & made.lungs]
    assert (middle.mean() < -2) if finding in DARKER else (middle.mean() > 1.5)
    assert record["seam"] < 1.5, "no seam"
    again = insert_template(made.pixels, finding=finding, region=region, lungs=made.lungs, seed=record["seed"],
                            options=TemplateOptions(**record["options"]))
    assert np.array_equal(again.pixels, inserted.pixels) and again.record == inserted.record
    other = insert_template(made.pixels, finding=finding, region=region, lungs=made.lungs, seed=2)
    assert not np.array_equal(other.pixels, inserted.pixels)


@pytest.mark.parametrize("finding", sorted(TEMPLATES))
def test_severity_runs_from_subtle_to_obvious_in_16_bits_too(finding: str) -> None:
    made = thorax(128, bits=16, noise=1.0)
    region, changes = region_of(finding, made), []
    for severity in (0.0, 0.5, 1.0):
        inserted = insert_template(made.pixels, finding=finding, region=region, lungs=made.lungs, seed=1,
                                   options=TemplateOptions(severity=severity))
        changes.append(np.abs(inserted.pixels.astype(float) - made.pixels).sum())
    assert changes[0] < changes[1] < changes[2]


def test_fluid_is_as_dense_as_solid_tissue_and_not_denser() -> None:
    made = thorax()
    region = region_of("Effusion", made)
    inserted = insert_template(made.pixels, finding="Effusion", region=region, lungs=made.lungs, seed=1,
                               options=TemplateOptions(severity=1.0))
    rows = np.nonzero(region.any(axis=1))[0]
    base = region & (np.arange(256)[:, None] > rows[-1] - 12)
    solid = solid_level(made.pixels, made.lungs)
    assert np.median(inserted.pixels[base]) == pytest.approx(solid, abs=12), "the base is white"
    assert inserted.pixels[base].max() < solid + 25
    levels = [np.median(inserted.pixels[row][region[row]]) for row in (rows[2], rows[len(rows) // 3], rows[len(rows) // 2])]
    assert levels[0] < levels[1] <= levels[2] + 2, "denser towards the base"


def test_markings_vanish_beyond_the_pleural_line_and_noise_stays() -> None:
    made = thorax(noise=1.5)
    region = region_of("Pneumothorax", made)
    inserted = insert_template(made.pixels, finding="Pneumothorax", region=region, lungs=made.lungs, seed=1)
    inner = region & (distance_transform_edt(region) * made.spacing_mm > 6)

    def spread(pixels: np.ndarray) -> float:
        rows = [pixels[row][inner[row]].astype(float) for row in range(256) if inner[row].sum() > 4]
        return float(np.mean([np.diff(values, n=2).std() for values in rows]))

    assert noise_of(inserted.pixels, inner) == pytest.approx(noise_of(made.pixels, inner), rel=0.35)
    assert spread(inserted.pixels) < 1.3 * spread(made.pixels)


def test_regions_and_findings_that_cannot_be_are_refused() -> None:
    made = thorax()
    nowhere, corner = np.zeros_like(made.lungs), np.zeros_like(made.lungs)
    corner[:20, :20] = True
    below = np.zeros_like(made.lungs)
    below[240:250, 100:150] = True
    for finding, region, message in (("Effusion", nowhere, "empty"), ("Effusion", corner, "outside the body"),
                                     ("Effusion", below, "no lung"),
                                     ("Efusion", region_of("Effusion", made), "did you mean 'Effusion'"),
                                     ("Effusion", region_of("Effusion", made)[1:], "does not fit")):
        with pytest.raises(InputError, match=message):
            insert_template(made.pixels, finding=finding, region=region, lungs=made.lungs, seed=0)


@pytest.mark.parametrize("size", [256, 1024])
@pytest.mark.parametrize("finding", ["Effusion", "Cardiomegaly", "Fibrosis", "Pneumothorax"])
def test_a_mask_is_one_body_without_holes_also_where_the_region_has_specks(finding: str, size: int) -> None:
    made = thorax(size, noise=1.0)
    region = region_of(finding, made)
    speck = np.argwhere(made.lungs & (np.arange(size) > size // 2))[7]
    region[speck[0]:speck[0] + 2, speck[1]:speck[1] + 2] = True
    inserted = insert_template(made.pixels, finding=finding, region=region, lungs=made.lungs, seed=1)
    mask = inserted.mask > 0
    assert label(mask)[1] == 1 and np.array_equal(binary_fill_holes(mask), mask)
    corners = np.abs(np.diff(mask.astype(int), axis=0)).sum() + np.abs(np.diff(mask.astype(int), axis=1)).sum()
    assert corners < 1.35 * 4 / np.pi * _contour(mask), "its border has no steps beyond those of pixels"
    assert distance_transform_edt(~mask)[inserted.pixels != made.pixels].max() * made.spacing_mm < 16, "its rim is bounded"
    if finding == "Cardiomegaly":
        assert mask[region_of(finding, made)].mean() > 0.95, "the heart is in the mask, not only what was added to it"


def _contour(mask: np.ndarray) -> float:
    """Length of the border of a mask, in pixels: the gradient of the blurred mask, summed."""
    return float(np.hypot(*np.gradient(gaussian_filter(mask.astype(float), 3))).sum())


def test_a_pneumothorax_has_a_pleural_line_no_vessels_beyond_and_ribs() -> None:
    made = thorax(noise=0.5)
    region = region_of("Pneumothorax", made)
    y, x = np.mgrid[:256, :256]
    rib = 18 * (np.abs(y - 90 - 0.2 * x) < 4)
    vessels = 4 * np.sin(x / 0.7) * made.lungs
    host = np.clip(made.pixels + rib + vessels, 0, 255).astype(np.uint8)
    inserted = insert_template(host, finding="Pneumothorax", region=region, lungs=made.lungs, seed=1)
    from_lung = distance_transform_edt(~(made.lungs & ~region))
    inner = region & (from_lung > 4) & (distance_transform_edt(region) > 2)
    change = inserted.pixels.astype(float) - host
    to_gap = distance_transform_edt(~region)
    line, behind = (change[made.lungs & (to_gap > low) & (to_gap <= high)].mean() for low, high in ((0, 1), (2, 5)))
    gap = change[inner].mean()
    assert line > behind + 2 > 2 > 0 > gap + 5, "a bright line between the lung, which is a little denser, and the dark air"

    bare = np.clip(made.pixels + rib, 0, 255).astype(np.uint8)
    without = insert_template(bare, finding="Pneumothorax", region=region, lungs=made.lungs, seed=1).pixels
    shown = [(one.astype(float) - other)[inner].std() for one, other in ((host, bare), (inserted.pixels, without))]
    assert shown[1] < 0.55 * shown[0], "vessels are gone, not only darker"
    on, off = (inner & (np.abs(y - 90 - 0.2 * x) < 3), inner & (np.abs(np.abs(y - 90 - 0.2 * x) - 9) < 3))
    kept = [float(np.median(pixels[on])) - float(np.median(pixels[off])) for pixels in (host, inserted.pixels)]
    assert kept[1] > 0.6 * kept[0], "the rib is still there"


def test_a_mass_is_denser_in_its_middle() -> None:
    made = thorax()
    y, x = np.mgrid[:256, :256]
    region = (x - 82) ** 2 + (y - 128) ** 2 < 16**2
    inserted = insert_template(made.pixels, finding="Mass", region=region, lungs=made.lungs, seed=1)
    added = inserted.pixels.astype(float) - made.pixels
    middle, border = (added[np.abs(np.hypot(x - 82, y - 128) - radius) < 1.5].mean() for radius in (1.5, 12.5))
    assert middle > 1.2 * border > 0
