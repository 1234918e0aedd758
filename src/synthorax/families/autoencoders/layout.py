"""Outlines of findings in coordinates of the lungs, drawn by a small conditional variational autoencoder.

The first of two stages, as in label-first synthesis: outlines here, images of them by insertion or by a model conditioned on masks.

An outline is parted into its pose (size, centre, length and direction) and its form, how its two edges run from tip to tip (`contours`).
Forms are coded (Kingma and Welling 2014); the prior of a code is a Gaussian given finding, side and pose, learned along with the codes, so
that it lies where the codes of outlines lie (Tomczak and Welling 2018; Dai and Wipf 2019). Poses have a density of their own, a Gaussian
mixture for each finding and side, which is conditioned in closed form on whatever is asked for. A drawn form is laid out so that its area
is the one asked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, LayoutMaker, StartsFromBase
from synthorax.config import AtLeastOne, Fraction, Positive, Side, Width
from synthorax.families.autoencoders.contours import CURVES, POSE, Contour, contour_of, laid_out
from synthorax.families.weight_matching import Names, load_matching
from synthorax.nets.embedding import StatementEmbedding
from synthorax.protocols import LESION_PROPERTIES, Batch, Condition, Family, ModelSpec, Objective, Phase, SampleSettings
from synthorax.rng import Draws

CONDITIONS = ("labels", "lesions")
LEFT, SIZE, X, Y = (LESION_PROPERTIES.index(name) for name in ("left", "size", "x", "y"))
USUAL, SCALE = (-1.3, 0.5, 0.5, 0.6, 0.0), (0.6, 0.15, 0.2, 0.3, 0.7)
"""what is subtracted from a pose, as in `contours.POSE`, and what it is then divided by, so that it is of order 1"""
FARTHEST = 3.5
"""of such a number: poses beyond are drawn back to it"""
LEAST_SPREAD = 0.05
"""of a Gaussian of the mixture"""
PACE = 10.0
"""how many times faster the parameters of the mixtures move than weights do"""

@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutConfig:
    """Shape of the autoencoder."""

    image_size: Side = 128
    """cells of a side of the grid of outlines"""
    form_size: Side = 24
    """places between the tips of an outline at which its edges are read"""
    latent_size: Width = 16
    """numbers of a form's code"""
    width: Width = 256
    """features of a layer"""
    embedding: Width = 32
    """width of the embedding of findings"""
    components: AtLeastOne = 6
    """Gaussians in the mixture of poses of each finding and side"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutObjectiveConfig:
    """Weights of the bound."""

    noise: Positive = 0.05
    """standard deviation of a form's numbers around those of its code"""
    label_dropout: Fraction = 0.05
    """probability of dropping the findings from what codes and forms are conditioned on"""


class LayoutModel(nn.Module, LayoutMaker, HasConditionInputs, StartsFromBase):
    """Encoder, prior and decoder of forms, and the density of poses.

    A layout holds one finding, so what a condition states of side, size and place holds for whichever finding is asked for.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, LayoutConfig(**spec.config)
        c, findings = self.config, len(spec.findings)
        self.labels = StatementEmbedding(findings, c.embedding)
        given = c.embedding + 1 + len(POSE)
        numbers = len(CURVES) * c.form_size
        self.encoder = nn.Sequential(nn.Linear(numbers + given, c.width), nn.SiLU(), nn.Linear(c.width, 2 * c.latent_size))
        self.prior = nn.Sequential(nn.Linear(given, c.embedding * 2), nn.SiLU(), nn.Linear(c.embedding * 2, 2 * c.latent_size))
        self.decoder = nn.Sequential(nn.Linear(c.latent_size + given, c.width), nn.SiLU(), nn.Linear(c.width, c.width), nn.SiLU(),
                                     nn.Linear(c.width, numbers))
        self.poses = PoseMixtures(findings, components=c.components)

    def condition_vector(self, labels: Tensor, left: Tensor, pose: Tensor) -> Tensor:
        """What codes and forms are conditioned on, from labels [B, K], sides [B] (1 is left) and poses [B, P] -> [B, G]."""
        return torch.cat([self.labels(labels.to(pose)), left[:, None].to(pose) * 2 - 1, pose], dim=1)

    def encode(self, form: Tensor, given: Tensor) -> Tensor:
        """Mean and logarithm of the variance of the code of forms [B, 4, N] -> [B, 2 Z]."""
        code: Tensor = self.encoder(torch.cat([form.flatten(1), given], dim=1))
        return code

    def decode(self, code: Tensor, given: Tensor) -> Tensor:
        """Forms, [B, Z] -> [B, 4, N] as in `contours.CURVES`."""
        form: Tensor = self.decoder(torch.cat([code, given], dim=1)).view(len(code), len(CURVES), -1)
        return form

    def sample(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """One map a seed, [B, 1, S, S] in [-1, 1], positive inside one connected outline without holes, as `data.layouts` makes them.

        The area is that of the size asked for, and the centre the one asked for where the outline then lies inside the grid.
        """
        if condition is None:
            condition = Condition.unstated(len(seeds), num_labels=len(self.spec.findings))
        with torch.inference_mode():
            draws, device = Draws(seeds), next(self.parameters()).device
            finding, left, stated = asked_of(condition.to("cpu"), draws)
            pose = self.poses.draw(finding.to(device), left.to(device), stated, draws)
            given = self.condition_vector(condition.labels.to(device), left.to(device), pose.to(device))
            mean, log_variance = self.prior(given).chunk(2, dim=1)
            code = mean + (log_variance / 2).exp() * draws.normal(self.config.latent_size).to(mean)
            forms = self.decode(code, given).double().cpu().numpy()
        maps = [laid_out(Contour(pose=place, form=form), cells=self.config.image_size)
                for place, form in zip(_unscaled(pose), forms, strict=True)]
        return torch.from_numpy(np.stack(maps))[:, None].to(device)

    def draw(self, condition: Condition | None, seeds: Sequence[int], settings: SampleSettings | None = None) -> Tensor:
        """Masks [B, 1, S, S] of 0 and 1: the cells inside the outlines that `sample` draws."""
        return (self.sample(condition, seeds, settings) > 0).float()

    def load_matching(self, base: nn.Module) -> None:
        """Start from the weights of `base`, a layout model of the same shape; findings are matched by name. Raises UsageError."""
        load_matching(self, base, what="a model of layouts")

    def named_axes(self) -> dict[str, Names]:
        """Weights with an axis that means findings."""
        statements = [f"{half} {name}" for half in ("stated", "value") for name in self.spec.findings]
        return {"labels.linear.weight": (1, statements),
                **dict.fromkeys(("poses.weights", "poses.means", "poses.factors"), (0, self.spec.findings))}

    def zero_unvaried_inputs(self, varied: Condition) -> None:
        """See `HasConditionInputs`."""
        self.labels.zero_unvaried_inputs(varied.labels[0].isnan())


class PoseMixtures(nn.Module):
    """The density of poses: a mixture of Gaussians for each finding and side."""

    def __init__(self, findings: int, *, components: int) -> None:
        super().__init__()
        shape = (findings, 2, components)
        self.weights = nn.Parameter(torch.zeros(shape))  # logarithms
        self.means = nn.Parameter(torch.randn(*shape, len(POSE)) / PACE)
        self.factors = nn.Parameter(torch.zeros(*shape, len(POSE), len(POSE)))

    def gaussians(self, finding: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of weights [B, M], means [B, M, P] and lower triangular factors of covariances [B, M, P, P]."""
        weights, means, raw = (part[finding, left].float() * PACE for part in (self.weights, self.means, self.factors))
        diagonal = F.softplus(raw.diagonal(dim1=-2, dim2=-1)) + LEAST_SPREAD
        return weights.log_softmax(1), means, raw.tril(-1) + torch.diag_embed(diagonal)

    def log_density(self, pose: Tensor, finding: Tensor, left: Tensor) -> Tensor:
        """Of poses [B, P] -> [B]."""
        weights, means, factors = self.gaussians(finding, left)
        return torch.logsumexp(weights + _log_normal(pose[:, None].float() - means, factors), dim=1)

    def draw(self, finding: Tensor, left: Tensor, stated: Tensor, draws: Draws) -> Tensor:
        """Poses [B, P] on the CPU; numbers of `stated` [B, P] that are not NaN are kept, and the others drawn given them."""
        chance, noise = draws.uniform(), draws.normal(len(POSE))
        rows = [part.cpu() for part in self.gaussians(finding, left)]
        return torch.stack([_pose_given(*row) for row in zip(*rows, stated, chance, noise, strict=True)])


def _pose_given(weights: Tensor, means: Tensor, factors: Tensor, stated: Tensor, chance: Tensor, noise: Tensor) -> Tensor:
    """One pose [P] of a mixture, given its stated numbers."""
    known = ~stated.isnan()
    weights, means, factors, stated, noise = (part.double() for part in (weights, means, factors, stated, noise))
    covariances = factors @ factors.mT + 1e-6 * torch.eye(len(POSE), dtype=torch.float64)
    if known.any():
        among = torch.linalg.cholesky(covariances[:, known][:, :, known])
        weights = (weights + _log_normal(stated[known] - means[:, known], among)).log_softmax(0)
    number = min(int((weights.exp().cumsum(0) < chance).sum()), len(weights) - 1)
    mean, covariance, pose = means[number], covariances[number], stated.clone()
    if not known.all():
        cross = covariance[~known][:, known]
        gain = torch.linalg.solve(covariance[known][:, known], cross.mT).mT
        left_over = torch.linalg.cholesky(covariance[~known][:, ~known] - gain @ cross.mT)
        drawn = mean[~known] + gain @ (stated[known] - mean[known]) + left_over @ noise[~known]
        pose[~known] = drawn.clamp(-FARTHEST, FARTHEST)
    return pose.float()


def _log_normal(difference: Tensor, factor: Tensor) -> Tensor:
    """Log density of Gaussians at a difference [..., P] from their means, with factors [..., P, P] -> [...]."""
    scaled = torch.linalg.solve_triangular(factor, difference[..., None], upper=False)[..., 0]
    density: Tensor = -scaled.square().sum(-1) / 2 - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return density - difference.shape[-1] / 2 * math.log(2 * math.pi)


def asked_of(condition: Condition, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Number of the finding [B], whether it is on the left [B], and the numbers of the pose that are stated [B, P], others NaN.

    One finding at random of those that are present, or else of those not absent; a random side where none is stated.
    """
    chance, labels = draws.uniform(2), condition.labels
    present = labels > 0
    possible = torch.where(present.any(1, keepdim=True), present, labels.isnan())
    possible |= ~possible.any(1, keepdim=True)
    order = possible.float().cumsum(1)
    finding = (order <= (chance[:, :1] * order[:, -1:])).sum(1).clamp(max=labels.shape[1] - 1)
    stated = torch.full((len(labels), len(POSE)), math.nan)
    if condition.lesions is None:
        return finding, (chance[:, 1] < 0.5).long(), stated
    lesion = condition.lesions.float().nanmean(1)  # whichever finding it is stated of
    left = torch.where(lesion[:, LEFT].isnan(), chance[:, 1] < 0.5, lesion[:, LEFT] > 0.5).long()
    stated[:, 0] = lesion[:, SIZE].clamp(min=1e-3).log()
    stated[:, 1:3] = lesion[:, [X, Y]]
    return finding, left, _scaled(stated)


def _scaled(pose: Tensor) -> Tensor:
    return (pose - pose.new_tensor(USUAL)) / pose.new_tensor(SCALE)


def _unscaled(pose: Tensor) -> NDArray[np.float64]:
    return np.asarray(pose.double().numpy() * SCALE + USUAL, dtype=np.float64)


class LayoutObjective(Objective[LayoutModel]):
    """Minus the evidence lower bound of forms, and minus the log density of poses, in nats an outline."""

    phases = (Phase(name="elbo", updates=("model",), betas=(0.9, 0.999)),)

    def __init__(self, model: LayoutModel, config: LayoutObjectiveConfig) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"model": model})
        self.read: dict[bytes, Contour] = {}  # by digest of the map: every outline is seen many times

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model, draws = self.model, batch.draws
        finding, left, _ = (part.to(batch.images.device) for part in asked_of(batch.condition.to("cpu"), draws))
        pose, form = self._contours(batch.images)
        labels = batch.condition.labels.masked_fill(draws.uniform(1) < self.config.label_dropout, math.nan)
        given = model.condition_vector(labels, left, pose)
        mean, log_variance = model.encode(form, given).float().chunk(2, dim=1)
        prior_mean, prior_log_variance = model.prior(given).float().chunk(2, dim=1)
        code = mean + (log_variance / 2).exp() * draws.normal(model.config.latent_size)
        error = (model.decode(code, given).float() - form) / self.config.noise
        spread = (log_variance.exp() + (mean - prior_mean).square()) / prior_log_variance.exp()
        divergence = prior_log_variance - log_variance + spread - 1
        damage = 0 * batch.images.flatten(1).sum(1)  # NaN for a map of NaN, whose contour would be that of an empty one
        return {"reconstruction": error.square().sum((1, 2)) / 2 + damage, "divergence": divergence.sum(1) / 2,
                "pose": -model.poses.log_density(pose, finding, left)}

    def _contours(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Poses [B, P], in units of `SCALE` from `USUAL`, and forms [B, 4, N] of maps [B, 1, S, S]."""
        found = []
        for grid in maps[:, 0].float().cpu().numpy():
            digest = hashlib.sha256(grid.tobytes()).digest()
            if digest not in self.read:
                self.read[digest] = contour_of(np.nan_to_num(grid, nan=-1.0), points=self.model.config.form_size)
            found.append(self.read[digest])
        poses = _scaled(torch.from_numpy(np.stack([one.pose for one in found])))
        forms = torch.from_numpy(np.stack([one.form for one in found]))
        return poses.to(maps), forms.to(maps)


FAMILY = Family(model_config=LayoutConfig, objective_config=LayoutObjectiveConfig, build_model=LayoutModel, build_objective=LayoutObjective,
                conditions=lambda config: CONDITIONS, can=(LayoutMaker, HasConditionInputs, StartsFromBase))
