"""Does a model do what it is asked? Sweeps, masks, strategies and texts on drawn thoraces, judged by a segmenter trained on others.

  python bench/studies/control.py --model runs/controlled --out bench-control [--images 2500] [--seed 0]

Writes control.json, control.md (the tables of docs/studies/control.md) and sheets of images into --out. Every piece is kept there, so
a killed bench goes on where it stopped. About 1,500 images are sampled; --seeds makes it shorter.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from control_pages import outlined, sheet, tables
from numpy.typing import NDArray
from scipy import ndimage

import synthorax as sx
from synthorax.data.dataset import read_dataset
from synthorax.data.masks import mask_stack
from synthorax.data.phantom import FINDINGS, LesionSpec, PhantomSpec, draw_phantom, write_phantom_dataset
from synthorax.data.pixels import from_unit
from synthorax.data.prepared import load_images
from synthorax.data.vocabulary import NO_FINDING
from synthorax.evaluation.metrics.lesion_control import (
    LesionMeasurements,
    leakage,
    lesion_agreement,
    mask_agreement,
    mean_score,
    measure_lesions,
    natural_spread,
    share_inside,
    share_score,
    side_agreement,
    sweep_response,
    usual_region,
)
from synthorax.evaluation.statistics.roc import delong_interval
from synthorax.files import sha256, write_atomic, write_json
from synthorax.judges.segmenter import Segmenter, SegmenterConfig, iou, load_segmenter, save_segmenter, train_segmenter
from synthorax.protocols import ATTRIBUTES, COARSE, EXACT, LESION_PROPERTIES, Condition, Model, SampleSettings
from synthorax.rng import derive
from synthorax.run import WEIGHTS_NAME
from synthorax.types import ImageSet

JUDGE_PREVALENCE = {"Effusion": 0.30, "Cardiomegaly": 0.25, "Nodule": 0.35, "Pneumothorax": 0.30}
SIDED = ("Effusion", "Nodule", "Pneumothorax")
MASKS = ("heart", "lung", *FINDINGS)
OUTLINED_BY = {"Cardiomegaly": "heart"}  # an enlarged heart's mask is the heart
DARKER = ("Pneumothorax",)  # free air: the more severe, the darker
NUM_VALUES = 9
BATCH = 32
STRATEGIES = {"label": ("label",), "mask": ("mask",), "text": ("text",), "label + mask": ("label", "mask"),
              "label + text": ("label", "text"), "mask + text": ("mask", "text"), "all three": ("label", "mask", "text")}
PARTS_OF = {"label": ("labels", "attributes", "lesions"), "mask": ("mask",), "text": ("text",)}
TEXTS = (("Effusion.", "Effusion", ""), ("No effusion.", "Effusion", ""), ("Without pleural effusion.", "Effusion", ""),
         ("Left effusion.", "Effusion", "left"), ("Right effusion.", "Effusion", "right"),
         ("There is pleural fluid on the left.", "Effusion", "left"), ("There is pleural fluid on the right.", "Effusion", "right"),
         ("Left pneumothorax.", "Pneumothorax", "left"), ("Right pneumothorax.", "Pneumothorax", "right"),
         ("Left nodule.", "Nodule", "left"), ("Right nodule.", "Nodule", "right"),
         ("Left pleural effusion. No pneumothorax, no nodule.", "Effusion", "left"))
"""text, the finding that is looked for, the side that it names"""
PAIRS = {"effusion right, nodule left": (("Effusion", "right"), ("Nodule", "left")),
         "nodules on both sides": (("Nodule", "left"), ("Nodule", "right")),
         "pneumothorax left, effusion right": (("Pneumothorax", "left"), ("Effusion", "right"))}


def main() -> int:
    """Parse the command line, run every piece, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="run folder or model file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2500, help="drawn images that train the judge")
    parser.add_argument("--updates", type=int, default=700, help="of the judge's training")
    parser.add_argument("--judge", type=Path, help="judge.safetensors of an earlier bench, to judge two models alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=8, help="of each value of a sweep; the other pieces grow with it")
    parser.add_argument("--steps", type=int, default=SampleSettings().steps)
    parser.add_argument("--guidance", type=float, default=SampleSettings().guidance)
    options = parser.parse_args()
    weights = Path(options.model) / WEIGHTS_NAME if Path(options.model).is_dir() else Path(options.model)
    settings = SampleSettings(steps=options.steps, guidance=options.guidance)
    digest = sha256(weights) if weights.is_file() else options.model
    bench = prepare(sx.load_model(options.model), digest, out=options.out, settings=settings, num_images=options.images, seed=options.seed,
                    judge_config=SegmenterConfig(updates=options.updates), num_seeds=options.seeds, judge_file=options.judge)
    print(tables(measure(bench)))
    return 0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every piece uses."""

    model: Model
    judge: Segmenter
    drawn: ImageSet
    """images of patients that neither the model nor the judge has seen"""
    masks: NDArray[np.bool_]
    """their outlines [N, M, S, S] in the judge's classes"""
    out: Path
    settings: SampleSettings
    seed: int
    num_seeds: int
    claim: Mapping[str, Any]
    spreads: dict[str, dict[str, float]] = field(default_factory=dict)

    def seeds(self, count: int, *purpose: str | int) -> list[int]:
        return [derive(self.seed, "control", *purpose, number) for number in range(count)]

    def findings(self) -> list[str]:
        return [name for name in FINDINGS if name in self.model.spec.findings]

    def sample(self, condition: Condition, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images [N, S, S], in batches that are all full, because an image may differ in its last grey level with the batch size."""
        images = []
        for start in range(0, len(seeds), BATCH):
            rows = torch.arange(start, start + BATCH).clamp_max(len(seeds) - 1)
            made = self.model.sample(condition[rows], [seeds[row] for row in rows.tolist()], self.settings)
            images.append(np.asarray(from_unit(made[: len(seeds) - start, 0].float().cpu().numpy())))
        return np.concatenate(images)

    def piece(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of one piece, from its file if it is there."""
        path = self.out / "pieces" / f"{name.replace(' ', '-')}.json"
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return kept
        start = time.monotonic()
        record = make()
        write_json(path, record | {"seconds": round(time.monotonic() - start, 1)})
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        return record


class Look:
    """What the judge sees on some images, asked for by finding."""

    def __init__(self, bench: Bench, images: NDArray[np.uint8]) -> None:
        self.judge, self.images = bench.judge, images
        self.probabilities = bench.judge(images)
        self.outlines = bench.judge.cut(self.probabilities)

    def outline(self, name: str) -> NDArray[np.bool_]:
        outlines: NDArray[np.bool_] = self.outlines[:, self.judge.classes.index(OUTLINED_BY.get(name, name))]
        return outlines

    def measure_lesions(self, name: str, regions: NDArray[np.bool_] | None = None) -> LesionMeasurements:
        probability = self.probabilities[:, self.judge.classes.index(name)]
        return measure_lesions(self.images, probability, self.outline(name), finding=name, lungs=self.outline("lung"), regions=regions)

    def others(self, name: str) -> dict[str, NDArray[np.float64]]:
        """What should not move when `name` is changed: organs, exposure, and the other findings."""
        organs = [organ for organ in ("heart", "lung") if organ != OUTLINED_BY.get(name, name)]
        found = {f"{organ} size": self.see(organ).size for organ in organs}
        found["brightness"] = self.images.mean(axis=(1, 2)) / 255
        return found | {f"{other} score": self.see(other).score for other in FINDINGS if other in self.judge.classes and other != name}


def prepare(model: Model, digest: str, *, out: Path, settings: SampleSettings, num_images: int, judge_config: SegmenterConfig, seed: int,
            num_seeds: int, num_test: int = 400, judge_file: Path | None = None) -> Bench:
    """Draw images, train the judge or read it from `judge_file`, and refuse to mix two benches in one folder."""
    size = model.spec.image_size
    claim = {"model": digest, "settings": asdict(settings), "seed": seed, "seeds": num_seeds, "images": num_images, "size": size,
             "judge": str(judge_file) if judge_file else asdict(judge_config), "test": num_test}
    path = out / "claim.json"
    if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(claim)):
        raise SystemExit(f"{out} holds a bench of another model or other options; choose another --out")
    write_json(path, claim)
    test = _phantoms(out / "drawn-unseen", num_test, size=size, seed=derive(seed, "control", "unseen") % 2**31)
    kept = judge_file or out / "judge.safetensors"
    if not kept.exists():
        start = time.monotonic()
        train = _phantoms(out / "drawn-judge", num_images, size=size, seed=derive(seed, "control", "judge") % 2**31)
        outlines, stated = _outlines(train)
        save_segmenter(kept, train_segmenter(train.pixels, outlines, stated=stated, classes=MASKS, config=judge_config, seed=seed,
                                             patients=train.patients()))
        print(f"judge trained in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    judge = load_segmenter(kept)
    outlines, _ = _outlines(test)
    bench = Bench(model=model, judge=judge, drawn=test, masks=outlines, out=out, settings=settings, seed=seed, num_seeds=num_seeds,
                  claim=claim | {"judge name": judge.name, "judge digest": judge.digest})
    bench.spreads.update(_spreads(bench))
    return bench


def _phantoms(folder: Path, num: int, *, size: int, seed: int) -> ImageSet:
    dataset = read_dataset(folder) if folder.exists() else write_phantom_dataset(folder, num=num, size=size, seed=seed,
                                                                                prevalence=JUDGE_PREVALENCE)
    return load_images(dataset, size=size, masks=True, classes=MASKS)


def _outlines(images: ImageSet) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Outlines [N, M, S, S] and which of them are known [N, M]."""
    stack = mask_stack(images.masks, np.arange(len(images)))
    return stack > 0.5, ~np.isnan(stack[:, :, 0, 0])


def _spreads(bench: Bench) -> dict[str, dict[str, float]]:
    """Natural spread of every factor over drawn images with the finding, on the left where it has a side, as the judge sees it."""
    look = Look(bench, bench.drawn.pixels)
    spreads = {}
    for name in FINDINGS:
        rows = bench.drawn.column(name) == 1
        if name in SIDED:
            rows &= _stated(bench.drawn, name, "left") == 1
        seen = look.see(name)
        spreads[name] = {factor: natural_spread(np.where(seen.found, seen.factor(factor), np.nan)[rows])
                         for factor in ("size", "x", "y", "contrast")}
        spreads[name] |= {other: natural_spread(values) for other, values in look.others(name).items()}
    return spreads


def _stated(images: ImageSet, finding: str, name: str) -> NDArray[np.float32]:
    column: NDArray[np.float32] = images.lesions[:, images.findings.index(finding), LESION_PROPERTIES.index(name)]
    return column


def measure(bench: Bench) -> dict[str, Any]:
    """Every piece, in one record that is also written to control.json, with the tables beside it."""
    spec = bench.model.spec
    record: dict[str, Any] = {"claim": dict(bench.claim), "conditions": list(spec.conditions), "masks": list(spec.masks)}
    record["judge"] = bench.piece("judge", lambda: judge_on_drawn(bench))
    record["sweeps"] = []
    for finding in bench.findings():
        factors = ("size", "severity", *(("x", "y") if finding == "Nodule" else ()))
        for factor in factors if "lesions" in spec.conditions else ():
            record["sweeps"].append(bench.piece(f"sweep {finding} {factor}", lambda: sweep(bench, finding, factor)))  # noqa: B023
    record["sides"] = [bench.piece(f"side {finding}", lambda: swap_sides(bench, finding))  # noqa: B023
                       for finding in bench.findings() if finding in SIDED and "lesions" in spec.conditions]
    if "mask" in spec.conditions:
        for alone in (False, True):
            name = "lesion mask alone" if alone else "organs and lesions"
            record[name] = bench.piece(name, lambda: from_masks(bench, alone=alone))  # noqa: B023
        record["boxes"] = bench.piece("boxes", lambda: from_boxes(bench))
        record["two lesions"] = bench.piece("two lesions", lambda: two_lesions(bench))
    record["strategies"] = bench.piece("strategies", lambda: strategies(bench))
    if "text" in spec.conditions:
        record["texts"] = bench.piece("texts", lambda: texts(bench))
    write_json(bench.out / "control.json", record)
    write_atomic(bench.out / "control.md", tables(record))
    return record


def ask(bench: Bench, count: int, *, present: Sequence[str] = (), lesions: Mapping[str, Mapping[str, Any]] | None = None,
        masks: NDArray[np.float32] | None = None, text: Sequence[str] = (),
        parts: Sequence[str] = ("labels", "attributes", "lesions")) -> Condition:
    """A condition of `count` rows. Every finding that is not in `present` is stated absent; the patient is a man of 50, PA, in every row.

    `lesions` are finding -> property -> number, or one number a row; `masks` [count, M, S, S] in the model's classes.
    """
    spec = bench.model.spec
    labels = torch.zeros(count, len(spec.findings))
    for column, name in enumerate(spec.findings):
        labels[:, column] = float(name in present or (name == NO_FINDING and not present))
    attributes = torch.full((count, len(ATTRIBUTES) + len(spec.sites)), math.nan)
    attributes[:, : len(ATTRIBUTES)] = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5])
    wanted = None
    if lesions and "lesions" in spec.conditions:
        wanted = torch.full((count, len(spec.findings), len(LESION_PROPERTIES)), math.nan)
        for name, properties in lesions.items():
            for key, value in properties.items():
                wanted[:, spec.findings.index(name), LESION_PROPERTIES.index(key)] = torch.as_tensor(value, dtype=torch.float32)
    condition = Condition(labels=labels, attributes=attributes, lesions=wanted, mask=None if masks is None else torch.from_numpy(masks),
                          text=tuple(text) or None)
    return condition.only([part for part in parts if part in spec.conditions])


def judge_on_drawn(bench: Bench) -> dict[str, Any]:
    """The ceiling: how well the judge outlines what was drawn on images it has not seen, and the sweeps of drawn images."""
    look = Look(bench, bench.drawn.pixels)
    classes = [mask_agreement(bench.masks[:, k][drawn], look.outlines[:, k][drawn], group=name, judge=bench.judge.name,
                              patients=bench.drawn.patients()[drawn].tolist()).to_dict()
               for k, name in enumerate(bench.judge.classes) if (drawn := bench.masks[:, k].any(axis=(1, 2))).sum() > 1]
    scores = [_auroc(look.see(name).score, bench.drawn.column(name) == 1) | {"group": name} for name in FINDINGS]
    return {"iou": classes, "auroc": scores, "sweeps": [_drawn_sweep(bench, finding, factor) for finding in FINDINGS
                                                       for factor in ("size", "severity")]}


def _drawn_sweep(bench: Bench, finding: str, factor: str) -> dict[str, Any]:
    """The same measurement where the drawing itself follows the request."""
    values = np.linspace(0.15, 1, NUM_VALUES) if factor == "size" else np.linspace(0.4, 1, NUM_VALUES)
    held = {"size": 0.55, "severity": 0.7}
    lesions = [LesionSpec(finding=finding, side="left", **held | {factor: float(value)}) for value in values]
    images = [draw_phantom(PhantomSpec(seed=patient % 2**31, lesions=(lesion,)), size=bench.model.spec.image_size).image
             for lesion in lesions for patient in bench.seeds(bench.num_seeds, "drawn sweep")]
    return _response(bench, np.stack(images), finding, factor, values)


def sweep(bench: Bench, finding: str, factor: str) -> dict[str, Any]:
    """One factor over its natural range; side, size, severity and, for a nodule, place are stated and held."""
    rows = bench.drawn.column(finding) == 1
    if finding in SIDED:
        rows &= _stated(bench.drawn, finding, "left") == 1
    held: dict[str, Any] = {name: float(np.nanmedian(_stated(bench.drawn, finding, name)[rows])) for name in ("size", "severity", "x", "y")}
    if finding != "Nodule":  # elsewhere the centroid moves with the size: both cannot be held
        held = {name: held[name] for name in ("size", "severity")}
    held |= {"left": 1.0} if finding in SIDED else {}
    low, high = np.nanquantile(_stated(bench.drawn, finding, factor)[rows], [0.05, 0.95])
    values = np.linspace(low, high, NUM_VALUES)
    seeds = bench.seeds(bench.num_seeds, "sweep")
    wanted = held | {factor: np.repeat(values, len(seeds))}
    images = bench.sample(ask(bench, NUM_VALUES * len(seeds), present=[finding], lesions={finding: wanted}), seeds * NUM_VALUES)
    sheet(bench.out, f"sweep-{finding}-{factor}", _by_seed(images, len(seeds)), columns=NUM_VALUES,
           title=f"{finding}: {factor}, one row a seed", captions=[f"{value:.2f}" for _ in seeds for value in values])
    return _response(bench, images, finding, factor, values) | {"held": held}


def _by_seed(images: NDArray[np.uint8], num_seeds: int) -> NDArray[np.uint8]:
    """Images in the order [V, seeds] as [seeds, V], both flattened."""
    return images.reshape(-1, num_seeds, *images.shape[1:]).swapaxes(0, 1).reshape(images.shape)


def _response(bench: Bench, images: NDArray[np.uint8], finding: str, factor: str, values: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """How the images [V * seeds, S, S] of a sweep answer, and what else moved."""
    look, shape = Look(bench, images), (len(values), -1)
    outlines = look.outline(finding)
    region = usual_region(outlines.reshape(*shape, *outlines.shape[1:])).reshape(outlines.shape) if factor == "severity" else None
    seen = look.see(finding, regions=region)
    shown = "contrast" if factor == "severity" else factor
    measured = seen.factor(shown) * (-1 if factor == "severity" and finding in DARKER else 1)
    held = {name: np.where(seen.found, seen.factor(name), np.nan).reshape(shape) for name in ("size", "x", "y", "contrast")
            if name != shown}
    held |= {name: value.reshape(shape) for name, value in look.others(finding).items()}
    return {"finding": finding, "factor": factor, "found": float(seen.found.mean()),
            **sweep_response(values, measured.reshape(shape), seed=bench.seed).to_dict(),
            "leaks": [leak.to_dict() for leak in leakage(held, bench.spreads[finding], seed=bench.seed)]}


def swap_sides(bench: Bench, finding: str) -> dict[str, Any]:
    """The same seeds asked for the left and for the right; nothing else of the lesion is stated but its size and severity."""
    seeds = bench.seeds(2 * bench.num_seeds, "side")
    rows = bench.drawn.column(finding) == 1
    held = {name: float(np.nanmedian(_stated(bench.drawn, finding, name)[rows])) for name in ("size", "severity")}
    left = np.repeat([1.0, 0.0], len(seeds))
    images = bench.sample(ask(bench, len(left), present=[finding], lesions={finding: held | {"left": left}}), seeds * 2)
    sheet(bench.out, f"side-{finding}", images, columns=len(seeds), title=f"{finding}: above asked for on the left (right of the image)")
    seen = Look(bench, images).see(finding)
    right = (seen.left == left).reshape(2, -1).all(axis=0)
    return {"finding": finding, "held": held, "agreement": side_agreement(left, seen, group=finding, judge=bench.judge.name).to_dict(),
            "both": share_score(right, metric="centroid_changes_side", group=finding).to_dict()}


def _targets(bench: Bench, finding: str, count: int, *, side: str = "") -> NDArray[np.intp]:
    """Unseen drawn images with the finding, spread over the table."""
    rows = np.flatnonzero((bench.drawn.column(finding) == 1) & bench.masks[:, bench.judge.classes.index(finding)].any(axis=(1, 2)))
    if side:
        rows = rows[_stated(bench.drawn, finding, "left")[rows] == float(side == "left")]
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def _model_masks(bench: Bench, outlines: NDArray[np.bool_], *, keep: Sequence[str] | None = None,
                 value: float = EXACT) -> NDArray[np.float32]:
    """Outlines [N, M, S, S] in the judge's classes as the model's channels; those that are not kept, or not known, are not stated."""
    masks = np.full((len(outlines), len(bench.model.spec.masks), *outlines.shape[2:]), np.nan, dtype=np.float32)
    for channel, name in enumerate(bench.model.spec.masks):
        if name in bench.judge.classes and (keep is None or name in keep):
            masks[:, channel] = value * outlines[:, bench.judge.classes.index(name)]
    return masks


def from_masks(bench: Bench, *, alone: bool) -> dict[str, Any]:
    """Masks of unseen patients and nothing else: all organs and findings, or the one lesion alone."""
    scores: list[dict[str, Any]] = []
    for finding in bench.findings():
        rows = _targets(bench, finding, 2 * bench.num_seeds)
        wanted = bench.masks[rows]
        masks = _model_masks(bench, wanted, keep=[finding] if alone else None)
        images = bench.sample(ask(bench, len(rows), masks=masks, parts=("mask",)), bench.seeds(len(rows), "masks", finding))
        look, ceiling = Look(bench, images), Look(bench, bench.drawn.pixels[rows])
        classes = [finding] if alone else [finding, *(organ for organ in ("heart", "lung") if organ in bench.model.spec.masks)]
        for name in classes:
            k = bench.judge.classes.index(name)
            asked, outline, drawn = wanted[:, k], look.outline(name), ceiling.outline(name)
            score = mask_agreement(asked, outline, group=name if name == finding else f"{name} ({finding})", judge=bench.judge.name,
                                   patients=bench.drawn.patients()[rows].tolist())
            scores.append(score.to_dict() | {"ceiling": float(np.nanmean(iou(asked, drawn)))})
        k = bench.judge.classes.index(finding)
        sheet(bench.out, f"masks-{'alone' if alone else 'organs'}-{finding}", outlined(images, wanted[:, k]), columns=8,
               title=f"{finding}: plain, then with the requested outline")
    return {"scores": scores}


def from_boxes(bench: Bench) -> dict[str, Any]:
    """A box around the lesion of an unseen patient, with the label: how much of what is found lies in it."""
    scores = []
    for finding in bench.findings():
        rows = _targets(bench, finding, bench.num_seeds)
        boxes = np.zeros_like(bench.masks[rows])
        k = bench.judge.classes.index(finding)
        for number, outline in enumerate(bench.masks[rows, k]):
            down, across = ndimage.find_objects(outline.astype(int))[0]
            boxes[number, k, max(0, down.start - 1):down.stop + 1, max(0, across.start - 1):across.stop + 1] = True
        condition = ask(bench, len(rows), present=[finding], masks=_model_masks(bench, boxes, keep=[finding], value=COARSE),
                        parts=("labels", "attributes", "mask"))
        images = bench.sample(condition, bench.seeds(len(rows), "boxes", finding))
        sheet(bench.out, f"boxes-{finding}", outlined(images, boxes[:, k]), columns=8, title=f"{finding}: plain, then with the box")
        scores.append(mean_score(share_inside(boxes[:, k], Look(bench, images).outline(finding)), metric="lesion_inside_box",
                                 group=finding, judge=bench.judge.name).to_dict())
    return {"scores": scores}


def two_lesions(bench: Bench) -> dict[str, Any]:
    """Two lesions at once, of two findings and of one: is each of them there?"""
    scores = []
    for group, pair in PAIRS.items():
        if any(finding not in bench.findings() for finding, _ in pair):
            continue
        lesions = tuple(LesionSpec(finding=finding, side=side, size=0.6, severity=0.9) for finding, side in pair)
        drawn = [draw_phantom(PhantomSpec(seed=patient % 2**31, lesions=lesions), size=bench.model.spec.image_size)
                 for patient in bench.seeds(2 * bench.num_seeds, "pairs", group)]
        empty = np.zeros_like(drawn[0].image)
        wanted = np.stack([[image.masks.get(name, empty) > 0 for name in bench.judge.classes] for image in drawn])
        images = bench.sample(ask(bench, len(drawn), masks=_model_masks(bench, wanted), parts=("mask",)), bench.seeds(len(drawn), "pairs"))
        look, ceiling = Look(bench, images), Look(bench, np.stack([image.image for image in drawn]))
        names = list(dict.fromkeys(finding for finding, _ in pair))
        channels = [bench.judge.classes.index(name) for name in names]
        sheet(bench.out, f"two-{group.replace(' ', '-').replace(',', '')}", outlined(images, wanted[:, channels].any(axis=1)), columns=8,
               title=group)
        for name, k in zip(names, channels, strict=True):
            each = lesion_agreement(wanted[:, k], look.outline(name))
            patients = np.repeat(np.arange(len(each)).astype(str), [len(image) for image in each])
            best = np.concatenate(lesion_agreement(wanted[:, k], ceiling.outline(name)))
            score = mean_score(np.concatenate(each), metric="lesion_iou", group=f"{group}: {name}", patients=patients.tolist(),
                               judge=bench.judge.name)
            scores.append(score.to_dict()
                          | {"ceiling": float(best.mean()), "found": float((np.concatenate(each) > 0.3).mean())})
    return {"scores": scores}


def strategies(bench: Bench) -> dict[str, Any]:
    """The same target, an effusion on the left, by label, mask, text and their mixes; the opposite, images asked for without it."""
    spec, finding = bench.model.spec, "Effusion"
    rows = _targets(bench, finding, 4 * bench.num_seeds, side="left")
    healthy = np.flatnonzero(np.nan_to_num(bench.drawn.column(finding), nan=1) == 0)[: len(rows) // 2]
    k = bench.judge.classes.index(finding)
    records = []
    for name, sources in STRATEGIES.items():
        parts = [part for source in sources for part in PARTS_OF[source]]
        unheard = [source for source in sources if PARTS_OF[source][0] not in spec.conditions]
        if unheard:
            records.append({"strategy": name, "skipped": f"the model is not conditioned on {' or '.join(unheard)}"})
            continue
        asked = bench.masks[rows]
        positive = ask(bench, len(rows), present=[finding], lesions={finding: {"left": 1.0}}, masks=_model_masks(bench, asked),
                       text=["Left effusion."] * len(rows), parts=parts)
        negative = ask(bench, len(healthy), masks=_model_masks(bench, bench.masks[healthy]), text=["No effusion."] * len(healthy),
                       parts=parts)
        images = bench.sample(positive, bench.seeds(len(rows), "strategies"))
        without = bench.sample(negative, bench.seeds(len(healthy), "strategies", "without"))
        look, other = Look(bench, images), Look(bench, without)
        seen = look.see(finding)
        scores = np.concatenate([seen.score, other.see(finding).score])
        record = {"strategy": name, "images": len(rows), "auroc": _auroc(scores, np.arange(len(scores)) < len(rows)),
                  "side": side_agreement(np.ones(len(rows)), seen, group=name, judge=bench.judge.name).to_dict()}
        if "mask" in sources:
            record["iou"] = mask_agreement(asked[:, k], look.outline(finding), group=name, judge=bench.judge.name).to_dict()
            record["lung iou"] = mask_agreement(asked[:, bench.judge.classes.index("lung")], look.outline("lung"), group=name).to_dict()
        shown = images[:16] if "mask" not in sources else outlined(images[:16], asked[:16, k])
        sheet(bench.out, f"strategy-{name.replace(' + ', '-').replace(' ', '-')}", shown, columns=8, title=f"left effusion by {name}")
        records.append(record)
    return {"finding": finding, "strategies": records}


def texts(bench: Bench) -> dict[str, Any]:
    """Text alone, with the same seeds for every text: side of the lesion by words, its score with and without, other words for the same."""
    seeds = bench.seeds(2 * bench.num_seeds, "texts")
    seen: dict[str, LesionMeasurements] = {}
    records = []
    for number, (text, finding, side) in enumerate(TEXTS):
        images = bench.sample(ask(bench, len(seeds), text=[text] * len(seeds), parts=("text",)), seeds)
        sheet(bench.out, f"text-{number + 1:02d}", images[:16], columns=8, title=text)
        seen[text] = Look(bench, images).see(finding)
        record = {"text": text, "finding": finding, "found": float(seen[text].found.mean()), "score": float(seen[text].score.mean())}
        if side:
            record["side"] = side_agreement(np.full(len(seeds), float(side == "left")), seen[text], group=text).to_dict()
        records.append(record)
    aurocs = [_auroc(np.concatenate([seen["Effusion."].score, seen[text].score]), np.repeat([True, False], len(seeds)))
              | {"group": f"Effusion. / {text}"} for text in ("No effusion.", "Without pleural effusion.")]
    swaps = [share_score((seen[f"Left {name.lower()}."].left == 1) & (seen[f"Right {name.lower()}."].left == 0),
                         metric="centroid_follows_words", group=name).to_dict() for name in SIDED]
    return {"texts": records, "aurocs": aurocs, "swaps": swaps}


def _auroc(scores: NDArray[np.floating[Any]], positive: NDArray[np.bool_]) -> dict[str, Any]:
    area = delong_interval(positive, scores)
    return {"value": area.auc, "low": area.low, "high": area.high, "with": int(positive.sum()), "without": int((~positive).sum())}


if __name__ == "__main__":
    sys.exit(main())
