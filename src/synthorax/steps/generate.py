"""Generate: plan rows in, a dataset folder of synthetic images out; a generation that was stopped goes on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from synthorax.capabilities import Cascade, Denoiser
from synthorax.data.dataset import Dataset, read_dataset, write_dataset
from synthorax.data.derived import GENERATED_TEXT, TEXT_KEY
from synthorax.data.language import labels_of, parse_text
from synthorax.data.masks import IN_BOX, black_and_white
from synthorax.data.pixels import from_unit, write_png
from synthorax.data.vocabulary import NO_FINDING, NOT_A_FINDING_OF_DISEASE, format_findings
from synthorax.diffusion.guidance import check_guidance
from synthorax.diffusion.noise import check_schedule
from synthorax.diffusion.samplers import check_sampler
from synthorax.engine import Engine, Inference, asked_inference, has_openvino, inference_name
from synthorax.errors import InputError, UsageError, nearest
from synthorax.families.denoising.openvino_network import PAIR, diffusion_models, run_by_openvino
from synthorax.files import safe_name, sha256
from synthorax.folders import claimed, claimed_inputs
from synthorax.former_names import SETTINGS, with_present_keys
from synthorax.progress import Progress, portion, quiet
from synthorax.prompts import split_prompt
from synthorax.protocols import Model, SampleSettings
from synthorax.steps.cache import cache
from synthorax.steps.models.recipe import makes_volumes
from synthorax.steps.models.trained_model import TrainedModel
from synthorax.steps.planning.condition import DrawnMasks, draw_masks, measured_lesions
from synthorax.steps.planning.plan import Plan, PlanRow
from synthorax.steps.planning.support import Support
from synthorax.types import Stated, Study

Runs = Literal["torch", "openvino"]
GPU_BATCH = 16
FROM_TEXT = "findings_from_text"
"""column that says which findings of a row were stated by its text alone"""


def generate_images(model: TrainedModel, plan: Plan, *, out: Path, settings: SampleSettings, engine: Engine,
                   batch_size: int | None = None, inference: Inference | None = None, progress: Progress = quiet) -> Dataset:
    """Make every image of the plan as `out`/images/synthetic-<row>.png, with metadata.csv and dataset.json at the end.

    An image depends on its seed and condition. Within one batch size it is the same to the bit whatever was made before and is made with
    it; another batch size may change the order of additions and with it single grey levels. By default a generation that was begun keeps
    its batch size, and a new one takes `images_at_a_time`; the same holds for what runs the networks (`inference`, see `asked_inference`).
    Raises InputError if `out` holds another generation.
    """
    if not plan.rows:
        raise InputError("the plan has no rows, so there is nothing to generate")
    if makes_volumes(model.spec):
        raise UsageError(f"{model} makes volumes and no images; sample_nodules draws lesions from it")
    network, support = model.on(engine.device), model.support
    check_settings(network, settings)
    plan.check(model.spec, progress=portion(progress, 0, 0.03))
    begun = claimed_inputs(out)
    with contextlib.ExitStack() as stack:
        runs = stack.enter_context(_running(network, engine, begun=begun, inference=inference, progress=progress))
        size = begun.get("batch size")
        batch_size = batch_size or (size if isinstance(size, int) and size > 0 else images_at_a_time(engine, runs))
        stack.enter_context(claimed(out, kind="a generation", inputs=_inputs(model, plan, settings, batch_size, inference=runs)))
        folder = out / "images"
        studies, own = [], portion(progress, 0.03, 1)
        for numbers in _chunks(len(plan), batch_size):
            masks = [draw_masks(plan.rows[number], size=model.spec.image_size, file=plan.file) for number in numbers]
            studies += [_study(model, plan, number, settings, masks=masks[number - numbers[0]], support=support, inference=runs, out=out)
                        for number in numbers]
            missing = [number for number in numbers if not (folder / _file_name(number)).exists()]
            if missing:
                images = _sample(network, plan, numbers, settings=settings, engine=engine, batch_size=batch_size, masks=masks)
                for number in missing:
                    write_png(out / studies[number].file_name, images[number - numbers[0]], provenance=_provenance(studies[number]))
            own((numbers[-1] + 1) / len(plan), f"{numbers[-1] + 1} of {len(plan)} images")
        write_dataset(out, studies, name=out.name, synthetic=True,
                      facts={"labels": model.spec.findings, "model": model.name, "model_digest": model.digest,
                             "settings": asdict(settings), **({"inference": inference_name(runs)} if runs != "torch" else {}),
                             **({"trained_on": model.trained_on} if model.trained_on else {})})
    return read_dataset(out)


@contextlib.contextmanager
def _running(network: Model, engine: Engine, *, begun: Mapping[str, Any], inference: Inference | None,
             progress: Progress) -> Iterator[Runs]:
    """Inside, the model runs as asked; tells by what it does.

    Without a wish, a generation that was begun goes on as it was begun, and a new one takes OpenVINO where that is installed and can run
    the model: where it cannot, a sentence says why.
    """
    asked = asked_inference(inference)
    if asked == "auto" and begun:
        asked = "openvino" if begun.get("inference") == "openvino" else "torch"
    module = cast(nn.Module, network)
    if asked == "openvino" and engine.device.type != "cpu":
        raise UsageError("inference openvino: it runs on the CPU; give --device cpu, or leave it out")
    if asked == "torch" or engine.device.type != "cpu" or (asked == "auto" and not (has_openvino() and diffusion_models(module))):
        yield "torch"
        return
    with contextlib.ExitStack() as stack:
        runs: Runs = "openvino"
        progress(0.0, "preparing OpenVINO")
        try:
            stack.enter_context(run_by_openvino(module, bf16=engine.bf16, threads=torch.get_num_threads(), cache=cache() / "openvino",
                                                prepare=not begun))
        except UsageError as error:
            if asked == "openvino":
                raise
            print(f"note: sampling runs in PyTorch, because {error}", file=sys.stderr, flush=True)
            runs = "torch"
        yield runs


def changed_settings(usual: SampleSettings, given: Mapping[str, Any]) -> SampleSettings:
    """The usual settings with those given by name in their place; UsageError for a name that is none."""
    names = [setting.name for setting in fields(SampleSettings)]
    given = with_present_keys(given, {before: now for before, now in SETTINGS.items() if now in names})
    for name in given:
        if name not in names:
            raise UsageError(f"unknown sampling setting '{name}'; {nearest(name, names)}")
    return replace(usual, **given)


def check_settings(model: Model, settings: SampleSettings) -> None:
    """Refuse with a UsageError, before anything is written, settings that no model or not this one can follow."""
    usual = SampleSettings()
    stages = tuple(model.stages) if isinstance(model, Cascade) else ()
    if isinstance(model, Denoiser) and model.needs_image:
        raise UsageError("this model enlarges images and makes none of its own; put it behind one that does with synthorax pack")
    if settings.super_resolution_steps is not None and not stages:
        raise UsageError(f"super_resolution_steps are those of a cascade, and this is a model of family '{model.spec.family}'")
    if settings.autoguidance != 1 and not (isinstance(model, Cascade) and model.guide is not None):
        raise UsageError("autoguidance needs a weaker model that is packed beside the first stage (synthorax pack --guide)")
    if settings.conditioning_noise is not None and not stages and "image" not in model.spec.conditions:
        raise UsageError("conditioning_noise: the model is not conditioned on the part image")
    if not isinstance(model, Denoiser | Cascade):
        changed = [name for name in ("sampler", "steps", "schedule", "eta") if getattr(settings, name) != getattr(usual, name)]
        if changed:
            raise UsageError(f"a model of family '{model.spec.family}' has no sampler, so '{changed[0]}' cannot be chosen; leave it out")
    check_sampler(settings.sampler, eta=settings.eta)
    check_schedule(settings.schedule, settings.steps)
    check_guidance(settings, parts=model.spec.conditions)
    if isinstance(model, Cascade) and settings.super_resolution_steps is not None:
        for stage, own in zip(stages[1:], model.settings, strict=True):
            cast(Denoiser, stage).check_settings(replace(own, steps=settings.super_resolution_steps))
    first = stages[0] if stages else model
    if isinstance(first, Denoiser):
        first.check_settings(settings)
    elif settings.clip:
        raise UsageError(f"clip is for models of family 'diffusion', and this one is of family '{model.spec.family}'; leave it out")


MAX_BATCH_SIZE = 4096
"""images in a batch"""


def images_at_a_time(engine: Engine, runs: Runs = "torch") -> int:
    """The usual batch size: one image a processor thread, two with OpenVINO, which makes pairs; two at least, and sixteen on a GPU.

    The last batch is filled up, so a small one makes small requests cheap; more images than threads are hardly faster each
    (docs/explanation/speed.md).
    """
    a_thread = PAIR if runs == "openvino" else 1
    return GPU_BATCH if engine.device.type == "cuda" else min(GPU_BATCH, max(2, a_thread * torch.get_num_threads()))


def preview(model: Model, plan: Plan, *, settings: SampleSettings, engine: Engine) -> NDArray[np.uint8]:
    """The plan's images in memory, [N, S, S], for sample sheets; what the model is not conditioned on is left out of the plan."""
    plan, batch_size = plan.restricted_to(model.spec), images_at_a_time(engine)
    return np.concatenate([_sample(model, plan, numbers, settings=settings, engine=engine, batch_size=batch_size)
                           for numbers in _chunks(len(plan), batch_size)])


def _chunks(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))


def _sample(model: Model, plan: Plan, numbers: range, *, settings: SampleSettings, engine: Engine, batch_size: int,
            masks: Sequence[DrawnMasks] | None = None) -> NDArray[np.uint8]:
    """Images of some rows, [n, S, S]; the batch is filled up to its full size so that every image meets the same arithmetic."""
    rows = [plan.rows[number] for number in numbers]
    extra = batch_size - len(rows)
    filled = [*rows, *[rows[-1]] * extra]
    condition = replace(plan, rows=tuple(filled)).condition(model.spec, masks=None if masks is None else [*masks, *[masks[-1]] * extra])
    with engine.autocast():
        images = model.sample(condition, [row.seed for row in filled], settings)
    return np.asarray(from_unit(images[: len(rows), 0].float().cpu().numpy()))


def _file_name(number: int) -> str:
    return f"synthetic-{number:06d}.png"


def _study(model: TrainedModel, plan: Plan, number: int, settings: SampleSettings, *, masks: DrawnMasks, support: Support | None,
           inference: Runs, out: Path) -> Study:
    """The image's row in the table; its masks are copied to `out` first."""
    row = plan.rows[number]
    own = _with_own_masks(row, masks, number, out)
    extra = {"model": model.name, "model_digest": model.digest, "seed": str(row.seed), "plan_row": str(number),
             "sampler": settings.sampler, "steps": str(settings.steps), "guidance": f"{settings.guidance:g}",
             **_unusual(settings), "condition": json.dumps(own.requested(), sort_keys=True)}
    if inference != "torch":
        extra["inference"] = inference
    if support is not None:
        extra["extrapolation"] = "; ".join(support.beyond(replace(row, lesions=measured_lesions(row, masks))))
    study = own.study(f"images/{_file_name(number)}")
    if from_text := stated_by_text(row, findings=model.spec.findings):
        extra[FROM_TEXT] = format_findings(from_text)
    kinds = ["box" if mask is not None and mask.max() == IN_BOX else "" for mask in masks.lesions]
    lesion_kind = {"lesion_kind": "|".join(kinds)} if any(kinds) else {}
    return replace(study, study_id=f"synthetic-{model.digest[:8]}-{number:06d}", labels={**study.labels, **from_text},
                   extra={**study.extra, **lesion_kind, **extra})


def stated_by_text(row: PlanRow, *, findings: Sequence[str]) -> dict[str, Stated]:
    """What the text of a row states of findings about which the row says nothing else; a finding behind NOT is stated absent.

    >>> stated_by_text(PlanRow(seed=0, text="small left effusion NOT nodule"), findings=["Effusion", "Nodule"])
    {'Effusion': <Stated.PRESENT: 'present'>, 'Nodule': <Stated.ABSENT: 'absent'>}
    """
    from_text: dict[str, Stated] = {}
    for text, weight in split_prompt(row.text) if row.text.strip() else ():
        for name, stated in labels_of(parse_text(text, allow=findings)).items():
            if name in row.labels or name in from_text:
                continue
            if weight > 0:
                from_text[name] = stated
            elif stated is Stated.PRESENT and name != NO_FINDING:
                from_text[name] = Stated.ABSENT
    shown = {name for name, stated in {**from_text, **row.labels}.items()
             if stated is Stated.PRESENT and name not in NOT_A_FINDING_OF_DISEASE}
    if NO_FINDING in shown and len(shown) > 1:  # they exclude one another: what the row itself says stands, or else the finding
        dropped = shown if row.labels.get(NO_FINDING) is Stated.PRESENT else {NO_FINDING}
        return {name: stated for name, stated in from_text.items() if name not in dropped}
    return from_text


def _unusual(settings: SampleSettings) -> dict[str, str]:
    """Columns of settings that most generations leave as they are."""
    cells = {}
    for setting in fields(settings):
        value, usual = getattr(settings, setting.name), getattr(SampleSettings(), setting.name)
        if setting.name in ("sampler", "steps", "guidance") or value == usual:
            continue
        cells[setting.name] = (json.dumps(dict(value), sort_keys=True) if isinstance(value, Mapping) else
                               f"{value:g}" if isinstance(usual, float) else f"{value}")
    return cells


def _with_own_masks(row: PlanRow, masks: DrawnMasks, number: int, out: Path) -> PlanRow:
    """The row with masks that lie in `out`, on the grid of its image, written there unless they are there already."""
    stem = Path(_file_name(number)).stem

    def placed(mask: NDArray[np.uint8], name: str) -> str:
        path = out / "masks" / name
        if not path.exists():
            write_png(path, black_and_white(mask))
        return path.relative_to(out).as_posix()

    lesions, seen = [], Counter[str]()
    for lesion, mask in zip(row.lesions, masks.lesions, strict=True):
        seen[lesion.finding] += 1
        again = f"-{seen[lesion.finding]}" if seen[lesion.finding] > 1 else ""
        name = f"lesion/{stem}-{safe_name(lesion.finding)}{again}.png"
        lesions.append(lesion if mask is None else replace(lesion, mask=placed(mask, name)))
    organs = {organ: placed(mask, f"{safe_name(organ)}/{stem}.png") for organ, mask in masks.organs.items()}
    return replace(row, lesions=tuple(lesions), masks=organs)


def _provenance(study: Study) -> dict[str, str]:
    """What every file says of itself."""
    return {TEXT_KEY: GENERATED_TEXT,
            **{name: cell for name, cell in study.extra.items() if cell}}


def _inputs(model: TrainedModel, plan: Plan, settings: SampleSettings, batch_size: int, *,
            inference: Runs) -> dict[str, Any]:
    """All that the images depend on, for the claim of their folder."""
    digests = functools.cache(lambda path: sha256(Path(path)))  # not the place of a mask counts, but what is in it
    content = json.dumps([row.with_paths(digests).cells() for row in plan.rows], sort_keys=True)
    return {"plan": hashlib.sha256(content.encode()).hexdigest(), "model": model.digest, "settings": asdict(settings),
            "batch size": batch_size, **({"inference": inference} if inference != "torch" else {})}
