"""The report as one page: numbers and verdicts in words, with plots and contact sheets inside the file."""

from __future__ import annotations

import base64
import importlib.resources
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from synthorax.evaluation.report import group_plots, plots
from synthorax.metric_table import metric_of

if TYPE_CHECKING:
    from synthorax.evaluation.report.record import Report

Figure = bytes | str
"""PNG bytes or SVG text"""
FORESTS = {"fidelity": "kid", "diversity": "coverage", "clinical_acceptability": "turing_accuracy"}
"""dimension -> metric of its plot by group"""
FIGURE_TITLES = {
    "feature_map": "Map of real and synthetic images in {}",
    "closest_pairs": "Synthetic images beside the training images that they resemble most",
    "most_wrong_without": "{}: test images of patients that were classified worst without synthetic images; label and probability",
    "most_wrong_with": "{}: test images of patients that were classified worst with synthetic images; label and probability",
    "corrected_by_synthetic": "{}: test images of patients on which synthetic images helped most; label and probabilities",
    "spoiled_by_synthetic": "{}: test images of patients on which synthetic images hurt most; label and probabilities"}
"""name of a figure -> its title; what stands after a colon in the name, such as a finding, goes between the braces"""

_AREA = (("value", "auroc"), ("low", "low"), ("high", "high"))


def verdict(entry: Mapping[str, Any]) -> dict[str, str]:
    """A benefit entry in plain words: `headline` for everybody, `detail` with the numbers, `caution`, and `sizes`."""
    delta, arms = entry.get("delta") or {}, {arm["arm"]: arm for arm in entry.get("arms", ())}
    headline = {"helps": "adding synthetic images helps", "no evidence": "no evidence that adding synthetic images helps",
                "hurts": "adding synthetic images hurts"}[entry["verdict"]]
    detail = ""
    if delta:
        with_them, without = arms.get(delta["arm"], {}).get("auroc"), arms.get(delta["against"], {}).get("auroc")
        areas = f" (from {show(without)} to {show(with_them)})" if with_them is not None and without is not None else ""
        value, low, high = (show(delta[key], signed=True) for key in ("value", "low", "high"))
        detail = (f"AUROC on held-out test images of patients never seen in training: {value}{areas} for {delta['arm']} against "
                  f"{delta['against']}; 95\u00a0% interval {low} to {high}; {probability(delta)}.")
    sizes = [(entry.get("n_test_patients"), "test patients"),
             (entry.get("n_test_positive"), "test images with the finding"),
             (entry.get("n_real_positive_train"), "real training images with it"), (entry.get("seeds"), "seeds"),
             (entry.get("updates"), "updates in every arm")]
    caution = {"helps": "", "hurts": "Do not train on these images for this finding.",
               "no evidence": "That is not proof that they make no difference: the test may be too small to show one."}
    counts = ", ".join(f"{number:,} {what}" for number, what in sizes if number is not None)
    return {"headline": f"{entry['finding']}: {headline}.", "detail": detail, "caution": caution[entry["verdict"]],
            "sizes": f"{counts}." if counts else ""}


def numbers(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The three figures of a benefit entry that are read first, each as its value and what it is; none where nothing was compared."""
    delta, areas = entry.get("delta") or {}, {arm["arm"]: arm.get("auroc") for arm in entry.get("arms", ())}
    if not delta:
        return []
    without, with_them = areas.get(delta["against"]), areas.get(delta["arm"])
    interval = f"difference in AUROC, 95\u00a0% interval {show(delta['low'], signed=True)} to {show(delta['high'], signed=True)}"
    figures = [(show(delta["value"], signed=True), interval)]
    if without is not None and with_them is not None:
        figures.insert(0, (f"{without:.2f} → {with_them:.2f}", "AUROC on held-out patients, without and with synthetic images"))
    if entry.get("n_test_patients") is not None:
        shown = entry.get("n_test_positive")
        figures.append((f"{entry['n_test_patients']:,}",
                        "test patients" + ("" if shown is None else f", {shown:,} images with the finding")))
    return figures


def probability(delta: Mapping[str, Any]) -> str:
    """`p = 0.012 (DeLong)`, with the value after Holm's correction where the entry has it."""
    def in_words(p: float) -> str:
        return "< 0.001" if p < 0.001 else f"= {p:.3f}"
    corrected = f", after Holm's correction p {in_words(delta['p_holm'])}" if delta.get("p_holm") is not None else ""
    return f"p {in_words(delta['p'])} ({delta.get('test', 'test not named')}){corrected}"


def show(value: float, *, signed: bool = False) -> str:
    """A number as the page writes it: three decimals below 10, one below 1000, none above; three digits if small.

    >>> show(0.03125, signed=True), show(61.27), show(-0.5), show(412), show(0.03125)
    ('+0.031', '61.3', '−0.500', '412', '0.0312')
    """
    size = abs(value)
    if isinstance(value, int) or size >= 1000:
        text = f"{size:,.0f}"
    elif 0 < size < 0.0005 or (size < 0.1 and not signed):
        text = f"{size:.3g}"
    else:
        text = f"{size:.{3 if size < 10 else 1}f}"
    return ("−" if value < 0 else "+" if signed and value > 0 else "") + text


def render(report: Report, *, questions: Mapping[str, str]) -> str:
    """The page as one HTML text that needs no script, no network and no other file; every text in it is escaped."""
    import jinja2
    from markupsafe import Markup

    source = importlib.resources.files("synthorax.evaluation.report").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(show=show, embedded=embedded, words=_words, title=figure_title,
                               metric_name=_metric_name)
    namespace = ' xmlns="http://www.w3.org/2000/svg"'  # a page needs none, and is then free of addresses altogether
    drawn = {name: Markup(svg.replace(namespace, "")) for name, svg in _plots(report).items()}
    pictures: dict[tuple[bool, str], dict[str, Figure]] = {}  # in the report's order; a pair stands where its first sheet does
    for name, figure in report.figures.items():
        side, _, finding = name.partition(": ")
        paired = bool(finding) and side in ("real", "synthetic")
        pictures.setdefault((paired, finding if paired else name), {})[side if paired else "single"] = figure
    return environment.from_string(source).render(report=report, questions=questions, drawn=drawn, pictures=pictures, verdict=verdict,
                                                  numbers=numbers, probability=probability, made_of=_made_of(report))


def _made_of(report: Report) -> str:
    """Whom the synthetic images show, in one clause."""
    side = report.inputs.get("synthetic") or {}
    derived = int(side.get("derived_from_patients", side.get("inserted", 0)))
    if not derived:
        return "made by a model, of no patient"
    if derived == side.get("images"):
        return "radiographs of patients, with an inserted lesion"
    return (f"{derived} of {side.get('images')} are radiographs of patients with an inserted lesion, the others made by a model, of no "
            "patient")


def figure_title(name: str) -> str:
    """The title of a figure; a name without one is its own.

    >>> figure_title("feature_map: chest")
    'Map of real and synthetic images in chest'
    """
    kind, _, subject = name.partition(": ")
    return FIGURE_TITLES[kind].format(subject) if kind in FIGURE_TITLES else name


def _metric_name(identifier: str) -> str:
    """The name of a metric, with its unit if it has one."""
    known = metric_of(identifier)
    return f"{known.name} ({known.unit})" if known.unit else known.name


def _words(name: str) -> str:
    """A key for reading: `ssim` becomes `SSIM`, `not_measured` becomes `not measured`."""
    short = {"fid", "kid", "auroc", "auprc", "ssim", "auc", "ms", "mmd", "psnr"}
    words = [word.upper() if word in short else word for word in name.replace("_", " ").split(" ")]
    return " ".join(words).replace("MS SSIM", "MS-SSIM")


def _plots(report: Report) -> dict[str, str]:
    """The plots that follow from the report's own numbers, by the name under which the page asks for them."""
    drawn: dict[str, str] = {}
    if rows := report.balance:
        drawn["balance"] = plots.balance_bars([row.finding for row in rows], before=[row.before for row in rows],
                                              after=[row.after for row in rows])
    for name, metric in FORESTS.items():
        known = metric_of(metric)
        part = [score for score in report.dimensions[name].scores if score.metric == metric]
        part = [score for score in part if part and score.features == part[0].features]
        if len(part) > 1:
            legend = ("right answers", "chance") if name == "clinical_acceptability" else ("synthetic images", "floor: real images")
            label = f"{known.name}, {known.better} is better"
            axis = f"{label} ({part[0].features})" if part[0].features else label
            drawn[f"forest {name}"] = drawn.get(f"forest {name}", "") + group_plots.group_forest(
                [score.group for score in part], value=[score.value for score in part], low=[score.low for score in part],
                high=[score.high for score in part], floor=[score.floor for score in part], axis_label=axis, legend=legend)
    entries = report.dimensions["benefit"].findings
    rows_of_forest: list[tuple[Mapping[str, Any], str, str]] = []  # difference, label, verdict
    for entry in entries:
        if delta := entry.get("delta"):
            rows_of_forest.append((delta, entry["finding"], entry["verdict"]))
        if best := entry.get("delta_best_conventional"):
            rows_of_forest.append((best, f"… against {best['against']}", ""))
    if rows_of_forest:
        value, low, high = ([delta[key] for delta, _, _ in rows_of_forest] for key in ("value", "low", "high"))
        drawn["forest"] = plots.forest_plot([label for _, label, _ in rows_of_forest], value=value, low=low, high=high,
                                            verdicts=[verdict_shown for _, _, verdict_shown in rows_of_forest])
    for entry in entries:
        if entry.get("roc"):
            areas = {arm["arm"]: arm["auroc"] for arm in entry.get("arms", ()) if "auroc" in arm}
            drawn[f"roc {entry['finding']}"] = plots.roc_curves(entry["roc"], aurocs=areas)
    for entry in entries:
        by_group = [(row["group"], row["arms"]) for row in entry.get("subgroups", {}).get("groups", ())]
        by_site = [(f"without {row['site']}", row["arms"]) for row in entry.get("left_out_sites", {}).get("sites", ())]
        by_site += [("another hospital", external["arms"])] if "arms" in (external := entry.get("external", {})) else []
        for place, listed in (("groups", by_group), ("sites", by_site)):
            if listed:
                lines = {arm["arm"]: {key: [areas[number][own] for _, areas in listed] for key, own in _AREA}
                         for number, arm in enumerate(listed[0][1])}
                drawn[f"{place} {entry['finding']}"] = group_plots.arms_forest([name for name, _ in listed], lines)
    for curve in report.dimensions["benefit"].extra.get("learning_curve", ()):
        if points := curve["points"]:
            lines = {arm["arm"]: {key: [point["arms"][number][name] for point in points] for key, name in _AREA}
                     for number, arm in enumerate(points[0]["arms"])}
            drawn[f"curve {curve['finding']}"] = plots.learning_curves([point["n_real_positive_train"] for point in points], lines)
    return drawn


def embedded(figure: Figure) -> str:
    """A figure as a data address; an SVG shown as an image can neither run anything nor fetch anything."""
    kind, content = ("png", figure) if isinstance(figure, bytes) else ("svg+xml", figure.encode())
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
