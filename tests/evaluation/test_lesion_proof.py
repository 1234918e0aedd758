"""The study of inserted lesions on planted data: a benefit is found, shuffled labels bring none, another protocol is refused."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from synthorax.judges.channelised_observer import ObserverConfig, Places, train_observer

ROOT = Path(__file__).parents[2]
SIDE, NUM, FOLDS = 64, 60, 2


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "studies"))
    import lesion_proof

    return lesion_proof


def small(protocol: dict[str, Any]) -> dict[str, Any]:
    """Tiny counts; the same stages."""
    own = {"folds": FOLDS, "findings": ["Nodule"], "least_box_px": 8.0}
    parts = {part: own | {"primary_judge": judge, "judges": [{"name": judge, "k": [6]}]}
             for part, judge in (("A", "observer"), ("B", "space"))}
    return protocol | parts | {"primary_k": 6, "seeds": 2, "num_synthetic": 40, "draws": 200}


def planted(study: Any) -> Any:
    """Faint blobs in textured images, "real" and inserted alike; generated images show nothing of them, templates blobs of another size."""
    from lesion_proof_data import Cases, join

    rng = np.random.default_rng(0)

    def texture(num: int) -> Any:
        return 110 + 22 * gaussian_filter(rng.normal(size=(num, SIDE, SIDE)), (0, 1, 1)) / 0.28 + 3 * rng.normal(size=(num, SIDE, SIDE))

    def with_blobs(grey: Any, sigma: float = 3.0) -> tuple[Any, Any]:
        at = rng.integers(12, SIDE - 12, size=(len(grey), 2))
        y, x = np.mgrid[:SIDE, :SIDE]
        bumps = np.stack([40 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2)) for row, column in at])
        return grey + bumps, np.column_stack([at[:, 1] - 5, at[:, 0] - 5, np.full((len(at), 2), 10)])

    def cases(grey: Any, **facts: Any) -> Any:
        return Cases.of(grey.clip(0, 255).astype(np.uint8), views=["PA"] * len(grey), **facts)

    sick, boxes = with_blobs(texture(NUM))
    plain, names, folds = texture(NUM), [f"p{number}" for number in range(NUM)], np.arange(NUM) % FOLDS
    normal = cases(plain, patients=[f"n{number}" for number in range(NUM)], folds=folds, findings=["No Finding"] * NUM)
    real = join(cases(sick, patients=names, folds=folds, boxes=boxes, findings=["Nodule"] * NUM), normal)
    made = {}
    for kind, sigma in (("inserted", 3.0), ("template", 1.0)):
        grey, places = with_blobs(plain, sigma)
        made[kind] = cases(grey, boxes=places, source=NUM + np.arange(NUM), findings=["Nodule"] * NUM, patients=normal.patients)
    classic = replace(real, source=np.arange(2 * NUM))
    generated = cases(texture(NUM), boxes=with_blobs(plain)[1], findings=["Nodule"] * NUM)
    return study.Pools(real=real, classic=classic, generated=generated, generated_normal=cases(texture(NUM)), **made)


def run_whole(study: Any, out: Path, part: str, features: Any) -> dict[tuple[str, str, str], Any]:
    """Run a part in two calls, the first of which was cut off; rows of the table by arm, endpoint and comparison."""
    protocol = small(tomllib.loads(study.PROTOCOL.read_text(encoding="utf-8")))
    pools = planted(study)
    judges = study.Judges(protocol, part, pools, features(pools))
    lines, mark = out / f"lines-{part}.jsonl", study.digest()
    (out / f"facts-{part}.json").write_text(json.dumps(study.facts_of(judges)))
    todo = list(study.units(protocol, part))
    assert study.run(judges, iter(todo[:5]), lines=lines, digest_of_protocol=mark, budget_minutes=9) == 5
    lines.write_text(lines.read_text() + '{"cut off": ')
    assert study.run(judges, iter(todo), lines=lines, digest_of_protocol=mark, budget_minutes=9) == len(todo) - 5
    assert study.run(judges, iter(todo), lines=lines, digest_of_protocol=mark, budget_minutes=9) == 0
    assert mark in study.tables(out, protocol, digest=mark)
    rows = json.loads((out / "table.json").read_text())["rows"]
    return {(row["arm"], row["endpoint"], row["against"]): row for row in rows if row["finding"] == "Nodule"} | {
        (row["arm"], "mean", ""): row for row in rows if row["finding"] == "mean of findings"}


def test_inserted_lesions_that_look_real_help_the_observer_and_shuffled_ones_do_not(study: Any, tmp_path: Path) -> None:
    rows = run_whole(study, tmp_path, "A", lambda pools: {})
    assert {arm for arm, _, _ in rows} == {*study.ARMS, "untrained"}
    assert rows["inserted", "AUROC", "no finding"]["primary"] and rows["inserted", "AUROC", "no finding"]["above"]["value"] > 0.03
    assert rows["shuffled", "AUROC", "no finding"]["above"]["value"] < 0
    assert rows["untrained", "AUROC", "no finding"]["value"]["value"] > 0.5
    assert rows["inserted", "sensitivity at 0.5", ""]["above"]["value"] > rows["shuffled", "sensitivity at 0.5", ""]["above"]["value"]


def test_a_planted_benefit_of_a_head_on_features_is_found_beyond_chance(study: Any, tmp_path: Path) -> None:
    def features(pools: Any) -> Any:
        rng = np.random.default_rng(1)
        shift = {kind: np.where(np.arange(60) < 30, 0.0 if kind in ("generated", "template") else 0.35, 0.0) for kind in pools.named()}
        seen = {kind: rng.normal(size=(len(pool), 60)) + shift[kind] * pool.having("Nodule")[:, None]
                for kind, pool in pools.named().items()}
        return {"space": seen | {"classic": seen["real"]}}

    rows = run_whole(study, tmp_path, "B", features)
    assert rows["inserted", "mean", ""]["primary"] and rows["inserted", "mean", ""]["above"]["low"] > 0
    for arm in ("shuffled", "generated", "template"):
        assert rows[arm, "mean", ""]["above"]["low"] < 0


def test_no_arm_learns_from_a_patient_of_the_test_fold(study: Any) -> None:
    pools = planted(study)
    tested = set(pools.real.patients[pools.real.folds == 0])
    for arm in study.ARMS:
        one = study.training_set(pools, arm=arm, finding="Nodule", k=6, fold=0, seed=1, num=40)
        assert not tested & (set(one.positive.patients) | set(one.negative.patients)) - {""}
        assert len(one.positive) == (46 if arm not in ("real", "repeated", "weighted") else 6)
    assert study.training_set(pools, arm="real", finding="Nodule", k=31, fold=0, seed=1, num=40) is None


def test_the_discriminant_is_that_of_the_observer(study: Any) -> None:
    from lesion_proof_arms import discriminant

    from synthorax.judges.channelised_observer import channel_values

    real = planted(study).real
    here = Places(image=np.arange(20), x=real.boxes[:20, 0] + 5, y=real.boxes[:20, 1] + 5)
    away = Places(image=NUM + np.arange(20), x=np.full(20, 30.0), y=np.full(20, 30.0))
    values = [channel_values(real.images, places, config=ObserverConfig()) for places in (here, away)]
    trained = train_observer(real.images, here, away, finding="Nodule", trained_on="real")
    np.testing.assert_allclose(discriminant(*values), trained.weights, rtol=1e-9)
    assert not np.allclose(discriminant(*values, weight=9.0), trained.weights)


def test_a_head_on_features_needs_labels_that_mean_something(study: Any) -> None:
    from lesion_proof_arms import classify

    pools, rng = planted(study), np.random.default_rng(1)
    rows = np.flatnonzero(pools.real.folds == 0)
    seen = {kind: rng.normal(size=(len(pool), 12)) + 1.2 * pool.having("Nodule")[:, None] for kind, pool in pools.named().items()}
    scores = {}
    for arm in ("inserted", "shuffled"):
        learned = study.training_set(pools, arm=arm, finding="Nodule", k=6, fold=0, seed=1, num=40)
        learned = replace(learned, positive=learned.positive.take(np.arange(6, 46)), keys=learned.keys[6:])  # synthetic ones alone
        said = classify(learned, lambda keys, _: np.stack([seen[kind][int(row)] for kind, row in (key.split(":") for key in keys)]),
                        seen["real"][rows], strength=0.01, arm=arm, seed=3)
        positive = pools.real.having("Nodule")[rows]
        scores[arm] = float((said.scores[positive][:, None] > said.scores[~positive]).mean())
    assert scores["inserted"] > 0.95 > 0.9 > scores["shuffled"]


def test_another_protocol_is_refused(study: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="prepared with none"):
        study.check_protocol(tmp_path)
    (tmp_path / study.KEPT).write_text(study.digest() + "\n")
    assert study.check_protocol(tmp_path) == study.digest()
    changed = tmp_path / "changed.toml"
    changed.write_bytes(study.PROTOCOL.read_bytes() + b"\n")
    with pytest.raises(SystemExit, match="test data stay closed"):
        study.check_protocol(tmp_path, protocol=changed)
    (tmp_path / "lines.jsonl").write_text(json.dumps({"unit": "x", "protocol": "another"}) + "\n")
    with pytest.raises(SystemExit, match="another protocol"):
        study.run(None, iter(()), lines=tmp_path / "lines.jsonl", digest_of_protocol=study.digest(), budget_minutes=1)


def test_the_page_states_the_digest_of_the_protocol(study: Any) -> None:
    page = (ROOT / "docs" / "studies" / "lesion-proof.md").read_text(encoding="utf-8")
    assert re.findall(r"`([0-9a-f]{64})`", page)[:1] == [study.digest()]
