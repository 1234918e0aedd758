"""How alike two images are once one is laid over the other: shifted, turned, scaled, mirrored or inverted as fits best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from synthorax.errors import InputError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

COARSE_PX, FINE_PX = 32, 64
"""grids on which candidates are searched and then compared"""
COARSE_SHIFT_PX = 1  # on the coarse grid: 3 % of the image's side
FINE_SHIFT_PX = 4  # on the fine grid: 6 %
COARSE_DEGREES, COARSE_SCALES = (-4.0, 0.0, 4.0), (0.95, 1.0, 1.05)
FINE_DEGREES, FINE_SCALES = (-1.5, 0.0, 1.5), (0.98, 1.0, 1.02)
"""around the best coarse pose, and after that once more at a third of the distance"""
COMPONENTS = 256
"""principal components of the coarse grid in which candidates are searched, each brought to variance 1; with 128, one blend in twenty
is missed"""
WINDOWS = 5000
"""windows from which the components are learned, at most"""
CANDIDATES = 6
OTHERS = (4, 24)
"""the nearest images but four, which may be of the same patient or the other part of a blend, that the nearest must stand out from"""
CONTRAST_SIGMA_PX = 4.0  # on either grid
CONTRAST_FLOOR = 0.02  # of the full range; a region flatter than this is not blown up to full contrast
CHUNK_QUERIES = 32
CHUNK_IMAGES = 512


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Registered:
    """The training image over which each query fits best, and how well."""

    index: NDArray[np.intp]
    """[N]"""
    similarity: NDArray[np.float64]
    """[N] in [0, 1]: the correlation of local contrast at the best pose, whatever its sign"""
    whitened_index: NDArray[np.intp]
    """[N]: the nearest training image in whitened components, at its best pose"""
    stands_out: NDArray[np.float64]
    """[N]: by how much the cosine of that image exceeds the mean of those that come 5th to 24th"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gallery:
    """Images to lay others over."""

    fine: Tensor
    """local contrast, [M, 64, 64]"""
    _components: Tensor
    """[K, inner^2]: whitened principal components of the coarse windows"""
    _windows: Tensor
    """[shifts, M, K]: each image's coarse windows in these components, of length 1"""

    @classmethod
    def of(cls, images: Pixels) -> Gallery:
        """Local contrast of images [M, S, S] of any size and exposure."""
        fine = local_contrast(images, grid=FINE_PX)
        windows = _coarse_windows(fine)
        every = windows.flatten(0, 1)
        components = _whitening(every[::max(1, len(every) // WINDOWS)])
        return cls(fine=fine, _components=components, _windows=_directions(windows, components))

    def __len__(self) -> int:
        return len(self.fine)

    def nearest(self, images: Pixels) -> Registered:
        """Lay each image [N, S, S] over every one of the gallery: coarsely over all, then finely over the best few.

        Poses: shifts up to 6 % of the side, turns up to about 6 degrees, scales 0.93 to 1.07, mirrored or not. The sign of the
        correlation is the exposure (dark or bright bone) and does not matter.
        """
        index, similarity = np.zeros(len(images), dtype=np.intp), np.zeros(len(images))
        whitened_index, stands_out = index.copy(), similarity.copy()
        for start in range(0, len(images), CHUNK_QUERIES):
            part = local_contrast(images[start:start + CHUNK_QUERIES], grid=FINE_PX)
            score, poses = self._coarse(part)
            highest, order = score.topk(min(OTHERS[1], len(self)), dim=1)
            own = slice(start, start + len(part))
            whitened_index[own] = order[:, 0].numpy()
            others = highest[:, min(OTHERS[0], highest.shape[1] - 1):].mean(dim=1)
            stands_out[own] = (highest[:, 0] - others).numpy()
            row = order[:, :CANDIDATES]
            pose = poses.gather(1, row[..., None].expand(-1, -1, 3))
            fits = fine_fit(part.repeat_interleave(row.shape[1], dim=0), self.fine[row.flatten()], pose.flatten(0, 1)).view(row.shape)
            best = fits.argmax(dim=1, keepdim=True)
            index[own] = row.gather(1, best)[:, 0].numpy()
            similarity[own] = fits.gather(1, best)[:, 0].numpy()
        return Registered(index=index, similarity=similarity, whitened_index=whitened_index, stands_out=stands_out)

    def whitened(self, images: Pixels) -> NDArray[np.float32]:
        """Images [N, S, S] as they lie, in whitened components of this gallery: [N, K]."""
        windows = _coarse_windows(local_contrast(images, grid=FINE_PX), only_middle=True)[0]
        return np.asarray((windows @ self._components.T).numpy(), dtype=np.float32)

    def fit(self, images: Pixels, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Lay image i [N, S, S] over image `rows[i]` of the gallery alone: the similarity of each pair, [N] in [0, 1]."""
        similarity = np.zeros(len(images))
        for start in range(0, len(images), CHUNK_QUERIES):
            part = local_contrast(images[start:start + CHUNK_QUERIES], grid=FINE_PX)
            row = torch.from_numpy(np.asarray(rows[start:start + len(part)], dtype=np.int64))
            pose = self._coarse(part)[1][torch.arange(len(part)), row]
            similarity[start:start + len(part)] = fine_fit(part, self.fine[row], pose).numpy()
        return similarity

    def _coarse(self, contrast: Tensor) -> tuple[Tensor, Tensor]:
        """Resemblance [B, M] of images [B, 64, 64] to each of the gallery at their best coarse pose, and that pose [B, M, 3]."""
        poses = coarse_poses()
        moved = torch.cat([posed(contrast, pose.expand(len(contrast), 3)) for pose in poses])
        rows = _directions(_coarse_windows(moved, only_middle=True), self._components)[0].view(len(poses), len(contrast), -1)
        best, chosen = torch.full((len(contrast), len(self)), -1.0), torch.zeros(len(contrast), len(self), dtype=torch.long)
        for number, row in enumerate(rows):
            for window in self._windows:
                value = (row @ window.T).abs()
                chosen = torch.where(value > best, number, chosen)
                best = torch.maximum(best, value)
        return best, poses[chosen]


def coarse_poses() -> Tensor:
    """Turn in degrees, scale, and -1 for mirrored or 1, [P, 3]."""
    return torch.tensor([(degrees, scale, mirror) for mirror in (1.0, -1.0) for degrees in COARSE_DEGREES for scale in COARSE_SCALES])


def posed(images: Tensor, poses: Tensor) -> Tensor:
    """Images [B, S, S] turned, scaled and mirrored about their centre, each by its pose [B, 3]; the edge is continued."""
    angle, scale, mirror = torch.deg2rad(poses[:, 0]), poses[:, 1], poses[:, 2]
    cosine, sine, zero = torch.cos(angle) / scale, torch.sin(angle) / scale, torch.zeros_like(angle)
    matrix = torch.stack([cosine * mirror, -sine * mirror, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, [len(images), 1, *images.shape[1:]], align_corners=False)
    return functional.grid_sample(images[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]


def fine_fit(images: Tensor, targets: Tensor, poses: Tensor) -> Tensor:
    """Correlation [B] of images [B, 64, 64] with `targets` [B, 64, 64] at the best pose near `poses` [B, 3] and the best shift."""
    margin = FINE_SHIFT_PX
    inner = FINE_PX - 2 * margin
    spectrum = torch.fft.rfft2(targets)
    mean = functional.avg_pool2d(targets[:, None], inner, stride=1)[:, 0]
    square = functional.avg_pool2d(targets.square()[:, None], inner, stride=1)[:, 0]
    spread = inner * (square - mean.square()).clamp_min(1e-6).sqrt()
    best = torch.zeros(len(images))
    for reach in (1.0, 1 / 3):
        around = poses
        for turn in FINE_DEGREES:
            for scale in FINE_SCALES:
                pose = torch.stack([around[:, 0] + turn * reach, around[:, 1] * (1 + (scale - 1) * reach), around[:, 2]], dim=1)
                template = posed(images, pose)[:, margin:-margin, margin:-margin]
                template = template - template.mean(dim=(1, 2), keepdim=True)
                length = template.flatten(1).norm(dim=1).clamp_min(1e-2)
                padded = functional.pad(template, (0, 2 * margin, 0, 2 * margin))
                # Products at all positions at once; the template has mean nought, so the window's mean drops out of them.
                products = torch.fft.irfft2(spectrum * torch.fft.rfft2(padded).conj(), s=targets.shape[1:])
                products = products[:, :2 * margin + 1, :2 * margin + 1]
                value = (products / (spread * length[:, None, None])).abs().flatten(1).max(dim=1).values.clamp(max=1.0)
                poses = torch.where((value > best)[:, None], pose, poses)
                best = torch.maximum(best, value)
    return best


def local_contrast(images: Pixels, *, grid: int = COARSE_PX) -> Tensor:
    """Images [N, S, S] on a small grid, brightness and contrast of each neighbourhood taken out: float32 [N, grid, grid]."""
    parts = [_contrast(part) for part in grey_images(images, side=grid)]
    return torch.cat(parts) if parts else torch.empty(0, grid, grid)


def grey_images(images: Pixels, *, side: int) -> Iterator[Tensor]:
    """Images [N, S, S] as grey levels in [0, 1], chunk by chunk, float32 [n, 1, side, side]. Raises `InputError` for other arrays."""
    if images.ndim != 3 or images.dtype not in (np.uint8, np.uint16):
        raise InputError(f"images must be [N, S, S] of uint8 or uint16, got {images.dtype} {images.shape}")
    for start in range(0, len(images), CHUNK_IMAGES):
        part = images[start:start + CHUNK_IMAGES]
        grey = torch.from_numpy(part.astype(np.float32) / np.iinfo(part.dtype).max)[:, None]
        yield functional.interpolate(grey, (side, side), mode="bilinear", antialias=True, align_corners=False)


def _coarse_windows(contrast: Tensor, *, only_middle: bool = False) -> Tensor:
    """Images [B, 64, 64] on the coarse grid: the window at each shift, or only the middle one, [shifts, B, inner^2] of mean 0."""
    small = functional.avg_pool2d(contrast[:, None], FINE_PX // COARSE_PX)[:, 0]
    inner = COARSE_PX - 2 * COARSE_SHIFT_PX
    shifts = [COARSE_SHIFT_PX] if only_middle else range(2 * COARSE_SHIFT_PX + 1)
    windows = torch.stack([small[:, down:down + inner, right:right + inner].flatten(1) for down in shifts for right in shifts])
    return windows - windows.mean(dim=2, keepdim=True)


def _whitening(windows: Tensor) -> Tensor:
    """Principal components [K, inner^2] of windows [M, inner^2], scaled so that each has variance 1 over the windows."""
    centred = windows.double() - windows.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(windows) - 1))
    kept = min(COMPONENTS, max(1, len(windows) - 1))
    values, vectors = values[-kept:].clamp_min(1e-6), vectors[:, -kept:]
    return cast(Tensor, (vectors / values.sqrt()).T.float())


def _directions(windows: Tensor, components: Tensor) -> Tensor:
    """Windows [..., inner^2] in whitened components, each of length 1; a flat window becomes noughts."""
    inside = windows @ components.T
    return cast(Tensor, inside / inside.norm(dim=-1, keepdim=True).clamp_min(1e-3))


def _contrast(grey: Tensor) -> Tensor:
    """Local contrast [N, S, S] of grey images [N, 1, S, S]."""
    detail = grey - _blur(grey)
    spread = _blur(detail.square()).sqrt()
    return (detail / (spread + CONTRAST_FLOOR))[:, 0]


def _blur(images: Tensor) -> Tensor:
    """Gaussian means of [N, 1, S, S]; the edge is mirrored."""
    reach = int(2 * CONTRAST_SIGMA_PX)
    window = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float32) ** 2) / (2 * CONTRAST_SIGMA_PX**2))
    window = (window / window.sum())[None, None, None]
    padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
    return functional.conv2d(functional.conv2d(padded, window), window.transpose(2, 3))
