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
from synthorax.families.autoencoders.layout import POSE, LayoutModel, PoseMixtures, _unscaled, laid_out, posed
from synthorax.outline_grid import SUPERSAMPLING, soft_outline
from synthorax.protocols import LESION_PROPERTIES, Condition
from synthorax.rng import Draws
from trainings import fresh_objective, randomised, smallest

CELLS = 64
POINTS = (np.arange(CELLS * SUPERSAMPLING) + 0.5) / (CELLS * SUPERSAMPLING)
FORMS = {"disc": (POINTS[None] - 0.4) ** 2 + (POINTS[:, None] - 0.7) ** 2 < 0.15**2,
         "small disc": (POINTS[None] - 0.62) ** 2 + (POINTS[:, None] - 0.3) ** 2 < 0.02**2,
         "thin ring": abs(np.hypot(POINTS[None] - 0.5, POINTS[:, None] - 0.6) - 0.4) + 9 * (POINTS[:, None] > 0.5) < 0.02,
         "wide": (abs(POINTS[None] - 0.5) < 0.4) & (abs(POINTS[:, None] - 0.8) < 0.06)}


@pytest.mark.parametrize("name", FORMS)
def test_pose_and_form_make_the_outline_again(name: str) -> None:
    grid = soft_outline(FORMS[name], cells=CELLS)
    outline = posed(torch.from_numpy(grid)[None, None], form_size=32)
    pose = _unscaled(outline.pose)[0]
    rows, columns = np.nonzero(FORMS[name])
    assert math.exp(pose[0]) == pytest.approx(shape_of(Layout(finding="", side="", grid=grid)).size, rel=0.05)
    assert pose[1:3] == pytest.approx([POINTS[columns].mean(), POINTS[rows].mean()], abs=0.005)
    assert math.exp(pose[3]) == pytest.approx(np.ptp(columns) / np.ptp(rows), rel=0.1)
    made = laid_out(outline.form[0, 0].numpy() - 0.5, pose, cells=CELLS) > 0
    assert (made & (grid > 0)).sum() / (made | (grid > 0)).sum() > (0.75 if name == "thin ring" else 0.85)


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
    model = fresh_objective(smallest("layout", "model.image_size=64", "model.form_size=32")).model.eval()
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
        assert ndimage.label(grid > 0)[1] == 1 and (ndimage.binary_fill_holes(grid > 0) == (grid > 0)).all()
        assert shape_of(Layout(finding="Mass", side="left", grid=grid)).size == pytest.approx(size, rel=0.05)
