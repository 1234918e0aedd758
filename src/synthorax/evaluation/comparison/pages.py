"""A comparison of generators to read: one table with intervals over seeds, as Markdown and as a page, and sheets side by side."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthorax.evaluation.comparison.measures import DISTRIBUTION, REQUEST, VIEW, WITHIN
from synthorax.evaluation.report.contact_sheets import contact_sheet, eight_bit
from synthorax.evaluation.report.page import embedded, show
from synthorax.evaluation.statistics.over_seeds import MIN_SEEDS_FOR_SPREAD, over_seeds, summed_copies
from synthorax.metric_table import metric_of

DOWNSTREAM = "downstream_auroc_gain"
RANKED = ("fid", "kid", "precision", "recall", "coverage", REQUEST, VIEW, DOWNSTREAM)
"""metrics whose best value is marked; density and MS-SSIM are best where real images have them, so nothing is marked there"""
SHARES = ("precision", "recall", "coverage", WITHIN, REQUEST, VIEW)
"""metrics from 0 to 1"""
COSTS = {"images_per_second": "images/s in training", "ms_per_image": "ms an image alone",
         "ms_per_image_of_8": "ms an image in a batch of 8", "training_mb": "peak MB in training",
         "sampling_mb": "peak MB in sampling"}
"""key -> name of the column"""
REAL = "real images"
SHOWN = 10
Record = Mapping[str, Any]


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One entry an arm: every measure over its seeds, copies of all seeds together, and what it costs."""
    arms: dict[str, list[Record]] = {}
    for record in records:
        arms.setdefault(record["arm"], []).append(record)
    entries = []
    for arm, every in arms.items():
        done = [record for record in every if "failed" not in record]
        entry: dict[str, Any] = {"arm": arm, "seeds": len(done), "failed": [record["failed"] for record in every if "failed" in record]}
        if done:
            names = [*DISTRIBUTION, WITHIN, REQUEST, VIEW, *([DOWNSTREAM] if DOWNSTREAM in done[0] else [])]
            entry |= {name: _over(name, [record[name] for record in done]) for name in names}
            entry["copies"] = summed_copies(record["copies"] for record in done)
            entry |= {name: _cost([record[name] for record in done]) for name in COSTS}
            entry |= {name: done[0][name] for name in ("parameters", "parameters_trained")}
        entries.append(entry)
    return entries


def table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and the cells of each row: real images first, then the arms in the order in which they were named."""
    entries, reference = report["arms"], report["reference"]
    gained = any(DOWNSTREAM in entry for entry in entries)
    measures = [*DISTRIBUTION, WITHIN, REQUEST, VIEW]
    names = [metric_of(name).name for name in (*measures, *([DOWNSTREAM] if gained else []))]
    columns = ["family", *names[: len(measures)], "near-duplicates (false alarms)", *names[len(measures):],
               "parameters (trained, with discriminators)", *COSTS.values()]
    rows = [[REAL, *(_cell(_over(name, [reference[name]])) for name in measures), *[""] * (len(columns) - len(measures) - 1)]]
    most = max(entry["seeds"] + len(entry["failed"]) for entry in entries)
    for entry in entries:
        tried = entry["seeds"] + len(entry["failed"])
        seeds = f" ({tried} of {most} seeds)" if tried < most else ""
        seeds += f" ({len(entry['failed'])} of {tried} seeds failed)" if entry["failed"] else ""
        if not entry["seeds"]:
            rows.append([entry["arm"], f"failed: {entry['failed'][0]}", *[""] * (len(columns) - 2)])
            continue
        cells = {name: _cell(entry[name], best=_is_best(name, entry, entries)) for name in (*measures, *([DOWNSTREAM] if gained else []))}
        rows.append([entry["arm"] + seeds, *(cells[name] for name in measures), _copies(entry["copies"]),
                     *([cells[DOWNSTREAM]] if gained else []), f"{entry['parameters']:,} ({entry['parameters_trained']:,})",
                     *(_spread(entry[name]) for name in COSTS)])
    return columns, rows


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the table."""
    claim = report["claim"]
    images = f"{claim['train_images'] or claim['images']['train']} training images"
    lines = [f"{len(report['arms'])} ways to make images of {claim['size']} px, on the same {images}"
            + (f" (drawn by the seed, half of them with {claim['finding']})" if claim["finding"] else
               " (drawn by the seed)" if claim["train_images"] else "")
            + f", {claim['budget']} of training each, {'slightly varied images' if claim['augment'] else 'images as they are'}, "
            f"{claim['num']} images a seed made by the same requests, compared with {claim['images']['compared']} images of "
            f"{claim['images']['patients']} patients who were in no training.",
            "Intervals (95 %) are the wider of those from the sampling of images and, from three seeds on, from Student's t over seeds. "
            "Bold: the best, where its interval holds no other family's value. MS-SSIM and density are best where they are as in real "
            "images. Near-duplicates are of the training images, beside how often real images of other patients are called copies. The row "
            "of real images has training images in the place of synthetic ones; requests are then those of held-out images."]
    if report["two_stages"]:
        lines.append(f"{', '.join(report['two_stages'])}: {claim['first_stage_part']:.0%} of the budget trained the compressor; time, "
                    "images and parameters are of both stages.")
    if claim["clock"] == "processor":
        lines.append("Speeds are in processor time.")
    if len(report["seeds"]) < MIN_SEEDS_FOR_SPREAD:
        lines.append(f"Only {len(report['seeds'])} of {MIN_SEEDS_FOR_SPREAD} seeds: the intervals do not hold how much trainings differ, "
                    f"and an "
                    "order of the families may be luck.")
    machines = sorted({stage["machine"]["processor"] for record in report["records"] for stage in record.get("stages", ())})
    if len(machines) > 1:
        lines.append(f"Trained on {len(machines)} kinds of processor ({'; '.join(machines)}): equal time is not equal work on them, and "
                    "part of the spread over seeds may be theirs.")
    return [*lines, *report["notes"]]


def markdown(report: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    columns, rows = table(report)
    lines = [" | ".join(row) for row in (columns, ["---"] * len(columns), *rows)]
    return "# Generators side by side\n\n" + "\n\n".join(sentences(report)) + "\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def page(report: Mapping[str, Any], *, sheet_png: bytes) -> str:
    """The comparison as one HTML text that needs no other file; every text in it is escaped."""
    import jinja2

    source = importlib.resources.files("synthorax.evaluation.comparison").joinpath("comparison.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["embedded"] = embedded
    columns, rows = table(report)
    return environment.from_string(source).render(columns=columns, rows=rows, sentences=sentences(report), sheet=sheet_png)


def sheets(pictures_by_name: Mapping[str, NDArray[np.uint8] | NDArray[np.uint16]]) -> Image.Image:
    """One row a name, the first images of each, [N, S, S]: in a column, arms have the same seed and request."""
    columns = min(SHOWN, *(len(images) for images in pictures_by_name.values()))
    pictures = np.concatenate([eight_bit(images[:columns]) for images in pictures_by_name.values()])
    return contact_sheet(pictures, columns=columns, captions=[name for name in pictures_by_name for _ in range(columns)], tile_px=112)


def _over(name: str, parts: Sequence[Record]) -> dict[str, Any]:
    """A measure over seeds; its interval ends where the measure does."""
    known = [part for part in parts if "skipped" not in part]
    if len(known) < len(parts):
        return {"skipped": next(part["skipped"] for part in parts if "skipped" in part)}
    one = over_seeds([part["value"] for part in known], [part["error"] for part in known])
    lowest = 0.0 if name in (*SHARES, "fid", "density") else -math.inf
    return one | {"low": max(lowest, one["low"]), "high": min(1.0 if name in SHARES else math.inf, one["high"])}


def _cost(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and spread over seeds; None where a seed was not measured."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    spread = over_seeds(known, [0.0] * len(known))
    return spread | {"low": max(0.0, spread["low"])}


def _is_best(name: str, entry: Record, entries: Sequence[Record]) -> bool:
    """Whether no other arm's value lies in this arm's interval or beyond it."""
    others = [other[name]["value"] for other in entries if other is not entry and "value" in other.get(name, {})]
    if name not in RANKED or "value" not in entry[name] or not others:
        return False
    return bool(entry[name]["low"] > max(others)) if metric_of(name).better == "higher" else bool(entry[name]["high"] < min(others))


def _cell(one: Record, *, best: bool = False) -> str:
    if "skipped" in one:
        return f"not measured: {one['skipped']}"
    value = show(one["value"])
    return f"{f'**{value}**' if best else value} [{show(one['low'])}, {show(one['high'])}]"


def _copies(copied: Record) -> str:
    more = ", **more**" if copied["more_than_alarms"] else ""
    return (f"{show(copied['rate'])} [{show(copied['low'])}, {show(copied['high'])}] "
            f"({show(copied['alarm_rate'])} [{show(copied['alarm_low'])}, {show(copied['alarm_high'])}]){more}")


def _spread(one: Record | None) -> str:
    if one is None:
        return "not measured"
    value, low, high = (f"{cost:,.0f}" if cost >= 100 else f"{cost:.3g}" for cost in (one["value"], one["low"], one["high"]))
    return f"{value} [{low}, {high}]" if one["high"] > one["low"] else value
