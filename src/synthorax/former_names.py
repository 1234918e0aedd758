"""Names that earlier versions wrote to disk or answered to, and what they are called now. A name that is no longer read is removed here."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from synthorax.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")
SETTINGS = {
    "critic": "discriminator", "critic_channels": "discriminator_channels", "critic_first": "discriminator_warmup",
    "critic_layers": "discriminator_layers", "critic_norm": "discriminator_norm", "critic_rate": "discriminator_rate",
    "critic_repeats": "discriminator_repeats", "critic_repeats_most": "discriminator_repeats_most", "critic_width": "discriminator_width",
    "certainty": "ada_target", "codes": "latent_adversarial", "codes_width": "latent_discriminator_width", "code": "latent",
    "ema_halflife_films": "ema_halflife_images", "enlarging_steps": "super_resolution_steps", "grow_films": "growth_images",
    "guesser": "label_classifier", "image_noise": "conditioning_noise", "lessons": "distillation",
    "reading_weight": "text_statements_weight", "rise_films": "ada_images", "sight": "augmentation"}
"""keys of recipes, of `--set` and of sampling settings"""
COMPARISON = {
    "FID": "fid", "KID": "kid", "MS-SSIM within": "ms_ssim_within_synthetic", "MS-SSIM within real": "ms_ssim_within_real",
    "request AUROC": "requested_finding_auroc", "view obeyed": "view_agreement", "AUROC gained downstream": "downstream_auroc_gain",
    "real alone": "auroc_without", "with made images": "auroc_with", "with made films": "auroc_with", "films/s": "images_per_second",
    "images/s": "images_per_second", "ms alone": "ms_per_image", "ms of 8": "ms_per_image_of_8", "training MB": "training_mb",
    "sampling MB": "sampling_mb", "parameters trained": "parameters_trained"}
"""keys of comparison.json of the schema synthorax.comparison/1, and of the records that it is made of"""
FACTS = {"enlarging_steps": "super_resolution_steps", "films": "images", "films_per_second": "images_per_second",
         "films_seen": "images_seen", "held_out_films": "held_out_images", "image_noise": "conditioning_noise", "n_films": "n_images",
         "num_films": "num_images", "train_films": "train_images"}
"""keys of what a file that a verb leaves says of itself, at any depth"""
NAMES = frozenset({"labels", "masks", "ranges", "sexes", "sides", "sites", "together", "views"})
"""tables by names that users gave to findings, sites and masks, which stay as they are"""
FAMILIES = {"code-encoder": "inversion-encoder", "s4-gan": "kumar-gan", "s4-gmvae": "kumar-gmvae", "s4-vae": "kumar-vae"}
RECIPES = {"code-encoder": "inversion-encoder", "s4-gan": "kumar-gan", "s4-vae": "kumar-vae",
           **{f"s4-{name}": f"kumar-{name}" for name in ("fs-gmvae-v1", "fs-gmvae-v2", "fs-gmvae-v3", "gmvae-v3", "gmvae-v4", "gmvae-v5",
                                                         "gmvae-v6", "gmvae-v7", "gmvae-v8")}}
WEIGHTS = {"code": "latent", "code_critic": "latent_discriminator", "critic": "discriminator", "films": "images",
           "from_film": "from_image", "guesser": "label_classifier", "head_start": "warmup", "heard": "codes_in", "pace": "critic_schedule",
           "reader": "text_parser", "sight": "augmentation", "to_film": "to_image", "told": "known", "told_film": "coarse_in",
           "told_fine": "fine_in"}
"""parts of the names of weights, in model files and in checkpoints"""
CLAIMS = {**FACTS, "films_per_patient": "images_per_patient"}
"""keys of the inputs in claims; those of prepared.json stay as they were written, since a digest of them lies beside them"""
FILES = {"images": "films", "poisoning.json": "vet.json", "real-images.json": "real-films.json"}
"""present name of a file or a folder that a verb leaves -> the former one"""
COLUMNS = {"film": "image"}
"""of a table of readings"""
COMMANDS = {"loop": "refine-loop", "vet": "check-poisoning"}
OPTIONS = {"--budget-films": "--budget-images", "--enlarging-steps": "--super-resolution-steps", "--films-per-patient":
           "--images-per-patient", "--image-noise": "--conditioning-noise", "--patient-per-film": "--patient-per-image",
           "--train-films": "--train-images"}
METRICS = {
    "absent finding seen": "absent_finding_seen", "acceptable films": "acceptable_images", "acceptable images": "acceptable_images",
    "acceptable readings": "acceptable_readings", "agreement on acceptability": "agreement_on_acceptability",
    "agreement on real or synthetic": "agreement_on_origin", "balanced Turing accuracy": "balanced_turing_accuracy",
    "codes_mmd": "latent_mmd", "false alarms": "false_alarm_rate", "lesion contrast": "lesion_contrast",
    "lesion inside box": "lesion_inside_box", "lesion perceptual distance": "lesion_perceptual_distance",
    "lesion SSIM": "lesion_ssim", "mask IoU": "mask_iou", "membership auroc": "membership_auroc",
    "near-copy rate": "near_duplicate_rate", "nearer than a follow-up": "nearer_than_follow_up",
    "patient match rate": "patient_match_rate", "planted copies caught": "planted_copies_caught",
    "prevalence after": "prevalence_after", "requested finding auroc": "requested_finding_auroc",
    "requested finding seen": "requested_finding_seen", "requested mask IoU": "requested_mask_iou",
    "same-patient auroc": "same_patient_auroc", "sensitivity assisted": "sensitivity_assisted",
    "sensitivity gain": "sensitivity_gain", "sensitivity unassisted": "sensitivity_unassisted", "side agreement": "side_agreement",
    "specificity assisted": "specificity_assisted", "specificity gain": "specificity_gain",
    "specificity unassisted": "specificity_unassisted", "synthetic films called synthetic": "turing_sensitivity",
    "synthetic images called synthetic": "turing_sensitivity", "Turing accuracy": "turing_accuracy", "Turing auroc": "turing_auroc",
    "view agreement": "view_agreement"}
"""of scores, in reports of the first revision and in cards"""
REPORT_KEYS = {"leaning": "origin_reliance", "leans": "relies_on_origin", "relies on origin": "relies_on_origin",
               "real or synthetic": "real_or_synthetic", "other sites": "other_sites", "assisted reading": "assisted_reading",
               "ssim and psnr": "paired_ssim, paired_psnr"}
"""keys of `report.json` of the first revision, at any depth"""
FIGURES = ((r"Map of real and synthetic (?:films|images), (.+)", r"feature_map: \1"), (r"closest pairs", "closest_pairs"),
           (r"(.+), test (?:films|images) of patients, most wrong in arm real: .*", r"most_wrong_without: \1"),
           (r"(.+), test (?:films|images) of patients, most wrong in arm real\+synthetic: .*", r"most_wrong_with: \1"),
           (r"(.+), test (?:films|images) of patients, mended by .*", r"corrected_by_synthetic: \1"),
           (r"(.+), test (?:films|images) of patients, broken by .*", r"spoiled_by_synthetic: \1"))
"""names of figures in reports of the first revision, as patterns, and what they are called now"""


def command_line(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a call with present names of command and options, and what to say of those that were given by former ones.

    >>> command_line(["vet", "made/", "--budget-films=9"])
    (['check-poisoning', 'made/', '--budget-images=9'], ["'vet' is now 'check-poisoning'", "'--budget-films' is now '--budget-images'"])
    """
    present, notes = [], []
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        now = OPTIONS.get(name) or (COMMANDS.get(name) if number == 0 and not equals else None)
        present.append(word if now is None else now + equals + value)
        if now is not None:
            notes.append(f"'{name}' is now '{now}'")
    return present, notes


def refuse_former_keywords(*records: type, **now: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator: keywords that a function took before, and that are fields of `records` now, or have the name `now`.

    >>> class Request: __slots__ = ("finding",)
    >>> refuse_former_keywords(Request)(lambda what: what)(finding="Mass")
    Traceback (most recent call last):
    ...
    synthorax.errors.UsageError: 'finding' is a field now: give Request(finding=...)
    """
    def around(function: Callable[P, T]) -> Callable[P, T]:
        taken = inspect.signature(function).parameters

        @functools.wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> T:
            for name in keywords.keys() - taken.keys():
                for record, field in itertools.product(records, (name, SETTINGS.get(name, name))):
                    if field in getattr(record, "__slots__", ()):
                        raise UsageError(f"'{name}' is a field now: give {record.__name__}({field}=...)")
                if name in now:
                    raise UsageError(f"'{name}' is now '{now[name]}'")
            return function(*arguments, **keywords)

        return call

    return around


def recipe_name(name: str) -> str:
    """The present name of a shipped recipe.

    >>> recipe_name("s4-gan"), recipe_name("edm-64")
    ('kumar-gan', 'edm-64')
    """
    return RECIPES.get(name, name)


def with_present_keys(table: Mapping[str, T], former: Mapping[str, str]) -> dict[str, T]:
    """The table with present keys; where both names of a key are there, the present one counts."""
    return {**{former.get(key, key): value for key, value in table.items()}, **{key: value for key,
                                                                                value in table.items() if key not in former}}


def with_present_facts(facts: Any) -> Any:
    """What a model file or a dataset folder says of itself, with present keys, also in tables and lists in it."""
    return _with_present(facts, FACTS)


def with_present_comparison(record: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison.json of the first schema, or one of the records that it was made of, with present keys."""
    present: dict[str, Any] = _with_present(record, COMPARISON)
    return present


def with_present_claims(inputs: Any) -> Any:
    """Inputs in a claim with present keys."""
    return _with_present(inputs, CLAIMS)


def present_place(folder: Path, name: str) -> Path:
    """A file or folder that a verb leaves, under its former name where it is there under that alone."""
    former = folder / FILES.get(name, name)
    return former if former.exists() and not (folder / name).exists() else folder / name


def with_present_weights(weights: Mapping[str, T]) -> dict[str, T]:
    """Weights by their present names, also those of a packed model's stages and of a checkpoint's players.

    Where a name that is meant to be former stands beside the present one, no name is a former one.
    """
    present = {"".join(WEIGHTS.get(part, part) for part in re.split(r"([./])", name)): value for name, value in weights.items()}
    return present if len(present) == len(weights) else dict(weights)


def with_present_metrics(report: Mapping[str, Any]) -> dict[str, Any]:
    """A `report.json` of the first revision with the present identifiers of metrics, keys and figures."""
    present: dict[str, Any] = _with_present(report, REPORT_KEYS)
    for part in present.get("dimensions", {}).values():
        for score in part.get("scores", ()):
            score["metric"] = METRICS.get(score["metric"], score["metric"])
    present["figures"] = {figure_name(name): file for name, file in present.get("figures", {}).items()}
    return present


def figure_name(name: str) -> str:
    """The present name of a figure.

    >>> figure_name("Map of real and synthetic films, chest")
    'feature_map: chest'
    """
    for pattern, now in FIGURES:
        if match := re.fullmatch(pattern, name):
            return match.expand(now)
    return name


def _with_present(facts: Any, former: Mapping[str, str]) -> Any:
    if isinstance(facts, Mapping):
        tables = {key: value if key in NAMES else _by_name(value, former) if key == "findings" else _with_present(value, former)
                  for key, value in facts.items()}
        present = with_present_keys(tables, former)
        if present.get("family") in FAMILIES:
            present["family"] = FAMILIES[present["family"]]
        return present
    return [_with_present(value, former) for value in facts] if isinstance(facts, list) else facts


def _by_name(table: Any, former: Mapping[str, str]) -> Any:
    """A table by findings, whose names stay as they are."""
    if not isinstance(table, Mapping):
        return _with_present(table, former)
    return {name: _with_present(value, former) for name, value in table.items()}
