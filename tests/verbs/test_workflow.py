"""The whole way at tiny size, through the public Python names, on a drawn phantom."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import synthorax as sx
from synthorax.cli.app import app
from synthorax.data.dataset import Dataset, read_dataset
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.benefit.study import BenefitConfig
from synthorax.evaluation.dimensions.radiomics_quality import ITEMS
from synthorax.judges.classifier import ClassifierConfig
from synthorax.run import Run, read_spec

TINY = ["model.image_size=32", "model.channels=8", "model.multipliers=[1, 2]", "model.attention=[false, true]", "model.embedding=16",
        "model.patch=2", "train.steps=12", "train.batch_size=4", "train.checkpoint_every=5", "train.sample_every=0"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("images")
    dataset = write_phantom_dataset(folder / "phantom", num=150, size=32, seed=0, prevalence={"Pneumothorax": 0.3, "Effusion": 0.3})
    return sx.prepare(dataset, size=32, out=folder / "prepared", split=(0.5, 0.2, 0.3))


@pytest.fixture(scope="module")
def run(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sx.train("edm-64", prepared, out=tmp_path_factory.mktemp("runs") / "a", overrides=TINY)


@pytest.fixture(scope="module")
def synthetic(run: Run, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    plan = sx.plan(prepared, count={"Pneumothorax": 25}, seed=1)
    return sx.generate(run, plan, out=tmp_path_factory.mktemp("made") / "synthetic", settings={"steps": 3})


def test_a_run_leaves_what_it_promises(run: Run) -> None:
    names = {path.name for path in run.path.iterdir()}
    assert {"config.toml", "data.json", "model.safetensors", "model.safetensors.sha256", "metrics.jsonl", "card.md"} <= names
    assert "12 steps" in (run.path / "card.md").read_text()


def test_a_finished_run_is_not_trained_again_and_another_is_refused(run: Run, prepared: Prepared) -> None:
    before = run.weights.read_bytes()
    sx.train("edm-64", prepared, out=run.path, overrides=TINY)
    assert run.weights.read_bytes() == before
    with pytest.raises(InputError, match="another recipe"):
        sx.train("edm-64", prepared, out=run.path, overrides=[*TINY, "train.seed=1"])


def test_a_training_that_was_refused_does_not_bind_its_folder(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs at least two images a batch"):
        sx.train("dcgan-64", prepared, out=tmp_path / "r", overrides=["model.image_size=32", "model.channels=4", "train.batch_size=1"])
    assert sx.train("edm-64", prepared, out=tmp_path / "r", overrides=TINY).finished


def test_a_budget_of_images_ends_a_training_after_so_many(prepared: Prepared, tmp_path: Path) -> None:
    settings = [part for setting in TINY for part in ("--set", setting)]
    where = ["--data", str(prepared.path), "--out", str(tmp_path / "r")]
    told = CliRunner().invoke(app, ["train", "edm-64", *where, "--budget-images", "20", *settings])
    assert told.exit_code == 0 and read_spec(tmp_path / "r/model.safetensors")[1]["images_seen"] == 20
    assert f"each of {len(prepared.images('train'))} images seen about 0." in told.output, "who trained for too short a time sees it"
    with pytest.raises(UsageError, match="one of the two"):
        sx.train("edm-64", prepared, out=tmp_path / "s", overrides=TINY, budget="1m", budget_images=20)


def test_resume_goes_further(prepared: Prepared, tmp_path: Path) -> None:
    sx.train("edm-64", prepared, out=tmp_path / "r", overrides=TINY)
    sx.train("edm-64", prepared, out=tmp_path / "r", overrides=[*TINY, "train.steps=16"], resume=True)
    assert "16 steps" in (tmp_path / "r/card.md").read_text()


def test_base_weights_are_loaded_by_name(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    still = [*TINY, "train.steps=1", "train.learning_rate=0.0"]
    sx.train("edm-64", prepared, out=tmp_path / "r", overrides=still, base=run.path)
    seeds = [3, 4]
    assert torch.allclose(sx.load_model(tmp_path / "r").sample(None, seeds), sx.load_model(run.path).sample(None, seeds), atol=1e-5)


def test_load_model_and_count_parameters(run: Run) -> None:
    images = sx.load_model(run.path).sample(None, seeds=[0, 1, 2])
    assert images.shape == (3, 1, 32, 32)
    assert float(images.abs().max()) <= 1
    assert sx.count_parameters("kumar-gan") == 6_402_880
    assert sx.count_parameters("kumar-vae") == 32_674_945


def test_synthetic_rows_say_where_they_come_from(synthetic: Dataset, run: Run) -> None:
    assert synthetic.facts["synthetic"] is True
    for study in synthetic.studies:
        assert study.origin == "synthetic" and Path(study.file_name).name.startswith("synthetic-")
        assert {"model", "model_digest", "seed", "plan_row", "sampler", "steps", "guidance", "condition"} <= set(study.extra)
        assert "Pneumothorax" in json.loads(study.extra["condition"])["labels"]


def test_a_finding_that_the_model_does_not_know_is_refused_before_writing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(sx.SynthoraxError, match="Hernia"):
        sx.generate(run, sx.Request(finding=["Hernia"], num=2), out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_huge_requests_are_refused_at_once(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most 1,000,000 images; split it into several calls"):
        sx.generate(run, sx.Request(num=10_000_000), out=tmp_path / "s")
    with pytest.raises(UsageError, match="at most 1,000,000; split it into several plans"):
        sx.plan(tmp_path / "not even read", count={"Effusion": 99_999_999_999})
    with pytest.raises(UsageError, match="make at least one image"):
        sx.generate(run, sx.Request(num=0), out=tmp_path / "s")
    assert not any(tmp_path.iterdir())


def test_a_plan_for_a_model_asks_for_what_that_is_conditioned_on(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    deaf = sx.train("edm-64", prepared, out=tmp_path / "r", overrides=[*TINY, "train.steps=1", 'model.parts=["labels"]'])
    usual, plain = (sx.plan(prepared, count={"Effusion": 5}, model=model) for model in (run, deaf))
    assert usual == sx.plan(prepared, count={"Effusion": 5}) and any(row.view for row in usual.rows)
    assert not any(row.view or row.sex for row in plain.rows) and [row.labels for row in plain.rows] == [row.labels for row in usual.rows]


def test_screening_drops_planted_copies_and_says_which_image(synthetic: Dataset, prepared: Prepared, tmp_path: Path) -> None:
    from synthorax.data.pixels import write_png

    copied = tmp_path / "copied"
    (copied / "images").mkdir(parents=True)
    train = prepared.images("train")
    for number, study in enumerate(synthetic.studies):
        content = (synthetic.path / study.file_name).read_bytes()
        (copied / study.file_name).write_bytes(content)
        if number < 5:
            write_png(copied / study.file_name, train.pixels[number])
    for name in ("metadata.csv", "dataset.json"):
        (copied / name).write_bytes((synthetic.path / name).read_bytes())
    sx.screen(copied, against=prepared, out=tmp_path / "kept",
              config=sx.ScreenConfig(findings=("Pneumothorax",), filters=("copy", "finding"),
                                     classifier=ClassifierConfig(updates=4, width=4, input_size=32)))
    dropped = (tmp_path / "kept/dropped.csv").read_text().splitlines()[1:]
    planted = [line for line in dropped if int(line.split(",")[1]) < 5]
    assert len(planted) == 5 and all("near-duplicate" in line for line in planted)
    row = next(number for number, study in enumerate(prepared.studies) if study.split == "train") + 2
    assert f"row {row}" in planted[0]  # in the prepared table: no file name of a patient's image in a folder that is given away


def test_report_and_benefit(synthetic: Dataset, prepared: Prepared, tmp_path: Path) -> None:
    report = sx.evaluate(real=prepared, synthetic=synthetic, out=tmp_path)
    measured = {name for name, part in report.dimensions.items() if part.status == "measured"}
    assert measured >= {"fidelity", "diversity", "balance", "privacy"}
    config = BenefitConfig(classifier=ClassifierConfig(updates=4, width=4, input_size=32), resamples=100, probe=False)
    report = sx.benefit(real=prepared, synthetic=synthetic, findings=["Pneumothorax"], out=tmp_path, config=config, into=report)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["dimensions"]["benefit"]["findings"][0]["verdict"] in ("helps", "no evidence", "hurts")
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_a_judge_that_chose_the_images_may_not_grade_them(synthetic: Dataset, prepared: Prepared) -> None:
    from synthorax.judges.features import load_features

    digest = load_features("efficientnet-lite0").digest
    chosen = replace(synthetic, facts={**synthetic.facts, "judges": [{"name": "the same", "digest": digest}]})
    with pytest.raises(InputError, match="must not grade"):
        sx.evaluate(real=prepared, synthetic=chosen)


def test_synthetic_images_in_the_test_split_are_an_error(synthetic: Dataset, tmp_path: Path) -> None:
    images = [replace(study, split="test", patient_id=f"p{number}") for number, study in enumerate(synthetic.studies)]
    with pytest.raises(InputError, match="synthetic"):
        sx.prepare(replace(synthetic, studies=tuple(images)), size=32, out=tmp_path / "p")


def test_export_reads_back_pixel_for_pixel(synthetic: Dataset, tmp_path: Path) -> None:
    import pydicom
    from PIL import Image

    sx.export(synthetic, format="dicom", out=tmp_path / "dicom")
    files = sorted((tmp_path / "dicom").rglob("*.dcm"))
    assert len(files) == len(synthetic)
    pngs = {np.asarray(Image.open(synthetic.path / study.file_name)).tobytes() for study in synthetic.studies}
    assert {pydicom.dcmread(file).pixel_array.tobytes() for file in files} == pngs


def test_python_names_of_the_contract() -> None:
    for name in ("ingest", "prepare", "train", "plan", "generate", "screen", "evaluate", "benefit", "export", "augment", "demo",
                 "load_model", "open_model", "count_parameters"):
        assert callable(getattr(sx, name))


def test_prepare_twice_reuses_the_cache(prepared: Prepared) -> None:
    dataset = read_dataset(prepared.source)
    assert sx.prepare(dataset, size=32, out=prepared.path, split=(0.5, 0.2, 0.3)).digest == prepared.digest


def test_too_few_images_skip_dimensions_with_the_reason(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    few = sx.generate(run, sx.Request(num=2), out=tmp_path / "few", settings={"steps": 2})
    report = sx.evaluate(real=prepared, synthetic=few, quick=True)
    for name in ("fidelity", "diversity"):
        assert report.dimensions[name].status == "skipped"
        assert "too few" in report.dimensions[name].reason
    assert report.dimensions["privacy"].status == "measured"


def test_a_reader_study_joins_the_report(synthetic: Dataset, prepared: Prepared, tmp_path: Path) -> None:
    made, real = ([study.file_name for study in side.studies[:8]] for side in (synthetic, prepared))
    rows = [f"R{reader},{image},synthetic,{4 + reader % 2}" for reader in range(3) for image in (*made, *real)]
    table = tmp_path / "readings.csv"
    table.write_text("\n".join(["reader,film,said,acceptable", *rows, ""]))
    arguments = ["evaluate", "--real", str(prepared.path), "--synthetic", str(synthetic.path), "--out", str(tmp_path / "out"),
                 "--quick", "--readings", str(table), "--rqs", str(tmp_path / "rqs.toml")]
    (tmp_path / "rqs.toml").write_text("".join(f'{item} = "none"\n' for item in ITEMS))
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    part = told["dimensions"]["clinical_acceptability"]
    values = {score["metric"]: score["value"] for score in part["scores"] if score["group"] == "all"}
    assert (part["status"], values["turing_accuracy"], values["acceptable_images"]) == ("measured", 0.5, 1.0)
    assert len(told["inputs"]["readings"]["digest"]) == 64
    assert told["inputs"]["radiomics_quality"]["score"] == -8
    table.write_text(table.read_text().replace(made[3], "of-another-set.png"))
    with pytest.raises(InputError, match=r"readings.csv row 5: no image 'of-another-set.png'"):
        sx.evaluate(real=prepared, synthetic=synthetic, readings=table)


def test_a_folder_of_nothing_but_images_can_be_evaluated(synthetic: Dataset, prepared: Prepared, tmp_path: Path) -> None:
    for study in synthetic.studies:
        (tmp_path / Path(study.file_name).name).write_bytes((synthetic.path / study.file_name).read_bytes())
    report = sx.evaluate(real=prepared, synthetic=tmp_path, quick=True)
    assert report.dimensions["fidelity"].status == "measured"
    assert report.dimensions["controllability"].status == "skipped"
