"""Visibility of nodules: more with contrast, less with clutter, the same at every resolution and grey scale."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from synthorax.editing.insertion.visibility import LEAST_VISIBLE, Visibility, conspicuity, visibility

PLACE = (0.4, 0.6)


def scene(size: int, *, contrast: float, clutter: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clutter of one size in parts of the image, and the same with a blob of radius 1/32 of it."""
    rng = np.random.default_rng(seed)
    coarse = gaussian_filter(rng.standard_normal((128, 128)), 3)
    host = 100 + clutter * np.kron(coarse / coarse.std(), np.ones((size // 128, size // 128)))
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    blob = contrast * np.exp(-((x - PLACE[0]) ** 2 + (y - PLACE[1]) ** 2) / (2 * (1 / 48) ** 2))
    return host, host + blob


def test_a_lesion_stands_out_by_its_contrast_over_the_clutter() -> None:
    inside = np.ones((256, 256), bool)

    def visible(contrast: float, clutter: float) -> Visibility:
        host, result = scene(256, contrast=contrast, clutter=clutter)
        return visibility(host, result, inside, place=PLACE, radius_px=8)

    none, faint, clear, hidden = visible(0, 4), visible(2, 4), visible(16, 4), visible(8, 16)
    assert clear.enough and not faint.enough and not none.enough
    assert none.after == none.before and none.after < faint.after < clear.after - 1
    assert hidden.after == pytest.approx(faint.after, abs=0.05), "only the ratio counts"


def test_it_is_the_same_at_every_resolution_and_grey_scale() -> None:
    seen = []
    for size in (256, 1024):
        _, result = scene(size, contrast=12, clutter=4)
        seen.append(conspicuity(result, np.ones((size, size), bool), place=PLACE, radius_px=size / 32))
        assert conspicuity(257 * result, np.ones((size, size), bool), place=PLACE, radius_px=size / 32) == pytest.approx(seen[-1])
    assert seen[0] == pytest.approx(seen[1], rel=0.1)


def test_what_was_seen_before_is_not_the_lesion() -> None:
    assert Visibility(after=2.0, before=0.3).enough
    assert not Visibility(after=2.0, before=1.9).enough, "a rib is seen there, not the lesion"
    assert not Visibility(after=LEAST_VISIBLE - 0.1, before=-1.0).enough
    assert conspicuity(np.zeros((64, 64)), np.ones((64, 64), bool), place=PLACE, radius_px=4) == 0
