"""Physics templates: each finding changes its region in the right direction, more with its severity, and no other pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

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
