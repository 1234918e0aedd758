"""Outlines of findings in coordinates of the lungs, drawn by a small conditional variational autoencoder.

The first of two stages, as in label-first synthesis: outlines here, images of them by insertion or by a model conditioned on masks.

An outline is parted into its pose (size, centre, ratio of width to height, fill of its box) and its form, the mask in that box (`Posed`).
Forms are coded (Kingma and Welling 2014); the prior of a code is a Gaussian given finding, side and pose, learned along with the codes, so
that it lies where the codes of outlines lie (Tomczak and Welling 2018; Dai and Wipf 2019). Poses have a density of their own, a Gaussian
mixture for each finding and side, which is conditioned in closed form on whatever is asked for. A drawn form is laid out so that its area
is the one asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from synthorax.capabilities import HasConditionInputs, LayoutMaker, StartsFromBase
from synthorax.config import AtLeastOne, Fraction, NotNegative, Side, Width
from synthorax.families.weight_matching import Names, load_matching
from synthorax.nets.embedding import StatementEmbedding
from synthorax.outline_grid import MARGIN, SUPERSAMPLING, inside_of, size_of, soft_outline
from synthorax.protocols import LESION_PROPERTIES, Batch, Condition, Family, ModelSpec, Objective, Phase, SampleSettings
from synthorax.rng import Draws

CONDITIONS = ("labels", "lesions")
LEFT, SIZE, X, Y = (LESION_PROPERTIES.index(name) for name in ("left", "size", "x", "y"))
POSE = ("log size", "x", "y", "log ratio", "log fill")
"""x and y of the centre in parts of the grid; ratio of width to height; fill is the area in parts of that of the outline's box"""
USUAL, SCALE = (-1.3, 0.5, 0.5, 0.0, -0.5), (0.6, 0.15, 0.2, 0.6, 0.4)
"""what is subtracted from a pose, and what it is then divided by, so that it is of order 1"""
FARTHEST = 3.5
"""of such a number: poses beyond are drawn back to it"""
BORDER = 1 / 8
"""of the sides of an outline's box, by which the grid of its form is wider on each side"""
LEAST_SPREAD = 0.05
"""of a Gaussian of the mixture"""
PACE = 10.0
"""how many times faster the parameters of the mixtures move than weights do"""
FORM_POINTS = 2
"""points of a cell's side at which a form is read"""
ROUNDS, CLOSE = 8, 0.01
"""corrections of the area of a drawn outline at most, and the part of its size that is close enough"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutConfig:
    """Shape of the autoencoder."""

    image_size: Side = 64
    """cells of a side of the grid of outlines"""
    form_size: Side = 32
    """cells of a side of the grid of forms"""
    latent_size: Width = 16
    """numbers of a form's code"""
    width: Width = 192
    """features of a layer"""
    embedding: Width = 32
    """width of the embedding of findings"""
    components: AtLeastOne = 6
    """Gaussians in the mixture of poses of each finding and side"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutObjectiveConfig:
    """Weights of the bound."""

    beta: NotNegative = 0.2
    """weight of the divergence between a form's code and its prior; 1 is the evidence lower bound, at which thin forms blur away"""
    label_dropout: Fraction = 0.05
    """probability of dropping the findings from what codes and forms are conditioned on"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Posed:
    """Outlines parted into pose and form."""

    pose: Tensor
    """[B, P] as in `POSE`, in units of `SCALE` from `USUAL`"""
    form: Tensor
    """[B, 1, F, F] in [0, 1]: how much of each cell of the outline's own box, widened by `BORDER`, is inside"""


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
        self.encoder = nn.Sequential(nn.Linear((c.form_size // 2) ** 2 + given, c.width), nn.SiLU(), nn.Linear(c.width, 2 * c.latent_size))
        self.prior = nn.Sequential(nn.Linear(given, c.embedding * 2), nn.SiLU(), nn.Linear(c.embedding * 2, 2 * c.latent_size))
        self.decoder = nn.Sequential(nn.Linear(c.latent_size + given, c.width), nn.SiLU(), nn.Linear(c.width, c.width), nn.SiLU(),
                                     nn.Linear(c.width, c.form_size**2))
        self.poses = PoseMixtures(findings, components=c.components)

    def condition_vector(self, labels: Tensor, left: Tensor, pose: Tensor) -> Tensor:
        """What codes and forms are conditioned on, from labels [B, K], sides [B] (1 is left) and poses [B, P] -> [B, G]."""
        return torch.cat([self.labels(labels.to(pose)), left[:, None].to(pose) * 2 - 1, pose], dim=1)

    def encode(self, form: Tensor, given: Tensor) -> Tensor:
        """Mean and logarithm of the variance of the code of forms [B, 1, F, F] -> [B, 2 Z]."""
        code: Tensor = self.encoder(torch.cat([F.avg_pool2d(form, 2).flatten(1) * 2 - 1, given], dim=1))
        return code

    def decode(self, code: Tensor, given: Tensor) -> Tensor:
        """Log odds that a point is inside, [B, Z] -> [B, 1, F, F]; blurred a little, so that edges are smooth."""
        side = self.config.form_size
        return _blurred(self.decoder(torch.cat([code, given], dim=1)).view(-1, 1, side, side))

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
            odds = self.decode(code, given).float().cpu().numpy()[:, 0]
        maps = [laid_out(one, place, cells=self.config.image_size) for one, place in zip(odds, _unscaled(pose), strict=True)]
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


def _blurred(maps: Tensor) -> Tensor:
    """Convolved with (1, 2, 1) / 4 across and down."""
    kernel = maps.new_tensor([0.25, 0.5, 0.25])
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 3, 1)), kernel.view(1, 1, 1, 3))


def posed(maps: Tensor, *, form_size: int) -> Posed:
    """Pose and form of outlines, maps [B, 1, S, S] that are positive inside; a map without an inside counts as the box of the grid."""
    low, high = zip(*(_extent(maps[:, 0].amax(axis)) for axis in (1, 2)), strict=True)  # x, then y
    middle, sides = [(torch.stack(high, 1) + torch.stack(low, 1)) / 2, torch.stack(high, 1) - torch.stack(low, 1)]
    wide = sides * (1 + 2 * BORDER)
    points = form_size * FORM_POINTS
    places = (torch.arange(points, device=maps.device) + 0.5) / points - 0.5
    x, y = (middle[:, axis, None] + wide[:, axis, None] * places for axis in (0, 1))
    grid = torch.stack([x[:, None, :].expand(-1, points, -1), y[:, :, None].expand(-1, -1, points)], dim=-1) * 2 - 1
    inside = (F.grid_sample(maps, grid.to(maps), align_corners=False, padding_mode="border") > 0).float()
    form = F.avg_pool2d(inside, FORM_POINTS)
    mass = form.sum((1, 2, 3)).clamp(min=1e-3)
    cells = (torch.arange(form_size, device=maps.device) + 0.5) / form_size - 0.5
    centre = torch.stack([(form.sum((1, axis)) * cells).sum(1) / mass for axis in (2, 3)], dim=1)
    area = mass / form_size**2 * wide.prod(1)
    numbers = [(area.sqrt() * (1 + 2 * MARGIN)).log()[:, None], middle + centre * wide, (sides[:, :1] / sides[:, 1:]).log(),
               (mass / form_size**2 * (1 + 2 * BORDER)**2).log()[:, None]]
    return Posed(pose=_scaled(torch.cat(numbers, dim=1).float()), form=form)


def _extent(profile: Tensor) -> tuple[Tensor, Tensor]:
    """Where a profile [B, S] is positive, from and to, in parts of its length [B]; all of it where it never is."""
    fine = F.interpolate(profile[:, None].float(), scale_factor=8, mode="linear", align_corners=False)[:, 0] > 0
    fine |= ~fine.any(1, keepdim=True)
    order = torch.arange(fine.shape[1], device=fine.device)
    first = torch.where(fine, order, fine.shape[1]).amin(1)
    last = torch.where(fine, order, -1).amax(1) + 1
    return first / fine.shape[1], last / fine.shape[1]


def laid_out(odds: NDArray[np.float32], pose: NDArray[np.float64], *, cells: int) -> NDArray[np.float32]:
    """A form, log odds [F, F], as a map [S, S] of `data.layouts`, with the area, centre, ratio and fill of a pose as in `POSE`.

    Only its largest connected part counts, without holes. All outside where no point of the form is inside.
    """
    field = ndimage.zoom(odds, 8, order=1, grid_mode=True, mode="nearest")
    part = np.clip(math.exp(pose[4]) / (1 + 2 * BORDER)**2, 0.005, 1 / (1 + 2 * BORDER)**2)
    inside = _cut(field, float(part))
    if not inside.any():
        return np.full((cells, cells), -1.0, dtype=np.float32)
    rows, columns = ((axis + 0.5) / len(field) - 0.5 for axis in np.nonzero(inside))  # from the middle, in parts of the wide box
    spans = np.array([[columns.min(), columns.max()], [rows.min(), rows.max()]]) + 0.5 / len(field) * np.array([-1, 1])
    centre, fill = np.array([columns.mean(), rows.mean()]), float(inside.mean())
    asked = min(math.exp(pose[0]), 0.98 * (1 + 2 * MARGIN))
    size = asked / (1 + 2 * MARGIN)
    best, error = np.full((cells, cells), -1.0, dtype=np.float32), math.inf
    low, high = 0.0, math.inf
    for _ in range(ROUNDS):  # the grid cuts off, and small outlines are measured coarsely
        sides = _sides(size, fill=fill, ratio=math.exp(pose[3]), spans=spans)
        middle = np.clip(pose[1:3] - centre * sides, -spans[:, 0] * sides, np.maximum(-spans[:, 0] * sides, 1 - spans[:, 1] * sides))
        made = soft_outline(_rasterised(inside, middle, sides, points=cells * SUPERSAMPLING), cells=cells)
        made = np.where(_one_part(made > 0), np.maximum(np.abs(made), 1e-3), -np.abs(made))  # what is thinner than a cell may part
        factor = asked / size_of(inside_of(made)) if (made > 0).any() else 1.5
        if (made > 0).any() and abs(factor - 1) < error:
            best, error = made, abs(factor - 1)
        if error < CLOSE:
            break
        low, high = (max(low, size), high) if factor > 1 else (low, min(high, size))
        size = size * factor if low < size * factor < high else math.sqrt(low * high)
    return best


def _cut(field: NDArray[np.float32], part: float) -> NDArray[np.bool_]:
    """The part of a field above the level at which its largest connected part covers `part` of it; at even odds, thin forms would break."""
    low, high, inside = float(np.quantile(field, max(0.0, 1 - 5 * part))), float(field.max()), field > np.quantile(field, 1 - part)
    inside = _one_part(inside)
    for _ in range(7):
        if abs(float(inside.mean()) / part - 1) < 0.05:
            break
        level = (low + high) / 2
        inside = _one_part(field > level)
        low, high = (low, level) if inside.mean() < part else (level, high)
    return inside


def _sides(size: float, *, fill: float, ratio: float, spans: NDArray[np.float64]) -> NDArray[np.float64]:
    """Width and height of the wide box in parts of the grid, [2]; no wider nor higher than lets the outline lie in the grid."""
    area = size**2 / fill
    longest = 1 / (spans[:, 1] - spans[:, 0])
    width = min(math.sqrt(area * ratio), longest[0])
    height = min(area / width, longest[1])
    return np.array([min(area / height, longest[0]), height])


def _rasterised(inside: NDArray[np.bool_], middle: NDArray[np.float64], sides: NDArray[np.float64], *, points: int) -> NDArray[np.bool_]:
    """A mask in its wide box, laid into the whole grid of so many points a side."""
    places = (np.arange(points) + 0.5) / points
    columns, rows = (((places - middle[axis]) / sides[axis] + 0.5) * len(inside) - 0.5 for axis in (0, 1))
    values = ndimage.map_coordinates(inside.astype(np.float32), np.meshgrid(rows, columns, indexing="ij"), order=1, cval=0.0)
    return _one_part(values >= 0.5)


def _one_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask, its holes filled."""
    parts, count = ndimage.label(mask)
    if count > 1:
        mask = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(mask), dtype=np.bool_)


class LayoutObjective(Objective[LayoutModel]):
    """Minus the evidence lower bound of forms, and minus the log density of poses, in nats an outline."""

    phases = (Phase(name="elbo", updates=("model",), betas=(0.9, 0.999)),)

    def __init__(self, model: LayoutModel, config: LayoutObjectiveConfig) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.players = nn.ModuleDict({"model": model})

    def losses(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        model, draws = self.model, batch.draws
        finding, left, _ = (part.to(batch.images.device) for part in asked_of(batch.condition.to("cpu"), draws))
        outlines = posed(batch.images, form_size=model.config.form_size)
        labels = batch.condition.labels.masked_fill(draws.uniform(1) < self.config.label_dropout, math.nan)
        given = model.condition_vector(labels, left, outlines.pose)
        mean, log_variance = model.encode(outlines.form, given).float().chunk(2, dim=1)
        prior_mean, prior_log_variance = model.prior(given).float().chunk(2, dim=1)
        code = mean + (log_variance / 2).exp() * draws.normal(model.config.latent_size)
        odds = model.decode(code, given).float()
        spread = (log_variance.exp() + (mean - prior_mean).square()) / prior_log_variance.exp()
        divergence = prior_log_variance - log_variance + spread - 1
        reconstruction = F.binary_cross_entropy_with_logits(odds, outlines.form, reduction="none").sum((1, 2, 3))
        damage = 0 * batch.images.flatten(1).sum(1)  # NaN for a map of NaN, whose form would be that of an empty one
        return {"reconstruction": reconstruction + damage,
                "divergence": self.config.beta * divergence.sum(1) / 2,
                "pose": -model.poses.log_density(outlines.pose, finding, left)}


FAMILY = Family(model_config=LayoutConfig, objective_config=LayoutObjectiveConfig, build_model=LayoutModel, build_objective=LayoutObjective,
                conditions=lambda config: CONDITIONS, can=(LayoutMaker, HasConditionInputs, StartsFromBase))
