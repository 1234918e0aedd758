"""A study over several sites: a site left out is left out, another hospital is new, a mark of the site is found out."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import synthorax as sx
from benefit_task import QUICK, images, synthetic
from synthorax.cli.app import app
from synthorax.data.dataset import write_facts, write_table
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.benefit import training as benefit_training
from synthorax.evaluation.benefit.design import one_split
from synthorax.evaluation.benefit.other_sites import fitted_external, site_jobs
from synthorax.evaluation.benefit.study import TRAININGS, BenefitConfig, measure_benefit
from synthorax.evaluation.report.record import Report
from synthorax.judges.classifiers import training_of

TINY = replace(QUICK, classifier=replace(QUICK.classifier, updates=3), resamples=200)


def at_sites(given, names=("a", "b", "c"), **columns):
    """The same images, in turn of these sites."""
    studies = tuple(replace(study, site=names[row % len(names)], **columns) for row, study in enumerate(given.studies))
    return replace(given, studies=studies)


TRAIN = at_sites(images(1, present=30, absent=60, name="train"), ("a", "b", "c", ""))
VAL, TEST = at_sites(images(4, present=20, absent=40, name="val")), at_sites(images(2, present=30, absent=60, name="test"))
MADE = at_sites(synthetic(), ("a", "", "b"))
AWAY = images(7, present=20, absent=30, name="away")
SITES = replace(TINY, leave_site_out=True)


def run(config=SITES, **more):
    return measure_benefit(TRAIN, TEST, MADE, findings=["Mass"], config=config, real_val=VAL, **more)


# A site left out


def test_trainings_without_a_site_see_none_of_its_images_and_are_tested_on_all_its_held_out_ones():
    design = one_split(TRAIN, TEST, VAL)
    jobs = site_jobs(design, MADE, ["Mass"], SITES)
    assert len(jobs) == 3 * 2 * 3 and len({job.name for job in jobs}) == 18
    site, made_of = (np.array([study.site for study in part.studies]) for part in (design.real, MADE))
    held_out = np.arange(len(TRAIN), len(design.real))
    for job in jobs:
        left_out = job.name.partition("without site ")[2][0]
        assert set(site[job.train]) == {"a", "b", "c"} - {left_out} and max(job.train) < len(TRAIN)
        assert sorted(job.asked) == sorted(held_out[site[held_out] == left_out])
        assert left_out not in made_of[job.synthetic] and set(job.synthetic) == set(np.flatnonzero(made_of != left_out))


def test_no_image_of_the_site_reaches_its_trainings(monkeypatch):
    reached, train = [], training_of(TINY.classifier)

    def noted(images, labels, **how):
        reached.append({image.tobytes() for image in images})
        return train(images, labels, **how)

    monkeypatch.setattr(benefit_training, "training_of", lambda config: noted)
    found = run().findings[0]["left_out_sites"]
    of_a = {image.tobytes() for given in (TRAIN, MADE) for image, study in zip(given.pixels, given.studies, strict=True)
            if study.site == "a"}
    without = reached[-18:-12]  # after all others come those without a, without b and without c
    assert not any(of_a & images for images in without) and all(of_a & images for images in reached[-12:])
    assert [row["site"] for row in found["sites"]] == ["a", "b", "c"] and found["skipped"] == []
    first = found["sites"][0]
    assert (first["n_real_train"], first["n_test"], first["n_synthetic_left_out"]) == (45, 50, 40)
    assert [arm["arm"] for arm in first["arms"]] == [arm["arm"] for arm in first["trained_on_it"]] == ["real", "real+synthetic"]
    assert first["delta"]["value"] == pytest.approx(first["arms"][1]["auroc"] - first["arms"][0]["auroc"])


def test_sites_may_be_left_out_later_and_a_killed_study_goes_on(tmp_path):
    plain = run(TINY, keep=tmp_path)
    assert "left_out_sites" not in plain.findings[0]
    usual, seen = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}, []
    whole = run(keep=tmp_path, progress=lambda fraction, text: seen.append(fraction) if "training" in text else None)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")} == usual and len(usual) == 12
    assert seen == pytest.approx([TRAININGS * done / 90 for done in range(37, 91)])  # 12 trainings were there, 18 are new
    kept = sorted((tmp_path / "sites").glob("*.npz"))
    assert len(kept) == 18
    for path in kept[::3]:
        path.unlink()
    assert run(keep=tmp_path).to_dict() == whole.to_dict()
    assert run(TINY, keep=tmp_path).findings[0]["delta"] == plain.findings[0]["delta"] == whole.findings[0]["delta"]


def test_what_cannot_be_left_out_says_why():
    one = measure_benefit(at_sites(TRAIN, ("a",)), at_sites(TEST, ("a",)), MADE, findings=["Mass"], config=SITES).findings[0]
    assert one["left_out_sites"]["skipped"] == [{"site": "a", "reason": "the real images name fewer than two sites"}]
    more = first_as(TRAIN, site="d")
    found = measure_benefit(more, TEST, MADE, findings=["Mass"], config=SITES, external=at_sites(AWAY, ("e",))).findings[0]
    assert [row["site"] for row in found["left_out_sites"]["sites"]] == ["a", "b", "c"]
    missing, = found["left_out_sites"]["skipped"]
    assert missing["site"] == "d" and "in 0 patients" in missing["reason"]
    labels = TRAIN.labels.copy()
    labels[[study.site != "a" for study in TRAIN.studies], 1] = 0
    found = measure_benefit(replace(TRAIN, labels=labels), TEST, MADE, findings=["Mass"], config=SITES).findings[0]["left_out_sites"]
    assert {entry["site"]: entry["reason"] for entry in found["skipped"]} == {
        "a": "the training images of the other sites are all with, or all without it"}
    with pytest.raises(UsageError, match="leave_site_out or folds"):
        BenefitConfig(folds=3, leave_site_out=True)


# Another hospital


def test_the_other_hospital_is_tested_by_the_classifiers_that_are_there_already():
    alone, both = run(TINY), run(TINY, external=AWAY)
    entry = both.findings[0]
    assert entry["external"]["n_test_positive"] == 20 and entry["external"]["n_test"] == 50
    assert all(entry[key] == alone.findings[0][key] for key in ("delta", "arms", "subgroups"))
    same = measure_benefit(TRAIN, AWAY, MADE, findings=["Mass"], config=TINY).findings[0]  # tested there and nowhere else
    assert [arm["auroc"] for arm in entry["external"]["arms"]] == pytest.approx(
        [arm["auroc"] for arm in same["arms"] if arm["arm"] in ("real", "real+synthetic")])
    assert entry["external"]["delta"]["value"] == pytest.approx(same["delta"]["value"])


def test_folds_are_tested_on_the_other_hospital_too():
    entry = run(replace(TINY, folds=3, repeats=3, seeds=1), external=AWAY).findings[0]
    assert entry["external"]["n_test"] == 50 and entry["n_test"] == len(VAL) + len(TEST)


def test_findings_are_matched_by_name_and_bits_are_made_alike():
    turned = replace(AWAY, findings=("Mass", "Hernia"), labels=AWAY.labels[:, ::-1], pixels=AWAY.pixels.astype(np.uint16) * 257)
    fitted = fitted_external(turned, TRAIN, {})
    assert np.array_equal(fitted.column("Mass"), AWAY.column("Mass")) and np.isnan(fitted.column("Effusion")).all()
    assert np.array_equal(fitted.pixels, AWAY.pixels) and fitted.pixels.dtype == np.uint8
    found = measure_benefit(TRAIN, TEST, MADE, findings=["Mass", "Effusion"], config=TINY, external=turned).findings
    assert "arms" in found[0]["external"] and found[1]["external"] == {"skipped": "the external images do not state it"}
    few = measure_benefit(TRAIN, TEST, MADE, findings=["Mass"], config=TINY, external=AWAY.take(range(18, 50))).findings[0]
    assert few["external"]["skipped"].startswith("the external images show it in 2 patients")


def first_as(given, **changes):
    return replace(given, studies=(replace(given.studies[0], **changes), *given.studies[1:]))


@pytest.mark.parametrize(("external", "said"), [
    (first_as(AWAY, patient_id="train3"), "1 patients have training and external images"),
    (first_as(AWAY, patient_id="val3"), "validation and external"), (first_as(AWAY, patient_id=""), "away0.png has no patient"),
    (first_as(AWAY, origin="synthetic"), "away0.png is not real"),
    (replace(AWAY, pixels=np.concatenate([TEST.pixels[5:6], AWAY.pixels[1:]])), "away0.png is, pixel for pixel, the test image test5.png"),
    (replace(AWAY, pixels=np.concatenate([MADE.pixels[5:6], AWAY.pixels[1:]])), "the synthetic image made5.png"),
    (replace(AWAY, findings=("Hernia", "Fibrosis")), "none of the findings"),
])
def test_external_images_that_are_not_new_are_refused(external, said):
    with pytest.raises(InputError, match=said):
        run(TINY, external=external, progress=lambda *now: pytest.fail("trained"))


# A mark of the site


def marked(given, *, where):
    """Images of site a, which has most of the findings, carry its mark; of the others none."""
    rng, shown = np.random.default_rng(5), given.column("Mass") == 1
    at_a = rng.random(len(given)) < np.where(shown, where, 1 - where)
    images = given.pixels.copy()
    images[at_a, :8, :8] = 255
    return replace(given, pixels=images, studies=tuple(replace(study, site="a" if own else "b") for study, own in
                                                       zip(given.studies, at_a, strict=True)))


def test_a_mark_of_the_site_is_found_out_and_images_without_it_mend_that():
    """In the real training images the mark of the site nearly stands for the finding; in the synthetic ones it says nothing."""
    train = marked(images(1, present=40, absent=40, name="train", signal=20), where=0.95)
    test = marked(images(2, present=150, absent=150, name="test", signal=20), where=0.8)
    made = marked(synthetic(present=300, absent=300, signal=20), where=0.5)
    config = replace(QUICK, resamples=400, classifier=replace(QUICK.classifier, updates=150))
    entry = measure_benefit(train, test, made, findings=["Mass"], config=config).findings[0]
    checked = next(record for record in entry["shortcuts"]["checked"] if record["attribute"] == "site")
    real, added = checked["arms"]
    assert real["shortcut"] and real["association"][0]["low"] > 0.2
    assert checked["change"]["high"] < 0 and added["excess"]["value"] < real["excess"]["value"] / 2


# The command


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Drawings of two sites, of another hospital, and some that pass for synthetic images."""
    folder, often, prepared = tmp_path_factory.mktemp("sites"), {"Pneumothorax": 0.4}, []
    for seed, name, num in ((0, "real", 140), (7, "away", 60)):
        drawn = write_phantom_dataset(folder / name, num=num, size=32, seed=seed, prevalence=often)
        studies = [replace(study, site="north" if row % 2 else "south", patient_id=name + study.patient_id)
                   for row, study in enumerate(drawn.studies)]
        write_table(drawn.path, studies)
        prepared.append(sx.prepare(drawn.path, size=32, out=folder / f"prepared {name}", split=(0.3, 0.2, 0.5)).path)
    made = write_phantom_dataset(folder / "made", num=40, size=32, seed=1, prevalence=often)
    studies = [replace(study, origin="synthetic", patient_id="", study_id="", split="") for study in made.studies]
    write_table(made.path, studies)
    write_facts(made.path, name="made", studies=studies, synthetic=True)
    return *prepared, made.path


def test_the_command_shows_groups_sites_the_other_hospital_and_the_gallery(folders, tmp_path):
    real, away, made = map(str, folders)
    asked = ["benefit", "--real", real, "--synthetic", made, "--finding", "Pneumothorax", "--out", str(tmp_path), "--updates", "2",
             "--seeds", "3", "--leave-site-out"]
    ended = CliRunner().invoke(app, [*asked, "--external", away, "--gallery"])
    assert ended.exit_code == 0, ended.output
    told = json.loads((tmp_path / "report.json").read_text())
    entry = told["dimensions"]["benefit"]["findings"][0]
    assert {row["site"] for row in entry["left_out_sites"]["sites"]} == {"north", "south"}
    assert told["inputs"]["external"]["images"] == entry["external"]["n_test"] == 60 and entry["subgroups"]["groups"]
    page = (tmp_path / "report.html").read_text()
    for words in ("AUROC on the test images of each group", "classifiers that did not train on it", "Another hospital",
                  "images of real patients (the gallery of failures)", "on which synthetic images helped most", "as a shortcut"):
        assert words in page, words
    assert len(list((tmp_path / "figures").glob("*.png"))) == len(told["figures"]) >= 2
    patients = {study.patient_id for study in Prepared.load(real).studies}
    assert not any(patient in page for patient in patients)
    assert Report.load(tmp_path).dimensions["benefit"].findings[0]["external"] == entry["external"]


def test_the_gallery_is_off_unless_it_is_asked_for():
    assert BenefitConfig().gallery is False and run(TINY).figures == {} != run(replace(TINY, gallery=True)).figures
