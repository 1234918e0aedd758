"""The trainings of a benefit study, side by side; what each says of the images it is asked about is kept, so a stop costs little."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthorax.errors import InputError
from synthorax.evaluation.benefit.design import Rows
from synthorax.evaluation.benefit.protocol import Arm, BenefitConfig
from synthorax.files import read_json_object, read_with_digest, remove_temporaries, write_json, write_with_digest
from synthorax.folders import only_user
from synthorax.judges.classifiers import training_of
from synthorax.judges.fitting import ready
from synthorax.progress import Progress
from synthorax.rng import derive
from synthorax.types import ImageSet

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training: an arm on some of the real images, and the real images that it is asked about afterwards."""

    name: str
    """of its own in the study; for people, and for the file that keeps the answers"""
    arm: Arm
    train: Rows
    """rows of the real images"""
    asked: Rows
    targets: tuple[str, ...]
    """findings that the arm makes more of, if it does"""
    seed: int
    synthetic: Rows | None = None
    """rows of the synthetic images that it may add; None: all"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a trained classifier says of the images that its job asks about."""

    probabilities: Scores
    """[n, K] in [0, 1]"""
    classifier: str


def take_ratio(synthetic: ImageSet, ratio: float | None, num_real: int) -> ImageSet:
    """As many synthetic images as the ratio says, if there are so many; None: all."""
    return synthetic if ratio is None else synthetic.take(np.arange(min(len(synthetic), round(ratio * num_real))))


def shuffle(synthetic: ImageSet, *, seed: int) -> ImageSet:
    """The synthetic images in an order that follows from the seed: smaller ratios are parts of larger ones."""
    return synthetic.take(np.random.default_rng(derive(seed, "mix")).permutation(len(synthetic)))


def train_jobs(jobs: Sequence[Job], real: ImageSet, synthetic: ImageSet, *, config: BenefitConfig, keep: Path | None = None,
               progress: Progress) -> dict[str, Answers]:
    """Answers by the name of the job. `synthetic` is in its order already.

    With `keep`, every job's answers are written there as it ends, and a study that was stopped goes on with the others. Raises
    InputError where `keep` holds the trainings of another study.
    """
    train = _Trainer(jobs, real, synthetic, config=config, progress=progress)
    with only_user(keep) if keep is not None else nullcontext():
        done = {} if keep is None else _finished_answers(keep, jobs, claim=_claim(jobs, real, synthetic, config))
        train.skip(len(done))
        todo = [job for job in jobs if job.name not in done]

        def finish(job: Job) -> Answers:
            answers = train(job)
            if keep is not None:
                write_with_digest(keep / _file_name(job), _pack(answers))
            return answers

        # Side by side, one core each: as many as PyTorch was given threads. They share nothing, so order plays no part.
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            futures = {job.name: pool.submit(finish, job) for job in todo}
            try:
                made = {name: future.result() for name, future in futures.items()}
            except BaseException:  # Ctrl-C among them: end the running trainings at their next update
                train.stop()
                pool.shutdown(cancel_futures=True)
                raise
    return {job.name: done.get(job.name) or made[job.name] for job in jobs}


class _Trainer:
    """Trains one job at a time in each of several threads, and counts the updates of all together."""

    def __init__(self, jobs: Sequence[Job], real: ImageSet, synthetic: ImageSet, *, config: BenefitConfig, progress: Progress) -> None:
        self._real, self._synthetic, self._config, self._progress = real, synthetic, config, progress
        self._train = training_of(config.classifier)
        self._total, self._done, self._stopped = len(jobs) * config.classifier.updates, 0, False
        self._lock = threading.Lock()

    def skip(self, jobs: int) -> None:
        """So many jobs were done before."""
        self._done += jobs * self._config.classifier.updates

    def stop(self) -> None:
        """No training does another update."""
        self._stopped = True

    def __call__(self, job: Job) -> Answers:
        own, arm, config = self._real.take(job.train), job.arm, replace(self._config.classifier, augment=job.arm.augment)
        synthetic = self._synthetic if job.synthetic is None else self._synthetic.take(job.synthetic)
        added = take_ratio(synthetic, arm.ratio, len(own))
        parts = [own] if arm.first_synthetic else [added] if not arm.real else [own, added]
        declared = take_ratio(synthetic, self._config.ratio, len(own))
        start = None
        if arm.first_synthetic:
            before = config.updates // 2
            start = self._train(added.pixels, added.labels, findings=own.findings, config=replace(config, updates=before),
                                seed=derive(job.seed, "synthetic first"), progress=lambda fraction, text: self._count(job))
            config = replace(config, updates=config.updates - before)
        trained = ImageSet.join(parts)
        # The same function, seed and config for all arms: they differ in images, in how often these are drawn, or in the loss.
        classifier = self._train(
            trained.pixels, trained.labels, findings=own.findings,
            config=config, seed=job.seed, image_weights=oversampling(own, declared, job.targets) if arm.oversample else None,
            class_weights=class_weights(own, job.targets) if arm.class_weighted else None, start=start,
            progress=lambda fraction, text: self._count(job))
        return Answers(probabilities=classifier.predict(self._real.pixels[job.asked]),
                       classifier=f"{classifier.name}, {classifier.num_parameters:,} parameters")

    def _count(self, job: Job) -> None:
        with self._lock:
            if self._stopped:
                raise CancelledError
            self._done += 1
            try:
                self._progress(self._done / self._total, job.name)
            except BaseException:  # Ctrl-C in another thread's words: no training does another update
                self._stopped = True
                raise


def oversampling(real: ImageSet, added: ImageSet, targets: Sequence[str]) -> NDArray[np.float64]:
    """How often to draw each real image, so that each target is as common as in the arm with synthetic images."""
    weights = np.ones(len(real))
    for finding in targets:
        shown = real.column(finding) == 1
        share = (shown.sum() + (added.column(finding) == 1).sum()) / (len(real) + len(added))
        if 0 < shown.sum() < len(real) and share < 1:
            weight = share * (~shown).sum() / (shown.sum() * (1 - share))
            weights[shown] = np.maximum(weights[shown], weight)
    return weights


def class_weights(real: ImageSet, targets: Sequence[str]) -> NDArray[np.float64]:
    """Factors on the loss of absent and present targets, [2, K]: each class gets half of the loss, and the mean factor is 1."""
    factors = np.ones((2, len(real.findings)))
    for finding in targets:
        labels = real.column(finding)
        counts = np.array([(labels == 0).sum(), (labels == 1).sum()])
        if counts.min() > 0:
            factors[:, real.findings.index(finding)] = counts.sum() / (2 * counts)
    return factors


def _claim(jobs: Sequence[Job], real: ImageSet, synthetic: ImageSet, config: BenefitConfig) -> dict[str, Any]:
    """What the answers depend on; numbers of bfloat16 and of float32 are not mixed in one study."""
    classifier = replace(config.classifier, autocast=ready(config.classifier).autocast)
    weights = {"weights": hashlib.sha256(Path(classifier.weights).read_bytes()).hexdigest()} if classifier.weights else {}
    return {**replace(config, classifier=classifier).what_trains(), "real": _digest(real), "synthetic": _digest(synthetic), **weights,
            "jobs": hashlib.sha256("".join(f"{job.name} {job.train.tobytes().hex()} {job.asked.tobytes().hex()} {job.targets}"
                                           + ("" if job.synthetic is None else f" {job.synthetic.tobytes().hex()}")
                                           for job in jobs).encode()).hexdigest()}


def _digest(images: ImageSet) -> str:
    digest = hashlib.sha256(json.dumps([images.findings, images.pixels.shape, str(images.pixels.dtype)]).encode())
    for content in (images.pixels, images.labels):
        digest.update(np.ascontiguousarray(content).tobytes())
    return digest.hexdigest()


def _finished_answers(keep: Path, jobs: Sequence[Job], *, claim: Mapping[str, Any]) -> dict[str, Answers]:
    """The answers that are there already, by the name of their job."""
    path = keep / "protocol.json"
    if path.exists():
        earlier = read_json_object(path, remedy="choose another --out, or delete the folder")
        if changed := [name for name in claim if earlier.get(name) != claim[name]]:
            raise InputError(f"holds trainings of another study: {', '.join(changed)} differ", file=keep,
                             remedy="choose another --out, or delete the folder")
    else:
        write_json(path, claim)
    remove_temporaries(keep)
    return {job.name: _unpack(read_with_digest(keep / _file_name(job))) for job in jobs if (keep / _file_name(job)).exists()}


def _file_name(job: Job) -> str:
    plain = re.sub(r"[^a-z0-9.]+", "-", job.name.lower()).strip("-")[:60]
    return f"{plain}-{hashlib.sha256(job.name.encode()).hexdigest()[:8]}.npz"


def _pack(answers: Answers) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, probabilities=answers.probabilities, classifier=np.array(answers.classifier))
    return buffer.getvalue()


def _unpack(content: bytes) -> Answers:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return Answers(probabilities=stored["probabilities"], classifier=str(stored["classifier"]))
