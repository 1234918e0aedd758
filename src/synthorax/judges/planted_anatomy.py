"""Images whose anatomy is wrong in a known way, made of ones in which it is right: what an anatomy guard must reject.

For tests and for measuring a guard, each kind with one fixed size and place. None of these images trains anything: the judge of
plausible chests learns the same kinds from other draws, of other patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from synthorax.judges.lungs import LungMasks, boxes_of

Images = NDArray[np.uint8]
Masks = NDArray[np.bool_]


def third_lung(images: Images, organs: LungMasks) -> Images:
    """A copy of the right lung at half its size, below the heart."""
    placed = _copy(images, organs.right, zoom=0.55, to=(0.5, 0.8))
    return _pasted(images, *placed)


def one_lung(images: Images, organs: LungMasks) -> Images:
    """The left lung filled with soft tissue."""
    found = images.astype(np.float32)
    for number, mask in enumerate(organs.left):
        tissue = np.quantile(images[number], 0.75) + _mottle(images.shape[1], number)
        found[number] = np.where(mask, tissue, found[number])
    return _smoothed(found, organs.left)


def mirrored(images: Images, organs: LungMasks) -> Images:
    """Left and right exchanged."""
    return np.ascontiguousarray(images[:, :, ::-1])


def two_hearts(images: Images, organs: LungMasks) -> Images:
    """The heart once more, in the upper right lung."""
    placed = _copy(images, organs.heart, zoom=0.8, to=(0.27, 0.3))
    return _pasted(images, *placed)


def apex_cut_off(images: Images, organs: LungMasks) -> Images:
    """The upper third of the lungs above the image, and the rest moved up."""
    boxes, found = boxes_of(organs.both), images.copy()
    for number, (_, top, _, bottom) in enumerate(boxes):
        if np.isfinite(top):
            step = int(top + 0.35 * (bottom - top))
            found[number, : images.shape[1] - step], found[number, images.shape[1] - step :] = images[number, step:], images[number, -1:]
    return found


def too_large(images: Images, organs: LungMasks) -> Images:
    """The middle of the image, enlarged 1.4 times."""
    return _sampled(images, 1 / 1.4)


def too_small(images: Images, organs: LungMasks) -> Images:
    """The image at 0.6 of its size on black."""
    return _sampled(images, 1 / 0.6)


def upside_down(images: Images, organs: LungMasks) -> Images:
    """Turned by 180 degrees."""
    return np.ascontiguousarray(images[:, ::-1, ::-1])


def noise(images: Images, organs: LungMasks) -> Images:
    """Grey values of the image at random places."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(image.ravel()).reshape(image.shape) for image in images])


def limb(images: Images, organs: LungMasks) -> Images:
    """Two bones in soft tissue: a drawn forearm or lower leg, another for every image."""
    return np.stack([draw_limb(images.shape[1], number) for number in range(len(images))])


FAILURES: dict[str, Callable[[Images, LungMasks], Images]] = {
    "a third lung": third_lung, "one lung erased": one_lung, "mirrored": mirrored, "two hearts": two_hearts,
    "apices cut off": apex_cut_off, "1.4 times as large": too_large, "0.6 times as large": too_small, "upside down": upside_down,
    "noise": noise, "a limb": limb,
}
"""what is wrong -> function of images [N, S, S] with their outlines, square, 8 bits -> images of the same shape"""


def _sampled(images: Images, zoom: float) -> Images:
    matrix = torch.tensor([[zoom, 0.0, 0.0], [0.0, zoom, 0.0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, [len(images), 1, *images.shape[1:]], align_corners=False)
    moved = F.grid_sample(torch.from_numpy(images.astype(np.float32))[:, None], grid, align_corners=False)
    return np.asarray(moved[:, 0].round().clamp(0, 255).numpy().astype(np.uint8))


def _copy(images: Images, masks: Masks, *, zoom: float, to: tuple[float, float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images and masks [N, S, S] moved so that the mask's box has its centre at `to` (across, down; 0 to 1), `zoom` times as large."""
    side, matrices = images.shape[1], []
    for left, top, right, bottom in np.nan_to_num(boxes_of(masks), nan=side / 2):
        centre = [(left + right) / side - 1, (top + bottom) / side - 1]
        aim = [2 * to[0] - 1, 2 * to[1] - 1]
        matrices.append([[1 / zoom, 0, centre[0] - aim[0] / zoom], [0, 1 / zoom, centre[1] - aim[1] / zoom]])
    grid = F.affine_grid(torch.tensor(matrices, dtype=torch.float32), [len(images), 1, side, side], align_corners=False)
    both = [F.grid_sample(torch.from_numpy(one.astype(np.float32))[:, None], grid, align_corners=False)[:, 0].numpy() for one in
            (images, masks)]
    return both[0], both[1]


def _pasted(images: Images, copies: NDArray[np.float32], weight: NDArray[np.float32]) -> Images:
    return np.asarray(np.round(images + weight * (copies - images)).clip(0, 255).astype(np.uint8))


def _smoothed(images: NDArray[np.float32], masks: Masks) -> Images:
    """Images with the rim of the masks blurred."""
    blurred = F.avg_pool2d(F.pad(torch.from_numpy(images)[:, None], (2, 2, 2, 2), mode="replicate"), 5, stride=1)[:, 0].numpy()
    wide = F.max_pool2d(torch.from_numpy(masks.astype(np.float32))[:, None], 5, stride=1, padding=2)[:, 0].numpy() > 0
    return np.asarray(np.where(wide, blurred, images).round().clip(0, 255).astype(np.uint8))


def _mottle(side: int, seed: int) -> NDArray[np.float32]:
    coarse = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return np.asarray(6 * F.interpolate(coarse, size=(side, side), mode="bicubic")[0, 0].numpy())


def draw_limb(side: int, seed: int) -> Images:
    """A forearm or lower leg, [side, side]."""
    rng = np.random.default_rng(seed)
    axis = (np.arange(side) + 0.5) / side - 0.5
    x, y = np.meshgrid(axis, axis)
    angle = rng.uniform(-0.4, 0.4)
    across, along = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    tissue = np.sqrt(np.clip(1 - (across / (0.25 + 0.06 * np.cos(4 * along))) ** 2, 0, 1))
    bones = sum(np.sqrt(np.clip(1 - ((across - at) / (0.06 + 0.03 * along**2)) ** 2, 0, 1)) for at in (-0.09, 0.1))
    image = 1 - np.exp(-0.9 * tissue - 1.1 * bones) + rng.normal(0, 0.01, (side, side))
    return np.asarray((255 * image.clip(0, 1)).astype(np.uint8))
