"""Lesion terms: blind outside the mask, right in closed form, and raised by every way of losing a lesion."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oracles import oracle
from synthorax.errors import UsageError
from synthorax.evaluation.metrics.ssim import ssim
from synthorax.losses.lesion import (
    CROP_PX,
    LesionLossConfig,
    lesion_crop,
    lesion_perceptual,
    lesion_sigma,
    lesion_ssim_loss,
    lesion_terms,
    masked_error,
    noise_level_weight,
    soft_mask,
)
from synthorax.losses.perceptual import Oriented

SIDE, RADIUS, CENTRE, ELSEWHERE = 64, 6, (24, 40), (46, 14)
FEATURES = Oriented()
ALL = LesionLossConfig(mask_weight=0.5, ssim_weight=0.2, perceptual_weight=0.3)
NAMES = {"mask_weight": "lesion_error", "ssim_weight": "lesion_ssim", "perceptual_weight": "lesion_perceptual"}


def disc(centre: tuple[int, int], *, radius: float = RADIUS, side: int = SIDE) -> Tensor:
    """[1, 1, side, side] of 0 and 1; centre is row and column."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (torch.hypot(row - centre[0] + 0.0, column - centre[1] + 0.0) <= radius).float()[None, None]


def image(*, seed: int = 0) -> Tensor:
    """A smooth random image with two equal speckled lesions, at CENTRE and ELSEWHERE, [1, 1, SIDE, SIDE] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 6, 6, generator=generator) - 0.8
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    speckle = 0.4 + 0.2 * torch.randn(1, 1, SIDE, SIDE, generator=generator)
    return (smooth + speckle * (disc(CENTRE) + disc(ELSEWHERE))).clamp(-1, 1)


TERMS = {
    "masked_error": masked_error,
    "ssim": lesion_ssim_loss,
    "perceptual": lambda estimate, target, mask: lesion_perceptual(estimate, target, mask, features=FEATURES),
}


# Outside the lesion nothing changes


def gradient(config: LesionLossConfig, *, sigma: float = 0.1) -> tuple[Tensor, Tensor]:
    """Gradient of plain loss plus lesion terms by the estimate, and the mask; two images, the second one without a lesion."""
    target = torch.cat([image(), image(seed=1)])
    mask = torch.cat([disc(CENTRE), torch.zeros(1, 1, SIDE, SIDE)])
    estimate = (target + 0.2 * torch.randn(target.shape, generator=torch.Generator().manual_seed(2))).requires_grad_()
    level = torch.full((2,), sigma)
    weight = 1 / level**2
    losses = weight * (estimate - target).square().flatten(1).mean(1)
    for term in lesion_terms(estimate, target, mask, level, error_weight=weight, config=config, features=FEATURES).values():
        assert term.shape == (2,) and term[1] == 0
        losses = losses + term
    return torch.autograd.grad(losses.sum(), estimate)[0], mask


@pytest.mark.parametrize("boundary_px", [0, 3])
@pytest.mark.parametrize("switched_on", [*NAMES, "all"])
def test_the_gradient_outside_the_mask_is_that_of_the_plain_loss_to_the_bit(switched_on: str, boundary_px: int) -> None:
    config = ALL if switched_on == "all" else LesionLossConfig(**{switched_on: 0.5})  # type: ignore[arg-type]
    plain, mask = gradient(LesionLossConfig())
    with_lesion, _ = gradient(replace(config, boundary_px=boundary_px))
    grown = soft_mask(mask, width_px=boundary_px) > 0
    assert torch.equal(with_lesion[~grown], plain[~grown])
    assert (with_lesion[grown] != plain[grown]).float().mean() > 0.99
    assert bool(with_lesion.isfinite().all())


def test_each_term_is_a_switch() -> None:
    target, mask, sigma = image(), disc(CENTRE), torch.tensor([0.1])
    estimate = target + 0.1

    def terms(config: LesionLossConfig) -> dict[str, Tensor]:
        return lesion_terms(estimate, target, mask, sigma, error_weight=torch.ones(1), config=config, features=FEATURES)

    everything = terms(ALL)
    assert set(everything) == set(NAMES.values()) and ALL.active
    for field, name in NAMES.items():
        without = terms(replace(ALL, **{field: 0.0}))
        assert set(without) == set(everything) - {name}
        assert all(torch.equal(without[other], everything[other]) for other in without)
    assert terms(LesionLossConfig()) == {} and not LesionLossConfig().active


def test_the_target_and_the_mask_get_no_gradient() -> None:
    target, mask = image().requires_grad_(), disc(CENTRE).requires_grad_()
    estimate = image(seed=3).requires_grad_()
    terms = lesion_terms(estimate, target, mask.detach(), torch.tensor([0.1]), error_weight=torch.ones(1), config=ALL, features=FEATURES)
    sum(terms.values(), torch.zeros(1)).sum().backward()  # type: ignore[no-untyped-call]
    assert target.grad is None and estimate.grad is not None


def test_a_batch_without_lesions_costs_nothing_and_is_nowhere_nan() -> None:
    target, sigma = image(), torch.tensor([0.5])
    for estimate in (target.clone().requires_grad_(), (target + 0.3).requires_grad_()):
        terms = lesion_terms(estimate, target, torch.zeros_like(target), sigma, error_weight=torch.ones(1), config=ALL, features=FEATURES)
        total = sum(terms.values(), torch.zeros(1))
        assert total.item() == 0
        slope = torch.autograd.grad(total.sum(), estimate)[0]
        assert torch.equal(slope, torch.zeros_like(slope))


def test_a_perfect_estimate_has_no_loss_and_a_finite_gradient() -> None:
    target, mask = image(), disc(CENTRE)
    for term in TERMS.values():
        estimate = target.clone().requires_grad_()
        loss = term(estimate, target, mask)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert bool(torch.autograd.grad(loss.sum(), estimate)[0].isfinite().all())


# Closed forms and other people's numbers


def test_masked_error_is_the_mean_inside_whatever_the_size_of_the_lesion() -> None:
    target = image()
    for radius in (1.0, 4.0, 20.0):
        mask = disc(CENTRE, radius=radius)
        off = target + 0.3 * mask + 9.0 * (1 - mask)
        assert masked_error(off, target, mask).item() == pytest.approx(0.09, rel=1e-4)
        torch.testing.assert_close(masked_error(off, target, 0.5 * mask), masked_error(off, target, mask))


def test_the_error_term_is_the_error_of_the_noise_estimate() -> None:
    """With x = x0 + sigma eps and eps_hat = (x - x0_hat) / sigma: eps - eps_hat = (x0_hat - x0) / sigma."""
    target, mask, sigma = image().double(), disc(CENTRE).double(), torch.tensor([0.7], dtype=torch.float64)
    eps = torch.randn(target.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy, estimate = target + 0.7 * eps, image(seed=4).double()
    eps_hat = (noisy - estimate) / 0.7
    term = lesion_terms(estimate, target, mask, sigma, error_weight=1 / sigma**2, config=LesionLossConfig(mask_weight=0.25))["lesion_error"]
    torch.testing.assert_close(term, 0.25 * (mask * (eps - eps_hat)).square().sum()[None] / mask.sum())


def test_ssim_agrees_with_others_away_from_the_borders() -> None:
    first, second = image().double(), (image() + 0.1 * torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))).double()
    inner = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)
    inner[..., 5:-5, 5:-5] = 1
    made = 1 - lesion_ssim_loss(first, second, inner)
    intensities = (first + 1) / 2, (second + 1) / 2
    torch.testing.assert_close(made, ssim(*intensities), rtol=1e-6, atol=0)
    theirs = oracle("pytorch_msssim").ssim(*intensities, data_range=1.0)
    assert made.item() == pytest.approx(theirs.item(), rel=1e-5)
    in_float32 = 1 - lesion_ssim_loss(first.float(), second.float(), inner.float())
    assert in_float32.item() == pytest.approx(theirs.item(), rel=1e-4)


def test_ssim_keeps_its_precision_under_autocast() -> None:
    target, mask = image(), disc(CENTRE)
    estimate = target + 0.02
    with torch.autocast("cpu", torch.bfloat16):
        reduced = lesion_ssim_loss(estimate, target, mask)
    assert torch.equal(reduced, lesion_ssim_loss(estimate, target, mask))


def test_a_lesion_at_the_border_counts_as_one_in_the_middle() -> None:
    flat, edge = torch.zeros(1, 1, SIDE, SIDE), torch.zeros(1, 1, SIDE, SIDE)
    edge[..., :8, :8] = 1
    middle = edge.roll((28, 28), dims=(2, 3))
    for mask in (edge, middle):
        c1 = 0.01**2
        assert lesion_ssim_loss(flat + 0.4, flat, mask).item() == pytest.approx(1 - (2 * 0.5 * 0.7 + c1) / (0.5**2 + 0.7**2 + c1), rel=1e-4)
        assert masked_error(flat + 0.4, flat, mask).item() == pytest.approx(0.16, rel=1e-4)


# Losing a lesion


def erased(image: Tensor, centre: tuple[int, int]) -> Tensor:
    mask = disc(centre, radius=RADIUS + 1)
    ring = disc(centre, radius=RADIUS + 4) * (1 - mask)
    return image * (1 - mask) + mask * (image * ring).sum() / ring.sum()


def blurred(image: Tensor, centre: tuple[int, int]) -> Tensor:
    mask = disc(centre, radius=RADIUS + 2)
    return image * (1 - mask) + mask * torch.nn.functional.avg_pool2d(image, 7, stride=1, padding=3, count_include_pad=False)


def shifted(image: Tensor, centre: tuple[int, int]) -> Tensor:
    mask = disc(centre, radius=RADIUS + 2)
    return image * (1 - mask) + mask * image.roll((3, 3), dims=(2, 3))


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("change", [erased, blurred, shifted])
def test_each_way_of_losing_the_lesion_counts_more_than_the_same_elsewhere(change: object, name: str) -> None:
    assert callable(change)
    target, mask, term = image(), disc(CENTRE), TERMS[name]
    here, there = term(change(target, CENTRE), target, mask).item(), term(change(target, ELSEWHERE), target, mask).item()
    assert there == pytest.approx(0, abs=1e-6)
    slightly = term(target + 0.02 * torch.randn(target.shape, generator=torch.Generator().manual_seed(6)), target, mask).item()
    assert here > 2 * slightly > 0


@pytest.mark.parametrize("name", TERMS)
def test_losing_more_of_the_lesion_costs_more(name: str) -> None:
    target, mask, term = image(), disc(CENTRE), TERMS[name]
    gone = erased(target, CENTRE)
    costs = [term(target + part * (gone - target), target, mask).item() for part in (0.25, 0.5, 0.75, 1.0)]
    assert costs == sorted(costs)


@pytest.mark.parametrize("name", TERMS)
def test_descent_on_a_term_brings_the_lesion_back(name: str) -> None:
    target, mask, term = image(), disc(CENTRE), TERMS[name]
    start = erased(target, CENTRE)
    estimate = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([estimate], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        term(estimate, target, mask).sum().backward()
        optimiser.step()
    assert term(estimate, target, mask).item() < 0.3 * term(start, target, mask).item()
    outside = mask == 0
    assert torch.equal(estimate.detach()[outside], start[outside])


# The crop


def test_the_crop_holds_the_lesion_with_a_margin_at_any_size_and_place() -> None:
    for centre, radius in (((24, 40), 3), ((24, 40), 12), ((3, 60), 4), ((32, 32), 40)):
        mask = disc(centre, radius=radius)
        crop = lesion_crop(mask, mask)
        assert crop.shape == (1, 1, CROP_PX, CROP_PX)
        side = min(SIDE, max(16, 1.5 * max(mask[0, 0].any(0).sum().item(), mask[0, 0].any(1).sum().item())))
        assert crop.mean().item() * side**2 == pytest.approx(mask.sum().item(), rel=0.05)  # nothing of the lesion is left out


def test_the_crop_is_a_window_on_the_image() -> None:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 20:40, 30:38] = 1  # 20 px high, so 30 px a side around (30, 34)
    ramps = torch.stack(torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij"))[None]
    crop = lesion_crop(ramps, mask)
    places = (torch.arange(CROP_PX) + 0.5) / CROP_PX * 30 - 15
    torch.testing.assert_close(crop[0, 0, :, 5], 30 + places, rtol=0, atol=1e-3)
    torch.testing.assert_close(crop[0, 1, 5, :], 34 + places, rtol=0, atol=1e-3)


def test_images_of_a_batch_do_not_touch_one_another() -> None:
    target, estimate = torch.cat([image(), image(seed=1), image(seed=2)]), torch.cat([image(seed=3), image(seed=4), image(seed=5)])
    masks = torch.cat([disc((10, 10)), torch.zeros(1, 1, SIDE, SIDE), disc((50, 30), radius=12)])
    for term in TERMS.values():
        together = term(estimate, target, masks)
        alone = torch.cat([term(estimate[i:i + 1], target[i:i + 1], masks[i:i + 1]) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_the_perceptual_term_needs_features() -> None:
    with pytest.raises(UsageError, match="needs features"):
        lesion_terms(image(), image(), disc(CENTRE), torch.ones(1), error_weight=torch.ones(1), config=ALL)


# Rim and noise level


def test_the_rim_falls_with_distance_alike_in_all_directions() -> None:
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    row, column = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(21.0) - 10, indexing="ij")
    expected = (1 - torch.hypot(row, column) / 5).clamp(min=0)
    torch.testing.assert_close(soft_mask(point, width_px=4)[0, 0], expected)
    mask = disc(CENTRE)
    grown = soft_mask(mask, width_px=3)
    assert torch.equal(grown[mask == 1], torch.ones(int(mask.sum()))) and torch.equal(grown > 0, soft_mask(grown, width_px=0) > 0)
    assert torch.equal(soft_mask(mask, width_px=0), mask)
    assert torch.equal(soft_mask(torch.zeros_like(mask), width_px=3), torch.zeros_like(mask))


def test_a_lesion_counts_fully_while_it_can_be_seen_and_then_fades() -> None:
    sigma = torch.tensor([0.01, 0.5, 1.0, 2.0, 10.0, 1000.0])
    weights = noise_level_weight(sigma, sigma_lesion=1.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 1.0, 0.4, 2 / 101, 2e-6]), rtol=1e-4, atol=1e-6)
    assert torch.equal(noise_level_weight(sigma, sigma_lesion=0.0), torch.zeros(6))
    each = noise_level_weight(torch.full((2,), 2.0), sigma_lesion=torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(each, torch.tensor([1.0, 0.4]))


def test_the_noise_that_hides_a_disc_has_a_closed_form() -> None:
    for radius, contrast in ((3, 0.2), (6, 0.2), (6, -0.4)):
        mask = disc(CENTRE, radius=radius)
        image = torch.where(mask > 0, 0.1 + contrast, 0.1)
        image = torch.cat([image, image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))])
        expected = abs(contrast) * math.sqrt(mask.sum().item())
        made = lesion_sigma(image, torch.cat([mask, mask]))
        assert made[0].item() == pytest.approx(expected, rel=1e-4) and made[1].item() == pytest.approx(expected, rel=0.15)
    assert lesion_sigma(image[:1], torch.zeros_like(mask)).item() == 0


def test_faint_terms_fade_at_high_noise_and_the_error_stays() -> None:
    target, mask = image(), disc(CENTRE)

    def terms(sigma: float, config: LesionLossConfig) -> dict[str, Tensor]:
        return lesion_terms(target + 0.2, target, mask, torch.tensor([sigma]), error_weight=torch.ones(1), config=config, features=FEATURES)

    low, high = terms(0.05, replace(ALL, sigma_lost=0.5)), terms(5.0, replace(ALL, sigma_lost=0.5))
    assert torch.equal(high["lesion_error"], low["lesion_error"])
    for name in ("lesion_ssim", "lesion_perceptual"):
        torch.testing.assert_close(high[name] / low[name], torch.tensor([2 * 0.25 / (0.25 + 25)]))
    own = terms(3.0, replace(ALL, sigma_most=1.5, sigma_least=0.0))["lesion_ssim"] / low["lesion_ssim"]
    torch.testing.assert_close(own, torch.tensor([2 * 1.5**2 / (1.5**2 + 9)]))  # this lesion, of 0.4 and 113 px, is lost at about 4
