"""Generation: whole, resumed after kills, or in another order, the films are the same to the byte, and each says where it is from."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthorax.data.dataset import Dataset
from synthorax.engine import Engine
from synthorax.errors import InputError, UsageError
from synthorax.protocols import SampleSettings
from synthorax.steps.generate import Source, generate_films, preview
from synthorax.steps.plan import Plan, PlanRow, simple_plan
from synthorax.types import Stated
from trainings import after, digests, during_write, finished, generate_to, in_new_process, killed_when, untrained_source

CHECKER = Path(__file__).parents[2] / "shared/acceptance/check_dataset_folder.py"
SETTINGS = SampleSettings(steps=2, guidance=1.5)
PLAN = Plan(rows=(PlanRow(seed=11, labels={"Mass": Stated.PRESENT, "Effusion": Stated.ABSENT}, view="PA", sex="F", age_years=61),
                  PlanRow(seed=12, labels={"Mass": Stated.ABSENT}), PlanRow(seed=13),
                  PlanRow(seed=14, labels={"Effusion": Stated.PRESENT}, view="AP"), PlanRow(seed=12, labels={"Mass": Stated.PRESENT})))


@pytest.fixture(scope="module")
def source() -> Source:
    return untrained_source()


def made(source: Source, out: Path, engine: Engine, *, plan: Plan = PLAN, settings: SampleSettings = SETTINGS,
         batch_size: int = 2) -> Dataset:
    return generate_films(source, plan, out=out, settings=settings, engine=engine, batch_size=batch_size)


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "images").glob("*.png"))])


def test_every_row_of_the_plan_becomes_a_film(source: Source, engine: Engine, tmp_path: Path) -> None:
    dataset = made(source, tmp_path / "a", engine)
    assert [study.file_name for study in dataset.studies] == [f"images/synthetic-{number:06d}.png" for number in range(5)]
    films = pixels(tmp_path / "a")
    assert films.shape == (5, 8, 8) and films.dtype == np.uint8
    assert len({film.tobytes() for film in films}) == 5, "one seed under two conditions gives two films"


def test_rows_say_which_model_made_them_from_what(source: Source, engine: Engine, tmp_path: Path) -> None:
    dataset = made(source, tmp_path / "a", engine)
    for number, (study, row) in enumerate(zip(dataset.studies, PLAN.rows, strict=True)):
        assert study.origin == "synthetic" and study.patient_id == "" and study.split == ""
        told = dict(study.extra)
        assert json.loads(told.pop("condition")) == row.requested()
        assert told == {"model": "tiny", "model_digest": "0" * 64, "seed": str(row.seed), "plan_row": str(number), "sampler": "dpmpp-2m",
                        "steps": "2", "guidance": "1.5"}
        assert dict(study.labels) == dict(row.labels) and study.view == row.view and study.sex == row.sex
    assert dataset.facts["synthetic"] is True and dataset.facts["model_digest"] == "0" * 64
    assert dataset.facts["settings"] == asdict(SampleSettings(steps=2))


def test_every_file_says_that_it_is_synthetic(source: Source, engine: Engine, tmp_path: Path) -> None:
    dataset = made(source, tmp_path / "a", engine)
    for study in dataset.studies:
        with Image.open(tmp_path / "a" / study.file_name) as film:
            text = dict(film.text)  # type: ignore[attr-defined]
        assert "synthetic radiograph, of no patient" in text["Synthorax"]
        assert {key: text[key] for key in study.extra} == dict(study.extra)


@pytest.mark.skipif(not CHECKER.exists(), reason="the acceptance checks are not beside this checkout")
def test_the_folder_passes_the_acceptance_check(source: Source, engine: Engine, tmp_path: Path) -> None:
    made(source, tmp_path / "a", engine)
    result = subprocess.run([sys.executable, str(CHECKER), str(tmp_path / "a"), "--synthetic"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("ok 5 images")


def test_missing_films_are_made_again_to_the_byte(source: Source, engine: Engine, tmp_path: Path) -> None:
    made(source, tmp_path / "a", engine)
    whole = digests(tmp_path / "a")
    for number in (0, 3, 4):
        (tmp_path / f"a/images/synthetic-{number:06d}.png").unlink()
    (tmp_path / "a/metadata.csv").unlink()
    (tmp_path / "a/images/.synthetic-000003.png.77.tmp").write_bytes(b"what a killed write left")
    made(source, tmp_path / "a", engine)
    assert digests(tmp_path / "a") == whole
    assert not list((tmp_path / "a").rglob("*.tmp"))


def test_order_and_neighbours_do_not_matter(source: Source, engine: Engine, tmp_path: Path) -> None:
    made(source, tmp_path / "a", engine)
    made(source, tmp_path / "b", engine, plan=Plan(rows=PLAN.rows[::-1]))
    assert np.array_equal(pixels(tmp_path / "b")[::-1], pixels(tmp_path / "a"))


def test_the_batch_size_changes_a_grey_level_at_most(source: Source, engine: Engine, tmp_path: Path) -> None:
    films = [pixels(made(source, tmp_path / str(size), engine, batch_size=size).path).astype(int) for size in (1, 2, 5, 16)]
    for other in films[1:]:
        assert np.abs(other - films[0]).max() <= 1
    assert np.abs(preview(source.model, PLAN, settings=SETTINGS, engine=engine).astype(int) - films[0]).max() <= 1


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


def test_another_generation_in_the_same_folder_is_refused(source: Source, engine: Engine, tmp_path: Path) -> None:
    made(source, tmp_path / "a", engine)
    before = digests(tmp_path / "a")
    for change in ({"plan": simple_plan(num=5)}, {"settings": replace(SETTINGS, guidance=2.0)}, {"batch_size": 4}):
        with pytest.raises(InputError, match=r"another plan, model or sampler setting; choose another --out"):
            made(source, tmp_path / "a", engine, **change)
    with pytest.raises(InputError, match="another plan, model"):
        made(replace(source, digest="1" * 64), tmp_path / "a", engine)
    assert digests(tmp_path / "a") == before


def test_what_cannot_be_generated_leaves_nothing(source: Source, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        made(source, tmp_path / "a", engine, plan=Plan(rows=()))
    with pytest.raises(UsageError, match="not trained on 'Hernia'"):
        made(source, tmp_path / "b", engine, plan=simple_plan(num=2, present=["Hernia"]))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/metadata.csv").write_text("file_name\n")
    with pytest.raises(InputError, match="is a dataset folder already"):
        made(source, tmp_path / "c", engine)
    for folder in ("a", "b", "c"):
        assert not list((tmp_path / folder).rglob("*.png"))
