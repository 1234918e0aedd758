"""Lesion signal-to-noise: planted discs have a closed form, small ones are lost first, and the advice keeps its promise."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synthorax.diffusion.noise import lognormal_levels, sampling_sigmas
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.metrics.lesion_snr import (
    LesionNoiseReport,
    lesion_noise_plot,
    lesion_noise_table,
    measure_lesions,
    report_lesion_noise,
    share_below,
    training_levels,
)
from synthorax.types import ImageSet, Masks, Study

SIDE = 96
Disc = tuple[float, float, float, float]
"""row, column, radius in px, contrast in [-2, 2]"""


def inside(disc: Disc) -> NDArray[np.bool_]:
    row, column = np.mgrid[:SIDE, :SIDE]
    return np.asarray(np.hypot(row - disc[0], column - disc[1]) <= disc[2])


def planted(image_set: Sequence[Sequence[Disc]], *, noise: float = 0.02, value: int = 255) -> ImageSet:
    """Images of 0 with discs, all of them outlined as nodules; an image without discs has no mask."""
    rng = np.random.default_rng(0)
    images, pixels, index = [], [], []
    for discs in image_set:
        image = rng.normal(0, noise, (SIDE, SIDE))
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        for disc in discs:
            image[inside(disc)] += disc[3]
            mask[inside(disc)] = value
        images.append(np.round((image.clip(-1, 1) + 1) / 2 * 65535).astype(np.uint16))
        index.append(len(pixels) if discs else Masks.NOT_STATED)
        pixels += [mask] if discs else []
    masks = Masks(names=("Nodule",), pixels=np.array(pixels, dtype=np.uint8).reshape(-1, SIDE, SIDE),
                  index=np.array(index, dtype=np.int32)[:, None])
    return ImageSet(pixels=np.stack(images), studies=tuple(Study(file_name=f"{number}.png") for number in range(len(image_set))),
                 findings=("Nodule",), labels=np.ones((len(image_set), 1), dtype=np.float32), digest="", masks=masks)


def with_organ(images: ImageSet, name: str, organ: NDArray[np.bool_]) -> ImageSet:
    assert images.masks is not None
    masks = images.masks
    pixels = np.concatenate([masks.pixels, 255 * organ[None].astype(np.uint8)])
    column = np.full((len(images), 1), len(masks.pixels), dtype=np.int32)
    return replace(images, masks=Masks(names=(name, *masks.names), pixels=pixels, index=np.concatenate([column, masks.index], axis=1)))


def sizes(*radii: float, contrast: float = 0.3) -> list[list[Disc]]:
    return [[(48.0, 40.0, radius, contrast)] for radius in radii]


# Measuring


@pytest.mark.parametrize("contrast", [0.1, 0.4, -0.3])
@pytest.mark.parametrize("radius", [2.0, 5.0, 15.0])
def test_a_planted_disc_is_lost_where_the_closed_form_says(radius: float, contrast: float) -> None:
    disc = (48.0, 40.0, radius, contrast)
    (lesion,), _ = measure_lesions(planted([[disc]]))
    assert lesion.area_px == inside(disc).sum()
    assert lesion.contrast == pytest.approx(contrast, abs=0.012)
    assert lesion.sigma_lost == pytest.approx(abs(contrast) * math.sqrt(inside(disc).sum()), rel=0.12 if contrast == 0.1 else 0.04)
    assert lesion.finding == "Nodule" and lesion.image == 0 and not lesion.in_box


def test_at_that_noise_level_the_matched_filter_sees_it_at_one_standard_deviation() -> None:
    disc = (48.0, 40.0, 4.0, 0.3)
    (lesion,), _ = measure_lesions(planted([[disc]], noise=0.0))
    noise = np.random.default_rng(1).normal(0, lesion.sigma_lost, (4000, int(inside(disc).sum())))
    without, with_lesion = noise.sum(1), (noise + disc[3]).sum(1)
    assert (with_lesion.mean() - without.mean()) / without.std() == pytest.approx(1, rel=0.05)
    (later,), _ = measure_lesions(planted([[disc]], noise=0.0), threshold=2.0)
    assert later.sigma_lost == pytest.approx(lesion.sigma_lost / 2)


def test_larger_and_denser_lesions_survive_more_noise() -> None:
    lesions, _ = measure_lesions(planted(sizes(2, 4, 8, 16)))
    lost = [lesion.sigma_lost for lesion in lesions]
    assert lost == sorted(lost)
    assert lost[2] / lost[1] == pytest.approx(2, rel=0.1)  # sqrt of the area is the diameter
    faint, dense = (measure_lesions(planted(sizes(6, contrast=contrast)))[0][0].sigma_lost for contrast in (0.1, 0.4))
    assert dense / faint == pytest.approx(4, rel=0.1)


def test_two_lesions_of_an_image_are_two_and_not_each_others_surroundings() -> None:
    """A disc in the middle of a denser ring lesion, with 2 px between them."""
    images = planted([[(48.0, 40.0, 4.0, 0.3)]])
    assert images.masks is not None
    ring = inside((48.0, 40.0, 10.0, 0)) & ~inside((48.0, 40.0, 6.0, 0))
    images.pixels[0][ring] = round((0.8 + 1) / 2 * 65535)
    images.masks.pixels[0][ring] = 255
    small, large = sorted(measure_lesions(images)[0], key=lambda lesion: lesion.area_px)
    assert small.contrast == pytest.approx(0.3, abs=0.012) and large.contrast == pytest.approx(0.8, abs=0.012)


def test_a_wire_across_it_changes_little() -> None:
    images = planted([[(48.0, 40.0, 8.0, 0.3)]])
    images.pixels[0, 46:49, :] = 65535
    (lesion,), _ = measure_lesions(images)
    assert lesion.contrast == pytest.approx(0.3, abs=0.05)


def test_lesions_are_compared_with_lung_where_there_is_a_mask_of_it() -> None:
    """Half in front of a bright chest wall: against all that is around it, the lesion would look dark."""
    disc, lung = (48.0, 40.0, 8.0, 0.2), np.zeros((SIDE, SIDE), dtype=bool)
    lung[:, :44] = True
    images = planted([[disc]])
    images.pixels[0][~lung & ~inside(disc)] = 65000
    assert measure_lesions(images)[0][0].contrast < 0.1
    lesions, _ = measure_lesions(with_organ(images, "lung", lung))
    assert [lesion.finding for lesion in lesions] == ["Nodule"]  # the lung is no lesion
    assert lesions[0].contrast == pytest.approx(0.2, abs=0.02)
    assert measure_lesions(with_organ(images, "lung", inside(disc)))[0][0].contrast < 0.1  # a lung with nothing beside the lesion


def test_pixels_that_are_partly_inside_count_partly_and_boxes_wholly() -> None:
    images = planted(sizes(6.0))
    assert images.masks is not None
    partly = images.masks.pixels.copy()
    partly[0, 48, 30] = partly[0, 48, 31] = partly[0, 48, 32] = partly[0, 48, 33] = 51  # a tail that is a fifth inside
    tail = replace(images, masks=replace(images.masks, pixels=partly))
    assert measure_lesions(tail)[0][0].area_px == pytest.approx(inside((48, 40, 6, 0)).sum() + 4 * 0.2)
    (boxed,), _ = measure_lesions(planted(sizes(6.0), value=128))
    assert boxed.in_box and boxed.area_px == inside((48, 40, 6, 0)).sum()


def test_crumbs_of_a_mask_are_no_lesions_and_a_faint_pixel_is_one_where_it_is_all() -> None:
    images = planted([[(48.0, 40.0, 12.0, 0.3), (10.0, 10.0, 0.5, 0.0)]])
    assert len(measure_lesions(images)[0]) == 1
    alone = planted([[(48.0, 40.0, 0.5, 0.3)]], value=60)
    (lesion,), _ = measure_lesions(alone)
    assert lesion.area_px == pytest.approx(60 / 255) and lesion.contrast == pytest.approx(0.3, abs=0.05)


# The report


@pytest.fixture(scope="module")
def report() -> LesionNoiseReport:
    radii = np.linspace(1.5, 14, 30)
    return report_lesion_noise(planted([*sizes(*radii), [], []]))


def test_images_without_a_mask_are_counted_and_skipped(report: LesionNoiseReport) -> None:
    assert (report.num_images, report.num_without_lesions, len(report.lesions), report.size_px) == (32, 2, 30, SIDE)
    assert report.num_filling_the_image == 0


def test_size_classes_are_thirds_or_as_asked_and_rise(report: LesionNoiseReport) -> None:
    assert [row.num for row in report.classes] == [10, 10, 10]
    medians = [row.sigma_lost[2] for row in report.classes]
    assert medians == sorted(medians) and all(list(row.sigma_lost) == sorted(row.sigma_lost) for row in report.classes)
    asked = report_lesion_noise(planted(sizes(2, 3, 8, 12)), edges_px=(50,))
    assert [(row.num, row.to_px) for row in asked.classes] == [(2, 50.0), (2, float(inside((48, 40, 12, 0)).sum()))]


def test_the_lesion_to_care_for_leaves_the_asked_part_behind(report: LesionNoiseReport) -> None:
    lost = np.array([lesion.sigma_lost for lesion in report.lesions])
    assert (lost < report.sigma_lost).mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("contrast", [0.05, 0.4])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
def test_the_advice_keeps_its_promise_when_it_is_followed(part: float, contrast: float) -> None:
    report = report_lesion_noise(planted(sizes(2, 3, 4, 6, contrast=contrast), noise=0.002), part=part)
    advice = report.advice
    normal = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    drawn = lognormal_levels(torch.rand(40_000), normal, mean=advice.sigma_mean, std=advice.sigma_std, sigma_min=1e-3, sigma_max=80.0)
    assert (drawn <= report.sigma_lost).float().mean().item() >= part - 0.01
    assert advice.sigma_mean <= -0.8 and advice.share_training >= part
    levels = sampling_sigmas(advice.schedule, 400, sigma_min=advice.sigma_min, sigma_max=advice.sigma_max)[:-1]
    visited = (levels <= report.sigma_lost).double().mean().item()
    assert visited == pytest.approx(advice.share_sampling, abs=0.01)
    assert advice.holds == (advice.share_sampling >= part)
    for row in report.noise_schedules:
        levels_there = training_levels(mean=-0.8, std=1.4)[row.name]
        assert share_below(levels_there, report.sigma_lost) == row.share
        assert share_below(levels_there * row.shift, report.sigma_lost) >= part
        assert (row.shift == 1) == (row.share >= part)


def test_levels_of_training_are_those_of_the_noise_room() -> None:
    levels = training_levels(mean=-0.5, std=1.2)
    assert all(len(sigmas) == 1000 and bool((np.diff(sigmas) > 0).all()) for sigmas in levels.values())
    assert share_below(levels["lognormal"], math.exp(-0.5)) == pytest.approx(0.5) == share_below(levels["flow-uniform"], 1.0)
    assert share_below(levels["lognormal"], math.exp(0.7)) == pytest.approx(0.8413, abs=1e-3)
    assert share_below(levels["flow-uniform"], 3.0) == pytest.approx(0.75, abs=1e-3)
    # Half of the variance is image at sigma 1: cosine gets there half-way, linear after a quarter (Fig. 5, Nichol and Dhariwal 2021).
    assert share_below(levels["cosine"], 1.0) == pytest.approx(0.5, abs=0.01)
    assert share_below(levels["linear"], 1.0) == pytest.approx(0.26, abs=0.01)


def test_the_noise_schedules_rank_as_known_for_small_lesions(report: LesionNoiseReport) -> None:
    share = {row.name: row.share for row in report_lesion_noise(planted(sizes(2, 2, 3, 3, contrast=0.1))).noise_schedules}
    assert share["linear"] < share["cosine"] < share["lognormal"]


def test_smaller_lesions_ask_for_lower_noise() -> None:
    small, large = (report_lesion_noise(planted(sizes(*radii, contrast=0.1))) for radii in ((1.5, 2, 2.5), (10, 12, 14)))
    assert small.advice.sigma_mean < large.advice.sigma_mean == -0.8
    assert small.sigma_lost < large.sigma_lost


def test_sampling_starts_at_the_greatest_distance_between_images() -> None:
    images = planted(sizes(4, 6, 8), noise=0.0)
    images.pixels[1] = 65535
    expected = np.linalg.norm((images.pixels[1].astype(float) - images.pixels[0]) / 65535 * 2)
    others = np.linalg.norm((images.pixels[1].astype(float) - images.pixels[2]) / 65535 * 2)
    assert report_lesion_noise(images).advice.sigma_max == pytest.approx(max(expected, others), rel=1e-6)


def test_the_report_can_be_written_down(report: LesionNoiseReport) -> None:
    record = json.loads(json.dumps(report.to_dict()))
    assert record["advice"]["schedule"] in ("karras", "exponential") and len(record["lesions"]) == 30
    assert report.lesions[0].to_dict() == record["lesions"][0]
    table = lesion_noise_table(report)
    assert table.count("\n") == 13 and all(name in table for name in ("linear", "cosine", "flow-uniform", "lognormal"))
    plot = lesion_noise_plot(report)
    assert ElementTree.fromstring(plot).tag.endswith("svg") and plot == lesion_noise_plot(report)
    assert ">0.01<" in plot and "$" not in plot


# Bad input


def test_images_without_lesion_masks_are_refused_with_a_remedy() -> None:
    images = planted(sizes(4))
    with pytest.raises(InputError, match="masks=True"):
        report_lesion_noise(replace(images, masks=None))
    with pytest.raises(InputError, match="lesion_mask"):
        report_lesion_noise(planted([[], []]))
    assert images.masks is not None
    organs = replace(images, masks=replace(images.masks, names=("lung",)))
    with pytest.raises(InputError, match="without lesion masks"):
        report_lesion_noise(organs)
    whole = replace(images, masks=replace(images.masks, pixels=np.full((1, SIDE, SIDE), 255, dtype=np.uint8)))
    with pytest.raises(InputError, match="something around it"):
        report_lesion_noise(whole)


def test_masks_of_other_images_are_noticed() -> None:
    images = planted(sizes(3, 4, 5), noise=0.0)
    assert images.masks is not None
    elsewhere = replace(images, masks=replace(images.masks, pixels=np.roll(images.masks.pixels, (25, 30), axis=(1, 2))))
    with pytest.raises(InputError, match="do not differ from what is around them"):
        report_lesion_noise(elsewhere)


@pytest.mark.parametrize("settings", [{"quantile": 0.0}, {"part": 1.0}, {"threshold": -1.0}, {"threshold": math.nan}, {"sigma_std": 0.0}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        report_lesion_noise(planted(sizes(4)), **settings)  # type: ignore[arg-type]
