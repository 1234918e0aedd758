"""A budget of time: divided by what was measured, kept by all stages, refused where nothing fits; and whether a training sufficed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import synthorax as sx
from synthorax.config import parse_duration
from synthorax.data.dataset import Dataset, read_dataset, write_facts, write_table
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.pixels import write_png
from synthorax.data.prepared import Prepared
from synthorax.engine import started
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.benefit.study import BenefitConfig
from synthorax.files import write_json
from synthorax.steps.models.recipe import Recipe
from synthorax.steps.training.budget import Budget, Insertion, JudgeSpeed, Speed, divide, divide_insertion, measure, rounded_up
from synthorax.steps.training.train_run import Beginning
from synthorax.steps.training.undertraining import TrainingSigns, loss_fall, unrealistic_part
from synthorax.training.loop import StepSpeed
from synthorax.types import Study
from trainings import smallest

JUDGES = JudgeSpeed(update_seconds=0.02, updates_per_second=100, feature_seconds=0.01)
SPEED = Speed(step=StepSpeed(seconds=0.1, images=16), image_seconds=0.5, judges=JUDGES)
CONFIG = BenefitConfig().brief()
LONG = TrainingSigns(steps=5000, images=80_000, passes=80.0, fall=0.0, from_base=False, unrealistic=0.0, num_images=200)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("drawn")
    dataset = write_phantom_dataset(folder / "phantom", num=150, size=32, seed=0)
    return sx.prepare(dataset, size=32, out=folder / "prepared", split=(0.5, 0.1, 0.4))


def divided(total: float, *, speed: Speed = SPEED, recipe: Recipe | None = None, **changes: object) -> Budget:
    usual = {"spent": 20.0, "wanted": 400, "least": 10, "exact": False, "num_real": 1000, "from_base": False, "config": CONFIG}
    return divide(total, speed, recipe=recipe or smallest("diffusion", "train.steps=100000"), **(usual | changes))  # type: ignore[arg-type]


def judges_of(slowness: float) -> JudgeSpeed:
    return JudgeSpeed(update_seconds=0.02 * slowness, updates_per_second=100 / slowness, feature_seconds=0.01 * slowness)


@pytest.mark.parametrize("total", [300, 1200, 36_000])
@pytest.mark.parametrize("slowness", [0.1, 1, 3])
def test_all_stages_together_keep_the_budget(total: float, slowness: float) -> None:
    speed = Speed(step=StepSpeed(seconds=0.1 * slowness, images=16), image_seconds=0.5 * slowness, judges=judges_of(slowness))
    try:
        made = divided(total, speed=speed)
    except UsageError:
        assert (total, slowness) == (300, 3), "of these, only five minutes on a slow machine are too short"
        return
    assert made.expected <= total * 1.01 and 10 <= made.images <= 400 and made.steps >= 200
    assert made.train == pytest.approx(made.steps * 0.1 * slowness, rel=0.06) and made.images_seen == made.steps * 16


def test_a_slower_machine_does_less_and_a_longer_budget_more() -> None:
    usual, longer, slower = divided(900), divided(1800), divided(900, speed=replace(SPEED, step=StepSpeed(seconds=0.4, images=16)))
    assert longer.steps > usual.steps > slower.steps and longer.images >= usual.images
    assert divided(100_000).images == 400, "never more images than are wanted"
    assert "about 400 " not in str(usual) and f"{usual.steps:,} training steps ({usual.images_seen:,} images seen)" in str(usual)


def insertion(*, seconds: float = 2.0, exact: bool = False, **wanted: int) -> Insertion:
    return Insertion(seconds=dict.fromkeys(wanted, seconds), wanted=wanted, exact=exact)


@pytest.mark.parametrize("slowness", [0.1, 1, 2])
def test_inserted_images_leave_evaluation_and_benefit_their_time(slowness: float) -> None:
    """Once, insertion took what benefit needed: it was neither measured nor counted."""
    asked = insertion(seconds=2.0 * slowness, Nodule=300, Effusion=100)
    made = divide_insertion(600, asked, judges_of(slowness), spent=20, num_real=1000, config=CONFIG)
    after = judges_of(slowness).fixed(num_real=1000, num_images=sum(made.inserted.values()), config=CONFIG)
    assert made.expected <= 600 and made.fixed["benefit"] == after["benefit"] and "screen" not in made.fixed
    assert made.fixed["insert"] >= 2.0 * slowness * sum(made.inserted.values())
    assert made.inserted == {"Nodule": 300, "Effusion": 100} if slowness == 0.1 else 10 <= sum(made.inserted.values()) < 400
    assert made.inserted["Nodule"] == pytest.approx(3 * made.inserted["Effusion"], abs=3), "each finding is cut in the same proportion"
    assert f"can insert {sum(made.inserted.values()):,} lesions" in str(made)


def test_insertion_that_does_not_fit_is_refused_with_a_budget_in_which_it_does() -> None:
    asked = insertion(seconds=2.0, exact=True, Nodule=300)
    with pytest.raises(UsageError, match=r"300 insertions take about 10 min 05 s.*the smallest budget that would do is about") as refused:
        divide_insertion(600, asked, JUDGES, spent=20, num_real=1000, config=CONFIG)
    needed = parse_duration(str(refused.value).split("would do is about ")[1].split(".")[0])
    made = divide_insertion(needed, asked, JUDGES, spent=20, num_real=1000, config=CONFIG)
    assert made.inserted == {"Nodule": 300} and made.expected <= needed


def test_insertion_beside_a_training_is_counted_and_stays_a_small_part() -> None:
    alone, both = divided(900), divided(900, insertion=insertion(seconds=2.0, Nodule=300))
    assert both.expected <= 900 * 1.01 and 2.0 * both.inserted["Nodule"] <= both.fixed["insert"] < 0.16 * 900
    assert 10 <= both.inserted["Nodule"] < 300 and both.steps < alone.steps and "insertion of" in str(both)


def test_a_number_of_images_that_was_asked_for_is_kept() -> None:
    assert divided(900, wanted=600, exact=True).images == 600
    with pytest.raises(UsageError, match=r"600 synthetic images 5 min"):
        divided(400, wanted=600, exact=True)


def test_a_recipe_of_few_steps_leaves_its_time_to_the_images() -> None:
    short = divided(900, recipe=smallest("diffusion", "train.steps=50"))
    assert short.steps == 50 and short.images == 400 and short.expected < 600


def test_what_is_too_short_is_refused_with_a_budget_that_is_not() -> None:
    with pytest.raises(UsageError, match="the smallest budget that would do is about") as refused:
        divided(60)
    smallest_budget = str(refused.value).split("would do is about ")[1].split(",")[0]
    assert divided(parse_duration(smallest_budget)).steps >= 200
    assert divided(215, from_base=True).steps >= 50, "a base needs less"
    with pytest.raises(UsageError):
        divided(215)
    assert (rounded_up(50), rounded_up(600)) == ("60s", "11m")


def test_a_machine_is_measured_by_real_steps_images_and_judges(prepared: Prepared, tmp_path: Path) -> None:
    recipe, before = smallest("diffusion"), sorted(prepared.path.rglob("*"))
    with started(device="cpu", seed=0) as engine:
        speed = measure(recipe, prepared, Beginning(base=None, compressor=None), engine=engine)
    assert min(speed.step.seconds, speed.image_seconds, speed.judges.update_seconds, speed.judges.updates_per_second) > 0
    assert speed.judges.feature_seconds > 0
    assert speed.step.images == recipe.train.batch_size and sorted(prepared.path.rglob("*")) == before
    fixed = speed.judges.fixed(num_real=100, num_images=50, config=CONFIG)
    assert set(fixed) == {"screen", "evaluate", "benefit"} and speed.judges.fixed(num_real=10_000, num_images=50, config=CONFIG) != fixed
    budget = divide(1e5, speed, spent=1, wanted=10, least=10, exact=False, num_real=100, recipe=recipe, from_base=False, config=CONFIG)
    kept = tmp_path / "budget.json"
    write_json(kept, budget.to_dict())
    assert Budget.read(kept) == budget
    for damaged in ("", "[]", "{}", kept.read_text().replace('"steps"', '"stops"')):
        kept.write_text(damaged)
        with pytest.raises(InputError, match=r"budget\.json: is damaged.*divided anew"):
            Budget.read(kept)


# ---- long enough?


def log(path: Path, losses: Sequence[float]) -> Path:
    lines = [{"step": 20 * number, "images": 320 * number, "elapsed_seconds": 1.0, "images_per_second": 9.0, "denoising": loss / 2,
              "other": loss / 2} for number, loss in enumerate(losses)]
    lines.insert(3, {"step": 60, "images": 1, "elapsed_seconds": 1.0, "side": 99.0})  # type: ignore[dict-item]  # a look of the monitor
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_falling_loss_is_distinguished_from_a_flat_one(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, 100)
    falling, level = np.exp(-np.arange(100) / 60) + noise, 0.3 + 0.5 * np.exp(-np.arange(100) / 8) + noise
    assert loss_fall(log(tmp_path / "a", falling), cooldown=0.3) == pytest.approx(1 - np.exp(-17 / 60), abs=0.05)
    (tmp_path / "a").write_text((tmp_path / "a").read_text() + "stray}\n7\n")
    assert loss_fall(tmp_path / "a", cooldown=0.3) == pytest.approx(1 - np.exp(-17 / 60), abs=0.05), "a damaged line loses itself"
    assert loss_fall(log(tmp_path / "b", level), cooldown=0.3) < 0.05  # type: ignore[operator]
    cooled = np.concatenate([np.full(70, 0.3), np.linspace(0.3, 0.1, 30)]) + noise / 10
    assert loss_fall(log(tmp_path / "c", cooled), cooldown=0.3) < 0.05, "what the cool-down does is no sign"  # type: ignore[operator]
    assert loss_fall(log(tmp_path / "d", falling[:12]), cooldown=0.3) is None, "too few lines to say"


@pytest.mark.parametrize(("changes", "short", "hopeless"), [
    ({}, False, False), ({"unrealistic": 0.21}, True, False), ({"unrealistic": 0.99}, True, True), ({"unrealistic": 0.1}, False, False),
    ({"unrealistic": 0.1, "passes": 4.0}, True, False), ({"unrealistic": 0.1, "passes": 4.0, "from_base": True}, False, False),
    ({"unrealistic": 0.1, "fall": 0.2}, True, False), ({"unrealistic": 0.01, "fall": 0.2, "passes": 4.0}, False, False)])
def test_signs_are_weighed(changes: dict[str, float], short: bool, hopeless: bool) -> None:
    signs = replace(LONG, **changes)  # type: ignore[arg-type]
    assert (signs.fell_short, signs.mostly_unrealistic) == (short, hopeless) and signs.to_dict()["fell_short"] is short


def test_the_sentence_says_what_and_what_to_do() -> None:
    told = str(replace(LONG, unrealistic=0.5, passes=4.0, fall=0.2))
    assert "100 of 200 synthetic images do not look like radiographs, each training image was seen only 4 times, and its loss was" in told
    assert "--budget-images" in told and told.count("fell short") == 1


def test_noise_is_unrealistic_and_drawings_like_the_real_ones_are_not(prepared: Prepared, tmp_path: Path) -> None:
    def dataset_of(name: str, images: Sequence[np.ndarray]) -> Dataset:
        folder = tmp_path / name
        studies = [Study(file_name=f"{number}.png", origin="synthetic") for number in range(len(images))]
        folder.mkdir()
        for study, image in zip(studies, images, strict=True):
            write_png(folder / study.file_name, image)
        write_table(folder, studies)
        write_facts(folder, name=name, studies=studies, synthetic=True)
        return read_dataset(folder)

    rng = np.random.default_rng(1)
    assert unrealistic_part(dataset_of("noise", [rng.integers(0, 256, (32, 32), dtype=np.uint8) for _ in range(20)]), prepared) > 0.9
    real = prepared.images("test").pixels
    assert unrealistic_part(dataset_of("drawn", list(real[:20])), prepared) < 0.2
