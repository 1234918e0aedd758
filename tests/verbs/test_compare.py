"""Comparisons at tiny size: what is refused, what a killed one becomes, what the table holds, and whether bad generators rank last."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import synthorax as sx
from synthorax.cli.values import count_of, split_seeds
from synthorax.data.dataset import read_dataset
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.comparison.measures import (
    DISTRIBUTION,
    REQUEST,
    VIEW,
    WITHIN,
    RealReference,
    downstream,
    quality_record,
    reference_record,
)
from synthorax.evaluation.comparison.pages import DOWNSTREAM, REAL, markdown, sentences, summary, table
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.statistics.over_seeds import over_seeds
from synthorax.files import write_json
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.features import load_features
from synthorax.metric_table import metric_of
from synthorax.run import WEIGHTS_NAME, read_spec
from synthorax.steps.training.comparison_design import Terms, design_comparison
from synthorax.steps.training.training_subset import drawn_images
from synthorax.types import ImageSet
from synthorax.verbs.comparison import BATCH, ComparisonResult, Machine, _apart, train_arm
from trainings import COMPRESSOR, SMALL_VAE, digests, finished, in_new_process, killed_when, toy_images

VAE = [f"vae-64:{text}" for text in (*SMALL_VAE, "model.image_size=32", "train.checkpoint_every=1")]
GAN = ["projection-gan-64:" + text for text in ("model.image_size=32", "model.latent_size=4", "model.channels=4", "model.embedding=8",
                                                "objective.discriminator_channels=4")]
LATENT = ["latent-64:" + text for text in ("model.image_size=32", "model.channels=8", "model.multipliers=[1, 2]", "model.embedding=16",
                                           "model.attention=[false, true]", "sample.steps=2")]
LATENT += ["kl-autoencoder-64:" + text for text in COMPRESSOR if "discriminator" not in text and "adversarial" not in text]
SMALL = ["train.batch_size=4", "train.precision=fp32", "train.log_every=1"]
FAMILIES = ["vae-64", "projection-gan-64", "latent-64"]
ALL = [":" + text for text in SMALL]
HERE: dict[str, Any] = {"device": "cpu", "threads": 1, "apart": False, "num": 24, "features": "radiomics",  # the quickest to look at images
                        "overrides": ALL + VAE + GAN + LATENT}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("images")
    dataset = write_phantom_dataset(folder / "phantom", num=150, size=32, seed=0, prevalence={"Pneumothorax": 0.4, "Effusion": 0.4})
    return sx.prepare(dataset, size=32, out=folder / "prepared", split=(0.5, 0.2, 0.3))


def only_vae(out: Path, data: Path, **changes: Any) -> None:
    """A comparison of one arm; what a killed process was doing."""
    few = {**HERE, "overrides": ALL + VAE, "budget_images": 80, "seeds": [0]}
    sx.compare(["vae-64"], data, out=out, **{**few, **changes})


@pytest.fixture(scope="module")
def three_arms(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> ComparisonResult:
    out = tmp_path_factory.mktemp("comparison") / "a"
    result = sx.compare(FAMILIES, prepared, out=out, budget_images=200, seeds=[0], **HERE)
    assert isinstance(result, ComparisonResult)
    return result


def test_the_table_holds_every_family_and_real_images_first(three_arms: ComparisonResult) -> None:
    columns, rows = table(three_arms.report)
    assert [row[0] for row in rows] == [REAL, *FAMILIES]
    assert all(len(row) == len(columns) for row in rows)
    assert {"comparison.json", "comparison.md", "comparison.html", "comparison.png"} <= {path.name for path in three_arms.out.iterdir()}
    text, html = markdown(three_arms.report), (three_arms.out / "comparison.html").read_text()
    assert "Only 1 of 3 seeds" in text and "Only 1 of 3 seeds" in html
    assert all(name in html for name in FAMILIES)
    cells = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert "cannot be asked" in cells["vae-64"]["AUROC of the requested finding"]
    assert cells["latent-64"]["peak MB in training"] == "not measured"


def test_both_stages_share_one_budget_and_are_counted(three_arms: ComparisonResult) -> None:
    record = next(record for record in three_arms.report["records"] if record["arm"] == "latent-64")
    first, second = record["stages"]
    assert (first["recipe"], second["recipe"]) == ("kl-autoencoder-64", "latent-64")
    assert first["images"] == 80 and second["images"] == 120  # 40 and 60 % of 200
    assert record["parameters"] == first["parameters"] + second["parameters"]
    assert record["parameters_trained"] == sum(stage["parameters_trained"] for stage in record["stages"])
    others = [sum(stage["images"] for stage in record["stages"]) for record in three_arms.report["records"]]
    assert all(200 <= images < 200 + 2 * 4 for images in others), "at most the images of the last step more"
    gan = next(record for record in three_arms.report["records"] if record["arm"] == "projection-gan-64")
    assert gan["parameters_trained"] > gan["parameters"], "a discriminator was trained too"


def test_equal_requests_and_seeds(three_arms: ComparisonResult) -> None:
    made = {name: read_dataset(three_arms.out / "made" / f"{name}-seed0").studies for name in FAMILIES}
    assert len({tuple(study.extra["seed"] for study in studies) for studies in made.values()}) == 1
    gan, latent = (made[name] for name in FAMILIES[1:])
    assert [(study.labels, study.view, study.sex) for study in gan] == [(study.labels, study.view, study.sex) for study in latent]
    assert any(study.labels for study in gan) and not any(study.labels for study in made["vae-64"]), "no label is asked for"


def test_killed_and_continued_is_the_same_to_the_bit(prepared: Prepared, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    only_vae(straight, prepared.path)
    runs, made = killed / "runs" / "vae-64-seed0", killed / "made" / "vae-64-seed0" / "images"
    for moment in (lambda: (runs / "metrics.jsonl").exists(), lambda: len(list(made.glob("*.png"))) >= BATCH):
        assert killed_when(in_new_process(only_vae, killed, prepared.path), moment)
    finished(in_new_process(only_vae, killed, prepared.path))
    for part, pattern in (("runs", WEIGHTS_NAME), ("made", "*.png"), ("pieces", "*-measures.json"), ("pieces", "real-images.json")):
        assert digests(killed / part, pattern) == digests(straight / part, pattern) != {}
    before = digests(killed / "pieces")
    only_vae(killed, prepared.path)
    assert digests(killed / "pieces") == before, "what is finished is not done again"
    with pytest.raises(InputError, match=r"other terms: images differ"):
        only_vae(killed, prepared.path, budget_images=81)
    with pytest.raises(InputError, match="the settings of vae-64 differ"):
        only_vae(killed, prepared.path, overrides=[":train.batch_size=2", *VAE])


def test_only_one_training(prepared: Prepared, tmp_path: Path) -> None:
    run = sx.compare(["vae-64"], prepared, out=tmp_path / "c", budget_images=20, seeds=[0, 1], only=("vae-64", 1),
                     **{**HERE, "overrides": ALL + VAE})
    assert run.finished and {path.name for path in (tmp_path / "c" / "runs").iterdir()} == {"vae-64-seed1"}


def test_side_by_side_is_the_same_as_one_after_the_other(three_arms: ComparisonResult, prepared: Prepared, tmp_path: Path) -> None:
    apart = {**HERE, "apart": True, "clock": "processor"}
    both = sx.compare(["vae-64", "projection-gan-64"], prepared, out=tmp_path / "c", budget_images=200, seeds=[0], jobs=2,
                      **{**apart, "overrides": ALL + VAE + GAN})
    assert isinstance(both, ComparisonResult)
    for name in ("vae-64", "projection-gan-64"):
        one, other = (next(record for record in result.report["records"] if record["arm"] == name) for result in (three_arms, both))
        assert {measure: one[measure] for measure in DISTRIBUTION} == {measure: other[measure] for measure in DISTRIBUTION}


@pytest.mark.parametrize(("changes", "message"), [({"jobs": 0}, "at least 1"), ({"jobs": 2, "apart": True}, "--clock processor"),
                                                  ({"jobs": 2, "clock": "processor"}, "apart=False")])
def test_jobs_that_would_not_be_fair_are_refused(changes: dict[str, Any], message: str, prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        sx.compare(["vae-64"], prepared, out=tmp_path / "c", budget_images=50, seeds=[0], **{**HERE, "overrides": ALL + VAE, **changes})
    assert not (tmp_path / "c" / "runs").exists()


def test_trainings_run_elsewhere_join_the_table(three_arms: ComparisonResult, prepared: Prepared, tmp_path: Path) -> None:
    def here(out: str, *, budget_images: int = 200, seeds: list[int], also: Path) -> ComparisonResult:
        result = sx.compare(["vae-64"], prepared, out=tmp_path / out, budget_images=budget_images, seeds=seeds, also=[also],
                            **{**HERE, "overrides": ALL + VAE})
        assert isinstance(result, ComparisonResult)
        return result

    elsewhere = three_arms.out / "comparison.json"
    report = here("one more seed", seeds=[1], also=elsewhere).report
    assert report["seeds"] == [0, 1] and [entry["arm"] for entry in report["arms"]] == FAMILIES
    assert [entry["seeds"] for entry in report["arms"]] == [2, 1, 1] and list(report["settings"]) == FAMILIES
    fids = {record["seed"]: record["fid"]["value"] for record in report["records"] if record["arm"] == "vae-64"}
    assert report["arms"][0]["fid"]["value"] == pytest.approx((fids[0] + fids[1]) / 2)
    assert table(report)[1][2][0] == "projection-gan-64 (1 of 2 seeds)"
    assert not any("kinds of processor" in sentence for sentence in sentences(report))
    report["records"][0]["stages"][0]["machine"]["processor"] = "another"
    assert any("2 kinds of processor (" in sentence for sentence in sentences(report))

    for changes, message in (({"seeds": [0]}, "holds vae-64 with seed 0, which is compared already"),
                             ({"seeds": [1], "budget_images": 100}, "on other terms: budget differ")):
        with pytest.raises(InputError, match=message):
            here("refused", also=elsewhere, **changes)
    other = json.loads(elsewhere.read_text())
    for key, value, message in (("settings", {"vae-64": ["name = 'vae-64'"]}, "the settings of vae-64"), ("judges", [], "the judges")):
        write_json(tmp_path / "changed.json", other | {key: value})
        with pytest.raises(InputError, match=message):
            here("refused", seeds=[1], also=tmp_path / "changed.json")
    for text, message in (("{}", "does not state 'schema'"), ("{", "not JSON")):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(InputError, match=message):
            here("refused", seeds=[1], also=tmp_path / "wrong.json")
    assert not (tmp_path / "refused" / "runs").exists()


def test_a_training_of_its_own_process_tells_its_memory(prepared: Prepared, tmp_path: Path) -> None:
    design = design_comparison(["vae-64"], prepared, out=tmp_path / "c", terms=Terms(images=8, num=24), seeds=[0],
                      overrides=ALL + VAE)
    told = _apart(train_arm, design, design.arms[0], 0, Machine(device="cpu", threads=1))
    assert told["training_mb"] is None or 50 < told["training_mb"] < 4000
    assert read_spec(tmp_path / "c" / "runs" / "vae-64-seed0" / WEIGHTS_NAME)[1]["images_seen"] == told["stages"][0]["images"] == 8


REFUSED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "unknown recipe": (["vae-65"], {}, "did you mean 'vae-64'"),
    "sizes": (["vae-64", "kumar-vae"], {}, "images of different sizes cannot be compared"),
    "compressor": (["kl-autoencoder-64"], {"overrides": ["kl-autoencoder-64:model.image_size=32"]}, "makes no images"),
    "no first stage": (["latent-64"], {"overrides": ["latent-64:model.image_size=32"]}, "ships for 64, 256, 512 px"),
    "student": (["student"], {}, "learns from a teacher"),
    "too few images": (["vae-64"], {"train_images": 100, "overrides": VAE}, "--train-images 100: there are"),
    "too few with it": (["vae-64"], {"train_images": 70, "finding": "Effusion", "overrides": VAE}, "training images show Effusion"),
    "batch norm": (["vae-64", "dcgan-64"], {"overrides": [*VAE, "dcgan-64:model.image_size=32", "dcgan-64:train.batch_size=1"]},
                   "batch normalisation"),
    "common setting": (["vae-64"], {"overrides": ["vae-64:train.steps=3"]}, "the same for all"),
    "setting of nobody": (["vae-64"], {"overrides": ["dcgan-64:train.batch_size=3"]}, "that recipe is not compared"),
    "no budget": (["vae-64"], {"budget_images": None}, "needs one budget"),
    "two budgets": (["vae-64"], {"budget": "1m"}, "needs one budget"),
    "finding of all": (["vae-64"], {"finding": "Effusion"}, "--train-images"),
    "seeds": (["vae-64"], {"seeds": [1, 1]}, "different whole numbers"),
    "twice": (["vae-64", "vae-64"], {}, "named twice"),
    "few made": (["vae-64"], {"num": 3}, "too few to measure"),
    "way without base": (["vae-64"], {"ways": ["lora"]}, "--base"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_before_any_training(what: str, prepared: Prepared, tmp_path: Path) -> None:
    recipes, changes, message = REFUSED[what]
    with pytest.raises((UsageError, InputError), match=message):
        sx.compare(recipes, prepared, out=tmp_path / "c", **{"budget_images": 50, "num": 24, "seeds": [0], **changes})
    assert not (tmp_path / "c" / "runs").exists()


def test_a_mask_family_is_refused_where_no_image_has_masks(prepared: Prepared, tmp_path: Path) -> None:
    bare = replace(prepared, studies=tuple(replace(study, masks={}) for study in prepared.studies))
    with pytest.raises(UsageError, match="the training set has none"):
        sx.compare(["spade-gan-64"], bare, out=tmp_path / "c", budget_images=50, num=24, overrides=["model.image_size=32"])


def test_few_images_are_nested_and_half_show_the_finding(prepared: Prepared) -> None:
    images = prepared.images("train")
    for finding in ("", "Effusion"):
        few, more = (drawn_images(images, num=num, seed=1, finding=finding) for num in (6, 12))
        assert few == more[:6] and len({study.file_name for study in more}) == 12
        assert few != drawn_images(images, num=6, seed=2, finding=finding)
    rows = [images.studies.index(study) for study in more]
    assert images.column("Effusion")[rows].tolist() == [1.0, 0.0] * 6


def test_few_images_and_a_base(prepared: Prepared, tmp_path: Path) -> None:
    base = sx.train("edm-64", prepared, out=tmp_path / "base", device="cpu", threads=1, seed=5, overrides=[
        "model.image_size=32", "model.channels=8", "model.multipliers=[1, 2]", "model.attention=[false, true]", "model.embedding=16",
        "model.patch=2", "train.steps=4", "train.batch_size=4", "train.sample_every=0", "sample.steps=2"])
    result = sx.compare(["vae-64"], prepared, out=tmp_path / "c", budget_images=48, seeds=[0], train_images=10, finding="Effusion",
                        base=base.path, ways=["lora"], judge_updates=4, **{**HERE, "overrides": ALL + VAE})
    assert isinstance(result, ComparisonResult)
    by_arm = {entry["arm"]: entry for entry in result.report["arms"]}
    assert list(by_arm) == ["vae-64", "edm-64+base:lora"]
    assert "skipped" in by_arm["vae-64"][DOWNSTREAM] and {"value", "low", "high"} <= set(by_arm["edm-64+base:lora"][DOWNSTREAM])
    assert read_spec(tmp_path / "c" / "runs" / "vae-64-seed0" / WEIGHTS_NAME)[1]["data"]["images"] == 10
    assert any("has learned from images of this data set" in note for note in result.report["notes"])


def test_a_constant_generator_ranks_last_and_real_images_first(prepared: Prepared) -> None:
    held_out = prepared.images("test")
    reference = RealReference.of(RealImages(train=prepared.images("train"), held_out=held_out), load_features("efficientnet-lite0"))
    train, rng = prepared.images("train"), np.random.default_rng(0)
    noisy = np.clip(train.pixels.astype(float) + rng.normal(0, 40, train.pixels.shape), 0, 255).astype(train.pixels.dtype)
    grey = np.full_like(train.pixels, train.pixels.mean())

    def as_image_set(images: np.ndarray) -> ImageSet:
        return ImageSet(pixels=images[:40], studies=train.studies[:40], findings=train.findings, labels=train.labels[:40], digest="")

    scores = {name: quality_record(reference, as_image_set(images)) for name, images in (("noisy", noisy), ("grey", grey))}
    real = reference_record(reference, num=40)
    for name in ("coverage", "recall"):
        assert scores["grey"][name]["value"] <= scores["noisy"][name]["value"] < real[name]["value"]
    assert scores["grey"]["coverage"]["value"] < 0.1 < real["coverage"]["value"]
    assert scores["grey"]["ms_ssim_within_synthetic"]["value"] > 0.99 > real["ms_ssim_within_synthetic"]["value"]
    assert scores["grey"]["fid"]["value"] > real["fid"]["value"]


def test_images_with_true_labels_help_downstream_and_swapped_ones_do_not() -> None:
    few, more, test = (toy_images(32, num=num, seed=num) for num in (8, 60, 72))
    config = ClassifierConfig(updates=40, width=8, batch_size=16)
    true = downstream(few, more, test, finding="Effusion", config=config, seed=0)
    swapped = ImageSet(pixels=more.pixels, studies=more.studies, findings=more.findings, labels=1 - more.labels, digest="")
    false = downstream(few, swapped, test, finding="Effusion", config=config, seed=0)
    assert true["auroc_without"] == false["auroc_without"] and true["auroc_with"] > 0.9 > 0.5 > false["auroc_with"]
    assert metric_of("downstream_auroc_gain").better == "higher" and true["value"] > false["value"]
    assert "skipped" in downstream(few, None, test, finding="Effusion", config=config, seed=0)


def test_the_best_is_marked_only_where_its_interval_is_clear() -> None:
    def record(arm: str, fid: float, error: float) -> dict[str, Any]:
        same = {"value": 0.5, "error": 0.1}
        return {"arm": arm, "seed": 0, "fid": {"value": fid, "error": error},
                **dict.fromkeys((*DISTRIBUTION[1:], WITHIN, REQUEST, VIEW), same),
                "copies": {"called": 0, "of": 10, "alarms": 0, "alarms_of": 10}, "parameters": 1, "parameters_trained": 1,
                **dict.fromkeys(("images_per_second", "ms_per_image", "ms_per_image_of_8", "training_mb", "sampling_mb"), 5822.4)}

    for error, marked in ((1.0, True), (9.0, False)):
        arms = summary([record("a", 10.0, error), record("b", 20.0, error), {"arm": "c", "seed": 0, "failed": "the loss is not finite"}])
        _, rows = table({"arms": arms, "reference": record(REAL, 1.0, 1.0)})
        assert rows[1][1].startswith("**10.0**") is marked
        assert rows[1][-1] == "5,822", "as people write it"
        assert "**" not in rows[2][1] and rows[3][1] == "failed: the loss is not finite"


def test_the_wider_interval_counts() -> None:
    assert over_seeds([1.0, 1.0, 1.0], [0.5, 0.5, 0.5])["high"] == pytest.approx(1 + 1.96 * 0.5, abs=1e-3)
    assert over_seeds([0.0, 1.0, 2.0], [0.0, 0.0, 0.0])["high"] == pytest.approx(1 + 4.3027 / np.sqrt(3), abs=1e-3)


def test_words_of_the_command_line() -> None:
    assert split_seeds(["edm-64", "vae-64", "1", "2"], ["0"]) == (["edm-64", "vae-64"], [0, 1, 2])
    assert split_seeds(["edm-64"], None) == (["edm-64"], [0, 1, 2])
    assert (count_of("budget-images", "50k"), count_of("budget-images", "7")) == (50_000, 7)
    with pytest.raises(UsageError, match="50k"):
        count_of("budget-images", "much")
