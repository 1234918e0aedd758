"""The whole way to a base model at the smallest size: two sets of drawings, pauses, a curve, tuned averages, a packed model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from synthorax import zoo
from synthorax.cli.training import PAUSED
from synthorax.data.phantom import write_phantom_dataset
from synthorax.data.prepared import Prepared
from synthorax.run import Run, read_spec
from synthorax.steps.models.card import read_card
from synthorax.steps.models.trained_model import load_model
from synthorax.training.power_ema import profiles_in

BENCH = Path(__file__).parents[2] / "bench" / "release"
SIDE = 32
TINY = ("model.image_size=32", "model.channels=8", "model.multipliers=[1, 2]", "model.attention=[false, true]", "model.embedding=16",
        "model.patch=2", "train.batch_size=2", "train.checkpoint_every=2", "train.steps=1000000", "train.sample_every=0", "sample.steps=2")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    for number, name in enumerate(("one", "two")):
        write_phantom_dataset(folder / name, num=60, size=SIDE, seed=number, prevalence={"Effusion": 0.4})
        facts = json.loads((folder / name / "dataset.json").read_text())
        (folder / name / "dataset.json").write_text(json.dumps(facts | {"name": name, "licence": "free", "attribution": f"author {name}"}))
    return [folder / "one", folder / "two"]


def test_from_folders_to_a_packed_model(sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import train_base
    from stages import Stage

    monkeypatch.setattr(train_base, "LENGTHS", (0.1,))
    monkeypatch.setattr(train_base, "SPARE_SECONDS", 0.0)
    monkeypatch.setattr(train_base, "SHORTEST_SECONDS", 0.3)
    kept = (*TINY, "train.ema_snapshots=2")
    stages = (Stage(name="small", recipe="edm-64", share=0.4, overrides=kept),
              Stage(name="more", recipe="edm-64", share=0.4, overrides=TINY, base="small"),
              Stage(name="alone", recipe="student-autoguidance", share=0.2, overrides=kept, base="more", guide="small"))
    out = tmp_path / "base"
    arguments = ["--sources", *map(str, sources), "--out", str(out), "--hours", str(3 / 3600), "--curve-minutes", str(1 / 60),
                 "--curve-images", "6", "--images", "24", "--size", str(SIDE), "--name", "tiny", "--device", "cpu", "--threads", "1"]

    def call(*more: str) -> int:
        code: int = train_base.main([*arguments, *more], stages=stages)
        return code

    assert call("--minutes-per-call", "0.0001") == PAUSED
    assert not (out / "small").exists(), "a call without time for training trains nothing"
    assert call() == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])

    prepared = Prepared.load(out / "prepared")
    trained_on = {study.patient_id for study in prepared.images("train").studies}
    held_out = {study.patient_id for split in ("val", "test") for study in prepared.images(split).studies}
    assert trained_on and held_out and not trained_on & held_out
    assert [origin.attribution for origin in prepared.sources] == ["author one", "author two"]

    points = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(point["stage"] for point in points)) == ["small", "more", "alone"]
    assert {score["metric"] for point in points for score in point["scores"]} == {"kid", "fid"}
    assert all(score["low"] <= score["value"] <= score["high"] and score["floor"] is not None
               for point in points for score in point["scores"])
    assert len(list((out / "sheets").glob("*.png"))) == len(points) >= 2
    assert "| more |" in (out / "curve.md").read_text()

    start = json.loads((out / "more/data.json").read_text())["base_digest"]
    assert start == Run(path=out / "small").to_dict()["model_digest"], "the next stage starts from the one before"

    taught = read_spec(out / "alone-teacher/model.safetensors")[1]
    seen = read_spec(out / "small/model.safetensors")[1]["images_seen"]
    first = min(profile.end for profile in profiles_in(out / "small/snapshots").values())
    assert taught["guide"]["average_images"] == max(round(0.18 * seen), first) <= seen, "the guide is the first stage as it was long before"
    assert [stage["recipe"] for stage in taught["stages"]] == ["edm-64"]

    kids: dict[str, Any] = json.loads((out / "alone/tuning.json").read_text())
    assert set(kids) == {"as trained", "0.1"}
    chosen = min(kids, key=lambda name: kids[name]["value"])
    shipped = Run(path=out / "alone" if chosen == "as trained" else out / "alone/tuned")
    assert f"{shipped.path} --name" in told["put it into the package"], "the better average ships"

    head = read_card(out / "zoo/tiny.md")
    assert [entry["recipe"] for entry in head["training"]] == ["edm-64", "edm-64", "student-autoguidance"] and head["metrics"]
    assert {entry["dimension"] for entry in head["metrics"]} >= {"fidelity", "privacy"}
    monkeypatch.setattr(zoo, "FOLDER", out / "zoo")
    assert load_model("tiny").sample(None, seeds=[0]).shape == (1, 1, SIDE, SIDE)
    assert told["weights"].endswith("tiny.safetensors") and "bench/release/ship.py" in told["put it into the package"]

    before = {path: path.stat().st_mtime_ns for path in (*out.glob("*/model.safetensors"), out / "curve.jsonl", out / "report/report.json")}
    assert call() == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}, "what is done is not done again"


def test_the_shares_of_the_stages_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from stages import STAGES, seconds_of

    from synthorax.steps.models.recipe import load_recipe

    assert sum(seconds_of(stage, hours=2) for stage in STAGES) == pytest.approx(7200)
    names = [stage.name for stage in STAGES]
    for number, stage in enumerate(STAGES):
        load_recipe(stage.recipe, overrides=stage.overrides)
        assert not stage.base or stage.base in names[:number]
