"""The anatomy guard: real images pass at the stated rate, and what is planted is rejected for a reason that names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from synthorax.data.phantom import LesionSpec, PhantomSpec, draw_phantom, draw_whole_lungs
from synthorax.errors import InputError, UsageError
from synthorax.judges.anatomy import TRAITS, cardiothoracic_ratio, measure_anatomy, traits_of
from synthorax.judges.anatomy_guard import (
    ANATOMY_RATE,
    APPEARANCE,
    SHARES,
    AnatomyReference,
    _Limits,
    check_anatomy,
    check_edit,
    edge_correlation,
    too_few,
)
from synthorax.judges.cross_fit import patient_folds
from synthorax.judges.lungs import LungMasks, load_lung_model, segment_lungs
from synthorax.judges.planted_anatomy import FAILURES
from synthorax.judges.plausible_chest import INTACT, MODEL_NAME, load_chest_judge, save_chest_judge
from synthorax.judges.segmenter import dice

Images = NDArray[np.uint8]
LIMITS = ANATOMY_RATE * SHARES[:, None]
"""p up to which each way rejects"""


def draw_thoraces(num: int, *, seed: int, px: int = 128) -> tuple[Images, LungMasks]:
    """Healthy drawn thoraces with their exact lungs and hearts."""
    specs = [PhantomSpec(seed=1000 * seed + number, view="AP" if number % 3 == 0 else "PA") for number in range(num)]
    images = [draw_phantom(spec, size=px) for spec in specs]
    lungs = [draw_whole_lungs(spec, size=px) for spec in specs]
    return np.stack([image.image for image in images]), LungMasks(
        right=np.stack([lung["right"] for lung in lungs]), left=np.stack([lung["left"] for lung in lungs]),
        heart=np.stack([image.masks["heart"] > 0 for image in images]))


@pytest.fixture(scope="module")
def reference() -> AnatomyReference:
    images, _ = draw_thoraces(100, seed=1)
    return AnatomyReference.fit(images, views=[""] * 100, patients=[str(number) for number in range(100)])


def numbers(num: int, *, seed: int, **changed: float) -> dict[str, NDArray[np.float64]]:
    """Traits of images without images: normal numbers of unit variance, counts of one."""
    rng = np.random.default_rng(seed)
    found = {key: np.ones(num) if trait.counts else rng.standard_t(6, num) for key, trait in TRAITS.items()}
    return found | {key: np.full(num, value) for key, value in changed.items()}


def of_numbers(num: int, *, views: tuple[str, ...] = ("",)) -> AnatomyReference:
    groups = {"": np.arange(num)} | {view: np.arange(number, num, len(views)) for number, view in enumerate(views) if view}
    return AnatomyReference(model=load_lung_model(), judge=load_chest_judge(), traits=numbers(num, seed=0), odds=looks(num, seed=0),
                            groups=groups, folds=patient_folds([str(number) for number in range(num)], folds=5, seed=0))


def looks(num: int, *, seed: int) -> NDArray[np.float64]:
    """Log odds of images without images."""
    return np.random.default_rng([seed, 1]).standard_normal((num, len(load_chest_judge().classes) - 1))


def p_of(reference: AnatomyReference, new: dict[str, NDArray[np.float64]], odds: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    num = len(next(iter(new.values())))
    return reference._p(np.arange(len(reference.odds)), new, looks(num, seed=9) if odds is None else odds)


def test_as_many_real_images_are_rejected_as_is_stated_however_many_numbers_there_are() -> None:
    reference = of_numbers(400)
    p = p_of(reference, numbers(2000, seed=1))
    assert np.abs((p <= LIMITS).mean(axis=1) - LIMITS[:, 0]).max() < 0.012
    assert np.abs(np.median(p, axis=1) - 0.5).max() < 0.2


@pytest.mark.parametrize(("key", "value"), [("cardiothoracic_ratio", 12.0), ("air", -15.0), ("hearts", 2.0), ("left_lungs", 0.0)])
def test_one_number_out_of_range_is_enough(key: str, value: float) -> None:
    reference = of_numbers(400)
    planted = numbers(20, seed=2, **{key: value})
    assert (p_of(reference, planted) <= LIMITS).any(axis=0).all()
    found = _Limits.of(reference.traits, np.arange(400)).strangest({name: float(values[0]) for name, values in planted.items()},
                                                                   together=False)
    assert found.trait == TRAITS[key].name and found.value == value and not found.low <= value <= found.high


def test_what_real_images_often_get_wrong_does_not_hide_what_they_never_do() -> None:
    """A heart is missed on one real image in ten: then a missing heart says little, and a ratio out of range still says all."""
    reference = of_numbers(400)
    reference.traits["hearts"][:40] = 0
    assert (p_of(reference, numbers(20, seed=3, hearts=0.0))[:APPEARANCE] > LIMITS[:APPEARANCE]).all(axis=0).mean() > 0.7
    assert (p_of(reference, numbers(20, seed=3, cardiothoracic_ratio=12.0)) <= LIMITS).any(axis=0).all()


def test_numbers_that_never_go_together_are_strange_though_each_is_usual() -> None:
    reference = of_numbers(400)
    reference.traits["aspect"][:] = reference.traits["lung_width"] + 0.05 * reference.traits["aspect"]
    together, apart = numbers(40, seed=4, lung_width=2.0, aspect=2.0), numbers(40, seed=4, lung_width=2.0, aspect=-2.0)
    p = p_of(reference, apart)
    assert np.median(p[1]) < 0.1 < np.median(p_of(reference, together)[1])
    assert (p[0] > LIMITS[0]).mean() > 0.7


def test_an_unknown_number_says_much_where_real_images_have_it() -> None:
    usual, rare = numbers(98, seed=0), numbers(98, seed=0)
    rare["aspect"][:49] = np.nan
    answers = [_Limits.of(real, np.arange(98)).tails["aspect"].strangeness(np.array([np.nan]))[0] for real in (usual, rare)]
    assert answers == pytest.approx([2.0, np.log10(2)])
    empty = numbers(10, seed=1) | {key: np.full(10, np.nan) for key, trait in TRAITS.items() if not trait.counts}
    assert (p_of(of_numbers(400), empty)[1] <= LIMITS[1]).all()


def test_too_few_real_images_set_no_limits() -> None:
    images, _ = draw_thoraces(4, seed=3, px=64)
    with pytest.raises(InputError, match="4 real frontal images set no limits"):
        AnatomyReference.fit(images, views=["PA"] * 4, patients=list("abcd"))
    assert "at least 33" in too_few(["PA"] * 32) and not too_few(["PA"] * 33)
    assert too_few(["LATERAL"] * 90)


def test_the_model_finds_the_exact_lungs_and_hearts_of_drawings() -> None:
    images, exact = draw_thoraces(24, seed=5)
    found = segment_lungs(images)
    assert np.median(dice(found.right, exact.right)) > 0.93 and np.median(dice(found.left, exact.left)) > 0.9
    assert np.median(dice(found.heart, exact.heart)) > 0.9
    ours, theirs = (cardiothoracic_ratio(one.both, one.heart) for one in (found, exact))
    assert np.abs(ours - theirs).mean() < 0.03


@pytest.fixture(scope="module")
def other_people() -> tuple[Images, LungMasks]:
    return draw_thoraces(30, seed=2)


def test_drawings_of_other_people_pass(reference: AnatomyReference, other_people: tuple[Images, LungMasks]) -> None:
    assert sum(map(bool, check_anatomy(other_people[0], reference))) <= 4


@pytest.mark.parametrize("what", FAILURES)
def test_each_planted_failure_is_rejected(what: str, reference: AnatomyReference, other_people: tuple[Images, LungMasks]) -> None:
    """`docs/studies/anatomy.md` states this rate for drawings."""
    reasons = check_anatomy(FAILURES[what](*other_people), reference)
    assert sum(map(bool, reasons)) >= 0.8 * len(reasons)


def test_a_look_that_no_real_image_has_is_enough_and_the_reason_says_what_it_is_like() -> None:
    reference = of_numbers(400)
    usual = numbers(20, seed=6)
    kind = reference.judge.classes.index("a mirrored image") - 1
    odds = looks(20, seed=8)
    assert (p_of(reference, usual, np.full_like(odds, -9.0))[APPEARANCE] == 1).all()
    odds[:, kind] = 9.0
    assert (p_of(reference, usual, odds)[APPEARANCE] <= LIMITS[APPEARANCE]).all()
    found = reference.check_numbers(usual, odds, views=["PA"] * 20)
    assert all(one is not None for one in found)
    assert any("looks like a mirrored image: log odds 9.0, and at most 1." in str(one) for one in found)


def test_what_a_set_looks_like_as_a_rule_does_not_hide_another_look() -> None:
    """Where every real image looks cut off, one that looks a little mirrored is strange, though it looks cut off much more."""
    reference = of_numbers(400)
    cut, kind = (reference.judge.classes.index(one) - 1 for one in ("a chest that is cut off", "a mirrored image"))
    reference.odds[:, cut] += 20
    odds = looks(20, seed=8)
    odds[:, cut] += 20
    assert (p_of(reference, numbers(20, seed=6), odds)[APPEARANCE] > LIMITS[APPEARANCE]).mean() > 0.8
    odds[:, kind] = 9.0
    assert (p_of(reference, numbers(20, seed=6), odds)[APPEARANCE] <= LIMITS[APPEARANCE]).all()


def test_the_judge_of_chests_is_read_as_it_was_written(tmp_path: Path) -> None:
    judge, (images, _) = load_chest_judge(), draw_thoraces(3, seed=7)
    assert judge.classes[0] == INTACT and judge.name == MODEL_NAME
    save_chest_judge(judge, tmp_path / "judge.safetensors")
    again = load_chest_judge(tmp_path / "judge.safetensors")
    assert again.digest == judge.digest and (again.odds(images) == judge.odds(images)).all()
    assert judge.odds(images[1:2]) == pytest.approx(judge.odds(images)[1:2], abs=1e-4)
    assert judge.odds(images[:0]).shape == (0, len(judge.classes) - 1)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError):
        load_chest_judge(tmp_path / "other.safetensors")


def test_a_reason_names_the_number_and_where_real_images_lie(reference: AnatomyReference) -> None:
    images, organs = draw_thoraces(6, seed=4)
    reasons = check_anatomy(FAILURES["noise"](images, organs), reference)
    assert all("real images" in reason for found in reasons for reason in found) and any(reasons)
    assert check_anatomy(images, reference, views=["LATERAL"] * 6) == [()] * 6


def test_numbers_of_boxes_are_those_of_a_ruler() -> None:
    lungs, heart = np.zeros((1, 100, 100), bool), np.zeros((1, 100, 100), bool)
    lungs[0, 10:60, 10:40] = lungs[0, 10:60, 60:90] = True
    heart[0, 40:60, 35:75] = True
    assert cardiothoracic_ratio(lungs, heart)[0] == pytest.approx(40 / 80)
    assert measure_anatomy(lungs)["right_lung_share"][0] == pytest.approx(0.5)
    assert np.isnan(cardiothoracic_ratio(lungs, np.zeros_like(heart))[0])


def test_traits_do_not_depend_on_the_size_of_the_image() -> None:
    images, _ = draw_thoraces(4, seed=6)
    large = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    small, big = traits_of(images), traits_of(large)
    for key in ("lung_area", "aspect", "cardiothoracic_ratio"):
        assert small[key] == pytest.approx(big[key], abs=1e-3)


def pair(lesion: LesionSpec) -> tuple[Images, Images, NDArray[np.bool_]]:
    """A drawing before and after a finding is drawn into it, and the finding's mask."""
    spec = PhantomSpec(seed=77)
    after = draw_phantom(replace(spec, lesions=(lesion,)), size=128)
    return draw_phantom(spec, size=128).image[None], after.image[None], after.masks[lesion.finding][None] > 0


def test_an_edit_inside_its_region_keeps_the_anatomy() -> None:
    before, after, region = pair(LesionSpec(finding="Nodule", side="right", size=0.5))
    wide = np.zeros_like(region)
    rows, columns = np.nonzero(region[0])
    wide[0, rows.min() - 3 : rows.max() + 4, columns.min() - 3 : columns.max() + 4] = True
    assert check_edit(before, after, wide) == [()]
    assert check_edit(before, before, np.zeros_like(region)) == [()]


def test_a_moved_image_and_a_larger_heart_are_said() -> None:
    before, after, region = pair(LesionSpec(finding="Cardiomegaly", size=1.0, severity=1.0))
    everywhere = np.ones_like(region)
    assert any("cardiothoracic ratio went from" in reason for reason in check_edit(before, after, everywhere)[0])
    assert not any("ratio" in reason for reason in check_edit(before, after, everywhere, heart_may_change=True)[0])
    moved = np.roll(before, 8, axis=1)
    reasons = check_edit(before, moved, np.zeros_like(region))[0]
    assert any("edges" in reason for reason in reasons) and any("Dice" in reason for reason in reasons)
    with pytest.raises(UsageError, match="one shape"):
        check_edit(before, after[:, :64], region)


def test_edges_correlate_with_themselves_whatever_the_contrast() -> None:
    images, _ = draw_thoraces(2, seed=8)
    everywhere = np.ones(images.shape, bool)
    assert edge_correlation(images, images, everywhere) == pytest.approx([1, 1])
    assert edge_correlation(images, 255 - images, everywhere) == pytest.approx([1, 1])
    assert (edge_correlation(images, images // 2, everywhere) > 0.98).all()
    assert (edge_correlation(images, np.ascontiguousarray(images[:, ::-1]), everywhere) < 0.6).all()
    flat = np.full_like(images, 90)
    assert edge_correlation(flat, flat, everywhere).tolist() == [1, 1]
