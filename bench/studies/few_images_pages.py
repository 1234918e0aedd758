"""What bench/studies/few_images.py shows: arms and differences with their intervals as markdown, and a sheet of images to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.evaluation.statistics.over_seeds import over_seeds, summed_copies
from synthorax.types import ImageSet

GAP = "MS-SSIM gap"
"""similarity within made images less that within real ones: above 0 they are too alike, below 0 they may be noise"""
MEASURES = {"KID with it": "lower", "KID without it": "lower", GAP: "lower", "AUROC": "higher"}
"""measure -> which way is better"""
WITHIN = 0.05
"""how far MS-SSIM within made images may be from that within real ones"""
SHOWN = 10


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds of every arm, and differences from scratch, each with its interval; copies summed over seeds."""
    groups: dict[tuple[int, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["images"], record["way"]), {})[record["seed"]] = record
    means, differences = [], []
    for (images, way), seeds in groups.items():
        entry: dict[str, Any] = {"images": images, "way": way, "seeds": len(seeds)}
        for key in ("steps", "cpu_seconds"):
            known = [record[key] for record in seeds.values() if key in record]
            entry[key] = round(float(np.mean(known)), 1) if known else None
        scratch = groups.get((images, "scratch"), {})
        both = [seed for seed in seeds if seed in scratch and way != "scratch"]
        for name in MEASURES:
            if any("skipped" in record[name] for record in seeds.values()):
                entry[name] = next(record[name] for record in seeds.values())
                continue
            entry[name] = over_seeds([r[name]["value"] for r in seeds.values()], [r[name]["error"] for r in seeds.values()])
            if both:
                size = abs if name == GAP else float
                values = [size(seeds[seed][name]["value"]) - size(scratch[seed][name]["value"]) for seed in both]
                errors = [float(np.hypot(seeds[seed][name]["error"], scratch[seed][name]["error"])) for seed in both]
                differences.append({"images": images, "way": way, "measure": f"{name}, without its sign" if name == GAP else name,
                                    "better": MEASURES[name], **over_seeds(values, errors)})
        entry["copies"] = summed_copies(record["copies"] for record in seeds.values())
        gap = entry[GAP]
        inside, outside = max(-gap["low"], gap["high"]) <= WITHIN, gap["low"] > WITHIN or gap["high"] < -WITHIN
        entry["as varied as real"] = "yes" if inside else "no" if outside else "not sure"
        means.append(entry)
    return {"means": means, "differences": differences}


def tables(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    claim, base, real = report["claim"], report["base"], report["reference"]
    trained = (f"The base was trained on {base['images']} images of {base['patients']} patients without it for {base['cpu_seconds']:.0f} s "
               f"of a processor ({base['steps']} steps). " if base["trained"] else "")
    lines = [f"{claim['finding']}: {real['images']['with']} held-out images with it and {real['images']['without']} without, "
             f"{real['patients']} patients. {trained}Every arm had {claim['others']} images without the finding beside those with it, "
             f"{claim['budget']} of {claim['clock']} time, and made {claim['made']} images a seed.", "",
             "| images with it | way | seeds | steps | processor s | KID with it | KID without it | MS-SSIM within, less real | "
             "within 0.05? | AUROC of the request | near-duplicates (false alarms) |", "|---" * 11 + "|"]
    for one in report["means"]:
        copied = one["copies"]
        called = f"{copied['rate']:.3f} [{copied['low']:.3f}, {copied['high']:.3f}]"
        alarms = f"({copied['alarm_rate']:.3f} [{copied['alarm_low']:.3f}, {copied['alarm_high']:.3f}])"
        more = ", **more**" if copied["more_than_alarms"] else ""
        lines.append(f"| {one['images']} | {one['way']} | {one['seeds']} | {one['steps']:.0f} | {one['cpu_seconds'] or '?'} | "
                     f"{formatted(one['KID with it'])} | {formatted(one['KID without it'])} | {formatted(one[GAP])} | "
                     f"{one['as varied as real']} | {formatted(one['AUROC'])} | {called} {alarms}{more} |")
    auroc = real["AUROC"]
    lines += ["", f"Real images: KID of training against held-out images with it {plain(real['KID with it'])}, MS-SSIM within them "
                  f"{plain(real['MS-SSIM within'])}, AUROC of the classifier on held-out images {plain(auroc)}.",
              "", "Less scratch, at the same number of images and the same seeds:", "",
              "| images with it | way | measure | difference (95 %) | better is |", "|---" * 5 + "|"]
    lines += [f"| {one['images']} | {one['way']} | {one['measure']} | {formatted(one, signed=True)} | {one['better']} |"
              for one in report["differences"]]
    return "\n".join(lines) + "\n"


def formatted(one: Mapping[str, Any], *, signed: bool = False) -> str:
    if "skipped" in one:
        return "not measured: " + str(one["skipped"])
    form = "+.3f" if signed else ".3f"
    return f"{one['value']:{form}} [{one['low']:{form}}, {one['high']:{form}}]"


def plain(one: Mapping[str, Any]) -> str:
    return "not measured" if "skipped" in one else f"{one['value']:.3f} (standard error {one['error']:.3f})"


def sheet(real: ImageSet, made: Mapping[str, ImageSet], path: Path) -> None:
    """Ten real held-out images with the finding, and below them ten of each arm that were asked to show it, of the first seed."""
    rows = {"real": real, **made}
    columns = min(SHOWN, *(len(images) for images in rows.values()))
    pictures = np.concatenate([images.pixels[:columns] for images in rows.values()])
    captions = [name for name in rows for _ in range(columns)]
    save_png(path, contact_sheet(pictures, columns=columns, captions=captions, tile_px=112))
