"""How few images teach a base a finding that it never saw? From scratch against three ways to adapt it, at equal time, on patients not
seen.

  python bench/studies/few_images.py --sources nih/ --finding Pneumothorax --images 25 50 --out bench-few --base-budget 60m --budget 20m
  --seeds 0 1 2

Trains a small base on the training patients without the finding, then for each number of images, way and seed one model on that many images
with the finding and --others images without it, all of patients that the base has not seen. Every arm trains for --budget, on the wall's
clock or (--clock processor, for a busy machine) in processor time; the base's own training is not counted, as it ships once for all.
Each model makes --made images, half of them asked to show the finding, with the labels, views, sexes and ages of held-out images, and these
are measured against the held-out images. Writes few_images.json, few_images.md and few_images.png (it shows real images: keep it where they
may lie). Every piece is kept in --out, so a killed bench goes on; `--train WAY IMAGES SEED` does one training only, for machines on which
several can run side by side.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from few_images_pages import sheet, summary, tables
from lesions import prepare

import synthorax as sx
from synthorax.data.dataset import Dataset, read_dataset
from synthorax.data.prepared import Prepared, load_images
from synthorax.data.vocabulary import canonical
from synthorax.evaluation.metrics.distances import kid_score
from synthorax.evaluation.metrics.ms_ssim import ms_ssim_scores
from synthorax.evaluation.statistics.over_seeds import number
from synthorax.evaluation.statistics.roc import delong_interval
from synthorax.files import write_atomic, write_json
from synthorax.judges.classifier import Classifier, ClassifierConfig, train_classifier
from synthorax.judges.features import load_features
from synthorax.privacy.copies import half_calibrated
from synthorax.rng import derive
from synthorax.run import Run, read_spec
from synthorax.steps.models.recipe import load_recipe
from synthorax.steps.planning.plan import STATED_ONLY, Plan, plan_like
from synthorax.steps.training.base_model import LEARNING_RATES
from synthorax.steps.training.training_subset import training_set
from synthorax.types import ImageSet, Stated, Study

WAYS = ("scratch", "full", "lora", "trunk")
FEWEST_TRAIN, FEWEST_TEST = 20, 10
"""images with the finding without which no classifier is asked, and no set is compared"""


def main() -> int:
    """Train what is missing, measure what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, nargs="+", required=True, help="dataset folders of real images")
    parser.add_argument("--base-sites", nargs="+", default=[], metavar="SITE",
                        help="sites all of whose images the base may learn from; the arms and the held-out images are of the others")
    parser.add_argument("--finding", required=True, help="withheld from the base, then learned from few images")
    parser.add_argument("--images", type=int, nargs="+", default=[25, 50], help="numbers of images that show it")
    parser.add_argument("--others", type=int, default=200, help="images without it beside them, of patients unknown to the base")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="edm-64")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe, the same in every arm")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--base-budget", default="60m", help="of the training of the base")
    parser.add_argument("--budget", default="20m", help="of each arm's training")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="what the budgets are counted in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each draws its own images and trains every arm once")
    parser.add_argument("--made", type=int, default=200, help="images that each arm makes, half of them with the finding")
    parser.add_argument("--judge-updates", type=int, default=ClassifierConfig().updates)
    parser.add_argument("--train", nargs=3, metavar=("WAY", "FILMS", "SEED"), help="do this one training and stop")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    bench = start_bench(options)
    if options.train:
        way, images, seed = options.train
        train(bench, Arm(way=way, images=int(images), seed=int(seed)))
        return 0
    arms = [Arm(way=way, images=images, seed=seed) for images in options.images for seed in options.seeds for way in options.ways]
    records = [piece(bench, arm.name, functools.partial(measure, bench, arm)) for arm in arms]
    report = {"claim": bench.claim, "base": base_facts(bench), "reference": piece(bench, "reference", lambda: reference(bench)),
              "arms": records, **summary(records)}
    write_json(options.out / "few_images.json", report)
    write_atomic(options.out / "few_images.md", tables(report))
    sheet(bench.with_finding("test"), {arm.name: generate_arm(bench, arm)[0] for arm in arms if arm.seed == options.seeds[0]},
          options.out / "few_images.png")
    print(tables(report))
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One training that is compared."""

    way: str
    images: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folders and files."""
        return f"{self.images}-{self.way}-{self.seed}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """The images, divided: what the base learns from, what the arms learn from, what nobody has seen."""

    options: argparse.Namespace
    prepared: Prepared
    finding: str
    base: tuple[Study, ...]
    others: tuple[Study, ...]
    """images without the finding that every arm has"""
    showing: tuple[Study, ...]
    """images with the finding that the arms draw from"""
    claim: dict[str, Any]

    def local(self, split: str) -> ImageSet:
        """Images of a split, of the sites that are not the base's."""
        images = self.prepared.images(split)
        return images.take([row for row, study in enumerate(images.studies) if study.site not in self.options.base_sites])

    def with_finding(self, split: str, *, value: float = 1.0) -> ImageSet:
        """Images of a split that show the finding, or (`value` 0) lack it."""
        images = self.local(split)
        return images.take(np.flatnonzero(images.column(self.finding) == value))


def start_bench(options: argparse.Namespace) -> Bench:
    """Divide the training patients, and refuse what cannot be measured or would mix two benches in one folder."""
    recipe = load_recipe(options.recipe, overrides=options.set)
    prepared = prepare(options.sources, options.out, size=recipe.model.image_size)
    finding = canonical(options.finding, allow=prepared.findings)
    sites = sorted({study.site for study in prepared.studies})
    if unknown := sorted(set(options.base_sites) - set(sites)):
        raise SystemExit(f"no image is of the site '{unknown[0]}'; the sites are {', '.join(sites)}")
    lent = [study for study in prepared.studies if study.site in options.base_sites and study.labels
            and study.labels.get(finding) not in (Stated.PRESENT, Stated.UNCERTAIN)]
    own = [study for study in prepared.studies if study.site not in options.base_sites]
    train = [study for study in own if study.split == "train"]
    touched = {study.patient_id for study in train if study.labels.get(finding) in (Stated.PRESENT, Stated.UNCERTAIN)}
    showing = [study for study in train if study.labels.get(finding) is Stated.PRESENT]
    rest = [study for study in train if study.patient_id not in touched and study.labels]
    order = shuffled(sorted({study.patient_id for study in rest}), "others")
    counts, home, taken = Counter(study.patient_id for study in rest), set(), 0
    for patient in order:
        if taken < min(options.others, len(rest) // 2):
            home.add(patient)
            taken += counts[patient]
    others = [study for study in rest if study.patient_id in home][: options.others]
    base = [*lent, *(study for study in rest if study.patient_id not in home)]
    held_out = sum(study.split == "test" and study.labels.get(finding) is Stated.PRESENT for study in own)
    if len(showing) < max(options.images) or held_out < FEWEST_TEST or len(base) < FEWEST_TEST:
        raise SystemExit(f"{len(showing)} training and {held_out} held-out images show {finding}, and {len(base)} are left for the base; "
                         f"needed are {max(options.images)}, {FEWEST_TEST} and {FEWEST_TEST}")
    claim = {"data": prepared.digest, "base sites": options.base_sites, "finding": finding, "others": len(others),
             "recipe": recipe.to_toml(), "made": options.made,
             "base_budget": options.base_budget, "budget": options.budget, "clock": options.clock, "judge_updates": options.judge_updates,
             "learning_rates": {"scratch": recipe.train.learning_rate, **LEARNING_RATES},
             "images": {"base": len(base), "with the finding": len(showing), "held out with it": held_out}}
    path = options.out / "claim.json"
    if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(claim)):
        raise SystemExit(f"{options.out} holds a bench with other images or options; choose another --out")
    write_json(path, claim)
    return Bench(options=options, prepared=prepared, finding=finding, base=tuple(base), others=tuple(others), showing=tuple(showing),
                 claim=claim)


def shuffled(names: Sequence[str], *purpose: str | int) -> list[str]:
    """The names in an order that depends on the purpose alone."""
    return [names[index] for index in np.random.default_rng(derive(0, "few films", *purpose)).permutation(len(names))]


def train(bench: Bench, arm: Arm) -> Run:
    """Train one arm, and first the base if it needs one and there is none."""
    options = bench.options
    scratch = arm.way == "scratch"
    base = None if scratch else train_base(bench).path
    rate = [] if scratch else [f"train.learning_rate={LEARNING_RATES[arm.way]}"]
    out = options.out / "runs" / arm.name
    return timed(out, lambda: sx.train(options.recipe, local_images(bench, arm), out=out, budget=options.budget, seed=arm.seed, base=base,
                                       adapt=None if scratch else arm.way, threads=options.threads, clock=options.clock,
                                       overrides=[*options.set, "train.sample_every=0", *rate]))


def train_base(bench: Bench) -> Run:
    """The base, which has met neither the finding nor any patient of the arms."""
    options, out = bench.options, bench.options.out / "base"
    studies = [replace(study, labels={name: stated for name, stated in study.labels.items() if name != bench.finding})
               for study in bench.base]
    images = image_set(bench, "base", studies, findings=[name for name in bench.prepared.findings if name != bench.finding])
    return timed(out, lambda: sx.train(options.recipe, images, out=out, budget=options.base_budget, seed=0, threads=options.threads,
                                       clock=options.clock, overrides=[*options.set, "train.sample_every=0"]))


def timed(out: Path, training: Any) -> Run:
    """A training, with the processor time that its last process took beside it: wall-clock time says little on a busy machine."""
    if Run(path=out).weights.exists():
        return Run(path=out)
    start = time.process_time()
    run: Run = training()
    write_json(out / "cost.json", {"cpu_seconds": round(time.process_time() - start, 1)})
    return run


def cost(run: Path) -> dict[str, float]:
    """The processor time of a training's last process."""
    kept: dict[str, float] = json.loads((run / "cost.json").read_text(encoding="utf-8"))
    return kept


def local_images(bench: Bench, arm: Arm) -> Prepared:
    """What an arm learns from: as many images with the finding as it is given, smaller numbers being part of larger ones, and the
    others.
    """
    by_name = {study.file_name: study for study in bench.showing}
    chosen = [by_name[name] for name in shuffled(sorted(by_name), "showing", arm.seed)[: arm.images]]
    return image_set(bench, f"{arm.images}-{arm.seed}", [*chosen, *bench.others], findings=bench.prepared.findings)


def image_set(bench: Bench, name: str, studies: Sequence[Study], *, findings: Sequence[str]) -> Prepared:
    """A prepared folder of training images with these names of findings."""
    return training_set(studies, like=bench.prepared, findings=findings, out=bench.options.out / "sets" / name)


def generate_arm(bench: Bench, arm: Arm) -> tuple[ImageSet, ImageSet]:
    """Images of one arm that were asked to show the finding and to lack it; the requests are the same in every arm of a seed."""
    run = train(bench, arm)
    half = bench.options.made // 2
    plans = [plan_like(bench.with_finding("test", value=value), num=half, seed=derive(arm.seed, "few films", name))
             for name, value in (("with", 1.0), ("without", 0.0))]
    folder = bench.options.out / "made" / arm.name
    if not (folder / "dataset.json").exists():
        sx.generate(run, Plan(rows=(*plans[0].rows, *plans[1].rows)), out=folder, seed=arm.seed, threads=bench.options.threads)
    images = read_images(read_dataset(folder, allow=bench.prepared.findings), bench)
    return images.take(np.arange(half)), images.take(np.arange(half, 2 * half))


def read_images(dataset: Dataset, bench: Bench) -> ImageSet:
    return load_images(dataset, size=bench.prepared.size, findings=bench.prepared.findings, policy=STATED_ONLY)


def measure(bench: Bench, arm: Arm) -> dict[str, Any]:
    """Every measure of one arm, each with its standard error; copies as counts."""
    run, (with_it, without) = train(bench, arm), generate_arm(bench, arm)
    facts = read_spec(run.weights)[1]
    record: dict[str, Any] = {"way": arm.way, "images": arm.images, "seed": arm.seed, "steps": facts["steps"], "seen": facts["images_seen"],
                              "started_from": facts.get("started_from"), **cost(run.path)}
    for name, images, value in (("KID with it", with_it, 1.0), ("KID without it", without, 0.0)):
        record[name] = kid_between(bench, bench.with_finding("test", value=value), images)
    record["MS-SSIM gap"], record["MS-SSIM within"] = pair_similarity(bench.with_finding("test"), with_it)
    record["copies"] = copies(bench, arm, np.concatenate([with_it.pixels, without.pixels]))
    record["AUROC"] = requested_auroc(bench, with_it, without)
    return record


def kid_between(bench: Bench, real: ImageSet, images: ImageSet) -> dict[str, float]:
    """KID between held-out images and others."""
    space = load_features("efficientnet-lite0")
    return number(kid_score(space(real.pixels), space(images.pixels), floor_sets=None, features_name=space.name, seed=0,
                            real_patients=real.patients()))


def pair_similarity(real: ImageSet, images: ImageSet) -> tuple[dict[str, float], dict[str, float]]:
    """MS-SSIM of pairs within the images less that within real ones (above 0: too alike), and the former alone."""
    scores = {score.metric: score for score in ms_ssim_scores(real.pixels, images.pixels, floor_sets=None, seed=0)}
    own, theirs = number(scores["ms_ssim_within_synthetic"]), number(scores["ms_ssim_within_real"])
    return {"value": own["value"] - theirs["value"], "error": float(np.hypot(own["error"], theirs["error"]))}, own


def copies(bench: Bench, arm: Arm, images: np.ndarray) -> dict[str, Any]:
    """Near-duplicates of the images that the arm learned from, and false alarms by the same threshold on real images of other patients."""
    held_out = bench.local("test")
    detector, alarms = half_calibrated(local_images(bench, arm).images("train").pixels, held_out.pixels, held_out.patients())
    return {"called": int(detector.check(images).is_copy.sum()), "of": len(images), "alarms": round(alarms.rate * alarms.num_images),
            "alarms_of": alarms.num_images}


def requested_auroc(bench: Bench, with_it: ImageSet, without: ImageSet) -> dict[str, Any]:
    """Of a classifier trained on real images: does it tell images asked to show the finding from images asked to lack it?"""
    train_images = bench.local("train")
    positives = int((train_images.column(bench.finding) == 1).sum())
    if positives < FEWEST_TRAIN:
        return {"skipped": f"only {positives} real training images show {bench.finding}; the classifier needs {FEWEST_TRAIN}"}
    column = train_images.findings.index(bench.finding)
    scores = judge_of(bench).predict(np.concatenate([with_it.pixels, without.pixels]))[:, column]
    found = delong_interval(np.repeat([1, 0], [len(with_it), len(without)]), scores)
    return {"value": found.auc, "error": found.standard_error}


@functools.cache
def judge_of(bench: Bench) -> Classifier:
    """The classifier, from all real training images of the arms' sites."""
    images = bench.local("train")
    return train_classifier(images.pixels, images.labels, findings=images.findings,
                            config=ClassifierConfig(updates=bench.options.judge_updates), seed=0)


def reference(bench: Bench) -> dict[str, Any]:
    """What real images would get: KID of training against held-out images with the finding, MS-SSIM within them, AUROC on held-out ones."""
    real, train_images, lacking = bench.with_finding("test"), bench.with_finding("train"), bench.with_finding("test", value=0.0)
    within = {score.metric: score for score in ms_ssim_scores(real.pixels, train_images.pixels, floor_sets=None, seed=0)}
    return {"KID with it": kid_between(bench, real, train_images), "MS-SSIM within": number(within["ms_ssim_within_real"]),
            "AUROC": requested_auroc(bench, real, lacking), "images": {"with": len(real), "without": len(lacking)},
            "patients": len({*real.patients(), *lacking.patients()})}


def base_facts(bench: Bench) -> dict[str, Any]:
    """What the base learned from, and for how long."""
    run = bench.options.out / "base"
    if not Run(path=run).weights.exists():
        return {"trained": False}
    facts = read_spec(Run(path=run).weights)[1]
    return {"trained": True, "images": len(bench.base), "patients": len({study.patient_id for study in bench.base}),
            "steps": facts["steps"],
            "seen": facts["images_seen"], **cost(run)}


def piece(bench: Bench, name: str, make: Any) -> dict[str, Any]:
    """The record of one piece, from its file if it is there."""
    path = bench.options.out / "pieces" / f"{name}.json"
    if not path.exists():
        write_json(path, make())
        print(f"{name}: done", file=sys.stderr, flush=True)
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return kept


if __name__ == "__main__":
    sys.exit(main())
