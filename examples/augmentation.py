# %% [markdown]
# # Tutorial: augment a rare finding
#
# This is the main job, one verb at a time, from Python: ingest, prepare, train, plan, generate, screen, evaluate, measure the
# benefit, and read the report. It takes about two minutes on one processor core, needs no network and no data: the
# radiographs are drawings of a phantom thorax. On drawings the right answer is known, so you can see the machinery work.
# What it finds says nothing about patients.
#
# `synthorax augment` and `sx.augment` do all of this in one call.
#
# ## Settings
#
# The numbers below decide how long the tutorial takes. On your own images, leave them out and use the defaults.

# %%
from pathlib import Path

import synthorax as sx
from synthorax.data.phantom import PhantomSplit, write_phantom_dataset
from synthorax.evaluation.benefit.protocol import BenefitConfig
from synthorax.judges.classifier import ClassifierConfig

OUT = Path("tutorial")
TRAIN_IMAGES, VALIDATION_IMAGES, TEST_IMAGES = 300, 60, 450
TRAINING_STEPS = 40
SYNTHETIC_IMAGES = 100
CLASSIFIER_UPDATES = 200

# %% [markdown]
# ## Data
#
# Pneumothorax is rare among the training patients, one in twenty, and common among those who test. The splits are stated
# in the table; where they are not, `prepare` splits by patient.

# %%
OTHERS = {"Effusion": 0.20, "Cardiomegaly": 0.16, "Nodule": 0.14}
RARE, COMMON = {**OTHERS, "Pneumothorax": 0.05}, {**OTHERS, "Pneumothorax": 0.30}
drawn = write_phantom_dataset(OUT / "images", size=64, seed=0, splits=(
    PhantomSplit(split="train", num=TRAIN_IMAGES, prevalence=RARE),
    PhantomSplit(split="val", num=VALIDATION_IMAGES, prevalence=COMMON),
    PhantomSplit(split="test", num=TEST_IMAGES, prevalence=COMMON)))
print(f"{len(drawn)} drawings in {drawn.path}")

# %% [markdown]
# `ingest` reads a folder of PNG, JPEG or DICOM files with a table of labels, ChestX-ray14 as it is downloaded, or a
# dataset folder, as here. `prepare` decodes the images, checks them and splits them by patient.

# %%
dataset = sx.ingest(drawn.path)
data = sx.prepare(dataset, size=64, out=OUT / "prepared")
print(data)

# %% [markdown]
# ## Train
#
# A dozen images are too few to learn a finding from. So training starts from `phantom-64`, a small shipped model that knows
# these drawings, as `cxr-256` knows radiographs. `adapt="lora"` moves low-rank updates of its weights and keeps the rest.

# %%
run = sx.train("phantom-64", data, out=OUT / "run", base="phantom-64", adapt="lora", seed=0,
               overrides=[f"train.steps={TRAINING_STEPS}", "train.learning_rate=1e-4"])
print(run.path)

# %% [markdown]
# ## Plan and generate
#
# The plan is written before any image exists: one row an image, with its seed and its condition. Each image with the
# finding has a companion without it, so that "looks synthetic" does not become a shortcut for the finding.

# %%
plan = sx.plan(data, count={"Pneumothorax": SYNTHETIC_IMAGES}, model=run.path, seed=0, out=OUT / "plan.csv")
print(plan)
synthetic = sx.generate(run, plan, out=OUT / "synthetic")

# %% [markdown]
# ## Screen
#
# Near-duplicates of training images, unrealistic images and repeats are dropped. Every threshold comes from real images,
# and `dropped.csv` gives the reason for each image.

# %%
judge = ClassifierConfig(updates=CLASSIFIER_UPDATES, input_size=32, augment="classic", autocast=False)
screened = sx.screen(synthetic, against=data, out=OUT / "kept",
                     config=sx.ScreenConfig(findings=("Pneumothorax",), classifier=judge))
print(screened)

# %% [markdown]
# ## Evaluate, and measure the benefit
#
# `evaluate` compares the synthetic images with held-out real ones; each number stands beside its floor, the same number
# between two sets of real images. `benefit` trains the same classifier with and without the synthetic images, and tests both
# on real patients whom neither the generator nor the classifier has seen.

# %%
report = sx.evaluate(real=data, synthetic=screened.kept, quick=True)
classifier = ClassifierConfig(updates=CLASSIFIER_UPDATES, input_size=32, autocast=False)
report = sx.benefit(real=data, synthetic=screened.kept, findings=["Pneumothorax"], out=OUT / "report", into=report,
                    config=BenefitConfig(classifier=classifier).brief())
print(report)

# %% [markdown]
# ## Read the report
#
# `tutorial/report/report.html` opens in a browser. The same numbers are in `report.json`, and here:

# %%
benefit = report.dimensions["benefit"].findings[0]
delta = benefit["delta"]
print(f"{benefit['finding']}: {benefit['verdict']}")
print(f"difference in AUROC {delta['value']:+.3f}, 95 % interval {delta['low']:+.3f} to {delta['high']:+.3f}")
for score in report.dimensions["fidelity"].scores[:2]:
    print(f"{score.metric}: {score.value:.3f}, between real images {score.floor:.3f}")

# %% [markdown]
# Now do it with [your own images](../docs/getting-started/first-augmentation.md), and learn to
# [read a report](../docs/how-to/read-a-report.md).
