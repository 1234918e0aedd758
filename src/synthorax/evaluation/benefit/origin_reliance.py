"""Shortcut reliance on image origin: do the scores of a classifier that also trained on synthetic images depend on what is synthetic?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from synthorax.evaluation.statistics.intervals import Z_95
from synthorax.evaluation.statistics.roc import auroc, delong, delong_interval
from synthorax.judges.classifier import Classifier, ClassifierConfig, ClassifierNetwork, train_classifier
from synthorax.judges.linear_probe import fit_probe
from synthorax.rng import derive
from synthorax.types import ImageSet

MIN_IMAGES_PER_ORIGIN = 20
"""images of either origin that are asked, in each half"""
MIN_IMAGES_PER_LABEL = 5
SHRINKAGE = 0.3
"""of the features' covariance towards its diagonal: images are few and features many"""
PERMUTATIONS = 99
MIN_SHIFT = 0.2
"""shift of scores, in their standard deviation on real images, below which no reliance on origin is reported"""
Vector = NDArray[np.float64]


def origin_reliance(real_train: ImageSet, real_asked: ImageSet, synthetic: ImageSet, *, findings: Sequence[str], config: ClassifierConfig,
                   seed: int) -> dict[str, Any] | None:
    """Train on real and half of the synthetic images, then look at real images of other patients and at the other synthetic ones.

    On half of these a linear probe learns from the classifier's features which are synthetic; the rest is asked. `probe`: its AUROC. For
    each finding, `shift` is how much higher synthetic images score than real ones with the same label (mean over both labels, in standard
    deviations of real images); `association_real` and `association_synthetic` the rank correlation of the score with the probe's, given the
    label; and `auroc_drop` what the AUROC on the real images loses when origin is taken out of the features (`without_origin`),
    `shift_without` what then is left of the shift. A classifier relies on origin if origin can be told from its features at all, and it
    has a shift that is not chance, or loses more than by taking out a random direction. None where fewer than 40 images of either origin
    can be asked.
    """
    rng = np.random.default_rng(derive(seed, "leaning"))
    order = rng.permutation(len(synthetic))
    taught, asked = synthetic.take(order[: len(order) // 2]), synthetic.take(order[len(order) // 2 :])
    if min(len(asked), len(real_asked)) < 2 * MIN_IMAGES_PER_ORIGIN:
        return None
    learned = ImageSet.join([real_train, taught])
    classifier = train_classifier(learned.pixels, learned.labels, findings=learned.findings, config=config, seed=derive(seed, "leaning"))
    features = np.concatenate([classifier.features(images.pixels) for images in (real_asked, asked)])
    labels = np.concatenate([real_asked.labels, asked.labels])
    made = np.repeat([0, 1], [len(real_asked), len(asked)])
    patients = np.unique(real_asked.patients())
    learns = np.concatenate([np.isin(real_asked.patients(), rng.permutation(patients)[: len(patients) // 2]),
                             rng.permutation(len(asked)) < len(asked) // 2])
    if min((~learns[made == origin]).sum() for origin in (0, 1)) < MIN_IMAGES_PER_ORIGIN or learns[made == 0].sum() < MIN_IMAGES_PER_ORIGIN:
        return None
    probe = fit_probe(features[learns], made[learns].astype(np.float64), name="origin")
    origin, asking = probe.scores(features), ~learns
    seen = delong_interval(made[asking], origin[asking])
    entries = []
    for name in findings:
        column = real_train.findings.index(name)
        before = _logits(classifier, features[asking])[:, column]
        after = _erased_scores(classifier, column, features, labels[:, column], made, learns)
        one = _finding_record(name, labels[asking, column], made[asking], origin[asking], before, after)
        by_chance = _drops_by_chance(classifier, column, features, labels[:, column], made, learns, rng)
        loses = "auroc_drop" in one and one["auroc_drop"]["low"] > 0 and one["auroc_drop"]["value"] > by_chance
        shifted = abs(one["shift"]["value"]) > MIN_SHIFT and one["shift"]["low"] * one["shift"]["high"] > 0
        entries.append(one | {"auroc_drop_by_chance": by_chance, "relies_on_origin": bool(seen.low > 0.5 and (shifted or loses))})
    return {"probe": {"auroc": seen.auc, "low": seen.low, "high": seen.high}, "findings": entries}


def _erased_scores(classifier: Classifier, column: int, features: Vector, labels: Vector, made: NDArray[np.intp],
                   learns: NDArray[np.bool_]) -> Vector:
    erased = without_origin(features[~learns], known=features[learns], made=made[learns], labels=labels[learns])
    return np.asarray(_logits(classifier, erased)[:, column])


def _drops_by_chance(classifier: Classifier, column: int, features: Vector, labels: Vector, made: NDArray[np.intp],
                     learns: NDArray[np.bool_], rng: np.random.Generator) -> float:
    """95th percentile of the AUROC's loss when origins are dealt out anew among images with one label: any direction costs something."""
    asked = ~learns & (made == 0) & ~np.isnan(labels)
    if min((labels[asked] == value).sum() for value in (0, 1)) < 2:
        return 0.0
    whole, drops = auroc(labels[asked].astype(int), _logits(classifier, features[asked])[:, column]), []
    for _ in range(PERMUTATIONS):
        dealt = made.copy()
        for value in (0, 1):
            rows = np.flatnonzero(learns & (labels == value))
            dealt[rows] = rng.permutation(made[rows])
        scores = _erased_scores(classifier, column, features, labels, dealt, learns)
        drops.append(whole - auroc(labels[asked].astype(int), scores[asked[~learns]]))
    return float(np.quantile(drops, 0.95))


def without_origin(features: Vector, *, known: Vector, made: NDArray[np.intp], labels: Vector) -> Vector:
    """Features [N, F] from which the difference between real and synthetic images with the same label is taken out.

    `known` [M, F] are images of which `made` says 0 (real) or 1, and `labels` what they show. The change is the least, in the metric of the
    features' spread, after which no linear function tells the means apart (LEACE; Belrose et al. 2023, Theorem 4.3); real means stay.
    """
    centred, gaps = [], []
    for value in (0, 1):
        sides = [known[(made == origin) & (labels == value)] for origin in (0, 1)]
        centred += [side - side.mean(axis=0) for side in sides if len(side)]
        if min(map(len, sides)) >= MIN_IMAGES_PER_LABEL:
            gaps.append(sides[1].mean(axis=0) - sides[0].mean(axis=0))
    if not gaps:
        return features
    gap, spread = np.mean(gaps, axis=0), np.cov(np.concatenate(centred).T)
    spread = (1 - SHRINKAGE) * spread + SHRINKAGE * np.diag(np.diag(spread)) + 1e-9 * np.trace(spread) * np.eye(len(spread))
    weights = np.linalg.solve(spread, gap)
    amount = (features - known[made == 0].mean(axis=0)) @ weights / (weights @ gap)
    return np.asarray(features - np.outer(amount, gap))


def partial_rank_correlation(first: Vector, second: Vector, labels: Vector) -> tuple[float, float, float]:
    """Spearman's correlation within each label, pooled in Fisher's z by its weight n - 3, with its 95 % interval; 0, -1, 1 with too few.

    >>> partial_rank_correlation(np.arange(20.0), np.arange(20.0) ** 3, np.zeros(20))[0] > 0.99
    True
    """
    total, weight = 0.0, 0
    for value in (0, 1):
        rows = labels == value
        if rows.sum() < MIN_IMAGES_PER_LABEL or min(np.ptp(first[rows]), np.ptp(second[rows])) == 0:
            continue
        correlation = np.corrcoef(rankdata(first[rows]), rankdata(second[rows]))[0, 1]
        total += (int(rows.sum()) - 3) * float(np.arctanh(np.clip(correlation, -0.999, 0.999)))
        weight += int(rows.sum()) - 3
    if not weight:
        return 0.0, -1.0, 1.0
    centre, reach = total / weight, Z_95 * 1.03 / np.sqrt(weight)  # 1.03: ranks vary a little more (Fieller et al. 1957)
    return tuple(float(np.tanh(end)) for end in (centre, centre - reach, centre + reach))  # type: ignore[return-value]


def _finding_record(finding: str, labels: Vector, made: NDArray[np.intp], origin: Vector, before: Vector, after: Vector) -> dict[str, Any]:
    shift, left = _shift(before, labels, made), _shift(after, labels, made)
    record: dict[str, Any] = {"finding": finding, "shift": _interval(shift), "shift_without": _interval(left)}
    for name, value in (("real", 0), ("synthetic", 1)):
        rows = made == value
        record[f"association_{name}"] = _interval(partial_rank_correlation(before[rows], origin[rows], labels[rows]))
    real = (made == 0) & ~np.isnan(labels)
    if min((labels[real] == value).sum() for value in (0, 1)) >= 2:
        compared = delong(labels[real].astype(int), after[real], before[real])
        record |= {"auroc": compared.auc_b, "auroc_without": compared.auc_a,
                 "auroc_drop": _interval((compared.difference, compared.low, compared.high))}
    return record


def _shift(scores: Vector, labels: Vector, made: NDArray[np.intp]) -> tuple[float, float, float]:
    """How much higher synthetic images score than real ones with the same label, with its 95 % interval; 0, -1, 1 with too few images."""
    spread = float(scores[made == 0].std()) + 1e-9
    gaps, errors = [], []
    for value in (0, 1):
        sides = [scores[(made == origin) & (labels == value)] / spread for origin in (0, 1)]
        if min(map(len, sides)) >= MIN_IMAGES_PER_LABEL:
            gaps.append(float(sides[1].mean() - sides[0].mean()))
            errors.append(sum(float(side.var(ddof=1)) / len(side) for side in sides))
    if not gaps:
        return 0.0, -1.0, 1.0
    gap, reach = float(np.mean(gaps)), float(Z_95 * np.sqrt(sum(errors)) / len(gaps))
    return gap, gap - reach, gap + reach


def _logits(classifier: Classifier, features: Vector) -> Vector:
    head = cast(ClassifierNetwork, classifier.network).head
    weights, bias = (part.detach().double().cpu().numpy() for part in (head.weight, head.bias))
    return np.asarray(features @ weights.T + bias)


def _interval(numbers: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), numbers, strict=True))
