"""Plots over images and groups as SVG text: a map of real and synthetic images, and a forest of one score by group with its floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from synthorax.evaluation.report.plots import ARM_LOOKS, BLUE, GREY, VERMILION, new_figure, page_style, short_label, svg_text
from synthorax.evaluation.statistics.intervals import Matrix


def principal_plane(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> tuple[Matrix, Matrix, Matrix]:
    """Real [N, F] and synthetic [M, F] features on the two directions in which real images differ most: [N, 2], [M, 2], and the
    share of the real images' variance that each direction holds, [2].

    The plane is that of the real images alone, so that the synthetic ones cannot turn it; what leaves it is not seen.
    """
    mean = real.mean(axis=0, dtype=np.float64)
    scale = np.maximum(real.std(axis=0, dtype=np.float64), 1e-6)
    known = (real - mean) / scale
    _, strength, axes = np.linalg.svd(known, full_matrices=False)
    plane = axes[:2] * np.where(axes[:2].sum(axis=1, keepdims=True) < 0, -1.0, 1.0)  # the sign of a direction is arbitrary
    shares = strength[:2] ** 2 / max(float((strength**2).sum()), 1e-12)
    return known @ plane.T, ((synthetic - mean) / scale) @ plane.T, shares


def embedding_map(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, space: str) -> str:
    """A point an image: real images as circles, synthetic ones as crosses, on the principal plane of the real ones."""
    first, second, shares = principal_plane(real, synthetic)
    with page_style():
        figure, axes = new_figure(width_in=5.4, height_in=4.6)
        axes.scatter(first[:, 0], first[:, 1], s=16, facecolors="none", edgecolors=BLUE, linewidths=0.9,
                     label=f"{len(first)} real held-out images")
        axes.scatter(second[:, 0], second[:, 1], s=14, marker="x", color=VERMILION, linewidths=0.9, label=f"{len(second)} synthetic images")
        axes.set_xlabel(f"first direction: {100 * shares[0]:.0f} % of what real images differ in")
        axes.set_ylabel(f"second direction: {100 * shares[1]:.0f} %")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0.2, handletextpad=0.2)
        return svg_text(figure, label=f"Map of real and synthetic images in {space}")


def group_forest(groups: Sequence[str], *, value: Sequence[float], low: Sequence[float], high: Sequence[float],
                 floor: Sequence[float | None], axis_label: str, legend: tuple[str, str] = ("synthetic images",
                                                                                            "floor: real images")) -> str:
    """One row a group: the score as a point with its 95 % interval, and its floor, the same score between real images, as a bar."""
    with page_style():
        figure, axes = new_figure(width_in=5.4, height_in=1.0 + 0.33 * len(groups))
        for row, (middle, left, right, ground) in enumerate(zip(value, low, high, floor, strict=True)):
            axes.plot([left, right], [row, row], color=VERMILION, linewidth=2.0, solid_capstyle="butt")
            axes.plot([middle], [row], color=VERMILION, marker="o", markersize=6, label=legend[0] if row == 0 else None)
            if ground is not None:
                axes.plot([ground, ground], [row - 0.32, row + 0.32], color=BLUE, linewidth=2.4)
        axes.plot([], [], color=BLUE, marker="|", markersize=11, markeredgewidth=2.4, linestyle="none", label=legend[1])
        if groups and groups[0] == "all":
            axes.axhline(0.5, color=GREY, linewidth=0.6)
        axes.set_yticks(range(len(groups)), [short_label(name) for name in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlabel(axis_label)
        axes.locator_params(axis="x", nbins=6)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0.2, handletextpad=0.4)
        return svg_text(figure, label=f"Forest plot: {axis_label} by group")


def arms_forest(groups: Sequence[str], arms: Mapping[str, Mapping[str, Sequence[float]]], *, axis_label: str = "AUROC") -> str:
    """One row a group, and in it each arm's `value` as a point with its 95 % interval from `low` to `high`."""
    with page_style():
        figure, axes = new_figure(width_in=5.4, height_in=1.0 + 0.42 * len(groups))
        for number, (arm, numbers) in enumerate(arms.items()):
            colour, marker = ARM_LOOKS.get(arm, (GREY, "-"))[0], "os^v"[number % 4]
            rows = np.arange(len(groups)) + 0.28 * (number - (len(arms) - 1) / 2)
            axes.hlines(rows, numbers["low"], numbers["high"], color=colour, linewidth=2.0)
            axes.plot(numbers["value"], rows, color=colour, marker=marker, markersize=6, linestyle="none", label=short_label(arm))
        axes.axvline(0.5, color=GREY, linewidth=0.6)
        axes.set_yticks(range(len(groups)), [short_label(name) for name in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlabel(axis_label)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0.2, handletextpad=0.4)
        return svg_text(figure, label=f"Forest plot: {axis_label} of the arms by group")
