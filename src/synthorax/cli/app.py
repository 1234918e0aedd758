"""The command line: one thin command per verb. Importing this file imports neither torch nor any verb."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from synthorax.cli.calls import print_version, told_on_stderr, with_options_of
from synthorax.cli.catalogue import add_lists
from synthorax.cli.comparison import compare
from synthorax.cli.monitoring import add_checks
from synthorax.cli.options import LAST_SEED, Clock, ClockOption, Device, DeviceOption, Json, Seed, Threads, finish
from synthorax.cli.values import count_of, counts_of, fractions_of, named, numbers_of, setting_of
from synthorax.former_names import command_line

app = typer.Typer(
    name="synthorax", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"max_content_width": 120},
    help="Synthesise rare findings on chest radiographs, and prove on real patients whether it helped. For research; not a "
         "medical device.")

PAUSED = 75
"""exit code of a training that `--pause-after` ended: not wrong, not done (EX_TEMPFAIL of sysexits.h)"""


class Precision(StrEnum):
    """Numbers of the weights in a file."""

    bf16 = "bf16"
    fp32 = "fp32"


class Way(StrEnum):
    """What of a base moves."""

    auto = "auto"
    full = "full"
    lora = "lora"
    trunk = "trunk"


class Format(StrEnum):
    """File format of an export."""

    dicom = "dicom"
    png = "png"
    diffusers = "diffusers"


Allow = Annotated[list[str] | None, typer.Option(help="Accept this finding name of your own; repeat for more.")]
PerImage = Annotated[bool, typer.Option("--patient-per-image", help="There is no patient column and nobody was filmed twice.")]
AllowRejects = Annotated[bool, typer.Option("--allow-rejects", help="Go on where more than a tenth of the images were rejected.")]
LabelTable = Annotated[Path | None, typer.Option(help="Table with labels, if it is not metadata.csv in the folder.")]
Adapt = Annotated[Way | None, typer.Option(help="What of the base moves: everything, low-rank updates, all but the trunk, or chosen by the "
                                                "number of images.")]
Budget = Annotated[str | None, typer.Option(help="Time, such as 90s, 20m or 1h30m.")]
BudgetImages = Annotated[str | None, typer.Option(help="Images that the training sees, such as 50k, in place of a time: the same result on "
                                                       "every machine.")]


@app.command(epilog="Example: synthorax augment images/ --finding Pneumothorax --budget 20m --out augmented/")
def augment(
    dataset: Annotated[Path, typer.Argument(help="Folder of PNG, JPEG or DICOM with a label table, or a dataset folder.")],
    finding: Annotated[list[str], typer.Option(help="Rare finding to augment; repeat for more.")],
    out: Annotated[Path, typer.Option(help="Folder for the training set and the report.")],
    budget: Annotated[str | None, typer.Option(help="Time for everything, such as 90m, divided by what this machine is measured to do; 20m "
                                                    "by default.")] = None,
    budget_images: BudgetImages = None,
    num: Annotated[int | None, typer.Option(min=1, help="Synthetic images of each finding; by default as many as balance.")] = None,
    base: Annotated[Path | None, typer.Option(help="Shipped model, run or file to start from; cxr-256 by default.")] = None,
    adapt: Adapt = None,
    recipe: Annotated[str | None, typer.Option(help="Of the generator: edm-64 trains from scratch. By default the base's.")] = None,
    compressor: Annotated[Path | None, typer.Option(help="Run of the autoencoder on whose latents a latent recipe works.")] = None,
    label_table: LabelTable = None,
    allow: Allow = None,
    patient_per_image: PerImage = False,
    allow_rejects: AllowRejects = False,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """The main job: learn from your images, make more of a rare finding, screen them, and prove whether they help.

    Exit code 4: the training of the generator fell short, as the report says first of all. No evidence of help is no failure.
    """
    from synthorax.verbs.augmentation import augment as verb

    made = verb(dataset, findings=finding, out=out, budget=budget, budget_images=_images(budget_images), num=num,
                base=base, adapt=adapt and adapt.value, recipe=recipe, compressor=compressor, label_table=label_table,
                allow=allow or (), patient_per_image=patient_per_image, allow_rejects=allow_rejects, seed=seed, device=device.value,
                threads=threads)
    finish(made, json)
    if made.fell_short:
        raise typer.Exit(4)


def _images(budget: str | None) -> int | None:
    return None if budget is None else count_of("budget-images", budget)


@app.command(epilog="Example: synthorax demo --out demo/")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demonstration leaves.")],
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """The main job on drawings of a phantom thorax: offline, the same work and the same verdict on every machine."""
    from synthorax.verbs.demonstration import demo as verb

    finish(verb(out=out, seed=seed, device=device.value, threads=threads), json)


@app.command(epilog="Example: synthorax ingest CXR14/ --adapter cxr14 --out cxr14/")
def ingest(
    source: Annotated[Path, typer.Argument(help="Images as their owners lay them out.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to make.")],
    adapter: Annotated[str, typer.Option(help="folder, dicom or cxr14; recognised from the files by default.")] = "",
    label_table: LabelTable = None,
    allow: Allow = None,
    patient_per_image: PerImage = False,
    allow_rejects: AllowRejects = False,
    json: Json = False,
) -> None:
    """Turn images as they lie into a dataset folder."""
    from synthorax.data.rejects import Rejected
    from synthorax.verbs.data import ingest as verb

    dataset = verb(source, adapter=adapter, out=out, label_table=label_table, allow=allow or (), patient_per_image=patient_per_image,
                   allow_rejects=allow_rejects)
    rejected = Rejected.of_folder(dataset.path, dataset.facts)
    finish({"dataset": str(dataset.path), "images": len(dataset), "findings": list(dataset.findings),
             "notes": [(f"row {note.row}: " if note.row else "") + note.reason for note in dataset.notes],
             "rejected": rejected.to_dict() if json else rejected}, json)


@app.command(epilog="Example: synthorax prepare cxr14/ --size 256 --out prepared/")
def prepare(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the cache, rejects.csv and fingerprint.json.")],
    size: Annotated[int, typer.Option(min=8, max=2048, help="Side of the square images in pixels.")] = 256,
    split: Annotated[str, typer.Option(help="Parts of the patients for training, validation and test.")] = "0.7,0.1,0.2",
    images_per_patient: Annotated[int, typer.Option(min=1, help="Most training images of one patient.")] = 5,
    uncertain: Annotated[str, typer.Option(help="What an uncertain label counts as: ignore, positive or negative.")] = "ignore",
    unlisted: Annotated[str, typer.Option(help="What a finding counts as that a labelled image does not list: absent or 'not stated'.")]
    = "absent",
    allow: Allow = None,
    patient_per_image: PerImage = False,
    allow_rejects: AllowRejects = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Decode, check, split by patient and cache a dataset folder."""
    from synthorax.config import build
    from synthorax.types import LabelPolicy
    from synthorax.verbs.data import prepare as verb

    policy = build(LabelPolicy, {"uncertain": uncertain, "unlisted": unlisted}, where="the command line", prefix="labels")
    finish(verb(dataset, size=size, out=out, split=fractions_of(split), images_per_patient=images_per_patient, policy=policy,
                 seed=seed, allow=allow or (), patient_per_image=patient_per_image, allow_rejects=allow_rejects), json)


@app.command(epilog="Example: synthorax train edm-64 --data prepared/ --budget 30m --out runs/a")
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a TOML file.")],
    data: Annotated[Path, typer.Option(help="Prepared folder.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: table.key=value; repeat for more.")] = None,
    budget: Budget = None,
    budget_images: BudgetImages = None,
    clock: ClockOption = Clock.wall,
    pause_after: Annotated[str | None, typer.Option(help="Stop, saved, after this time; the same command goes on. Exit code 75.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on, also with other steps or learning rate.")] = False,
    base: Annotated[Path | None, typer.Option(help="Shipped model, run or model file whose weights to start from.")] = None,
    adapt: Adapt = None,
    compressor: Annotated[Path | None, typer.Option(help="Run of the autoencoder whose latents are diffused.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=LAST_SEED, help="All random numbers follow from it; else the recipe's.")] = None,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Train a generator. Under `torchrun` the same command uses several processes."""
    from synthorax.verbs.training import train as verb

    run = verb(recipe, data, out=out, overrides=set_ or (), budget=budget, pause_after=pause_after, resume=resume, base=base,
               adapt=adapt and adapt.value, compressor=compressor, seed=seed, device=device.value, threads=threads,
               clock=clock.value, budget_images=_images(budget_images))
    finish(run, json)
    if not run.finished:
        raise typer.Exit(PAUSED)


@app.command(epilog="Example: synthorax pack runs/base-64 runs/super-256 --out models/cxr-256")
def pack(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or model files: one that makes small images, then those that enlarge.")],
    out: Annotated[Path, typer.Option(help="Folder for the joint model.")],
    guide: Annotated[Path | None, typer.Option(help="Weaker model of what the first makes, to lead that away from.")] = None,
    sample: Annotated[list[str] | None, typer.Option(help="SETTING=VALUE that becomes usual, such as autoguidance=2 or steps=16; "
                                                          "repeat for more.")] = None,
    precision: Annotated[Precision, typer.Option(help="bf16 halves the file, fp32 keeps every bit.")] = Precision.bf16,
    json: Json = False,
) -> None:
    """Put trained models together, so that each enlarges the images of the one before."""
    from synthorax.verbs.training import pack as verb

    finish(verb(runs, out=out, guide=guide, sample=dict(setting_of(given) for given in sample or ()),
                 precision="bf16" if precision is Precision.bf16 else "fp32"), json)


@app.command(epilog="Example: synthorax plan prepared/ --balance Pneumothorax --out plan.csv")
def plan(
    prepared: Annotated[Path, typer.Argument(help="Prepared folder.")],
    out: Annotated[Path, typer.Option(help="Where plan.csv goes.")],
    balance: Annotated[str, typer.Option(help="Findings, comma-separated, to bring level with the most frequent one; or all.")] = "",
    count: Annotated[list[str] | None, typer.Option(help="Finding=N: make N images of a finding; repeat for more.")] = None,
    companions: Annotated[float, typer.Option(min=0, max=1, help="Images without the finding for each image with it.")] = 1.0,
    for_: Annotated[Path | None, typer.Option("--for", help="Model that will make the images: what it is not conditioned on is left out, "
                                                            "such as sites it does not know.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Decide which images to make, and write it down before any exists."""
    from synthorax.verbs.synthesis import plan as verb

    names = [name.strip() for name in balance.split(",") if name.strip()]
    finish(verb(prepared, balance=names, count=counts_of(count or ()), companions=companions, model=for_, seed=seed, out=out), json)


@app.command(epilog="Example: synthorax generate runs/a --plan plan.csv --out synthetic/")
def generate(
    model: Annotated[Path, typer.Argument(help="Shipped model, run folder, model file, or folder saved by diffusers.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to make.")],
    plan: Annotated[Path | None, typer.Option(help="plan.csv: one row an image.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Number of images, if there is no plan.")] = 16,
    finding: Annotated[list[str] | None, typer.Option(help="Finding to show; repeat for more.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Finding to be absent; repeat for more.")] = None,
    uncertain: Annotated[list[str] | None, typer.Option(help="Finding that a reader would not be sure of; repeat for more.")] = None,
    view: Annotated[str, typer.Option(help="PA, AP or LATERAL.")] = "",
    sex: Annotated[str, typer.Option(help="M or F.")] = "",
    age: Annotated[float | None, typer.Option(min=0, max=120, help="Age in years.")] = None,
    site: Annotated[str, typer.Option(help="Place whose images it is to look like, if the model knows several.")] = "",
    text: Annotated[str, typer.Option(help="Description in English; NOT and AND in capitals take parts away and join them.")] = "",
    mask: Annotated[list[str] | None, typer.Option(help="CLASS=M.png, an organ's or a finding's; or M.png of the one --finding.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="FINDING=x,y,w,h in parts of the image, from the top left; or x,y,w,h of the one "
                                                       "--finding.")] = None,
    side: Annotated[str, typer.Option(help="left or right of the patient, where the one --finding is.")] = "",
    size: Annotated[float | None, typer.Option(min=0, max=1, help="How large the one --finding is.")] = None,
    severity: Annotated[float | None, typer.Option(min=0, max=1, help="How plain the one --finding is.")] = None,
    at: Annotated[str | None, typer.Option(help="x,y: where the one --finding has its centre, in parts of the image.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Side in pixels that the images must have; refused if the model makes "
                                                               "others.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, euler, euler-a, heun, dpmpp-2m, dpmpp-2m-sde or unipc.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Noise levels visited; this and what follows are the recipe's by "
                                                                    "default.")] = None,
    schedule: Annotated[str | None, typer.Option(help="How noise falls: karras, karras-few, exponential-few, linear, cosine, flow or "
                                                                       "exponential.")] = None,
    eta: Annotated[float | None, typer.Option(min=0, max=1, help="Fresh noise of ddim and euler-a.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Weight of the condition; 1 is none.")] = None,
    part_guidance: Annotated[list[str] | None, typer.Option(help="PART=W: weight of one part, such as labels=2; repeat for more.")] = None,
    guidance_from: Annotated[float | None, typer.Option(min=0, help="Lowest noise level at which guidance acts.")] = None,
    guidance_to: Annotated[float | None, typer.Option(min=0, help="Highest noise level at which guidance acts.")] = None,
    autoguidance: Annotated[float | None, typer.Option(help="Cascade: weight of guidance away from its weaker model; 1 is none.")] = None,
    conditioning_noise: Annotated[float | None, typer.Option(min=0, help="Cascade: noise in the small images that are enlarged.")] = None,
    super_resolution_steps: Annotated[int | None, typer.Option(min=1, max=1000,
                                                               help="Cascade: noise levels of the stages that enlarge.")] = None,
    clip: Annotated[bool | None, typer.Option("--clip/--no-clip",
                                              help="Hold the image expected at a step within an image's greys.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images made at a time; by default one a thread (at least 2), 16 on a "
                                                                "GPU.")] = None,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Make synthetic images from a plan or from one condition."""
    numbers = {"age": age, "size": size, "severity": severity}
    asked: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None} | {"image_size": image_size}
    boxes = [(name, numbers_of("box", place, count=4)) for name, place in map(named, box or ())]
    centre = None if at is None else numbers_of("at", at, count=2)
    weights = {part: numbers_of("part-guidance", weight, count=1)[0] for part, weight in map(named, part_guidance or ())}

    from synthorax.verbs.synthesis import generate as verb

    dataset = verb(model, plan, out=out, num=num, finding=finding or (), without=without or (), uncertain=uncertain or (), view=view,
                   sex=sex, site=site, text=text, mask=[named(given) for given in mask or ()], box=boxes, side=side, at=centre,
                   sampler=sampler, steps=steps, schedule=schedule, eta=eta, guidance=guidance, part_guidance=weights or None,
                   guidance_from=guidance_from, guidance_to=guidance_to, autoguidance=autoguidance, conditioning_noise=conditioning_noise,
                   super_resolution_steps=super_resolution_steps, clip=clip,
                   batch_size=batch_size, seed=seed, device=device.value, threads=threads, **asked)
    finish({"dataset": str(dataset.path), "images": len(dataset), "model_digest": dataset.facts["model_digest"]}, json)


@app.command(epilog="Example: synthorax screen synthetic/ --against prepared/ --out kept/")
def screen(
    synthetic: Annotated[Path, typer.Argument(help="Dataset folder of synthetic images.")],
    against: Annotated[Path, typer.Option(help="Prepared folder that the generator was trained on.")],
    out: Annotated[Path, typer.Option(help="Dataset folder for the images that pass.")],
    finding: Annotated[list[str] | None, typer.Option(help="Check only this finding; repeat for more.")] = None,
    filter: Annotated[list[str] | None, typer.Option(help="copy, realism, duplicate and finding are usual; also view, distance, "
                                                          "outlier, entropy, or all. Repeat to choose several.")] = None,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Drop near-duplicates of training images and images that do not show what was asked for."""
    from synthorax.verbs.synthesis import screen as verb

    finish(verb(synthetic, against=against, out=out, findings=finding or (), filters=filter or (), seed=seed, device=device.value,
                threads=threads), json)


@app.command(epilog="Example: synthorax evaluate --real prepared/ --synthetic kept/ --out report/")
def evaluate(
    real: Annotated[Path, typer.Option(help="Prepared folder.")],
    synthetic: Annotated[Path, typer.Option(help="Dataset folder of synthetic images, by any generator.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json and report.html.")],
    features: Annotated[list[str] | None, typer.Option(help="Feature space that grades the images: efficientnet-lite0 (by default), chest, "
                                                            "radiomics, torchxrayvision, or a .pt or .onnx file; repeat for more.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Train no judge of outlines and corrupt no image.")] = False,
    readings: Annotated[Path | None, typer.Option(help="Table of what readers said of the images, one row a reading.")] = None,
    rqs: Annotated[Path | None, typer.Option(help="Answers to the radiomics quality score, TOML.")] = None,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure synthetic images against real ones: fidelity, lesions, diversity, control, balance, robustness, privacy."""
    from synthorax.verbs.evidence import evaluate as verb

    finish(verb(real=real, synthetic=synthetic, out=out, features=features or "efficientnet-lite0", quick=quick, readings=readings, rqs=rqs,
                 seed=seed, device=device.value, threads=threads), json)


@app.command(epilog="Example: synthorax benefit --real prepared/ --synthetic kept/ --finding Pneumothorax --out report/")
def benefit(
    real: Annotated[Path, typer.Option(help="Prepared folder.")],
    synthetic: Annotated[Path, typer.Option(help="Dataset folder of synthetic images, by any generator.")],
    finding: Annotated[list[str], typer.Option(help="Finding that the images are to help with; repeat for more.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json and report.html.")],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each arm, with --folds in each fold.")] = 5,
    classifier: Annotated[str, typer.Option(help="small, densenet121, resnet50, efficientnet, vgg16 or linear-probe.")] = "small",
    weights: Annotated[Path | None, typer.Option(help="Pretrained weights of the classifier, .pth or .safetensors.")] = None,
    updates: Annotated[int | None, typer.Option(min=2, help="Updates of every training.")] = None,
    folds: Annotated[int, typer.Option(help="Cross-validate held-out patients in so many folds; for rare findings.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Cross-validations, each with other folds.")] = 1,
    positives: Annotated[list[int] | None, typer.Option(help="Learning curve over so many real positives: 10 20 50 100.")] = None,
    more_positives: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    leave_site_out: Annotated[bool, typer.Option("--leave-site-out", help="Also train without each site in turn, and test on it.")] = False,
    external: Annotated[Path | None, typer.Option(help="Prepared folder of another hospital to test on as well.")] = None,
    gallery: Annotated[bool, typer.Option("--gallery", help="Show the images called most wrongly: images of patients.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="End with code 4 unless the images help, by 2 points or more, at no cost.")] = False,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Find out whether adding the images helps on real patients never seen; the same command goes on after a stop."""
    from synthorax.evaluation.benefit.study import asked_config, gate_reasons
    from synthorax.verbs.evidence import benefit as verb

    config = asked_config(classifier=classifier, weights=weights, updates=updates, seeds=seeds, folds=folds, repeats=repeats,
                          positives=positives or (), more_positives=more_positives or (), seed=seed,
                          leave_site_out=leave_site_out, gallery=gallery)
    report = verb(real=real, synthetic=synthetic, findings=finding, out=out, config=config, seed=seed, device=device.value, threads=threads,
                  external=external)
    finish(report, json)
    if gate and (reasons := gate_reasons(report.dimensions["benefit"])):
        print(f"synthorax: the gate says no: {'; '.join(reasons)}", file=sys.stderr)
        raise typer.Exit(4)


@app.command(epilog="Example: synthorax audit --train prepared/ --synthetic kept/ --gate --out audit/")
def audit(
    train: Annotated[Path, typer.Option(help="Prepared folder that the generator was trained on.")],
    synthetic: Annotated[Path, typer.Option(help="Dataset folder of synthetic images, by any generator.")],
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.html and cards.jsonl.")],
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 4 if the images should not be released.")] = False,
    model: Annotated[Path | None, typer.Option(help="Diffusion model that made the images, for membership by its loss.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Another one that never saw these training images.")] = None,
    features: Annotated[str, typer.Option(help="Feature space in which copies are looked for, beside pixels.")] = "efficientnet-lite0",
    planted: Annotated[int, typer.Option(min=1, help="Copies planted in each way, to see whether they are caught.")] = 100,
    seed: Seed = 0,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Find out whether images copy training images, betray who was trained on, or pass for a training patient."""
    from synthorax.privacy.audit import AuditConfig
    from synthorax.verbs.evidence import audit as verb

    report = verb(train=train, synthetic=synthetic, out=out, model=model, reference=reference, features=features, seed=seed,
                  config=AuditConfig(planted=planted, seed=seed), device=device.value, threads=threads)
    finish(report, json)
    reasons = report.dimensions["privacy"].extra["gate"]["reasons"]
    sys.stderr.writelines(f"not fit for release: {reason}\n" for reason in reasons)
    if gate and reasons:
        raise typer.Exit(4)  # a gate that the user asked for said no


add_checks(app)


@app.command(name="lesion-noise", epilog="Example: synthorax lesion-noise prepared/ --size 64 --out noise/")
def lesion_noise(
    prepared: Annotated[Path, typer.Argument(help="Prepared folder of images with lesion masks or boxes.")],
    out: Annotated[Path, typer.Option(help="Folder for lesion_noise.json, .md and .svg.")],
    size: Annotated[int | None, typer.Option(help="Image size that will be trained; the prepared one by default.")] = None,
    quantile: Annotated[float, typer.Option(help="Part of the lesions that may be lost.")] = 0.25,
    part: Annotated[float, typer.Option(help="Part of the noise levels at which the others shall be visible.")] = 0.5,
    json: Json = False,
) -> None:
    """Find up to which noise level lesions can be seen, and which noise levels keep small ones."""
    from synthorax.verbs.evidence import lesion_noise as verb

    finish(verb(prepared, size=size, quantile=quantile, part=part, out=out), json)


app.command(epilog="Example: synthorax compare edm-64 vae-64 dcgan-64 --data prepared/ --budget 10m --out comparison/")(compare)


@app.command(epilog="Example: synthorax export kept/ --format dicom --out dicom/")
def export(
    source: Annotated[Path, typer.Argument(help="Dataset folder; for diffusers a run folder or model file.")],
    format: Annotated[Format, typer.Option(help="dicom or png of images; diffusers of a model.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    finding: Annotated[list[str] | None, typer.Option(help="Only for diffusers: finding that the exported model shows, always; repeat for "
                                                           "more.")] = None,
    json: Json = False,
) -> None:
    """Write images with their provenance as DICOM or PNG, or a diffusion model as a folder of diffusers."""
    from synthorax.errors import UsageError

    if format is Format.diffusers:
        from synthorax.verbs.synthesis import export_model

        finish({"out": str(export_model(source, out=out, finding=finding or ()))}, json)
    elif finding:
        raise UsageError("--finding is for --format diffusers; images are exported as they are")
    else:
        from synthorax.verbs.synthesis import export as verb

        finish({"out": str(verb(source, format="dicom" if format is Format.dicom else "png", out=out))}, json)


add_lists(app)


@app.callback()
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=print_version)]
             = False) -> None:
    pass


def main() -> None:
    """Run the command line; errors become one line on stderr and an exit code."""
    words, notes = command_line(sys.argv[1:])
    for note in notes:
        print(f"synthorax: {note}", file=sys.stderr)
    with told_on_stderr(words):
        with_options_of(app, words)(words)
