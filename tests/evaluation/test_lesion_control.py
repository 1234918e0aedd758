"""Control: images that follow the request pass, images that ignore it fail, and what changes beside it is reported as a leak."""

import math

import numpy as np
import pytest

from synthorax.data.phantom import LesionSpec, PhantomSpec, draw_phantom
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.metrics.lesion_control import (
    contrast,
    leakage,
    lesion_agreement,
    mask_agreement,
    mean_score,
    measure_lesions,
    natural_spread,
    share_inside,
    side_agreement,
    sweep_response,
    usual_region,
)

SIDE = 48
VALUES = np.linspace(0.1, 0.9, 9)


def disc(*, x=0.7, y=0.5, size=0.4, severity=0.5, seed=0):
    """An image with one bright disc, and its outline; `size` is twice the root of its part of the image."""
    down, across = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    outline = (across - x) ** 2 + (down - y) ** 2 < size**2 / 4 / math.pi
    image = np.random.default_rng(seed).normal(90, 4, (SIDE, SIDE)) + 100 * severity * outline
    return image.clip(0, 255).astype(np.uint8), outline


def see_discs(requests, **options):
    images, outlines = map(np.stack, zip(*(disc(**request) for request in requests), strict=True))
    return measure_lesions(images, outlines * 0.9, outlines, finding="Nodule", **options)


def swept(factor, *, seeds=5, follows=True, **changes):
    """What is seen [V, seeds] of each factor when one is swept; without `follows`, each image's value is drawn at random."""
    rng = np.random.default_rng(1)
    requests = []
    for value in VALUES * 0.6 + 0.2:
        for seed in range(seeds):
            request = {"x": 0.65 + 0.02 * seed, "seed": seed, factor: value if follows else rng.uniform(0.2, 0.8)}
            requests.append(request | {name: change(value) for name, change in changes.items()})
    measured = see_discs(requests)
    return {name: measured.factor(name).reshape(9, seeds) for name in ("size", "x", "y", "contrast")}


@pytest.mark.parametrize("factor", ["size", "x", "y", "contrast"])
def test_what_follows_the_request_has_correlation_one_and_what_ignores_it_none(factor):
    asked = "severity" if factor == "contrast" else factor
    response = sweep_response(VALUES, swept(asked)[factor])
    assert response.spearman == response.low == response.high == response.typical == pytest.approx(1)
    deaf = sweep_response(VALUES, swept(asked, seeds=12, follows=False)[factor])
    assert deaf.low < 0.5 and abs(deaf.typical) < 0.4


def test_what_is_seen_of_a_disc_is_what_was_drawn():
    one = see_discs([{"x": 0.7, "y": 0.3, "size": 0.5, "severity": 0.6}, {"x": 0.2}])
    assert [one.size[0], one.x[0], one.y[0]] == pytest.approx([0.5, 0.7, 0.3], abs=0.02)
    assert one.contrast[0] == pytest.approx(60 / 255, abs=0.01)
    assert one.left.tolist() == [1, 0] and one.found.all() and one.score == pytest.approx(0.9)


def test_nothing_found_is_size_zero_no_place_and_no_side():
    image, outline = disc()
    nothing = measure_lesions(image[None], outline[None] * 0.1, np.zeros((1, SIDE, SIDE), bool), finding="Nodule")
    assert not nothing.found[0] and nothing.size[0] == nothing.contrast[0] == 0
    assert np.isnan([nothing.x[0], nothing.y[0], nothing.left[0]]).all() and nothing.score[0] == pytest.approx(0.1)


def test_a_single_bright_pixel_is_no_finding():
    image, _ = disc()
    speck = np.zeros((1, SIDE, SIDE), bool)
    speck[0, 3, 3] = True
    assert not measure_lesions(image[None], speck * 1.0, speck, finding="Nodule").found[0]
    assert measure_lesions(image[None], speck * 1.0, speck, finding="Nodule").score[0] < 0.2


@pytest.mark.parametrize(("finding", "sign"), [("Nodule", 1), ("Effusion", 1), ("Pneumothorax", -1), ("Cardiomegaly", 1)])
def test_contrast_follows_the_severity_that_was_drawn(finding, sign):
    severities = np.linspace(0.2, 1, 5)
    measured = []
    for severity in severities:
        images = [draw_phantom(PhantomSpec(seed=seed, lesions=(LesionSpec(finding=finding, size=0.6, severity=severity),)), size=64)
                 for seed in (3, 4, 5)]
        outlines, lungs = (np.stack([image.masks[name] > 0 for image in images]) for name in (finding, "lung"))
        measured.append(sign * contrast(np.stack([image.image for image in images]), outlines, lungs=lungs))
    response = sweep_response(severities, measured)
    assert response.spearman == pytest.approx(1) and response.typical > 0.95


def test_contrast_does_not_look_beyond_the_lungs_or_at_exposure():
    image, outline = disc(severity=0.4)
    lung = np.zeros_like(outline)
    lung[:, : SIDE * 3 // 4] = True
    beyond = image.copy()
    beyond[:, SIDE * 7 // 8:] = 255
    plain, spoilt = (contrast(each[None], outline[None], lungs=lung[None])[0] for each in (image, beyond))
    assert plain == spoilt == pytest.approx(40 / 255, abs=0.01)
    brighter = np.clip(image.astype(int) + 30, 0, 255).astype(np.uint8)
    assert contrast(brighter[None], outline[None])[0] == pytest.approx(contrast(image[None], outline[None])[0])
    assert np.isnan(contrast(image[None], np.zeros_like(outline)[None])[0])


def test_the_usual_region_is_where_most_of_a_sweep_agrees():
    outlines = np.zeros((5, 2, 4, 4), bool)
    outlines[1:, 0, :2] = True  # not found at the faintest
    outlines[4, 0] = True  # everywhere at the strongest
    outlines[2, 1, 3] = True  # found once only
    region = usual_region(outlines)
    assert region.shape == outlines.shape
    assert (region[:, 0, :2].all() and not region[:, 0, 2:].any()) and (region[:, 1, 3].all() and not region[:, 1, :3].any())


def test_a_sweep_counts_images_on_which_nothing_was_found():
    measured = np.tile(VALUES[:, None], (1, 3))
    measured[0] = math.nan
    measured[4, 1] = math.nan
    response = sweep_response(VALUES, measured)
    assert response.spearman == pytest.approx(1) and response.seen_share == pytest.approx(23 / 27)
    assert response.to_dict()["means"][0] is None


def test_what_never_changes_has_correlation_zero():
    assert sweep_response(VALUES, np.ones((9, 4))).spearman == 0


def test_the_interval_of_a_sweep_widens_with_disagreeing_seeds():
    rising = VALUES[:, None] * np.array([[1, 1, 1, -1, -1]])
    response = sweep_response(VALUES, rising + 0.001 * VALUES[:, None] ** 2)
    assert response.spearman == pytest.approx(1) and response.low < -0.9 and response.typical == pytest.approx(0.2)


def test_a_leaking_control_is_reported_as_leaking_and_a_clean_one_is_not():
    spreads = {"x": 0.5, "y": 0.5, "contrast": 0.3}

    def leaks(**changes):
        return {leak.factor: leak for leak in leakage({name: swept("size", **changes)[name] for name in spreads}, spreads)}

    clean = leaks()
    assert all(leak.change < 0.06 for leak in clean.values())
    leaking = leaks(y=lambda value: 0.3 + 0.5 * value)
    assert leaking["y"].change == pytest.approx(0.6 * 0.8 * 0.5 / 0.5, abs=0.05) and leaking["y"].p < 0.01
    assert leaking["y"].change > 3 * leaking["y"].by_chance and leaking["x"].change < 0.06
    assert leaks(severity=lambda value: 0.2 + value)["contrast"].change > 0.3


def test_chance_alone_is_no_leak():
    rng = np.random.default_rng(0)
    p = [leakage({"y": rng.normal(size=(9, 6))}, {"y": 1.0}, seed=seed, num=200)[0].p for seed in range(40)]
    assert np.mean(np.array(p) < 0.1) < 0.25 and np.median(p) > 0.2
    assert leakage({"y": np.ones((9, 6))}, {"y": 1.0})[0].p == 1


def test_natural_spread_leaves_out_what_is_not_known():
    assert natural_spread([*np.linspace(0, 1, 101), math.nan]) == pytest.approx(0.9)
    with pytest.raises(InputError, match="too few"):
        natural_spread([1.0, math.nan])


def test_mask_agreement_averages_images_and_counts_those_without_any_mask():
    outlines = np.stack([disc(x=x)[1] for x in np.linspace(0.2, 0.8, 12)])
    perfect = mask_agreement(outlines, outlines)
    assert (perfect.value, perfect.low, perfect.high) == (1, 1, 1)
    shifted = mask_agreement(outlines, np.roll(outlines, 2, axis=2))
    assert 0.4 < shifted.value < 0.8
    assert mask_agreement(outlines, outlines[::-1]).value < 0.3
    empty = np.zeros((3, SIDE, SIDE), bool)
    counted = mask_agreement(np.concatenate([outlines, empty]), np.concatenate([outlines, empty]))
    assert counted.value == 1 and counted.n_synthetic == 12 and "3 images skipped" in counted.note


def test_images_of_one_patient_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).uniform(0.4, 0.9, 10), 4)
    alone = mean_score(values, metric="mask_iou")
    together = mean_score(values, metric="mask_iou", patients=[str(number // 4) for number in range(40)])
    assert alone.value == together.value and together.high - together.low > 1.5 * (alone.high - alone.low)


def test_each_of_two_lesions_counts_for_itself():
    left, right = disc(x=0.75)[1], disc(x=0.25)[1]
    both = (left | right)[None]
    assert lesion_agreement(both, both)[0].tolist() == [1, 1]
    assert sorted(lesion_agreement(both, left[None])[0]) == [0, 1]
    assert lesion_agreement(np.zeros_like(both), both)[0].size == 0
    spoilt = left | right | disc(x=0.75, y=0.15)[1]
    assert sorted(np.round(lesion_agreement(both, spoilt[None])[0], 1)) == [0.5, 1]


def test_share_of_a_lesion_inside_its_box():
    boxes = np.zeros((3, SIDE, SIDE), bool)
    boxes[:, :, SIDE // 2:] = True
    found = np.stack([disc(x=0.75)[1], disc(x=0.5)[1], np.zeros((SIDE, SIDE), bool)])
    assert share_inside(boxes, found) == pytest.approx([1, 0.5, 0], abs=0.02)


def test_sides_agree_only_where_the_lesion_is_found_on_the_side_asked_for():
    measured = see_discs([{"x": 0.7}, {"x": 0.75}, {"x": 0.3}, {"x": 0.25}])
    assert side_agreement([1, 1, 0, 0], measured).value == 1
    assert side_agreement([0, 0, 1, 1], measured).value == 0
    image, outline = disc()
    missing = measure_lesions(image[None], outline[None] * 0.1, np.zeros((1, SIDE, SIDE), bool), finding="Nodule")
    score = side_agreement([1], missing)
    assert score.value == 0 and "1 images without" in score.note


def test_wrong_use_is_refused():
    image, outline = disc()
    with pytest.raises(UsageError, match="must be"):
        measure_lesions(image[None], outline[None] * 1.0, outline, finding="Nodule")
    with pytest.raises(UsageError, match="choose from"):
        see_discs([{}]).factor("colour")
    with pytest.raises(UsageError, match="at least 3 values"):
        sweep_response([0, 1], np.zeros((2, 4)))
    with pytest.raises(InputError, match="an interval needs two"):
        mean_score([math.nan, 0.5], metric="mask_iou")
