"""Marks: places where a detector suspects something, each with a score, and how they are taken from a map of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthorax.errors import UsageError
from synthorax.types import Masks

Vector = NDArray[np.float64]
BOX_VALUE = 128
"""value of a mask's pixels inside a box, see `types.Masks`; an outline has more"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """All marks of a set of images, K of them: by image, the most suspicious first."""

    image: NDArray[np.intp]
    """row of the marked image, [K]"""
    x: Vector
    """pixels from the left edge of the image, the middle of the first pixel at 0.5, [K]"""
    y: Vector
    """pixels from its top, [K]"""
    score: Vector
    """higher is more suspicious, [K]"""
    num_images: int
    """images that were searched, those without a mark included"""

    def image_scores(self) -> Vector:
        """Score of each image, [N]: that of its most suspicious mark; an image without a mark ranks below all others, at minus infinity.

        >>> Marks.join([Marks.of_image([(4, 4, 2.0), (9, 9, 3.0)]), Marks.of_image([])]).image_scores().tolist()
        [3.0, -inf]
        """
        scores = np.full(self.num_images, -np.inf)
        np.maximum.at(scores, self.image, self.score)
        return scores

    @classmethod
    def of_image(cls, places: Sequence[tuple[float, float, float]]) -> Marks:
        """Marks of one image from x, y and score of each."""
        table = np.array(sorted(places, key=lambda place: -place[2]), dtype=np.float64).reshape(-1, 3)
        return cls(image=np.zeros(len(table), dtype=np.intp), x=table[:, 0], y=table[:, 1], score=table[:, 2], num_images=1)

    @classmethod
    def join(cls, parts: Sequence[Marks]) -> Marks:
        """The marks of several sets of images in a row."""
        starts = np.cumsum([0, *(part.num_images for part in parts)])
        rows = np.concatenate([np.zeros(0, dtype=np.intp), *(part.image + start for part, start in zip(parts, starts[:-1], strict=True))])
        x, y, score = (np.concatenate([np.zeros(0), *columns]) for columns in ([part.x for part in parts], [part.y for part in parts],
                                                                               [part.score for part in parts]))
        return cls(image=rows, x=x, y=y, score=score, num_images=int(starts[-1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionBoxes:
    """Lesions of a set of images, K of them, with their boxes."""

    image: NDArray[np.intp]
    """row of the lesion's image, [K]"""
    x: Vector
    """middle, in pixels from the left edge of the image, [K]"""
    y: Vector
    """middle, in pixels from its top, [K]"""
    width: Vector
    """pixels, [K]"""
    height: Vector
    """pixels, [K]"""
    outlined: NDArray[np.bool_]
    """drawn as an outline; otherwise only a box is known, [K]"""

    @property
    def diameter(self) -> Vector:
        """Of the disc that fills a box of the same area as well, in pixels, [K]: the geometric mean of its sides."""
        return np.sqrt(self.width * self.height)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> LesionBoxes:
        """Some of the lesions."""
        return LesionBoxes(image=self.image[rows], x=self.x[rows], y=self.y[rows], width=self.width[rows], height=self.height[rows],
                           outlined=self.outlined[rows])

    @classmethod
    def of_masks(cls, masks: Masks, name: str) -> LesionBoxes:
        """The connected parts of the masks of one class, each a lesion; parts below a twentieth of the largest of their mask are crumbs."""
        found = []
        column = masks.names.index(name)
        for image, number in enumerate(masks.index[:, column]):
            if number < 0:
                continue
            drawn = masks.pixels[number] >= BOX_VALUE
            parts, num = ndimage.label(drawn, structure=np.ones((3, 3)))
            areas = ndimage.sum_labels(drawn, parts, range(1, num + 1))
            for part, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
                if areas[part - 1] >= max(areas) / 20:
                    found.append((image, (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2, columns.stop - columns.start,
                                  rows.stop - rows.start, bool(masks.pixels[number][parts == part].max() > BOX_VALUE)))
        table = np.array([lesion[:5] for lesion in found], dtype=np.float64).reshape(-1, 5)
        return cls(image=table[:, 0].astype(np.intp), x=table[:, 1], y=table[:, 2], width=table[:, 3], height=table[:, 4],
                   outlined=np.array([lesion[5] for lesion in found], dtype=np.bool_))


def strongest_places(score_map: NDArray[np.floating], *, distance_px: float, most: int = 20, stride: int = 1,
                     within: NDArray[np.bool_] | None = None) -> Marks:
    """Marks of one image from its map of scores [H, W]: local maxima, none nearer than `distance_px` to a stronger one.

    `stride`: pixels of the image per pixel of the map. `within` [H, W] says where marks may lie; outside of it a maximum suppresses
    nothing. At most `most` marks, the strongest.

    >>> peak = np.zeros((16, 16)); peak[4, 9] = 1.0
    >>> found = strongest_places(peak, distance_px=3, most=1); (float(found.x[0]), float(found.y[0]))
    (9.5, 4.5)
    """
    if distance_px <= 0 or most < 1:
        raise UsageError(f"marks need a distance above 0 and at least one place, not {distance_px} px and {most}")
    values = np.asarray(score_map, dtype=np.float64)
    if within is not None:
        values = np.where(within, values, -np.inf)
    reach = max(1, round(distance_px / stride / 2))
    peaks = (values == ndimage.maximum_filter(values, size=2 * reach + 1, mode="constant", cval=-np.inf)) & np.isfinite(values)
    rows, columns = np.nonzero(peaks)
    order = np.argsort(-values[rows, columns], kind="stable")
    kept: list[tuple[float, float, float]] = []
    for index in order:
        x, y = (float(columns[index]) + 0.5) * stride, (float(rows[index]) + 0.5) * stride
        if all((x - other_x) ** 2 + (y - other_y) ** 2 >= distance_px**2 for other_x, other_y, _ in kept):
            kept.append((x, y, float(values[rows[index], columns[index]])))
        if len(kept) == most:
            break
    return Marks.of_image(kept)
