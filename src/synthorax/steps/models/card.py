"""Cards of models: Markdown for people under a small head for programs, about data, terms, training, what was measured, and limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthorax.errors import InputError
from synthorax.former_names import METRICS, with_present_facts
from synthorax.metric_table import metric_of
from synthorax.protocols import ModelSpec
from synthorax.steps.models.recipe import makes_volumes
from synthorax.types import SCORE_KEYS

SCHEMA = "synthorax.card/1"
FENCE = "---\n"
"""The head is JSON between two of these, which is YAML as well: programs that read the cards of Hugging Face read it too."""
INTENDED_USE = (
    "Research and teaching: images for training and testing software, a start for training on images of one's own (`--base`), the study of "
    "generative models.",
    "Added to a training set only after `screen`, and with `benefit` on real patients never seen.",
)
LIMITS = (
    "Not a medical device. Its images must not be used to diagnose, to treat, or as evidence of what a disease looks like.",
    "It learned from the data sets below and repeats their mix of ages, views, machines and labelling errors; elsewhere it is untested.",
    "A requested finding is not certain to be visible, and where it is, it may look different from how it looks in patients.",
)
VOLUME_USE = (
    "Research and teaching: lesions to be put into images of negative patients for training and testing software, a start for training on "
    "lesions of one's own (`--base`).",
)
VOLUME_LIMITS = (
    LIMITS[0],
    "It learned from the nodules below, with the errors of their masks, at voxels of 1 mm: finer structure is invented.",
    "It knows shape and attenuation, and nothing of the vessels, the pleura or the lung around a nodule.",
    "Margin and solidity are requests; the study of the model says how well they are met.",
)
FEW_IMAGES = 20
"""a finding that fewer training images show is named among the limits"""


def model_head(spec: ModelSpec, facts: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """What a model's own file says of it, as the head of a card."""
    labels = facts.get("support", {}).get("labels", {})
    volumes = makes_volumes(spec)
    use, limits = (VOLUME_USE, VOLUME_LIMITS) if volumes else (INTENDED_USE, LIMITS)
    measured = {"measurements": list(spec.config["measurements"])} if volumes else {}
    return {**measured, "schema": SCHEMA, "name": name, "family": spec.family, "image_size_px": spec.image_size,
            "findings": list(spec.findings), "conditions": list(spec.conditions), "sites": list(spec.sites), "masks": list(spec.masks),
            "training_images": {finding: counts["present"] for finding, counts in labels.items()},
            "data": list(facts.get("sources", ())), "training": [training_of(facts)],
            "intended_use": list(use), "limits": [*limits, *_few(labels)], "tool": facts.get("tool", "")}


def training_of(facts: Mapping[str, Any], *, hours: float | None = None, machine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One training as a card tells it; hours and machine are not in the model's file, which is the same wherever it was trained."""
    seen = facts.get("data", {})
    entry = {"recipe": facts.get("recipe"), "recipe_sha256": facts.get("recipe_digest"), "data_sha256": facts.get("data_digest"),
             "images": seen.get("images"), "patients": seen.get("patients"), "steps": facts.get("steps"),
             "images_seen": facts.get("images_seen"), "held_out": facts.get("held_out"), "started_from": facts.get("started_from"),
             "compressor_sha256": facts.get("compressor_digest"), "hours": hours, "machine": dict(machine) if machine else None}
    return {key: value for key, value in entry.items() if value is not None}


def metrics_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores of a `report.json`, each with its dimension; of single findings only what was asked for and whether it helps."""
    rows = []
    for dimension, part in report["dimensions"].items():
        for score in part.get("scores", ()):
            if score.get("group", "all") == "all" or dimension in ("controllability", "lesion_preservation"):
                rows.append({"dimension": dimension, **{key: score[key] for key in SCORE_KEYS if key in score},
                             "metric": METRICS.get(score["metric"], score["metric"])})
        rows += [{"dimension": dimension, "metric": "verdict", "group": entry["finding"], "value": entry["verdict"]}
                 for entry in part.get("findings", ())]
    return rows


def write_card(head: Mapping[str, Any]) -> str:
    """The whole card; `read_card` reads its head back."""
    name, findings = head["name"], ", ".join(head["findings"]) or "none"
    use = [f"- {line}" for line in head["intended_use"]]
    limits = [f"- {line}" for line in head["limits"]]
    parts = [
        f"# {name}",
        f"{_what(head)}, family `{head['family']}`. For research; not a medical device. Its "
        f"{'volumes' if 'measurements' in head else 'images'} are synthetic and belong to no patient.",
        f"- Conditioned on: {_conditions(head)}" + ("" if "measurements" in head else f"\n- Findings: {findings}")
        + (f"\n- Sites: {', '.join(head['sites'])}" if head["sites"] else "")
        + (f"\n- Masks: {', '.join(head['masks'])}" if head["masks"] else ""),
        *_weights(head.get("weights", {}), head.get("licence", "")),
        "## Intended use", "\n".join(use), "## Limits", "\n".join(limits),
        "## Data", _data_table(head["data"]),
        _table(("finding", "training images that show it"), [(finding, str(count)) for finding, count in head["training_images"].items()]),
        "## Training", "\n".join(_training(entry) for entry in head["training"]),
        "## Measured", _metrics(head.get("metrics", ()), head.get("report", {}), study=head.get("study", "")),
        f"Made with {head['tool']}.",
    ]
    text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
    return f"{FENCE}{text}\n{FENCE}\n" + "\n\n".join(part for part in parts if part) + "\n"


def _what(head: Mapping[str, Any]) -> str:
    side = head["image_size_px"]
    if "measurements" in head:
        return f"Generator of lesions of {side} x {side} x {side} voxels"
    return f"Generator of {side} px chest radiographs"


def _conditions(head: Mapping[str, Any]) -> str:
    return ", ".join(head.get("measurements", head["conditions"])) or "nothing; it is unconditional"


def read_card(path: Path) -> dict[str, Any]:
    """The head of a card. InputError where there is none, or where it is of another schema."""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.startswith(FENCE):
            raise ValueError("it has no head")
        head = with_present_facts(json.loads(text.split(FENCE, 2)[1]))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error
    except ValueError as error:
        raise InputError(f"is no card of a model ({error})", file=path) from error
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        raise InputError(f"is no card of schema {SCHEMA}", file=path)
    return head


def licences_of(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """The different terms of the data that a model was trained on, from its file or the head of its card."""
    return list(dict.fromkeys(str(source["licence"]) for source in sources))


def _few(labels: Mapping[str, Mapping[str, int]]) -> list[str]:
    few = [f"{finding} ({counts['present']})" for finding, counts in labels.items() if counts["present"] < FEW_IMAGES]
    return [f"Fewer than {FEW_IMAGES} training images showed {', '.join(few)}: do not expect these findings to be right."] if few else []


def _weights(weights: Mapping[str, Any], licence: str) -> list[str]:
    if not weights:
        return []
    lines = [f"- Weights: `{weights['file']}`, {weights['bytes'] / 1e6:.1f} MB, stored as {weights['stored_as']}, computed in float32; "
             f"licence {licence}",
             f"- SHA-256 `{weights['sha256']}`; of the float32 weights as trained `{weights['trained_sha256']}`"]
    if "distance" in weights:
        far = weights["distance"]
        lines.append(f"- {far['images']} images with the same seeds differ from those of the float32 weights by "
                     f"{far['mean_grey_levels']:.3f} of 255 grey levels on average, {far['worst_grey_levels']:g} at most")
    return ["\n".join(lines)]


def _data_table(sources: Sequence[Mapping[str, Any]]) -> str:
    if not sources:
        return "Not noted: the images were prepared by an earlier version."
    rows = [(str(source["name"]), str(source["images"]), str(source["patients"]), source["licence"], source.get("attribution", ""),
             f"`{source['digest'][:16]}`" if source.get("digest") else "") for source in sources]
    note = "Counts are of the whole sets; training, validation and test images are of different patients. SHA-256 over table and files."
    return _table(("data set", "images", "patients", "licence", "attribution", "SHA-256"), rows) + f"\n\n{note}"


def _training(entry: Mapping[str, Any]) -> str:
    average = f", weights averaged over {entry['average_length']:g} of it" if "average_length" in entry else ""
    took = f", {entry['hours'] * 60:.1f} minutes" if "hours" in entry else ""
    machine = ", ".join(f"{name} {value}" for name, value in entry.get("machine", {}).items())
    weights = f"; weights `{entry['weights_sha256'][:16]}`" if "weights_sha256" in entry else ""
    begun = f" Began with compressor `{entry['compressor_sha256'][:16]}`." if "compressor_sha256" in entry else ""
    begun += f" {sentence(entry['started_from'])}" if "started_from" in entry else ""
    if held_out := entry.get("held_out"):
        begun += (f" Loss on validation images {held_out['loss']:.4f}; lowest, {held_out['best']:.4f}, after {held_out['best_images']} "
                  "images.")
    return (f"- `{entry.get('recipe', '?')}`: {entry.get('images', '?')} images of {entry.get('patients', '?')} patients (data "
            f"`{entry.get('data_sha256', '?')[:16]}`, recipe `{entry.get('recipe_sha256', '?')[:16]}`), {entry.get('steps', '?')} steps, "
            f"{entry.get('images_seen', '?')} images seen{took}{average}" + (f", on {machine}" if machine else "") + weights
            + (f".{begun}" if begun else ""))


def _metrics(metrics: Sequence[Mapping[str, Any]], report: Mapping[str, Any], *, study: str = "") -> str:
    if not metrics and study:
        return f"What was measured, and how, is in the study `{study}`."
    if not metrics:
        return "Nothing yet: fidelity, diversity, privacy and benefit are unknown. Run `synthorax evaluate` before you use its images."
    rows = []
    for row in metrics:
        group, metric = row.get("group", "all"), METRICS.get(row["metric"], row["metric"])
        name = metric if metric == "verdict" else metric_of(metric).name
        what = name if group == "all" else f"{name}, {group}"
        if isinstance(row["value"], str):
            rows.append((row["dimension"], what, row["value"], "", ""))
            continue
        floor = f"{row['floor']:.3g}" if "floor" in row else ""
        rows.append((row["dimension"], what, f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]", floor,
                     f"{row['n_real']} real, {row['n_synthetic']} synthetic"))
    judges = ", ".join(f"{judge['name']} (`{judge['digest'][:16]}`)" for judge in report.get("judges", ()))
    note = "With 95 % intervals. The floor is the same number between two sets of real images."
    return _table(("dimension", "metric", "value", "floor", "images"), rows) + f"\n\n{note}" + (f" Judges: {judges}." if judges else "")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    cells = [[cell.replace("|", "/") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *cells))


def sentence(started_from: dict[str, Any]) -> str:
    """What a run started from, in one sentence, and a second one for a student.

    >>> sentence({"base": "cxr", "base_digest": "ab" * 32, "way": "full", "moves": "every weight moves", "why": "asked for"})
    "Started from 'cxr' (abababababababab), adapted by full: every weight moves (asked for)."
    """
    rank = f" of rank {started_from['rank']}" if "rank" in started_from else ""
    return (f"Started from '{started_from['base']}' ({str(started_from['base_digest'])[:16]}), adapted by {started_from['way']}{rank}: "
            f"{started_from['moves']} ({started_from['why']})." + (f" {started_from['student']}" if "student" in started_from else ""))
