"""Measure a synthetic set against real films: every dimension that images and tables can answer, the others with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import InputError
from synthorax.evaluation.outlines import Outlining, fit_outliner
from synthorax.evaluation.plots_groups import embedding_map
from synthorax.evaluation.preservation import lesion_preservation, requested_classes
from synthorax.evaluation.reader_study import reader_study
from synthorax.evaluation.readings import Readings
from synthorax.evaluation.realism import ORGANS, fidelity
from synthorax.evaluation.report import BalanceRow, Dimension, Report
from synthorax.evaluation.requests import controllability
from synthorax.evaluation.robustness import robustness
from synthorax.evaluation.sheets import contact_sheet, png_bytes
from synthorax.evaluation.sides import FEWEST_FILMS, RealFilms, Seen, shared_groups
from synthorax.evaluation.statistics import wilson
from synthorax.evaluation.variety import diversity
from synthorax.judges.features import FeatureSpace
from synthorax.privacy.copies import half_calibrated
from synthorax.progress import Report as Progress
from synthorax.progress import quiet
from synthorax.types import Films, Score

SHEET_FILMS = 24
SHEET_FINDINGS = 3
NO_READINGS = "no reader study was given"
LEFT_OUT = "left out of a quick evaluation; run `synthorax evaluate` without --quick for it"


def evaluate_films(real: RealFilms, synthetic: Films, *, features: FeatureSpace | Sequence[FeatureSpace], facts: Mapping[str, Any],
                   seed: int = 0, quick: bool = False, readings: Readings | None = None, report: Progress = quiet) -> Report:
    """Everything that can be said of `synthetic` without training on it; `facts` is the synthetic set's dataset.json.

    Fidelity and diversity compare with held-out films; floors compare held-out with training films. Groups, requests and robustness are
    measured in the first of `features`. `quick` leaves out what trains a judge and what needs features of corrupted films. Raises
    InputError if a judge that chose these films (`facts["judges"]`) has the same weights as one that would grade them now.
    """
    spaces = features if isinstance(features, Sequence) else (features,)
    for space in spaces:
        _refuse_reused_judge(space, facts)
    seen = []
    for number, space in enumerate(spaces):
        seen.append(Seen.through(space, real, synthetic))
        report(0.4 * (number + 1) / len(spaces), "features")
    control, judges = controllability(real, synthetic, seen[0])
    outlining = Outlining(outliner=None, reasons=dict.fromkeys((*ORGANS, *requested_classes(synthetic)), LEFT_OUT))
    if not quick:
        outlining = fit_outliner(real, _classes(real, synthetic), seed=seed)
    report(0.6, "outlines")
    groups = list(shared_groups(real, synthetic))
    dimensions = {
        "fidelity": _or_skipped(lambda: fidelity(real, synthetic, seen, groups, outlining, seed=seed)),
        "diversity": _or_skipped(lambda: diversity(real, synthetic, seen, groups, seed=seed)),
        "lesion_preservation": _or_skipped(lambda: lesion_preservation(real, synthetic, outlining, space=spaces[0], seed=seed)),
        "controllability": control,
        "balance": _balance(real.train, synthetic),
        "robustness": _or_skipped(lambda: robustness(real, synthetic, seen[0], seed=seed, corruptions=not quick)),
        "privacy": _or_skipped(lambda: _privacy(real, synthetic)),
        "clinical_acceptability": (Dimension("skipped", reason=NO_READINGS) if readings is None else
                                   reader_study(readings, real, synthetic, seed=seed)),
    }
    report(0.9, "report")
    made_by = {name: facts[name] for name in ("model", "model_digest") if name in facts}
    named = [{"name": space.name, "digest": space.digest} for space in spaces]
    if outlining.outliner is not None:
        named.append({"name": outlining.outliner.judge.name, "digest": outlining.outliner.judge.digest})
    sides = {"real": _describe(real.train, real.held_out), "synthetic": _describe(synthetic) | made_by}
    study = {} if readings is None else {"readings": {"digest": readings.digest}}
    return Report(inputs=sides | study,
                  judges=(*named, *judges, *facts.get("judges", ())),
                  dimensions=dimensions, balance=balance_rows(real.train, synthetic),
                  figures={**sheets(real.train, synthetic), **maps(seen)}, notes=_notes(real.train, facts))


def maps(seen: Sequence[Seen], *, most: int = 400) -> dict[str, str]:
    """For each feature space, where real and synthetic films lie on the two directions in which real films differ most."""
    drawn = {}
    for space in seen:
        enough = len(space.held_out) >= FEWEST_FILMS and len(space.synthetic) >= 2
        if enough and np.isfinite(space.held_out).all() and np.isfinite(space.synthetic).all():
            name = f"Map of real and synthetic films, {space.space.name}"
            drawn[name] = embedding_map(space.held_out[:most], space.synthetic[:most], space=space.space.name)
    return drawn


def _classes(real: RealFilms, synthetic: Films) -> list[str]:
    """Mask classes that a judge is wanted for: organs, and whatever was requested."""
    known = () if real.train.masks is None else real.train.masks.names
    organs = [name for name in ORGANS if name in known or name == "lung"]
    return [*organs, *(name for name in requested_classes(synthetic) if name not in organs)]


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
        if len(shown) and len(asked) >= FEWEST_FILMS:
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
    detector, alarms = half_calibrated(real.train.images, real.held_out.images, real.held_out.patients())
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
