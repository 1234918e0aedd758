"""Does today's model help? Every arm of the benefit protocol, for several findings, at few real positive images.

  python bench/studies/benefit_study.py --prepared prepared/ --model runs/base --positives 25 50 --out bench-study \\
    --task nih:Effusion --task nih:Mass --task "kermany:Viral Pneumonia"

A task is a site and a finding. Of the training images of that site it keeps so many that show the finding and --negatives times as many
that do not, adds images that the model makes, half of them asked to show the finding, and tests on the images of the site's test split;
those of the validation split set the threshold. The model is the same in all tasks and has seen the whole training split: the answer is
what such a model adds for a lab that has few images of one finding, not what a model trained on so few could add. Real images larger than
the model's are averaged down to its size. The table also has the mean over tasks of each arm's gain, with Student's interval over tasks.
Writes study.json, study.md, study.png (a sheet of made images) and keeps every training in --out, so a killed study goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

import synthorax as sx
from synthorax.data.dataset import read_dataset
from synthorax.data.prepared import Prepared, load_images
from synthorax.engine import started
from synthorax.evaluation.benefit.learning_curve import fewer_positives
from synthorax.evaluation.benefit.protocol import PLAIN
from synthorax.evaluation.benefit.study import BenefitConfig, measure_benefit
from synthorax.evaluation.report.contact_sheets import contact_sheet, save_png
from synthorax.files import write_atomic, write_json
from synthorax.judges.classifier import ClassifierConfig
from synthorax.progress import progress_line
from synthorax.rng import derive
from synthorax.steps.models.trained_model import open_model
from synthorax.steps.planning.plan import STATED_ONLY, Plan, plan_like
from synthorax.threads import available_cores
from synthorax.types import ImageSet

RATIO, SWEEP = 1.0, (0.25, 0.5, 2.0)
SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A finding to be told at one site."""

    site: str
    finding: str

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.site}-{self.finding.replace(' ', '_')}"


def main() -> int:
    """Make images, train what is missing, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--model", required=True, help="a shipped model, or a run")
    parser.add_argument("--task", action="append", required=True, metavar="SITE:FINDING", help="repeat for more")
    parser.add_argument("--positives", type=int, nargs="+", default=[25, 50])
    parser.add_argument("--negatives", type=int, default=9, help="real images without the finding for each with it, at most")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--label-guidance", type=float, default=None, help="weight of guidance by the labels; otherwise the model's own")
    parser.add_argument("--steps", type=int, default=None, help="of the sampler; otherwise the model's own")
    parser.add_argument("--updates", type=int, default=ClassifierConfig().updates)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    tasks = [Task(site=site, finding=finding) for site, _, finding in (named.partition(":") for named in options.task)]
    prepared, size = Prepared.load(options.prepared), sx.load_model(options.model).spec.image_size
    splits = {split: prepared.images(split, size=size) for split in ("train", "val", "test")}
    for task in tasks:
        if not any(study.site == task.site for study in prepared.studies) or task.finding not in prepared.findings:
            raise SystemExit(f"no image of the site '{task.site}' states '{task.finding}'")
    claim = {"prepared": prepared.digest, "model": open_model(options.model).digest, "negatives": options.negatives,
             "label_guidance": options.label_guidance, "steps": options.steps, "updates": options.updates, "seeds": options.seeds}
    kept = options.out / "claim.json"
    if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != claim:
        raise SystemExit(f"{options.out} holds a study with other images or options; choose another --out")
    write_json(kept, claim)
    records, shown = [], []
    for task in tasks:
        own = {split: of_site(images, task.site) for split, images in splits.items()}
        made = generated_images(own["train"], task, options, most=max(options.positives))
        shown += [made.pixels[:SHOWN], made.pixels[-SHOWN:]]
        records += [piece(own, made, task, count, options) for count in options.positives]
        write_json(options.out / "study.json", {"claim": claim, "records": records, "means": over_tasks(records)})
        write_atomic(options.out / "study.md", tables(records))
        save_png(options.out / "study.png", contact_sheet(np.concatenate(shown), columns=2 * SHOWN, tile_px=80))
    print(tables(records))
    return 0


def of_site(images: ImageSet, site: str) -> ImageSet:
    return images.take([row for row, study in enumerate(images.studies) if study.site == site])


def generated_images(train: ImageSet, task: Task, options: argparse.Namespace, *, most: int) -> ImageSet:
    """Enough images for the largest ratio; the first half shows the finding, with what real images of it state, and the second does not."""
    folder = options.out / "made" / task.name
    half = round(max(RATIO, *SWEEP) * most * (1 + options.negatives)) // 2
    if not (folder / "dataset.json").exists():
        rows = [replace(row, site=task.site) for value in (1.0, 0.0)
                for row in plan_like(train.take(np.flatnonzero(train.column(task.finding) == value)), num=half,
                                     seed=derive(0, "study", task.name, str(value))).rows]
        guidance = {} if options.label_guidance is None else {"part_guidance": {"labels": options.label_guidance}}
        steps = {} if options.steps is None else {"steps": options.steps}
        sx.generate(options.model, Plan(rows=tuple(rows)), out=folder, threads=options.threads, settings={**guidance, **steps})
    return load_images(read_dataset(folder, allow=train.findings), size=train.pixels.shape[1], findings=train.findings, policy=STATED_ONLY)


def few(train: ImageSet, task: Task, count: int, *, negatives: int) -> ImageSet:
    """`count` real images that show the finding, and at most `negatives` times as many that do not; fewer are parts of more."""
    rows = fewer_positives(train, np.arange(len(train)), task.finding, count, seed=0)
    labels = train.column(task.finding)[rows]
    lacking = rows[labels == 0]
    order = np.random.default_rng(derive(0, "study", "negatives", task.name)).permutation(len(lacking))
    return train.take(np.sort(np.concatenate([rows[labels == 1], lacking[order[: negatives * count]]])))


def piece(own: dict[str, ImageSet], made: ImageSet, task: Task, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """What one task comes to at one number of positive images."""
    folder = options.out / f"{task.name}-{count}"
    path = folder / "result.json"
    if not path.exists():
        real = few(own["train"], task, count, negatives=options.negatives)
        config = BenefitConfig(seeds=options.seeds, ratio=RATIO, sweep=SWEEP, classifier=ClassifierConfig(updates=options.updates))
        with started(threads=options.threads), progress_line(f"{task.name} {count}") as progress:
            result = measure_benefit(real, own["test"], made, findings=[task.finding], config=config, real_val=own["val"],
                                     keep=folder / "trainings", progress=progress)
        told = result.to_dict()
        write_json(path, {"task": task.name, "positives": int((real.column(task.finding) == 1).sum()), "images": len(real), **told})
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def over_tasks(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By number of positive images and arm: mean over tasks of the gain in AUROC over the real images alone, with Student's interval."""
    means = []
    for count in dict.fromkeys(record["positives"] for record in records):
        gains: dict[str, list[float]] = {}
        for record in records:
            if record["positives"] == count and record["status"] == "measured":
                areas = {arm["arm"]: arm["auroc"] for arm in record["findings"][0]["arms"]}
                for arm, area in areas.items():
                    gains.setdefault(arm, []).append(area - areas[PLAIN])
        for arm, each in gains.items():
            if arm != PLAIN and len(each) > 1:
                error = float(student.ppf(0.975, len(each) - 1)) * float(np.std(each, ddof=1)) / len(each) ** 0.5
                mean = float(np.mean(each))
                means.append({"positives": count, "arm": arm, "tasks": len(each), "gain": mean, "low": mean - error, "high": mean + error})
    return means


def tables(records: Sequence[dict[str, Any]]) -> str:
    """The study in Markdown: the comparison of each task, the AUROC of every arm, and the mean over tasks of each arm's gain."""
    lines = ["| task | real images (with it) | test images (with it) | AUROC real | best conventional | real + synthetic | gain (95 %) | p "
             "| "
             "verdict | would be seen |", "|---" * 10 + "|"]
    for record in records:
        if record["status"] != "measured":
            lines.append(f"| {record['task']} | {record['images']} ({record['positives']}) | | | | | | | {record['reason']} | |")
            continue
        (entry,) = record["findings"]
        arms = {arm["arm"]: arm["auroc"] for arm in entry["arms"]}
        delta, best = entry["delta"], entry["delta_best_conventional"]["against"]
        lines.append(
            f"| {record['task']} | {record['images']} ({record['positives']}) | {entry['n_test']} ({entry['n_test_positive']}) | "
            f"{arms[PLAIN]:.3f} | {arms[best]:.3f} ({best}) | {arms['real+synthetic']:.3f} | "
            f"{delta['value']:+.3f} [{delta['low']:+.3f}, {delta['high']:+.3f}] | {delta['p']:.2f} | {entry['verdict']} | "
            f"{entry['power'].get('smallest_gain', float('nan')):.3f} |")
    measured = [record for record in records if record["status"] == "measured"]
    names = [arm["arm"] for arm in measured[0]["findings"][0]["arms"]] if measured else []
    lines += ["", f"| AUROC | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for record in measured:
        areas = {arm["arm"]: arm["auroc"] for arm in record["findings"][0]["arms"]}
        lines.append(f"| {record['task']}, {record['positives']} | {' | '.join(f'{areas[name]:.3f}' for name in names)} |")
    lines += ["", "| positives | arm | tasks | mean gain over the real images alone (95 %, over tasks) |", "|---" * 4 + "|"]
    lines += [f"| {one['positives']} | {one['arm']} | {one['tasks']} | {one['gain']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}] |"
              for one in over_tasks(records)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
