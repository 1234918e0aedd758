"""Students: what they are taught where the right answer is known, what they refuse, and how they are trained from a run."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import synthorax as sx
from ideal import SPREAD, gaussian, peak_signal_to_noise, solution, start_at
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.diffusion.distillation import landing_target, snr_weight, student_levels
from synthorax.diffusion.noise import karras_sigmas
from synthorax.diffusion.precondition import edm_scalings, output_weight
from synthorax.diffusion.samplers import solve
from synthorax.engine import Engine
from synthorax.errors import InputError, UsageError
from synthorax.families.denoising.distillation import Distilled
from synthorax.families.denoising.distillation_objective import StudentObjective
from synthorax.families.denoising.model import DiffusionModel
from synthorax.protocols import Batch, Condition, SampleSettings
from synthorax.rng import Draws
from synthorax.run import WEIGHTS_NAME, Run, read_spec, save_model
from synthorax.steps.export.diffusers import misfits
from synthorax.steps.generate import check_settings
from synthorax.steps.models.recipe import build_model, build_objective, load_recipe
from synthorax.steps.training.student import ordinary
from synthorax.training.feed import unit_images
from synthorax.training.loop import train
from trainings import (
    FEW,
    FINDINGS,
    MASKS,
    SITES,
    SMALL_DIFFUSION,
    digests,
    distil_to,
    finished,
    in_new_process,
    killed_when,
    randomised,
    smallest,
    super_resolution,
    toy_images,
)

ONE_PART = 'model.parts=["labels"]'
NO_LESION_TERMS = "objective.lesion.mask_weight=0.0"
HIGHEST = 80.0


def objective_of(*overrides: str, ideal: bool = False, guided: bool = False) -> StudentObjective:
    """A student of a teacher with random weights, or of the ideal denoiser for images of noise of the standard deviation `SPREAD`."""
    objective = build_objective(smallest("diffusion", ONE_PART, NO_LESION_TERMS, *overrides), findings=FINDINGS, sites=SITES, masks=MASKS)
    assert isinstance(objective, StudentObjective)
    spec = objective.model.spec
    teacher = build_model(replace(spec, config={**spec.config, "distilled": None}))
    if not ideal:  # a fresh network of the parameterisation edm gives 0, and c_skip alone is that ideal
        randomised(teacher)
    weak = build_model(replace(spec, config={**spec.config, "distilled": None}))
    randomised(weak, seed=5)
    objective.start_from(teacher, guide=weak if guided else None)
    return objective


def random_condition(size: int) -> Condition:
    labels = torch.tensor([[1.0, math.nan], [0.0, 1.0], [math.nan, math.nan]]).repeat(size, 1)[:size]
    return replace(Condition.unstated(size, num_labels=2, num_sites=2), labels=labels).only(["labels"])


# ---- targets


def test_the_target_with_a_guide_is_the_estimate_away_from_it() -> None:
    """And what comes of it is guided and trained on as any other model, which a student of guidance by the condition is not."""
    settings = ("model.distilled.guidance=1.0", "model.distilled.autoguidance=3.0")
    with pytest.raises(UsageError, match="no weaker model"):
        objective_of(*settings)
    objective = objective_of(*settings, guided=True)
    clean = SPREAD * Draws(range(3)).normal(1, 8, 8)
    with torch.no_grad():
        noisy, sigma, wanted = objective._guidance_targets(clean, random_condition(3), Draws(range(3)))
    own, other = (cast(DiffusionModel, model).denoise(noisy, sigma, random_condition(3)) for model in (objective.teacher, objective.guide))
    torch.testing.assert_close(wanted, other + 3 * (own - other))
    assert ordinary(objective.model.config).distilled is None
    objective.model.check_settings(SampleSettings(guidance=1.5))
    other_student = objective_of("model.distilled.guidance=1.5")
    assert ordinary(other_student.model.config).distilled is not None
    with pytest.raises(UsageError, match="guide twice"):
        other_student.model.check_settings(SampleSettings(guidance=1.5))


def test_a_step_with_the_target_lands_where_the_teacher_landed() -> None:
    """On Gaussian images the end of every path is known, so a student that has learned its lesson is exact in any number of steps."""
    for count in (1, 2, 5):
        levels = student_levels(karras_sigmas(count * 3, sigma_min=0.01, sigma_max=HIGHEST), substeps=3)
        assert len(levels) == count + 1 and levels[0] == HIGHEST and levels[-1] == 0
        sigma_next = dict(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True))

        def student(x: Tensor, sigma: Tensor, sigma_next: dict[float, float] = sigma_next) -> Tensor:
            level = min(sigma_next, key=lambda known: abs(known - sigma[0].item()))
            landed = solution(x, start=level, end=sigma_next[level])
            return landing_target(x, landed, sigma=level, sigma_next=sigma_next[level])

        start = start_at(HIGHEST)
        exact = solution(start, start=HIGHEST, end=0.0)
        torch.testing.assert_close(solve(student, start, levels, sampler="ddim"), exact, atol=1e-9, rtol=0)
        if count < 5:
            assert (solve(gaussian, start, levels, sampler="ddim") - exact).abs().max() > 0.02, "which the teacher itself is not"


def super_resolution_student(*overrides: str) -> StudentObjective:
    """A student of two steps that enlarges images, of a teacher with random weights."""
    recipe = super_resolution("model.distilled.guidance=1.0", "model.distilled.steps=2", *overrides)
    objective = build_objective(recipe, findings=FINDINGS, sites=SITES, masks=MASKS)
    assert isinstance(objective, StudentObjective)
    spec = objective.model.spec
    teacher = build_model(replace(spec, config={**spec.config, "distilled": None}))
    randomised(teacher)
    objective.start_from(teacher)
    return objective


def test_a_super_resolution_student_lands_where_its_teacher_lands_from_where_sampling_starts() -> None:
    """Its own states are those of sampling: around the enlarged image, which a start from noise alone would miss by that image."""
    objective = super_resolution_student("objective.crop=0")
    model, teacher = objective.model.eval(), cast(DiffusionModel, objective.teacher)
    condition = replace(random_condition(3), image=torch.cat([torch.full((3, 1, 16, 16), 0.5), torch.zeros(3, 1, 16, 16)], dim=1))
    noise, last = Draws(range(3)).normal(1, 16, 16), torch.ones(3, dtype=torch.long)
    with torch.no_grad():
        state = objective._own_states(noise, last, condition)
        first, second, _ = student_levels(objective.levels, substeps=4).tolist()
        start = noise * first + 0.5
        estimate = model.denoise(start, torch.full((3,), first), condition)
        torch.testing.assert_close(state, estimate + second / first * (start - estimate))
        clean = 0.5 + 0.1 * Draws(range(9, 12)).normal(1, 16, 16)
        state, sigma, wanted = objective._step_targets(clean, condition, Draws(range(3)))
        for row in range(3):
            step = 0 if sigma[row] == objective.levels[0].float() else 1
            levels = objective.levels[4 * step: 4 * step + 5]
            one = condition[row: row + 1]
            landed = solve(lambda x, level, one=one: teacher.denoise(x, level, one), state[row: row + 1], levels, sampler="unipc")
            mine = wanted[row] + levels[-1].item() / levels[0].item() * (state[row] - wanted[row])
            torch.testing.assert_close(mine, landed[0], atol=1e-5, rtol=1e-4)


def test_a_super_resolution_student_learns_on_crops_and_is_sampled_in_its_steps() -> None:
    objective = super_resolution_student("objective.crop=8")
    images = unit_images(toy_images(16, num=4).pixels)
    batch = Batch(images=images, condition=random_condition(4), draws=Draws(range(4)))
    seen: list[tuple[int, ...]] = []
    hook = objective.model.network.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape[2:])))
    losses = objective.losses("distil", batch)["distil"]
    hook.remove()
    assert set(seen) == {(8, 8)} and losses.shape == (4,) and bool(losses.isfinite().all())
    losses.mean().backward()
    assert objective.model.usual_settings.steps == 2
    asked = replace(random_condition(2), image=torch.zeros(2, 1, 8, 8))
    assert objective.model.eval().sample(asked, [1, 2]).shape == (2, 1, 16, 16)


def test_a_super_resolution_student_has_no_guidance() -> None:
    with pytest.raises(UsageError, match="steps alone"):
        super_resolution_student("model.distilled.guidance=1.5")


def test_the_weight_is_that_of_edm() -> None:
    sigma = torch.tensor([0.01, 0.5, 80.0])
    torch.testing.assert_close(snr_weight(sigma, sigma_data=0.5), output_weight(edm_scalings(sigma, sigma_data=0.5)))


def test_the_target_is_the_estimate_that_lands_where_the_ideal_trajectory_does() -> None:
    objective = objective_of("model.distilled.steps=3", "model.distilled.substeps=24", "model.distilled.guidance=1.0",
                             f"model.sigma_data={SPREAD}", "objective.distillation.own=0.0", ideal=True)
    clean = SPREAD * Draws(range(24)).normal(1, 8, 8)
    state, sigma, wanted = objective._step_targets(clean, random_condition(24), Draws(range(24)))
    levels = objective.distilled.levels(sigma_min=0.005, sigma_max=HIGHEST).tolist()
    assert sorted(set(sigma.tolist())) == pytest.approx(sorted(levels[:3])), "every level is taught"
    for row in range(24):
        here, there = next((a, b) for a, b in pairwise(levels) if a == pytest.approx(sigma[row].item()))
        factor = math.sqrt((SPREAD**2 + there**2) / (SPREAD**2 + here**2))
        exact = state[row] * (factor - there / here) / (1 - there / here)
        torch.testing.assert_close(wanted[row], exact, atol=5e-3, rtol=0)
        assert (state[row] - clean[row]).std() == pytest.approx(here, rel=0.4), "real images at that noise level"


def test_a_student_learns_to_walk_in_two_steps_where_its_teacher_needs_many(engine: Engine, tmp_path: Path) -> None:
    images = toy_images(8)
    objective = objective_of("model.distilled.steps=2", "model.distilled.guidance=1.0", ideal=True)
    teacher = objective.teacher
    assert teacher is not None
    seeds, plain = range(32), SampleSettings(sampler="ddim", guidance=1.0)
    wanted = teacher.sample(None, seeds, replace(plain, sampler="heun", steps=30))
    before = peak_signal_to_noise(objective.model.eval().sample(None, seeds), wanted).mean()
    recipe = smallest("diffusion", "train.steps=150", "train.batch_size=8", "train.learning_rate=3e-3", "train.augment=false")
    outcome = train(objective, images, recipe.train, engine=engine, folder=tmp_path)
    assert isinstance(outcome.model, DiffusionModel)
    after = peak_signal_to_noise(outcome.model.sample(None, seeds), wanted).mean()
    assert after > before + 6, (before, after)
    assert torch.equal(teacher.sample(None, seeds, replace(plain, sampler="heun", steps=30)), wanted), "the teacher is frozen"


def test_one_estimate_of_the_student_equals_the_guided_one_of_the_teacher() -> None:
    parts = ["model.parts=[\"attributes\", \"labels\"]", "model.distilled.steps=0", "model.distilled.guidance=2.0",
             "model.distilled.part_guidance={labels = 3.0}", "model.distilled.guidance_to=5.0"]
    objective = objective_of(*parts)
    teacher, clean = objective.teacher, unit_images(toy_images(8).pixels[:6])
    assert teacher is not None
    condition = replace(random_condition(6), attributes=torch.full((6, 7), 0.4))
    noisy, sigma, wanted = objective._guidance_targets(clean, condition, Draws(range(6)))
    nothing, attributes = condition.only(()), condition.only(["attributes"])
    d0, d1, d2 = (teacher.denoise(noisy, sigma, asked) for asked in (nothing, attributes, condition))
    inside = d0 + 2 * (d1 - d0) + 3 * (d2 - d1)
    acts = (sigma <= 5)[:, None, None, None]
    torch.testing.assert_close(wanted, torch.where(acts, inside, d2), atol=1e-4, rtol=1e-4)


def test_a_teacher_that_has_guidance_built_in_is_not_guided_again() -> None:
    few = objective_of("model.distilled.steps=2", "model.distilled.guidance=4.0")
    spec = few.model.spec
    teacher = build_model(replace(spec, config={**spec.config, "distilled": {"guidance": 4.0, "steps": 0}}))
    randomised(teacher)
    few.start_from(teacher)
    assert isinstance(teacher, DiffusionModel)
    x, sigma = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(3)
    torch.testing.assert_close(few._guided_teacher(random_condition(3))(x, sigma), teacher.denoise(x, sigma, random_condition(3)))


def test_distillation_starts_where_the_students_own_trajectory_is() -> None:
    objective = objective_of("model.distilled.steps=3", "model.distilled.guidance=1.0", "objective.distillation.own=1.0")
    model = objective.model.train()
    condition, clean = random_condition(16), torch.zeros(16, 1, 8, 8)
    with torch.no_grad():
        state, sigma, _ = objective._step_targets(clean, condition, Draws(range(16)))
        levels = objective.distilled.levels(sigma_min=0.005, sigma_max=HIGHEST)
        draws = Draws(range(16))
        number, start = (draws.uniform() * 3).long(), draws.normal(1, 8, 8) * HIGHEST
        for row in range(16):
            asked, steps = condition[row: row + 1], int(number[row])
            walked = start[row: row + 1] if steps == 0 else solve(
                lambda x, level, asked=asked: model.denoise(x, level, asked), start[row: row + 1], levels[: steps + 1], sampler="ddim")  # type: ignore[misc]
            torch.testing.assert_close(state[row], walked[0], atol=1e-3, rtol=1e-3)
            assert sigma[row].item() == pytest.approx(levels[steps].item())
    assert set(number.tolist()) == {0, 1, 2} and model.training


def test_the_loss_of_an_image_does_not_depend_on_its_neighbours() -> None:
    objective = objective_of("model.distilled.steps=2").eval()
    images = unit_images(toy_images(8).pixels[:4])
    losses = [objective("distil", Batch(images=some, condition=random_condition(4), draws=Draws(range(4))))["distil"]
              for some in (images, torch.cat([images[:3], -images[3:]]))]
    torch.testing.assert_close(losses[0][:3], losses[1][:3], rtol=1e-4, atol=1e-5)
    assert losses[0].shape == (4,)


def test_a_teacher_must_know_the_findings_of_its_student() -> None:
    objective = build_objective(load_recipe("student", overrides=[*SMALL_DIFFUSION, *FEW]), findings=("Hernia", "Mass"), masks=MASKS)
    assert isinstance(objective, StudentObjective)
    other = build_objective(smallest("diffusion"), findings=FINDINGS, masks=MASKS).model
    with pytest.raises(UsageError, match=r"no finding 'Hernia'.*Effusion, Mass"):
        objective.start_from(other)
    batch = Batch(images=torch.zeros(1, 1, 8, 8), condition=random_condition(1), draws=Draws([0]))
    with pytest.raises(UsageError, match="--base"):
        objective("distil", batch)
    with pytest.raises(UsageError, match="adds fresh noise"):
        objective_of("model.distilled.steps=2", "objective.distillation.sampler=euler-a")


# ---- sampling


def test_a_student_knows_its_own_way_and_takes_one_evaluation_a_step() -> None:
    model = objective_of("model.distilled.steps=3").model.eval()
    rows: list[int] = []
    model.network.register_forward_pre_hook(lambda network, inputs: rows.append(len(inputs[0])))
    images = model.sample(random_condition(2), [1, 2])
    assert rows == [2, 2, 2]
    assert torch.equal(images, model.sample(random_condition(2), [1, 2], model.usual_settings))
    assert model.usual_settings == SampleSettings(sampler="ddim", steps=3, schedule="karras", guidance=1.0)


@pytest.mark.parametrize(("steps", "wrong", "message"), [
    (3, {"guidance": 1.5}, "guidance 1.5 built in"), (0, {"guidance": 1.5}, "guidance 1.5 built in"),
    (0, {"part_guidance": {"labels": 2.0}}, "guide twice"), (3, {"steps": 4}, "distilled to 3 steps"),
    (3, {"sampler": "heun"}, "leave 'sampler' out"),
    (3, {"schedule": "cosine"}, "leave 'schedule' out"), (3, {"eta": 0.5}, "adds no noise")])
def test_what_a_student_cannot_follow_is_refused(steps: int, wrong: dict[str, Any], message: str) -> None:
    model = objective_of(f"model.distilled.steps={steps}").model.eval()
    settings = replace(model.usual_settings, **wrong)
    for call in (lambda: model.sample(None, [1], settings), lambda: check_settings(model, settings)):
        with pytest.raises(UsageError, match=message):
            call()
    check_settings(model, model.usual_settings)


def test_guidance_alone_leaves_every_sampler_open_and_steps_do_not() -> None:
    model = objective_of("model.distilled.steps=0").model.eval()
    settings = SampleSettings(sampler="heun", steps=3, schedule="cosine", guidance=1.0)
    images = model.sample(None, [1], settings)
    assert bool(images.isfinite().all()) and model.invert(images, None, replace(settings, sampler="ddim")).shape == images.shape
    few = objective_of("model.distilled.steps=2").model
    with pytest.raises(UsageError, match="use its teacher"):
        few.invert(images, None)
    assert any("2 steps of its own" in problem for problem in misfits(few))


# ---- trainings


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("phantoms")
    drawn = write_phantom_dataset(folder / "drawn", num=40, size=32, seed=1, prevalence={"Effusion": 0.4, "Nodule": 0.4})
    return sx.prepare(drawn, size=32, out=folder / "prepared")


@pytest.fixture(scope="module")
def teacher(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    small = [override for override in SMALL_DIFFUSION if "image_size" not in override]
    return sx.train("controlled-64", prepared, out=tmp_path_factory.mktemp("runs") / "teacher", device="cpu", threads=1,
                    overrides=[*small, *FEW, "model.image_size=32", "train.steps=3"])


def study(teacher: Run, prepared: Prepared, out: Path, *overrides: str, recipe: str = "student", **more: Any) -> Run:
    return sx.train(recipe, prepared, out=out, device="cpu", threads=1, base=teacher.path,
                    overrides=[*FEW, "train.steps=2", "model.distilled.steps=2", *overrides], **more)


def test_a_student_is_trained_from_a_run_and_ships_without_it(teacher: Run, prepared: Prepared, tmp_path: Path) -> None:
    run = study(teacher, prepared, tmp_path / "student")
    theirs, own = load_file(teacher.weights), load_file(run.weights)
    assert {name: tensor.shape for name, tensor in theirs.items()} == {name: tensor.shape for name, tensor in own.items()}
    assert any(not torch.equal(theirs[name], own[name]) for name in own)
    spec, facts = read_spec(run.weights)
    digest = facts["started_from"]["base_digest"]
    assert digest == json.loads((run.path / "data.json").read_text())["base_digest"] == teacher.to_dict()["model_digest"]
    assert digest[:16] in (run.path / "card.md").read_text() and "2 steps" in (run.path / "card.md").read_text()
    assert facts["sample"]["steps"] == 2 and facts["sample"]["guidance"] == 1.0 and spec.image_size == 32
    model = sx.load_model(run.path)
    assert isinstance(model, DiffusionModel) and model.config.distilled == Distilled(steps=2)
    made = sx.generate(run, sx.Request(num=2, finding=["Effusion"]), out=tmp_path / "made", device="cpu", threads=1)
    assert {(study.extra["sampler"], study.extra["steps"], study.extra["guidance"]) for study in made.studies} == {("ddim", "2", "1")}
    with pytest.raises(UsageError, match="built in"):
        sx.generate(run, out=tmp_path / "twice", settings={"guidance": 2.0})
    assert not (tmp_path / "twice").exists()
    before = run.weights.read_bytes()
    study(teacher, prepared, run.path)
    sx.train(run.path / "config.toml", prepared, out=run.path, base=teacher.path)
    assert run.weights.read_bytes() == before, "a finished run is returned as it is, also by its own recipe"


def test_a_student_of_guidance_can_teach_a_student_of_steps(teacher: Run, prepared: Prepared, tmp_path: Path) -> None:
    run = study(teacher, prepared, tmp_path / "a", "model.distilled.steps=0", recipe="student-guidance")
    assert read_spec(run.weights)[1]["sample"]["sampler"] == "dpmpp-2m"
    with pytest.raises(UsageError, match=r"guidance 1\.5 built in, and the recipe asks for 3"):
        study(run, prepared, tmp_path / "b", "model.distilled.guidance=3.0")
    second = study(run, prepared, tmp_path / "b")
    with pytest.raises(UsageError, match="a student of 2 steps"):
        study(second, prepared, tmp_path / "c")
    assert not (tmp_path / "c" / "config.toml").exists()
    with pytest.raises(UsageError, match="every weight moves"):
        study(run, prepared, tmp_path / "c", adapt="lora")
    with pytest.raises(UsageError, match="a base that is no student"):
        sx.augment(prepared.path, findings=["Effusion"], out=tmp_path / "d", base=run.path)
    assert not (tmp_path / "c" / "config.toml").exists() and not (tmp_path / "d").exists()


@pytest.mark.parametrize(("overrides", "message"), [
    (["model.channels=16"], "shape of its teacher"), (["train.adapt=lora"], "of a student every weight moves"),
    (["sample.steps=9"], r"table \[sample\]"),
    (["model.distilled.schedule=karas"], "did you mean 'karras'"), (["model.distilled.part_guidance={image = 2.0}"],
                                                                    "is not conditioned on it")])
def test_what_does_not_fit_the_teacher_is_refused_before_anything_is_written(overrides: list[str], message: str, teacher: Run,
                                                                              prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises((InputError, UsageError), match=message):
        study(teacher, prepared, tmp_path / "a", *overrides)
    assert not (tmp_path / "a").exists()


def test_a_teacher_must_be_given_and_stay_the_same(teacher: Run, prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the run of its teacher with --base"):
        sx.train("student", prepared, out=tmp_path / "a")
    run = study(teacher, prepared, tmp_path / "a")
    model = sx.load_model(teacher.path)
    assert isinstance(model, DiffusionModel)
    randomised(model)
    save_model(tmp_path / "other" / WEIGHTS_NAME, model, spec=model.spec, facts={})
    run.weights.unlink()
    with pytest.raises(InputError, match="another recipe or other data"):
        study(Run(path=tmp_path / "other"), prepared, run.path, resume=True)


def test_a_killed_student_goes_on_with_the_same_teacher_to_the_bit(teacher: Run, prepared: Prepared, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    arguments = (prepared.path, teacher.path, 12)
    finished(in_new_process(distil_to, straight, *arguments))
    log = killed / "metrics.jsonl"
    assert killed_when(in_new_process(distil_to, killed, *arguments), lambda: log.exists() and log.read_bytes().count(b"\n") >= 4)
    assert not (killed / WEIGHTS_NAME).exists() and list((killed / "checkpoints").glob("*.safetensors"))
    finished(in_new_process(distil_to, killed, *arguments))
    assert digests(killed, WEIGHTS_NAME) == digests(straight, WEIGHTS_NAME)
    sizes = [path.stat().st_size for path in (killed / "checkpoints").glob("*.safetensors")]
    assert max(sizes) < 4.5 * teacher.weights.stat().st_size, "weights, their mean and two moments; the teacher is not in there"
    shutil.rmtree(killed)


def test_the_second_stage_of_a_cascade_is_distilled_and_packed(prepared: Prepared, tmp_path: Path) -> None:
    """`train student --base` of its run; in the cascade it is sampled in its own steps."""
    small = ("model.channels=8", "model.multipliers=[1, 2]", "model.attention=[false, false]", "model.embedding=16", *FEW, "train.steps=2")
    first = sx.train("base-64", prepared, out=tmp_path / "first", device="cpu", threads=1,
                     overrides=[*small, "model.image_size=16", "model.patch=1"])
    teacher = sx.train("super-256", prepared, out=tmp_path / "second", device="cpu", threads=1,
                       overrides=[*small, "model.image_size=32", "model.reduction=2", "model.patch=2", "objective.crop=16"])
    student = sx.train("student", prepared, out=tmp_path / "student", base=teacher, device="cpu", threads=1,
                       overrides=[*FEW, "train.steps=2", "model.distilled.guidance=1", "model.distilled.steps=2", "objective.crop=16"])
    cascade = sx.load_model(sx.pack([first, student], out=tmp_path / "cascade").path)
    images = cascade.sample(None, [1, 2])
    assert images.shape == (2, 1, 32, 32) and bool(images.isfinite().all())
    with pytest.raises(UsageError, match="distilled to 2 steps"):
        check_settings(cascade, SampleSettings(super_resolution_steps=4))
