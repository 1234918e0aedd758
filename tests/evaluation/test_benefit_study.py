"""A whole study: every arm with the same updates, folds that leak nothing, a kill that costs nothing, a curve of nested patients."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import synthorax as sx
from benefit_task import QUICK, TEST, TRAIN, images, synthetic
from synthorax.cli.app import app
from synthorax.data.dataset import write_facts, write_table
from synthorax.data.phantom import write_phantom_dataset
from synthorax.errors import InputError
from synthorax.evaluation.benefit import training as benefit_training
from synthorax.evaluation.benefit.comparison import arm_predictions, gate_of
from synthorax.evaluation.benefit.design import cross_validation, known_to_generator, one_split
from synthorax.evaluation.benefit.learning_curve import fewer_positives
from synthorax.evaluation.benefit.study import TRAININGS, BenefitConfig, asked_config, gate_reasons, measure_benefit
from synthorax.evaluation.benefit.training import class_weights
from synthorax.evaluation.report.record import Dimension, Report
from synthorax.judges.classifiers import training_of
from synthorax.types import ImageSet

TINY = replace(QUICK, classifier=replace(QUICK.classifier, updates=4))
VAL = images(4, present=20, absent=30, name="val")


def test_every_arm_is_there_and_has_the_same_number_of_updates(monkeypatch):
    calls, train = [], training_of(TINY.classifier)

    def noted(images, labels, **how):
        calls.append((len(images), how))
        return train(images, labels, **how)

    monkeypatch.setattr(benefit_training, "training_of", lambda config: noted)
    assert BenefitConfig().seeds == 5
    config = BenefitConfig(classifier=replace(TINY.classifier, updates=3), seeds=3, resamples=100, probe=False)
    entry = measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=config).findings[0]
    assert [arm["arm"] for arm in entry["arms"]] == [
        "real", "classic", "oversampling", "class-weighted loss", "real+synthetic, ratio 0.25", "real+synthetic, ratio 0.5",
        "real+synthetic, ratio 1", "real+synthetic", "synthetic, then real", "synthetic only"]  # 120 images for 80: no ratio 2
    assert entry["seeds"] == 3
    first, *_, then = [(size, how) for size, how in calls if how.get("start") is not None or how["config"].updates < 3][:2]
    assert first[1]["config"].updates + then[1]["config"].updates == 3
    assert (first[0], then[0]) == (120, 80) and then[1]["start"] is not None
    assert sum(how["config"].updates for _, how in calls) == 10 * 3 * 3


def test_class_weights_give_each_class_half_of_the_loss():
    weights = class_weights(TRAIN, ["Mass"])
    assert weights[:, TRAIN.findings.index("Mass")] @ [76, 4] == pytest.approx(80)
    assert weights[0, 1] * 76 == pytest.approx(weights[1, 1] * 4) and (weights[:, 0] == 1).all()


def test_a_class_weighted_loss_finds_more_of_a_rare_finding():
    train = training_of(QUICK.classifier)
    how = {"findings": TRAIN.findings, "config": QUICK.classifier, "seed": 0}
    plain = train(TRAIN.pixels, TRAIN.labels, **how).predict(TEST.pixels)[:, 1]
    weighted = train(TRAIN.pixels, TRAIN.labels, class_weights=class_weights(TRAIN, ["Mass"]), **how).predict(TEST.pixels)[:, 1]
    assert weighted.mean() > plain.mean() + 0.1


def test_pretraining_on_good_images_is_remembered():
    """The first half teaches the disc; the second half, without a single disc, does not make the network forget all of it."""
    config = replace(QUICK.classifier, updates=40)
    made, train = synthetic(), training_of(config)
    how = {"findings": TRAIN.findings, "config": config, "seed": 0}
    begun = train(made.pixels, made.labels, **how)
    again = train(TRAIN.pixels, TRAIN.labels, start=begun, **{**how, "config": replace(config, updates=1, learning_rate=1e-9)})
    assert np.allclose(again.predict(TEST.pixels), begun.predict(TEST.pixels), atol=0.2)
    assert not np.allclose(train(TRAIN.pixels, TRAIN.labels, **how).predict(TEST.pixels), begun.predict(TEST.pixels), atol=0.2)


# Folds


def several(seed=2, *, name="held", present=30, absent=60):
    return images(seed, present=present, absent=absent, name=name, images_per_patient=2)


CROSS = replace(TINY, folds=3, repeats=3, seeds=1)


def test_every_held_out_image_is_tested_once_a_repeat_and_patients_keep_together():
    held = several()
    design = cross_validation(TRAIN, held, targets=["Mass"], config=replace(CROSS, folds=5))
    patients, always = design.real.patients(), set(range(len(TRAIN)))
    assert [design.real.studies[row].file_name for row in design.tested] == [study.file_name for study in held.studies]
    for parts in design.parts:
        assert sorted(np.concatenate([part.test for part in parts])) == sorted(design.tested)
        assert sorted(np.concatenate([part.val for part in parts])) == sorted(design.tested)
        for part in parts:
            sides = [set(patients[rows]) for rows in (part.train, part.val, part.test)]
            assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
            assert always <= set(part.train)
            assert 2 <= len(np.unique(patients[part.test][held.column("Mass")[part.test - len(TRAIN)] == 1])) <= 4  # 15 among 5 folds
    assert len({parts[0].test.tobytes() for parts in design.parts}) == 3  # other folds in each repeat


def test_the_training_patients_are_tested_only_if_the_generator_has_not_seen_them():
    held = several()
    known = cross_validation(TRAIN, held, targets=["Mass"], config=CROSS)
    free = cross_validation(TRAIN.take([]), ImageSet.join([TRAIN, held]), targets=["Mass"], config=CROSS)
    assert not set(known.real.patients()[known.tested]) & set(TRAIN.patients())
    assert set(free.real.patients()[free.tested]) == set(TRAIN.patients()) | set(held.patients())


class Folder:
    digest, sources = "mine", ()


class Source:
    digest = "data set"


class Divided(Folder):
    sources = (Source,)


@pytest.mark.parametrize(("facts", "seen"), [
    ({}, "training split"), ({"trained_on": {"data_digest": "mine"}}, "training split"), ({"not_trained_on": ["mine"]}, "nothing"),
    ({"not_trained_on": ["another"]}, "training split"), ({"trained_on": {"data_digest": "another", "sources": []}}, "training split"),
])
def test_whoever_does_not_say_has_seen_the_training_split(facts, seen):
    assert known_to_generator(facts, Folder, cross_validated=True) == seen


def test_leaks_through_the_generator_are_refused():
    with pytest.raises(InputError, match="and that it was not"):
        known_to_generator({"trained_on": {"data_digest": "mine"}, "not_trained_on": ["mine"]}, Folder, cross_validated=True)
    other = {"trained_on": {"data_digest": "another", "sources": [{"digest": "data set"}]}}
    with pytest.raises(InputError, match="another division of the same data set"):
        known_to_generator(other, Divided, cross_validated=True)
    assert known_to_generator(other, Divided, cross_validated=False) == "training split"


def test_cross_validation_measures_all_held_out_images():
    result = measure_benefit(TRAIN, several(5, name="test"), synthetic(), findings=["Mass"], config=CROSS, real_val=several())
    entry = result.findings[0]
    assert entry["n_test"] == 180 and entry["n_test_positive"] == 60 and entry["design"]["folds"] == 3
    assert all(len(arm["auroc_seeds"]) == 3 for arm in entry["arms"])
    assert all("f1" in arm for arm in entry["arms"])  # each fold's threshold comes from another fold
    json.dumps(result.to_dict(), allow_nan=False)


def test_folds_with_scales_of_their_own_are_ranked_within_themselves():
    """Every fold separates perfectly, but one calls everything 0.9 and another 0.1: pooled probabilities would look like chance."""
    held = several()
    design = cross_validation(TRAIN, held, targets=["Mass"], config=replace(CROSS, repeats=1, seeds=3))
    answers = []
    for fold, part in enumerate(design.parts[0]):
        rows = np.concatenate([part.val, part.test])
        answers.append([(0.3 * fold + 0.2 * design.real.labels[rows]).astype(float)] * 3)
    found = arm_predictions(design, {"real": [answers]}, ratios={}, config=replace(CROSS, repeats=1, seeds=3))
    positive = held.column("Mass") == 1
    assert found.scores["real"][positive, 1].min() > found.scores["real"][~positive, 1].max()
    assert found.probabilities["real"][positive, 1].min() < found.probabilities["real"][~positive, 1].max()


def test_too_few_patients_for_the_folds_are_refused():
    with pytest.raises(InputError, match="2 patients that may be tested show Mass, too few for 3 folds"):
        cross_validation(TRAIN, images(2, present=2, absent=40, name="held"), targets=["Mass"], config=CROSS)


# Going on


def test_a_killed_study_goes_on_to_the_same_report(tmp_path):
    whole = measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=TINY, real_val=VAL, keep=tmp_path)
    kept = sorted(tmp_path.glob("*.npz"))
    assert len(kept) == 4 * 3
    for path in kept[::2]:
        path.unlink()
    seen = []
    again = measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=TINY, real_val=VAL, keep=tmp_path,
                            progress=lambda fraction, text: seen.append(fraction) if "training" in text else None)
    assert again.to_dict() == whole.to_dict()
    assert seen == pytest.approx([TRAININGS * done / 48 for done in range(25, 49)])  # the other half was not trained again
    more = measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=replace(TINY, resamples=150), real_val=VAL, keep=tmp_path,
                           progress=lambda fraction, text: pytest.fail("trained") if "training" in text else None)
    assert more.findings[0]["delta"]["value"] == whole.findings[0]["delta"]["value"]


@pytest.mark.parametrize(("change", "said"), [
    ({"classifier": replace(TINY.classifier, updates=5)}, "classifier"), ({"seed": 1}, "seed"),
    ({"synthetic_only": True}, "synthetic_only"),
])
def test_a_changed_protocol_is_refused(tmp_path, change, said):
    config = replace(TINY, classifier=replace(TINY.classifier, updates=2))
    measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=config, keep=tmp_path)
    with pytest.raises(InputError, match=rf"another study: .*{said}.* differ"):
        measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=replace(config, **change), keep=tmp_path)
    with pytest.raises(InputError, match="another study: synthetic differ"):
        measure_benefit(TRAIN, TEST, synthetic(seed=8), findings=["Mass"], config=config, keep=tmp_path)
    damaged = next(tmp_path.glob("*.npz"))
    damaged.write_bytes(b"half")
    with pytest.raises(InputError, match="SHA-256"):
        measure_benefit(TRAIN, TEST, synthetic(), findings=["Mass"], config=config, keep=tmp_path)


# The learning curve


def test_subsets_of_the_curve_are_nested_and_hold_just_so_many_positives():
    real = images(6, present=31, absent=40, name="train", images_per_patient=3)
    rows = np.arange(len(real))
    subsets = [set(fewer_positives(real, rows, "Mass", count, seed=0)) for count in (5, 10, 31)]
    positive = set(np.flatnonzero(real.column("Mass") == 1))
    assert [len(chosen & positive) for chosen in subsets] == [5, 10, 31]
    assert subsets[0] < subsets[1] < subsets[2] == set(rows)
    left_out = {real.patients()[row] for row in positive - subsets[0]} - {real.patients()[row] for row in positive & subsets[0]}
    assert left_out and not left_out & set(real.patients()[list(subsets[0])])  # nor their images without the finding


def test_the_curve_stands_in_the_report_and_on_its_page(tmp_path):
    config = replace(TINY, positives=(5, 10, 100))
    result = measure_benefit(images(6, present=30, absent=50, name="train"), TEST, synthetic(), findings=["Mass"], config=config)
    curve, = result.to_dict()["learning_curve"]
    assert [point["n_real_positive_train"] for point in curve["points"]] == [5, 10]
    assert curve["left_out"] == [{"n_real_positive_train": 100, "reason": "only 30 real training images show it"}]
    for point in curve["points"]:
        assert [arm["arm"] for arm in point["arms"]] == ["real", "real+synthetic"]
        assert point["delta"]["low"] <= point["delta"]["value"] <= point["delta"]["high"]
    report = Report(inputs={side: {"digest": "d"} for side in ("real", "synthetic")}, dimensions={"benefit": result.to_dimension()})
    page = report.write(tmp_path).read_text()
    assert "Learning curve: AUROC by real positive training images" in page
    assert Report.load(tmp_path).dimensions["benefit"].extra["learning_curve"] == [curve]


# Gate, classifiers, design


def test_the_gate_needs_every_finding_and_a_classifier_that_learns():
    entry = {"finding": "Mass", "verdict": "helps", "gate": {"reasons": []}}
    assert gate_reasons(Dimension("measured", findings=(entry,))) == []
    untested = {"not_tested": [{"finding": "Hernia", "reason": "in 0 patients"}]}
    assert gate_reasons(Dimension("measured", findings=(entry,), extra=untested)) == ["Hernia: not tested, in 0 patients"]
    assert gate_reasons(Dimension("skipped", reason="no images")) == ["no images"]
    probe = asked_config({"seeds": 3}, classifier="linear-probe", weights=None, updates=None, positives=(), seed=0)
    assert "quick screen" in gate_of({"delta": {"value": 0.1}, "verdict": "helps", "others_worse": []}, probe)["reasons"][0]


def test_one_split_tests_only_held_out_images():
    design = one_split(TRAIN, TEST, VAL)
    (part,), = design.parts
    assert {design.real.studies[row].file_name for row in part.test} == {study.file_name for study in TEST.studies}
    assert {design.real.studies[row].file_name for row in part.val} == {study.file_name for study in VAL.studies}
    assert design.test.pixels.tobytes() == TEST.pixels.tobytes()


# The command


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A prepared folder of drawings, and more drawings that pass for synthetic images."""
    folder, often = tmp_path_factory.mktemp("study"), {"Pneumothorax": 0.4}
    real = write_phantom_dataset(folder / "real", num=90, size=32, seed=0, prevalence=often)
    prepared = sx.prepare(real, size=32, out=folder / "prepared", split=(0.4, 0.3, 0.3))
    made = write_phantom_dataset(folder / "made", num=40, size=32, seed=1, prevalence=often)
    studies = [replace(study, origin="synthetic", patient_id="", study_id="", split="") for study in made.studies]
    write_table(made.path, studies)
    write_facts(made.path, name="made", studies=studies, synthetic=True, extra={"not_trained_on": [prepared.digest]})
    return prepared, made.path


def command(folders, out, *more):
    arguments = ["benefit", "--real", str(folders[0].path), "--synthetic", str(folders[1]), "--finding", "Pneumothorax", "--out", str(out),
                 "--updates", "2", *more]
    return CliRunner().invoke(app, arguments)


def test_the_command_measures_a_curve_and_the_gate_ends_with_4(folders, tmp_path):
    ended = command(folders, tmp_path, "--seeds", "3", "--gate", "--positives", "3", "5")
    assert ended.exit_code == 4 and "the gate says no: Pneumothorax: " in ended.output
    told = json.loads((tmp_path / "report.json").read_text())["dimensions"]["benefit"]
    assert [point["n_real_positive_train"] for point in told["learning_curve"][0]["points"]] == [3, 5]
    entry = told["findings"][0]
    assert entry["power"]["n_patients"] is None or entry["power"]["n_patients"] > 0
    assert all({"brier", "ece"} <= set(arm) for arm in entry["arms"])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "trainings").glob("*.npz")}
    assert command(folders, tmp_path, "--seeds", "3", "--positives", "3", "--positives", "5").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "trainings").glob("*.npz")} == kept


def test_a_set_that_has_not_seen_the_images_is_cross_validated_on_all_of_them(folders, tmp_path):
    ended = command(folders, tmp_path, "--seeds", "1", "--folds", "3", "--repeats", "3", "--json")
    assert ended.exit_code == 0, ended.output
    entry = json.loads((tmp_path / "report.json").read_text())["dimensions"]["benefit"]["findings"][0]
    assert entry["n_test"] == len(folders[0]) and entry["design"]["over"].startswith("all patients")
