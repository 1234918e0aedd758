"""The tables of the study of inserted lesions, from its lines alone: areas, free response, differences by patient, Holm, drains."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lesion_proof_arms import ARMS, CONVENTIONAL, Pools
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm

from synthorax.errors import InputError
from synthorax.evaluation.metrics.free_response import FreeResponse, sensitivity_difference, sensitivity_interval
from synthorax.evaluation.statistics.bootstrap import counted_auroc, counted_bootstrap, counted_pairs
from synthorax.evaluation.statistics.roc import Bootstrap
from synthorax.evaluation.statistics.roc import auroc as auroc_of
from synthorax.files import write_atomic, write_json
from synthorax.judges.cross_fit import patient_folds
from synthorax.judges.features import FeatureSpace
from synthorax.judges.linear_probe import fit_probe
from synthorax.multiple_testing import holm

Vector = NDArray[np.float64]
Key = tuple[str, str, int, str]
"""judge, finding, k, arm"""
UNSEEN = ("val", "test")
"""splits whose patients the base model never saw"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What all trainings of a part said."""

    patients: NDArray[np.str_]
    folds: NDArray[np.intp]
    findings: Sequence[frozenset[str]]
    views: NDArray[np.str_]
    unseen: NDArray[np.bool_]
    """[N] the base model saw no image of the patient"""
    lesion_rows: NDArray[np.intp]
    scores: Mapping[Key, Vector]
    """[N, seeds], NaN for images that are never tested"""
    marks: Mapping[Key, Sequence[FreeResponse]]
    """one a seed; a mark's score is minus the rate of false marks of its fold that score at least as high"""
    digests: frozenset[str]

    def shows(self, finding: str) -> NDArray[np.bool_]:
        """Which images show it."""
        return np.array([finding in some for some in self.findings])


def read_results(out: Path, part: str) -> Results:
    """The lines of a part; arms of which a fold or a seed is missing are left out."""
    facts = json.loads((out / f"facts-{part}.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (out / f"lines-{part}.jsonl").read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    folds, lesion_rows = np.array(facts["folds"]), np.array(facts["lesion_rows"], dtype=np.intp)
    lesion_rows = lesion_rows[folds[lesion_rows] >= 0]
    told: dict[Key, dict[tuple[int, int], dict[str, Any]]] = {}
    for line in lines:
        if "scores" in line:
            told.setdefault((line["judge"], line["finding"], line["k"], line["arm"]), {})[line["seed"], line["fold"]] = line
    scores, marks = {}, {}
    tested = sorted(set(folds[folds >= 0].tolist()))
    whole = max((len({seed for seed, _ in some}) for some in told.values()), default=0)
    for key, some in told.items():
        seeds = sorted({seed for seed, _ in some})
        if len(some) != len(seeds) * len(tested) or (len(seeds) < whole and key[3] != "untrained"):
            continue
        values = np.full((len(folds), len(seeds)), np.nan)
        responses = []
        for column, seed in enumerate(seeds):
            best, false_images, false_scores = np.full(len(lesion_rows), -np.inf), [], []
            for fold in tested:
                line = some[seed, fold]
                rows = np.array(line["rows"])
                values[rows, column] = line["scores"]
                false = np.sort(np.array(line["false_scores"], dtype=np.float64))

                def rate(given: Any, false: Vector = false, num: int = len(rows)) -> Vector:
                    return -(len(false) - np.searchsorted(false, np.asarray(given, dtype=np.float64), side="left")) / num

                if line["lesion_scores"]:
                    found = np.array(line["lesion_scores"])
                    best[np.isin(lesion_rows, rows)] = np.where(found > -1e9, rate(found), -np.inf)
                false_images += rows[np.array(line["false_images"], dtype=int)].tolist()
                false_scores += rate(line["false_scores"]).tolist()
            responses.append(FreeResponse(lesion_image=lesion_rows, lesion_score=best, false_image=np.array(false_images, dtype=np.intp),
                                          false_score=np.array(false_scores), num_images=len(folds), criterion="inside the box"))
        scores[key], marks[key] = values, responses
    return Results(patients=np.array(facts["patients"]), folds=folds, findings=[frozenset(text.split("|")) for text in facts["findings"]],
                   views=np.array(facts["views"]), unseen=np.isin(facts["splits"], UNSEEN), lesion_rows=lesion_rows, scores=scores,
                   marks=marks, digests=frozenset(line["protocol"] for line in lines))


def area(scores: Vector, positive: NDArray[np.bool_], strata: NDArray[Any], counts: Vector) -> Vector:
    """AUROC over pairs within a stratum (a fold and a view), mean over seeds, of each draw [B]; `scores` [N, seeds]."""
    found = []
    for column in scores.T:
        won, pairs = np.zeros(len(counts)), np.zeros(len(counts))
        for stratum in np.unique(strata):
            rows = strata == stratum
            if positive[rows].any() and not positive[rows].all():
                some, all_pairs = counted_pairs(positive[rows], column[rows], counts[:, rows])
                won, pairs = won + some, pairs + all_pairs
        found.append(won / pairs)
    return np.asarray(np.mean(found, axis=0))


def against_best(results: Results, key: Key, others: Sequence[str], *, rows: NDArray[np.bool_], num: int, seed: int = 0,
                 ) -> tuple[Bootstrap, Bootstrap | None]:
    """AUROC of an arm, and what it is above the best of `others`, which is chosen anew in each draw of patients."""
    judge, finding, k, arm = key
    at = np.flatnonzero(rows & ~np.isnan(results.scores[key]).any(axis=1))
    positive, patients = results.shows(finding)[at], results.patients[at]
    strata = np.array([f"{fold}/{view}" for fold, view in zip(results.folds[at], results.views[at], strict=True)])
    rivals = [results.scores[judge, finding, k, other][at] for other in others
              if other != arm and (judge, finding, k, other) in results.scores]

    def own(_: Any, __: Any, counts: Vector) -> Vector:
        return area(results.scores[key][at], positive, strata, counts)

    def above(_: Any, __: Any, counts: Vector) -> Vector:
        return own(None, None, counts) - np.max([area(one, positive, strata, counts) for one in rivals], axis=0)

    nothing = np.zeros(len(at))
    value = counted_bootstrap(positive, nothing, patients, own, num=num, seed=seed)
    return value, counted_bootstrap(positive, nothing, patients, above, num=num, seed=seed) if rivals else None


def macro_difference(results: Results, *, judge: str, k: int, arm: str, findings: Sequence[str], rows: NDArray[np.bool_],
                     num: int) -> Bootstrap | None:
    """Mean over findings of an arm less the best conventional arm, against images without a finding; in the same draws of patients."""
    if not all((judge, finding, k, other) in results.scores for finding in findings for other in (*CONVENTIONAL, arm)):
        return None
    normal = results.shows("No Finding")
    at = np.flatnonzero(rows & (results.folds >= 0) & (normal | np.any([results.shows(name) for name in findings], axis=0)))
    strata = np.array([f"{fold}/{view}" for fold, view in zip(results.folds[at], results.views[at], strict=True)])

    def gain(_: Any, __: Any, counts: Vector) -> Vector:
        gains = []
        for finding in findings:
            shown = results.shows(finding)[at]
            own = shown | normal[at]
            areas = {name: area(results.scores[judge, finding, k, name][at][own], shown[own], strata[own], counts[:, own])
                     for name in (*CONVENTIONAL, arm)}
            gains.append(areas[arm] - np.max([areas[name] for name in CONVENTIONAL], axis=0))
        return np.asarray(np.mean(gains, axis=0))

    return counted_bootstrap(~normal[at], np.zeros(len(at)), results.patients[at], gain, num=num)


def table_rows(results: Results, part: str, protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each judge, finding, k, arm, comparison and endpoint, with Holm's p over all but the primary."""
    num, rows_out = protocol["draws"], []
    primary = protocol[part]["primary_judge"], protocol["primary_k"]
    normal = results.shows("No Finding")
    for judge, finding, k, arm in sorted(results.scores, key=lambda key: (key[0], key[1], key[2], [*ARMS, "untrained"].index(key[3]))):
        shown = results.shows(finding)
        sets = {"no finding": shown | normal}
        if part == "B":
            sets |= {"all else": np.ones(len(shown), np.bool_), "no finding, patients new to the base": (shown | normal) & results.unseen}
        for against, rows in sets.items():
            try:
                value, above = against_best(results, (judge, finding, k, arm), CONVENTIONAL, rows=rows & (results.folds >= 0), num=num)
            except InputError:  # a set without the finding
                continue
            rows_out.append(_row(part, judge, finding, k, arm, "AUROC", against, value, above,
                                 primary=part == "A" and arm == "inserted" and (judge, k) == primary))
        if results.marks[judge, finding, k, arm][0].false_score.size:
            runs = results.marks[judge, finding, k, arm]
            value = sensitivity_interval(_tested(runs, results), _owners(results), num=num)
            rivals = {name: results.marks[judge, finding, k, name] for name in CONVENTIONAL
                      if (judge, finding, k, name) in results.marks and name != arm}
            above = None
            if rivals:
                best = max(rivals, key=lambda name: np.mean([(run.lesion_score > -protocol["rate"]).mean() for run in rivals[name]]))
                above = sensitivity_difference(_tested(rivals[best], results), _tested(runs, results), _owners(results), num=num)
            rows_out.append(_row(part, judge, finding, k, arm, "sensitivity at 0.5", "", value, above, primary=False))
    if part == "B":
        for arm in (name for name in ARMS if name not in CONVENTIONAL):
            found = macro_difference(results, judge=primary[0], k=primary[1], arm=arm, findings=protocol["B"]["findings"],
                                     rows=np.ones(len(normal), np.bool_), num=num)
            if found is not None:
                rows_out.append(_row(part, primary[0], "mean of findings", primary[1], arm, "AUROC", "no finding", None, found,
                                     primary=arm == "inserted"))
    rest = [row for row in rows_out if not row["primary"] and row["above"] is not None]
    for row, p in zip(rest, holm([row["above"]["p"] for row in rest]), strict=True):
        row["holm"] = p
    return rows_out


def _row(part: str, judge: str, finding: str, k: int, arm: str, endpoint: str, against: str, value: Bootstrap | None,
         above: Bootstrap | None, *, primary: bool) -> dict[str, Any]:
    return {"part": part, "judge": judge, "finding": finding, "k": k, "arm": arm, "endpoint": endpoint, "against": against,
            "value": None if value is None else asdict(value), "above": None if above is None else asdict(above), "primary": primary}


def _tested(runs: Sequence[FreeResponse], results: Results) -> list[FreeResponse]:
    """The responses on tested images alone, renumbered."""
    rows = np.flatnonzero(results.folds >= 0)
    number = np.full(len(results.folds), -1)
    number[rows] = np.arange(len(rows))
    return [FreeResponse(lesion_image=number[run.lesion_image], lesion_score=run.lesion_score, false_image=number[run.false_image],
                         false_score=run.false_score, num_images=len(rows), criterion=run.criterion) for run in runs]


def _owners(results: Results) -> NDArray[np.str_]:
    return results.patients[results.folds >= 0]


def tables(out: Path, protocol: Mapping[str, Any], *, digest: str) -> str:
    """table.json and table.md of all parts that have lines; refuses lines of another protocol."""
    rows: list[dict[str, Any]] = []
    for part in ("A", "B"):
        if (out / f"lines-{part}.jsonl").exists():
            results = read_results(out, part)
            if results.digests != {digest}:
                raise SystemExit(f"lines-{part}.jsonl has results of another protocol")
            rows += table_rows(results, part, protocol)
    write_json(out / "table.json", {"protocol": digest, "rows": rows})
    text = ["| part | judge | finding | k | arm | endpoint | against | value | above the best conventional arm | p (Holm) |",
            "|---" * 10 + "|"]
    for row in rows:
        p = "" if row["above"] is None else f"{row['above']['p']:.3g}, primary" if row["primary"] else f"{row['holm']:.3g}"
        text.append("| " + " | ".join([*(str(row[name]) for name in ("part", "judge", "finding", "k", "arm", "endpoint", "against")),
                                       _interval(row["value"]), _interval(row["above"], sign="+"), p]) + " |")
    text.append(f"\nProtocol: SHA-256 `{digest}`.\n")
    write_atomic(out / "table.md", "\n".join(text))
    return "\n".join(text)


def _interval(found: Mapping[str, float] | None, *, sign: str = "") -> str:
    return "" if found is None else f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def detectable(*, auroc: float, positives: Sequence[int], negatives: int, correlation: float = 0.7, draws: int = 400) -> float:
    """Smallest difference of two AUROCs, mean over findings, that a paired test at 5 % finds with 80 % power; by simulation.

    Scores are normal; those of two arms on one image correlate by `correlation`, and those of one image without a finding for two
    findings by half.
    """
    rng = np.random.default_rng(0)
    shift = np.sqrt(2) * norm.ppf(auroc)

    def paired(num: int, mean: float) -> Vector:
        common = rng.normal(size=(draws, num, 1))
        return mean + np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.normal(size=(draws, num, 2))

    shared, gains = paired(negatives, 0), []
    for num in positives:
        having, lacking = paired(num, shift), np.sqrt(0.5) * shared + np.sqrt(0.5) * paired(negatives, 0)
        areas = [[auroc_of(np.repeat([1, 0], [num, negatives]), np.concatenate([having[draw, :, arm], lacking[draw, :, arm]]))
                  for arm in (0, 1)] for draw in range(draws)]
        gains.append(np.diff(areas, axis=1)[:, 0])
    return float((norm.ppf(0.975) + norm.ppf(0.8)) * np.mean(gains, axis=0).std())


def power() -> str:
    """The table of detectable differences, in Markdown."""
    text = ["| endpoint | images with, without | AUROC 0.6 | 0.7 | 0.8 |", "|---|---|---|---|---|"]
    for name, positives, negatives in (("A, nodules on JSRT", (127,), 77), ("B, one finding of 50 patients", (50,), 377),
                                       ("B, one finding of 140 patients", (140,), 377),
                                       ("B, mean of five findings", (142, 49, 92, 77, 93), 377),
                                       ("B, mean of five, patients new to the base", (32, 12, 23, 18, 19), 87)):
        cells = [f"{detectable(auroc=auroc, positives=positives, negatives=negatives):.3f}" for auroc in (0.6, 0.7, 0.8)]
        text.append("| " + " | ".join([name, f"{', '.join(map(str, positives))}; {negatives}", *cells]) + " |")
    return "\n".join(text)


def drain_answer(pools: Pools, features: Mapping[str, NDArray[Any]], space: FeatureSpace, *, drains: Path, nih: Path, strength: float,
                 seed: int) -> dict[str, Any]:
    """Does pneumothorax come with a chest drain more often in made images than in real ones? A linear judge of drains, with its AUROC.

    Trained on the labelled images, cross-fitted by patient. The threshold gives real images with pneumothorax as many drains as they have.
    """
    with drains.open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    with (nih / "metadata.csv").open(encoding="utf-8") as table:
        owner = {row["file_name"]: row["patient_id"] for row in csv.DictReader(table)}
    seen = space(np.stack([np.asarray(Image.open(nih / row["file_name"]).convert("L")) for row in rows])).astype(np.float64)
    patients = np.array([owner[row["file_name"]] for row in rows])
    drain, air = (np.array([float(row[name]) for row in rows]) for name in ("drain", "pneumothorax"))
    fold, scores = patient_folds(patients, folds=5, seed=seed), np.zeros(len(rows))
    for number in range(5):
        judge = fit_probe(seen[fold != number], drain[fold != number], name="drain", strength=strength)
        scores[fold == number] = judge.scores(seen[fold == number])
    found = counted_bootstrap(drain, scores, patients, counted_auroc)
    final = fit_probe(seen, drain, name="drain", strength=strength)
    share = float(drain[air == 1].mean())
    threshold = float(np.quantile(scores[air == 1], 1 - share))
    known = np.unique(patients)
    made = {kind: np.flatnonzero(getattr(pools, kind).having("Pneumothorax") & ~np.isin(getattr(pools, kind).patients, known))
            for kind in ("inserted", "template", "generated")}
    answer: dict[str, Any] = {"images": len(rows), "auroc": asdict(found), "with a drain, of real pneumothorax": share,
                              "threshold": threshold}
    rng = np.random.default_rng(seed)
    people = [np.flatnonzero((patients == person) & (air == 1)) for person in np.unique(patients[air == 1])]
    for kind, at in made.items():
        flagged = final.scores(features[kind][at].astype(np.float64)) > threshold
        drawn = []
        for _ in range(2000):
            real = np.concatenate([people[one] for one in rng.integers(len(people), size=len(people))])
            drawn.append(flagged[rng.integers(len(flagged), size=len(flagged))].mean() - (scores[real] > threshold).mean())
        low, high = np.quantile(drawn, [0.025, 0.975])
        answer[kind] = {"images": len(at), "flagged": float(flagged.mean()),
                        "less real": [float(flagged.mean() - share), float(low), float(high)]}
        sources = getattr(pools, kind).source[at]
        if (sources >= 0).all():
            before = final.scores(features["real"][sources].astype(np.float64)) > threshold
            answer[kind]["the same hosts before"] = float(before.mean())
    return answer
