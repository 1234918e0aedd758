"""Refining: patches change, not a bit of the rest does, and no seam shows, unlike after a hard paste."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from synthorax.editing.lesion_refinement import Patch, RefineConfig, blend_weight, lesion_patch, refine
from synthorax.errors import UsageError
from synthorax.families.denoising.model import DiffusionModel
from synthorax.protocols import Condition, SampleSettings
from synthorax.types import Lesion
from trainings import FINDINGS, SITES, fresh_objective, randomised, smallest, super_resolution

CONFIG = RefineConfig(level=0.5, least_px=24)
PLAIN = SampleSettings(steps=3, guidance=1.0)
seam = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "studies" / "cascade.py"))["seam"]
NODULE = Lesion(finding="Mass", box=(0.4, 0.4, 0.1, 0.1))
SIZE = 64


@pytest.fixture
def model() -> DiffusionModel:
    """One that changes whatever it is given: its weights are random."""
    made = fresh_objective(super_resolution(f"model.image_size={SIZE}", "objective.crop=32")).model
    randomised(made)
    assert isinstance(made, DiffusionModel)
    return made.eval()


def images(num: int = 2) -> Tensor:
    """Smooth images with fine noise, [num, 1, 64, 64]."""
    rows = torch.linspace(-0.6, 0.4, SIZE)[:, None]
    return rows + 0.02 * torch.randn(num, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def outside(patches: tuple[Patch, ...]) -> Tensor:
    keep = torch.ones(SIZE, SIZE, dtype=torch.bool)
    for top, left, side in patches:
        keep[top:top + side, left:left + side] = False
    return keep


def brightening() -> DiffusionModel:
    """A model that makes patches brighter, with noise as fine as that of `images`: what it estimates is a constant."""
    made = fresh_objective(super_resolution(f"model.image_size={SIZE}", "objective.crop=32", "model.sigma_data=0.02")).model
    assert isinstance(made, DiffusionModel)
    torch.nn.init.constant_(made.network.last[-1].bias, 10.0)  # type: ignore[index, union-attr, arg-type]
    return made.eval()


def test_only_the_patch_changes_and_it_has_no_seam() -> None:
    """A hard paste of the same patch has one, so the test would tell."""
    model, before = brightening(), images()
    made = refine(model, before, [[NODULE], [NODULE]], seeds=[1, 2], settings=PLAIN, config=CONFIG)
    for image, new, patches in zip(before[:, 0], made.images[:, 0], made.patches, strict=True):
        ((top, left, side),) = patches
        assert torch.equal(new[outside(patches)], image[outside(patches)])
        inner = (slice(top + side // 4, top + side - side // 4), slice(left + side // 4, left + side - side // 4))
        assert (new - image)[inner].mean() > 0.1, "the middle of the patch is another one"
        assert seam(new, patches[0]) < 1.1
        hard = image.clone()
        shown = Condition.unstated(1, num_labels=len(FINDINGS), num_sites=len(SITES))
        old = image[None, None, top:top + side, left:left + side]
        hard[top:top + side, left:left + side] = model.resample(old, replace(shown, image=old), [1], PLAIN, level=CONFIG.level)[0, 0]
        assert seam(hard, patches[0]) > 2
    assert seam(before[0, 0], made.patches[0][0]) < 1.1, "and an image that nobody touched has none"
    assert torch.equal(before, images()), "the images that were given are left alone"


def test_an_image_depends_on_itself_and_its_seed_alone(model: DiffusionModel) -> None:
    before, other = images(), Lesion(finding="Mass", x=0.8, y=0.2, size=0.2)
    condition = Condition(labels=torch.tensor([[0.0, 1.0], [math.nan, 1.0]]), attributes=torch.full((2, 7), math.nan))
    both = refine(model, before, [[NODULE, other], []], seeds=[1, 2], condition=condition, settings=PLAIN, config=CONFIG)
    assert torch.equal(both.images[1], before[1]) and both.patches[1] == ()
    alone = refine(model, before[:1], [[NODULE, other]], seeds=[1], condition=condition[:1], settings=PLAIN, config=CONFIG)
    assert torch.equal(alone.images[0], both.images[0])
    for change in (refine(model, before[:1], [[NODULE, other]], seeds=[3], condition=condition[:1], settings=PLAIN, config=CONFIG),
                   refine(model, before[:1], [[NODULE, other]], seeds=[1], condition=condition[1:], settings=PLAIN, config=CONFIG)):
        assert not torch.equal(change.images, alone.images)


def test_a_low_level_changes_little(model: DiffusionModel) -> None:
    """With the noise of a grey level a trained model gives the image back; a network of small weights is near enough to one."""
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.mul_(0.1)
    changes = [(refine(model, images(), [[NODULE]] * 2, seeds=[1, 2], settings=PLAIN, config=replace(CONFIG, level=level)).images
                - images()).abs().max().item() for level in (0.01, 0.1, 0.5)]
    assert changes[0] < 0.05 < changes[1] < changes[2]


def test_a_patch_holds_its_lesion_and_lies_in_the_image() -> None:
    for x, y, extent in ((0.5, 0.5, 0.1), (0.05, 0.95, 0.1), (0.6, 0.3, 0.4), (0.5, 0.5, 0.9)):
        lesion = Lesion(finding="Mass", box=(x - extent / 2, y - extent / 2, extent, extent))
        top, left, side = lesion_patch(lesion, size=256, multiple=32, config=RefineConfig())
        assert top % 32 == left % 32 == side % 32 == 0 and min(top, left) >= 0 and max(top, left) + side <= 256
        assert side >= 64 and top <= y * 256 <= top + side and left <= x * 256 <= left + side
        if min(x, y) - extent / 2 >= 0 and max(x, y) + extent / 2 <= 1:
            assert left <= (x - extent / 2) * 256 and (x + extent / 2) * 256 <= left + side
            assert top <= (y - extent / 2) * 256 and (y + extent / 2) * 256 <= top + side
    centre = Lesion(finding="Mass", x=0.5, y=0.5, size=0.5)  # covers a sixteenth of the image: a square of a quarter of its side
    assert lesion_patch(centre, size=256, multiple=32, config=RefineConfig()) == (64, 64, 128)
    with pytest.raises(UsageError, match="neither a box nor a centre"):
        lesion_patch(Lesion(finding="Mass", side="left"), size=256, multiple=32, config=RefineConfig())
    with pytest.raises(UsageError, match="smaller than the smallest patch"):
        lesion_patch(centre, size=16, multiple=32, config=RefineConfig())


def test_the_blend_rises_from_nothing_to_all_and_not_at_the_edge_of_the_image() -> None:
    weight = blend_weight((32, 0, 64), size=128, blend_px=16)
    assert (weight[0] == 0).all() and (weight[-1] == 0).all() and (weight[:, -1] == 0).all()
    assert (weight[16:48, :48] == 1).all(), "the left border is that of the image"
    middle = weight[:17, 20]
    assert bool((middle.diff() > 0).all()) and middle[8].item() == pytest.approx(0.5) and middle.diff().max() < 1.6 / 16


def test_models_that_see_no_image_and_requests_that_do_not_fit_are_refused(model: DiffusionModel) -> None:
    plain = fresh_objective(smallest("diffusion")).model
    assert isinstance(plain, DiffusionModel)
    with pytest.raises(UsageError, match="part image"):
        refine(plain, images(), [[], []], seeds=[1, 2])
    with pytest.raises(UsageError, match="one of each"):
        refine(model, images(), [[NODULE]], seeds=[1, 2])
