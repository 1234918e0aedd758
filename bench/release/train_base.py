"""Make the base model that ships: prepare open images, train the stages in turn, watch the quality, pack and evaluate.

  python bench/release/train_base.py --sources nih/ kermany/ hannover/ --out base --hours 20 --name cxr-256

Kill it at any time: the same command goes on. `--minutes-per-call 9` stops by itself, saved, for machines that are lent by the minute;
it then returns 75 until the stages are trained, and a call without it packs and evaluates. --out gets prepared/ (patients of the test
split never train), one run a stage, curve.md with KID and FID against held-out images as training goes on, sheets/, and at the end
images/, report/ and zoo/, with the command that puts the model into the package.

`licence` and `attribution` go from each source's dataset.json onto the card; for three well-known sets they are known here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesion_images import with_lesions
from stages import GUIDE_AT, GUIDE_LENGTH, PACKED_SAMPLE, STAGES, Stage, seconds_of

import synthorax as sx
from synthorax.cli.training import PAUSED
from synthorax.data.prepared import Prepared
from synthorax.data.sources import merge_datasets
from synthorax.engine import started
from synthorax.errors import SynthoraxError, UsageError
from synthorax.evaluation.metrics.distances import fid_score, kid_score
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.files import write_atomic, write_json
from synthorax.judges.features import FEATURES, load_features
from synthorax.run import Run, read_spec
from synthorax.steps.generate import preview
from synthorax.steps.models.card import read_card
from synthorax.steps.models.ship import ship
from synthorax.steps.models.weight_averages import SNAPSHOTS, blend, retune
from synthorax.steps.planning.plan import plan_like
from synthorax.steps.training.train_run import without_no_finding
from synthorax.training.power_ema import profiles_in
from synthorax.types import LabelPolicy, Score

SIZE_PX = 256
SPLIT = (0.75, 0.1, 0.15)
SHEET_IMAGES = 32
LENGTHS = (0.02, 0.05, 0.08, 0.12, 0.16, 0.2)
"""relative lengths of averaging among which a stage that keeps snapshots chooses"""
AS_TRAINED = "as trained"
SHORTEST_SECONDS = 2.0
SPARE_SECONDS = 20.0
"""left over at the end of a call for writing"""
ATTRIBUTIONS = {
    "nih": "NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC; X. Wang et al., ChestX-ray8, CVPR 2017",
    "kermany": "D. Kermany, K. Zhang, M. Goldbaum, Labeled Optical Coherence Tomography and Chest X-Ray Images, Mendeley Data 2018, "
               "https://doi.org/10.17632/rscbjbr9sj",
    "hannover": "H. B. Winther et al., COVID-19 Image Repository, Hannover Medical School 2020, https://doi.org/10.25835/0090041",
}


def main(arguments: Sequence[str] | None = None, *, stages: Sequence[Stage] = STAGES) -> int:
    """Go on from wherever the last call came to."""
    options = _options(arguments)
    clock = Clock(begin=time.monotonic(), minutes=options.minutes_per_call)
    try:
        prepared = prepare(options)
        done: list[tuple[Stage, Run]] = []
        stages = from_stage(stages, options)
        begun_from = {stage.base for stage in stages} - {""}
        for stage in stages:
            run = trained(stage, done, images_of(stage, prepared, options), options, clock, tune=stage.name not in begun_from)
            if run is None:
                print("train_base.py: saved; the same command goes on", file=sys.stderr)
                return PAUSED
            done.append((stage, run))
        if options.minutes_per_call is not None:
            print("train_base.py: trained; call again without --minutes-per-call to pack and evaluate", file=sys.stderr)
            return 0
        print(json.dumps(finish(done, prepared, options)))
    except SynthoraxError as error:
        print(f"train_base.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("train_base.py: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, nargs="+", required=True, help="dataset folders of real images; open ones, if it ships")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, required=True, help="of training, all stages together")
    parser.add_argument("--minutes-per-call", type=float, help="stop after this long, saved")
    parser.add_argument("--curve-minutes", type=float, default=30.0, help="training between two points of the curve")
    parser.add_argument("--curve-images", type=int, default=200)
    parser.add_argument("--images", type=int, default=1000, help="synthetic images of the final evaluation")
    parser.add_argument("--start", help="a trained model from which the stage --from starts")
    parser.add_argument("--from", dest="from_stage", metavar="STAGE", help="the first stage to train, in place of all before it")
    parser.add_argument("--name", default="cxr-256", help="of the model that ships")
    parser.add_argument("--size", type=int, default=SIZE_PX, help="at which images are prepared; smaller stages use means over blocks")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the trainings")
    parser.add_argument("--set", action="append", default=[], help="a setting of every stage, such as train.ema_snapshots=8")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int)
    return parser.parse_args(arguments)


def from_stage(stages: Sequence[Stage], options: argparse.Namespace) -> Sequence[Stage]:
    """The stages from --from on; UsageError for one that there is not, and for a start without it."""
    names = [stage.name for stage in stages]
    if (options.from_stage is None) != (options.start is None):
        raise UsageError("--start MODEL and --from STAGE go together: the model stands for the stages before that one")
    if options.from_stage is None:
        return stages
    if options.from_stage not in names:
        raise UsageError(f"--from {options.from_stage}: no such stage; choose from {', '.join(names)}")
    return stages[names.index(options.from_stage):]


def images_of(stage: Stage, prepared: Prepared, options: argparse.Namespace) -> Prepared:
    """What a stage learns from: the real images, or these and those with inserted lesions; validation and test images are the same."""
    if not stage.lesions:
        return prepared
    joined, left_out = with_lesions(prepared, options.out / "lesions", seed=options.seed, threads=options.threads)
    for finding, reason in left_out.items():
        print(f"train_base.py: no images with an inserted {finding}: {reason}", file=sys.stderr)
    return joined


Done = Sequence[tuple[Stage, Run]]
"""stages that are trained, in order, with the run that came of each"""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How much of this call is left."""

    begin: float
    minutes: float | None

    def left(self) -> float:
        """Seconds until this call should be writing; infinite without a limit."""
        return float("inf") if self.minutes is None else 60 * self.minutes - SPARE_SECONDS - (time.monotonic() - self.begin)


def prepare(options: argparse.Namespace) -> Prepared:
    """All sources as one set, split by patient; what a source does not label is not stated, and masks drawn by networks are left out."""
    merged = merge_datasets(options.sources, options.out / "images-real", name="open images", attributions=ATTRIBUTIONS)
    return sx.prepare(merged, size=options.size, out=options.out / "prepared", split=SPLIT, seed=options.seed,
                      policy=LabelPolicy(unlisted="not stated"))


def trained(stage: Stage, earlier: Done, prepared: Prepared, options: argparse.Namespace, clock: Clock, *, tune: bool) -> Run | None:
    """The stage's finished run, to `tune` with the best length of averaging; None where the call's time is up before that."""
    run, curve = Run(path=options.out / stage.name), Curve(options.out)
    base = teacher_of(stage, earlier, options)
    while not run.finished:
        since = trained_hours(run) - curve.hours(stage.name)
        if 60 * since >= options.curve_minutes:
            if clock.left() < curve.took():
                return None
            measure(stage, run, earlier, prepared, options, curve)
            continue
        seconds = min(max(60 * options.curve_minutes - 3600 * since, SHORTEST_SECONDS), clock.left() - curve.took())
        if seconds < SHORTEST_SECONDS:
            return None
        sx.train(stage.recipe, prepared, out=run.path, overrides=[*stage.overrides, *options.set], pause_after=seconds, base=base,
                 budget=seconds_of(stage, hours=options.hours), seed=options.seed, device=options.device, threads=options.threads)
    if curve.hours(stage.name) < trained_hours(run):
        if clock.left() < curve.took():
            return None
        measure(stage, run, earlier, prepared, options, curve)
    if stage.part < 1:
        halfway = Run(path=run.path / "blended")
        base = next(before for other, before in earlier if other.name == stage.base)
        return halfway if halfway.finished else blend(base, run, part=stage.part, out=halfway.path)
    return tuned(stage, run, earlier, prepared, options, curve, clock) if tune else run


def teacher_of(stage: Stage, earlier: Done, options: argparse.Namespace) -> Path | None:
    """What a stage starts from: the run of another one, or that packed with a guide, which is a third one as it was long before."""
    runs = {other.name: run for other, run in earlier}
    if not stage.guide:
        return (runs[stage.base].path if stage.base in runs else options.start) if stage.base else None
    packed = Run(path=options.out / f"{stage.name}-teacher")
    if packed.finished:
        return packed.path
    guide = Run(path=options.out / f"{stage.name}-guide")
    if not guide.finished:
        taught = runs[stage.guide]
        first = min(profile.end for profile in profiles_in(taught.path / SNAPSHOTS).values())
        images = max(round(GUIDE_AT * read_spec(taught.weights)[1]["images_seen"]), round(first))
        retune(taught, length=GUIDE_LENGTH, images=images, out=guide.path)
    return sx.pack([runs[stage.base]], out=packed.path, guide=guide, precision="fp32").path


def trained_hours(run: Run) -> float:
    """How long a run had trained when it was last paused or finished."""
    if run.finished:
        return float(read_card(run.path / "card.md")["training"][-1]["hours"])
    return float(read_spec(run.so_far)[1]["hours"]) if run.so_far.exists() else 0.0


class Curve:
    """curve.jsonl, one line a measurement; a line that was cut off by a kill is left out."""

    def __init__(self, out: Path) -> None:
        self.path, self.table = out / "curve.jsonl", out / "curve.md"

    def points(self) -> list[dict[str, Any]]:
        """All measurements so far."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def hours(self, stage: str) -> float:
        """Training behind the newest measurement of a stage."""
        return max((float(point["hours"]) for point in self.points() if point["stage"] == stage), default=0.0)

    def took(self) -> float:
        """Seconds that the last measurement took, a minute before there is one."""
        points = self.points()
        return float(points[-1]["seconds"]) if points else 60.0

    def add(self, point: dict[str, Any]) -> None:
        """Write it down, and the table for people."""
        points = [*self.points(), point]
        write_atomic(self.path, "".join(json.dumps(one) + "\n" for one in points))
        names = list(dict.fromkeys(f"{score['metric']} ({score['features']})" for one in points for score in one["scores"]))
        rows = [["stage", "hours", "images seen", *names], ["---"] * (3 + len(names))]
        for one in points:
            cells = {f"{score['metric']} ({score['features']})": f"{score['value']:.3g} [{score['low']:.3g}, {score['high']:.3g}]"
                     for score in one["scores"]}
            rows.append([one["stage"], f"{one['hours']:.2f}", str(one["images_seen"]), *(cells.get(name, "") for name in names)])
        floors = {f"{score['metric']} ({score['features']}, {one['stage']})": score.get("floor")
                  for one in points for score in one["scores"]}
        note = ", ".join(f"{name} {value:.3g}" for name, value in floors.items() if value is not None)
        write_atomic(self.table, "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\nBetween real images: {note or 'not known'}.\n")


def measure(stage: Stage, run: Run, earlier: Done, prepared: Prepared, options: argparse.Namespace, curve: Curve) -> None:
    """One point of the curve, and a sheet to look at."""
    begin = time.monotonic()
    weights = run.weights if run.finished else run.so_far
    _, facts = read_spec(weights)
    title = f"{stage.name}-{facts['steps']:08d}"
    scores = scored(whole(stage, weights, earlier, options), prepared, options, sheet=options.out / "sheets" / f"{title}.png", title=title)
    curve.add({"stage": stage.name, "step": facts["steps"], "images_seen": facts["images_seen"], "hours": trained_hours(run),
               "scores": [score.to_dict() for score in scores], "seconds": round(time.monotonic() - begin, 1)})


def whole(stage: Stage, weights: Path, earlier: Done, options: argparse.Namespace) -> Path:
    """A model file that makes images by itself: of a stage that upsamples, packed behind those before it."""
    if not stage.upsamples:
        return weights
    out = options.out / "packed-trial"
    shutil.rmtree(out, ignore_errors=True)
    return sx.pack([*(run.weights for run in together(earlier)), weights], out=out, sample=PACKED_SAMPLE,
                   precision="fp32").weights


def together(done: Done) -> list[Run]:
    """The runs of the newest model: the last stage that makes images, and those that enlarge them."""
    first = max(number for number, (stage, _) in enumerate(done) if not stage.upsamples)
    return [run for _, run in done[first:]]


def scored(weights: Path, prepared: Prepared, options: argparse.Namespace, *, sheet: Path | None = None, title: str = "") -> list[Score]:
    """FID and KID of images asked for like the validation images, against these, in every feature space; the test images stay unseen."""
    model = sx.load_model(weights)
    _, facts = read_spec(weights)
    size = model.spec.image_size
    held_out, train = prepared.images("val", size=size), prepared.images("train", size=size)
    with started(device=options.device, threads=options.threads, seed=options.seed) as engine:
        model.to(engine.device)
        images = preview(model, plan_like(without_no_finding(held_out), num=options.curve_images, seed=options.seed),
                        settings=sx.SampleSettings(**facts["sample"]), engine=engine)
        if sheet is not None:
            save_png(sheet, contact_sheet(images[:SHEET_IMAGES], columns=8, tile_px=max(96, min(size, 256)), title=title))
        scores = []
        for name in FEATURES:
            space = load_features(name)
            real, made, others = space(held_out.pixels), space(images), space(train.pixels[:: max(1, len(train) // len(held_out))])
            for score in (kid_score, fid_score):
                scores.append(score(real, made, floor_sets=(real, others), features_name=space.name, seed=options.seed,
                                    real_patients=held_out.patients()))
    return scores


def tuned(stage: Stage, run: Run, earlier: Done, prepared: Prepared, options: argparse.Namespace, curve: Curve,
          clock: Clock) -> Run | None:
    """The run with the length of averaging whose KID against the validation images is lowest; the run itself without snapshots.

    tuning.json gets one KID after the other. None where the call's time is up before the last.
    """
    if not any((run.path / SNAPSHOTS).glob("*.safetensors")):
        return run
    told, best = run.path / "tuning.json", run.path / "tuned"
    kids = json.loads(told.read_text()) if told.exists() else {}
    for name in (AS_TRAINED, *(f"{length:g}" for length in LENGTHS)):
        if name in kids:
            continue
        if clock.left() < curve.took():
            return None
        trial = run if name == AS_TRAINED else retune(run, length=float(name), out=run.path / "trial")
        scores = scored(whole(stage, trial.weights, earlier, options), prepared, options)
        kids[name] = next(score for score in scores if score.metric == "kid").to_dict()
        write_json(told, kids)
    shutil.rmtree(run.path / "trial", ignore_errors=True)
    chosen = min(kids, key=lambda name: kids[name]["value"])
    if chosen == AS_TRAINED:
        return run
    return Run(path=best) if Run(path=best).finished else retune(run, length=float(chosen), out=best)


def finish(done: Done, prepared: Prepared, options: argparse.Namespace) -> dict[str, Any]:
    """Images, report, and the model packed in --out/zoo; what exists already is used again."""
    out, stages = options.out, together(done)
    final = sx.pack(stages, out=out / "packed", sample=PACKED_SAMPLE, precision="fp32") if len(stages) > 1 else stages[0]
    earlier = [run for _, run in done if run != final]
    spec, _ = read_spec(final.weights)
    donors = without_no_finding(prepared.images("test", size=spec.image_size))
    made = sx.generate(final, plan_like(donors, num=options.images, seed=options.seed), out=out / "images", device=options.device,
                       threads=options.threads, seed=options.seed)
    report = out / "report" / "report.json"
    if not report.exists():
        sx.evaluate(real=prepared, synthetic=made, out=out / "report", seed=options.seed, device=options.device, threads=options.threads)
    limits = ["Measured against validation and test images of the same data sets; the validation images also chose the length of "
              "averaging."]
    model = ship(final, name=options.name, folder=out / "zoo", report=report, earlier=earlier, limits=limits)
    into = [f"--earlier {' '.join(str(run.path) for run in earlier)}"] if earlier else []
    command = " ".join(["python bench/release/ship.py", str(final.path), f"--name {options.name}", f"--report {report}", *into])
    return {"weights": str(model.weights), "bytes": model.weights.stat().st_size, "report": str(report), "put it into the package": command}


if __name__ == "__main__":
    sys.exit(main())
