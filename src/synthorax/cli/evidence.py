"""Commands that measure: evaluate, benefit, audit, check-poisoning, drift and lesion-noise. Importing this file imports no verb."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from synthorax.cli.calls import command_line
from synthorax.cli.options import Device, DeviceOption, Fields, Given, Json, Seed, Synthetic, Threads
from synthorax.cli.output import finish
from synthorax.cli.panels import add

PANEL = "Evidence"
PROTOCOL = ("ratio", "sweep", "class_weighted", "pretraining", "synthetic_only", "resamples", "min_patients", "min_gain", "probe")
"""fields of the benefit's protocol that are fixed on the command line"""
REPORT_FOLDER = "Folder for report.json and report.html."


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add(app, PANEL, evaluate, example="evaluate --real prepared/ --synthetic kept/ --out report/")
    add(app, PANEL, benefit, example="benefit --real prepared/ --synthetic kept/ --finding Pneumothorax --out report/")
    add(app, PANEL, audit, example="audit --train prepared/ --synthetic kept/ --gate --out audit/")
    add(app, PANEL, check_poisoning, example="check-poisoning synthetic/ --against prepared/ --out vetted/ --gate")
    add(app, PANEL, drift, example="drift 2024/ 2025/ --out drift/ --gate")
    add(app, PANEL, lesion_noise, example="lesion-noise prepared/ --size 64 --out noise/")


def evaluate(
    real: Annotated[Path, typer.Option(help="Prepared folder.")],
    synthetic: Synthetic,
    out: Annotated[Path, typer.Option(help=REPORT_FOLDER)],
    features: Annotated[list[str] | None, typer.Option(help="Feature space of the metrics: efficientnet-lite0 (looks at 128 px), "
                                                            "efficientnet-lite0:own (at the images' own size; both by default), "
                                                            "scattering, chest, radiomics, torchxrayvision, or a .pt or .onnx file; "
                                                            "repeat for more.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Skip the metrics that need a trained segmenter or corrupted images.")] = False,
    readings: Annotated[Path | None, typer.Option(help="Table of readers' ratings, one row per reading.")] = None,
    rqs: Annotated[Path | None, typer.Option(help="TOML file with the answers to the radiomics quality score.")] = None,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure synthetic images against real ones.

    The report covers fidelity, lesion preservation, diversity, controllability, balance, robustness and privacy.
    """
    from synthorax.verbs.evidence import evaluate as verb

    finish(verb(real=real, synthetic=synthetic, out=out, features=features, quick=quick, readings=readings, rqs=rqs,
                seed=seed, device=device.value, threads=threads, command=command_line()), json)


def benefit(
    more_positives: Annotated[list[int] | None, typer.Argument(metavar="[NUMBER]...", help="Further numbers of --positives.")] = None,
    *,
    real: Annotated[Path, typer.Option(help="Prepared folder.")],
    synthetic: Synthetic,
    finding: Annotated[list[str], typer.Option(help="Finding that the images should help to detect; repeat for more.")],
    out: Annotated[Path, typer.Option(help=REPORT_FOLDER)],
    classifier: Annotated[str, typer.Option(help="Classifier: small, densenet121, resnet50, efficientnet, vgg16 or "
                                                 "linear-probe.")] = "small",
    weights: Annotated[Path | None, typer.Option(help="Pretrained weights of the classifier, .pth or .safetensors.")] = None,
    updates: Annotated[int | None, typer.Option(min=2, help="Number of updates of every training.")] = None,
    positives: Annotated[list[int] | None, typer.Option(help="Numbers of real positives for a learning curve, such as 10 20 50 "
                                                             "100.")] = None,
    external: Annotated[Path | None, typer.Option(help="Prepared folder of another hospital, as a further test set.")] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with code 4 unless the AUROC gains at least 2 points and nothing else "
                                                      "loses.")] = False,
    config: Annotated[Given, Fields("synthorax.evaluation.benefit.protocol:BenefitConfig", panel="Protocol",
                                    leave_out=(*PROTOCOL, "classifier", "positives", "seed"))],
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Test whether the images help on real, unseen patients.

    Classifiers are trained with and without the synthetic images and compared on held-out patients. The same command continues after a
    stop.
    """
    from synthorax.evaluation.benefit.study import asked_config, gate_reasons
    from synthorax.verbs.evidence import benefit as verb

    protocol = asked_config(config, classifier=classifier, weights=weights, updates=updates, positives=positives or (),
                            more_positives=more_positives or (), seed=seed)
    report = verb(real=real, synthetic=synthetic, findings=finding, out=out, config=protocol, seed=seed, device=device.value,
                  threads=threads, external=external, command=command_line())
    finish(report, json)
    if gate and (reasons := gate_reasons(report.dimensions["benefit"])):
        print(f"synthorax: the gate says no: {'; '.join(reasons)}", file=sys.stderr)
        raise typer.Exit(4)


def audit(
    *,
    train: Annotated[Path, typer.Option(help="Prepared folder that the generator was trained on.")],
    synthetic: Synthetic,
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.html and cards.jsonl.")],
    gate: Annotated[bool, typer.Option("--gate", help="Exit with code 4 if the images should not be released.")] = False,
    model: Annotated[Path | None, typer.Option(help="Diffusion model that made the images, for membership inference by its loss.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Diffusion model that never saw these training images, to calibrate that "
                                                        "loss.")] = None,
    features: Annotated[str, typer.Option(help="Feature space in which to look for copies, beside pixels.")] = "efficientnet-lite0",
    config: Annotated[Given, Fields("synthorax.privacy.config:AuditConfig", panel="Thoroughness",
                                    leave_out=("false_alarm_rate", "membership_margin", "judge", "seed"))],
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Look for copies, membership leaks and re-identification.

    Are synthetic images near-duplicates of training images, do they reveal who was trained on, or could they pass for a training patient?
    """
    from synthorax.privacy.config import AuditConfig
    from synthorax.verbs.evidence import audit as verb

    report = verb(train=train, synthetic=synthetic, out=out, model=model, reference=reference, features=features, seed=seed,
                  config=AuditConfig(**config, seed=seed), device=device.value, threads=threads, command=command_line())
    finish(report, json)
    reasons = report.dimensions["privacy"].extra["gate"]["reasons"]
    sys.stderr.writelines(f"not fit for release: {reason}\n" for reason in reasons)
    if gate and not reasons:
        print("synthorax: the gate says yes: nothing was found that speaks against a release", file=sys.stderr)
    if gate and reasons:
        print("synthorax: the gate says no", file=sys.stderr)
        raise typer.Exit(4)


def check_poisoning(
    suspects: Annotated[Path, typer.Argument(help="Dataset folder to check, synthetic or real.")],
    against: Annotated[Path, typer.Option(help="Prepared folder whose training images are trusted.")],
    out: Annotated[Path, typer.Option(help="Folder for flagged.csv and poisoning.json.")],
    drop: Annotated[bool, typer.Option("--drop", help="Also write clean/, a dataset folder without the flagged images.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with code 4 if more images are flagged than expected of clean ones.")] = False,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Flag images that would poison a training.

    Checks for shared triggers, adversarial noise, and labels that contradict the image.
    """
    from synthorax.verbs.evidence import check_poisoning as verb

    found = verb(suspects, against=against, out=out, drop=drop, seed=seed, device=device.value, threads=threads)
    finish(found, json)
    if gate and found.suspicious:
        print(f"synthorax: the gate says no: {found.num_flagged} of {found.num_images} images are flagged", file=sys.stderr)
        raise typer.Exit(4)


def drift(
    old: Annotated[Path, typer.Argument(help="Dataset or prepared folder of the earlier images.")],
    new: Annotated[Path, typer.Argument(help="Dataset or prepared folder of the newer images.")],
    out: Annotated[Path, typer.Option(help=REPORT_FOLDER)],
    features: Annotated[str, typer.Option(help="Feature space, see synthorax evaluate.")] = "efficientnet-lite0",
    gate: Annotated[bool, typer.Option("--gate", help="Exit with code 4 on an alarm.")] = False,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Detect distribution shift between two sets.

    Compares appearance, demographics and labels.
    """
    from synthorax.verbs.evidence import drift as verb

    found = verb(old, new, out=out, features=features, seed=seed, device=device.value, threads=threads)
    finish(found, json)
    if gate and found.alarm:
        print("synthorax: the gate says no: the newer images differ", file=sys.stderr)
        raise typer.Exit(4)


def lesion_noise(
    prepared: Annotated[Path, typer.Argument(help="Prepared folder of images with lesion masks or boxes.")],
    out: Annotated[Path, typer.Option(help="Folder for lesion_noise.json, .md and .svg.")],
    size: Annotated[int | None, typer.Option(help="Image size to train at; by default that of the prepared folder.")] = None,
    quantile: Annotated[float, typer.Option(help="Fraction of the lesions that may be lost.")] = 0.25,
    part: Annotated[float, typer.Option(help="Fraction of the noise levels at which every other lesion should be visible.")] = 0.5,
    json: Json = False,
) -> None:
    """Find the noise levels at which lesions are visible.

    The report also says which noise schedules preserve small lesions.
    """
    from synthorax.verbs.evidence import lesion_noise as verb

    finish(verb(prepared, size=size, quantile=quantile, part=part, out=out), json)
