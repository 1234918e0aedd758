"""The clinical-acceptability dimension: can readers tell synthetic images from real ones, do they accept them, do the images help them?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

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
from synthorax.evaluation.statistics.roc import delong_interval, wilson
from synthorax.multiple_testing import holm
from synthorax.types import ImageSet, Score

MIN_READERS = 3
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
    scores = [*_turing_scores(shown), *_acceptability_scores(shown, labels, missing), *_finding_scores(shown, labels, missing),
              *_agreement_scores(shown, missing, seed=seed), *_assistance_scores(readings.diagnoses, missing)]
    readers = sorted({reading.reader for reading in shown})
    extra: dict[str, Any] = {"readers": len(readers), "readings": len(shown)}
    if shown:
        part = float(np.mean([reading.synthetic for reading in shown]))
        if not MIX[0] <= part <= MIX[1]:
            extra["mix"] = (f"{100 * part:.0f} % of the readings are of synthetic images: use the balanced accuracy, because chance alone "
                            "need not give 50 % of the other")
    if readings.unused:
        extra["columns_not_used"] = list(readings.unused)
    reason = "" if shown else "no reading says whether an image is real"
    if shown and len(readers) < MIN_READERS:
        reason = f"{len(readers)} reader{'s' * (len(readers) > 1)}; a verdict takes at least {MIN_READERS} who read independently"
    if reason:
        return Dimension("skipped", reason=reason, scores=tuple(scores),
                         extra=extra | {"verdict": f"skipped: {reason}"} | _not_measured(missing))
    return Dimension("measured", scores=tuple(scores), extra=extra | {"verdict": _verdict(scores, shown)} | _not_measured(missing))


def _turing_scores(shown: Sequence[Impression]) -> list[Score]:
    """All readers over readers and images, then each of them against chance."""
    if not shown:
        return []
    names, images = [reading.reader for reading in shown], [reading.image for reading in shown]
    kind, answers = (np.array([getattr(reading, name) for reading in shown]) for name in ("synthetic", "said_synthetic"))
    pooled = share_over_readers_and_images(kind == answers, names, images)
    balanced = balanced_share(kind == answers, kind, names, images)
    over = "interval over readers and images"
    scores = [_score("turing_accuracy", shown, pooled, floor=0.5, note=over)]
    scores.append(_score("balanced_turing_accuracy", shown, balanced, floor=0.5,
                         note=f"mean of both kinds of images; 50 % by chance whatever their mix; {over}"))
    called_real = [reading for reading in shown if not reading.synthetic]
    false_alarms = float(np.mean([reading.said_synthetic for reading in called_real]))
    made = [reading for reading in shown if reading.synthetic]
    called = _over_both(made, lambda reading: reading.said_synthetic)
    scores.append(_score("turing_sensitivity", shown, called, floor=false_alarms, note=f"sensitivity; floor: real images called synthetic; "
                                                                                       f"{over}"))
    for reader in dict.fromkeys(reading.reader for reading in shown):
        own = [reading for reading in shown if reading.reader == reader]
        right = sum(reading.synthetic == reading.said_synthetic for reading in own)
        chance = binomtest(right, len(own))
        exact = chance.proportion_ci(method="exact")
        scores.append(_score("turing_accuracy", own, Interval(value=right / len(own), low=exact.low, high=exact.high),
                             group=f"reader {reader}", floor=0.5, note=f"{_p(chance.pvalue)} against 50 % (exact binomial)"))
        sure = [reading for reading in own if reading.confidence is not None]
        truth = [reading.synthetic for reading in sure]
        if min(sum(truth), len(truth) - sum(truth)) >= 2:
            sign = [(reading.confidence or 0) * (1 if reading.said_synthetic else -1) for reading in sure]
            area = delong_interval(truth, sign)
            scores.append(_score("turing_auroc", sure, Interval(value=area.auc, low=area.low, high=area.high), group=f"reader {reader}",
                                 floor=0.5, note="from how sure the reader was"))
    return scores


def _acceptability_scores(shown: Sequence[Impression], labels: Labels, missing: dict[str, str]) -> list[Score]:
    """Synthetic images that most readers accept, all of them and by the finding that was asked for; floor: real images."""
    rated = [reading for reading in shown if reading.acceptable is not None]
    scores = []
    made = [reading for reading in rated if reading.synthetic]
    if made:
        def accepts(reading: Impression) -> bool:
            return (reading.acceptable or 0) >= ACCEPTABLE
        others = [accepts(reading) for reading in rated if not reading.synthetic]
        scores.append(_score("acceptable_readings", rated, _over_both(made, accepts), floor=float(np.mean(others)) if others else None,
                             note="interval over readers and images"))
    votes = _majorities(rated, lambda reading: None if reading.acceptable is None else reading.acceptable >= ACCEPTABLE)
    findings = sorted({name for image, (synthetic, _) in votes.items() if synthetic for name, value in labels[image].items()
                       if value == 1 and name != NO_FINDING})
    for group in ("all", *findings):
        chosen = {image: vote for image, vote in votes.items() if group == "all" or labels[image].get(group) == 1}
        scores += _majority_score("acceptable_images", chosen, group, missing, what="rated")
    return scores


def _finding_scores(shown: Sequence[Impression], labels: Labels, missing: dict[str, str]) -> list[Score]:
    """Whether most readers see the finding that they were asked about, where the image was to show it and where it was not."""
    asked = [reading for reading in shown if reading.finding_seen is not None]
    scores = []
    for finding in sorted({reading.finding for reading in asked}):
        votes = _majorities([reading for reading in asked if reading.finding == finding], lambda reading: reading.finding_seen)
        for there, metric in ((1, "requested_finding_seen"), (0, "absent_finding_seen")):
            chosen = {image: vote for image, vote in votes.items() if labels[image].get(finding) == there}
            if any(synthetic for synthetic, _ in chosen.values()):
                scores += _majority_score(metric, chosen, finding, missing, what="asked about it")
    return scores


def _agreement_scores(shown: Sequence[Impression], missing: dict[str, str], *, seed: int) -> list[Score]:
    """How far the readers say the same of the same image."""
    if not shown:
        return []
    readers, images = (list(dict.fromkeys(getattr(reading, name) for reading in shown)) for name in ("reader", "image"))
    answers = np.zeros((len(images), 2))
    ratings = np.full((len(images), len(readers)), np.nan)
    for reading in shown:
        row = images.index(reading.image)
        answers[row, int(reading.said_synthetic)] += 1
        if reading.acceptable is not None:
            ratings[row, readers.index(reading.reader)] = reading.acceptable
    scores = []
    if not np.isnan(ratings).all():
        try:
            scores.append(_score("agreement_on_acceptability", [reading for reading in shown if reading.acceptable is not None],
                                 krippendorff_alpha(ratings, seed=seed), note="Krippendorff's alpha, squared differences of ratings; "
                                                                              "interval over images"))
        except InputError as error:
            missing["agreement_on_acceptability"] = str(error)
    else:
        missing["acceptability"] = "no image was rated under 'acceptable'"
    try:
        scores.insert(0, _score("agreement_on_origin", shown, fleiss_kappa(answers, seed=seed), note="Fleiss' kappa; interval over images"))
    except InputError as error:
        missing["agreement_on_origin"] = str(error)
    return scores


def _assistance_scores(diagnoses: Sequence[Diagnosis], missing: dict[str, str]) -> list[Score]:
    """Sensitivity and specificity without and with assistance, over readings that were made both ways by the same reader."""
    both: dict[tuple[str, str, str], dict[bool, Diagnosis]] = {}
    for reading in diagnoses:
        both.setdefault((reading.reader, reading.image, reading.finding), {})[reading.assisted] = reading
    pairs = [pair for pair in both.values() if len(pair) == 2]
    if len(pairs) < len(both):
        missing["assisted_reading"] = f"{len(both) - len(pairs)} readings were made in one way only and are left out"
    scores = []
    for finding in sorted({pair[True].finding for pair in pairs}):
        for there, name in ((True, "sensitivity"), (False, "specificity")):
            chosen = [pair for pair in pairs if pair[True].finding == finding and pair[True].truth == there]
            if len(chosen) < 2:
                missing[f"{name}, {finding}" if finding else name] = "fewer than two pairs of readings"
                continue
            readers, images = [pair[True].reader for pair in chosen], [pair[True].image for pair in chosen]
            alone, helped = (np.array([pair[way].answer == there for pair in chosen], dtype=np.float64) for way in (False, True))
            lost, won, p = mcnemar(alone, helped)
            size: dict[str, Any] = {"n_real": len(set(images)), "n_synthetic": 0, "group": finding or "all"}
            for metric, value in ((f"{name}_unassisted", share_over_readers_and_images(alone, readers, images)),
                                  (f"{name}_assisted", share_over_readers_and_images(helped, readers, images))):
                scores.append(Score(metric=metric, value=value.value, low=value.low, high=value.high, **size))
            gain = mean_change(helped - alone, readers, images)
            scores.append(Score(metric=f"{name}_gain", value=gain.value, low=gain.low, high=gain.high, **size,
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
    return {image: (kind[image], 2 * sum(given) > len(given)) for image, given in votes.items() if len(given) >= MIN_READERS}


def _majority_score(metric: str, votes: Mapping[str, tuple[bool, bool]], group: str, missing: dict[str, str], *, what: str) -> list[Score]:
    """Share of synthetic images with a majority; floor: the same of real ones."""
    made = [yes for synthetic, yes in votes.values() if synthetic]
    real = [yes for synthetic, yes in votes.values() if not synthetic]
    if not made or (group != "all" and len(made) < MIN_IMAGES_READ):
        fewest = MIN_IMAGES_READ if group != "all" else 1
        missing[f"{metric}, {group}"] = (f"{len(made)} synthetic images were {what} by {MIN_READERS} or more readers; "
                                         f"it takes {fewest}")
        return []
    low, high = wilson(sum(made), len(made))
    return [Score(metric=metric, value=sum(made) / len(made), low=low, high=high, n_real=len(real), n_synthetic=len(made),
                  group=group, floor=sum(real) / len(real) if real else None,
                  note=f"by majority of {MIN_READERS} or more readers; interval over images, for this panel")]


def _verdict(scores: Sequence[Score], shown: Sequence[Impression]) -> dict[str, str]:
    """In words: told apart or not, by whom, and for all images and each finding whether the wanted part of the images is accepted."""
    words: dict[str, str] = {}
    able = _readers_above_chance(shown)
    for score in scores:
        if score.metric == "balanced_turing_accuracy":
            words["real_or_synthetic"] = ("told apart better than by chance" if score.low > 0.5 else
                                         "taken for one another: real images look more synthetic" if score.high < 0.5 else
                                         f"some readers tell them apart: {', '.join(able)}" if able else
                                         "no evidence that readers tell them apart; see the interval")
        elif score.metric == "acceptable_images":
            word = "acceptable" if score.low >= WANTED else "not acceptable" if score.high < WANTED else "undecided"
            words[f"acceptable_images, {score.group}"] = f"{word}: at least {WANTED:.0%} of the images are wanted"
    return words


def _readers_above_chance(shown: Sequence[Impression]) -> list[str]:
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


def _score(metric: str, readings: Sequence[Impression], value: Interval, *, group: str = "all", floor: float | None = None,
           note: str = "") -> Score:
    images: dict[bool, set[str]] = {True: set(), False: set()}
    for reading in readings:
        images[reading.synthetic].add(reading.image)
    return Score(metric=metric, value=value.value, low=min(float(value.low), value.value), high=max(float(value.high), value.value),
                 n_real=len(images[False]), n_synthetic=len(images[True]), group=group, floor=floor, note=note)


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _not_measured(missing: Mapping[str, str]) -> dict[str, Any]:
    return {"not_measured": dict(missing)} if missing else {}
