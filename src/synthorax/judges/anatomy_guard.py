"""The anatomy guard: does an image show two lungs and one heart, of sizes and shapes that real images have, and did an edit keep them?

An image is held against the lab's own real images. For each number of `anatomy.TRAITS`, their tails say how rarely one is as far out:
beyond the outer twentieth on either side an exponential fall-off is assumed (peaks over threshold; Pickands 1975 with shape 0). An image
is strange by its rarest number, by a combination of numbers that real images do not have (Mahalanobis distance), or because the judge of
`plausible_chest`, which sees what no outline holds, finds it more like one kind of failure than real images are. How strange it may be is
set by cross-conformal prediction on real images (Vovk 2015), each of the three with its part of the rate: of images like them, at most
about `rate` are rejected, whatever the numbers are and however many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from synthorax.errors import InputError, UsageError
from synthorax.judges.anatomy import TRAITS, Vector, cardiothoracic_ratio, traits_of
from synthorax.judges.cross_fit import cross_conformal, patient_folds
from synthorax.judges.fitting import ImageArray
from synthorax.judges.lungs import load_lung_model, segment_lungs
from synthorax.judges.plausible_chest import ChestJudge, load_chest_judge
from synthorax.judges.segmenter import Segmenter, dice

ANATOMY_RATE = 0.05
"""part of real images that the guard may reject"""
FEWEST_OF_A_VIEW = 100
"""real images of a view from which on it has a band of its own"""
FOLDS = 5
BAND = (0.025, 0.975)
"""quantiles of real images that a reason names"""
TAIL = 0.05
"""part of real images on either side whose distances say how fast the tail falls off"""
STRANGEST = 6.0
"""strangeness beyond which more makes no difference to how numbers go together"""
SHRINKAGE = 0.2
"""of covariances towards their diagonal"""
WAYS = 3
"""of being strange: in one number, in how they go together, or by the look of the whole image"""
ALONE, TOGETHER, APPEARANCE = range(WAYS)
SHARES = np.array([0.2, 0.2, 0.6])
"""part of the rate that each of the ways has; at 5 %, the first two need 99 real images to reject anything, and the look 33"""
SMALLEST_SPREAD = 0.5
"""distance of log odds between median and quantile that is assumed at least"""
SMALLEST_EXCESS = 0.06
"""mean distance beyond the edge of the tail that is assumed at least, where real images hardly differ"""
Matrix = NDArray[np.float64]
LATERAL = "LATERAL"
"""view that has no right lung on the left; the guard says nothing of it"""
LOWEST_DICE = 0.95
"""of the lungs before and after an edit, outside of its region"""
LOWEST_EDGES = 0.95
"""correlation of edges before and after an edit, outside of its region"""
LARGEST_CHANGE_OF_RATIO = 0.04
"""of the cardiothoracic ratio, by an edit that was not to change it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strange:
    """The number for which an image was rejected."""

    trait: str
    """in words"""
    value: float
    low: float
    high: float
    """between which 95 % of real images lie"""
    counts: bool = False
    """whether it is a number of pieces"""
    together: bool = False
    """whether it is strange only together with the other numbers"""
    appearance: bool = False
    """whether `trait` says what the whole image looks like, and `value` how much more than like a chest"""

    def __str__(self) -> str:
        if self.appearance:
            return f"looks like {self.trait}: log odds {self.value:.1f}, and at most {self.high:.1f} on 95 % of real images"
        if self.together:
            return f"the numbers of lungs and heart do not go together as on real images, the least {self._alone}"
        return self._alone

    @property
    def _alone(self) -> str:
        if not np.isfinite(self.value):
            return f"{self.trait} cannot be measured, and is {self.low:.2f} to {self.high:.2f} on real images"
        if self.counts:
            return f"{self.value:g} {self.trait}, and real images have {self.low:g}"
        return f"{self.trait} is {self.value:.2f}, and {self.low:.2f} to {self.high:.2f} on real images"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tail:
    """One trait of some real images: how rarely it is as far from their median."""

    counts: bool
    median: float
    low: float
    high: float
    """the band that reasons name"""
    edges: tuple[float, float]
    """distances from the median, below and above, that a real image in twenty exceeds"""
    excess: tuple[float, float]
    """by how much, on average"""
    miscounted: float
    """part of the images whose count is not the median"""
    unknown: float
    """part of the images without this number"""

    @classmethod
    def of(cls, values: Vector, *, counts: bool) -> _Tail:
        known = values[np.isfinite(values)]
        if not len(known):
            known = np.zeros(1)
        median = float(np.median(known))
        smallest = SMALLEST_EXCESS * max(1.0, abs(median))
        edges, excess = [], []
        for away in (median - known, known - median):
            edge = max(0.0, float(np.quantile(away, 1 - TAIL)))
            beyond = away[away > edge] - edge
            edges.append(edge)
            excess.append(max(smallest, float(beyond.mean()) if len(beyond) else 0.0))
        low, high = (float(value) for value in np.quantile(known, BAND))
        return cls(counts=counts, median=median, low=low, high=high, edges=(edges[0], edges[1]), excess=(excess[0], excess[1]),
                   miscounted=(1 + float((known != median).sum())) / (2 + len(known)),
                   unknown=(1 + float((~np.isfinite(values)).sum())) / (2 + len(values)))

    def strangeness(self, values: Vector) -> Vector:
        """Minus the logarithm to base 10 of the part of real images that is as far out on this side, [N], or that lacks it."""
        if self.counts:
            away = np.nan_to_num(np.abs(values - self.median), nan=0.0)
            return np.where(away > 0, away - 1 - np.log10(self.miscounted), 0.0)
        found = np.zeros(len(values))
        for edge, excess, away in zip(self.edges, self.excess, (self.median - values, values - self.median), strict=True):
            away = np.nan_to_num(away, nan=0.0)
            inside = -np.log10(TAIL) * away / max(edge, 1e-9)
            beyond = -np.log10(TAIL) + (away - edge) / (excess * np.log(10))
            found = np.maximum(found, np.where(away <= edge, inside, beyond))
        return np.where(np.isfinite(values), found, -np.log10(self.unknown))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Limits:
    """How rarely some real images have each number, and how the numbers go together."""

    tails: dict[str, _Tail]
    centre: Vector
    """[T] median of the signed strangeness of every trait"""
    precision: NDArray[np.float64]
    """[T, T] inverse of its covariance, shrunk towards the diagonal"""

    @classmethod
    def of(cls, traits: dict[str, Vector], rows: NDArray[np.intp]) -> _Limits:
        tails = {key: _Tail.of(values[rows], counts=TRAITS[key].counts) for key, values in traits.items()}
        signed = _signed(tails, {key: values[rows] for key, values in traits.items()})
        covariance = np.cov(signed.T)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance)) + 0.01 * np.eye(len(covariance))
        return cls(tails=tails, centre=np.median(signed, axis=0), precision=np.asarray(np.linalg.inv(shrunk), dtype=np.float64))

    def scores(self, traits: dict[str, Vector]) -> NDArray[np.float64]:
        """Strangeness of the strangest number, and squared Mahalanobis distance of all of them, [2, N]."""
        signed = _signed(self.tails, traits)
        away = signed - self.centre
        alone = np.max([self.tails[key].strangeness(values) for key, values in traits.items()], axis=0)
        return np.stack([alone, np.einsum("ni,ij,nj->n", away, self.precision, away)])

    def strangest(self, traits: dict[str, float], *, together: bool) -> Strange:
        """The number that makes an image strange, by itself or, `together`, because of the others."""
        signed = _signed(self.tails, {key: np.array([value]) for key, value in traits.items()})[0]
        share = np.abs(signed)
        if together:
            share = (signed - self.centre) * (self.precision @ (signed - self.centre))
        key = list(self.tails)[int(share.argmax())]
        tail = self.tails[key]
        low, high = (tail.median, tail.median) if tail.counts else (tail.low, tail.high)
        return Strange(trait=TRAITS[key].name, value=traits[key], low=low, high=high, counts=tail.counts,
                       together=together)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Appearance:
    """How much some real images look like each kind of failure: a set may look like one of them as a rule."""

    median: Vector
    """[K]"""
    high: Vector
    """[K] quantile of 95 %"""

    @classmethod
    def of(cls, odds: Matrix) -> _Appearance:
        return cls(median=np.median(odds, axis=0), high=np.quantile(odds, 0.95, axis=0))

    def away(self, odds: Matrix) -> Matrix:
        """Log odds [..., K] above the median, in distances between the median and the quantile."""
        return np.asarray((odds - self.median) / np.maximum(self.high - self.median, SMALLEST_SPREAD))


def _signed(tails: dict[str, _Tail], traits: dict[str, Vector]) -> NDArray[np.float64]:
    """Strangeness of every trait, below the median negative, at most `STRANGEST`, [N, T]."""
    columns = [np.where(values > tails[key].median, 1, -1) * np.minimum(tails[key].strangeness(values), STRANGEST)
               for key, values in traits.items()]
    return np.stack(columns, axis=1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AnatomyReference:
    """How lungs and hearts of real images look, for images of each view that enough of them show."""

    model: Segmenter
    judge: ChestJudge
    traits: dict[str, Vector]
    """[N] each"""
    odds: Matrix
    """[N, K] how much more like each kind of failure than like a chest each real image looks to the judge"""
    groups: dict[str, NDArray[np.intp]]
    """rows of the real images that a view is held against; `""` are all, for views of which there are few"""
    folds: NDArray[np.intp]
    """[N]"""

    @classmethod
    def fit(cls, pixels: ImageArray, *, views: Sequence[str], patients: Sequence[str] | NDArray[np.str_],
            model: Segmenter | None = None, judge: ChestJudge | None = None, rate: float = ANATOMY_RATE) -> AnatomyReference:
        """By real images [N, H, W] with their views and patients; lateral ones are left out.

        InputError where they are too few for anything to be rejected at `rate`. The real images must not have trained `judge`, or too few
        of the others pass.
        """
        if reason := too_few(views, rate=rate):
            raise InputError(reason, remedy="hold the images against more real ones, or leave anatomy out")
        model, judge = model or load_lung_model(), judge or load_chest_judge()
        frontal = np.flatnonzero([view != LATERAL for view in views])
        return cls.of_numbers(traits_of(pixels[frontal], model=model), judge.odds(pixels[frontal]),
                              views=[views[int(row)] for row in frontal], patients=np.asarray(patients)[frontal], model=model, judge=judge)

    @classmethod
    def of_numbers(cls, traits: dict[str, Vector], odds: Matrix, *, views: Sequence[str], patients: Sequence[str] | NDArray[np.str_],
                   model: Segmenter, judge: ChestJudge) -> AnatomyReference:
        """By what was measured of N real frontal images."""
        shown = np.array(views)
        groups = {"": np.arange(len(shown))}
        groups |= {str(view): np.flatnonzero(shown == view) for view in np.unique(shown) if (shown == view).sum() >= FEWEST_OF_A_VIEW}
        return cls(model=model, judge=judge, traits=traits, odds=odds, groups=groups, folds=patient_folds(patients, folds=FOLDS, seed=0))

    def check(self, pixels: ImageArray, *, views: Sequence[str], rate: float = ANATOMY_RATE) -> list[Strange | None]:
        """For each image [N, H, W], the number for which it is to be rejected, or None; images of a lateral view pass."""
        return self.check_numbers(traits_of(pixels, model=self.model), self.judge.odds(pixels), views=views, rate=rate)

    def check_numbers(self, traits: dict[str, Vector], odds: Matrix, *, views: Sequence[str],
                      rate: float = ANATOMY_RATE) -> list[Strange | None]:
        """As `check`, by what was measured of the images."""
        found: list[Strange | None] = [None] * len(odds)
        wanted = np.array([view if view in self.groups else "" for view in views])
        for view in np.unique(wanted):
            new = np.flatnonzero((wanted == view) & np.array([one != LATERAL for one in views]))
            own, rows = {key: values[new] for key, values in traits.items()}, self.groups[str(view)]
            p, limits = self._p(rows, own, odds[new]), _Limits.of(self.traits, rows)
            appearance = _Appearance.of(self.odds[rows])
            for number in np.flatnonzero((p <= rate * SHARES[:, None]).any(axis=0)).tolist():
                row, way = int(new[number]), int((p[:, number] / SHARES).argmin())
                if way == APPEARANCE:
                    kind = int(appearance.away(odds[row]).argmax())
                    found[row] = Strange(trait=self.judge.classes[1 + kind], value=float(odds[row, kind]), low=-np.inf,
                                         high=float(appearance.high[kind]), appearance=True)
                else:
                    found[row] = limits.strangest({key: float(values[number]) for key, values in own.items()}, together=way == TOGETHER)
        return found

    def _p(self, rows: NDArray[np.intp], new: dict[str, Vector], odds: Matrix) -> NDArray[np.float64]:
        """How rarely a real image of these rows is as strange, by cross-conformal prediction, in each of the `WAYS`, [3, N]."""
        part = self.folds[rows]
        known, judged = np.empty((WAYS, len(rows))), []
        for fold in range(FOLDS):
            others, own = rows[part != fold], rows[part == fold]
            limits, appearance = _Limits.of(self.traits, others), _Appearance.of(self.odds[others])
            known[:APPEARANCE, part == fold] = limits.scores({key: values[own] for key, values in self.traits.items()})
            known[APPEARANCE, part == fold] = appearance.away(self.odds[own]).max(axis=1)
            judged.append(np.concatenate([limits.scores(new), appearance.away(odds).max(axis=1)[None]]))
        return np.stack([cross_conformal(known[way], part, np.stack([one[way] for one in judged])) for way in range(WAYS)])


def too_few(views: Sequence[str], *, rate: float = ANATOMY_RATE) -> str:
    """Why real images of these views set no limits to anatomy; empty where they do."""
    frontal = sum(view != LATERAL for view in views)
    fewest = int(np.ceil(1 / (rate * SHARES.max()))) - 1
    return "" if frontal >= fewest else f"{frontal} real frontal images set no limits to anatomy; at least {fewest} do"


def check_anatomy(images: ImageArray, reference: AnatomyReference, *, views: Sequence[str] | None = None,
                  rate: float = ANATOMY_RATE) -> list[tuple[str, ...]]:
    """Why each image [N, H, W] is no chest like the real ones, in words with numbers; empty where it is one.

    >>> reference = AnatomyReference.fit(real, views=views, patients=patients)  # doctest: +SKIP
    >>> check_anatomy(images, reference)[0]  # doctest: +SKIP
    ('3 pieces of lung, and real images have 2',)
    """
    found = reference.check(images, views=views or ("",) * len(images), rate=rate)
    return [() if one is None else (str(one),) for one in found]


def check_edit(before: ImageArray, after: ImageArray, region: NDArray[np.bool_], *, heart_may_change: bool = False,
               model: Segmenter | None = None) -> list[tuple[str, ...]]:
    """Why an edit of images [N, H, W] inside `region` [N, H, W] changed anatomy that it was to keep; empty where it did not.

    Outside of the region, edges and lungs must be where they were; the cardiothoracic ratio must be nearly the same, unless the edit was to
    change the heart. An edit that was to change a lung says so by its region.
    """
    if before.shape != after.shape or region.shape != before.shape:
        raise UsageError(f"images before {list(before.shape)} and after {list(after.shape)} an edit and its region {list(region.shape)} "
                         "must have one shape")
    model = model or load_lung_model()
    lungs = [segment_lungs(images, model=model) for images in (before, after)]
    overlap = dice(*(one.both & ~region for one in lungs))
    edges = edge_correlation(before, after, ~region)
    ratios = [cardiothoracic_ratio(one.both, one.heart) for one in lungs]
    found = []
    for number in range(len(before)):
        reasons = []
        if edges[number] < LOWEST_EDGES:
            reasons.append(f"edges outside of the region correlate by {edges[number]:.3f}, and {LOWEST_EDGES:g} is asked for")
        if overlap[number] < LOWEST_DICE:
            reasons.append(f"the lungs outside of the region agree by a Dice of {overlap[number]:.3f}, and {LOWEST_DICE:g} is asked for")
        change = ratios[1][number] - ratios[0][number]
        if not heart_may_change and not abs(change) <= LARGEST_CHANGE_OF_RATIO and np.isfinite(ratios[0][number]):
            reasons.append(f"the cardiothoracic ratio went from {ratios[0][number]:.2f} to {ratios[1][number]:.2f}, and "
                           f"{LARGEST_CHANGE_OF_RATIO:g} is allowed")
        found.append(tuple(reasons))
    return found


def edge_correlation(first: ImageArray, second: ImageArray, where: NDArray[np.bool_]) -> Vector:
    """Correlation of two images' edge maps over the pixels `where`, all [N, H, W] -> [N]; 1 where neither has an edge.

    An edge map is the size of the gradient by Sobel's kernels after smoothing by a 3 x 3 mean, which noise moves little.
    """
    maps = [_edges(images) for images in (first, second)]
    inside = torch.from_numpy(where).double().flatten(1)
    count = inside.sum(dim=1, keepdim=True).clamp_min(1)
    centred = [(one - (one * inside).sum(dim=1, keepdim=True) / count) * inside for one in maps]
    both = (centred[0] * centred[1]).sum(dim=1)
    sizes = [one.square().sum(dim=1).sqrt() for one in centred]
    flat = (sizes[0] < 1e-9) & (sizes[1] < 1e-9)
    return np.asarray(torch.where(flat, torch.ones_like(both), both / (sizes[0] * sizes[1]).clamp_min(1e-12)).numpy())


def _edges(images: ImageArray) -> torch.Tensor:
    """Size of the gradient, [N, H * W], float64."""
    x = torch.from_numpy(images.astype(np.float64))[:, None] / np.iinfo(images.dtype).max
    x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 3, stride=1)
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    gradient = F.conv2d(x, torch.stack([across, across.T])[:, None])
    return gradient.square().sum(dim=1).sqrt().flatten(1)
