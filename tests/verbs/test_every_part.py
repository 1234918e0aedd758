"""From drawn images with masks to synthetic ones with masks: every part of a condition through the verbs, at the smallest size."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import synthorax as sx
from synthorax.data.dataset import read_dataset
from synthorax.data.masks import read_mask
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.errors import InputError, UsageError
from synthorax.run import Run, read_spec
from trainings import FEW, SMALL_DIFFUSION

SIDE = 32
SMALL = [override for override in SMALL_DIFFUSION if "image_size" not in override]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("phantoms")
    prevalence = {"Effusion": 0.4, "Nodule": 0.4, "Pneumothorax": 0.2}
    drawn = write_phantom_dataset(folder / "drawn", num=60, size=SIDE, seed=1, prevalence=prevalence)
    return sx.prepare(drawn, size=SIDE, out=folder / "prepared")


@pytest.fixture(scope="module")
def run(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sx.train("controlled-64", prepared, out=tmp_path_factory.mktemp("runs") / "a", device="cpu", threads=1,
                    overrides=[*SMALL, *FEW, f"model.image_size={SIDE}", "train.steps=3", "train.sample_every=3"])


def test_the_model_says_what_it_is_conditioned_on(run: Run) -> None:
    spec, facts = read_spec(run.weights)
    assert spec.conditions == ("attributes", "labels", "lesions", "mask", "text")
    assert spec.masks[:2] == ("heart", "lung") and set(spec.masks[2:]) == {"Effusion", "Nodule", "Pneumothorax"}
    assert facts["support"], "what it was trained on goes with it"
    assert list((run.path / "samples").glob("*.png"))


def test_masks_boxes_text_and_severity_reach_the_table_and_survive_screening(run: Run, prepared: Prepared, tmp_path: Path) -> None:
    outline = np.zeros((SIDE, SIDE), np.uint8)
    outline[18:26, 20:27] = 255
    Image.fromarray(outline).save(tmp_path / "effusion.png")
    request = sx.Request(num=2, finding=["Effusion"], mask=[("", tmp_path / "effusion.png")], severity=0.7,
                         text="a left effusion NOT nodule", view="PA")
    made = sx.generate(run, request, out=tmp_path / "made", settings={"steps": 2, "guidance": 1.5, "part_guidance": {"mask": 3.0}},
                       device="cpu", threads=1)
    config = sx.ScreenConfig(filters=("copy",))
    kept = sx.screen(made, against=prepared, out=tmp_path / "kept", config=config, device="cpu", threads=1).kept
    for dataset in (made, kept):
        for study in read_dataset(dataset.path).studies:
            asked = json.loads(study.extra["condition"])
            assert asked["text"] == "a left effusion NOT nodule" and asked["labels"] == {"Effusion": 1}
            (mask,) = study.masks["lesion_mask"]
            assert np.array_equal(read_mask(dataset.path / mask, SIDE), outline)
            assert study.lesion_label == "Effusion" and study.extra["lesion_severity"] == "0.7"
    png = sx.export(made, format="png", out=tmp_path / "png")
    assert list(Path(png).rglob("*ffusion*.png")), "masks are exported with their images"


def test_a_box_and_two_lesions_at_once(run: Run, tmp_path: Path) -> None:
    request = sx.Request(num=1, finding=["Nodule", "Pneumothorax"],
                         box=[("Nodule", (0.2, 0.4, 0.2, 0.2)), ("Pneumothorax", (0.6, 0.1, 0.3, 0.4))])
    made = sx.generate(run, request, out=tmp_path / "made", settings={"steps": 2}, device="cpu", threads=1)
    (study,) = made.studies
    assert study.lesion_label == "Nodule|Pneumothorax" and len(study.masks["lesion_mask"]) == 2
    assert study.extra["lesion_kind"] == "box|box"


def test_what_was_never_seen_is_marked_and_what_was_is_not(run: Run, tmp_path: Path) -> None:
    marks = {}
    for age in (2.0, 50.0):
        request = sx.Request(num=1, finding=["Effusion"], view="PA", age=age)
        made = sx.generate(run, request, out=tmp_path / str(age), settings={"steps": 1}, device="cpu", threads=1)
        marks[age] = made.studies[0].extra["extrapolation"]
    assert "2" in marks[2.0] and marks[50.0] == ""


@pytest.mark.parametrize(("what", "settings", "message"), [
    (sx.Request(finding=["Hernia"]), {}, "Hernia"),
    (sx.Request(finding=["Effusion"], side="middle"), {}, "left"),
    (sx.Request(text="ein kleiner Erguss auf der linken Seite"), {}, "words"),
    (sx.Request(text="effusion " * 10_000), {}, "words"),
    (sx.Request(site="elsewhere"), {}, "elsewhere"),
    (None, {"guidance": float("nan")}, "finite"),
    (None, {"part_guidance": {"masks": 2.0}}, "mask"),
    (None, {"steps": 0}, "steps"),
    (None, {"steps": 1001}, "steps"),
    (None, {"sampler": "hoin"}, "heun"),
    (None, {"schedule": "kerras"}, "karras"),
    (None, {"sampler": "heun", "eta": 0.5}, "eta"),
    (None, {"samplers": "heun"}, "unknown sampling setting 'samplers'; did you mean 'sampler'"),
    (sx.Request(finding=["Effusion"], box=[("", (0.8, 0.5, 0.5, 0.2))]), {}, "box"),
])
def test_requests_that_cannot_be_met_are_refused_before_anything_is_written(run: Run, tmp_path: Path, what: sx.Request | None,
                                                                           settings: dict[str, object], message: str) -> None:
    with pytest.raises((UsageError, InputError), match=message):
        sx.generate(run, what, out=tmp_path / "made", settings=settings, device="cpu", threads=1)
    assert not (tmp_path / "made").exists()


def test_keywords_of_before_name_the_record_that_has_them_now(run: Run, tmp_path: Path) -> None:
    for former, message in (({"finding": ["Mass"]}, r"give Request\(finding=\.\.\.\)"), ({"num": 3}, r"give Request\(num=\.\.\.\)"),
                            ({"steps": 3}, r"give SampleSettings\(steps=\.\.\.\)"), ({"plan": "plan.csv"}, "'plan' is now 'what'")):
        with pytest.raises(UsageError, match=message):
            sx.generate(run, out=tmp_path / "made", **former)
    with pytest.raises(UsageError, match=r"give ScreenConfig\(filters=\.\.\.\)"):
        sx.screen(tmp_path, against=tmp_path, out=tmp_path / "made", filters=["copy"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'fnding'"):
        sx.generate(run, out=tmp_path / "made", fnding=["Mass"])


def test_settings_by_name_change_those_of_the_model_and_a_record_replaces_them(run: Run, tmp_path: Path) -> None:
    usual, whole = sx.open_model(run).settings, sx.SampleSettings(steps=2, sampler="euler", guidance=1.0)
    changed = sx.generate(run, sx.Request(num=1), out=tmp_path / "a", settings={"steps": 2}, device="cpu", threads=1)
    assert changed.facts["settings"] == asdict(replace(usual, steps=2))
    replaced = sx.generate(run, sx.Request(num=1), out=tmp_path / "b", settings=whole, device="cpu", threads=1)
    assert replaced.facts["settings"] == asdict(whole)


def test_generate_takes_at_most_nine_things() -> None:
    assert len(inspect.signature(sx.generate).parameters) <= 9


def test_masks_of_another_size_or_class_are_refused(run: Run, tmp_path: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE // 2), 255, np.uint8)).save(tmp_path / "narrow.png")
    Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(tmp_path / "square.png")
    Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)).save(tmp_path / "film.png")
    for mask, message in ((("Effusion", "narrow.png"), "narrow"), (("liver", "square.png"), "liver"), (("lung", "film.png"), "film.png")):
        with pytest.raises((UsageError, InputError), match=message):
            sx.generate(run, sx.Request(mask=[(mask[0], tmp_path / mask[1])]), out=tmp_path / "made", device="cpu", threads=1)
    assert not (tmp_path / "made").exists()
