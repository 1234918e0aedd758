"""The training loop: one for every family, because an objective lists its phases as data and returns named losses."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from synthorax.config import AtLeastOne, Fraction, NotNegative, Seed, WholeNotNegative, Width
from synthorax.engine import Engine, deferred_interrupt
from synthorax.errors import TrainingError, UsageError
from synthorax.files import json_line, write_atomic
from synthorax.progress import Progress, quiet
from synthorax.protocols import Objective, Phase, as_model
from synthorax.threads import Pace
from synthorax.training.checkpoint import Position, load_checkpoint, save_checkpoint
from synthorax.training.ema import Ema
from synthorax.training.feed import Feed
from synthorax.training.held_out import HeldOut, HeldOutLoss, standing
from synthorax.training.power_ema import PowerAverages
from synthorax.training.volume_feed import VolumeFeed
from synthorax.types import ImageSet, VolumeSet

_LOG = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
Look = Callable[[nn.Module, int], Mapping[str, float | str] | None]
"""Looks at the averaged model after a step; what it returns becomes a line of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How any family is trained."""

    steps: AtLeastOne = 20_000
    """training steps; a budget may end training earlier"""
    batch_size: Annotated[AtLeastOne, Field(le=10**6)] = 32
    """images per process and step"""
    learning_rate: Annotated[NotNegative, Field(le=100)] = 3e-4
    """peak step size of Adam"""
    warmup_steps: WholeNotNegative = 100
    """steps over which the learning rate rises from 0"""
    cooldown: Fraction = 0.3
    """last part of the run over which the learning rate falls to 0"""
    gradient_clip: NotNegative = 1.0
    """largest allowed norm of a phase's gradient; 0 allows any"""
    ema_halflife_images: WholeNotNegative = 50_000
    """half-life of the averaged weights that ship, in images seen; 0 ships the raw weights"""
    ema_rampup: NotNegative = 0.1
    """the half-life is at most this part of the images seen so far"""
    ema_snapshots: WholeNotNegative = 0
    """how many moments of two more averages are kept, from which one of any length is made after training; 0 keeps none"""
    balance: Fraction = 0.5
    """0 draws images as they come, 1 as if all findings were equally frequent; labels stay true either way"""
    augment: bool = True
    """slight rotation, zoom, shift and exposure of real images, stronger where the model is told how, never a flip; the 48 positions of a
    cube for lesions cut from CT
    """
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto, bf16 or fp32"""
    checkpoint_every: AtLeastOne = 500
    """steps between checkpoints"""
    sample_every: WholeNotNegative = 2000
    """steps between sample sheets; 0 makes none"""
    log_every: AtLeastOne = 20
    """steps between lines of metrics.jsonl"""
    held_out_every: WholeNotNegative = 0
    """steps between measurements of the loss on the validation images, with the same noise every time; 0 makes none"""
    stop: Literal["budget", "held-out"] = "budget"
    """what ends training: steps and budget alone, or also the loss on the validation images, once it no longer falls"""
    patience: AtLeastOne = 5
    """measurements without a new lowest loss after which stop=held-out ends the training"""
    adapt: Literal["full", "lora", "trunk", "auto"] = "full"
    """what moves in a training that starts from a base: full (everything), lora (low-rank updates), trunk (all but the trunk), or auto,
    chosen by the number of images"""
    adapt_rank: Width = 8
    """rank r of the updates of lora"""
    adapt_alpha: NotNegative = 8.0
    """weight of the updates of lora, which are multiplied by alpha / r"""
    seed: Seed = 0
    """all random states follow from it"""

    def faults(self) -> Iterator[tuple[str, str]]:
        """What does not go together, by key."""
        if self.stop == "held-out" and not self.held_out_every:
            yield "stop", "held-out needs train.held_out_every above 0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a training ended."""

    model: nn.Module
    """averaged weights, in evaluation mode"""
    steps: int
    images: int
    elapsed_seconds: float
    finished: bool = True
    """False where it was only paused"""
    held_out: HeldOut | None = None
    """its loss on held-out images, where that was measured"""


def train(objective: Objective[nn.Module], images: ImageSet | VolumeSet, config: TrainConfig, *, engine: Engine, folder: Path,
          budget_seconds: float | None = None, budget_images: int | None = None, pause_seconds: float | None = None,
          progress: Progress = quiet, sample: Look | None = None, clock: Callable[[], float] = time.monotonic,
          held_out: ImageSet | None = None) -> Outcome:
    """Train an objective on images, or continue the training that `folder` holds, until its steps or its budget are used up.

    `folder` gets checkpoints/, metrics.jsonl and tensorboard/. `sample` is called with the averaged model and the step, and what it
    returns becomes a line of metrics.jsonl. The budgets are seconds of `clock`, and images drawn for updates of any player. After
    `pause_seconds` of this call in wall-clock time, and a step at least, it saves and returns, and another call goes on. On the CPU, a run
    that is killed or paused at any moment and continued ends bit for bit like one that was not (unless a budget of time ends it). Weights
    that need no gradient when it begins stay as they are. `held_out` are images whose loss is measured where the config
    says so. Raises TrainingError when a loss or gradient is not finite; the last good weights
    are then in checkpoints/.

    The order of additions depends on the number of threads. Where that is chosen by measurement, it is kept with the checkpoint, and equal
    bits also need equal choices afterwards (metrics.jsonl names them): whoever wants them gives the number.
    """
    loop = _Loop(objective.to(engine.device), images, config, engine=engine, folder=folder)
    judge = _held_out_loss(objective, held_out, images, config, engine=engine)
    log = _Log(folder, step=loop.position.step) if engine.is_main else None
    for damage in loop.damaged if engine.is_main else ():
        _LOG.warning("a checkpoint was passed over: %s", damage)
    pace = engine.pace(loop.position.threads)
    begin, first = time.monotonic(), loop.position.step
    start = clock() - loop.position.elapsed_seconds
    progress(min(1.0, loop.done(budget_seconds, budget_images)), f"step {first}")
    with deferred_interrupt() as interrupted:
        while True:
            pause = pause_seconds is not None and time.monotonic() - begin >= pause_seconds and loop.position.step > first
            loop.position.elapsed_seconds, pause, stop = engine.from_main((clock() - start, pause, interrupted()))
            done = loop.done(budget_seconds, budget_images)
            measured = config.held_out_every and loop.position.step % config.held_out_every == 0
            if config.stop == "held-out" and measured and engine.from_main(_no_longer_falls(folder, config)):
                done = 1.0
            if done >= 1 or pause or stop:
                break
            before = time.monotonic()
            losses = loop.step(done)
            if pace is not None:
                _keep_pace(pace, loop.position, log, seconds=time.monotonic() - before)
            if engine.is_main:
                _write_down(loop, losses, log, done=done, progress=progress, sample=sample, judge=judge)
        if engine.is_main:
            loop.save()
    if log is not None:
        log.close()
    if stop:
        raise KeyboardInterrupt
    progress(min(1.0, done), f"step {loop.position.step}")
    return Outcome(model=loop.ema.model, steps=loop.position.step, images=loop.position.images,
                   elapsed_seconds=loop.position.elapsed_seconds, finished=done >= 1, held_out=standing(folder / METRICS))


def _held_out_loss(objective: Objective[nn.Module], held_out: ImageSet | None, images: ImageSet | VolumeSet, config: TrainConfig, *,
                   engine: Engine) -> HeldOutLoss | None:
    """What measures the loss on held-out images; None where it is not asked for. UsageError where it cannot be."""
    if not config.held_out_every:
        return None
    if not objective.held_out_phase:
        raise UsageError("train.held_out_every: the losses of this family do not say how well it has learned; leave it out")
    if held_out is None or not len(held_out) or isinstance(images, VolumeSet):
        raise UsageError("train.held_out_every: there are no validation images; prepare with a validation split, or set "
                         "train.held_out_every=0")
    if not engine.is_main:
        return None
    return HeldOutLoss(objective, held_out, images, batch_size=config.batch_size, seed=config.seed, engine=engine)


def _no_longer_falls(folder: Path, config: TrainConfig) -> bool:
    """Whether the last measurements of the held-out loss brought no new lowest one."""
    now = standing(folder / METRICS)  # which a killed and continued training finds as it was
    return now is not None and now.since >= config.patience


def _keep_pace(pace: Pace, position: Position, log: _Log | None, *, seconds: float) -> None:
    """Choose the threads of the next step, and note a choice that has been made."""
    pace.step_took(seconds)
    if not pace.trying and pace.threads != position.threads:
        position.threads = pace.threads
        if log is not None:
            log.note(position, {"threads": pace.threads})


def _write_down(loop: _Loop, losses: dict[str, Tensor], log: _Log | None, *, done: float, progress: Progress,
                sample: Look | None, judge: HeldOutLoss | None) -> None:
    """What the main process leaves on disk after a step, each thing at its own interval."""
    config, step = loop.config, loop.position.step
    if log is not None and step % config.log_every == 0:
        log.write(loop.position, losses, progress=progress, done=done)
    if judge is not None and log is not None and step % config.held_out_every == 0:
        log.note(loop.position, judge.measure(loop.ema.model))
    if step % config.checkpoint_every == 0:
        loop.save()
    if sample is not None and config.sample_every and step % config.sample_every == 0:
        facts = sample(loop.ema.model, step)
        if log is not None and facts:
            log.note(loop.position, facts)


class _Loop:
    """State of one training: players, optimisers, averaged weights and how far it is."""

    def __init__(self, objective: Objective[nn.Module], images: ImageSet | VolumeSet, config: TrainConfig, *, engine: Engine,
                 folder: Path) -> None:
        check_batch(objective, config)
        self.objective, self.config, self.engine = objective.train(), config, engine
        self.frozen = {id(weight) for weight in objective.parameters() if not weight.requires_grad}  # before training: for all of it
        self.checkpoints = folder / "checkpoints"
        self.feed = _feed(images, objective, config, engine=engine)
        self.optimizers = {phase.name: torch.optim.Adam(self._parameters(phase), lr=config.learning_rate, betas=phase.betas, fused=True)
                           for phase in objective.phases if not phase.optimizer}
        self.ema = Ema(objective.model, halflife_images=config.ema_halflife_images, rampup=config.ema_rampup)
        self.snapshots = folder / "snapshots"
        self.averages = PowerAverages(objective.model) if config.ema_snapshots else None
        self.modules = {"players": objective.players, "ema": self.ema.model, **(self.averages.models if self.averages else {})}
        self.position, self.damaged = load_checkpoint(self.checkpoints, modules=self.modules, optimizers=self.optimizers)
        self.saved_step = self.position.step if self.position.step else None  # a step that is on disk is not written again
        self.wrapped = engine.wrap(objective, uses_all=objective.uses_all)

    def done(self, budget_seconds: float | None, budget_images: int | None = None) -> float:
        """Part of the run that is behind us, by steps, time or images, whichever is furthest."""
        part = self.position.step / self.config.steps
        part = max(part, self.position.images / budget_images) if budget_images else part
        return max(part, self.position.elapsed_seconds / budget_seconds) if budget_seconds else part

    def step(self, done: float) -> dict[str, Tensor]:
        """All phases once; returns the mean of every loss term."""
        terms: dict[str, Tensor] = {}
        images_before = self.position.images
        for phase in self.objective.phases:
            if self.position.step % phase.every == 0:
                for _ in range(self.engine.from_main(self.objective.repeats(phase))):
                    terms |= self._update(phase, learning_rate=self._learning_rate(done))
        self.position.step += 1
        facts = {"images_seen": self.position.images, "images_in_step": self.position.images - images_before}
        self.ema.update(self.objective.model, **facts)
        if self.averages is not None:
            self.averages.update(self.objective.model, **facts)
        return terms

    def save(self) -> None:
        if self.saved_step == self.position.step:
            return
        self.saved_step = self.position.step
        if self.averages is not None and self.position.step:  # before the checkpoint, so that going on from it finds them all
            self.averages.save(self.snapshots, images=self.position.images, step=self.position.step, every=self.config.checkpoint_every,
                               most=self.config.ema_snapshots)
        save_checkpoint(self.checkpoints, position=self.position, modules=self.modules, optimizers=self.optimizers)

    def _update(self, phase: Phase, *, learning_rate: float) -> dict[str, Tensor]:
        batch = self.feed.batch(self.position.batches)
        self.position.batches += 1
        self.position.images += len(batch) * self.engine.world_size
        for name, player in self.objective.players.items():
            for weight in player.parameters():
                weight.requires_grad_(name in phase.updates and id(weight) not in self.frozen)
        optimizer = self.optimizers[phase.optimizer or phase.name]
        optimizer.zero_grad(set_to_none=True)
        with self.engine.autocast():
            losses: dict[str, Tensor] = self.wrapped(phase.name, batch)
        terms = {name: loss.mean() for name, loss in losses.items()}
        total = torch.stack(list(terms.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._parameters(phase), self.config.gradient_clip or math.inf)
        if not math.isfinite(self.engine.mean(total + norm).item()):
            self._stop(phase, terms, norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * phase.rate
        optimizer.step()
        return {name: self.engine.mean(value.detach()) for name, value in terms.items()}

    def _stop(self, phase: Phase, terms: dict[str, Tensor], norm: Tensor) -> None:
        """Keep the state if it is still good, batch statistics included, and say why training ends."""
        good = all(bool(tensor.isfinite().all()) for tensor in self.objective.players.state_dict().values())
        if good and self.engine.is_main:
            self.save()
        kept = f"the last good weights are in {self.checkpoints}" if good or self.checkpoints.exists() else "no weights were kept yet"
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
        raise TrainingError(f"step {self.position.step}, phase '{phase.name}': the loss or its gradient is not finite ({values}, "
                            f"gradient norm {norm.item():.4g}); {kept}. Continue with a "
                            f"lower train.learning_rate or train.precision=fp32")

    def _parameters(self, phase: Phase) -> list[nn.Parameter]:
        return [weight for name in phase.updates for weight in self.objective.players[name].parameters() if id(weight) not in self.frozen]

    def _learning_rate(self, done: float) -> float:
        """Linear warm-up, constant, linear cool-down to zero."""
        config = self.config
        warmup = min(1.0, (self.position.step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        cooldown = min(1.0, (1 - done) / config.cooldown) if config.cooldown else 1.0
        return config.learning_rate * warmup * cooldown


def _feed(images: ImageSet | VolumeSet, objective: Objective[nn.Module], config: TrainConfig, *, engine: Engine) -> Feed | VolumeFeed:
    """Where the batches come from."""
    spec = as_model(objective.model).spec
    if isinstance(images, VolumeSet):
        return VolumeFeed(images, spec=spec, batch_size=config.batch_size, augment=config.augment, seed=config.seed, engine=engine)
    return Feed(images, spec=spec, batch_size=config.batch_size, balance=config.balance, augment=config.augment, seed=config.seed,
                engine=engine, told=objective.told_augmentation)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSpeed:
    """What a training step takes on this machine."""

    seconds: float
    images: float
    """images drawn in a step, by all networks that are trained, together"""


def measure_steps(objective: Objective[nn.Module], images: ImageSet | VolumeSet, config: TrainConfig, *, engine: Engine, folder: Path,
                  seconds: float = 2.0, most: int = 20) -> StepSpeed:
    """Time some real training steps, after a first one that warms up: for about `seconds`, one at least. Nothing is written to `folder`.

    The weights of `objective` move, so train another one.
    """
    loop = _Loop(objective.to(engine.device), images, config, engine=engine, folder=folder)
    loop.step(0.0)
    start, before, taken = time.monotonic(), loop.position.images, 0
    while taken < 1 or (taken < most and time.monotonic() - start < seconds):
        loop.step(0.0)  # it looks at its loss, and so waits for the device
        taken += 1
    return StepSpeed(seconds=(time.monotonic() - start) / taken, images=(loop.position.images - before) / taken)


def check_batch(objective: Objective[nn.Module], config: TrainConfig) -> None:
    """Refuse batches of one image where batch normalisation would compare the image with itself."""
    if config.batch_size == 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in objective.modules()):
        raise UsageError("train.batch_size=1: this model has batch normalisation, which needs at least two images a batch")


class _Log:
    """metrics.jsonl and TensorBoard; lines after the step that training continues from are dropped."""

    def __init__(self, folder: Path, *, step: int) -> None:
        self.path = folder / METRICS
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        kept = [line for line in lines if 0 <= _step_of(line) <= step]
        write_atomic(self.path, "".join(line + "\n" for line in kept))
        self.board = _board(folder / "tensorboard", step=step)
        self.since, self.images = time.monotonic(), -1

    def write(self, position: Position, losses: dict[str, Tensor], *, progress: Progress, done: float) -> None:
        """One line on the losses, the speed and the time; `done` is the finished part of the run."""
        now = time.monotonic()
        speed = (position.images - self.images) / (now - self.since) if self.images >= 0 else None
        self.since, self.images = now, position.images
        values = {name: round(value.item(), 6) for name, value in losses.items()}
        line = {"step": position.step, "images": position.images, "elapsed_seconds": round(position.elapsed_seconds, 1),
                "images_per_second": speed and round(speed, 1), **values}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
        for name, value in values.items() if self.board is not None else ():
            self.board.add_scalar(f"loss/{name}", value, position.step)
        text = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        progress(done, f"step {position.step} {text}" + (f" {speed:.0f} images/s" if speed else ""))

    def note(self, position: Position, facts: Mapping[str, float | str]) -> None:
        """One line on something else than losses."""
        line = {"step": position.step, "images": position.images, "elapsed_seconds": round(position.elapsed_seconds, 1), **facts}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
            _forget_host(self.path.with_name("tensorboard"))


def _step_of(line: str) -> int:
    """The step of a line of metrics.jsonl; -1 for a line that states none."""
    step = json_line(line).get("step")
    return step if type(step) is int else -1


def _board(folder: Path, *, step: int) -> Any:
    """TensorBoard's writer; None, with a warning, on machines that were lent without TensorBoard: metrics.jsonl says the same."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        _LOG.warning("no tensorboard/ is written, because %s is not installed", error.name)
        return None
    _forget_host(folder)  # of what a killed training has left
    return SummaryWriter(str(folder), purge_step=step)


def _forget_host(folder: Path) -> None:
    """TensorBoard names its files after the host (events.out.tfevents.TIME.HOST.PROCESS.NUMBER); a run may be given away."""
    for path in folder.glob("events.out.tfevents.*"):
        parts = path.name.split(".")
        if len(parts) > 6:  # a host name may have dots of its own
            path.rename(path.with_name(".".join([*parts[:4], *parts[-2:]])))
