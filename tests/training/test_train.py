"""The training loop and its parts: what is drawn, what moves, what is averaged, what is written, and what happens when it goes wrong."""

from __future__ import annotations

import itertools
import json
import logging
import math
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthorax.data.language import labels_of, parse_text
from synthorax.data.vocabulary import NO_FINDING
from synthorax.engine import Engine, deferred_interrupt
from synthorax.errors import TrainingError
from synthorax.families import FAMILIES
from synthorax.protocols import ATTRIBUTES, UNCERTAIN, Condition, SampleSettings, as_model
from synthorax.rng import Draws
from synthorax.steps.models.recipe import Recipe
from synthorax.training.checkpoint import Position, load_checkpoint, save_checkpoint
from synthorax.training.ema import Ema
from synthorax.training.feed import Feed, augment_batch, image_weights, labels_with_uncertain, unit_images
from synthorax.training.loop import _Loop, train
from synthorax.types import Stated
from trainings import SITES, digests, fresh_objective, randomised, smallest, toy_data, toy_images, train_here


def losses_of(folder: Path, name: str = "denoise") -> list[float]:
    return [line[name] for line in lines_of(folder)]


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- what the loop does


def test_the_loss_falls_and_the_labels_are_learned(tmp_path: Path) -> None:
    """An image asked to have a mass is brighter at the upper left than one asked to have none, without guidance."""
    recipe = smallest("diffusion", "train.steps=200", "train.batch_size=8", "train.learning_rate=5e-3", "train.augment=false",
                      'model.parts=["labels"]')
    model = as_model(train_here(recipe, tmp_path).model)
    losses = losses_of(tmp_path)
    assert np.mean(losses[-40:]) < 0.75 * np.mean(losses[:40])
    corner = {}
    for value in (0.0, 1.0):
        nothing = Condition.unstated(32, num_labels=2, num_sites=len(SITES))
        condition = replace(nothing, labels=torch.tensor([[math.nan, value]] * 32))
        images = model.sample(condition, range(32), SampleSettings(steps=8, guidance=1.0))
        corner[value] = images[:, 0, :2, :2].mean().item()
    assert corner[1.0] > corner[0.0] + 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_each_phase_moves_its_own_players_only(family: str, engine: Engine, tmp_path: Path) -> None:
    recipe = smallest(family, "train.learning_rate=1e-2")
    objective = fresh_objective(recipe)
    refine_loop = _Loop(objective, toy_data(recipe), recipe.train, engine=engine, folder=tmp_path)
    for phase in objective.phases:
        before = {name: [weight.clone() for weight in player.parameters()] for name, player in objective.players.items()}
        refine_loop._update(phase, learning_rate=1e-2)
        for name, player in objective.players.items():
            moved = [not torch.equal(old, new) for old, new in zip(before[name], player.parameters(), strict=True)]
            assert any(moved) if name in phase.updates else not any(moved), (phase.name, name)


def test_kumar_gan_takes_several_batches_a_step(tmp_path: Path) -> None:
    outcome = train_here(smallest("kumar-gan", "train.steps=2"), tmp_path)
    assert outcome.images == 2 * (3 + 1) * 2  # steps x (generator + discriminator updates) x batch size
    assert set(lines_of(tmp_path)[-1]) == {"step", "images", "elapsed_seconds", "images_per_second", "generator", "real", "made"}


def test_the_learning_rate_rises_stays_and_falls(engine: Engine, tmp_path: Path) -> None:
    recipe = smallest("diffusion", "train.steps=100", "train.warmup_steps=10", "train.cooldown=0.2", "train.learning_rate=1.0")
    refine_loop = _Loop(fresh_objective(recipe), toy_images(8), recipe.train, engine=engine, folder=tmp_path)
    rates = []
    for refine_loop.position.step in range(100):
        rates.append(refine_loop._learning_rate(refine_loop.done(None)))
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[10:80] == pytest.approx([1.0] * 70)
    assert rates[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])
    refine_loop.position.step, refine_loop.position.elapsed_seconds = 50, 95.0
    assert refine_loop._learning_rate(refine_loop.done(100.0)) == pytest.approx(0.25), "a budget cools down by time"


def test_gradients_are_clipped(engine: Engine, tmp_path: Path) -> None:
    for clip in (1e-3, 0.0):
        recipe = smallest("diffusion", f"train.gradient_clip={clip}")
        objective = fresh_objective(recipe)
        refine_loop = _Loop(objective, toy_images(8), recipe.train, engine=engine, folder=tmp_path / str(clip))
        refine_loop._update(objective.phases[0], learning_rate=1e-3)
        norm = torch.cat([weight.grad.flatten() for weight in objective.parameters() if weight.grad is not None]).norm().item()
        assert norm == pytest.approx(1e-3, rel=1e-3) if clip else norm > 1e-2


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    runs = [train_here(smallest("diffusion", "train.steps=4", f"train.seed={seed}"), tmp_path / str(number)).model.state_dict()
            for number, seed in enumerate((0, 0, 1))]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert not all(torch.equal(runs[0][key], runs[2][key]) for key in runs[0])


def test_samples_are_asked_for_at_their_interval(tmp_path: Path) -> None:
    asked: list[int] = []

    def sample(model: nn.Module, step: int) -> None:
        assert not model.training
        asked.append(step)

    train_here(smallest("diffusion", "train.steps=7", "train.sample_every=3"), tmp_path, sample=sample)
    assert asked == [3, 6]


def test_a_budget_is_counted_on_the_clock_that_is_given(tmp_path: Path) -> None:
    ticks = itertools.count()
    outcome = train_here(smallest("diffusion", "train.steps=1_000"), tmp_path, budget_seconds=6.0, clock=lambda: float(next(ticks)))
    assert outcome.steps == 5 and outcome.elapsed_seconds == 6.0, "one tick a step, and one before the first"


def test_a_budget_ends_training_in_time_after_a_cool_down(tmp_path: Path) -> None:
    start = time.monotonic()
    outcome = train_here(smallest("diffusion", "train.steps=1_000_000"), tmp_path, budget_seconds=1.5)
    assert 1.5 <= outcome.elapsed_seconds < 2.5 and time.monotonic() - start < 6
    assert 0 < outcome.steps < 1_000_000
    assert load_folder(smallest("diffusion"), tmp_path / "checkpoints").step == outcome.steps


# ---- averaged weights


def test_averaged_weights_follow_the_closed_form() -> None:
    """One weight that is 1 after the start at 0: the average is 1 - product of the parts kept, the half-life grows with the images."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, halflife_images=100, rampup=0.5)
    nn.init.ones_(model.weight)
    kept = 1.0
    for step in range(1, 40):
        ema.update(model, images_seen=10 * step, images_in_step=10)
        kept *= 0.5 ** (10 / min(100, 0.5 * 10 * step))
        assert next(ema.model.parameters()).item() == pytest.approx(1 - kept, abs=1e-6)


def test_averaging_without_a_half_life_is_a_copy_and_buffers_are_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for halflife in (0, 10**9):
        ema = Ema(model, halflife_images=halflife, rampup=10.0)
        randomised(model, seed=halflife)
        model(torch.randn(8, 2))
        ema.update(model, images_seen=100, images_in_step=8)
        average = ema.model.state_dict()
        assert torch.equal(average["1.running_mean"], model.state_dict()["1.running_mean"])
        assert torch.equal(average["0.weight"], model.state_dict()["0.weight"]) == (halflife == 0)
    assert not ema.model.training and not any(weight.requires_grad for weight in ema.model.parameters())


# ---- what is drawn


SPEC = as_model(fresh_objective(smallest("diffusion")).model).spec


def feed_of(engine: Engine, *, batch_size: int = 6, balance: float = 0.5, augment: bool = True, seed: int = 0) -> Feed:
    return Feed(toy_images(16), spec=SPEC, batch_size=batch_size, balance=balance, augment=augment, seed=seed, engine=engine)


def test_a_batch_depends_on_seed_and_number_alone(engine: Engine) -> None:
    one, other = feed_of(engine), feed_of(engine)
    one.batch(0), one.batch(1)
    torch.manual_seed(5)
    a, b = one.batch(7), other.batch(7)
    assert torch.equal(a.images, b.images) and torch.equal(a.condition.labels.nan_to_num(9), b.condition.labels.nan_to_num(9))
    assert torch.equal(a.draws.normal(3), b.draws.normal(3))
    assert not torch.equal(a.images, other.batch(8).images)
    assert not torch.equal(a.images, feed_of(engine, seed=1).batch(7).images)
    still = feed_of(engine, augment=False)
    assert not torch.equal(still.batch(7).images, still.batch(8).images), "other images, not only other movements"


def test_processes_share_the_batch_that_one_process_would_see(engine: Engine) -> None:
    whole = feed_of(engine, batch_size=6).batch(3)
    parts = [feed_of(replace(engine, rank=rank, world_size=2), batch_size=3).batch(3) for rank in range(2)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.draws.normal(2) for part in parts]), whole.draws.normal(2))


def test_images_keep_their_own_labels(engine: Engine) -> None:
    images = toy_images(16)
    batch = feed_of(engine, batch_size=40, augment=False).batch(0)
    for image, labels, attributes in zip(batch.images, batch.condition.labels, batch.condition.attributes, strict=True):
        row = next(i for i in range(len(images)) if torch.equal(unit_images(images.pixels[i:i + 1])[0], image))
        np.testing.assert_array_equal(labels.numpy(), images.labels[row])
        assert attributes[ATTRIBUTES.index("age")].item() == pytest.approx((20 + row) / 100)


def test_balance_weights_follow_the_closed_form() -> None:
    """Prevalences 1/2 and 1/4; the last image shows both and counts as the rarer one; images without findings count as one that all
    show.
    """
    nan = math.nan
    labels = np.array([[0, 0], [1, 0], [nan, nan], [1, 0], [0, 0], [1, 0], [0, 1], [1, 1]], dtype=np.float32)
    for balance in (0.0, 0.5, 1.0):
        common, rare = 0.5**-balance, 0.25**-balance
        expected = np.array([1, common, 1, common, 1, common, rare, rare])
        np.testing.assert_allclose(image_weights(labels, balance=balance), expected / expected.sum())
    assert image_weights(labels[:, :0], balance=1.0) == pytest.approx([1 / 8] * 8)
    assert image_weights(np.zeros((4, 2), np.float32), balance=1.0) == pytest.approx([1 / 4] * 4)


def test_images_are_drawn_as_their_weights_say(engine: Engine) -> None:
    feed = feed_of(engine, batch_size=3000, balance=1.0, augment=False)
    shares = (feed.batch(0).condition.labels == 1).float().mean(0).numpy()
    expected = ((feed.images.labels == 1) * feed.weights.numpy()[:, None]).sum(0)
    np.testing.assert_allclose(shares, expected, atol=0.03)
    assert shares.min() > (feed.images.labels == 1).mean(0).min(), "the rarer finding is seen more often than it occurs"


def moved_images(images: Tensor) -> Tensor:
    return augment_batch(images, Condition.unstated(len(images), num_labels=2), None, Draws(range(len(images))))[0]


def test_augmentation_never_swaps_sides() -> None:
    """A marker at the upper left stays there, whatever is drawn, and the heart side stays the heart side."""
    images = torch.full((200, 1, 32, 32), -1.0)
    images[:, :, 4:10, 4:10] = 1.0
    moved = moved_images(images)
    light = moved[:, 0] + 1
    assert bool((light[:, :, :14].sum((1, 2)) > 0.95 * light.sum((1, 2))).all()), "left stays left"
    assert bool((light[:, :14].sum((1, 2)) > 0.95 * light.sum((1, 2))).all()), "up stays up"
    assert moved.min() >= -1 and moved.max() <= 1
    assert len({image.numpy().tobytes() for image in moved}) == 200, "each image moves in its own way"


def test_augmentation_stays_small() -> None:
    images = unit_images(toy_images(32, num=24).pixels)
    images = nn.functional.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    moved = moved_images(images)
    pairs = torch.corrcoef(torch.cat([images, moved]).flatten(1))
    assert torch.equal(pairs[24:, :24].argmax(1), torch.arange(24)), "each image is most like itself"


def test_black_borders_stay_black() -> None:
    images = torch.full((50, 1, 32, 32), -1.0)
    images[:, :, :, 8:24] = 0.2
    assert bool((moved_images(images)[:, :, :, :4] < -0.999).all())


def test_masks_and_places_move_with_the_image(engine: Engine) -> None:
    """A bright disc, its mask and its stated centre and size stay together, whatever is drawn."""
    side, num = 64, 40
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = ((rows - 20) ** 2 + (columns - 44) ** 2 <= 64).float().expand(num, 1, side, side).clone()
    size = 2 * disc[0].mean().sqrt().item()
    stated = torch.tensor([1.0, size, math.nan, 44.5 / side, 20.5 / side])
    mask = torch.cat([disc, torch.full_like(disc, math.nan)], dim=1)
    condition = replace(Condition.unstated(num, num_labels=1), lesions=stated.expand(num, 1, 5), mask=mask)
    images, moved, lesion = augment_batch(disc * 1.4 - 0.9, condition, disc, Draws(range(num)))
    assert lesion is not None and moved.mask is not None and moved.lesions is not None
    torch.testing.assert_close(moved.mask[:, :1], lesion)
    assert bool(moved.mask[:, 1].isnan().all()) and bool(moved.lesions[:, 0, 2].isnan().all()), "what is not stated stays so"
    for image, outline, found in zip(images, lesion[:, 0], moved.lesions[:, 0], strict=True):
        assert torch.corrcoef(torch.stack([image.flatten(), outline.flatten()]))[0, 1] > 0.99
        total = outline.sum()
        assert found[3].item() == pytest.approx(((outline * (columns + 0.5)).sum() / total / side).item(), abs=0.004)
        assert found[4].item() == pytest.approx(((outline * (rows + 0.5)).sum() / total / side).item(), abs=0.004)
        assert found[1].item() == pytest.approx(2 * outline.mean().sqrt().item(), rel=0.02)
        assert found[0] == 1.0, "no lesion changes sides"
    assert moved.lesions[:, 0, 3].std() > 0.01, "the images did move"


def test_a_model_gets_only_the_parts_it_is_conditioned_on(engine: Engine) -> None:
    images = toy_images(16)
    batch = feed_of(engine, batch_size=20, augment=False).batch(0)
    condition = batch.condition
    assert condition.lesions is not None and condition.mask is not None and condition.text is not None and batch.lesion is not None
    for row in range(20):
        place = next(i for i in range(len(images)) if torch.equal(unit_images(images.pixels[i:i + 1])[0], batch.images[row]))
        study, shows_mass = images.studies[place], images.labels[place, 1] == 1
        assert condition.attributes[row, -2:].nan_to_num(9).tolist() == {
            "east": [1, 0], "west": [0, 1], "": [9, 9]}[study.site]
        assert bool(batch.lesion[row].any()) == shows_mass
        assert condition.mask[row, 0].isnan().all() == (place % 2 == 0)
        if shows_mass:
            assert condition.lesions[row, 1, 0] == 0.0 and "left" not in condition.text[row].split()
    deaf = Feed(images, spec=replace(SPEC, conditions=("labels",)), batch_size=4, balance=0.0, augment=True, seed=0, engine=engine)
    condition = deaf.batch(0).condition
    assert condition.lesions is condition.mask is condition.text is None


def test_only_images_without_any_finding_are_called_normal(engine: Engine) -> None:
    feed = feed_of(engine, batch_size=20, augment=False)
    called = [(text, labels) for number in range(10) for condition in [feed.batch(number).condition] if condition.text is not None
              for text, labels in zip(condition.text, condition.labels, strict=True)
              if labels_of(parse_text(text)).get(NO_FINDING) is Stated.PRESENT]
    assert len(called) > 10
    for text, labels in called:
        assert bool((labels == 0).all()), text


def test_uncertain_findings_are_not_unknown_ones(engine: Engine) -> None:
    images = toy_images(16)
    labels = images.labels.copy()
    labels[3, 0] = math.nan
    studies = (*images.studies[:3], replace(images.studies[3], labels={"Effusion": Stated.UNCERTAIN}), *images.studies[4:])
    kept = labels_with_uncertain(replace(images, labels=labels, studies=studies))
    assert kept[3, 0] == UNCERTAIN
    kept[3, 0] = math.nan
    np.testing.assert_array_equal(kept, labels)


def test_integer_images_cover_the_whole_range() -> None:
    for kind in (np.uint8, np.uint16):
        top = np.iinfo(kind).max
        unit = unit_images(np.array([[[0, top]]], dtype=kind))
        assert unit.flatten().tolist() == [-1.0, 1.0] and unit.shape == (1, 1, 1, 2)


# ---- when it goes wrong


def load_folder(recipe: Recipe, folder: Path) -> Position:
    """What a continued run would start from; fails if nothing can be loaded."""
    objective = fresh_objective(recipe)
    ema = Ema(objective.model, halflife_images=0, rampup=0)
    optimizers = {phase.name: torch.optim.Adam([w for name in phase.updates for w in objective.players[name].parameters()], fused=True)
                  for phase in objective.phases}
    position, _ = load_checkpoint(folder, modules={"players": objective.players, "ema": ema.model}, optimizers=optimizers)
    assert all(bool(tensor.isfinite().all()) for tensor in objective.state_dict().values())
    assert all(bool(tensor.isfinite().all()) for tensor in ema.model.state_dict().values())
    return position


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(family: str, engine: Engine, tmp_path: Path) -> None:
    """After two good steps the images turn into NaN, also for the batch statistics."""
    recipe = smallest(family, "train.steps=6", "train.checkpoint_every=2")
    objective = fresh_objective(recipe)
    images = toy_data(recipe)

    def spoil(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if len(lines_of(tmp_path)) >= 3:
            batch = inputs[1]
            batch.images.fill_(math.nan)  # type: ignore[attr-defined]

    objective.register_forward_pre_hook(spoil)
    with pytest.raises(TrainingError, match=r"step 3, phase '.*not finite.*last good weights.*learning_rate"):
        train(objective, images, recipe.train, engine=engine, folder=tmp_path)
    assert load_folder(recipe, tmp_path / "checkpoints").step in (2, 3)
    if family == "diffusion":
        outcome = train_here(recipe, tmp_path)
        assert outcome.steps == 6, "without the spoilt image the run goes on"
        assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_weights_that_are_spoilt_are_not_kept(engine: Engine, tmp_path: Path) -> None:
    recipe = smallest("diffusion")
    objective = fresh_objective(recipe)
    nn.init.constant_(next(objective.parameters()), math.nan)
    with pytest.raises(TrainingError, match="no weights were kept yet"):
        train(objective, toy_images(8), recipe.train, engine=engine, folder=tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_gradient_that_is_not_finite_stops_as_well(engine: Engine, tmp_path: Path) -> None:
    recipe = smallest("diffusion")
    objective = fresh_objective(recipe)
    weight = next(objective.parameters())
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = weight.detach().clone()
    with pytest.raises(TrainingError, match="gradient norm"):
        train(objective, toy_images(8), recipe.train, engine=engine, folder=tmp_path)
    assert torch.equal(weight, before)
    assert load_folder(recipe, tmp_path / "checkpoints").step == 0


def test_the_first_ctrl_c_waits_for_a_safe_moment_and_the_run_goes_on(tmp_path: Path) -> None:
    recipe = smallest("diffusion", "train.steps=6", "train.checkpoint_every=100")

    def interrupt(model: nn.Module, step: int) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_here(replace(recipe, train=replace(recipe.train, sample_every=4)), tmp_path / "a", sample=interrupt)
    assert load_folder(recipe, tmp_path / "a/checkpoints").step == 4
    interrupted = train_here(recipe, tmp_path / "a").model.state_dict()
    straight = train_here(recipe, tmp_path / "b").model.state_dict()
    assert all(torch.equal(interrupted[key], straight[key]) for key in straight)
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


# ---- checkpoints


def checkpoint_in(folder: Path, *, step: int, value: float) -> None:
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, value)
    position = Position(step=step, batches=2 * step, images=7, elapsed_seconds=1.5)
    save_checkpoint(folder, position=position, modules={"m": module}, optimizers={})


def loaded(folder: Path) -> tuple[Position, float, list[str]]:
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, -1.0)
    position, damaged = load_checkpoint(folder, modules={"m": module}, optimizers={})
    return position, module.weight.item(), damaged


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint_in(tmp_path, step=step, value=step)
    (tmp_path / ".checkpoint-00000020.safetensors.77.tmp").write_bytes(b"what a killed write left")
    checkpoint_in(tmp_path, step=20, value=20)
    names = [f"checkpoint-{step:08d}.safetensors{end}" for step in (15, 20) for end in ("", ".sha256")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert loaded(tmp_path) == (Position(step=20, batches=40, images=7, elapsed_seconds=1.5), 20.0, [])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "digest", "no digest"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    for step in (5, 10):
        checkpoint_in(tmp_path, step=step, value=step)
    newest = tmp_path / "checkpoint-00000010.safetensors"
    digest = newest.with_name(newest.name + ".sha256")
    content = newest.read_bytes()
    {"flip": lambda: newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1])), "cut": lambda: newest.write_bytes(content[:-8]),
     "empty": lambda: newest.write_bytes(b""), "digest": lambda: digest.write_bytes(b"\xff\xfe"), "no digest": digest.unlink}[damage]()
    position, value, damaged = loaded(tmp_path)
    assert position.step == 5 and value == 5.0
    assert len(damaged) == 1 and newest.name in damaged[0]


def test_training_passes_over_a_damaged_checkpoint_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = smallest("diffusion", "train.steps=6", "train.checkpoint_every=2")
    straight = train_here(recipe, tmp_path).model.state_dict()
    newest = max((tmp_path / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        again = train_here(recipe, tmp_path).model.state_dict()
    assert "checkpoint-00000006.safetensors" in caplog.text and "SHA-256" in caplog.text
    assert all(torch.equal(again[key], straight[key]) for key in straight)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_no_step_appears_twice_after_going_on(tmp_path: Path) -> None:
    recipe = smallest("diffusion", "train.steps=4", "train.checkpoint_every=2")
    train_here(recipe, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 5, "denoise": 1.0}\n{"step": 6, "denoise": 1.0}\n{"step": 7, "den')
    train_here(recipe.with_train(steps=8), tmp_path)
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, 9))


def test_all_random_states_come_back(tmp_path: Path) -> None:
    """Dropout draws from the global state; three more numbers after a checkpoint are the same after loading it."""
    torch.manual_seed(3)
    torch.rand(5)
    checkpoint_in(tmp_path, step=1, value=0)
    expected = torch.rand(3)
    torch.rand(100)
    loaded(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_a_finished_training_has_nothing_left_to_do(tmp_path: Path) -> None:
    recipe = smallest("diffusion", "train.steps=3")
    first = train_here(recipe, tmp_path).model.state_dict()
    before = digests(tmp_path, "metrics.jsonl")
    again = train_here(recipe, tmp_path)
    assert again.steps == 3 and all(torch.equal(again.model.state_dict()[key], first[key]) for key in first)
    assert digests(tmp_path, "metrics.jsonl") == before
