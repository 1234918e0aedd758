"""The model of outlines: pose and form make the outline again, poses follow what is stated, and samples are as large as was asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from synthorax.data.layouts import Layout, shape_of
from synthorax.families.autoencoders.contours import POSE, Contour, contour_of, laid_out
from synthorax.families.autoencoders.layout import LayoutModel, PoseMixtures
from synthorax.outline_grid import SUPERSAMPLING, soft_outline
from synthorax.protocols import LESION_PROPERTIES, Condition
from synthorax.rng import Draws
from trainings import fresh_objective, randomised, smallest

CELLS = 128
POINTS = (np.arange(CELLS * SUPERSAMPLING) + 0.5) / (CELLS * SUPERSAMPLING)
FORMS = {"disc": (POINTS[None] - 0.4) ** 2 + (POINTS[:, None] - 0.7) ** 2 < 0.15**2,
         "small disc": (POINTS[None] - 0.62) ** 2 + (POINTS[:, None] - 0.3) ** 2 < 0.02**2,
         "thin ring": abs(np.hypot(POINTS[None] - 0.5, POINTS[:, None] - 0.6) - 0.4) + 9 * (POINTS[:, None] > 0.5) < 0.02,
         "wide": (abs(POINTS[None] - 0.5) < 0.4) & (abs(POINTS[:, None] - 0.8) < 0.06)}


@pytest.mark.parametrize("name", FORMS)
def test_pose_and_form_make_the_outline_again(name: str) -> None:
    grid = soft_outline(FORMS[name], cells=CELLS)
    contour = contour_of(grid, points=24)
    pose = contour.pose
    rows, columns = np.nonzero(FORMS[name])
    assert math.exp(pose[0]) == pytest.approx(shape_of(Layout(finding="", side="", grid=grid)).size, rel=0.05)
    assert pose[1:3] == pytest.approx([POINTS[columns].mean(), POINTS[rows].mean()], abs=0.005)
    assert abs(pose[4]) <= math.pi / 2
    assert overlap(laid_out(contour, cells=CELLS), grid) > 0.85


def overlap(made: NDArray[np.float32], grid: NDArray[np.float32]) -> float:
    """Intersection over union of the insides of two maps."""
    return float(((made > 0) & (grid > 0)).sum() / ((made > 0) | (grid > 0)).sum())


def parts(grid: NDArray[np.float32]) -> int:
    """Connected parts of the inside of a map; what touches by a corner is connected."""
    return int(ndimage.label(grid > 0, structure=np.ones((3, 3)))[1])


def test_a_crescent_along_the_chest_wall_stays_one() -> None:
    """Five cells thick in the middle, and half of the way around: it fills a quarter of its convex hull."""
    x, y = POINTS[None] - 0.4, POINTS[:, None] - 0.5
    crescent = (np.hypot(x, y) < 0.4) & (np.hypot(x + 0.03, y - 0.03) > 0.4)
    grid = soft_outline(crescent, cells=CELLS)
    made = laid_out(contour_of(grid, points=24), cells=CELLS)
    real, drawn = (shape_of(Layout(finding="", side="", grid=one)).solidity for one in (grid, made))
    assert overlap(made, grid) > 0.75 and real < 0.4 and drawn == pytest.approx(real, abs=0.1)


def test_the_length_between_the_tips_is_as_stated_and_its_angle_is_to_the_direction_around_the_centre() -> None:
    grid = soft_outline((abs(POINTS[None] - 0.6) < 0.3) & (abs(POINTS[:, None] - 0.15) < 0.01), cells=CELLS)
    pose = contour_of(grid, points=24).pose
    around = np.array([3.0 - 0.15, 0.6 - 0.1])
    assert math.exp(pose[3]) == pytest.approx(0.6 / math.sqrt(0.6 * 0.02), rel=0.05)
    assert pose[4] == pytest.approx(-math.atan2(around[1], around[0]), abs=0.05), "from the mediastinum to the wall"


def test_the_larger_of_two_outlines_is_read_and_a_map_without_one_counts_as_the_whole_grid() -> None:
    two = FORMS["disc"] | FORMS["small disc"]
    one, both = (contour_of(soft_outline(form, cells=CELLS), points=8).pose for form in (FORMS["disc"], two))
    assert both == pytest.approx(one, abs=0.01)
    assert contour_of(np.full((CELLS, CELLS), -1.0, dtype=np.float32), points=8).pose[:3] == pytest.approx(
        [math.log(1.4), 0.5, 0.5])


def test_edges_that_cross_leave_one_outline() -> None:
    thickness = np.cos(np.linspace(0.0, 9.0, 24))
    form = np.stack([np.zeros(24), np.zeros(24), np.zeros(24), thickness])
    made = laid_out(Contour(pose=np.array([-1.5, 0.5, 0.5, 1.0, 0.3]), form=form), cells=CELLS)
    rows, columns = np.nonzero(made > 0)
    assert parts(made) == 1
    assert math.hypot(np.ptp(rows), np.ptp(columns)) / CELLS > 0.7 * math.exp(-0.5) / 1.4


def test_poses_have_the_density_of_their_mixture() -> None:
    torch.manual_seed(0)
    mixtures = PoseMixtures(3, components=4)
    with torch.no_grad():
        mixtures.weights.normal_(std=0.1)
        mixtures.factors.normal_(std=0.1)
    finding, left, pose = torch.tensor([2, 0]), torch.tensor([1, 0]), torch.randn(2, len(POSE))
    weights, means, factors = mixtures.gaussians(finding, left)
    expected = MixtureSameFamily(Categorical(logits=weights), MultivariateNormal(means, scale_tril=factors)).log_prob(pose)
    torch.testing.assert_close(mixtures.log_density(pose, finding, left), expected, rtol=1e-4, atol=1e-4)


def test_a_stated_size_is_kept_and_the_rest_of_the_pose_follows_it() -> None:
    """Two Gaussians apart, large low outlines and small high ones: the size says which."""
    mixtures = PoseMixtures(1, components=2)
    with torch.no_grad():
        mixtures.means.zero_()
        mixtures.means[0, :, 0] = torch.tensor([0.2, 0.0, 0.2, 0.0, 0.0])
        mixtures.means[0, :, 1] = torch.tensor([-0.2, 0.0, -0.2, 0.0, 0.0])
        mixtures.factors.copy_(torch.full_like(mixtures.factors, -0.9).tril().triu())
        stated = torch.full((40, len(POSE)), math.nan)
        stated[:20, 0], stated[20:, 0] = 2.0, -2.0
        nothing = torch.zeros(40, dtype=torch.long)
        poses = mixtures.draw(nothing, nothing, stated, Draws(range(40)))
        free = mixtures.draw(nothing, nothing, torch.full_like(stated, math.nan), Draws(range(40)))
    assert torch.equal(poses[:, 0], stated[:, 0])
    assert (poses[:20, 2] > 1.5).all() and (poses[20:, 2] < -1.5).all()
    assert 8 < (free[:, 2] > 0).sum() < 32 and torch.equal(free[:, 0] > 0, free[:, 2] > 0)


def sampled(sizes: list[float]) -> NDArray[np.float32]:
    model = fresh_objective(smallest("layout", "model.image_size=64", "model.form_size=24")).model.eval()
    randomised(model)
    assert isinstance(model, LayoutModel)
    condition = Condition.unstated(len(sizes), num_labels=2, num_sites=2)
    lesions = torch.full((len(sizes), 2, len(LESION_PROPERTIES)), math.nan)
    lesions[:, 0, LESION_PROPERTIES.index("size")] = torch.tensor(sizes)
    condition = Condition(labels=condition.labels, attributes=condition.attributes, lesions=lesions)
    return np.asarray(model.sample(condition, range(len(sizes)))[:, 0].numpy())


def test_samples_are_one_part_without_holes_and_as_large_as_was_asked_even_of_an_untrained_model() -> None:
    sizes = [0.15, 0.2, 0.3, 0.4, 0.5]
    for grid, size in zip(sampled(sizes), sizes, strict=True):
        assert parts(grid) == 1 and (ndimage.binary_fill_holes(grid > 0) == (grid > 0)).all()
        assert shape_of(Layout(finding="Mass", side="left", grid=grid)).size == pytest.approx(size, rel=0.1)
