"""A name is never a path: findings, organs, sets and recipes of any name stay inside the folder, and names that differ stay apart."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from synthorax.data.adapters import cxr14, folder
from synthorax.data.dataset import read_dataset
from synthorax.data.image_files import read_image
from synthorax.data.pixels import write_png
from synthorax.engine import Engine
from synthorax.files import readable_name, safe_name
from synthorax.protocols import SampleSettings
from synthorax.steps.generate import generate_images
from synthorax.steps.models.recipe import build_objective
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.planning.plan import Plan, PlanRow
from synthorax.steps.training.comparison_design import Candidate
from synthorax.types import Lesion
from trainings import randomised, smallest

HOSTILE = ("a/../../../../outside/x", "..", ".", "", "Mass/Nodule", "Mass\\Nodule", "C:x", "x.", "x..", "x", " x", "x ", "nul", "CON.png",
           "/etc/passwd", "~", "-rf", "=1+1", "a\0b", "a\nb", "\udc80", "A" * 300, "A" * 301, "Ä" * 300, "Mass_Nodule")


def test_a_safe_name_is_one_part_of_a_path_and_distinct_names_stay_distinct(tmp_path: Path) -> None:
    names = [safe_name(name) for name in HOSTILE]
    assert len({name.casefold() for name in names}) == len(HOSTILE)
    for name in names:
        assert (tmp_path / name).parent == tmp_path and name not in (".", "..") and not name.startswith(("-", ".", "~", "="))
        assert not set(name) & set('/\\:*?"<>|\0\n ') and not name.endswith(".") and len(name.encode()) <= 200
        (tmp_path / f"{name}.png").write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == len(HOSTILE)
    for name in ("Mass", "Pleural_Thickening", "COVID-19", "lung", "edm-64+base-lora", "Überlagerung"):
        assert safe_name(name) == name
    assert readable_name("deep/er/../image 1") == "deep_er_image_1"


@pytest.mark.parametrize("name", ["test/NORMAL/IM-0115.jpeg", "chest_test_3", "val", "dev-001", "eval2.png", "a.training.b"])
def test_no_file_name_holds_a_word_that_datasets_takes_for_a_split(name: str) -> None:
    """A single such name makes `datasets.load_dataset("imagefolder")` leave out the table and all other images."""
    words = set(re.split(r"[-._ 0-9/]+", readable_name(name)))
    assert not words & {"train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation"}
    assert readable_name("latest_value_1") == "latest_value_1"


@pytest.mark.parametrize("name", ["a/../../../../outside/x", "Mass/Nodule", "C:x", "A" * 300, ".."])
def test_masks_of_findings_and_organs_of_any_name_stay_in_the_folder(engine: Engine, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    finding, organ = f"X{name}", f"o{name}"
    model = build_objective(smallest("diffusion"), findings=["Mass", finding], masks=["lung", organ, finding]).model
    randomised(model)
    mask = tmp_path / "mask.png"
    write_png(mask, np.full((8, 8), 255, np.uint8))
    rows = (PlanRow(seed=1, masks={organ: str(mask)}, lesions=(Lesion(finding=finding, box=(0.0, 0.0, 0.5, 0.5)),
                                                              Lesion(finding=finding, box=(0.5, 0.5, 0.5, 0.5)))),)
    out = tmp_path / "deep/er/made"
    made = generate_images(TrainedModel.of(model.eval(), name="tiny", digest="0" * 64), Plan(rows=rows), out=out,
                          settings=SampleSettings(steps=2), engine=engine, batch_size=1)
    paths = [path for paths in made.studies[0].masks.values() for path in paths]
    assert len(set(paths)) == 3 and all((out / path).resolve().is_relative_to(out.resolve()) for path in paths)
    assert {path.relative_to(out).parts[0] for path in out.rglob("*.png")} == {"masks", "images"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "mask.png"]
    assert read_dataset(out, allow=[finding]).studies[0].lesion_label == f"{finding}|{finding}"


def test_boxes_of_the_nih_with_findings_of_any_name_stay_in_the_folder(tmp_path: Path) -> None:
    source, findings = tmp_path / "CXR8", ["a/../../../x", "Mass/Nodule"]
    write_png(source / "images/1.png", np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))
    (source / "Data_Entry_2017.csv").write_text(f"Image Index,Finding Labels,Patient ID\n1.png,{'|'.join(findings)},1\n")
    (source / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n" +
                                               "".join(f"1.png,{name},0,0,512,512,,,\n" for name in findings))
    made = cxr14.ingest(source, tmp_path / "out", allow=findings)
    assert len(set(made.studies[0].masks["lesion_mask"])) == 2
    assert len(list((made.path / "masks/lesion").iterdir())) == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["CXR8", "out"]


def test_organs_and_files_of_any_name_stay_in_the_folder(tmp_path: Path) -> None:
    source, names = tmp_path / "images", ["+1.png", "=2.png", "a b.png", "a_b.png", "-c.png", f"{'x' * 200}.png", f"{'x' * 199}y.png"]
    lines = ["file_name,findings,../../organ_mask"]
    for number, name in enumerate(names):
        write_png(source / f"images/{name}", np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8))
        write_png(source / f"masks/{number}.png", np.full((8, 8), 255, np.uint8))
        lines.append(f"images/{name},Mass,masks/{number}.png")
    (source / "metadata.csv").write_text("\n".join(lines) + "\n")
    made = folder.ingest(source, tmp_path / "out")
    assert len({study.file_name for study in made.studies}) == len(names)
    for study in made.studies:
        assert read_image(made.path / study.file_name).shape == (8, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]


def test_a_recipe_of_any_name_is_no_path(tmp_path: Path) -> None:
    arms = [Candidate(name=name, recipe=smallest("diffusion")) for name in ("../../x", "a/b", "a:b", "edm-64+base:lora")]
    folders = [arm.folder for arm in arms]
    assert len(set(folders)) == 4 and folders[-1] == "edm-64+base-lora"
    assert all((tmp_path / name).resolve().parent == tmp_path.resolve() for name in folders)
