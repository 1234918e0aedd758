"""The projector against closed forms of boxes and spheres, and its gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from synthorax.errors import UsageError
from synthorax.physics.beer_lambert import WATER_60_KEV, log_signal, noise_gain, transmission, water_of
from synthorax.physics.projection import Projection, project

CHEST = {"source_detector_mm": 1800.0, "source_object_mm": 1650.0}
BEAMS = pytest.mark.parametrize("beam", [{}, CHEST, {"source_detector_mm": 500.0, "source_object_mm": 300.0}],
                                ids=["parallel", "chest", "close"])


def turn(a: float, b: float, c: float) -> Tensor:
    """A rotation by three angles."""
    def about(axis: int, angle: float) -> Tensor:
        matrix, (one, other) = torch.eye(3, dtype=torch.float64), [(1, 2), (0, 2), (0, 1)][axis]
        matrix[one, one] = matrix[other, other] = math.cos(angle)
        matrix[one, other], matrix[other, one] = -math.sin(angle), math.sin(angle)
        return matrix

    return about(0, a) @ about(1, b) @ about(2, c)


def chord_of_box(projection: Projection, sides_mm: Tensor, rotation: Tensor) -> Tensor:
    """Path of each ray through a box about the origin: the slab method."""
    starts, ends = (points @ rotation for points in projection.rays())
    way = ends - starts
    near, far = ((sign * sides_mm / 2 - starts) / way for sign in (-1, 1))
    entry = torch.minimum(near, far).amax(-1).clamp(min=0)
    leave = torch.maximum(near, far).amin(-1).clamp(max=1)
    return (leave - entry).clamp(min=0) * way.norm(dim=-1)


def chord_of_sphere(projection: Projection, radius_mm: float) -> Tensor:
    """Path of each ray through a sphere about the origin: 2 sqrt(r^2 - distance^2)."""
    starts, ends = projection.rays()
    way = (ends - starts) / (ends - starts).norm(dim=-1, keepdim=True)
    distance = torch.linalg.cross(starts, way).square().sum(-1)
    return 2 * (radius_mm**2 - distance).clamp(min=0).sqrt()


def sphere(radius: float, side: int, parts: int) -> Tensor:
    """What part of each voxel a sphere of `radius` voxels fills, [side, side, side]: exact along `parts` x `parts` lines in its depth."""
    points = (torch.arange(side * parts, dtype=torch.float64) + 0.5) / parts - side / 2
    half = (radius**2 - points[:, None] ** 2 - points**2).clamp(min=0).sqrt()
    faces = torch.arange(side + 1, dtype=torch.float64) - side / 2
    layers = [(torch.minimum(half, high) - torch.maximum(-half, low)).clamp(min=0) for low, high in itertools.pairwise(faces)]
    return torch.stack([layer.reshape(side, parts, side, parts).mean((1, 3)) for layer in layers])


@BEAMS
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.3, -0.5, 0.2), (1.1, 0.7, -0.4)])
def test_a_box_is_exact_at_every_angle(beam: dict[str, float], angles: tuple[float, float, float]) -> None:
    """Paths through constant voxels are exact: 1e-10 of the peak, a million times better than asked."""
    water = torch.zeros(20, 24, 28, dtype=torch.float64)
    water[4:16, 3:21, 5:23] = 0.85
    projection, rotation = Projection(rows=37, columns=41, pixel_mm=1.3, **beam), turn(*angles)
    made = project(water, spacing_mm=1.5, projection=projection, rotation=rotation)
    true = 0.85 * chord_of_box(projection, 1.5 * torch.tensor([12.0, 18.0, 18.0], dtype=torch.float64), rotation)
    assert true.max() > 10 and (made - true).abs().max() < 1e-10 * true.max()


def test_a_solid_sphere_is_right_to_1e_4_of_its_peak() -> None:
    """Means over pixels that are as large as voxels, 0.5 mm, of a sphere of 20 mm; each voxel holds the part that the sphere fills."""
    fill = sphere(40.0, 84, 12)
    made = project(fill, spacing_mm=0.5, projection=Projection(rows=84, columns=84, pixel_mm=0.5))
    fine = Projection(rows=84, columns=84, pixel_mm=0.5, subpixels=12)
    true = chord_of_sphere(fine, 20.0).reshape(84, 12, 84, 12).mean((1, 3))
    assert true.max() > 39.9 and (made - true).abs().max() < 1e-4 * true.max()


@BEAMS
def test_a_ball_that_fades_is_right_to_1e_4_of_its_peak_at_an_angle(beam: dict[str, float]) -> None:
    """Density (1 - (r / R)^2)^2 has the line integrals 16 / 15 R (1 - (distance / R)^2)^(5 / 2); means over pixels of 2 mm."""
    radius, spacing = 20.0, 0.25
    points = (torch.arange(168, dtype=torch.float64) - 83.5) * spacing
    square = (points[:, None, None] ** 2 + points[:, None] ** 2 + points**2) / radius**2
    projection = Projection(rows=23, columns=23, pixel_mm=2.0, subpixels=4, **beam)
    made = project((1 - square).clamp(min=0) ** 2, spacing_mm=spacing, projection=projection, rotation=turn(0.3, -0.5, 0.2))
    true = 16 / 15 * radius * (chord_of_sphere(projection, radius) / (2 * radius)) ** 5
    errors = (made - true.reshape(23, 4, 23, 4).mean((1, 3))).abs()
    assert true.max() > 21 and errors.max() < 1e-4 * true.max()


def test_the_error_of_a_solid_sphere_at_an_angle_falls_with_the_square_of_its_voxels() -> None:
    projection, rotation = Projection(rows=9, columns=9, pixel_mm=6.0, subpixels=24, **CHEST), turn(0.3, -0.5, 0.2)
    true = chord_of_sphere(projection, 20.0).reshape(9, 24, 9, 24).mean((1, 3))
    errors = []
    for spacing in (2.0, 1.0):
        made = project(sphere(20 / spacing, round(44 / spacing), 8), spacing_mm=spacing, projection=projection, rotation=rotation)
        errors.append(((made - true).square().mean().sqrt() / 40).item())
    assert errors[1] < 2e-3 and errors[0] / errors[1] > 3


def test_a_source_magnifies_and_a_parallel_beam_does_not() -> None:
    disc = torch.zeros(1, 41, 41, dtype=torch.float64)
    disc[:, 10:31, 10:31] = 1
    shadows = [project(disc, spacing_mm=1.0, projection=Projection(rows=81, columns=81, pixel_mm=0.5, **beam))
               for beam in ({}, {"source_detector_mm": 300.0, "source_object_mm": 200.0})]
    extents = [(shadow > 0.5).sum().item() ** 0.5 / 2 for shadow in shadows]
    assert extents[0] == pytest.approx(21, abs=0.6) and extents[1] == pytest.approx(31.5, abs=0.6)


def test_axes_are_those_of_a_frontal_image() -> None:
    water = torch.zeros(3, 5, 7)
    water[1, 0, 6] = 1
    made = project(water, spacing_mm=2.0, projection=Projection(rows=5, columns=7, pixel_mm=2.0))
    assert made[0, 6] == 2 and made.sum() == 2, "first row above, last column right, nothing mirrored"
    moved = project(water, spacing_mm=2.0, projection=Projection(rows=5, columns=7, pixel_mm=2.0), shift_mm=torch.tensor([0.0, 4.0, -2.0]))
    assert moved[2, 5] == 2


@BEAMS
def test_gradients_are_those_of_finite_differences(beam: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    water = torch.rand(2, 4, 5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    angle = torch.tensor([0.33, -0.46, 0.21], dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([0.13, -0.21, 0.37], dtype=torch.float64, requires_grad=True)
    projection = Projection(rows=3, columns=4, pixel_mm=1.7, **beam)

    def image(water: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
        z = torch.zeros_like(angle[0])
        skew = torch.stack([torch.stack([z, -angle[2], angle[1]]), torch.stack([angle[2], z, -angle[0]]),
                            torch.stack([-angle[1], angle[0], z])])
        return project(water, spacing_mm=1.1, projection=projection, rotation=torch.linalg.matrix_exp(skew), shift_mm=shift)

    assert torch.autograd.gradcheck(image, (water, angle, shift), eps=1e-6, atol=1e-5)


def test_chunks_and_float32_change_nothing_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    water = torch.rand(9, 10, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    projection = Projection(rows=12, columns=13, pixel_mm=0.9, **CHEST)
    whole = project(water, spacing_mm=1.0, projection=projection)
    single = project(water.float(), spacing_mm=1.0, projection=projection)
    assert single.dtype == torch.float32 and (single - whole).abs().max() < 1e-5 * whole.max()
    monkeypatch.setattr("synthorax.physics.projection.CHUNK", 100)
    assert torch.equal(project(water, spacing_mm=1.0, projection=projection), whole)


def test_what_is_no_projection_is_refused() -> None:
    for wrong, message in (({"pixel_mm": 0.0}, "cannot be"), ({"source_object_mm": 5.0}, "both distances"),
                           ({"source_object_mm": 9.0, "source_detector_mm": 5.0}, "in between")):
        with pytest.raises(UsageError, match=message):
            Projection(**{"rows": 2, "columns": 2, "pixel_mm": 1.0, **wrong})
    with pytest.raises(UsageError, match=r"\[..., D, H, W\]"):
        project(torch.ones(2, 2), spacing_mm=1.0, projection=Projection(rows=2, columns=2, pixel_mm=1.0))


def test_beer_lambert() -> None:
    water = torch.tensor([0.0, 1.0, 50.0, 200.0], dtype=torch.float64)
    np.testing.assert_allclose(transmission(water).numpy(), np.exp(-WATER_60_KEV * water.numpy()))
    np.testing.assert_allclose(water_of(transmission(water)).numpy(), water.numpy(), atol=1e-10)
    np.testing.assert_allclose(log_signal(water).numpy(), WATER_60_KEV * water.numpy(), atol=1e-12)
    halves = log_signal(torch.tensor([20.0, 100.0])), log_signal(torch.tensor(120.0))
    assert halves[0].sum().item() == pytest.approx(halves[1].item()), "two layers add in the logarithm"
    small = torch.tensor(0.01, dtype=torch.float64)
    assert (log_signal(small, scatter_fraction=0.6) / log_signal(small)).item() == pytest.approx(0.4, abs=1e-3)
    photons = np.random.default_rng(0).poisson(1e4 * np.array([[1.0], [float(transmission(water)[2])]]), size=(2, 100_000))
    spread = np.log(photons).std(1)
    assert spread[1] / spread[0] == pytest.approx(noise_gain(water)[2].item(), rel=0.02)
