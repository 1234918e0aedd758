"""Pack: trained stages become one cascade in one file, which samples like any other model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from synthorax import __version__
from synthorax.config import build
from synthorax.errors import UsageError, nearest
from synthorax.families.denoising.cascade import CascadeModel, cascade_spec, unknown_to
from synthorax.files import write_atomic
from synthorax.folders import CLAIM_NAME, claimed
from synthorax.former_names import SETTINGS, with_present_keys
from synthorax.progress import Progress, quiet
from synthorax.protocols import ModelSpec, SampleSettings
from synthorax.run import WEIGHTS_NAME, Run, read_spec, save_model
from synthorax.steps.models.card import model_head, training_of, write_card
from synthorax.steps.models.trained_model import ModelLike, TrainedModel, open_model

Precision = Literal["bf16", "fp32"]


GUIDED = {"autoguidance": 2.0, "guidance": 1.0, "part_guidance": {}}
"""settings of a model that is packed with a guide, where none are given"""


def pack_cascade(models: Sequence[ModelLike], out: Path, *, guide: ModelLike | None = None, sample: Mapping[str, Any] | None = None,
                 name: str = "", precision: Precision = "bf16", progress: Progress = quiet) -> Run:
    """Write `models`, the one that makes small images first, as one cascade in the folder `out`.

    A packed model may be one of them: in the first place it brings all its stages, in another one those that enlarge, so that a first
    stage that was trained on can be put in the place of the old one. `guide` is a weaker model of what the first stage makes, smaller and
    less trained, away from which that is guided (Karras et al. 2024); a packed model in the first place brings its own. `sample` are
    fields of `SampleSettings` that become usual; the others are those of the first model, or with a guide `GUIDED`. What a stage does
    not know by name is not stated to it. The file's metadata name each stage with the digest of its weights; what was seen in training is
    that of the first. `precision` bf16 halves the file, fp32 keeps every bit. The same call again leaves the same file. Raises UsageError
    where a stage cannot follow the one before or a setting is unknown, and InputError for an `out` that holds something else.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"unknown precision '{precision}'; {nearest(precision, get_args(Precision))}")
    opened = [open_model(model) for model in models]
    stages = [stage for number, model in enumerate(opened) for stage in (model.parts[1:] if number and model.parts else model.stages)]
    specs, first = [stage.spec for stage in stages], stages[0].facts
    weaker = opened[0].guide if guide is None else open_model(guide).stages[0]
    settings = opened[0].facts.get("sample", {}) | (GUIDED if guide is not None else {}) | with_present_keys(dict(sample or {}), SETTINGS)
    build(SampleSettings, settings, where="pack", prefix="sample")
    spec = cascade_spec(specs, [stage.facts.get("sample", {}) for stage in stages[1:]], guide=None if weaker is None else weaker.spec)
    model = CascadeModel(spec)
    for number, (network, stage) in enumerate(zip(model.stages, stages, strict=True), start=1):
        network.load_state_dict(stage.weights)
        progress(0.6 * number / len(stages), f"read {number} of {len(stages)} stages")
    recorded: dict[str, Any] = {"stages": [_stage_record(stage) for stage in stages], "precision": precision, "sample": settings}
    if model.guide is not None and weaker is not None:
        model.guide.load_state_dict(weaker.weights)
        recorded["guide"] = _stage_record(weaker)
    name = name or out.resolve().name
    recorded |= {"recipe": name, "tool": f"synthorax {__version__}"} | {key: first[key] for key in ("support",) if key in first}
    sources = [source for stage in stages for source in stage.facts.get("sources", ())]
    recorded["sources"] = [source for number, source in enumerate(sources) if source not in sources[:number]]
    run = Run(path=out)
    inputs = {"stages": [stage.digest for stage in stages], "guide": weaker and weaker.digest, "precision": precision, "sample": settings}
    duplicate = _unclaimed_duplicate(run, recorded)
    with claimed(out, kind="a packed model", inputs=inputs, take_over=duplicate) as folder:
        if duplicate:
            folder.finish()
        elif not folder.done:
            progress(0.7, "writing")
            write_atomic(folder.work / "card.md", _card(name, spec, recorded, specs))
            save_model(folder.work / WEIGHTS_NAME, model.eval(), spec=spec, facts=recorded, precision=precision)
            folder.deliver(last=(WEIGHTS_NAME,))
            progress(1.0, f"{len(stages)} stages packed")
    return run


def _stage_record(stage: TrainedModel) -> dict[str, Any]:
    return {**stage.facts, "digest": stage.digest, "image_size": stage.spec.image_size}


def _unclaimed_duplicate(run: Run, recorded: Mapping[str, Any]) -> bool:
    """Whether the folder holds the same model from before folders had claims."""
    if not run.weights.exists() or (run.path / CLAIM_NAME).exists():
        return False
    facts = read_spec(run.weights)[1]
    return all(facts.get(key) == recorded.get(key) for key in ("stages", "guide", "precision", "sample"))


def _card(name: str, spec: ModelSpec, recorded: dict[str, Any], specs: Sequence[ModelSpec]) -> str:
    """The card of the whole, with the training of every stage."""
    head = model_head(spec, recorded, name=name)
    limits = [*head["limits"], f"Detail beyond {specs[0].image_size} px is made up by the later stages."]
    limits += [f"The stage of {own.image_size} px is not conditioned on {', '.join(unknown)}: of these it shows what the first stage drew."
               for own in specs[1:] if (unknown := unknown_to(own, specs[0]))]
    parts = [*recorded["stages"], *([recorded["guide"]] if "guide" in recorded else [])]
    training = [training_of(stage) | {"weights_sha256": stage["digest"]} for stage in parts]
    return write_card(head | {"training": training, "limits": limits})
