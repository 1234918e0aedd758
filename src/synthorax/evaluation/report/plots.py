"""Plots of the report as SVG text: balance before and after, ROC curves with bands, a forest plot of differences.

Lines and text take the colour of the page that the plot stands on (`currentColor`), so one plot serves light, dark and
paper. The colours of the data lean on those of Okabe and Ito, which colour-blind readers tell apart, and no meaning
hangs on colour alone. The same numbers always give the same bytes, and the SVG refers to nothing outside itself.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, AMBER, GREY = "#0082c8", "#d55e00", "#009e73", "#b878a6", "#c98a00", "#8c8c8c"
ARM_LOOKS: Mapping[str, tuple[str, str]] = {
    "real": (BLUE, "-"), "classic": (GREEN, "--"), "oversampling": (PURPLE, "-."), "class-weighted loss": (AMBER, "--"),
    "real+synthetic": (VERMILION, "-"), "synthetic only": (GREY, ":"),
}
"""arm -> colour and line style"""
OTHER_LOOKS = ((AMBER, "--"), (GREY, "-."), (GREEN, ":"), (PURPLE, ":"))

_INK = "#010203"  # stands for the colour of the page's text until the SVG is written
_LABEL_LENGTH = 24
_SVG = "{http://www.w3.org/2000/svg}"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "synthorax", "font.size": 10.0, "font.family": "DejaVu Sans",
    "axes.edgecolor": _INK, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "legend.frameon": False,
    "text.parse_math": False, "axes.unicode_minus": True,
}


def balance_bars(findings: Sequence[str], *, before: Sequence[float], after: Sequence[float]) -> str:
    """Horizontal bars of the images that show each finding, before and after the synthetic ones came in."""
    with page_style():
        figure, axes = new_figure(width_in=4.6, height_in=0.75 + 0.5 * len(findings))
        limit = max([1.0, *before, *after])
        for row, (low, high) in enumerate(zip(before, after, strict=True)):
            axes.barh(row - 0.19, low, height=0.34, color=BLUE, label="real training images" if row == 0 else None)
            axes.barh(row + 0.19, high, height=0.34, color=VERMILION, hatch="////", edgecolor="#ffffff80", linewidth=0,
                      label="with the synthetic images" if row == 0 else None)
            for position, count in ((row - 0.19, low), (row + 0.19, high)):
                axes.text(count + 0.012 * limit, position, f"{count:,.0f}", va="center", fontsize=9)
        axes.set_yticks(range(len(findings)), [short_label(name) for name in findings])
        axes.set_ylim(len(findings) - 0.45, -0.55)
        axes.set_xlim(0, 1.12 * limit)
        axes.set_xlabel("images with the finding")
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0.2, columnspacing=1.4,
                    handlelength=1.6)
        return svg_text(figure, label="Bars: images with each finding, before and after")


def roc_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], *,
               aurocs: Mapping[str, float] | None = None) -> str:
    """ROC curves of the arms on the real test images, each with its band where `low` and `high` are given.

    `curves` maps an arm to `fpr`, `tpr` and, optionally, `low`, `high`: sequences of one length, in [0, 1].
    """
    with page_style():
        figure, axes = new_figure(width_in=4.6, height_in=4.5 + 0.24 * len(curves))
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.6, alpha=0.4)
        spare = iter(OTHER_LOOKS * len(curves))
        for arm, curve in curves.items():
            colour, dashes = ARM_LOOKS.get(arm) or next(spare)
            area = f", AUROC {aurocs[arm]:.3f}" if aurocs and arm in aurocs else ""
            axes.plot(curve["fpr"], curve["tpr"], color=colour, linestyle=dashes, linewidth=1.8,
                      label=short_label(arm) + area)
            if len(curve.get("low", ())) and len(curve.get("high", ())):
                axes.fill_between(curve["fpr"], curve["low"], curve["high"], color=colour, alpha=0.13, linewidth=0)
        axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal", xlabel="1 − specificity", ylabel="sensitivity")
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.14), borderaxespad=0, handlelength=2.6)
        return svg_text(figure, label="ROC curves of the arms")


def forest_plot(labels: Sequence[str], *, value: Sequence[float], low: Sequence[float], high: Sequence[float],
                verdicts: Sequence[str] | None = None, axis_label: str = "difference in AUROC") -> str:
    """One row a comparison: the difference as a point, its 95 % interval as a line, and the line of no difference.

    `verdicts` (helps, hurts or anything else) choose the marks; without them the intervals do.
    """
    with page_style():
        figure, axes = new_figure(width_in=4.6, height_in=1.05 + 0.42 * len(labels))
        limit = 1.15 * max([0.01, *(abs(number) for number in (*low, *high))])
        axes.axvline(0, color=_INK, linewidth=0.9, alpha=0.6)
        for row, (middle, left, right) in enumerate(zip(value, low, high, strict=True)):
            verdict = verdicts[row] if verdicts else "helps" if left > 0 else "hurts" if right < 0 else ""
            colour, marker = {"helps": (GREEN, "^"), "hurts": (VERMILION, "v")}.get(verdict, (GREY, "o"))
            axes.plot([left, right], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([middle], [row], color=colour, marker=marker, markersize=8)
        axes.set_yticks(range(len(labels)), [short_label(label) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(-limit, limit)
        axes.set_xlabel(axis_label, labelpad=7)
        axes.locator_params(axis="x", nbins=5)
        for position, side, text in ((0, "left", "← worse"), (1, "right", "better →")):
            axes.annotate(text, (position, 0), xytext=(0, -24), xycoords="axes fraction", textcoords="offset points",
                          ha=side, va="top")
        axes.tick_params(axis="y", length=0)
        return svg_text(figure, label="Forest plot: differences with their 95 % intervals")


def learning_curves(counts: Sequence[int], curves: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """AUROC by the number of real positive training images, one line an arm: `value`, with its interval from `low` to `high`."""
    with page_style():
        figure, axes = new_figure(width_in=4.6, height_in=3.4)
        for number, (arm, curve) in enumerate(curves.items()):
            colour, dashes = ARM_LOOKS.get(arm) or OTHER_LOOKS[number % len(OTHER_LOOKS)]
            places = [count * 1.03 ** (number - (len(curves) - 1) / 2) for count in counts]  # side by side, not one over the other
            axes.vlines(places, curve["low"], curve["high"], color=colour, linewidth=1.4, alpha=0.6)
            axes.plot(places, curve["value"], color=colour, linestyle=dashes, marker="o", markersize=5, linewidth=1.8,
                      label=short_label(arm))
        axes.set_xscale("log")
        axes.set_xticks(list(counts), [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.set(xlabel="real training images with the finding", ylabel="AUROC")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0.2)
        return svg_text(figure, label="Learning curve: AUROC by real positive training images")


def page_style() -> AbstractContextManager[None]:
    """The settings of Matplotlib under which every plot is drawn and written."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def new_figure(*, width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """A figure without any global state: pyplot would keep it alive, and may open a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def short_label(text: str) -> str:
    """One printable line of at most `_LABEL_LENGTH` characters: labels come from anybody's tables."""
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1].rstrip() + "…"


def svg_text(figure: Figure, *, label: str) -> str:
    """The figure as SVG text: no comments, metadata or document type; own identifiers; the page's colour for ink."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The font that measures the text may lack a letter that the browser's font has.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.05,
                       metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    content = buffer.getvalue()
    root = ElementTree.fromstring(content)
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    _own_identifiers(root, prefix="p" + hashlib.sha256(content).hexdigest()[:8])
    root.attrib.update({"role": "img", "aria-label": label})
    del root.attrib["version"]
    ElementTree.register_namespace("", _SVG[1:-1])
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"font(-family)?: (\d[^;\"']*?px )?'DejaVu Sans'[^;\"]*", _page_font, text)
    return text.replace(_INK, "currentColor")


def _page_font(match: re.Match[str]) -> str:
    size = (match[2] or "").strip()
    return f"font: {size} system-ui, sans-serif" if size else "font-family: system-ui, sans-serif"


def _own_identifiers(root: ElementTree.Element, *, prefix: str) -> None:
    """Keep only identifiers that something points to, and make them unique on a page that holds several plots."""
    xlink = "{http://www.w3.org/1999/xlink}href"
    wanted = set(re.findall(r"url\(#([^)]+)\)", ElementTree.tostring(root, encoding="unicode")))
    wanted |= {element.attrib[xlink].removeprefix("#") for element in root.iter() if xlink in element.attrib}
    for element in root.iter():
        if xlink in element.attrib:
            element.attrib["href"] = f"#{prefix}-" + element.attrib.pop(xlink).removeprefix("#")
        for name, value in element.attrib.items():
            if "url(#" in value:
                element.attrib[name] = value.replace("url(#", f"url(#{prefix}-")
        identifier = element.attrib.pop("id", None)
        if identifier in wanted:
            element.attrib["id"] = f"{prefix}-{identifier}"
