"""Do the tests of `benefit` keep their word? Type-I errors over null runs, and how often the 95 % intervals hold the truth.

  OMP_NUM_THREADS=1 python bench/studies/statistics_check.py [--runs 2000] [--draws 500] [--positives 60] [--negatives 240] [--seed 0]

A null run: two equally noisy readings of one latent severity, so that their true AUROCs are the same and known (two normals).
Holm's row is the chance that any of five findings is called, all five null. In rows with "3 images a patient" images of one patient
share most of their severity; there are half as many patients.
Five minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import norm

from synthorax.evaluation.statistics.bootstrap import counted_auprc, counted_auroc, counted_bootstrap, counted_gain
from synthorax.evaluation.statistics.calibration import calibration_error, counted_brier, even_bins
from synthorax.evaluation.statistics.permutation import paired_permutation
from synthorax.evaluation.statistics.roc import delong, delong_interval, wilson
from synthorax.multiple_testing import holm

GAP, SHARED, NOISE = 1.5, 1.0, 0.7
"""distance between the classes, standard deviations of the severity that both readings share and of each reading's own noise"""
SPREAD = math.hypot(SHARED, NOISE)
LEVEL = 0.05
Vector = NDArray[np.float64]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--positives", type=int, default=60)
    parser.add_argument("--negatives", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0, help="another one draws other images")
    options = parser.parse_args()
    print(f"{options.runs} runs, {options.draws} draws, {options.positives} images with and {options.negatives} without the finding, "
          f"seed {options.seed}\n")
    print("| what | measured | due |\n|---|---|---|")
    for name, rate, due in error_rates(options.runs, draws=options.draws, positives=options.positives, negatives=options.negatives,
                                    seed=options.seed):
        print(f"| {name} | {rate:.4f} | {due} |", flush=True)
    return 0


def error_rates(runs: int, *, draws: int, positives: int, negatives: int, seed: int = 0) -> Iterator[tuple[str, float, str]]:
    """Name, rate and the range that it should lie in, for every test and interval."""
    error, cover = "0.04 to 0.06", "0.94 to 0.96"
    truth = float(norm.cdf(GAP / (SPREAD * math.sqrt(2))))
    one = [_one_image_each(draws=draws, positives=positives, negatives=negatives, seed=seed, number=n, truth=truth)
           for n in range(runs)]
    for name in one[0]:
        yield name, float(np.mean([run[name] for run in one])), error if name.startswith("type-I") else cover
    p_values = [delong(*_readings(np.random.default_rng([seed, 2, n]), positives, negatives)).p for n in range(5 * runs)]
    families = np.array([min(holm(p_values[5 * n : 5 * n + 5])) < LEVEL for n in range(runs)])
    yield "type-I, Holm over five findings (DeLong)", float(families.mean()), error
    several = [_three_images_each(draws=draws, positives=positives // 2, negatives=negatives // 2, seed=seed, number=n)
               for n in range(runs)]
    for name in several[0]:
        yield name, float(np.mean([run[name] for run in several])), error if "DeLong" not in name else "does not apply"


def _one_image_each(*, draws: int, positives: int, negatives: int, seed: int, number: int, truth: float) -> dict[str, bool]:
    """Whether each test called a null run, and whether each interval holds the truth: one image a patient."""
    rng = np.random.default_rng([seed, 1, number])
    labels, a, b = _readings(rng, positives, negatives)
    patients = np.arange(len(labels))
    by_formula, area = delong(labels, a, b), delong_interval(labels, a)
    gain = counted_bootstrap(labels, np.stack([a, b], axis=1), patients, counted_gain, num=draws, seed=number)
    exchanged = paired_permutation(labels, a, b, patients, num=draws, seed=number)
    areas = counted_bootstrap(labels, a, patients, counted_auroc, num=draws, seed=number)
    precision = counted_bootstrap(labels, a, patients, counted_auprc, num=draws, seed=number)
    sensitivity = wilson(int((a[labels == 1] > GAP / 2).sum()), positives)
    prevalence = positives / (positives + negatives)
    said = _probability(a, prevalence)
    drawn = rng.random(len(said)) < said  # truth drawn from what was said: perfectly calibrated
    brier = counted_bootstrap(drawn, said, patients, counted_brier, num=draws, seed=number)
    bold = _probability(2.0 * a - GAP / 2, prevalence)  # too sure of itself
    off = counted_bootstrap(drawn, bold, patients, calibration_error(even_bins(bold)), num=draws, seed=number, corrected=True)
    return {
        "type-I, DeLong": by_formula.p < LEVEL, "type-I, patient bootstrap": gain.p < LEVEL, "type-I, permutation": exchanged.p < LEVEL,
        "coverage, AUROC (DeLong, logit)": area.low <= truth <= area.high,
        "coverage, AUROC (patient bootstrap)": areas.low <= truth <= areas.high,
        "coverage, gain in AUROC (DeLong)": by_formula.low <= 0 <= by_formula.high,
        "coverage, gain in AUROC (patient bootstrap)": gain.low <= 0 <= gain.high,
        "coverage, AUPRC (patient bootstrap)": precision.low <= _true_auprc(prevalence) <= precision.high,
        "coverage, sensitivity (Wilson)": sensitivity[0] <= norm.sf(-GAP / 2 / SPREAD) <= sensitivity[1],
        "coverage, Brier (patient bootstrap)": brier.low <= _true_brier(prevalence) <= brier.high,
        "coverage, ECE (corrected patient bootstrap)": off.low <= _true_error(prevalence) <= off.high,
    }


def _three_images_each(*, draws: int, positives: int, negatives: int, seed: int, number: int) -> dict[str, bool]:
    """The tests of a difference where each patient has three images that share most of their severity and of their noise."""
    rng = np.random.default_rng([seed, 3, number])
    labels, a, b = _readings(rng, positives, negatives)
    labels, patients = np.repeat(labels, 3), np.repeat(np.arange(len(labels)), 3)
    a, b = (np.repeat(reading, 3) + rng.normal(size=3 * len(reading)) * 0.3 for reading in (a, b))
    gain = counted_bootstrap(labels, np.stack([a, b], axis=1), patients, counted_gain, num=draws, seed=number)
    exchanged = paired_permutation(labels, a, b, patients, num=draws, seed=number)
    return {"type-I, patient bootstrap, 3 images a patient": gain.p < LEVEL, "type-I, permutation, 3 images a patient": exchanged.p < LEVEL,
            "type-I, DeLong, 3 images a patient": delong(labels, a, b).p < LEVEL}


def _readings(rng: np.random.Generator, positives: int, negatives: int) -> tuple[NDArray[np.int_], Vector, Vector]:
    labels = np.repeat([1, 0], [positives, negatives])
    latent = rng.normal(size=len(labels)) * SHARED + GAP * labels
    a, b = latent + rng.normal(size=(2, len(labels))) * NOISE
    return labels, a, b


def _probability(reading: Vector | float, prevalence: float) -> Vector:
    """What a reading says by Bayes' rule: calibrated for readings as they are drawn here."""
    odds = prevalence / (1 - prevalence) * np.exp((np.asarray(reading) - GAP / 2) * GAP / SPREAD**2)
    return np.asarray(odds / (1 + odds))


def _mixture(x: float, prevalence: float) -> float:
    return float(prevalence * norm.pdf((x - GAP) / SPREAD) + (1 - prevalence) * norm.pdf(x / SPREAD)) / SPREAD


_known: dict[tuple[str, float], float] = {}


def _true_auprc(prevalence: float) -> float:
    """Area under the true precision-recall curve."""
    def density(x: float) -> float:
        with_it, without = prevalence * norm.sf((x - GAP) / SPREAD), (1 - prevalence) * norm.sf(x / SPREAD)
        return float(norm.pdf((x - GAP) / SPREAD) / SPREAD * with_it / (with_it + without))

    return _remembered("auprc", prevalence, density)


def _true_brier(prevalence: float) -> float:
    """A calibrated reading's expected squared distance: p (1 - p)."""
    return _remembered("brier", prevalence, lambda x: float(_probability(x, prevalence) * (1 - _probability(x, prevalence)))
                       * _mixture(x, prevalence))


def _true_error(prevalence: float) -> float:
    """The too sure reading's calibration error over ten bins of equal mass of the population."""
    key = "error", prevalence
    if key not in _known:
        x = np.linspace(-8, 10, 200_001)
        weight = np.array([_mixture(float(value), prevalence) for value in x[::20]])
        x = x[::20]
        weight /= weight.sum()
        gap = _probability(2.0 * x - GAP / 2, prevalence) - _probability(x, prevalence)
        edges = np.searchsorted(np.cumsum(weight), np.arange(1, 10) / 10)
        _known[key] = float(sum(abs(part) for part in np.add.reduceat(weight * gap, [0, *edges])))
    return _known[key]


def _remembered(name: str, prevalence: float, density: object) -> float:
    if (name, prevalence) not in _known:
        _known[name, prevalence] = float(quad(density, -8, 10, limit=200)[0])
    return _known[name, prevalence]


if __name__ == "__main__":
    raise SystemExit(main())
