"""Masked diffusion: only the region changes, at the host's own size and bits; the request reaches the model; one entry for all methods."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from synthorax.editing.insertion.frame import Frame
from synthorax.editing.insertion.insert import TemplateOptions, insert_lesion
from synthorax.editing.insertion.masked_diffusion import DiffusionOptions, insert_by_diffusion, request, rim_weight
from synthorax.editing.insertion.nodules import NoduleOptions
from synthorax.errors import InputError, UsageError
from synthorax.families.denoising.model import DiffusionModel
from synthorax.physics.volumes import LesionVolume
from synthorax.protocols import COARSE, Model, ModelSpec, SampleSettings, as_model
from synthorax.types import Study
from thorax import Thorax, thorax
from trainings import FINDINGS, fresh_cascade, fresh_objective, randomised, smallest

QUICK = DiffusionOptions(steps=3, guidance=1.0, margin=0.02)
FINDING = FINDINGS[0]


def diffusion() -> DiffusionModel:
    """One that makes something else of everything: its weights are random."""
    made = fresh_objective(smallest("diffusion")).model
    randomised(made)
    assert isinstance(made, DiffusionModel)
    return made.eval()


def cascade() -> Model:
    made = fresh_cascade()
    randomised(made)
    return as_model(made.eval())


def region_of(made: Thorax) -> np.ndarray:
    height, width = made.pixels.shape
    y, x = np.mgrid[:height, :width]
    return np.asarray(made.lungs & (np.hypot((x / width - 0.3) / 0.1, (y / height - 0.5) / 0.15) < 1))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("build", [diffusion, cascade])
@pytest.mark.parametrize("start", ["noise", "template"])
def test_only_the_region_and_its_rim_change(build: object, start: str, bits: int) -> None:
    made, model = thorax(200, bits=bits), build()  # type: ignore[operator]
    region, before = region_of(made), made.pixels.copy()
    template = None if start == "noise" else np.where(region, made.pixels + 20, made.pixels).astype(made.pixels.dtype)
    inserted = insert_by_diffusion(made.pixels, finding=FINDING, region=region, model=model, seed=4, template=template, options=QUICK)
    again = insert_by_diffusion(made.pixels, finding=FINDING, region=region, model=model, seed=4, template=template, options=QUICK)
    assert np.array_equal(inserted.pixels, again.pixels) and np.array_equal(made.pixels, before)
    assert inserted.pixels.dtype == made.pixels.dtype and inserted.pixels.shape == made.pixels.shape
    assert np.array_equal(inserted.mask > 0, region)
    changed = inserted.pixels != made.pixels
    assert not changed[rim_weight(region, rim=inserted.record["rim_px"]) == 0].any() and changed[region].mean() > 0.3
    assert json.loads(json.dumps(inserted.record))["start"] == start
    other = insert_by_diffusion(made.pixels, finding=FINDING, region=region, model=model, seed=5, template=template, options=QUICK)
    assert not np.array_equal(inserted.pixels, other.pixels)


def test_a_low_level_keeps_the_template() -> None:
    """With hardly any noise a model that gives back what it sees leaves the template as it is; the weights are made small for that."""
    made, model = thorax(64), diffusion()
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.mul_(0.1)
    region = region_of(made)
    template = np.where(region, made.pixels + 25, made.pixels).astype(np.uint8)
    errors = []
    for level in (0.02, 2.0):
        inserted = insert_by_diffusion(made.pixels, finding=FINDING, region=region, model=model, seed=1, template=template,
                                       options=DiffusionOptions(steps=3, guidance=1.0, level=level, detail_px=0.0))
        errors.append(float(np.abs(inserted.pixels.astype(float) - template)[region].mean()))
    assert errors[0] < 12 and errors[1] > errors[0] + 3


def test_fine_structure_stays_that_of_host_and_template() -> None:
    made, model = thorax(200), diffusion()
    region = region_of(made)
    inner = distance_transform_edt(region) > 4
    y, x = np.mgrid[:200, :200]
    fine = 6 * np.where((y + x) % 4 < 2, 1, -1)
    template = np.where(region, np.clip(made.pixels.astype(int) + 10 + fine, 0, 255), made.pixels).astype(np.uint8)

    def left(**options: float) -> float:
        result = insert_by_diffusion(made.pixels, finding=FINDING, region=region, model=model, seed=4, template=template,
                                     options=replace(QUICK, level=0.5, **options)).pixels.astype(float)
        return float((result * fine)[inner].mean()) / 36

    assert left(detail_px=2.0) > 0.8 > 0.6 > left(detail_px=0.0), "with 0 the model replaces it"


def test_the_request_states_the_finding_its_place_and_the_host() -> None:
    spec = ModelSpec(family="diffusion", image_size=32, findings=("Mass", "Effusion"),
                     conditions=("labels", "attributes", "mask", "lesions"), masks=("lung", "Effusion"))
    region = np.zeros((32, 32), np.float32)
    region[20:28, 4:12] = 1
    asked = request(spec, "Effusion", region, study=Study(file_name="a.png", view="PA", sex="F", age_years=50), severity=0.5)
    assert asked.labels[0].isnan().tolist() == [True, False] and asked.labels[0, 1] == 1
    assert asked.attributes[0].tolist()[:5] == [1, 0, 0, 1, 0.5]
    assert asked.mask is None, "the outline is stated only where it is asked for"
    outlined, boxed = (request(spec, "Effusion", region, outline=outline).mask for outline in ("exact", "box"))
    assert outlined is not None and outlined[0, 0].isnan().all() and torch.equal(outlined[0, 1], torch.from_numpy(region))
    assert boxed is not None and boxed[0, 1].max() == COARSE and (boxed[0, 1] > 0).sum() == 64
    assert asked.lesions is not None and asked.lesions[0, 0].isnan().all()
    np.testing.assert_allclose(asked.lesions[0, 1].numpy(), [0, 0.5, 0.5, 0.25, 0.75], atol=1e-6)
    with pytest.raises(InputError, match="did you mean 'Effusion'"):
        request(spec, "Efusion", region)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (128, 128), (64, 64)])
def test_a_frame_brings_a_smooth_change_back_and_keeps_grey_levels(shape: tuple[int, int]) -> None:
    rows, columns = (np.linspace(0, 1, side) for side in shape)
    host = np.rint(60 + 80 * np.add.outer(rows, columns)).astype(np.uint8)
    frame = Frame.of(host, size=128)
    image = frame.model_image(host)
    assert image.shape == (128, 128) and image.min() >= -1 and image.max() <= 1
    back = frame.host_change(image + 1)
    assert np.abs(back - host)[4:-4, 4:-4].max() < 2
    twelve = (host.astype(np.uint16) * 16).clip(0, 4095)
    np.testing.assert_allclose(Frame.of(twelve, size=128).model_image(twelve), image, atol=0.01)
    sixteen = host.astype(np.uint16) * 257
    np.testing.assert_allclose(Frame.of(sixteen, size=128).model_image(sixteen), image, atol=1e-4)


def test_one_entry_chooses_the_method() -> None:
    made, model = thorax(128), diffusion()
    region = region_of(made)
    at = np.arange(11) - 5
    mask = at[:, None, None] ** 2 + at[:, None] ** 2 + at**2 <= 20
    volume = LesionVolume(water=0.8 * mask.astype(np.float32), mask=mask, spacing_mm=2.0)
    nodule = insert_lesion(made.pixels, finding="Nodule", lungs=made.lungs, seed=1, lesion=volume, nodule=NoduleOptions(diameter_mm=18))
    assert nodule.record["method"] == "physics" and nodule.record["finding"] == "Nodule"
    fluid = insert_lesion(made.pixels, finding="Effusion", lungs=made.lungs, seed=1, region=region, model=model,
                          template=TemplateOptions(severity=0.2))
    assert fluid.record["method"] == ("diffusion" if "Effusion" in FINDINGS else "physics")
    known = insert_lesion(made.pixels, finding=FINDING, lungs=made.lungs, seed=1, region=region, model=model, diffusion=QUICK)
    assert known.record["method"] == "diffusion"
    for wrong, message in (({"method": "magic", "region": region}, "unknown method"), ({}, "needs a volume or a region"),
                           ({"region": region, "lesion": volume}, "one or the other"),
                           ({"region": region, "method": "diffusion"}, "needs a model")):
        with pytest.raises(UsageError, match=message):
            insert_lesion(made.pixels, finding="Effusion", lungs=made.lungs, seed=1, **wrong)  # type: ignore[arg-type]


def test_models_that_are_no_diffusion_in_pixels_are_refused() -> None:
    made = thorax(64)
    gan = as_model(fresh_objective(smallest("gan")).model)
    with pytest.raises(UsageError, match="diffusion model in pixels"):
        insert_by_diffusion(made.pixels, finding=FINDING, region=region_of(made), model=gan, seed=0)


def test_resampling_with_a_change_keeps_what_the_change_holds() -> None:
    model = diffusion()
    side = model.spec.image_size
    images = torch.full((1, 1, side, side), 0.2)
    held = torch.zeros(1, 1, side, side)
    held[..., : side // 2] = 1
    settings = SampleSettings(steps=3, guidance=1.0)
    made = model.resample(images, None, [1], settings, level=0.5, change=lambda D: lambda x, s: held * images + (1 - held) * D(x, s))
    assert torch.allclose(made[..., : side // 2], images[..., : side // 2], atol=1e-6)
    assert not torch.allclose(made[..., side // 2:], images[..., side // 2:], atol=1e-2)
