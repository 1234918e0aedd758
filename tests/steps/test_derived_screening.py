"""Images that are derived from a patient's, in screening and in what is measured: their own patient is no copy, another's is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import zoom

from synthorax.data.derived import refuse_held_out_hosts
from synthorax.errors import InputError
from synthorax.evaluation.benefit.design import refuse_leaks
from synthorax.evaluation.dimensions.privacy import privacy
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.privacy.copies import CopyDetector
from synthorax.steps.screening.filters import Likeness
from synthorax.steps.screening.rejections import COPY, copies, repeats
from synthorax.types import ImageSet, Study

DERIVED = {"derived_from_patient": "yes"}


def images(seed: int, num: int, *, name: str, split: str = "") -> ImageSet:
    """Patients that share a rough layout and differ in detail."""
    rng, layout = np.random.default_rng(seed), zoom(np.random.default_rng(99).uniform(60, 200, (4, 4)), 16, order=1)
    pixels = np.stack([np.clip(layout + zoom(rng.normal(0, 25, (16, 16)), 4, order=1), 0, 255) for _ in range(num)]).astype(np.uint8)
    studies = tuple(Study(file_name=f"{name}{row}.png", patient_id=f"{name}{row}", split=split) for row in range(num))
    return ImageSet(pixels=pixels, studies=studies, findings=("Nodule",), labels=np.zeros((num, 1), np.float32), digest=name)


def with_lesion(hosts: ImageSet, patients: list[str]) -> ImageSet:
    """The images with a bright spot, said to be derived from these patients."""
    pixels = hosts.pixels.copy()
    pixels[:, 20:26, 20:26] = np.clip(pixels[:, 20:26, 20:26].astype(int) + 40, 0, 255)
    studies = tuple(Study(file_name=f"derived{row}.png", patient_id=patient, origin="synthetic", extra=DERIVED)
                    for row, patient in enumerate(patients))
    return replace(hosts, pixels=pixels, studies=studies, labels=np.ones((len(pixels), 1), np.float32))


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return images(0, 40, name="train")


@pytest.fixture(scope="module")
def held_out() -> ImageSet:
    return images(1, 60, name="held-out", split="test")


def test_a_derived_image_may_resemble_its_own_patient_and_no_other(train: ImageSet, held_out: ImageSet) -> None:
    detector = CopyDetector.fit(train.pixels, held_out.pixels)
    made = with_lesion(train.take(range(4)), ["train0", "train1", "train9", ""])
    generated = replace(made, studies=tuple(Study(file_name=study.file_name, origin="synthetic") for study in made.studies))
    rows = list(range(2, 42))
    assert set(copies(detector, generated, real=train, rows=rows)) == {0, 1, 2, 3}, "of a generator they would all be copies"
    rejected = copies(detector, made, real=train, rows=rows)
    assert set(rejected) == {2, 3} and rejected[2].reason == COPY and rejected[2].partner == "row 4"


def test_images_of_one_host_repeat_one_another_only_where_they_are_equal(train: ImageSet) -> None:
    made = with_lesion(train.take([0, 0, 0, 1]), ["train0", "train0", "train0", "train1"])
    made.pixels[1, 40:44, 40:44] ^= 1
    alike = Likeness(between=np.ones((4, 4)), threshold=0.9)
    assert set(repeats(alike, made, dropped={})) == {2, 3}, "another patient's image that looks the same repeats it"


def test_privacy_is_measured_on_images_of_nobody_alone(train: ImageSet, held_out: ImageSet) -> None:
    derived, generated = with_lesion(train.take(range(10)), [f"train{row}" for row in range(10)]), images(5, 8, name="made")
    generated = replace(generated, studies=tuple(replace(study, origin="synthetic", patient_id="") for study in generated.studies))
    real = RealImages(train=train, held_out=held_out)
    both = privacy(real, ImageSet.join([derived, generated]))
    assert both.scores[0].n_synthetic == 8 and both.scores[0].value < 0.2 and both.extra["derived_from_patients"] == 10
    assert both.scores == privacy(real, generated).scores and "derived_from_patients" not in privacy(real, generated).extra
    alone = privacy(real, derived)
    assert alone.status == "skipped" and "derived from patients" in alone.reason


def test_hosts_of_validation_and_test_patients_are_leaks(train: ImageSet, held_out: ImageSet) -> None:
    validation, test = held_out.take(range(30)), held_out.take(range(30, 60))
    refuse_leaks(train, test, with_lesion(train.take([0]), ["train0"]), validation)
    for patient, side in (("held-out3", "validation"), ("held-out40", "test")):
        with pytest.raises(InputError, match=f"derived from a patient who has {side} images"):
            refuse_leaks(train, test, with_lesion(train.take([0]), [patient]), validation)
    with pytest.raises(InputError, match="no patient_id says from whom"):
        refuse_leaks(train, test, with_lesion(train.take([0]), [""]), None)
    refuse_held_out_hosts(with_lesion(train.take([0]), ["train0"]).studies, {"held-out": held_out.studies})
