"""What every metric means: a failure built on purpose must move it the right way. Drawn images, and feature spaces that cost nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from synthorax.data.phantom import LesionSpec, PhantomSpec, draw_phantom
from synthorax.errors import InputError
from synthorax.evaluation.dimensions.balance import balance
from synthorax.evaluation.dimensions.controllability import controllability
from synthorax.evaluation.dimensions.diversity import neighbourhood
from synthorax.evaluation.dimensions.fidelity import distances, radiomics_distance
from synthorax.evaluation.dimensions.lesion_preservation import lesion_looks, lesion_preservation
from synthorax.evaluation.dimensions.robustness import corruption_shifts, site_distances
from synthorax.evaluation.measure import _refuse_reused_judge, evaluate_images
from synthorax.evaluation.metrics.anatomy import anatomy_scores, measure_anatomy
from synthorax.evaluation.metrics.corruptions import CORRUPTIONS, corrupt
from synthorax.evaluation.metrics.distances import fid, kid, mmd
from synthorax.evaluation.metrics.feature_sets import RealImages, SetFeatures, shared_groups
from synthorax.evaluation.metrics.ms_ssim import ms_ssim_scores
from synthorax.evaluation.metrics.paired import paired_rows, paired_scores
from synthorax.evaluation.metrics.same_patient_bands import feature_band, nearest_distances, nearness_score, pixel_bands, same_patient_pairs
from synthorax.evaluation.metrics.segmentation import FittedSegmenter, fit_segmenter
from synthorax.evaluation.metrics.vendi import vendi_score
from synthorax.judges.lungs import load_lung_model
from synthorax.judges.radiomics import RadiomicsFeatures
from synthorax.judges.segmenter import SegmenterConfig
from synthorax.metric_table import METRICS
from synthorax.types import ImageSet, Masks, Study

SIZE = 48
TESTS = Path(__file__).parents[1]
FINDINGS = ("Effusion", "Nodule", "No Finding")


class Thumbnails:
    """A feature space without a network: each image averaged down to 12 x 12 pixels."""

    name, digest, num_features = "thumbnails", "0" * 64, 144

    def __call__(self, images):
        side = images.shape[1]
        step = side // 12
        small = images[:, : 12 * step, : 12 * step].reshape(len(images), 12, step, 12, step).mean(axis=(2, 4))
        return (small / np.iinfo(images.dtype).max).reshape(len(images), -1).astype(np.float32)


SPACE = Thumbnails()


def draw(seed, num, *, site="one", finding=None):
    """Images of `num` drawn people: every second one has an effusion, half of these on the left; lung, heart and effusion masks."""
    images, studies, labels, pixels, index = [], [], [], [], []
    for number in range(num):
        ill = number % 2 == 0
        lesions = (LesionSpec(finding="Effusion", side=("left", "right")[number // 2 % 2], size=0.8, severity=1.0),) if ill else ()
        view = ("PA", "AP")[number // 4 % 2]
        image = draw_phantom(PhantomSpec(seed=1000 * seed + number, view=view, sex="MF"[number % 3 % 2], lesions=lesions), size=SIZE)
        images.append(image.image)
        studies.append(Study(file_name=f"{seed}-{number}.png", study_id=f"{seed}-{number}", patient_id=f"p{seed}-{number}", site=site,
                             view=view, sex="MF"[number % 3 % 2], age_years=30.0 + number))
        labels.append([float(ill), 0.0, float(not ill)])
        row = []
        for name in ("lung", "heart", "Effusion"):
            row.append(len(pixels) if name in image.masks else Masks.NOTHING_THERE)
            if name in image.masks:
                pixels.append(image.masks[name])
        index.append(row)
    masks = Masks(names=("lung", "heart", "Effusion"), pixels=np.array(pixels), index=np.array(index, dtype=np.int32))
    return ImageSet(pixels=np.array(images), studies=tuple(studies), findings=FINDINGS, labels=np.array(labels, dtype=np.float32),
                 digest=str(seed), masks=masks)


@pytest.fixture(scope="module")
def real():
    return RealImages(train=draw(1, 80), held_out=draw(2, 80))


@pytest.fixture(scope="module")
def faithful():
    """Images by a perfect generator: new people from the same population."""
    return replace(draw(3, 80), digest="made")


def with_images(image_set, images):
    return replace(image_set, pixels=np.asarray(images, dtype=np.uint8))


FAILURES = {
    "collapse to 1": lambda images, real: images.pixels[np.zeros(len(images), int)],
    "collapse to 10": lambda images, real: images.pixels[np.arange(len(images)) % 10],
    "blur": lambda images, real: ndimage.gaussian_filter(images.pixels.astype(float), sigma=(0, 3, 3)),
    "noise": lambda images, real: (images.pixels + np.random.default_rng(0).normal(0, 40, images.pixels.shape)).clip(0, 255),
    "inverted grey": lambda images, real: 255 - images.pixels,
    "wrong side": lambda images, real: images.pixels[:, :, ::-1],
    "dropped subtype": lambda images, real: images.pixels[images.column("Effusion") == 0][np.arange(len(images)) % 40],
    "cropped": lambda images, real: corrupt(images.pixels, "crop", seed=0),
}


def values(scores):
    return {score.metric: score.value for score in scores}


def fidelity_and_diversity(real, images):
    seen = SetFeatures.through(SPACE, real, images)
    (whole, *_) = shared_groups(real, images)
    scores = (*distances(real, seen, whole, seed=0), *neighbourhood(real, seen, whole, seed=0),
              *ms_ssim_scores(real.held_out.pixels[:40], images.pixels[:40], floor_sets=None, seed=0),
              radiomics_distance(real.held_out, real.train, images, seed=0))
    return values(scores)


@pytest.fixture(scope="module")
def results(real, faithful):
    table = {name: fidelity_and_diversity(real, with_images(faithful, change(faithful, real))) for name, change in FAILURES.items()}
    return {"faithful": fidelity_and_diversity(real, faithful), "copies": fidelity_and_diversity(real, real.held_out), **table}


# metric -> the failures that must make it worse than the faithful images
SEES = {
    "fid": ["collapse to 1", "collapse to 10", "noise", "inverted grey", "wrong side", "dropped subtype", "cropped"],
    "fid_64": ["collapse to 1", "collapse to 10", "noise", "inverted grey", "wrong side", "dropped subtype", "cropped"],
    "kid": ["collapse to 1", "blur", "inverted grey", "wrong side", "dropped subtype", "cropped"],
    "mmd": ["collapse to 1", "blur", "inverted grey", "wrong side", "dropped subtype", "cropped"],
    "radiomics_distance": ["collapse to 1", "blur", "noise", "inverted grey", "cropped"],
    "precision": ["inverted grey", "cropped"],
    "recall": ["collapse to 1", "collapse to 10", "inverted grey"],
    "density": ["inverted grey", "cropped", "wrong side"],
    "coverage": ["collapse to 1", "collapse to 10", "inverted grey", "dropped subtype"],
    "vendi": ["collapse to 1", "collapse to 10", "dropped subtype"],
    "ms_ssim_gap": ["collapse to 1", "collapse to 10", "noise", "blur"],
    "ms_ssim_within_synthetic": ["collapse to 1", "collapse to 10", "blur"],
    "ms_ssim_across": ["noise", "inverted grey"],
}
SIGN = {"higher": 1, "lower": -1}
# metric -> the test that makes it fail or succeed on purpose, where the table above does not
ELSEWHERE = {
    **dict.fromkeys(("lung_area", "heart_width", "cardiothoracic_ratio", "right_lung_share"),
                    "test_anatomy_tells_wide_hearts_and_swapped_lungs"),
    **dict.fromkeys(("lung_width", "lung_height"), "test_boxes_have_the_sizes_of_boxes"),
    **dict.fromkeys(("lesion_contrast", "lesion_ssim", "lesion_perceptual_distance"),
                    "test_lesions_that_are_shifted_or_missing_look_less_like_real_ones"),
    **dict.fromkeys(("requested_mask_iou", "side_agreement"), "test_masks_that_are_shifted_or_on_the_wrong_side_agree_less"),
    **dict.fromkeys(("paired_ssim", "paired_psnr"), "test_pairs_are_scored_and_placed_in_the_band"),
    "as_near_as_one_patient": "test_copies_are_nearer_to_one_patient_than_other_people_are",
    "ms_ssim_within_real": "test_every_set_metric_is_in_the_table",
    "requested_finding_auroc": "test_swapped_labels_turn_the_auroc_round",
    "kid_to_site": "test_a_site_that_was_never_made_is_the_farther_one",
    "kid_shift": "test_every_corruption_changes_images_and_is_measured"}


@pytest.mark.parametrize(("metric", "failure"), [(metric, failure) for metric, failures in SEES.items() for failure in failures])
def test_a_failure_makes_the_metric_worse(results, metric, failure):
    better = SIGN[METRICS[metric].better]
    assert better * results[failure][metric] < better * results["faithful"][metric], (results[failure], results["faithful"])


def test_every_set_metric_is_in_the_table(results):
    assert set(results["faithful"]) - {"ms_ssim_within_real"} == set(SEES)


def test_every_metric_is_shown_by_some_test_to_mean_what_it_says():
    tests = {name: path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py") for name in [path.name]}
    assert not set(SEES) & set(ELSEWHERE) and set(SEES) | set(ELSEWHERE) <= set(METRICS)
    for name in ELSEWHERE.values():
        assert any(f"def {name}(" in text for text in tests.values()), name
    for metric in set(METRICS) - set(SEES) - set(ELSEWHERE):
        assert any(f'"{metric}"' in text for text in tests.values()), f"no test asks what {metric} means"


def test_one_image_for_all_is_worse_than_ten(results):
    """Recall is zero for both: an image that is made many times has a ball without extent."""
    for metric in ("fid", "coverage", "vendi", "ms_ssim_gap"):
        better = SIGN[METRICS[metric].better]
        assert better * results["collapse to 1"][metric] < better * results["collapse to 10"][metric], metric


def test_copies_look_perfect_to_every_set_metric(results):
    """Which is why near-duplicates are counted beside them."""
    copies = results["copies"]
    assert copies["fid"] < 1e-6 and copies["kid"] <= 0 and copies["mmd"] <= 0 and copies["radiomics_distance"] <= 0
    assert copies["precision"] == copies["recall"] == copies["coverage"] == 1.0
    assert copies["ms_ssim_gap"] < 0.02  # other random pairs of the same images


def test_identical_images_have_a_vendi_score_of_one_and_its_floor_is_that_of_real_images(real, faithful):
    held_out, train, made = (SPACE(images.pixels) for images in (real.held_out, real.train, faithful))
    one = vendi_score(held_out, np.repeat(made[:1], 80, axis=0), features_name="x", seed=0, reference=train)
    good = vendi_score(held_out, made, features_name="x", seed=0, reference=train)
    assert one.value == pytest.approx(1) and good.floor == one.floor
    assert good.low <= good.floor * 1.1 and good.value == pytest.approx(good.floor, rel=0.25)


# Groups: a failure in one group shows there


def test_a_dropped_subtype_shows_in_its_own_group(real, faithful):
    """Right-sided effusions are made as left ones: the whole hardly moves, the group does."""
    images = replace(faithful, pixels=faithful.pixels.copy())
    ap = np.array([study.view == "AP" for study in images.studies]) & (images.column("Effusion") == 1)
    images.pixels[ap] = faithful.pixels[np.flatnonzero(ap)[0]]
    coverage = {}
    for name, made in (("good", faithful), ("bad", images)):
        seen = SetFeatures.through(SPACE, real, made)
        coverage[name] = {group.name: values(neighbourhood(real, seen, group, seed=0))["coverage"] for group in shared_groups(real, made)}
    loss = {group: coverage["good"][group] - coverage["bad"][group] for group in coverage["good"]}
    assert set(loss) >= {"all", "Effusion", "view AP", "Effusion, view AP", "sex M"}
    assert loss["Effusion, view AP"] > loss["Effusion"] > loss["all"] >= 0
    assert loss["Effusion, view PA"] == 0


def test_a_group_needs_images_on_both_sides_and_ten_patients(real, faithful):
    assert all(min(len(group.held_out), len(group.synthetic)) >= 20 for group in shared_groups(real, faithful))
    one_person = replace(real.held_out, studies=tuple(replace(study, patient_id="p") for study in real.held_out.studies))
    assert [group.name for group in shared_groups(replace(real, held_out=one_person), faithful)] == ["all"]
    nothing_stated = replace(faithful, labels=np.full_like(faithful.labels, np.nan),
                             studies=tuple(Study(file_name=study.file_name) for study in faithful.studies))
    assert [group.name for group in shared_groups(real, nothing_stated)] == ["all"]


# Control


def test_swapped_labels_turn_the_auroc_round(real, faithful):
    swapped = replace(faithful, labels=1 - faithful.labels)
    score = {}
    for name, images in (("right", faithful), ("swapped", swapped)):
        dimension, judges = controllability(real, images, SetFeatures.through(SPACE, real, images))
        assert judges
        score[name] = {s.group: s.value for s in dimension.scores if s.metric == "requested_finding_auroc"}["Effusion"]
    assert score["right"] > 0.75
    assert score["swapped"] == pytest.approx(1 - score["right"], abs=1e-6)


def test_images_of_the_other_view_lower_the_view_agreement(real, faithful):
    turned = replace(faithful, studies=tuple(replace(study, view={"PA": "AP", "AP": "PA"}[study.view]) for study in faithful.studies))
    right, wrong = (next(score.value for score in controllability(real, images, SetFeatures.through(SPACE, real, images))[0].scores
                         if score.metric == "view_agreement") for images in (faithful, turned))
    assert right > 0.75 and wrong == pytest.approx(1 - right)


# Balance


def test_more_images_with_a_finding_raise_its_prevalence(real, faithful):
    alike = balance(real.train, faithful).scores[0]
    ill = balance(real.train, faithful.take(np.flatnonzero(faithful.column("Effusion") == 1))).scores[0]
    assert (alike.metric, alike.group, alike.value, alike.floor) == ("prevalence_after", "Effusion", 0.5, 0.5)
    assert ill.value == pytest.approx(80 / 120) and ill.floor == 0.5
    assert balance(real.train, replace(faithful, labels=np.full_like(faithful.labels, np.nan))).status == "not_applicable"


# Anatomy


def anatomy_of(images, *, widen=0.0):
    outlines = {name: np.array([images.masks.pixels[row] > 0 for row in images.masks.index[:, column]])
                for column, name in enumerate(("lung", "heart"))}
    heart = outlines["heart"]
    if widen:
        heart = np.array([ndimage.binary_dilation(image, np.ones((1, 3)), iterations=int(widen)) for image in heart])
    return measure_anatomy(outlines["lung"], heart)


def test_anatomy_tells_wide_hearts_and_swapped_lungs(real, faithful):
    sides = [anatomy_of(images) for images in (real.held_out, faithful, real.train)]
    wide, swapped = anatomy_of(faithful, widen=3), dict(sides[1], right_lung_share=1 - sides[1]["right_lung_share"])
    good, hearts, lungs = (values(anatomy_scores(sides[0], made, sides[2], judge="", seed=0)) for made in (sides[1], wide, swapped))
    assert hearts["heart_width"] > good["heart_width"] + 0.05 and hearts["cardiothoracic_ratio"] > good["cardiothoracic_ratio"] + 0.05
    assert hearts["lung_area"] == good["lung_area"]
    assert lungs["right_lung_share"] > good["right_lung_share"]
    ratio = sides[0]["cardiothoracic_ratio"]
    assert 0.3 < np.nanmedian(ratio) < 0.65  # as people's


# Lesions


def test_lesions_that_are_shifted_or_missing_look_less_like_real_ones(real, faithful):
    healthy = faithful.column("Effusion") == 0
    missing = faithful.pixels.copy()
    missing[~healthy] = faithful.pixels[healthy]
    good, gone = (values(lesion_looks(real, with_images(faithful, images), "Effusion", space=SPACE, seed=0))
                  for images in (faithful.pixels, missing))
    assert gone["lesion_contrast"] > good["lesion_contrast"]
    assert gone["lesion_ssim"] < good["lesion_ssim"]
    shifted = with_images(faithful, np.roll(faithful.pixels, 12, axis=1))
    moved = values(lesion_looks(real, shifted, "Effusion", space=SPACE, seed=0))
    assert moved["lesion_ssim"] < good["lesion_ssim"] and moved["lesion_perceptual_distance"] > good["lesion_perceptual_distance"]


# Calibration


@pytest.fixture(scope="module")
def followed():
    """Thirty people with two images each."""
    specs = [PhantomSpec(seed=5000 + person, image=image) for person in range(30) for image in range(2)]
    images = np.array([draw_phantom(spec, size=SIZE).image for spec in specs])
    studies = tuple(Study(file_name=f"{i}.png", study_id=f"s{i}", patient_id=f"q{spec.seed}", view="PA") for i, spec in enumerate(specs))
    return ImageSet(pixels=images, studies=studies, findings=("Mass",), labels=np.zeros((60, 1), np.float32), digest="f")


def test_pairs_are_of_one_patient_and_the_band_separates_people(followed):
    pairs = same_patient_pairs(followed)
    patients = followed.patients()
    assert len(pairs) == 30 and (patients[pairs[:, 0]] == patients[pairs[:, 1]]).all() and (pairs[:, 0] != pairs[:, 1]).all()
    features = SPACE(followed.pixels)
    band = feature_band(followed, features, pairs, space="thumbnails")
    assert band.verdict(0.0) == "below the band" and band.verdict(band.low) == "inside the band" and band.verdict(1e9) == "above the band"
    few = feature_band(followed, features, pairs[:5], space="thumbnails")
    assert few.verdict(0.0) == "uncalibrated" and few.to_dict()["verdict"] == "uncalibrated"


def test_copies_are_nearer_to_one_patient_than_other_people_are(followed, real, faithful):
    band = feature_band(followed, SPACE(followed.pixels), same_patient_pairs(followed), space="thumbnails")
    train, held_out, made = (SPACE(images.pixels) for images in (real.train, real.held_out, faithful))
    others = nearest_distances(held_out, train)
    good = nearness_score(band, nearest_distances(made, train), others, space="t", num_train=80)
    copies = nearness_score(band, nearest_distances(train, train), others, space="t", num_train=80)
    assert copies.value == 1.0 and copies.value >= good.value and good.floor == copies.floor


def test_pairs_are_scored_and_placed_in_the_band(followed, real):
    bands = pixel_bands(followed, same_patient_pairs(followed))
    made = replace(real.train, studies=tuple(replace(study, extra={"pair_of": study.study_id}) for study in real.train.studies))
    rows, partners = paired_rows(made, real.train)
    assert len(rows) == 80 and (partners == made.pixels).all()
    exact = paired_scores(partners, made.pixels, bands=bands)
    assert values(exact) == {"paired_ssim": 1.0, "paired_psnr": 100.0} and all("above the band" in score.note for score in exact)
    noisy = paired_scores(partners, corrupt(made.pixels, "noise", seed=0), bands=bands)
    assert all(bad.value < good.value for bad, good in zip(noisy, exact, strict=True))
    assert len(paired_rows(real.train, real.train)[0]) == 0


# Robustness


def test_a_site_that_was_never_made_is_the_farther_one(real, faithful):
    """The other site's images are darker and shifted; the generator knows only the first."""
    other = [with_images(images, np.roll(images.pixels, 5, axis=1) * 0.7) for images in (draw(7, 30), draw(8, 30))]
    other = [replace(images, studies=tuple(replace(study, site="two") for study in images.studies)) for images in other]
    sides = RealImages(**{name: replace(first, pixels=np.concatenate([first.pixels, second.pixels]),
                                       studies=(*first.studies, *second.studies),
                                       labels=np.concatenate([first.labels, second.labels]), masks=None)
                         for name, first, second in (("train", real.train, other[0]), ("held_out", real.held_out, other[1]))})
    scores = {score.group: score for score in site_distances(sides, faithful, SetFeatures.through(SPACE, sides, faithful), seed=0)}
    assert scores["site two"].value > scores["site one"].value
    assert site_distances(real, faithful, SetFeatures.through(SPACE, real, faithful), seed=0) == ()  # one site is no comparison


def test_every_corruption_changes_images_and_is_measured(real, faithful):
    scores = corruption_shifts(real, faithful, SetFeatures.through(SPACE, real, faithful), seed=0)
    assert [score.group for score in scores] == list(CORRUPTIONS)
    shift = {score.group: score for score in scores}
    assert shift["vendor look"].value > 0 and shift["vendor look"].floor > 0
    for name in CORRUPTIONS:
        assert (corrupt(faithful.pixels, name, seed=0) != faithful.pixels).any()
        assert (corrupt(faithful.pixels, name, seed=0) == corrupt(faithful.pixels, name, seed=0)).all()


# Closed forms of what is new


def test_mmd_and_fid_of_equal_and_distant_gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2000, 6)), rng.normal(size=(2000, 6)) + np.array([1.0, 0, 0, 0, 0, 0])
    width = 2.0
    # E k(X, Y) for X, Y normal: (w^2 / (w^2 + 2))^(d/2) exp(-|m|^2 / (2 (w^2 + 2)))
    closed = 2 * (width**2 / (width**2 + 2)) ** 3 * (1 - np.exp(-1 / (2 * (width**2 + 2))))
    assert mmd(a, b, bandwidth=width) == pytest.approx(closed, rel=0.15)
    assert abs(mmd(a, rng.normal(size=(2000, 6)), bandwidth=width)) < closed / 5
    assert fid(a, a) < 1e-9 and kid(a, a) < 0


# Requested masks, by a judge that learned from the real side's masks


@pytest.fixture(scope="module")
def fitted_segmenter(real):
    config = SegmenterConfig(updates=120, batch_size=8, width=8, input_size=SIZE)
    return fit_segmenter(real, ["lung", "Effusion", "Nodule"], seed=0, config=config)


def test_masks_that_are_shifted_or_on_the_wrong_side_agree_less(real, faithful, fitted_segmenter):
    assert fitted_segmenter.segmenter.held_out_dice["lung"] > 0.7
    found = {}
    for name, change in (("right", lambda masks: masks), ("shifted", lambda masks: np.roll(masks, -10, axis=1)),
                         ("wrong side", lambda masks: masks[:, :, ::-1])):
        images = replace(faithful, masks=replace(faithful.masks, pixels=change(faithful.masks.pixels)))
        dimension = lesion_preservation(real, images, fitted_segmenter, space=SPACE, seed=0)
        found[name] = {(score.metric, score.group): score for score in dimension.scores}
    iou, side = ("requested_mask_iou", "Effusion"), ("side_agreement", "Effusion")
    for wrong in ("shifted", "wrong side"):
        assert found[wrong][iou].value < found["right"][iou].value - 0.1
    assert found["wrong side"][side].value < 0.5 < found["right"][side].value
    assert found["right"][iou].floor == pytest.approx(found["right"][iou].value, abs=0.15)  # the judge errs on real images as much
    assert found["right"]["requested_mask_iou", "lung"].value > 0.6


def test_a_lesion_outside_its_box_is_seen(real, faithful, fitted_segmenter):
    boxes = np.zeros_like(faithful.masks.pixels)
    for box, outline in zip(boxes, faithful.masks.pixels, strict=True):
        rows, columns = np.nonzero(outline)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 128
    inside = {}
    for name, drawn in (("right", boxes), ("wrong side", boxes[:, :, ::-1])):
        masks = Masks(names=("Effusion",), pixels=drawn, index=faithful.masks.index[:, 2:])
        dimension = lesion_preservation(real, replace(faithful, masks=masks), fitted_segmenter, space=SPACE, seed=0)
        inside[name] = next(score.value for score in dimension.scores if score.metric == "lesion_inside_box")
    assert inside["right"] > inside["wrong side"] + 0.3


def test_what_no_judge_learned_is_skipped_with_the_reason(real, faithful, fitted_segmenter):
    assert "Nodule" in fitted_segmenter.reasons and "0 real training images" in fitted_segmenter.reasons["Nodule"]
    without = FittedSegmenter(segmenter=None, reasons={"Effusion": "no judge for a reason"})
    images = replace(faithful, masks=Masks(names=("Effusion",), pixels=faithful.masks.pixels, index=faithful.masks.index[:, 2:]))
    dimension = lesion_preservation(real, images, without, space=SPACE, seed=0)
    assert dimension.status == "measured" and dimension.extra["not_measured"]["Effusion: agreement"] == "no judge for a reason"
    assert {score.metric for score in dimension.scores} == {"lesion_contrast", "lesion_ssim", "lesion_perceptual_distance"}
    bare = RealImages(train=replace(real.train, masks=None), held_out=replace(real.held_out, masks=None))
    skipped = lesion_preservation(bare, images, without, space=SPACE, seed=0)
    assert skipped.status == "skipped" and "no judge for a reason" in skipped.reason
    assert lesion_preservation(real, replace(faithful, masks=None), fitted_segmenter, space=SPACE, seed=0).status == "skipped"


# The whole report


def test_the_report_holds_every_part(real, faithful, tmp_path):
    report = evaluate_images(real, replace(faithful, masks=None), features=[SPACE, RadiomicsFeatures()], facts={}, quick=True)
    assert {name for name, part in report.dimensions.items() if part.status == "measured"} == {
        "fidelity", "diversity", "controllability", "balance", "privacy"}
    fidelity = report.dimensions["fidelity"]
    spaces = {(score.metric, score.features) for score in fidelity.scores if score.group == "all"}
    assert {("kid", "thumbnails"), ("kid", "radiomics"), ("radiomics_distance", "radiomics")} <= spaces
    assert {score.group for score in fidelity.scores if score.features == "radiomics"} == {"all"}  # groups in the first space only
    assert fidelity.extra["same_patient_bands"]["ssim"]["verdict"] == "uncalibrated"  # every drawn person has one image
    assert {"anatomy", "paired_ssim, paired_psnr"} <= set(fidelity.extra["not_measured"])
    assert "quick" in report.dimensions["robustness"].reason
    page = report.write(tmp_path).read_text()
    assert "Map of real and synthetic images in thumbnails" in page and page.count("Forest plot:") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_a_segmenter_that_chose_the_images_must_not_grade_them():
    """`evaluate_images` asks this of the segmenter that it trains; here the lung model stands for it."""
    chose = load_lung_model()
    with pytest.raises(InputError, match="the judge 'an outliner' chose these images and must not grade them"):
        _refuse_reused_judge(chose, {"judges": [{"name": "an outliner", "digest": chose.digest}]})
    _refuse_reused_judge(chose, {"judges": [{"name": "another", "digest": "0"}]})


def test_nan_features_and_too_few_images_are_words_not_numbers(real, faithful):
    class Broken(Thumbnails):
        def __call__(self, images):
            return np.full((len(images), 144), np.nan, dtype=np.float32)

    few = RealImages(train=real.train.take(range(20)), held_out=real.held_out.take(range(20)))
    report = evaluate_images(few, faithful.take(range(20)), features=Broken(), facts={}, quick=True)
    for name in ("fidelity", "diversity"):
        assert report.dimensions[name].status == "skipped" and "NaN" in report.dimensions[name].reason
    report = evaluate_images(few, faithful.take([0]), features=SPACE, facts={}, quick=True)
    assert report.dimensions["fidelity"].status == "skipped" and "too few" in report.dimensions["fidelity"].reason
