"""The audit: planted copies and leaks are found, images that nobody trained on are not accused, and the gate says what follows."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import zoom
from typer.testing import CliRunner

import synthorax as sx
from synthorax.cli.app import app
from synthorax.data.phantom import write_phantom_dataset
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.report.contact_sheets import save_png
from synthorax.evaluation.statistics.roc import auroc
from synthorax.judges.same_patient import SamePatientConfig, contrastive_loss, train_same_patient
from synthorax.privacy.audit import AuditConfig, audit_images
from synthorax.privacy.membership import NOISE_LEVELS, denoising_losses, distance_auroc, loss_auroc, one_image_each
from synthorax.privacy.planted import WAYS, plant
from synthorax.privacy.registration import Gallery, coarse_poses, local_contrast, posed
from synthorax.privacy.reidentification import reidentify
from synthorax.protocols import ModelSpec
from synthorax.types import ImageSet, Study

JUDGE = SamePatientConfig(updates=60, width=8, batch_size=32)


def thorax(seed):
    """A drawn body: the coarse layout of all, and detail of its own; float [64, 64] around 128."""
    rng = np.random.default_rng(seed)
    layout = zoom(np.random.default_rng(99).uniform(60, 200, (4, 4)), 16, order=1)
    return layout + zoom(rng.normal(0, 25, (16, 16)), 4, order=1)


def images_of(patients, *, images_each=1, split=""):
    """Images of patients by number: each visit has noise and exposure of its own, and a little of the detail changes."""
    images, studies = [], []
    for patient in patients:
        for visit in range(images_each):
            rng = np.random.default_rng((patient, visit, 7))
            change = zoom(rng.normal(0, 8, (16, 16)), 4, order=1) if images_each > 1 else 0
            grey = (thorax(patient) + change + rng.normal(0, 4, (64, 64))) * rng.uniform(0.8, 1.0)
            images.append(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
            studies.append(Study(file_name=f"images/{patient}-{visit}.png", patient_id=str(patient), site="a", split=split))
    return ImageSet(pixels=np.stack(images), studies=tuple(studies), findings=(), labels=np.zeros((len(images), 0), np.float32),
                 digest=f"{patients[0]}-{len(images)}")


class Quarters:
    """A feature space of sixteen numbers: brightness of each part of a 4 x 4 grid."""

    name, digest, num_features = "sixteenths", "0" * 64, 16

    def __call__(self, images):
        side = images.shape[1] // 4
        return images.reshape(len(images), 4, side, 4, side).mean(axis=(2, 4)).reshape(len(images), 16).astype(np.float32)


# Registration


def test_the_pose_is_found_again():
    """An image turned and scaled between the steps of the search fits its original almost as well as itself, and no other one."""
    images = images_of(range(12)).pixels
    moved = posed(torch.from_numpy(images.astype(np.float32)), torch.tensor([[3.3, 1.03, -1.0]]).expand(12, 3))
    found = Gallery.of(images).nearest(moved.numpy().round().astype(np.uint8))
    assert list(found.index) == list(range(12))
    assert found.similarity.min() > 0.85
    strangers = Gallery.of(images).nearest(images_of(range(100, 112)).pixels)
    assert strangers.similarity.max() < 0.6


def test_posing_there_and_back_is_nothing():
    smooth = torch.from_numpy(np.stack([thorax(1), thorax(2)])).float()
    there = torch.tensor([[4.0, 1.05, 1.0], [-3.0, 0.95, -1.0]])
    # A mirrored turn undoes itself; else the opposite turn does.
    back = torch.tensor([[-4.0, 1 / 1.05, 1.0], [-3.0, 1 / 0.95, -1.0]])
    again = posed(posed(smooth, there), back)
    inside = slice(12, -12)
    assert (again - smooth)[:, inside, inside].abs().mean() < 2
    assert (posed(smooth, there) - smooth)[:, inside, inside].abs().mean() > 8


def test_pairs_are_compared_one_by_one():
    gallery = Gallery.of(images_of(range(8)).pixels)
    likeness = gallery.fit(images_of([3, 50]).pixels, np.array([3, 4]))
    assert likeness[0] > 0.95 > 0.6 > likeness[1]


def test_local_contrast_forgets_exposure():
    image = images_of([5]).pixels
    darker = (image * 0.6 + 20).round().astype(np.uint8)
    maps = [local_contrast(images, grid=64).flatten().numpy() for images in (image, darker, images_of([6]).pixels)]
    assert np.corrcoef(maps)[0, 1] > 0.99 > 0.5 > np.corrcoef(maps)[0, 2]
    assert len({tuple(pose.tolist()) for pose in coarse_poses()}) == len(coarse_poses())


# Planted copies


def test_planted_copies_are_what_they_are_called():
    images = images_of(range(4)).pixels
    assert (plant(images, how="verbatim") == images).all()
    assert (plant(images, how="mirrored") == images[:, :, ::-1]).all()
    large = images.repeat(4, axis=1).repeat(4, axis=2)  # 256 px, where a shift by 4 px is whole
    assert (plant(large, how="shifted 4 of 256 px")[:, 4:, 4:] == large[:, :-4, :-4]).all()
    half = plant(images, how="blended 50%").astype(float)
    assert np.abs(half - (images.astype(float) + np.roll(images, 1, axis=0)) / 2).max() <= 0.5
    assert np.std(plant(images, how="noise 5 %").astype(float) - images) == pytest.approx(0.05 * 255, rel=0.1)
    assert (plant(images, how="noise 5 %", seed=1) != plant(images, how="noise 5 %", seed=2)).any()
    deep = plant(images.astype(np.uint16) * 257, how="rotated 3 degrees")
    assert deep.dtype == np.uint16 and np.abs(deep / 257 - plant(images, how="rotated 3 degrees")).max() <= 0.51
    with pytest.raises(UsageError, match="verbatim"):
        plant(images, how="cut out")


# Membership


def test_a_planted_leak_gives_members_away_and_independent_images_do_not():
    rng = np.random.default_rng(0)
    train, held_out, reference = rng.normal(size=(150, 20)), rng.normal(size=(150, 20)), rng.normal(size=(150, 20))
    leak = distance_auroc(train, held_out, train + 0.1 * rng.normal(size=train.shape), reference=reference)
    assert leak.low > 0.95
    independent = [distance_auroc(train, held_out, rng.normal(size=(150, 20)), reference=reference) for _ in range(40)]
    covered = np.mean([interval.low <= 0.5 <= interval.high for interval in independent])
    assert covered >= 0.85


def test_the_reference_takes_out_how_ordinary_an_image_is():
    """Training images that lie in the middle are near every image: without a reference that looks like membership."""
    rng = np.random.default_rng(1)
    direction = np.eye(20)[0] * 3
    train, held_out = direction + 0.7 * rng.normal(size=(200, 20)), direction + 1.3 * rng.normal(size=(200, 20))
    synthetic, reference = (direction * (np.arange(300) % 2)[:, None] + rng.normal(size=(300, 20)) for _ in range(2))
    assert distance_auroc(train, held_out, synthetic).low > 0.55
    fair = distance_auroc(train, held_out, synthetic, reference=reference)
    assert fair.low <= 0.5 <= fair.high


class Remembering(torch.nn.Module):
    """A denoiser that is ideal for a finite set of images: the posterior mean over exactly these (Karras et al. 2022, Eq. 57)."""

    sigma_data = 0.5

    def __init__(self, images):
        super().__init__()
        self.images, self.compressor = images, self
        self.spec = ModelSpec(family="ideal", image_size=images.shape[-1], findings=("Mass",), conditions=())

    def encode(self, images):
        return images

    def denoise(self, x, sigma, condition):
        square = (x[:, None] - self.images[None]).square().flatten(2).sum(2)
        weight = torch.softmax(-square / (2 * sigma[:, None] ** 2), dim=1)
        return torch.einsum("bn,nchw->bchw", weight, self.images)


def test_a_model_that_remembers_is_found_by_its_loss():
    rng = torch.Generator().manual_seed(1)
    train, held_out, others = (torch.randn(60, 1, 8, 8, generator=rng) * 0.5 for _ in range(3))
    members, strangers = (denoising_losses(Remembering(train), images, seed=seed) for seed, images in ((0, train), (1, held_out)))
    assert members.shape == (60, len(NOISE_LEVELS))
    assert loss_auroc(members, strangers).low > 0.85
    unrelated = loss_auroc(*(denoising_losses(Remembering(others), images, seed=seed) for seed, images in ((0, train), (1, held_out))))
    assert unrelated.low <= 0.5 <= unrelated.high
    with pytest.raises(UsageError, match="8 px"):
        denoising_losses(Remembering(train), torch.zeros(2, 1, 16, 16), seed=0)


def test_the_loss_of_an_image_does_not_depend_on_its_company():
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    model = Remembering(images[:5])
    assert denoising_losses(model, images, seed=4)[:3] == pytest.approx(denoising_losses(model, images[:3], seed=4), rel=1e-4)


def test_one_image_of_each_patient():
    patients = ["a", "b", "a", "c", "b", "b"]
    rows = one_image_each(patients, seed=0)
    assert sorted(patients[row] for row in rows) == ["a", "b", "c"]
    assert len({tuple(one_image_each(patients, seed=seed)) for seed in range(20)}) > 1


# The same-patient judge


def test_contrastive_loss_in_closed_form():
    """Two pairs along the axes: each image has its duplicate at cosine 1 and two strangers at cosine 0."""
    axes = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    expected = np.log(np.exp(2) + 2) - 2
    assert contrastive_loss(axes * 3, temperature=0.5).tolist() == pytest.approx([expected] * 4, abs=1e-6)


@pytest.fixture(scope="module")
def followed():
    return images_of(range(40), images_each=2, split="train"), images_of(range(100, 130), images_each=2, split="test")


@pytest.fixture(scope="module")
def judge(followed):
    return train_same_patient(followed[0].pixels, followed[0].patients(), config=JUDGE, seed=0)


def test_the_judge_knows_patients_whom_it_never_saw(followed, judge):
    vectors = judge(followed[1].pixels)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    patients = followed[1].patients()
    one, other = np.triu_indices(len(patients), 1)
    assert auroc(patients[one] == patients[other], (vectors @ vectors.T)[one, other]) > 0.9


def test_the_judge_is_the_same_again_and_its_digest_tells_weights_apart(followed, judge):
    config = SamePatientConfig(updates=2, width=8, batch_size=32)
    once, again = (train_same_patient(followed[0].pixels, followed[0].patients(), config=config, seed=0) for _ in range(2))
    assert once.digest == again.digest != judge.digest
    with pytest.raises(UsageError, match="64 px"):
        judge(np.zeros((1, 32, 32), np.uint8))


def test_too_few_follow_ups_are_no_judge(followed):
    with pytest.raises(InputError, match="two images"):
        train_same_patient(followed[0].pixels[:30], followed[0].patients()[:30], config=JUDGE, seed=0)
    with pytest.raises(InputError, match="held-out patients"):
        reidentify(followed[0], images_of(range(200, 230)), followed[1], config=JUDGE)


# The whole audit


def audit(train, held_out, synthetic, *, planted=1):
    settings = AuditConfig(planted=planted, judge=SamePatientConfig(updates=120, width=8, batch_size=32))
    return audit_images(train, held_out, synthetic, features=Quarters(), config=settings)


@pytest.fixture(scope="module")
def held_out():
    return images_of(range(300, 330), images_each=2, split="test")


@pytest.fixture(scope="module")
def innocent(followed, held_out):
    return audit(followed[0], held_out, images_of(range(1000, 1040)), planted=12)


def test_images_derived_from_patients_are_counted_apart_and_shut_the_gate(followed, held_out, innocent):
    hosts = followed[0].take(range(6))
    derived = replace(hosts, studies=tuple(replace(study, origin="synthetic", extra={"derived_from_patient": "yes"})
                                           for study in hosts.studies))
    made = images_of(range(1000, 1040))
    found = audit(followed[0], held_out, ImageSet.join([made, derived]), planted=1)
    assert found.dimension.scores[0] == innocent.dimension.scores[0], "they are near-duplicates by construction, and not measured"
    assert found.dimension.extra["derived_from_patients"] == 6 and "derived_from_patients" not in innocent.dimension.extra
    assert not innocent.refusals and len(found.refusals) == 1 and "6 images are derived from patients' images" in found.refusals[0]
    assert len(found.cards) == len(made)
    with pytest.raises(InputError, match="all 6 images are derived from patients' images"):
        audit(followed[0], held_out, derived)


def score(found, metric, **which):
    return next(s for s in found.dimension.scores if s.metric == metric and all(getattr(s, key) == value for key, value in which.items()))


def test_independent_images_pass(innocent):
    assert innocent.refusals == () and innocent.dimension.extra["gate"]["passed"]
    assert score(innocent, "membership_auroc", features="whitened pixels").low <= 0.5
    match = score(innocent, "patient_match_rate")
    assert match.low <= match.floor + 0.05 and score(innocent, "same_patient_auroc").value > 0.7
    assert innocent.dimension.extra["same_patient_band"]["status"] == "calibrated"
    assert "membership, loss" in innocent.dimension.extra["not_measured"]
    assert all(score(innocent, "planted_copies_caught", group=how).value >= 0.9 for how in WAYS)
    assert score(innocent, "false_alarm_rate").low <= 3 / 31  # what three ways and 30 images to calibrate them promise
    assert innocent.figures["closest_pairs"].startswith(b"\x89PNG")


def test_one_planted_copy_stops_the_release(followed, held_out):
    made = images_of(range(1000, 1030))
    made.pixels[17] = plant(followed[0].pixels[30:32], how="rotated 3 degrees")[0]
    found = audit(followed[0], held_out, made)
    assert found.dimension.extra["plain_copies"] == [made.studies[17].file_name]
    assert any("plain cop" in reason for reason in found.refusals)
    card = found.cards[17]
    assert card["near_copy"] and card["nearest"]["registration"]["training_image"] == followed[0].studies[30].file_name
    assert set(card["nearest"]) >= {"registration", "whitened pixels", "sixteenths"}


def test_a_generator_that_remembers_patients_is_found_in_every_way(followed, held_out, innocent):
    noise = np.random.default_rng(0).normal(0, 6, followed[0].pixels.shape)
    leaked = ImageSet(pixels=np.clip(followed[0].pixels + noise, 0, 255).astype(np.uint8), studies=followed[0].studies, findings=(),
                   labels=followed[0].labels, digest="leak")
    found = audit(followed[0], held_out, leaked)
    assert score(found, "near_duplicate_rate", features="").value > 0.95
    assert score(found, "nearer_than_follow_up").value > score(innocent, "nearer_than_follow_up").value + 0.5
    assert score(found, "membership_auroc", features="whitened pixels").low > 0.75
    match = score(found, "patient_match_rate")
    assert match.low > match.floor
    assert len(found.refusals) >= 4


def test_what_cannot_be_measured_is_said(followed, held_out):
    single = images_of(range(500, 530))
    found = audit(images_of(range(40)), single, images_of(range(1000, 1010)))
    assert "two images" in found.dimension.extra["not_measured"]["re-identification"]
    assert found.dimension.extra["same_patient_band"]["status"] == "uncalibrated"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    dataset = write_phantom_dataset(folder / "phantom", num=120, size=32, seed=0)
    return sx.prepare(dataset, size=32, out=folder / "prepared", split=(0.5, 0.2, 0.3))


@pytest.fixture
def synthetic(prepared, tmp_path):
    """Training images under other names, as a generator by anybody might leave them: PNG files without a table."""
    for number, image in enumerate(prepared.images("train").pixels[:8]):
        save_png(tmp_path / "made" / f"{number}.png", Image.fromarray(image))
    return tmp_path / "made"


def test_the_gate_is_an_exit_code(prepared, synthetic, tmp_path, monkeypatch):
    """A synthetic folder into which training images were copied fails with 4, and its cards name them; without --gate it is told."""
    arguments = ["audit", "--train", str(prepared.path), "--synthetic", str(synthetic), "--planted", "5", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["synthorax", *arguments])
    stopped = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a"), "--gate"])
    assert stopped.exit_code == 4 and "the gate says no" in stopped.output, stopped.output
    told = json.loads((tmp_path / "a" / "report.json").read_text())
    assert told["dimensions"]["privacy"]["status"] == "measured" and told["dimensions"]["fidelity"]["status"] == "skipped"
    assert not told["dimensions"]["privacy"]["gate"]["passed"]
    cards = [json.loads(line) for line in (tmp_path / "a" / "cards.jsonl").read_text().splitlines()]
    assert len(cards) == 8 and all(card["near_copy"] for card in cards)
    passed = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "b")])
    assert passed.exit_code == 0

    assert told["command"].startswith("synthorax ")
    told["dimensions"]["privacy"]["gate"] |= {"passed": True, "reasons": []}
    (tmp_path / "a" / "report.json").write_text(json.dumps(told))
    fit = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a"), "--gate"])
    assert fit.exit_code == 0 and "the gate says yes" in fit.output, fit.output
