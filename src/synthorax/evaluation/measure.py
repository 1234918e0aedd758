"""Measure a synthetic set against real films: every dimension that images and tables can answer, the others with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import InputError
from synthorax.evaluation.diversity import ms_ssim_scores, neighbour_scores
from synthorax.evaluation.fidelity import fid_score, kid_score
from synthorax.evaluation.report import BalanceRow, Dimension, Report
from synthorax.evaluation.sheets import contact_sheet, png_bytes
from synthorax.evaluation.statistics import delong_interval, wilson
from synthorax.judges.cross_fit import patient_folds
from synthorax.judges.features import FeatureSpace
from synthorax.judges.probe import fit_probe
from synthorax.privacy.copies import CopyDetector
from synthorax.progress import Report as Progress
from synthorax.progress import quiet
from synthorax.types import Films, Score

FEWEST_IN_GROUP = 20
SHEET_FILMS = 24
SHEET_FINDINGS = 3
NOT_MEASURED = {
    "lesion_preservation": "no lesion masks were requested of these films, so there is no region to compare",
    "clinical_acceptability": "no reader study was given",
    "robustness": "needs real films of another site, which were not given",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RealFilms:
    """The real side: films that the generator may have learned from, and films of patients whom it never saw."""

    train: Films
    held_out: Films


def evaluate_films(real: RealFilms, synthetic: Films, *, features: FeatureSpace, facts: Mapping[str, Any],
                   seed: int = 0, report: Progress = quiet) -> Report:
    """Everything that can be said of `synthetic` without training on it; `facts` is the synthetic set's dataset.json.

    Fidelity and diversity compare with held-out films; floors compare held-out with training films. Raises InputError if a judge
    that chose these films (`facts["judges"]`) has the same weights as the one that would grade them now.
    """
    _refuse_reused_judge(features, facts)
    vectors = {name: features(films.images) for name, films in
               (("train", real.train), ("held_out", real.held_out), ("synthetic", synthetic))}
    report(0.4, "features")
    controllability, judges = _controllability(real, synthetic, vectors, features)
    report(0.5, "controllability")
    dimensions = {
        "fidelity": _or_skipped(lambda: Dimension("measured", scores=_fidelity(real, synthetic, vectors, features, seed=seed))),
        "diversity": _or_skipped(lambda: Dimension("measured", scores=_diversity(real, synthetic, vectors, features, seed=seed))),
        "controllability": controllability,
        "balance": _balance(real.train, synthetic),
        "privacy": _or_skipped(lambda: _privacy(real, synthetic)),
        **{name: Dimension("skipped", reason=reason) for name, reason in NOT_MEASURED.items()},
    }
    report(0.9, "report")
    made_by = {name: facts[name] for name in ("model", "model_digest") if name in facts}
    return Report(inputs={"real": _describe(real.train, real.held_out), "synthetic": _describe(synthetic) | made_by},
                  judges=({"name": features.name, "digest": features.digest}, *judges, *facts.get("judges", ())),
                  dimensions=dimensions, balance=balance_rows(real.train, synthetic),
                  figures=sheets(real.train, synthetic), notes=_notes(real.train, facts))


def balance_rows(before: Films, added: Films) -> tuple[BalanceRow, ...]:
    """How many training films show each finding, before and after the synthetic ones are added."""
    rows = []
    for finding in before.findings:
        old, new = before.column(finding), added.column(finding)
        stated_old, stated_new = int((~np.isnan(old)).sum()), int((~np.isnan(new)).sum())
        present_old, present_new = int((old == 1).sum()), int((new == 1).sum())
        rows.append(BalanceRow(finding=finding, before=present_old, after=present_old + present_new,
                               total_before=stated_old, total_after=stated_old + stated_new))
    return tuple(rows)


def sheets(real: Films, synthetic: Films) -> dict[str, bytes]:
    """Real and synthetic sheets, of all films and of the findings asked for most, under the names that the page pairs up."""
    figures = {"real: all": _sheet(real, np.arange(len(real))), "synthetic: all": _sheet(synthetic, np.arange(len(synthetic)))}
    counts = {name: int((synthetic.column(name) == 1).sum()) for name in synthetic.findings if name != NO_FINDING}
    for finding in sorted(counts, key=lambda name: -counts[name])[:SHEET_FINDINGS]:
        shown, asked = np.flatnonzero(real.column(finding) == 1), np.flatnonzero(synthetic.column(finding) == 1)
        if len(shown) and len(asked) >= FEWEST_IN_GROUP:
            figures |= {f"real: {finding}": _sheet(real, shown), f"synthetic: {finding}": _sheet(synthetic, asked)}
    return figures


def _sheet(films: Films, rows: NDArray[np.intp]) -> bytes:
    """The first films after a fixed shuffle: uncurated."""
    chosen = np.random.default_rng(0).permutation(rows)[:SHEET_FILMS]
    return png_bytes(contact_sheet(films.images[chosen], columns=6, tile_px=max(96, films.images.shape[1])))


def _refuse_reused_judge(features: FeatureSpace, facts: Mapping[str, Any]) -> None:
    for judge in facts.get("judges", ()):
        if judge["digest"] == features.digest:
            raise InputError(f"the judge '{judge['name']}' chose these films and must not grade them",
                             remedy="evaluate with another feature space")


def _or_skipped(measure: Callable[[], Dimension]) -> Dimension:
    """The dimension, or why these films do not allow it, for instance because they are too few."""
    try:
        return measure()
    except InputError as error:
        return Dimension("skipped", reason=str(error))


def _fidelity(real: RealFilms, synthetic: Films, vectors: Mapping[str, NDArray[np.float32]], features: FeatureSpace, *,
              seed: int) -> tuple[Score, ...]:
    scores: list[Score] = []
    for group, kept_real, kept_synthetic in _groups(real.held_out, synthetic):
        train = np.arange(len(real.train)) if group == "all" else np.flatnonzero(real.train.column(group) == 1)
        floor = (vectors["held_out"][kept_real], vectors["train"][train]) if len(train) >= FEWEST_IN_GROUP else None
        for measure in (fid_score, kid_score):
            scores.append(measure(vectors["held_out"][kept_real], vectors["synthetic"][kept_synthetic], floor_sets=floor,
                                  features_name=features.name, seed=seed, group=group,
                                  real_patients=real.held_out.patients()[kept_real]))
    return tuple(scores)


def _diversity(real: RealFilms, synthetic: Films, vectors: Mapping[str, NDArray[np.float32]], features: FeatureSpace, *,
               seed: int) -> tuple[Score, ...]:
    neighbours = neighbour_scores(vectors["held_out"], vectors["synthetic"], floor_sets=(vectors["held_out"], vectors["train"]),
                                  features_name=features.name, seed=seed, real_patients=real.held_out.patients())
    similarity = ms_ssim_scores(real.held_out.images, synthetic.images, seed=seed,
                                floor_sets=(real.held_out.images, real.train.images))
    return (*neighbours, *similarity)


def _groups(real: Films, synthetic: Films) -> list[tuple[str, NDArray[np.intp], NDArray[np.intp]]]:
    """All films, then each finding that enough films on both sides show."""
    groups = [("all", np.arange(len(real)), np.arange(len(synthetic)))]
    for finding in real.findings:
        shown, asked = np.flatnonzero(real.column(finding) == 1), np.flatnonzero(synthetic.column(finding) == 1)
        patients = len(set(real.patients()[shown]))
        if finding != NO_FINDING and min(patients, len(asked)) >= FEWEST_IN_GROUP // 2 and len(shown) >= FEWEST_IN_GROUP:
            groups.append((finding, shown, asked))
    return groups


def _controllability(real: RealFilms, synthetic: Films, vectors: Mapping[str, NDArray[np.float32]],
                     features: FeatureSpace) -> tuple[Dimension, list[dict[str, str]]]:
    """AUROC of what was asked for, by linear probes that learned from real training films; floor: the same on real held-out films."""
    scores, judges = [], []
    for finding in synthetic.findings:
        asked, shown = synthetic.column(finding), real.held_out.column(finding)
        if finding == NO_FINDING or not (_both_classes(asked) and _both_classes(shown) and _both_classes(real.train.column(finding))):
            continue
        probe = fit_probe(vectors["train"], real.train.column(finding), name=f"{features.name} probe for {finding}")
        judges.append({"name": probe.name, "digest": probe.digest})
        value = _auroc(asked, probe.scores(vectors["synthetic"]))
        ceiling = _auroc(shown, probe.scores(vectors["held_out"]))
        scores.append(Score(metric="requested finding auroc", value=value.auc, low=value.low, high=value.high, better="higher",
                            n_real=len(real.held_out), n_synthetic=len(synthetic), group=finding, features=probe.name,
                            floor=ceiling.auc, note=f"on real held-out films {ceiling.auc:.2f} [{ceiling.low:.2f}, {ceiling.high:.2f}]"))
    views = _views(real, synthetic, vectors, features)
    if views is not None:
        scores.append(views)
    if not scores:
        return Dimension("skipped", reason=f"no finding is both asked for and not asked for in at least {FEWEST_IN_GROUP} films"), []
    return Dimension("measured", scores=tuple(scores)), judges


def _views(real: RealFilms, synthetic: Films, vectors: Mapping[str, NDArray[np.float32]], features: FeatureSpace) -> Score | None:
    """How often a probe for the view agrees with the view that was asked for (PA against AP)."""
    train, held_out, made = (_view_labels(films) for films in (real.train, real.held_out, synthetic))
    if not (_both_classes(train) and _both_classes(held_out) and _both_classes(made)):
        return None
    probe = fit_probe(vectors["train"], train, name=f"{features.name} probe for view")

    def agreement(labels: NDArray[np.float32], which: str) -> tuple[int, int]:
        stated = ~np.isnan(labels)
        return int(((probe.scores(vectors[which]) > 0) == (labels == 1))[stated].sum()), int(stated.sum())

    agreed, total = agreement(made, "synthetic")
    low, high = wilson(agreed, total)
    real_agreed, real_total = agreement(held_out, "held_out")
    return Score(metric="view agreement", value=agreed / total, low=low, high=high, better="higher", n_real=real_total,
                 n_synthetic=total, features=probe.name, floor=real_agreed / real_total)


def _view_labels(films: Films) -> NDArray[np.float32]:
    return np.array([{"PA": 1.0, "AP": 0.0}.get(study.view, np.nan) for study in films.studies], dtype=np.float32)


def _both_classes(labels: NDArray[np.float32]) -> bool:
    return min(int((labels == 1).sum()), int((labels == 0).sum())) >= FEWEST_IN_GROUP // 2


def _auroc(labels: NDArray[np.float32], scores: NDArray[np.float64]) -> Any:
    stated = ~np.isnan(labels)
    return delong_interval(labels[stated].astype(int), scores[stated])


def _balance(before: Films, added: Films) -> Dimension:
    """Share of training films that show each finding which was asked for, after and (as floor) before."""
    scores = []
    for row in balance_rows(before, added):
        if row.after > row.before and row.finding != NO_FINDING and row.total_before:
            low, high = wilson(row.after, row.total_after)
            scores.append(Score(metric="prevalence after", value=row.after / row.total_after, low=low, high=high, better="higher",
                                n_real=row.total_before, n_synthetic=row.total_after - row.total_before, group=row.finding,
                                floor=row.before / row.total_before, note=f"{row.before} films before, {row.after} after"))
    if not scores:
        return Dimension("not_applicable", reason="the synthetic films state no finding")
    return Dimension("measured", scores=tuple(scores))


def _privacy(real: RealFilms, synthetic: Films) -> Dimension:
    """Rate of near copies of training films, beside the rate of false alarms on real films of other patients."""
    half = patient_folds(real.held_out.patients(), folds=2, seed=0)  # one half sets the threshold, the other one tests it
    detector = CopyDetector.fit(real.train.images, real.held_out.images[half == 0])
    alarms = detector.false_alarms(real.held_out.images[half == 1])
    copies = int(detector.check(synthetic.images).is_copy.sum())
    low, high = wilson(copies, len(synthetic))
    score = Score(metric="near-copy rate", value=copies / len(synthetic), low=low, high=high, better="lower",
                  n_real=len(real.train), n_synthetic=len(synthetic), floor=alarms.rate,
                  note=f"floor: {alarms.num_films} real films of other patients by the same threshold "
                       f"[{alarms.low:.3f}, {alarms.high:.3f}]")
    extra = {"copy_threshold": detector.threshold, "not_measured": "membership, re-identification; see `synthorax audit`"}
    return Dimension("measured", scores=(score,), extra=extra)


def _describe(films: Films, *more: Films) -> dict[str, Any]:
    """Digest and counts of one side; the real side also says how its films are divided."""
    sets = (films, *more)
    facts: dict[str, Any] = {"digest": films.digest, "films": sum(len(part) for part in sets)}
    if films.studies[0].origin == "real":
        facts["patients"] = len({patient for part in sets for patient in part.patients()})
        facts["train"], facts["held_out"] = len(films), sum(len(part) for part in more)
    facts["image_size"] = int(films.images.shape[1])
    return facts


def _notes(real: Films, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader must know before the numbers."""
    drawn = any(study.site == "phantom" for study in real.studies)
    notes = ["These films are drawings of a phantom thorax, not radiographs of people."] if drawn else []
    unchecked = facts.get("screening", {}).get("not_checked", {})
    notes += [f"Screening did not check whether {finding} is visible: {reason}." for finding, reason in unchecked.items()]
    return tuple(notes)
