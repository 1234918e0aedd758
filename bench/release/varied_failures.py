"""Real images with anatomy that is wrong, a different draw for each: what the judge of plausible chests learns from.

The guard is measured with other images: those of `judges/planted_anatomy.py`, one fixed size and place a kind, of patients that trained
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from synthorax.judges.lungs import boxes_of
from synthorax.judges.planted_anatomy import draw_limb

Image = NDArray[np.uint8]
Organs = NDArray[np.bool_]
Draw = Callable[[Image, Organs, np.random.Generator], Image]


def third_lung(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """Either lung once more, smaller, between or below the lungs."""
    return _copied(image, organs[rng.integers(2)], rng, zoom=(0.4, 0.8), across=(0.25, 0.75), down=(0.6, 0.92))


def erased_lung(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """Either lung filled with soft tissue, mottled or blurred out of the surroundings."""
    mask = _soft(organs[rng.integers(2)], rng)
    tissue = np.quantile(image, rng.uniform(0.6, 0.92)) + rng.uniform(0, 12) * _mottle(image.shape[0], rng)
    if rng.random() < 0.3:
        tissue = 0.5 * tissue + 0.5 * _blurred(image, 15)
    return _byte(image + mask * (tissue - image))


def mirrored(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """Left and right exchanged."""
    return image[:, ::-1]


def two_hearts(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """The heart once more, in either lung."""
    across = (0.18, 0.38) if rng.random() < 0.6 else (0.62, 0.82)
    return _copied(image, organs[2], rng, zoom=(0.6, 1.1), across=across, down=(0.2, 0.6))


def cut_off(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """A third of the lungs beyond one side of the image."""
    box = boxes_of((organs[0] | organs[1])[None])[0]
    if not np.isfinite(box).all():
        box = np.array([0.15, 0.1, 0.85, 0.8]) * image.shape[0]
    left, top, right, bottom = box
    part, side = rng.uniform(0.25, 0.45), int(rng.choice(4, p=[0.5, 0.16, 0.17, 0.17]))
    height, width = bottom - top, right - left
    step = [(top + part * height, 0), (-(image.shape[0] - bottom + part * height), 0), (0, left + part * width),
            (0, -(image.shape[0] - right + part * width))][side]
    return _moved(image, zoom=1.0, down=step[0], across=step[1], padding=str(rng.choice(["border", "zeros"])))


def too_large(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """A part of the image, enlarged."""
    return _moved(image, zoom=1 / rng.uniform(1.3, 1.9), down=_step(image, 0.06, rng), across=_step(image, 0.06, rng), padding="border")


def too_small(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """The image much smaller, on black or on its own rim."""
    return _moved(image, zoom=1 / rng.uniform(0.45, 0.7), down=_step(image, 0.1, rng), across=_step(image, 0.1, rng),
                  padding=str(rng.choice(["zeros", "zeros", "border"])))


def turned(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """By a quarter or a half, or top and bottom exchanged."""
    return image[::-1] if rng.random() < 0.2 else np.rot90(image, int(rng.choice([1, 2, 2, 3])))


def wrong_halves(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """Both halves the same, or each in the other's place."""
    middle, found = image.shape[1] // 2, image.copy()
    kind = rng.integers(3)
    if kind == 0:
        found[:, middle:] = image[:, :middle][:, ::-1]
    elif kind == 1:
        found[:, :middle] = image[:, middle:][:, ::-1]
    else:
        found = np.concatenate([image[:, middle:], image[:, :middle]], axis=1)
    return found


def doubled(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """Two exposures of the same chest, one moved: ribs, lungs and heart twice."""
    step = rng.uniform(0.1, 0.3) * image.shape[0] * rng.choice([-1, 1], size=2)
    other = _moved(image, zoom=rng.uniform(0.85, 1.15), down=step[0], across=step[1], padding="border")
    return _byte(0.5 * image.astype(np.float32) + 0.5 * other)


def no_body(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """Noise, clouds, or pieces of the image in disorder."""
    kind, side = rng.integers(4), image.shape[0]
    if kind == 0:
        return rng.permutation(image.ravel()).reshape(image.shape)
    if kind == 1:
        return _byte(128 + rng.uniform(15, 60) * _mottle(side, rng))
    if kind == 2:
        return _byte(rng.uniform(40, 200) + rng.uniform(0, 60) * rng.standard_normal(image.shape))
    count = int(rng.choice([2, 4, 8]))
    pieces = image.reshape(count, side // count, count, side // count).swapaxes(1, 2).reshape(count * count, side // count, -1)
    return pieces[rng.permutation(len(pieces))].reshape(count, count, side // count, -1).swapaxes(1, 2).reshape(image.shape)


def limb(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """A drawn limb, upright or lying."""
    drawn = draw_limb(image.shape[0], int(rng.integers(1 << 20, 1 << 30)))
    return drawn.T if rng.random() < 0.4 else drawn


KINDS: dict[str, Draw] = {
    "an image with a lung too many": third_lung, "an image with a lung missing": erased_lung, "a mirrored image": mirrored,
    "an image with a heart too many": two_hearts, "a chest that is cut off": cut_off, "a chest that is too large": too_large,
    "a chest that is too small": too_small, "an image that was turned": turned, "an image with a wrong half": wrong_halves,
    "two images in one": doubled, "no body": no_body, "a limb": limb,
}
"""what an image looks like -> function of an image [S, S] of 8 bits, its right lung, left lung and heart [3, S, S], and a generator"""


def harmless(image: Image, organs: Organs, rng: np.random.Generator) -> Image:
    """A part of the image replaced by itself, a little moved, in the shape of an organ: the seam of an edit, and nothing wrong.

    Without these, a judge could learn to see seams.
    """
    mask = _soft(organs[rng.integers(3)], rng)
    here = _moved(mask, zoom=1 / rng.uniform(0.3, 1.0), down=_step(image, 0.25, rng), across=_step(image, 0.25, rng), padding="zeros")
    moved = _moved(image, zoom=1.0, down=_step(image, 0.012, rng), across=_step(image, 0.012, rng), padding="border").astype(np.float32)
    return _byte(image + here * (moved * rng.uniform(0.95, 1.05) - image))


def _step(image: Image, most: float, rng: np.random.Generator) -> float:
    """A move of at most this part of the image's side, in pixels."""
    return float(image.shape[0] * rng.uniform(-most, most))


def _copied(image: Image, mask: NDArray[np.bool_], rng: np.random.Generator, *, zoom: tuple[float, float], across: tuple[float, float],
            down: tuple[float, float]) -> Image:
    side = image.shape[0]
    left, top, right, bottom = np.nan_to_num(boxes_of(mask[None])[0], nan=side / 2)
    size = 1 / rng.uniform(*zoom)
    step = [(middle - side / 2) - size * (rng.uniform(*to) * side - side / 2)
            for middle, to in (((top + bottom) / 2, down), ((left + right) / 2, across))]
    copy, weight = (_moved(one, zoom=size, down=step[0], across=step[1], padding="zeros") for one in (image, _soft(mask, rng)))
    return _byte(image + rng.uniform(0.75, 1) * weight * (copy.astype(np.float32) - image))


def _moved(image: NDArray[np.generic], *, zoom: float, down: float, across: float, padding: str) -> NDArray[np.generic]:
    """Pixel `c + zoom * (p - c) + step` of an image [S, S] at every pixel p, c the centre; `zoom` above 1 shows more."""
    side = image.shape[0]
    matrix = torch.tensor([[[zoom, 0, 2 * across / side], [0, zoom, 2 * down / side]]], dtype=torch.float32)
    grid = F.affine_grid(matrix, [1, 1, side, side], align_corners=False)
    pixels = torch.from_numpy(image.astype(np.float32))[None, None]
    moved = F.grid_sample(pixels, grid, padding_mode=padding, align_corners=False)[0, 0].numpy()
    return moved if image.dtype == np.float32 else _byte(moved)


def _soft(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """A mask with a rim of nought to two pixels' blur."""
    return _blurred(mask, int(rng.choice([1, 3, 5])))


def _blurred(image: NDArray[np.generic], width: int) -> NDArray[np.float32]:
    padded = F.pad(torch.from_numpy(image.astype(np.float32))[None, None], (width // 2,) * 4, mode="replicate")
    return np.asarray(F.avg_pool2d(padded, width, stride=1)[0, 0].numpy())


def _mottle(side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    coarse = torch.from_numpy(rng.standard_normal((1, 1, *(2 * [int(rng.choice([4, 8, 16, 32]))])))).float()
    return np.asarray(F.interpolate(coarse, size=(side, side), mode="bicubic")[0, 0].numpy())


def _byte(image: NDArray[np.generic]) -> Image:
    return np.asarray(np.asarray(image, dtype=np.float32).round().clip(0, 255).astype(np.uint8))
