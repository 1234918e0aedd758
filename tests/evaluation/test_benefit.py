"""Benefit on a made-up task whose truth is known: good images must help, mislabelled ones hurt, unrelated ones do neither."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benefit_task import QUICK, TEST, TRAIN, images, synthetic
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.benefit import study as benefit
from synthorax.evaluation.benefit import training as benefit_training
from synthorax.evaluation.benefit.comparison import gate_of, verdict_of, with_holm
from synthorax.evaluation.benefit.study import TRAININGS, BenefitConfig, measure_benefit


@pytest.fixture(scope="module")
def good():
    seen = []
    result = measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=QUICK,
                             real_val=images(4, present=20, absent=30, name="val"), progress=lambda *now: seen.append(now))
    return result, seen


def test_images_drawn_from_the_truth_help(good):
    entry = good[0].findings[0]
    delta = entry["delta"]
    assert entry["verdict"] == "helps" and delta["value"] > 0.03 and delta["low"] > 0 and delta["p_holm"] < 0.05
    assert delta["test"] == "DeLong"  # one image a patient
    assert entry["others_worse"] == [] and entry["gate"] == {"passed": True, "min_gain": 0.02, "reasons": []}


def test_images_with_the_wrong_labels_hurt():
    wrong = synthetic(right_label=False)
    entry = measure_benefit(images(1, present=25, absent=55, name="train"), TEST, wrong, findings=["Mass"], config=QUICK).findings[0]
    assert entry["verdict"] == "hurts" and entry["delta"]["high"] < 0
    assert not entry["gate"]["passed"] and "verdict: hurts" in entry["gate"]["reasons"]


def test_noise_with_labels_does_not_help():
    noise = synthetic(signal=0.0)
    entry = measure_benefit(images(1, present=25, absent=55, name="train"), TEST, noise, findings=["Mass"], config=QUICK).findings[0]
    assert entry["verdict"] != "helps" and not entry["gate"]["passed"]


def test_a_finding_that_the_images_make_worse_is_named():
    """Good discs, but the bars carry the wrong label: Mass gains and Effusion pays."""
    made = synthetic()
    labels = made.labels.copy()
    labels[:, 0] = 1 - labels[:, 0]
    entry = measure_benefit(TRAIN, TEST, replace(made, labels=labels), findings=["Mass"], config=QUICK).findings[0]
    assert entry["others_worse"] == ["Effusion"] and entry["others"][0]["value"] < 0
    assert not entry["gate"]["passed"] and "worse for Effusion" in entry["gate"]["reasons"]


def test_result_has_the_form_of_the_report(good):
    result, _ = good
    told = result.to_dict()
    assert told["status"] == "measured" and json.loads(json.dumps(told)) == told
    entry = told["findings"][0]
    assert (entry["finding"], entry["n_real_positive_train"], entry["n_test_positive"], entry["n_test_patients"]) == ("Mass", 4, 100, 250)
    assert (entry["seeds"], entry["updates"]) == (3, 50) and "parameters" in entry["classifier"]
    arms = {arm["arm"]: arm for arm in entry["arms"]}
    assert list(arms) == list(entry["roc"]) == ["real", "classic", "oversampling", "real+synthetic"]
    for arm in arms.values():
        assert arm["low"] <= arm["auroc"] <= arm["high"] and arm["auprc_low"] <= arm["auprc"] <= arm["auprc_high"]
        assert len(arm["auroc_seeds"]) == 3
        assert all(arm[rate]["low"] <= arm[rate]["value"] <= arm[rate]["high"] for rate in ("sensitivity", "specificity"))
    assert arms["real+synthetic"]["ratio"] == 1.5 and "ratio" not in arms["real"]
    assert entry["delta"]["value"] == pytest.approx(arms["real+synthetic"]["auroc"] - arms["real"]["auroc"])
    best = entry["delta_best_conventional"]
    assert best["against"] == max(("classic", "oversampling"), key=lambda name: arms[name]["auroc"])
    assert best["value"] == pytest.approx(arms["real+synthetic"]["auroc"] - arms[best["against"]]["auroc"])
    curve = entry["roc"]["real"]
    assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(arms["real"]["auroc"], abs=0.01)


def test_progress_counts_every_update_once(good):
    _, seen = good
    fractions, texts = zip(*((fraction, text) for fraction, text in seen if "training" in text), strict=True)
    assert fractions == pytest.approx([TRAININGS * done / 600 for done in range(1, 4 * 3 * 50 + 1)])
    assert len(set(texts)) == 12 and texts[0].endswith("training 1 of 3")
    assert [fraction for fraction, _ in seen] == sorted(fraction for fraction, _ in seen) and seen[-1][0] == 1


def test_several_trainings_at_a_time_change_nothing_but_the_time(good):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=QUICK)
    finally:
        torch.set_num_threads(before)
    assert again.findings[0]["delta"] == good[0].findings[0]["delta"] and again.findings[0]["roc"] == good[0].findings[0]["roc"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_stop_ends_all_trainings_at_once(stop):
    updates = []

    def interrupt(fraction, text):
        updates.append(fraction)
        if len(updates) == 7:
            raise stop

    with pytest.raises(stop):
        measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=QUICK, progress=interrupt)
    assert len(updates) < 50


def test_arms_start_from_the_same_weights_and_differ_in_images_alone(monkeypatch):
    """What reaches training: one configuration, one seed a repetition, never a test image."""
    calls = []
    real_training = benefit_training.training_of(QUICK.classifier)

    def noted(images, labels, **how):
        calls.append((images, how))
        return real_training(images, labels, **how)

    monkeypatch.setattr(benefit_training, "training_of", lambda config: noted)
    config = replace(QUICK, classifier=replace(QUICK.classifier, updates=1), synthetic_only=True, ratio=0.5, sweep=(0.25, 9.0))
    entry = measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=config).findings[0]
    assert len({how["seed"] for _, how in calls}) == 3 and len(calls) == 6 * 3
    assert {replace(how["config"], augment="none") for _, how in calls} == {config.classifier}
    assert [len(images) for images, _ in calls[:6]] == [80, 80, 80, 100, 120, 120]
    assert [arm.get("ratio") for arm in entry["arms"]] == [None, None, None, 0.25, 0.5, None]  # there are no images for ratio 9
    test_images = {image.tobytes() for image in TEST.pixels}
    assert not any(image.tobytes() in test_images for images, _ in calls for image in images)
    weights = calls[2][1]["image_weights"]
    share = weights[:4].sum() / weights.sum()
    added = calls[4][0][80:]
    made_present = {image.tobytes() for image in synthetic().pixels[:60]}
    assert share == pytest.approx((4 + sum(image.tobytes() in made_present for image in added)) / 120)


def test_several_images_of_a_patient_let_the_bootstrap_decide():
    config = replace(QUICK, classifier=replace(QUICK.classifier, updates=2))
    test = images(2, present=40, absent=60, name="test", images_per_patient=4)
    delta = measure_benefit(TRAIN, test, synthetic(), findings=["Mass"], config=config).findings[0]["delta"]
    assert delta["test"] == "patient bootstrap" and "not independent" in delta["note"]
    assert (delta["low"], delta["high"]) == (delta["tests"]["patient bootstrap"]["low"], delta["tests"]["patient bootstrap"]["high"])


@pytest.mark.parametrize(("one", "two", "verdict"), [
    ((0.01, 0.05, 0.01), (0.02, 0.06, 0.02), "helps"), ((-0.05, -0.01, 0.01), (-0.06, -0.02, 0.01), "hurts"),
    ((0.01, 0.05, 0.01), (-0.001, 0.06, 0.06), "no evidence"), ((0.01, 0.05, 0.06), (0.02, 0.06, 0.02), "no evidence"),
    ((-0.05, -0.01, 0.01), (-0.06, 0.001, 0.051), "no evidence"), ((0.01, 0.05, 0.01), (-0.06, -0.02, 0.01), "no evidence"),
])
def test_where_the_tests_disagree_the_verdict_is_the_cautious_one(one, two, verdict):
    tests = {name: {"low": low, "high": high, "p_holm": p} for name, (low, high, p) in (("DeLong", one), ("patient bootstrap", two))}
    assert verdict_of({"tests": tests}) == verdict


def test_several_findings_are_corrected_for_each_other():
    deltas = [{"test": "DeLong", "tests": {"DeLong": {"p": p}, "patient bootstrap": {"p": 2 * p}}} for p in (0.01, 0.03)]
    assert [delta["p_holm"] for delta in with_holm(deltas)] == pytest.approx([0.02, 0.03])


def test_small_gain_fails_the_gate_although_it_is_certain():
    gate = gate_of({"delta": {"value": 0.01}, "verdict": "helps", "others_worse": []}, QUICK)
    assert not gate["passed"] and gate["reasons"] == ["AUROC gain +0.010 is below 0.02"]


def test_a_finding_with_too_few_test_patients_is_skipped_with_the_reason_and_no_training():
    few = images(2, present=4, absent=40, name="test")
    result = measure_benefit(TRAIN, few, synthetic(), findings=["Mass"], config=QUICK, progress=lambda *now: pytest.fail("trained"))
    dimension = result.to_dimension()
    assert dimension.status == "skipped" and "Mass" in dimension.reason and "in 4 patients" in dimension.reason
    one_patient = images(2, present=20, absent=40, name="test", images_per_patient=20)
    assert "in 1 patients" in measure_benefit(TRAIN, one_patient, synthetic(), findings=["Mass"], config=QUICK).to_dimension().reason
    healthy = images(2, present=0, absent=40, name="test")
    assert "in 0 patients" in measure_benefit(TRAIN, healthy, synthetic(), findings=["Mass"], config=QUICK).to_dimension().reason


def test_a_skipped_finding_stands_beside_a_measured_one():
    config = replace(QUICK, classifier=replace(QUICK.classifier, updates=1))
    few = images(2, present=4, absent=40, name="test")
    told = measure_benefit(TRAIN, few, synthetic(), findings=["Mass", "Effusion"], config=config).to_dict()
    assert [entry["finding"] for entry in told["findings"]] == ["Effusion"]
    assert [entry["finding"] for entry in told["not_tested"]] == ["Mass"]


def test_labels_that_are_not_stated_take_no_part():
    config = replace(QUICK, classifier=replace(QUICK.classifier, updates=1))
    labels = TEST.labels.copy()
    labels[90:110, 1] = math.nan
    entry = measure_benefit(TRAIN, replace(TEST, labels=labels), synthetic(), findings=["Mass"], config=config).findings[0]
    assert (entry["n_test"], entry["n_test_positive"]) == (230, 90)


def relabelled(given, **changes):
    return replace(given, studies=(replace(given.studies[0], **changes), *given.studies[1:]))


@pytest.mark.parametrize(("train", "test", "made", "said"), [
    (TRAIN, relabelled(TEST, origin="synthetic"), synthetic(), "test0.png stands among the real test images"),
    (relabelled(TRAIN, origin="synthetic"), TEST, synthetic(), "train0.png stands among the real training images"),
    (TRAIN, relabelled(TEST, patient_id="train5"), synthetic(), "1 patients have training and test images; split by patient"),
    (TRAIN, relabelled(TEST, patient_id=""), synthetic(), "test0.png has no patient"),
    (TRAIN, TEST, relabelled(synthetic(), patient_id="test7"), "synthetic and test images"),
    (TRAIN, TEST, replace(synthetic(), pixels=np.concatenate([TEST.pixels[9:10], synthetic().pixels[1:]])), "made0.png is, pixel"),
    (TRAIN, TEST, synthetic().take([]), "0 synthetic"),
])
def test_leaks_are_refused(train, test, made, said):
    with pytest.raises(InputError, match=said):
        measure_benefit(train, test, made, findings=["Mass"], config=QUICK)


def test_a_synthetic_validation_image_is_refused_and_an_empty_validation_set_is_none():
    val = relabelled(images(4, present=5, absent=5, name="val"), origin="synthetic")
    with pytest.raises(InputError, match="among the real validation images"):
        measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=QUICK, real_val=val)
    config = replace(QUICK, classifier=replace(QUICK.classifier, updates=1))
    entry = measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=config, real_val=val.take([])).findings[0]
    assert all("threshold" not in arm for arm in entry["arms"])


def test_wrong_use_is_refused():
    with pytest.raises(UsageError, match="at least 3 seeds"):
        BenefitConfig(seeds=2)
    for wrong, said in (({"folds": 2}, "at least 3 folds"), ({"repeats": 2}, "give folds too"), ({"positives": (5, 5)}, "different"),
                        ({"folds": 3, "positives": (5,)}, "on the test split")):
        with pytest.raises(UsageError, match=said):
            BenefitConfig(**wrong)
    with pytest.raises(UsageError, match="above 0"):
        BenefitConfig(ratio=0)
    with pytest.raises(UsageError, match="did you mean 'Mass'"):
        measure_benefit(TRAIN, TEST, synthetic(), findings=["Mas"], config=QUICK)
    with pytest.raises(UsageError, match="same size"):
        measure_benefit(TRAIN, TEST, replace(synthetic(), pixels=np.zeros((120, 8, 8), np.uint8)), findings=["Mass"], config=QUICK)
    with pytest.raises(UsageError, match="same columns"):
        measure_benefit(TRAIN, TEST, replace(synthetic(), findings=("Mass", "Effusion")), findings=["Mass"], config=QUICK)


def test_probe_sees_a_shortcut_and_none_where_there_is_none():
    config = replace(QUICK, classifier=replace(QUICK.classifier, updates=60))
    real = images(5, present=20, absent=80, name="more")
    marked = synthetic()
    marked.pixels[:, :6, :6] = 255
    seen = benefit.origin_probe(real, marked, config=config)
    unseen = benefit.origin_probe(real, synthetic(present=20, absent=80), config=config)
    assert seen["auroc"] > 0.95 and unseen["low"] < 0.5 < unseen["high"]
    assert benefit.origin_probe(real.take(range(10)), marked, config=config) is None
