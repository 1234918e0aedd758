"""Extrapolation: what training never showed is flagged, what it did show is not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synthorax.data.dataset import Dataset, read_dataset
from synthorax.data.lesions import lesion_matrix
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import load_images
from synthorax.data.vocabulary import NO_FINDING, label_matrix
from synthorax.protocols import LESION_PROPERTIES
from synthorax.steps.planning.plan import PlanRow
from synthorax.steps.planning.support import Support
from synthorax.types import ImageSet, Lesion, Masks, Stated, Study

NIH = Path(__file__).parents[3] / "shared" / "data" / "open" / "nih"
FINDINGS = ("Effusion", "Hernia", "Mass")
PRESENT, ABSENT, UNCERTAIN = Stated.PRESENT, Stated.ABSENT, Stated.UNCERTAIN


def images_of(studies: Sequence[Study], lesions: Sequence[Sequence[Lesion]] | None = None, masks: Masks | None = None) -> ImageSet:
    values = {PRESENT: 1.0, ABSENT: 0.0, UNCERTAIN: 0.5}
    labels = np.array([[values[study.labels[name]] if name in study.labels else math.nan for name in FINDINGS] for study in studies],
                      dtype=np.float32)
    return ImageSet(pixels=np.zeros((len(studies), 4, 4), np.uint8), studies=tuple(studies), findings=FINDINGS, labels=labels, digest="",
                 lesions=None if lesions is None else lesion_matrix(lesions, FINDINGS), masks=masks)


def study(number: int, *present: str, view: str = "PA", sex: str = "F", site: str = "east") -> Study:
    labels = {name: PRESENT if name in present else ABSENT for name in FINDINGS}
    return Study(file_name=f"{number}.png", view=view, sex=sex, site=site, age_years=18.0 + number % 61, labels=labels)


PATTERNS = [("Effusion",)] * 20 + [("Effusion", "Mass")] * 10 + [("Hernia",)] * 10 + [("Mass",)] * 20 + [()] * 40
STUDIES = [study(number, *present, view="LATERAL" if present == () else ("AP", "PA")[number % 2], sex="FM"[number % 2],
                 site="west" if present == ("Hernia",) else "east") for number, present in enumerate(PATTERNS)]
LESIONS = [[Lesion(finding=name, side="left" if name == "Mass" else "right", size=0.2 + number % 20 / 50, x=0.7, y=0.5) for name in present]
           for number, present in enumerate(PATTERNS)]
SEEN = Support.of(images_of(STUDIES, LESIONS))


def row(*present: str, **stated: object) -> PlanRow:
    return PlanRow(seed=0, labels=dict.fromkeys(present, PRESENT), **stated)  # type: ignore[arg-type]


@pytest.mark.parametrize(("asked", "reasons"), [
    (row("Effusion", "Mass"), ()),
    (row("Effusion", "Hernia"), ("Effusion with Hernia: never seen together in training",)),
    (row("Effusion", "Hernia", "Mass"), ("Effusion with Hernia: never seen together in training",
                                         "Hernia with Mass: never seen together in training")),
    (row("Pneumothorax"), ("Pneumothorax present: never seen in training",)),
    (PlanRow(seed=0, labels={"Mass": UNCERTAIN}), ("Mass uncertain: never seen in training",)),
    (PlanRow(seed=0, labels={"Mass": ABSENT, "Hernia": ABSENT}), ()),
    (row("Mass", view="AP", sex="M", age_years=40, site="east"), ()),
    (row("Mass", view="LATERAL"), ("Mass with view LATERAL: never seen in training",)),
    (row(view="LATERAL"), ()),
    (row("Hernia", site="east"), ("Hernia with site east: never seen in training",)),
    (row("Hernia", site="north"), ("site north: never seen in training",)),
    (row(age_years=118), ("age 118: training images are 8 to 85 years",)),
    (row(lesions=(Lesion(finding="Mass", side="left", size=0.4, x=0.7, y=0.5),)), ()),
    (row(lesions=(Lesion(finding="Mass", side="right"),)), ("Mass on the right: never seen in training",)),
    (row(lesions=(Lesion(finding="Mass", size=0.95),)), ("Mass size 0.95: training images are 0.10 to 0.66",)),
    (row(lesions=(Lesion(finding="Mass", severity=0.5),)), ("Mass severity 0.5: stated in fewer than 3 training images",)),
    (row(lesions=(Lesion(finding="Mass", x=0.3),)), ("Mass x 0.3: training images are 0.69 to 0.71",)),
    (row(lesions=(Lesion(finding="Mass", mask="m.png"),)), ("Mass with an outline: never seen in training",)),
    (row(masks={"lung": "l.png"}), ("lung mask: never seen in training",)),
    (row(text="large hernia and effusion"), ("Hernia with Effusion: never seen together in training",)),
    (row("Hernia", text="no effusion NOT effusion"), ()),
    (row("Hernia", text="effusion"), ("Hernia with Effusion: never seen together in training",)),
    (PlanRow(seed=0), ()),
])
def test_what_training_never_showed_is_named(asked: PlanRow, reasons: tuple[str, ...]) -> None:
    assert SEEN.beyond(asked) == reasons


def test_two_images_are_too_few_and_three_are_enough() -> None:
    for count, reasons in ((1, ("Effusion with Hernia: seen together in 1 training image only",)),
                           (2, ("Effusion with Hernia: seen together in 2 training images only",)), (3, ())):
        images = images_of([*STUDIES, *[study(200 + number, "Effusion", "Hernia") for number in range(count)]])
        assert Support.of(images).beyond(row("Effusion", "Hernia")) == reasons


def test_masks_and_boxes_are_kept_apart() -> None:
    pixels = np.zeros((3, 4, 4), np.uint8)
    pixels[0, :2], pixels[1, :2], pixels[2, 0, 0] = 255, 128, 1
    index = np.full((len(STUDIES), 2), Masks.NOT_STATED, np.int32)
    index[:5, 0], index[5:7, 1], index[7, 1], index[8:, 1] = 0, 1, 2, Masks.NOTHING_THERE
    support = Support.of(images_of(STUDIES, LESIONS, Masks(names=("lung", "Mass"), pixels=pixels, index=index)))
    assert support.masks == {"lung": {"outline": 5, "box": 0}, "Mass": {"outline": 1, "box": 2}}, "an outline may be smaller than a pixel"
    assert support.beyond(row(masks={"lung": "l.png"})) == ()
    assert support.beyond(row(lesions=(Lesion(finding="Mass", box=(0.6, 0.4, 0.2, 0.2)),))) == (
        "Mass with a box: seen in 2 training images only",)


def test_it_travels_as_json_and_stays_small() -> None:
    assert Support.from_dict(json.loads(json.dumps(SEEN.to_dict(), allow_nan=False))) == SEEN
    assert len(json.dumps(SEEN.to_dict())) < 3000


def test_images_that_state_nothing_support_nothing() -> None:
    silent = Support.of(images_of([Study(file_name=f"{number}.png") for number in range(30)]))
    assert silent.beyond(row("Mass", view="PA", age_years=50)) == (
        "Mass present: never seen in training", "view PA: never seen in training", "age 50: stated in fewer than 3 training images")
    assert silent.beyond(PlanRow(seed=0)) == ()


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantom_dataset(tmp_path_factory.mktemp("drawn") / "phantom", num=330, size=32, seed=4)


def rows_like(images: ImageSet) -> list[PlanRow]:
    """What the images show, asked for as it is."""
    assert images.lesions is not None and images.masks is not None
    rows = []
    for number, image in enumerate(images.studies):
        lesions = []
        for column, finding in enumerate(images.findings):
            left, *numbers = (float(value) for value in images.lesions[number, column])
            if image.labels.get(finding) is PRESENT and finding != "No Finding":
                side = "" if math.isnan(left) else "left" if left else "right"
                lesions.append(Lesion(finding=finding, side=side, mask="m.png", **dict(zip(LESION_PROPERTIES[1:], numbers, strict=True))))
        rows.append(PlanRow(seed=number, labels=dict(image.labels), view=image.view, sex=image.sex, age_years=image.age_years,
                            site=image.site,
                            text=image.text, lesions=tuple(lesions), masks={"lung": "l.png", "heart": "h.png"}))
    return rows


def test_held_out_images_are_rarely_flagged_and_strange_requests_mostly_are(phantom: Dataset) -> None:
    images = load_images(phantom, size=32, masks=True)
    patients = sorted(set(images.patients()))
    held_out = np.isin(images.patients(), patients[::3])
    train, rest = images.take(np.flatnonzero(~held_out)), images.take(np.flatnonzero(held_out))
    support = Support.of(train)
    false_alarms = [bool(support.beyond(asked)) for asked in rows_like(rest)]
    assert len(rest) > 100 and np.mean(false_alarms) < 0.10
    assert np.mean([bool(support.beyond(asked)) for asked in rows_like(train)]) < 0.05
    strange = [replace(asked, labels={**asked.labels, "Hernia": PRESENT}) for asked in rows_like(rest)]
    strange += [replace(asked, age_years=2) for asked in rows_like(rest)]
    assert all(support.beyond(asked) for asked in strange)


@pytest.mark.images
@pytest.mark.skipif(not NIH.exists(), reason="the real images are not beside this checkout")
def test_real_held_out_images_are_rarely_flagged() -> None:
    dataset = read_dataset(NIH)
    findings = tuple(name for name in dataset.findings if name != NO_FINDING)
    images = ImageSet(pixels=np.zeros((len(dataset), 1, 1), np.uint8), studies=dataset.studies, findings=findings, digest="",
                  labels=label_matrix(dataset.studies, findings))
    held_out = np.isin(images.patients(), sorted(set(images.patients()))[::3])
    support = Support.of(images.take(np.flatnonzero(~held_out)))
    flagged = []
    for number in np.flatnonzero(held_out):
        image = images.studies[number]
        labels = {name: PRESENT if value else ABSENT for name, value in zip(findings, images.labels[number], strict=True)}
        asked = PlanRow(seed=0, labels=labels, view=image.view, sex=image.sex, age_years=image.age_years, site=image.site)
        flagged.append(bool(support.beyond(asked)))
    assert len(flagged) > 400 and np.mean(flagged) < 0.10
