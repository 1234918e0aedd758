"""Filters of screening: what is planted is rejected for the right reason, and real films pass at the stated rate."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import synthorax as sx
from phantoms import phantom_films, write_drawn
from synthorax.data.dataset import Dataset, read_dataset, write_facts, write_table
from synthorax.data.pixels import write_png
from synthorax.data.prepared import Prepared
from synthorax.data.tables import read_table
from synthorax.errors import InputError, UsageError
from synthorax.evaluation.corruptions import corrupted
from synthorax.judges.classifier import ClassifierConfig
from synthorax.judges.cross_fit import CrossFit
from synthorax.judges.look import NAMES, look_of
from synthorax.privacy.planted import plant
from synthorax.steps.screen import Screened, screen_films, screening_judge
from synthorax.steps.screen_filters import FILTERS, REJECTION_RATE, VIEW_RATE, cross_conformal, other_views, unusual_films
from synthorax.types import Films

Row = dict[str, str]
QUICK = ClassifierConfig(updates=150, batch_size=16, width=8, input_size=32, learning_rate=0.01, autocast=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("films")
    films = phantom_films(300, seed=7)
    drawn = [(replace(study, file_name=f"images/{study.file_name}"), film) for study, film in zip(films.studies, films.images, strict=True)]
    return sx.prepare(write_drawn(folder / "drawn", drawn), size=32, out=folder / "prepared", split=(0.5, 0.25, 0.25))


@pytest.fixture(scope="module")
def judge(prepared: Prepared) -> CrossFit:
    return screening_judge(prepared.films("train"), config=QUICK)


def as_synthetic(films: Films, out: Path) -> Dataset:
    """Films of anybody as a synthetic dataset folder."""
    studies = []
    for number, (study, film) in enumerate(zip(films.studies, films.images, strict=True)):
        name = f"images/synthetic-{number:06d}.png"
        write_png(out / name, film)
        studies.append(replace(study, file_name=name, patient_id="", study_id="", masks={}, lesion_label="", split="", origin="synthetic",
                               extra={}))
    write_table(out, studies)
    write_facts(out, name="made", studies=studies, synthetic=True, extra={"labels": films.findings})
    return read_dataset(out)


def screened(films: Films, prepared: Prepared, judge: CrossFit, tmp_path: Path, *filters: str) -> tuple[Screened, dict[int, str]]:
    """What screening says of films, and the reason of each dropped row."""
    found, rows = screened_rows(films, prepared, judge, tmp_path, *filters)
    return found, {number: row["reason"] for number, row in rows.items()}


def screened_rows(films: Films, prepared: Prepared, judge: CrossFit, tmp_path: Path, *filters: str) -> tuple[Screened, dict[int, Row]]:
    """What screening says of films, and dropped.csv by the number of the image."""
    (tmp_path / "made/images").mkdir(parents=True)
    found = screen_films(as_synthetic(films, tmp_path / "made"), prepared, out=tmp_path / "kept", filters=filters, judge=judge)
    with (tmp_path / "kept/dropped.csv").open() as table:
        return found, {int(row["file_name"][-10:-4]): row for row in csv.DictReader(table)}


def test_held_out_real_films_pass_at_the_stated_rate(prepared: Prepared, judge: CrossFit) -> None:
    held_out = prepared.films("test")
    for one in unusual_films(prepared.films("train"), judge, held_out, filters=tuple(FILTERS)):
        rejected = int((one.p <= REJECTION_RATE).sum())
        assert rejected <= len(held_out) * REJECTION_RATE + 3 * np.sqrt(len(held_out) * REJECTION_RATE), one.reason


@pytest.mark.parametrize("how", ["noise", "blur"])
def test_spoilt_films_are_far_from_real_ones(prepared: Prepared, judge: CrossFit, tmp_path: Path, how: str) -> None:
    films = prepared.films("test").take(range(40))
    images = films.images.copy()
    if how == "noise":
        images[:20] = np.random.default_rng(0).integers(0, 256, images[:20].shape, dtype=np.uint8)
    else:
        images[:20] = ndimage.gaussian_filter(images[:20], sigma=(0, 2, 2))
    found, dropped = screened(replace(films, images=images), prepared, judge, tmp_path, "distance", "outlier")
    assert sum(number in dropped for number in range(20)) >= 19
    assert sum(number in dropped for number in range(20, 40)) <= 4
    assert {reason.partition(" ")[0] for reason in dropped.values()} <= {"far", "unlike"}
    assert found.filters == ("distance", "outlier") and found.to_dict()["filters"] == ["distance", "outlier"]


def test_repeated_films_are_dropped_but_for_the_first(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    films = prepared.films("test").take([0, 1, 2, 3, 0, 1, 0])
    images = films.images.copy()
    images[6] = corrupted(images[6:], "gain", seed=1)[0]
    found, dropped = screened_rows(replace(films, images=images), prepared, judge, tmp_path, "twin")
    assert set(dropped) == {4, 5, 6} and dropped[6]["partner"] == "images/synthetic-000000.png"
    assert all(float(row["value"]) > float(row["threshold"]) for row in dropped.values())
    assert found.reasons == {"repeats an earlier image": 3}


def test_of_a_collapsed_set_one_image_stays(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    """One image again and again, under a little noise and of another exposure: as usual, without naming a filter."""
    films = prepared.films("test").take([0] * 100)
    rng = np.random.default_rng(0)
    jittered = films.images * rng.uniform(0.95, 1.05, (100, 1, 1)) + rng.normal(0, 2, films.images.shape)
    found, dropped = screened(replace(films, images=np.clip(jittered, 0, 255).astype(np.uint8)), prepared, judge, tmp_path)
    assert len(dropped) == 99 and found.filters == ("copy", "realism", "twin", "finding")
    assert "with another seed or another family" in str(found).splitlines()[-1]
    assert found.to_dict()["most_dropped"] and found.unrealistic_share < 0.1


def test_copies_state_the_way_that_caught_them_and_no_name_of_a_real_image(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    """Noise and blends are caught by other ways than registration, each with its own value and threshold."""
    train, others = prepared.films("train").take(range(20)), prepared.films("test").take(range(3))
    images = [plant(train.images, how="noise 5 %"), plant(train.images, how="blended 50%"), train.images[:5], others.images]
    films = replace(train.take([*range(20), *range(20), *range(8)]), images=np.concatenate(images))
    found, dropped = screened_rows(films, prepared, judge, tmp_path, "copy")
    assert sum(number < 20 for number in dropped) >= 18 and {40, 41, 42, 43, 44} <= set(dropped)
    assert {row["way"] for row in dropped.values()} == {"registration", "whitened pixels"}
    assert {row["way"]: float(row["threshold"]) for row in dropped.values()} == pytest.approx(found.copies["thresholds"], rel=1e-5)
    assert all(float(row["value"]) > float(row["threshold"]) for row in dropped.values())
    rows = read_table(prepared.path / "metadata.csv").rows
    named = [int(dropped[40 + number]["partner"].removeprefix("row ")) for number in range(5)]
    assert [row.cells["file_name"] for row in rows if row.number in named] == [study.file_name for study in train.studies[:5]]
    told = (tmp_path / "kept/dropped.csv").read_text()
    assert not any(name in told for study in prepared.studies for name in (study.file_name, study.patient_id) if name)


def test_noise_is_dropped_as_usual_and_before_any_judge_is_trained(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    films = prepared.films("test").take(range(40))
    images = films.images.copy()
    images[:30] = np.random.default_rng(0).integers(0, 256, images[:30].shape, dtype=np.uint8)
    found, dropped = screened(replace(films, images=images), prepared, judge, tmp_path / "a")
    assert {dropped[number] for number in range(30)} == {"unlike the real images"} and found.unrealistic_share >= 0.75
    assert "look at its sample sheets" in str(found).splitlines()[-1]
    made = as_synthetic(replace(films.take(range(30)), images=images[:30]), tmp_path / "b")
    with pytest.raises(InputError, match=r"none of the 30 synthetic images passed: 30 unlike the real images.*train it for longer"):
        screen_films(made, prepared, out=tmp_path / "c", classifier=replace(QUICK, updates=0))  # which no training accepts


@pytest.mark.parametrize("filters", [("copy",), ("realism", "twin"), ("copy", "finding")])
def test_only_the_judges_that_are_needed_are_trained(prepared: Prepared, tmp_path: Path, filters: tuple[str, ...]) -> None:
    """No judge for filters that ask none, nor for a finding that no real image states."""
    films = prepared.films("test").take(range(10))
    nothing_asked = replace(films, studies=tuple(replace(study, labels={}) for study in films.studies))
    found = screen_films(as_synthetic(nothing_asked, tmp_path / "made"), prepared, out=tmp_path / "kept", filters=filters,
                         classifier=replace(QUICK, updates=0))  # which no training accepts
    assert found.judges == () and found.filters == filters
    assert read_dataset(tmp_path / "kept").facts["judges"] == []


def test_films_of_the_other_class_are_dropped_and_only_if_asked(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    films = prepared.films("test")
    shows, lacks = (np.flatnonzero(films.column("Effusion") == value)[:20] for value in (1, 0))
    chosen = films.take([*shows, *lacks])
    labelled = replace(chosen, studies=tuple(replace(study, labels=films.studies[int(shows[0])].labels) for study in chosen.studies))
    _, dropped = screened(labelled, prepared, judge, tmp_path, "finding")
    assert Counter(number >= 20 for number in dropped if dropped[number] == "Effusion not visible")[True] >= 15
    assert sum(number < 20 for number in dropped) <= 8
    _, without = screened(labelled, prepared, judge, tmp_path / "again", "copy")
    assert without == {}


def test_films_of_another_view_than_asked_for_are_dropped(prepared: Prepared) -> None:
    """Half of the real films stand on their heads and are called AP; synthetic ones are asked for with the wrong view and the right one."""
    def turned(films: Films, *, wrongly: int) -> Films:
        down = np.arange(len(films)) % 2 == 1
        images = np.where(down[:, None, None], films.images[:, ::-1], films.images)
        views = np.where(down ^ (np.arange(len(films)) < wrongly), "AP", "PA")
        return replace(films, images=images, studies=tuple(replace(study, view=str(view)) for study, view in
                                                           zip(films.studies, views, strict=True)))

    real, made = turned(prepared.films("train"), wrongly=0), turned(prepared.films("test").take(range(60)), wrongly=30)
    found, judge = other_views(real, made, config=QUICK)
    assert judge is not None and judge.findings == ("AP", "PA")
    assert sorted(one.reason for one in found) == ["does not look like AP", "does not look like PA"]
    rejected = np.logical_or.reduce([one.p <= VIEW_RATE for one in found])
    assert rejected[:30].sum() >= 28 and rejected[30:].sum() <= 30 * VIEW_RATE + 4
    unstated = replace(made, studies=tuple(replace(study, view="") for study in made.studies))
    assert other_views(real, unstated, config=QUICK) == other_views(unstated, made, config=QUICK) == ([], None)


def test_undecided_films_have_high_entropy(prepared: Prepared, judge: CrossFit) -> None:
    """Halfway between a film with a large effusion and one without, the judge is less sure than of either."""
    films, scores = prepared.films("test"), judge.predict(prepared.films("test").images)[:, prepared.findings.index("Effusion")]
    sure, unsure = np.argsort(-np.abs(scores - 0.5))[:30], np.argsort(np.abs(scores - 0.5))[:10]
    one, = unusual_films(prepared.films("train"), judge, films, filters=["entropy"])
    assert np.median(one.p[unsure]) < 0.35 < np.median(one.p[sure])


def test_cross_conformal_is_the_plain_rank_with_one_part_and_valid_with_several() -> None:
    rng = np.random.default_rng(0)
    known, part = rng.normal(size=300), np.arange(300) % 3
    new = np.repeat(rng.normal(size=(1, 4000)), 3, axis=0)
    p = cross_conformal(known, part, new)
    assert p == pytest.approx(cross_conformal(known, np.zeros(300, dtype=np.intp), new[:1]))
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.03)


def test_look_tells_noise_and_blur_apart() -> None:
    films = np.full((1, 64, 64), 128, dtype=np.uint8)
    films[0, 20:40, 20:40] = 200
    noisy = corrupted(films, "noise", seed=0)
    noise = 10 ** look_of(noisy)[0, NAMES.index("noise")]
    assert noise == pytest.approx(0.05, rel=0.1)
    assert look_of(films)[0, NAMES.index("noise")] < -5  # edges are no noise
    assert look_of(corrupted(films, "blur", seed=0))[0, 5] < look_of(films)[0, 5]


def test_unknown_filters_and_nothing_left_are_refused(prepared: Prepared, judge: CrossFit, tmp_path: Path) -> None:
    films = prepared.films("test").take(range(8))
    with pytest.raises(UsageError, match="did you mean 'entropy'"):
        screened(films, prepared, judge, tmp_path / "a", "entropie")
    noise = np.random.default_rng(0).integers(0, 256, films.images.shape, dtype=np.uint8)
    with pytest.raises(InputError, match="none of the 8 synthetic images passed: 8 unlike the real images"):
        screened(replace(films, images=noise), prepared, judge, tmp_path / "b", "all")
