"""augment --mode insert and both: plan rows say how each image is made, hosts are training images, masks stay, both kinds are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import synthorax as sx
from synthorax.data.dataset import read_dataset, write_dataset
from synthorax.data.derived import derived_rows
from synthorax.data.image_files import read_image
from synthorax.data.pixels import letterbox, write_png
from synthorax.data.prepared import Prepared
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.benefit.study import BenefitConfig
from synthorax.evaluation.report.record import Report
from synthorax.judges.classifier import ClassifierConfig
from synthorax.steps.models.recipe import load_recipe
from synthorax.steps.planning.plan import read_plan
from synthorax.steps.planning.row import PlanRow
from synthorax.types import Stated, Study
from synthorax.verbs.augmentation import Work
from synthorax.verbs.synthesis import generate
from thorax import thorax
from trainings import SMALL_DIFFUSION

JUDGE = ClassifierConfig(updates=2, batch_size=8, width=4, input_size=32, autocast=False)
BENEFIT = BenefitConfig(seeds=3, classifier=JUDGE, resamples=100, probe=False, sweep=(), pretraining=False, synthetic_only=False,
                        class_weighted=False)
WORK = Work(steps=2, learning_rate=1e-3, augment=False, judge=JUDGE, benefit=BENEFIT)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thoraxes of formulas; a third have a nodule as a label, and every image has its lung mask and a column of the user's own."""
    folder = tmp_path_factory.mktemp("images")
    studies = []
    for number in range(60):
        drawn = thorax(80, seed=number)
        write_png(folder / f"images/{number}.png", drawn.pixels)
        write_png(folder / f"masks/lung/{number}.png", drawn.lungs.astype(np.uint8) * 255)
        labels = {"Nodule": Stated.PRESENT} if number % 3 == 0 else {"No Finding": Stated.PRESENT}
        studies.append(Study(file_name=f"images/{number}.png", patient_id=f"p{number}", labels=labels, view="PA", sex="M", age_years=50,
                             masks={"lung_mask": (f"masks/lung/{number}.png",)}, extra={"ward": f"w{number}"}))
    write_dataset(folder, studies, name="images", synthetic=False, facts={"labels": ["Nodule"]})
    return folder


@pytest.fixture(scope="module")
def by_insertion(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("augmented") / "out"
    made = sx.augment(images, findings=["Nodule"], out=out, mode="insert", num=6, recipe="edm-64", seed=1, device="cpu", threads=1,
                      work=WORK)
    assert made.run is None and not made.fell_short and made.to_dict()["inserted_images"] == 6 and "6 of them lesions inserted" in str(made)
    return out


def test_the_plan_says_how_each_image_is_made_and_of_whom(by_insertion: Path) -> None:
    plan = read_plan(by_insertion / "plan.csv")
    assert {row.method for row in plan.rows} == {"insert"} and len(plan) == 6
    train = {study.file_name for study in Prepared.load(by_insertion / "prepared").studies if study.split == "train"}
    assert {row.pair_of for row in plan.rows} <= train
    made = read_dataset(by_insertion / "synthetic")
    assert [study.extra["pair_of"] for study in made.studies] == [row.pair_of for row in plan.rows]
    assert made.studies[0].extra["seed"] == str(plan.rows[0].seed)
    with pytest.raises(InputError, match="6 rows are to be inserted into radiographs"):
        generate("phantom-64", by_insertion / "plan.csv", out=by_insertion.parent / "made", device="cpu", threads=1)


def test_outside_the_lesion_an_inserted_image_is_the_prepared_training_image(by_insertion: Path) -> None:
    prepared, made = Prepared.load(by_insertion / "prepared"), read_dataset(by_insertion / "synthetic")
    for study in made.studies:
        host = letterbox(read_image(prepared.source / study.extra["pair_of"]), prepared.size)
        image = read_image(made.path / study.file_name)
        assert image.shape == (prepared.size, prepared.size) and 0 < (image != host).mean() < 0.3
        assert read_image(made.path / study.masks["lesion_mask"][0]).shape == image.shape


def test_the_training_set_keeps_masks_and_columns_of_both_kinds(by_insertion: Path) -> None:
    train = read_dataset(by_insertion / "train")
    real = [study for study in train.studies if study.origin == "real"]
    derived = [train.studies[row] for row in derived_rows(train.studies)]
    assert len(derived) == 6 and all(study.masks.get("lung_mask") and study.extra["ward"] for study in real)
    assert all(study.masks.get("lesion_mask") and study.masks.get("lung_mask") and study.extra["lesion_box"] for study in derived)
    assert {study.patient_id for study in derived} <= {study.patient_id for study in real}
    assert not list(by_insertion.glob("train/private_manifest.jsonl")) and not list(by_insertion.glob("synthetic/private_manifest.jsonl"))
    report = Report.load(by_insertion)
    assert report.inputs["synthetic"]["inserted"] == 6 and report.inputs["synthetic"]["generated"] == 0
    assert any("recognised" in note for note in report.notes) and "--mode insert" in report.command
    page = (by_insertion / "report.html").read_text()
    assert page.count("radiographs of patients, with an inserted lesion") >= 2 and "of no patient</figcaption>" not in page
    assert "show no patient" not in page


def test_both_make_half_of_the_images_each_way(images: Path, tmp_path: Path) -> None:
    made = sx.augment(images, findings=["Nodule"], out=tmp_path / "out", mode="both", num=6, recipe=small(tmp_path), seed=1, device="cpu",
                      threads=1, work=WORK)
    methods = [row.method or "generate" for row in read_plan(tmp_path / "out" / "plan.csv").rows]
    assert methods.count("insert") == 3 and methods.count("generate") == 6, "three with the finding, each with a companion without it"
    assert all(row.method for row in read_plan(tmp_path / "out" / "plan.csv").rows), "each row says it itself"
    assert "(6 to generate, 3 to insert)" in str(made.plan)
    assert made.synthetic is not None and len(derived_rows(made.synthetic.studies)) == 3
    assert made.report.inputs["synthetic"]["inserted"] == 3
    told = " ".join(made.report.notes)
    generated = len(made.synthetic) - 3
    assert f"{generated} {'was' if generated == 1 else 'were'} generated, of no patient, and 3 are derived from patients" in told
    assert ("The generated images were left out" in told) == (generated == 0)


def test_without_a_number_normal_images_are_what_is_balanced_against(images: Path, tmp_path: Path) -> None:
    made = sx.augment(images, findings=["Nodule"], out=tmp_path / "out", mode="insert", seed=1, device="cpu", threads=1, work=WORK)
    train = Prepared.load(tmp_path / "out" / "prepared").images("train")
    shown, normal = (int((train.column("Nodule") == value).sum()) for value in (1, 0))
    assert made.synthetic is not None and len(made.plan) == normal - shown > 5


def small(folder: Path) -> str:
    """A recipe as small as it can be."""
    path = folder / "tiny.toml"
    path.write_text(load_recipe("edm-64", overrides=[text for text in SMALL_DIFFUSION if "image_size" not in text]).to_toml())
    return str(path)


def test_what_cannot_be_is_refused_before_any_work(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown mode 'inserted'; did you mean 'insert'"):
        sx.augment(images, findings=["Nodule"], out=tmp_path / "out", mode="inserted")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing inserts 'Hernia'"):
        sx.augment(images, findings=["Hernia"], out=tmp_path / "out", mode="both", allow=["Hernia"])
    assert not (tmp_path / "out").exists()


def test_a_plan_row_states_its_method_only_where_it_has_one() -> None:
    """Claims of generations are made of the cells of their plans, so plans of earlier versions must keep their cells."""
    assert "method" not in PlanRow(seed=1).cells()
    assert PlanRow(seed=1, method="insert", pair_of="a.png").cells()["pair_of"] == "a.png"
