"""What bench/studies/control.py shows: its record as the markdown tables of docs/studies/control.md, and sheets of images to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.metric_table import METRICS, Metric

METRICS |= {
    "centroid_changes_side": Metric(name="Centroid changes side", better="higher", source="share, Wilson 1927",
                                    sees="lesions that stay where they were when the other side is requested"),
    "centroid_follows_words": Metric(name="Centroid follows swapped words", better="higher", source="share, Wilson 1927",
                                     sees="lesions that stay where they were when left and right are swapped in the text"),
    "lesion_iou": Metric(name="IoU of each lesion", better="higher", source="Jaccard 1901",
                         sees="single lesions that are missing or elsewhere"),
}

ZOOM = 3
SWEEP_COLUMNS = ("asked from, to", "Spearman of the means (95 %)", "within one seed", "found", "largest leaks (by chance)")


def tables(record: Mapping[str, Any]) -> str:
    """The record as markdown, for docs/studies/control.md."""
    judge, found = record["judge"], record["strategies"]["strategies"]
    drawn = {(one["finding"], one["factor"]): one for one in judge["sweeps"]}
    parts = [_table("The judge on unseen drawn images", ("outline", "IoU (95 %)", "images"),
                    [(one["group"], _interval(one), one["n_synthetic"]) for one in judge["iou"]])]
    parts.append(_table("Sweeps of drawn images, as the judge sees them", ("finding", "factor", *SWEEP_COLUMNS),
                        [(one["finding"], one["factor"], *_sweep_cells(one)) for one in drawn.values()]))
    parts.append(_table("Sweeps", ("finding", "factor", *SWEEP_COLUMNS),
                        [(one["finding"], one["factor"], *_sweep_cells(one)) for one in record["sweeps"]]))
    parts.append(_table("Sides by label", ("finding", "on the side asked for (95 %)", "same seed, both sides right (95 %)"),
                        [(one["finding"], _interval(one["agreement"]), _interval(one["both"])) for one in record["sides"]]))
    for name in ("organs and lesions", "lesion mask alone", "boxes", "two lesions"):
        scores = record.get(name, {"scores": []})["scores"]
        parts.append(_table(f"Masks: {name}", ("asked for", "value (95 %)", "judge on the drawn images themselves", "number"),
                            [(one["group"], f"{one['metric']} {_interval(one)}", _number(one, "ceiling"), one["n_synthetic"])
                             for one in scores]))
    parts.append(_table("Seven strategies, one set of weights", ("strategy", "AUROC of the finding (95 %)", "side (95 %)",
                                                                 "lesion IoU (95 %)", "lung IoU (95 %)"),
                        [(one["strategy"], one.get("skipped", "") or _interval(one["auroc"]),
                          *(_interval(one[key]) if key in one else "" for key in ("side", "iou", "lung iou"))) for one in found]))
    if "texts" in record:
        spoken = record["texts"]
        parts.append(_table("Text alone", ("text", "finding", "found", "mean score", "side (95 %)"),
                            [(one["text"], one["finding"], _number(one, "found"), _number(one, "score"),
                              _interval(one["side"]) if "side" in one else "") for one in spoken["texts"]]))
        parts.append(_table("Texts compared", ("comparison", "value (95 %)"),
                            [(f"AUROC, {one['group']}", _interval(one)) for one in spoken["aurocs"]]
                            + [(f"{one['metric']}, {one['group']}", _interval(one)) for one in spoken["swaps"]]))
    return "\n".join(part for part in parts if part)


def _sweep_cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    """The two factors that changed most beside the one asked for, in parts of their natural spread."""
    leaks = sorted((leak for leak in one["leaks"] if leak["change"] is not None), key=lambda leak: -leak["change"])[:2]
    return (f"{one['requested'][0]:.2f}, {one['requested'][-1]:.2f}", f"{one['spearman']:.2f} ({one['low']:.2f} to {one['high']:.2f})",
            f"{one['typical']:.2f}", f"{one['found']:.2f}",
            "; ".join(f"{leak['factor']} {leak['change']:.2f} ({leak['by_chance']:.2f})" for leak in leaks))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    lines = [f"### {title}", "", *(f"| {' | '.join(map(str, cells))} |" for cells in (columns, ["---"] * len(columns), *rows))]
    return "\n".join(lines) + "\n"


def _interval(score: Mapping[str, Any]) -> str:
    return f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


def _number(score: Mapping[str, Any], key: str) -> str:
    return f"{score[key]:.2f}" if key in score else ""


def outlined(images: NDArray[np.uint8], outlines: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Each of N images twice, larger: as it is, and with the border of an outline in white, [2 N, 3 S, 3 S]."""
    large, wide = (array.repeat(ZOOM, axis=1).repeat(ZOOM, axis=2) for array in (images, outlines))
    edge = wide & ~ndimage.binary_erosion(wide, structure=np.ones((1, 3, 3)))
    pairs: NDArray[np.uint8] = np.stack([large, np.where(edge, np.uint8(255), large)], axis=1)
    return pairs.reshape(-1, *large.shape[1:])


def sheet(out: Path, name: str, images: NDArray[np.uint8], *, columns: int, title: str, captions: Sequence[str] | None = None) -> None:
    """One picture in the folder of sheets."""
    save_png(out / "sheets" / f"{name}.png", contact_sheet(images, columns=columns, title=title, captions=captions, tile_px=112))
