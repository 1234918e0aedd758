"""Does a classifier that also trained on synthetic films lean on their being synthetic? What origin does to its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from synthorax.evaluation.sampling import Z_95
from synthorax.evaluation.statistics import delong, delong_interval
from synthorax.judges.classifier import Classifier, ClassifierConfig, ClassifierNetwork, train_classifier
from synthorax.judges.probe import Probe, fit_probe
from synthorax.rng import derive
from synthorax.types import Films

FEWEST_FILMS = 20
"""films of either origin that are asked, in each half"""
FEWEST_OF_LABEL = 5
LEAST_GAP = 0.2
"""shift of scores, in their deviation on real films, below which nobody leans on anything that matters"""
Vector = NDArray[np.float64]


def origin_leaning(real_train: Films, real_asked: Films, synthetic: Films, *, findings: Sequence[str], config: ClassifierConfig,
                   seed: int) -> dict[str, Any] | None:
    """Train on real and half of the synthetic films, then look at real films of other patients and at the other synthetic ones.

    On half of these a linear probe learns from the classifier's features which are synthetic; the rest is asked. `probe`: its AUROC. For
    each finding, `shift` is how much higher synthetic films score than real ones with the same label (mean over both labels, in deviations
    of real films); `association_real` and `association_synthetic` the rank correlation of the score with the probe's, given the label;
    and `auroc_drop` what the AUROC on the real films loses when the probe's direction is projected out of the features, `shift_without`
    what then is left of the shift. A classifier that leans has a shift that is not chance, or loses by the projection. None where fewer
    than 40 films of either origin can be asked.
    """
    rng = np.random.default_rng(derive(seed, "leaning"))
    order = rng.permutation(len(synthetic))
    taught, asked = synthetic.take(order[: len(order) // 2]), synthetic.take(order[len(order) // 2 :])
    if min(len(asked), len(real_asked)) < 2 * FEWEST_FILMS:
        return None
    classifier = train_classifier(np.concatenate([real_train.images, taught.images]), np.concatenate([real_train.labels, taught.labels]),
                                  findings=real_train.findings, config=config, seed=derive(seed, "leaning"))
    features = np.concatenate([classifier.features(films.images) for films in (real_asked, asked)])
    labels = np.concatenate([real_asked.labels, asked.labels])
    made = np.repeat([0, 1], [len(real_asked), len(asked)])
    patients = np.unique(real_asked.patients())
    learns = np.concatenate([np.isin(real_asked.patients(), rng.permutation(patients)[: len(patients) // 2]),
                             rng.permutation(len(asked)) < len(asked) // 2])
    if min((~learns[made == origin]).sum() for origin in (0, 1)) < FEWEST_FILMS or learns[made == 0].sum() < FEWEST_FILMS:
        return None
    probe = fit_probe(features[learns], made[learns].astype(np.float64), name="origin")
    features, labels, made = features[~learns], labels[~learns], made[~learns]
    seen = delong_interval(made, probe.scores(features))
    before, after = (_logits(classifier, vectors) for vectors in (features, without_direction(features, probe, level=features[made == 0])))
    told = []
    for name in findings:
        column = real_train.findings.index(name)
        told.append(_one(name, labels[:, column], made, probe.scores(features), before[:, column], after[:, column]))
    return {"probe": {"auroc": seen.auc, "low": seen.low, "high": seen.high}, "findings": told}


def without_direction(features: Vector, probe: Probe, *, level: Vector) -> Vector:
    """Features [N, F] moved along the probe's direction until the probe gives all of them its mean answer to those of `level` [M, F].

    The shortest such way in standardised features: a projection onto a plane (as one step of Ravfogel et al. 2020, Sec. 3).
    """
    placed, direction = (features - probe.mean) / probe.scale, probe.weights / (np.linalg.norm(probe.weights) + 1e-12)
    middle = float((((level - probe.mean) / probe.scale) @ direction).mean())
    return np.asarray((placed - np.outer(placed @ direction - middle, direction)) * probe.scale + probe.mean)


def partial_rank_correlation(first: Vector, second: Vector, labels: Vector) -> tuple[float, float, float]:
    """Spearman's correlation within each label, pooled in Fisher's z by its weight n - 3, with its 95 % interval; 0, -1, 1 with too few.

    >>> partial_rank_correlation(np.arange(20.0), np.arange(20.0) ** 3, np.zeros(20))[0] > 0.99
    True
    """
    total, weight = 0.0, 0
    for value in (0, 1):
        rows = labels == value
        if rows.sum() < FEWEST_OF_LABEL or min(np.ptp(first[rows]), np.ptp(second[rows])) == 0:
            continue
        correlation = np.corrcoef(rankdata(first[rows]), rankdata(second[rows]))[0, 1]
        total += (int(rows.sum()) - 3) * float(np.arctanh(np.clip(correlation, -0.999, 0.999)))
        weight += int(rows.sum()) - 3
    if not weight:
        return 0.0, -1.0, 1.0
    centre, reach = total / weight, Z_95 * 1.03 / np.sqrt(weight)  # 1.03: ranks vary a little more (Fieller et al. 1957)
    return tuple(float(np.tanh(end)) for end in (centre, centre - reach, centre + reach))  # type: ignore[return-value]


def _one(finding: str, labels: Vector, made: NDArray[np.intp], origin: Vector, before: Vector, after: Vector) -> dict[str, Any]:
    shift, left = _shift(before, labels, made), _shift(after, labels, made)
    told: dict[str, Any] = {"finding": finding, "shift": _interval(shift), "shift_without": _interval(left)}
    for name, value in (("real", 0), ("synthetic", 1)):
        rows = made == value
        told[f"association_{name}"] = _interval(partial_rank_correlation(before[rows], origin[rows], labels[rows]))
    real = (made == 0) & ~np.isnan(labels)
    drop = None
    if min((labels[real] == value).sum() for value in (0, 1)) >= 2:
        compared = delong(labels[real].astype(int), after[real], before[real])
        drop = (compared.difference, compared.low, compared.high)
        told |= {"auroc": compared.auc_b, "auroc_without": compared.auc_a, "auroc_drop": _interval(drop)}
    leans = abs(shift[0]) > LEAST_GAP and shift[1] * shift[2] > 0
    return told | {"leans": bool(leans or (drop is not None and drop[1] > 0))}


def _shift(scores: Vector, labels: Vector, made: NDArray[np.intp]) -> tuple[float, float, float]:
    """How much higher synthetic films score than real ones with the same label, with its 95 % interval; 0, -1, 1 with too few films."""
    spread = float(scores[made == 0].std()) + 1e-9
    gaps, errors = [], []
    for value in (0, 1):
        sides = [scores[(made == origin) & (labels == value)] / spread for origin in (0, 1)]
        if min(map(len, sides)) >= FEWEST_OF_LABEL:
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
