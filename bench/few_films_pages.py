"""What bench/few_films.py shows: arms and differences with their intervals as markdown, and a sheet of films to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synthorax.evaluation.over_seeds import over_seeds, summed_copies
from synthorax.evaluation.sheets import contact_sheet, save_png
from synthorax.types import Films

GAP = "MS-SSIM gap"
"""similarity within made films less that within real ones: above 0 they are too alike, below 0 they may be noise"""
MEASURES = {"KID with it": "lower", "KID without it": "lower", GAP: "lower", "AUROC": "higher"}
"""measure -> which way is better"""
WITHIN = 0.05
"""how far MS-SSIM within made films may be from that within real ones"""
SHOWN = 10


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds of every arm, and differences from scratch, each with its interval; copies summed over seeds."""
    groups: dict[tuple[int, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["films"], record["way"]), {})[record["seed"]] = record
    means, differences = [], []
    for (films, way), seeds in groups.items():
        entry: dict[str, Any] = {"films": films, "way": way, "seeds": len(seeds)}
        for key in ("steps", "cpu_seconds"):
            known = [record[key] for record in seeds.values() if key in record]
            entry[key] = round(float(np.mean(known)), 1) if known else None
        scratch = groups.get((films, "scratch"), {})
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
                differences.append({"films": films, "way": way, "measure": f"{name}, without its sign" if name == GAP else name,
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
    trained = (f"The base was trained on {base['films']} films of {base['patients']} patients without it for {base['cpu_seconds']:.0f} s "
               f"of a processor ({base['steps']} steps). " if base["trained"] else "")
    lines = [f"{claim['finding']}: {real['films']['with']} held-out films with it and {real['films']['without']} without, "
             f"{real['patients']} patients. {trained}Every arm had {claim['others']} films without the finding beside those with it, "
             f"{claim['budget']} of {claim['clock']} time, and made {claim['made']} films a seed.", "",
             "| films with it | way | seeds | steps | processor s | KID with it | KID without it | MS-SSIM within, less real | "
             "within 0.05? | AUROC of the request | near copies (false alarms) |", "|---" * 11 + "|"]
    for one in report["means"]:
        copied = one["copies"]
        called = f"{copied['rate']:.3f} [{copied['low']:.3f}, {copied['high']:.3f}]"
        alarms = f"({copied['alarm_rate']:.3f} [{copied['alarm_low']:.3f}, {copied['alarm_high']:.3f}])"
        more = ", **more**" if copied["more_than_alarms"] else ""
        lines.append(f"| {one['films']} | {one['way']} | {one['seeds']} | {one['steps']:.0f} | {one['cpu_seconds'] or '?'} | "
                     f"{shown(one['KID with it'])} | {shown(one['KID without it'])} | {shown(one[GAP])} | "
                     f"{one['as varied as real']} | {shown(one['AUROC'])} | {called} {alarms}{more} |")
    auroc = real["AUROC"]
    lines += ["", f"Real films: KID of training against held-out films with it {plain(real['KID with it'])}, MS-SSIM within them "
                  f"{plain(real['MS-SSIM within'])}, AUROC of the classifier on held-out films {plain(auroc)}.",
              "", "Less scratch, at the same number of films and the same seeds:", "",
              "| films with it | way | measure | difference (95 %) | better is |", "|---" * 5 + "|"]
    lines += [f"| {one['films']} | {one['way']} | {one['measure']} | {shown(one, signed=True)} | {one['better']} |"
              for one in report["differences"]]
    return "\n".join(lines) + "\n"


def shown(one: Mapping[str, Any], *, signed: bool = False) -> str:
    if "skipped" in one:
        return "not measured: " + str(one["skipped"])
    form = "+.3f" if signed else ".3f"
    return f"{one['value']:{form}} [{one['low']:{form}}, {one['high']:{form}}]"


def plain(one: Mapping[str, Any]) -> str:
    return "not measured" if "skipped" in one else f"{one['value']:.3f} (standard error {one['error']:.3f})"


def sheet(real: Films, made: Mapping[str, Films], path: Path) -> None:
    """Ten real held-out films with the finding, and below them ten of each arm that were asked to show it, of the first seed."""
    rows = {"real": real, **made}
    columns = min(SHOWN, *(len(films) for films in rows.values()))
    pictures = np.concatenate([films.images[:columns] for films in rows.values()])
    captions = [name for name in rows for _ in range(columns)]
    save_png(path, contact_sheet(pictures, columns=columns, captions=captions, tile_px=112))
