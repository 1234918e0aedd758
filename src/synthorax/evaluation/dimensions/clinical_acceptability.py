"""The clinical-acceptability dimension: can readers tell synthetic images from real ones, do they accept them, do the images help them?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest, fisher_exact

from synthorax.data.vocabulary import NO_FINDING
from synthorax.errors import InputError
from synthorax.evaluation.dimensions.readings import Diagnosis, Impression, Readings
from synthorax.evaluation.metrics.feature_sets import RealImages
from synthorax.evaluation.report.record import Dimension
from synthorax.evaluation.statistics.agreement import (
    Interval,
    balanced_share,
    fleiss_kappa,
    krippendorff_alpha,
    mcnemar,
    mean_change,
    share_over_readers_and_images,
)
from synthorax.evaluation.statistics.roc import delong_interval, holm, wilson
from synthorax.types import ImageSet, Score

FEWEST_READERS = 3
"""readers from which on a verdict is given, and a majority of those who read an image is one"""
MIN_IMAGES_READ = 5
"""synthetic images of a finding from which on it is scored by itself"""
ACCEPTABLE = 4
"""rating from which on an image is acceptable: 4 probably, 5 definitely"""
WANTED = 0.8
"""part of the synthetic images that readers must accept"""
MIX = (0.4, 0.6)
"""parts of synthetic images between which 50 % right is what chance gives, near enough"""
Labels = Mapping[str, Mapping[str, float]]
"""image -> finding -> 1, 0, or NaN where not stated"""
Said = Callable[[Impression], bool | None]


def reader_study(readings: Readings, real: RealImages, synthetic: ImageSet, *, seed: int = 0) -> Dimension:
    """What the readers said, held against what the images are.

    Accuracy has intervals over readers and images, acceptability over images, for this panel of readers. An image is acceptable if more
    than half of at least three readers rate it 4 or 5. With fewer readers the numbers are given, but the dimension is skipped.
    """
    shown = readings.impressions
    labels = {study.file_name: dict(zip(images.findings, row, strict=True))
              for images in (real.train, real.held_out, synthetic) for study, row in zip(images.studies, images.labels, strict=True)}
    missing: dict[str, str] = {}
    scores = [*_told_apart(shown), *_accepted(shown, labels, missing), *_seen(shown, labels, missing),
              *_agreement(shown, missing, seed=seed), *_assistance(readings.diagnoses, missing)]
    readers = sorted({reading.reader for reading in shown})
    extra: dict[str, Any] = {"readers": len(readers), "readings": len(shown)}
    if shown:
        part = float(np.mean([reading.synthetic for reading in shown]))
        if not MIX[0] <= part <= MIX[1]:
            extra["mix"] = (f"{100 * part:.0f} % of the readings are of synthetic images: read the balanced accuracy, for chance alone "
                            f"need "
                            "not give 50 % of the other")
    if readings.unused:
        extra["columns_not_used"] = list(readings.unused)
    reason = "" if shown else "no reading says whether an image is real"
    if shown and len(readers) < FEWEST_READERS:
        reason = f"{len(readers)} reader{'s' * (len(readers) > 1)}; a verdict takes at least {FEWEST_READERS} who read independently"
    if reason:
        return Dimension("skipped", reason=reason, scores=tuple(scores), extra=extra | {"verdict": f"skipped: {reason}"} | _listed(missing))
    return Dimension("measured", scores=tuple(scores), extra=extra | {"verdict": _verdict(scores, shown)} | _listed(missing))


def _told_apart(shown: Sequence[Impression]) -> list[Score]:
    """All readers over readers and images, then each of them against chance."""
    if not shown:
        return []
    names, images = [reading.reader for reading in shown], [reading.image for reading in shown]
    kind, said = (np.array([getattr(reading, name) for reading in shown]) for name in ("synthetic", "said_synthetic"))
    pooled = share_over_readers_and_images(kind == said, names, images)
    balanced = balanced_share(kind == said, kind, names, images)
    over = "interval over readers and images"
    scores = [_score("Turing accuracy", shown, pooled, better="lower", floor=0.5, note=over)]
    scores.append(_score("balanced Turing accuracy", shown, balanced, better="lower", floor=0.5,
                         note=f"mean of both kinds of images; 50 % by chance whatever their mix; {over}"))
    called_real = [reading for reading in shown if not reading.synthetic]
    false_alarms = float(np.mean([reading.said_synthetic for reading in called_real]))
    made = [reading for reading in shown if reading.synthetic]
    called = _over_both(made, lambda reading: reading.said_synthetic)
    scores.append(_score("synthetic images called synthetic", shown, called, better="lower",
                         floor=false_alarms, note=f"sensitivity; floor: real images called synthetic; {over}"))
    for reader in dict.fromkeys(reading.reader for reading in shown):
        own = [reading for reading in shown if reading.reader == reader]
        right = sum(reading.synthetic == reading.said_synthetic for reading in own)
        chance = binomtest(right, len(own))
        exact = chance.proportion_ci(method="exact")
        scores.append(_score("Turing accuracy", own, Interval(value=right / len(own), low=exact.low, high=exact.high), better="lower",
                             group=f"reader {reader}", floor=0.5, note=f"{_p(chance.pvalue)} against 50 % (exact binomial)"))
        sure = [reading for reading in own if reading.confidence is not None]
        truth = [reading.synthetic for reading in sure]
        if min(sum(truth), len(truth) - sum(truth)) >= 2:
            sign = [(reading.confidence or 0) * (1 if reading.said_synthetic else -1) for reading in sure]
            area = delong_interval(truth, sign)
            scores.append(_score("Turing auroc", sure, Interval(value=area.auc, low=area.low, high=area.high), better="lower",
                                 group=f"reader {reader}", floor=0.5, note="from how sure the reader was"))
    return scores


def _accepted(shown: Sequence[Impression], labels: Labels, missing: dict[str, str]) -> list[Score]:
    """Synthetic images that most readers accept, all of them and by the finding that was asked for; floor: real images."""
    rated = [reading for reading in shown if reading.acceptable is not None]
    scores = []
    made = [reading for reading in rated if reading.synthetic]
    if made:
        def accepts(reading: Impression) -> bool:
            return (reading.acceptable or 0) >= ACCEPTABLE
        others = [accepts(reading) for reading in rated if not reading.synthetic]
        scores.append(_score("acceptable readings", rated, _over_both(made, accepts), better="higher",
                             floor=float(np.mean(others)) if others else None, note="interval over readers and images"))
    votes = _majorities(rated, lambda reading: None if reading.acceptable is None else reading.acceptable >= ACCEPTABLE)
    findings = sorted({name for image, (synthetic, _) in votes.items() if synthetic for name, value in labels[image].items()
                       if value == 1 and name != NO_FINDING})
    for group in ("all", *findings):
        chosen = {image: vote for image, vote in votes.items() if group == "all" or labels[image].get(group) == 1}
        scores += _majority_score("acceptable images", chosen, group, missing, better="higher", what="rated")
    return scores


def _seen(shown: Sequence[Impression], labels: Labels, missing: dict[str, str]) -> list[Score]:
    """Whether most readers see the finding that they were asked about, where the image was to show it and where it was not."""
    asked = [reading for reading in shown if reading.finding_seen is not None]
    scores = []
    for finding in sorted({reading.finding for reading in asked}):
        votes = _majorities([reading for reading in asked if reading.finding == finding], lambda reading: reading.finding_seen)
        ways: tuple[tuple[int, str, Literal["higher", "lower"]], ...] = ((1, "requested finding seen", "higher"),
                                                                          (0, "absent finding seen", "lower"))
        for there, metric, better in ways:
            chosen = {image: vote for image, vote in votes.items() if labels[image].get(finding) == there}
            if any(synthetic for synthetic, _ in chosen.values()):
                scores += _majority_score(metric, chosen, finding, missing, better=better, what="asked about it")
    return scores


def _agreement(shown: Sequence[Impression], missing: dict[str, str], *, seed: int) -> list[Score]:
    """How far the readers say the same of the same image."""
    if not shown:
        return []
    readers, images = (list(dict.fromkeys(getattr(reading, name) for reading in shown)) for name in ("reader", "image"))
    said = np.zeros((len(images), 2))
    ratings = np.full((len(images), len(readers)), np.nan)
    for reading in shown:
        row = images.index(reading.image)
        said[row, int(reading.said_synthetic)] += 1
        if reading.acceptable is not None:
            ratings[row, readers.index(reading.reader)] = reading.acceptable
    scores = []
    if not np.isnan(ratings).all():
        try:
            scores.append(_score("agreement on acceptability", [reading for reading in shown if reading.acceptable is not None],
                                 krippendorff_alpha(ratings, seed=seed), better="higher",
                                 note="Krippendorff's alpha, squared differences of ratings; interval over images"))
        except InputError as error:
            missing["agreement on acceptability"] = str(error)
    else:
        missing["acceptability"] = "no image was rated under 'acceptable'"
    try:
        scores.insert(0, _score("agreement on real or synthetic", shown, fleiss_kappa(said, seed=seed), better="higher",
                                note="Fleiss' kappa; interval over images"))
    except InputError as error:
        missing["agreement on real or synthetic"] = str(error)
    return scores


def _assistance(diagnoses: Sequence[Diagnosis], missing: dict[str, str]) -> list[Score]:
    """Sensitivity and specificity without and with assistance, over readings that were made both ways by the same reader."""
    both: dict[tuple[str, str, str], dict[bool, Diagnosis]] = {}
    for reading in diagnoses:
        both.setdefault((reading.reader, reading.image, reading.finding), {})[reading.assisted] = reading
    pairs = [pair for pair in both.values() if len(pair) == 2]
    if len(pairs) < len(both):
        missing["assisted reading"] = f"{len(both) - len(pairs)} readings were made in one way only and are left out"
    scores = []
    for finding in sorted({pair[True].finding for pair in pairs}):
        for there, name in ((True, "sensitivity"), (False, "specificity")):
            chosen = [pair for pair in pairs if pair[True].finding == finding and pair[True].truth == there]
            if len(chosen) < 2:
                missing[f"{name} {finding}".strip()] = "fewer than two pairs of readings"
                continue
            readers, images = [pair[True].reader for pair in chosen], [pair[True].image for pair in chosen]
            alone, helped = (np.array([pair[way].answer == there for pair in chosen], dtype=np.float64) for way in (False, True))
            lost, won, p = mcnemar(alone, helped)
            size: dict[str, Any] = {"n_real": len(set(images)), "n_synthetic": 0, "group": finding or "all", "better": "higher"}
            for metric, value in ((f"{name} unassisted", share_over_readers_and_images(alone, readers, images)),
                                  (f"{name} assisted", share_over_readers_and_images(helped, readers, images))):
                scores.append(Score(metric=metric, value=value.value, low=value.low, high=value.high, **size))
            gain = mean_change(helped - alone, readers, images)
            scores.append(Score(metric=f"{name} gain", value=gain.value, low=gain.low, high=gain.high, **size,
                                note=f"{won} of {len(chosen)} pairs became right, {lost} wrong; {_p(p)} (McNemar, exact, as if pairs were "
                                     "independent); interval over readers and images"))
    return scores


def _majorities(readings: Iterable[Impression], vote: Said) -> dict[str, tuple[bool, bool]]:
    """Image -> whether it is synthetic, and whether more than half of its readers say yes; of at least three readers."""
    votes: dict[str, list[bool]] = {}
    kind: dict[str, bool] = {}
    for reading in readings:
        votes.setdefault(reading.image, []).append(bool(vote(reading)))
        kind[reading.image] = reading.synthetic
    return {image: (kind[image], 2 * sum(given) > len(given)) for image, given in votes.items() if len(given) >= FEWEST_READERS}


def _majority_score(metric: str, votes: Mapping[str, tuple[bool, bool]], group: str, missing: dict[str, str], *,
                    better: Literal["higher", "lower"], what: str) -> list[Score]:
    """Share of synthetic images with a majority; floor: the same of real ones."""
    made = [yes for synthetic, yes in votes.values() if synthetic]
    real = [yes for synthetic, yes in votes.values() if not synthetic]
    if not made or (group != "all" and len(made) < MIN_IMAGES_READ):
        fewest = MIN_IMAGES_READ if group != "all" else 1
        missing[f"{metric}, {group}"] = (f"{len(made)} synthetic images were {what} by {FEWEST_READERS} or more readers; "
                                         f"it takes {fewest}")
        return []
    low, high = wilson(sum(made), len(made))
    return [Score(metric=metric, value=sum(made) / len(made), low=low, high=high, better=better, n_real=len(real), n_synthetic=len(made),
                  group=group, floor=sum(real) / len(real) if real else None,
                  note=f"by majority of {FEWEST_READERS} or more readers; interval over images, for this panel")]


def _verdict(scores: Sequence[Score], shown: Sequence[Impression]) -> dict[str, str]:
    """In words: told apart or not, by whom, and for all images and each finding whether the wanted part of the images is accepted."""
    told: dict[str, str] = {}
    able = _able(shown)
    for score in scores:
        if score.metric == "balanced Turing accuracy":
            told["real or synthetic"] = ("told apart better than by chance" if score.low > 0.5 else
                                         "taken for one another: real images look more synthetic" if score.high < 0.5 else
                                         f"some readers tell them apart: {', '.join(able)}" if able else
                                         "no evidence that readers tell them apart; see the interval")
        elif score.metric == "acceptable images":
            word = "acceptable" if score.low >= WANTED else "not acceptable" if score.high < WANTED else "undecided"
            told[f"acceptable, {score.group}"] = f"{word}: at least {WANTED:.0%} of the images are wanted"
    return told


def _able(shown: Sequence[Impression]) -> list[str]:
    """Readers whose answers go with the truth, by Fisher's exact test, which holds in any mix of images, at 5 % after Holm's correction."""
    readers = list(dict.fromkeys(reading.reader for reading in shown))
    tables = np.zeros((len(readers), 2, 2), dtype=np.intp)  # what the image is, what the reader said
    for reading in shown:
        tables[readers.index(reading.reader), int(reading.synthetic), int(reading.said_synthetic)] += 1
    corrected = holm([float(fisher_exact(table, alternative="greater").pvalue) for table in tables])
    return [reader for reader, p in zip(readers, corrected, strict=True) if p < 0.05]


def _over_both(readings: Sequence[Impression], yes: Callable[[Impression], bool]) -> Interval:
    return share_over_readers_and_images([yes(reading) for reading in readings], [reading.reader for reading in readings],
                                        [reading.image for reading in readings])


def _score(metric: str, readings: Sequence[Impression], value: Interval, *, better: Literal["higher", "lower"], group: str = "all",
           floor: float | None = None, note: str = "") -> Score:
    images: dict[bool, set[str]] = {True: set(), False: set()}
    for reading in readings:
        images[reading.synthetic].add(reading.image)
    return Score(metric=metric, value=value.value, low=min(float(value.low), value.value), high=max(float(value.high), value.value),
                 better=better, n_real=len(images[False]), n_synthetic=len(images[True]), group=group, floor=floor, note=note)


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _listed(missing: Mapping[str, str]) -> dict[str, Any]:
    return {"not_measured": dict(missing)} if missing else {}
