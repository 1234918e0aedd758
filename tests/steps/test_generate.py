"""Generation: whole, resumed after kills, or in another order, the images are the same to the byte, and each says where it is from."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synthorax.data.dataset import Dataset
from synthorax.data.lesions import lesions_of
from synthorax.data.masks import mask_stack
from synthorax.data.prepared import load_images
from synthorax.engine import Engine
from synthorax.errors import InputError, UsageError
from synthorax.protocols import SampleSettings
from synthorax.steps.generate import generate_images, images_at_a_time, preview, stated_by_text
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.planning.plan import STATED_ONLY, Plan, PlanRow, simple_plan
from synthorax.steps.planning.support import Support
from synthorax.types import Lesion, Stated
from trainings import (
    after,
    digests,
    during_write,
    finished,
    fresh_objective,
    generate_to,
    in_new_process,
    killed_when,
    smallest,
    toy_images,
    untrained,
)

CHECKER = Path(__file__).parents[3] / "shared/acceptance/check_dataset_folder.py"
SETTINGS = SampleSettings(steps=2, guidance=1.5)
PLAN = Plan(rows=(PlanRow(seed=11, labels={"Mass": Stated.PRESENT, "Effusion": Stated.ABSENT}, view="PA", sex="F", age_years=61),
                  PlanRow(seed=12, labels={"Mass": Stated.ABSENT}), PlanRow(seed=13),
                  PlanRow(seed=14, labels={"Effusion": Stated.PRESENT}, view="AP"), PlanRow(seed=12, labels={"Mass": Stated.PRESENT})))


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return untrained()


def run_plan(model: TrainedModel, out: Path, engine: Engine, *, plan: Plan = PLAN, settings: SampleSettings = SETTINGS,
         batch_size: int = 2) -> Dataset:
    return generate_images(model, plan, out=out, settings=settings, engine=engine, batch_size=batch_size)


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "images").glob("*.png"))])


def test_every_row_of_the_plan_becomes_an_image(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    dataset = run_plan(model, tmp_path / "a", engine)
    assert [study.file_name for study in dataset.studies] == [f"images/synthetic-{number:06d}.png" for number in range(5)]
    images = pixels(tmp_path / "a")
    assert images.shape == (5, 8, 8) and images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 5, "one seed under two conditions gives two images"


def test_rows_say_which_model_made_them_from_what(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    dataset = run_plan(model, tmp_path / "a", engine)
    for number, (study, row) in enumerate(zip(dataset.studies, PLAN.rows, strict=True)):
        assert study.origin == "synthetic" and study.patient_id == "" and study.split == ""
        told = dict(study.extra)
        assert json.loads(told.pop("condition")) == row.requested()
        assert told == {"model": "tiny", "model_digest": "0" * 64, "seed": str(row.seed), "plan_row": str(number), "sampler": "dpmpp-2m",
                        "steps": "2", "guidance": "1.5"}
        assert dict(study.labels) == dict(row.labels) and study.view == row.view and study.sex == row.sex
    assert dataset.facts["synthetic"] is True and dataset.facts["model_digest"] == "0" * 64
    assert dataset.facts["settings"] == asdict(SampleSettings(steps=2))


def test_every_file_says_that_it_is_synthetic(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    dataset = run_plan(model, tmp_path / "a", engine)
    for study in dataset.studies:
        with Image.open(tmp_path / "a" / study.file_name) as image:
            text = dict(image.text)  # type: ignore[attr-defined]
        assert "synthetic radiograph, of no patient" in text["Synthorax"]
        assert {key: text[key] for key in study.extra} == dict(study.extra)


@pytest.mark.skipif(not CHECKER.exists(), reason="the acceptance checks are not beside this checkout")
def test_the_folder_passes_the_acceptance_check(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    run_plan(model, tmp_path / "a", engine)
    result = subprocess.run([sys.executable, str(CHECKER), str(tmp_path / "a"), "--synthetic"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("ok 5 images")


def test_missing_images_are_made_again_to_the_byte(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    run_plan(model, tmp_path / "a", engine)
    whole = digests(tmp_path / "a")
    for number in (0, 3, 4):
        (tmp_path / f"a/images/synthetic-{number:06d}.png").unlink()
    (tmp_path / "a/metadata.csv").unlink()
    (tmp_path / "a/images/.synthetic-000003.png.77.tmp").write_bytes(b"what a killed write left")
    run_plan(model, tmp_path / "a", engine)
    assert digests(tmp_path / "a") == whole
    assert not list((tmp_path / "a").rglob("*.tmp"))


@pytest.mark.processor
def test_order_and_neighbours_do_not_matter(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    run_plan(model, tmp_path / "a", engine)
    run_plan(model, tmp_path / "b", engine, plan=Plan(rows=PLAN.rows[::-1]))
    assert np.array_equal(pixels(tmp_path / "b")[::-1], pixels(tmp_path / "a"))


@pytest.mark.processor
def test_the_batch_size_changes_a_grey_level_at_most(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    images = [pixels(run_plan(model, tmp_path / str(size), engine, batch_size=size).path).astype(int) for size in (1, 2, 5, 16)]
    for other in images[1:]:
        assert np.abs(other - images[0]).max() <= 1
    assert np.abs(preview(model.network, PLAN, settings=SETTINGS, engine=engine).astype(int) - images[0]).max() <= 1


@pytest.mark.processor
def test_a_small_request_makes_no_more_than_it_needs(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    """Two images cost two, and are those of a longer plan to the bit; what was begun with another batch size goes on with it."""
    made_at_a_time: list[int] = []

    class Counting(torch.nn.Module):
        spec = model.spec
        needs_image = False

        def denoise(self) -> None:
            """Like the model, it has a sampler."""

        def check_settings(self, settings: SampleSettings) -> None:
            """Any will do."""

        def sample(self, condition: object, seeds: Sequence[int], settings: SampleSettings) -> torch.Tensor:
            made_at_a_time.append(len(seeds))
            return model.network.sample(condition, seeds, settings)  # type: ignore[arg-type]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        counted = TrainedModel.of(Counting(), name="counted", digest="3" * 64)
        for name, plan in (("few", Plan(rows=PLAN.rows[:2])), ("all", PLAN)):
            generate_images(counted, plan, out=tmp_path / name, settings=SETTINGS, engine=engine)
        assert made_at_a_time == [2, 2, 2, 2] and np.array_equal(pixels(tmp_path / "few"), pixels(tmp_path / "all")[:2])
        generate_images(counted, PLAN, out=tmp_path / "begun", settings=SETTINGS, engine=engine, batch_size=5)
        (tmp_path / "begun/images/synthetic-000001.png").unlink()
        generate_images(counted, PLAN, out=tmp_path / "begun", settings=SETTINGS, engine=engine)
        assert made_at_a_time[4:] == [5, 5]
        assert images_at_a_time(engine) == 2
        torch.set_num_threads(3)
        assert images_at_a_time(engine) == 3 and images_at_a_time(replace(engine, device=torch.device("cuda"))) == 16
    finally:
        torch.set_num_threads(before)


def test_killed_and_continued_gives_the_identical_set(tmp_path: Path) -> None:
    num = 60
    finished(in_new_process(generate_to, tmp_path / "straight", num))
    folder, pattern = tmp_path / "killed", "images/*.png"
    moments = [after(0.2), during_write(folder / "images"), lambda: len(list(folder.glob(pattern))) >= 25]
    for moment in moments:
        assert killed_when(in_new_process(generate_to, folder, num), moment)
    assert 0 < len(list(folder.glob(pattern))) < num and not (folder / "metadata.csv").exists()
    finished(in_new_process(generate_to, folder, num))
    killed, straight = digests(folder), digests(tmp_path / "straight")
    facts = [json.loads((place / "dataset.json").read_text()) for place in (folder, tmp_path / "straight")]
    assert {key for key in straight if killed[key] != straight[key]} <= {"dataset.json"} and killed.keys() == straight.keys()
    assert {key for key in facts[0] if facts[0][key] != facts[1][key]} <= {"name"}, "a folder is called as it is called"
    assert not list(folder.rglob("*.tmp"))


def test_another_generation_in_the_same_folder_is_refused(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    run_plan(model, tmp_path / "a", engine)
    before = digests(tmp_path / "a")
    for name, change in ((r"plan \(request, number or seed\)", {"plan": simple_plan(num=5)}),
                         ("settings", {"settings": replace(SETTINGS, guidance=2.0)}),
                         ("batch size", {"batch_size": 4})):
        with pytest.raises(InputError, match=rf"holds a generation with other {name}; choose another --out"):
            run_plan(model, tmp_path / "a", engine, **change)
    with pytest.raises(InputError, match="other model"):
        run_plan(replace(model, digest="1" * 64), tmp_path / "a", engine)
    assert digests(tmp_path / "a") == before


def test_what_cannot_be_generated_leaves_nothing(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        run_plan(model, tmp_path / "a", engine, plan=Plan(rows=()))
    with pytest.raises(UsageError, match="not trained on 'Hernia'"):
        run_plan(model, tmp_path / "b", engine, plan=simple_plan(num=2, present=["Hernia"]))
    with pytest.raises(InputError, match="is missing"):
        run_plan(model, tmp_path / "b", engine, plan=Plan(rows=(PlanRow(seed=1, masks={"lung": str(tmp_path / "none.png")}),)))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/metadata.csv").write_text("file_name\n")
    with pytest.raises(InputError, match="is not empty"):
        run_plan(model, tmp_path / "c", engine)
    for folder in ("a", "b", "c"):
        assert not list((tmp_path / folder).rglob("*.png"))


# ---- masks, lesions, text, settings


def mask_file(path: Path, *, rows: slice = slice(0, 8)) -> str:
    """A 32 x 32 mask of the left half of some rows."""
    pixels = np.zeros((32, 32), np.uint8)
    pixels[rows, :16] = 255
    Image.fromarray(pixels).save(path)
    return str(path)


def plan_of_everything(folder: Path) -> Plan:
    lesions = (Lesion(finding="Mass", severity=0.5, mask=mask_file(folder / "m.png")), Lesion(finding="Mass", box=(0.5, 0.5, 0.5, 0.25)))
    full = PlanRow(seed=1, labels={"Effusion": Stated.UNCERTAIN}, site="west", text="small mass on the right NOT effusion", lesions=lesions,
                   masks={"lung": mask_file(folder / "l.png", rows=slice(0, 32))})
    return Plan(rows=(full, PlanRow(seed=1), PlanRow(seed=2, lesions=(Lesion(finding="Effusion", side="left"),))))


def test_an_image_keeps_what_was_asked_of_it(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    plan = plan_of_everything(tmp_path)
    dataset = run_plan(model, tmp_path / "a", engine, plan=plan)
    first, second, third = dataset.studies
    assert (first.site, first.text) == ("west", "small mass on the right NOT effusion")
    assert first.labels == {"Effusion": Stated.UNCERTAIN, "Mass": Stated.PRESENT} and third.labels == {"Effusion": Stated.PRESENT}
    mass, box = lesions_of(first)
    assert (mass.finding, mass.severity, mass.mask) == ("Mass", 0.5, "masks/lesion/synthetic-000000-Mass.png")
    assert (box.box, box.mask, first.extra["lesion_kind"]) == ((0.5, 0.5, 0.5, 0.25), "masks/lesion/synthetic-000000-Mass-2.png", "|box")
    assert first.masks["lung_mask"] == ("masks/lung/synthetic-000000.png",)
    assert not second.masks and not second.lesion_label and lesions_of(third) == (Lesion(finding="Effusion", side="left"),)
    asked = json.loads(first.extra["condition"])
    assert asked["masks"] == {"lung": "masks/lung/synthetic-000000.png"} and asked["labels"] == {"Effusion": 0.5, "Mass": 1}
    assert [lesion["mask"] for lesion in asked["lesions"]] == [mass.mask, box.mask]
    assert str(tmp_path) not in (tmp_path / "a/metadata.csv").read_text(), "no path of this machine leaves it"


def test_an_image_asked_for_by_text_states_the_findings_of_the_text(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    rows = tuple(PlanRow(seed=number, text=text) for number, text in enumerate((
        "small left effusion NOT mass", "possible mass. No effusion.", "normal chest", "mass AND effusion")))
    dataset = run_plan(model, tmp_path / "a", engine, plan=Plan(rows=(*rows, PlanRow(seed=9, text="mass", labels={"Mass": Stated.ABSENT}))))
    present, absent, uncertain = Stated.PRESENT, Stated.ABSENT, Stated.UNCERTAIN
    assert [study.labels for study in dataset.studies] == [
        {"Effusion": present, "Mass": absent}, {"Mass": uncertain, "Effusion": absent}, {"No Finding": present},
        {"Mass": present, "Effusion": present}, {"Mass": absent}]
    assert [study.extra.get("findings_from_text") for study in dataset.studies] == [
        "Effusion|!Mass", "Mass?|!Effusion", "No Finding", "Mass|Effusion", ""]
    images = load_images(dataset, size=8, findings=("Effusion", "Mass"), policy=STATED_ONLY)
    assert images.labels[:, 0].tolist()[:4] == [1, 0, 0, 1], "what screening, grading and training see"


@pytest.mark.parametrize(("row", "told"), [
    (PlanRow(seed=0, text="no acute disease", labels={"Mass": Stated.PRESENT}), {}),
    (PlanRow(seed=0, text="large mass", labels={"No Finding": Stated.PRESENT}), {}),
    (PlanRow(seed=0, text="mass with effusion", labels={"Mass": Stated.PRESENT}), {"Effusion": Stated.PRESENT}),
    (PlanRow(seed=0, text="effusion NOT effusion"), {"Effusion": Stated.PRESENT}), (PlanRow(seed=0), {})])
def test_what_a_row_says_itself_outdoes_its_text(row: PlanRow, told: dict[str, Stated]) -> None:
    assert stated_by_text(row, findings=("Effusion", "Mass")) == told


def test_kept_masks_are_those_the_model_was_conditioned_on(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    plan = plan_of_everything(tmp_path)
    spec = model.spec
    images = load_images(run_plan(model, tmp_path / "a", engine, plan=plan), size=8, findings=spec.findings, masks=True, classes=spec.masks,
                       policy=STATED_ONLY)
    requested_mask = plan.condition(spec).mask
    assert images.masks is not None and requested_mask is not None
    assert np.array_equal(mask_stack(images.masks, [0, 1, 2]), requested_mask.numpy(), equal_nan=True)


def test_neighbours_with_other_parts_do_not_matter(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    rows = plan_of_everything(tmp_path).rows
    run_plan(model, tmp_path / "a", engine, plan=Plan(rows=(rows[0], rows[1], rows[2], rows[0])))
    run_plan(model, tmp_path / "b", engine, plan=Plan(rows=(rows[0], rows[2], rows[1], rows[1])))
    first, second = pixels(tmp_path / "a").astype(int), pixels(tmp_path / "b").astype(int)
    assert np.abs(first[[0, 1, 2, 3]] - second[[0, 2, 1, 0]]).max() <= 1


def test_images_differ_by_every_part_alone(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    """One seed; each part alone changes the image, so none of them is lost on the way to the model."""
    rows = (PlanRow(seed=5), PlanRow(seed=5, labels={"Mass": Stated.UNCERTAIN}), PlanRow(seed=5, labels={"Mass": Stated.PRESENT}),
            PlanRow(seed=5, site="east"), PlanRow(seed=5, text="large effusion"),
            PlanRow(seed=5, lesions=(Lesion(finding="Mass", box=(0.0, 0.0, 0.5, 0.5)),)),
            PlanRow(seed=5, lesions=(Lesion(finding="Mass", side="left"),)), PlanRow(seed=5, masks={"lung": mask_file(tmp_path / "l.png")}))
    run_plan(model, tmp_path / "a", engine, plan=Plan(rows=rows), settings=SampleSettings(steps=4))
    assert len({image.tobytes() for image in pixels(tmp_path / "a")}) == len(rows)


def test_a_generation_with_masks_goes_on_where_it_stopped(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    plan = plan_of_everything(tmp_path)
    run_plan(model, tmp_path / "a", engine, plan=plan)
    whole = digests(tmp_path / "a")
    for name in ("metadata.csv", "masks/lung/synthetic-000000.png", "images/synthetic-000002.png"):
        (tmp_path / "a" / name).unlink()
    run_plan(model, tmp_path / "a", engine, plan=plan)
    assert digests(tmp_path / "a") == whole
    moved = mask_file(tmp_path / "the same under another name.png", rows=slice(0, 32))
    renamed = Plan(rows=(replace(plan.rows[0], masks={"lung": moved}), *plan.rows[1:]))
    run_plan(model, tmp_path / "a", engine, plan=renamed)
    mask_file(tmp_path / "l.png", rows=slice(0, 24))
    with pytest.raises(InputError, match="holds a generation with other plan"):
        run_plan(model, tmp_path / "a", engine, plan=plan)
    assert digests(tmp_path / "a") == whole


def test_a_mask_is_drawn_once_to_check_the_plan_and_once_to_make_its_image(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    path, opened, counting = mask_file(tmp_path / "lung.png", rows=slice(0, 32)), [], True

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if counting and event == "open" and str(arguments[0]) == path:
            opened.append(path)

    sys.addaudithook(on_event)
    try:
        run_plan(model, tmp_path / "a", engine, plan=Plan(rows=(PlanRow(seed=1, masks={"lung": path}),)), batch_size=4)
    finally:
        counting = False  # a hook cannot be taken away
    assert len(opened) == 2 * 2 + 1, "pixels and size each time, and its digest for the claim"


def test_settings_beyond_the_usual_have_their_columns(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    settings = SampleSettings(steps=2, sampler="ddim", eta=0.5, schedule="cosine", part_guidance={"mask": 3.0}, guidance_to=50.0)
    extra = run_plan(model, tmp_path / "a", engine, settings=settings).studies[0].extra
    assert {name: extra[name] for name in ("sampler", "schedule", "eta", "part_guidance", "guidance_to")} == {
        "sampler": "ddim", "schedule": "cosine", "eta": "0.5", "part_guidance": '{"mask": 3.0}', "guidance_to": "50"}
    assert "guidance_from" not in extra


def test_rows_beyond_training_are_marked(model: TrainedModel, engine: Engine, tmp_path: Path) -> None:
    seen = replace(model, facts={"support": Support.of(toy_images(8, num=60)).to_dict()})
    rows = (PlanRow(seed=1, labels={"Mass": Stated.PRESENT}, age_years=40), PlanRow(seed=2, labels={"Mass": Stated.PRESENT}, age_years=1),
            PlanRow(seed=3, lesions=(Lesion(finding="Mass", box=(0.7, 0.7, 0.2, 0.2)),)))
    told = [study.extra["extrapolation"] for study in run_plan(seen, tmp_path / "a", engine, plan=Plan(rows=rows)).studies]
    assert told[0] == "" and told[1].startswith("age 1: training images are")
    assert "Mass on the left: never seen in training" in told[2] and "Mass x 0.8: training images are" in told[2], "measured in its box"
    with Image.open(tmp_path / "a/images/synthetic-000001.png") as image:
        assert image.text["extrapolation"] == told[1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("settings", "message"), [
    (SampleSettings(sampler="dpm-2m"), "unknown sampler 'dpm-2m'; did you mean 'dpmpp-2m'"),
    (SampleSettings(schedule="kosine"), "unknown schedule 'kosine'; did you mean 'cosine'"),
    (SampleSettings(steps=0), "0 steps: choose from 1 to 1000"),
    (SampleSettings(steps=1001), "1001 steps"),
    (SampleSettings(eta=0.5), "sampler 'dpmpp-2m' has no eta; those that have one: ddim, euler-a"),
    (SampleSettings(sampler="ddim", eta=1.5), "eta 1.5 is outside 0 to 1"),
    (SampleSettings(guidance=math.nan), "guidance nan is not a finite number"),
    (SampleSettings(part_guidance={"labels": math.inf}), "guidance inf is not a finite number"),
    (SampleSettings(part_guidance={"label": 2.0}), "unknown part 'label'; did you mean 'labels'"),
    (SampleSettings(part_guidance={"image": 2.0}), "guidance of 'image': the model is not conditioned on it; it is conditioned on "
                                                   "attributes, labels"),
    (SampleSettings(guidance_from=5.0, guidance_to=1.0), "guidance from noise level 5.0 to 1.0"),
    (SampleSettings(guidance_from=math.nan), "guidance from noise level nan"),
])
def test_settings_that_cannot_be_followed_leave_nothing(model: TrainedModel, engine: Engine, tmp_path: Path, settings: SampleSettings,
                                                         message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_plan(model, tmp_path / "a", engine, settings=settings)
    assert not (tmp_path / "a").exists()


def test_families_without_a_sampler_refuse_its_settings(engine: Engine, tmp_path: Path) -> None:
    gan = TrainedModel.of(fresh_objective(smallest("kumar-gan")).model.eval(), name="gan", digest="2" * 64)
    for settings in (SampleSettings(steps=2), SampleSettings(sampler="heun"), SampleSettings(schedule="cosine")):
        with pytest.raises(UsageError, match="family 'kumar-gan' has no sampler"):
            run_plan(gan, tmp_path / "a", engine, plan=Plan(rows=(PlanRow(seed=1),)), settings=settings)
    with pytest.raises(UsageError, match="clip is for models of family 'diffusion', and this one is of family 'kumar-gan'"):
        run_plan(gan, tmp_path / "a", engine, plan=Plan(rows=(PlanRow(seed=1),)), settings=SampleSettings(clip=True))
    with pytest.raises(UsageError, match="is not conditioned on labels, which a finding asks for; it takes no conditions at all"):
        run_plan(gan, tmp_path / "a", engine, plan=simple_plan(num=1, present=["Mass"]), settings=SampleSettings())
    assert not (tmp_path / "a").exists()
    assert len(run_plan(gan, tmp_path / "b", engine, plan=Plan(rows=(PlanRow(seed=1),)), settings=SampleSettings())) == 1
    assert preview(gan.network, simple_plan(num=3, present=["Mass"]), settings=SETTINGS, engine=engine).shape == (3, 64, 64)
