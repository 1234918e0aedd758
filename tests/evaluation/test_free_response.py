"""Free-response metrics against values worked out by hand, and failures made on purpose."""

import numpy as np
import pytest

from synthorax.errors import InputError, UsageError
from synthorax.evaluation.metrics.free_response import (
    found_lesions,
    free_response,
    free_response_scores,
    froc_points,
    jafroc,
    jafroc_interval,
    sensitivity_at,
    sensitivity_difference,
    sensitivity_interval,
)
from synthorax.judges.marks import LesionBoxes, Marks, strongest_places
from synthorax.types import Masks


def boxes(*lesions):
    """Lesions of (image, x, y, diameter)."""
    table = np.array(lesions, dtype=float).reshape(-1, 4)
    return LesionBoxes(image=table[:, 0].astype(int), x=table[:, 1], y=table[:, 2], width=table[:, 3], height=table[:, 3],
                       outlined=np.ones(len(table), bool))


def marked(*images):
    return Marks.join([Marks.of_image(places) for places in images])


LESIONS = boxes((0, 10, 10, 6), (1, 20, 20, 6))
MARKS = marked([(10, 10, 0.9), (30, 30, 0.8)], [(40, 8, 0.7), (20, 21, 0.6)], [(5, 5, 0.5)], [])
"""four images, two with a lesion: found at 0.9 and 0.6; false marks at 0.8, 0.7 and, on a normal image, 0.5"""
PATIENTS = ["a", "b", "c", "d"]


def test_the_froc_curve_by_hand():
    false, share = froc_points(free_response(MARKS, LESIONS))
    assert false.tolist() == [0, 0, 0.25, 0.5, 0.5, 0.75]
    assert share.tolist() == [0, 0.5, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize(("rate", "share"), [(0, 0.5), (0.25, 0.5), (0.5, 1.0), (5, 1.0)])
def test_sensitivity_at_a_rate_of_false_marks(rate, share):
    assert sensitivity_at(free_response(MARKS, LESIONS), rate=rate) == share


def test_jafroc_by_hand():
    """Normal images have their highest false marks at 0.5 and nowhere: both lesions beat both."""
    assert jafroc(free_response(MARKS, LESIONS)) == 1.0
    worse = marked([(10, 10, 0.4)], [(40, 8, 0.7)], [(5, 5, 0.5)], [])  # 0.4 loses to 0.5, beats none; no mark loses, and ties with no mark
    assert jafroc(free_response(worse, LESIONS)) == (0 + 1 + 0 + 0.5) / 4


def test_criteria_of_a_hit():
    lesion, mark = boxes((0, 10, 10, 6)), marked([(12.5, 12.5, 1.0)])
    assert free_response(mark, lesion).lesion_score[0] == 1.0  # in the corner of the box
    assert np.isinf(free_response(mark, lesion, radius_px=3).lesion_score[0])  # sqrt(12.5) px away
    outline = np.zeros((1, 32, 32), bool)
    outline[0, 8:12, 8:12] = True
    assert np.isinf(free_response(mark, lesion, outlines=outline).lesion_score[0])
    assert "inside the outline" in free_response(mark, lesion, outlines=outline).criterion
    with pytest.raises(UsageError):
        free_response(mark, lesion, radius_px=3, outlines=outline)


def test_a_second_mark_on_a_lesion_is_not_false_and_one_mark_may_find_two():
    found = free_response(marked([(10, 10, 0.9), (11, 11, 0.8)]), boxes((0, 10, 10, 6)))
    assert found.lesion_score.tolist() == [0.9] and not len(found.false_score)
    assert free_response(marked([(10, 10, 0.9)]), boxes((0, 10, 10, 6), (0, 12, 12, 8))).lesion_score.tolist() == [0.9, 0.9]


def test_ties_with_false_marks_do_not_help():
    found = free_response(marked([(10, 10, 0.5), (30, 30, 0.5)], [(3, 3, 0.5)]), boxes((0, 10, 10, 6)))
    assert sensitivity_at(found, rate=0.5) == 0.0 and sensitivity_at(found, rate=1) == 1.0


def random_detector(seed, *, skill, num=80):
    """Every second image has a lesion; the detector marks it with `skill` added to a random score, and two random other places."""
    rng = np.random.default_rng(seed)
    lesions = boxes(*((image, 20, 20, 8) for image in range(0, num, 2)))
    places = [[*(((20, 20, rng.normal() + skill),) if image % 2 == 0 else ()), (60, 60, rng.normal()), (90, 30, rng.normal())]
              for image in range(num)]
    return free_response(marked(*places), lesions), [f"p{image // 2}" for image in range(num)]


def test_skill_raises_all_figures_and_no_skill_does_not():
    values = [(sensitivity_at(found), jafroc(found)) for found, _ in (random_detector(0, skill=skill) for skill in (-9, 0, 2, 9))]
    assert values == sorted(values)
    assert values[0][0] == 0 and values[-1] == (1.0, 1.0)


def test_intervals_hold_the_value_and_narrow_with_more_images():
    few, many = (sensitivity_interval(*random_detector(1, skill=1.5, num=num), num=400) for num in (40, 640))
    for one in (few, many):
        assert one.low <= one.value <= one.high
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_the_interval_covers_what_it_should():
    """Draws of a detector whose true sensitivity is known from a large set: 95 % intervals hold it nearly always."""
    truth = sensitivity_at(random_detector(99, skill=1.5, num=20_000)[0])
    held = 0
    for seed in range(40):
        interval = sensitivity_interval(*random_detector(seed, skill=1.5), num=200, seed=seed)
        held += interval.low <= truth <= interval.high
    assert held >= 35


def test_a_paired_difference_is_zero_for_one_detector_and_sees_a_better_one():
    weak, patients = random_detector(3, skill=0.5)
    strong, _ = random_detector(3, skill=3)
    same = sensitivity_difference(weak, weak, patients, num=200)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    better = sensitivity_difference(weak, strong, patients, num=400)
    assert better.low > 0 and better.value == pytest.approx(sensitivity_at(strong) - sensitivity_at(weak))
    assert found_lesions(strong).mean() == sensitivity_at(strong)
    other = free_response(marked([(1, 1, 1.0)], []), boxes((0, 1, 1, 4)))
    with pytest.raises(UsageError, match="other images"):
        sensitivity_difference(weak, other, patients)


def test_the_mean_of_several_trainings():
    (one, patients), (two, _) = random_detector(4, skill=1), random_detector(5, skill=2)
    assert sensitivity_interval([one, two], patients, num=50).value == pytest.approx((sensitivity_at(one) + sensitivity_at(two)) / 2)
    assert jafroc_interval([one, two], patients, num=50).value == pytest.approx((jafroc(one) + jafroc(two)) / 2)


def test_scores_for_a_report_state_criterion_and_sizes():
    found, patients = random_detector(6, skill=2)
    sensitivity, area = free_response_scores(found, patients, judge="detector", group="Nodule")
    assert (sensitivity.metric, area.metric) == ("froc_sensitivity", "jafroc")
    assert sensitivity.note == "40 lesions; the mark lies inside the box of the lesion" and sensitivity.n_real == 80


def test_what_cannot_be_measured_is_refused():
    none = free_response(marked([(1, 1, 1.0)], []), boxes())
    with pytest.raises(InputError, match="images with lesions"):
        sensitivity_interval(none, ["a", "b"])
    with pytest.raises(UsageError, match="is on image 7"):
        free_response(MARKS, boxes((7, 1, 1, 4)))
    with pytest.raises(InputError, match="without lesions"):
        jafroc(free_response(marked([(1, 1, 1.0)]), boxes((0, 1, 1, 4))))


def test_marks_of_a_map_keep_their_distance_and_their_order():
    scores = np.zeros((32, 32))
    scores[5, 5], scores[5, 8], scores[20, 20] = 3, 2, 1
    found = strongest_places(scores, distance_px=6, most=2)
    assert found.x.tolist() == [5.5, 20.5] and found.score.tolist() == [3, 1]
    inside = np.zeros((32, 32), bool)
    inside[:, :10] = True
    assert strongest_places(scores, distance_px=2, most=2, within=inside).x.tolist() == [5.5, 8.5]
    assert strongest_places(scores, distance_px=6, most=1, stride=4).x.tolist() == [22.0]
    with pytest.raises(UsageError):
        strongest_places(scores, distance_px=0)


def test_lesions_of_masks_are_their_parts():
    pixels = np.zeros((2, 32, 32), np.uint8)
    pixels[0, 4:10, 6:10], pixels[0, 20:24, 20:24], pixels[0, 0, 31] = 255, 255, 255  # the last is a crumb
    pixels[1, 8:16, 8:16] = 128
    masks = Masks(names=("lung", "Nodule"), pixels=pixels, index=np.array([[-1, 0], [-1, -2], [0, 1]], dtype=np.int32))
    found = LesionBoxes.of_masks(masks, "Nodule")
    assert found.image.tolist() == [0, 0, 2] and found.outlined.tolist() == [True, True, False]
    assert (found.x[0], found.y[0], found.width[0], found.height[0]) == (8, 7, 4, 6)
    assert found.diameter[2] == 8
